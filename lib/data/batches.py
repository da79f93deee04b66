"""Batches from the tiles in host memory; on a GPU the next one is on its way while it works on this one."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

Batch = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


def load_batches(
    tiles: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: int | Sequence[int],
    device: torch.device,
    columns: Sequence[torch.Tensor] = (),
) -> Generator[Batch]:
    """The tiles of `rows`, in that order, as they are, on the device.

    For a GPU a thread gathers the next batch into one of two pinned buffers while the caller works on this one; from there the
    tiles are copied on a stream of their own, beside the computation. A CPU gathers when it is asked: a thread beside the
    computation brings its own threads along, which cost a small network 14 to 46 % of its speed to save it 0.2 to 2.5 %
    (benchmarks/training.py, 2 cores, 2026-11-24).

    Args:
        tiles: (N, 96, 96, 3) uint8 in host memory.
        rows: (M,) int64 into `tiles`.
        batch_size: B; the last batch is smaller when B does not divide M. Or the size of every batch; their sum is M.
        device: where the batches go.
        columns: what else belongs to each of the rows, such as its label: each (M, ...).

    Yields:
        images (B, 3, 96, 96) uint8, channels last in memory, and the columns (B, ...).
    """
    sizes = [batch_size] * -(-len(rows) // batch_size) if isinstance(batch_size, int) else list(batch_size)
    ends = np.minimum(np.cumsum(sizes, dtype=np.int64), len(rows)).tolist()
    cuts = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    if not cuts:
        return
    source, order = torch.from_numpy(tiles), torch.from_numpy(rows)
    if device.type == "cpu":
        for cut in cuts:
            yield (
                torch.index_select(source, 0, order[cut]).permute(0, 3, 1, 2),
                tuple(column[cut] for column in columns),
            )
        return
    shape = (max(cut.stop - cut.start for cut in cuts), *tiles.shape[1:])
    gather, send = _for_gpu(source, shape, columns, device)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:

        def fetch(number: int) -> Batch:
            cut = cuts[number]
            return gather(number, order[cut], tuple(column[cut] for column in columns))

        ahead = pool.submit(fetch, 0)
        for number in range(len(cuts)):
            batch = ahead.result()
            if number + 1 < len(cuts):
                ahead = pool.submit(fetch, number + 1)
            images, beside = send(number, batch)
            yield images.permute(0, 3, 1, 2), beside


_Gather = Callable[[int, torch.Tensor, tuple[torch.Tensor, ...]], Batch]
_Send = Callable[[int, Batch], Batch]


def _for_gpu(
    source: torch.Tensor, shape: tuple[int, ...], columns: Sequence[torch.Tensor], device: torch.device
) -> tuple[_Gather, _Send]:
    """Two sets of pinned buffers take turns: one is filled while the other is being copied."""
    largest = shape[0]
    images = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    beside = [
        [torch.empty((largest, *column.shape[1:]), dtype=column.dtype, pin_memory=True) for column in columns]
        for _ in range(2)
    ]
    copied = [torch.cuda.Event() for _ in range(2)]
    stream = torch.cuda.Stream(device)

    def gather(number: int, rows: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> Batch:
        turn, count = number % 2, len(rows)
        copied[turn].synchronize()  # the copy that left from here two batches ago
        torch.index_select(source, 0, rows, out=images[turn][:count])
        for buffer, part in zip(beside[turn], parts, strict=True):
            buffer[:count].copy_(part)
        return images[turn][:count], tuple(buffer[:count] for buffer in beside[turn])

    def send(number: int, batch: Batch) -> Batch:
        with torch.cuda.stream(stream):
            there = [each.to(device, non_blocking=True) for each in (batch[0], *batch[1])]
            copied[number % 2].record(stream)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for each in there:
            each.record_stream(computing)
        return there[0], tuple(there[1:])

    return gather, send


def as_images(tiles: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float32 in [0, 1], contiguous."""
    return tiles.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
