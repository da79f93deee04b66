"""Batches from the tiles in host memory: the next one is on its way to the GPU while it works on this one."""

from collections.abc import Iterator

import numpy as np
import torch


def load_batches(
    tiles: np.ndarray, rows: np.ndarray, *, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """The tiles of `rows`, in that order, as images on the device.

    Args:
        tiles: (N, 96, 96, 3) uint8 in host memory.
        rows: (M,) int64 into `tiles`.
        batch_size: B; the last batch is smaller when B does not divide M.
        device: where the images go. On a GPU two pinned buffers take turns, so the copy runs beside the computation.

    Yields:
        images (B, 3, 96, 96) float32 in [0, 1], and their rows (B,).
    """
    source = torch.from_numpy(tiles)
    batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    if device.type != "cuda":
        for batch in batches:
            yield _as_images(source[torch.from_numpy(batch)]), batch
        return
    buffers = [torch.empty((batch_size, *tiles.shape[1:]), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2)]

    def send(number: int) -> torch.Tensor:
        batch, buffer = batches[number], buffers[number % 2]
        copied[number % 2].synchronize()  # the copy that used this buffer two batches ago
        torch.index_select(source, 0, torch.from_numpy(batch), out=buffer[: len(batch)])
        images = buffer[: len(batch)].to(device, non_blocking=True)
        copied[number % 2].record()
        return images

    ahead = send(0) if batches else None
    for number, batch in enumerate(batches):
        images = ahead
        ahead = send(number + 1) if number + 1 < len(batches) else None
        assert images is not None
        yield _as_images(images), batch


def _as_images(tiles: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [0, 1]."""
    return tiles.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
