"""The code for GPUs, run by torch's own CUDA dispatch on a null GPU; see null_gpu.cpp, cuda_checks.py."""

import pytest
from cuda_checks import CHECKS


@pytest.mark.parametrize("name", list(CHECKS))
def test_on_a_null_gpu(name: str, cuda_results: dict[str, str]) -> None:
    assert not cuda_results[name], cuda_results[name]
