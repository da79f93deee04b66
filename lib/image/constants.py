"""Constants on a device: copied there once, because a copy from the host waits for the device."""

from functools import lru_cache

import torch


@lru_cache(maxsize=64)
def constant(values: tuple[object, ...], device: torch.device) -> torch.Tensor:
    """Nested tuples of numbers as float32 on the device, the same tensor at each call. Not to be changed."""
    with torch.inference_mode(False):  # else a first call in inference mode would leave an inference tensor
        return torch.tensor(values, dtype=torch.float32, device=device)
