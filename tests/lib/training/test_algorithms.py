"""Deterministic algorithms on request, the fastest ones on a GPU otherwise, and nothing left behind."""

import os
from typing import Any

import pytest
import torch

from lib.training.algorithms import select_algorithms


def selection() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_a_selection_is_made_and_taken_back(
    device: str, workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = selection()
    with select_algorithms(torch.device(device), deterministic=True):
        assert selection() == (True, False, True, False, ":4096:8")
    assert selection() == before
    with (
        pytest.raises(ZeroDivisionError),
        select_algorithms(torch.device(device), deterministic=False),
    ):
        assert selection() == (False, False, before[2], device == "cuda", workspace)
        raise ZeroDivisionError
    assert selection() == before


def test_an_operation_without_a_deterministic_algorithm_is_refused() -> None:
    values = torch.zeros(4)
    with (
        select_algorithms(torch.device("cpu"), deterministic=True),
        pytest.raises(RuntimeError, match="does not have a deterministic implementation"),
    ):
        values.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)
