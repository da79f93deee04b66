"""Algorithms of torch and the GPU libraries during a training: deterministic on request, else the fastest."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_WORKSPACE = ":4096:8"  # with eight buffers of 4 MiB cuBLAS is deterministic (its manual, 2.1.4)


@contextmanager
def select_algorithms(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Select algorithms for the whole process, and restore the earlier selection.

    Args:
        device: on a GPU without `deterministic`, cuDNN times its algorithms for each new shape, and keeps
            the fastest (`torch.backends.cudnn.benchmark`).
        deterministic: the same machine and versions give the same bits. An operation without such an
            algorithm raises a RuntimeError, which names it. cuBLAS reads its variable when it starts: enter
            this before the first computation on a GPU.
    """
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags, workspace = (cudnn.benchmark, cudnn.deterministic), os.environ.get(_CUBLAS)
    try:
        cudnn.benchmark = device.type == "cuda" and not deterministic
        if deterministic:
            os.environ[_CUBLAS] = _CUBLAS_WORKSPACE
            cudnn.deterministic = True
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = flags
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = workspace
