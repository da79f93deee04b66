"""Replacements in a process on the null GPU for what cannot run there; an import makes them."""

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from lib.runtime import hardware
from lib.training.distributed import DistributedContext
from lib.training.epoch import RunningLoss

torch.backends.cudnn.enabled = False  # torch's own convolutions and batch norms run instead
_read = RunningLoss.sums


def _sums(self: RunningLoss) -> tuple[float, float]:
    """A loss over one tile: counts computed by kernels are 0, which would end the training."""
    return _read(self)[0], 1.0


RunningLoss.sums = _sums  # type: ignore[method-assign]


_convolve = hardware._convolution_sum


def _convolution_sum(device: torch.device) -> float:
    """The expected sum, after the convolution was launched."""
    return _convolve(device) + 8 * 8 * 30 * 30 * 27


hardware._convolution_sum = _convolution_sum

_library = ctypes.CDLL(os.environ["NULL_GPU"])
_library.null_gpu_set.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def _copy_really(cls: type, name: str, *, always: bool = False) -> None:
    """What several processes exchange comes from the host: its copies back to the host deliver it.

    DistributedDataParallel compares the shapes of parameters and the order of its buckets over the device;
    from zeros it would take an order that is none, and end in a segmentation fault.
    """
    method: Callable[..., Any] = getattr(cls, name)

    @functools.wraps(method)
    def exchange(self: Any, *arguments: Any, **options: Any) -> Any:
        if not (always or self.size > 1):
            return method(self, *arguments, **options)
        _library.null_gpu_set(b"real copies", 1)
        try:
            return method(self, *arguments, **options)
        finally:
            _library.null_gpu_set(b"real copies", 0)

    setattr(cls, name, exchange)


for _name in ("wrap", "sum", "max_int", "broadcast_int", "broadcast_buffers", "gather_predictions"):
    _copy_really(DistributedContext, _name)
_copy_really(DistributedDataParallel, "forward", always=True)  # the first but one rebuilds the buckets
