"""Batches of tiles on the device, in a given order; for a GPU the next batch is gathered ahead."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from lib.data.device_memory import DeviceTiles

Batch = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


def load_batches(
    tiles: np.ndarray | DeviceTiles,
    rows: np.ndarray,
    *,
    batch_size: int | Sequence[int],
    device: torch.device,
    columns: Sequence[torch.Tensor] = (),
) -> Generator[Batch]:
    """The tiles of `rows`, in that order and unchanged, on the device.

    For a GPU a thread gathers the next batch into one of two pinned buffers while the caller computes on the
    present one. For a CPU each batch is gathered when the caller requests it. A thread beside the computation
    starts threads of its own: they cost a small network 14 to 46 % of its speed and saved 0.2 to 2.5 %
    (benchmarks/training.py, 2 cores, 2026-11-24). Tiles that are in the device's memory are gathered there,
    without a thread and without copies from the host.

    Args:
        tiles: (N, 96, 96, 3) uint8 in host memory, or in the device's, too.
        rows: (M,) int64 into `tiles`.
        batch_size: B; the last batch is smaller when B does not divide M. Or the size of every batch; their
            sum is M.
        device: where the batches are needed.
        columns: further values of each row, such as its label: each (M, ...).

    Yields:
        images (B, 3, 96, 96) uint8, channels last in memory, and the columns (B, ...).
    """
    sizes = [batch_size] * -(-len(rows) // batch_size) if isinstance(batch_size, int) else list(batch_size)
    ends = np.minimum(np.cumsum(sizes, dtype=np.int64), len(rows)).tolist()
    slices = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    if not slices:
        return
    order = torch.from_numpy(rows)
    host, resident = (tiles.host, tiles.resident) if isinstance(tiles, DeviceTiles) else (tiles, None)
    if resident is not None:
        yield from gather_batches(resident, order, slices, columns=columns)
        return
    source = torch.from_numpy(host)
    if device.type == "cpu":
        for part in slices:
            images = torch.index_select(source, 0, order[part])  # (B, 96, 96, 3)
            yield images.permute(0, 3, 1, 2), tuple(column[part] for column in columns)
    else:
        yield from prefetch_batches(source, order, slices, device=device, columns=columns)


def gather_batches(
    source: torch.Tensor,
    order: torch.Tensor,
    slices: Sequence[slice],
    *,
    columns: Sequence[torch.Tensor] = (),
) -> Generator[Batch]:
    """Batches of tiles that are all on the device: order and columns are copied there once, at the beginning.

    Args:
        source: (N, 96, 96, 3) uint8 on the device.
        order: (M,) int64 into `source`, in host memory.
        slices: of `order`, one for each batch.
        columns: each (M, ...), in host memory.

    Yields:
        As `load_batches`.
    """
    _require_rows(order, tiles=len(source))
    rows, width = source.flatten(1), int(np.prod(source.shape[1:]))
    if width % 8 == 0:  # a tile is 3,456 words: an eighth of the reads, and 32-bit indices suffice
        rows = rows.view(torch.int64)
    order = order.to(source.device)
    columns = [column.to(source.device) for column in columns]
    for part in slices:
        images = torch.index_select(rows, 0, order[part]).view(torch.uint8).view(-1, *source.shape[1:])
        yield images.permute(0, 3, 1, 2), tuple(column[part] for column in columns)


def _require_rows(order: torch.Tensor, *, tiles: int) -> None:
    """Rows are checked on the host: a kernel that met a wrong one would end the process's use of the GPU."""
    if len(order) and not (int(order.min()) >= 0 and int(order.max()) < tiles):
        raise IndexError(f"rows {int(order.min())} to {int(order.max())} of {tiles} tiles")


def prefetch_batches(
    source: torch.Tensor,
    order: torch.Tensor,
    slices: Sequence[slice],
    *,
    device: torch.device,
    columns: Sequence[torch.Tensor] = (),
) -> Generator[Batch]:
    """Batches for a GPU: a thread fills one buffer while the other is copied to the device.

    On a CPU it does the same without pinned memory, streams and events, so that tests run it.

    Args:
        source: (N, 96, 96, 3) uint8.
        order: (M,) int64 into `source`.
        slices: of `order`, one for each batch.
        device: where the batches are needed.
        columns: each (M, ...).

    Yields:
        As `load_batches`.
    """
    _require_rows(order, tiles=len(source))
    largest = max(part.stop - part.start for part in slices)
    buffers = _TransferBuffers(source, columns, batch_size=largest, device=device)

    def fill(number: int) -> Batch:
        part = slices[number]
        return buffers.fill(number, order[part], tuple(column[part] for column in columns))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        filling = pool.submit(fill, 0)
        for number in range(len(slices)):
            filled = filling.result()
            if number + 1 < len(slices):
                filling = pool.submit(fill, number + 1)
            images, values = buffers.send(number, filled)
            yield images.permute(0, 3, 1, 2), values


class _TransferBuffers:
    """Two sets of host buffers in turns: one is filled while the other is copied to the device."""

    def __init__(
        self,
        source: torch.Tensor,
        columns: Sequence[torch.Tensor],
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.source, self.device, cuda = source, device, device.type == "cuda"

        def buffer(like: torch.Tensor) -> torch.Tensor:
            return torch.empty((batch_size, *like.shape[1:]), dtype=like.dtype, pin_memory=cuda)

        # A tensor made under the caller's inference_mode could not be written by the thread, where it is off.
        with torch.inference_mode(False):
            self.images = [buffer(source) for _ in range(2)]  # each (B, 96, 96, 3)
            self.values = [[buffer(column) for column in columns] for _ in range(2)]  # each (B, ...)
        self.stream = torch.cuda.Stream(device) if cuda else None
        self.copied = [torch.cuda.Event() for _ in range(2)] if cuda else []

    def fill(self, number: int, rows: torch.Tensor, columns: tuple[torch.Tensor, ...]) -> Batch:
        """Gather batch `number` in host memory: rows (B,) int64 into the source, columns (B, ...).

        By numpy, in this thread alone and without the GIL. torch would start a team of threads for it, which
        waits for cores that the caller keeps busy: 5,000 to 53,000 tiles/s, instead of 41,000 to 50,000
        (beside a busy caller, 2 shared cores, 5 rounds, 2026-11-28). `torch.set_num_threads` is no remedy,
        because it also changes the number for threads that start later.
        """
        turn, count = number % 2, len(rows)
        if self.copied:
            self.copied[turn].synchronize()  # the copy from this buffer, two batches ago, must have ended
        # `clip` gathers straight into the buffer; the rows were checked before.
        np.take(self.source.numpy(), rows.numpy(), axis=0, out=self.images[turn][:count].numpy(), mode="clip")
        for buffer, column in zip(self.values[turn], columns, strict=True):
            np.copyto(buffer[:count].numpy(), column.numpy())
        return self.images[turn][:count], tuple(buffer[:count] for buffer in self.values[turn])

    def send(self, number: int, batch: Batch) -> Batch:
        """Copy a filled batch to the device, on a GPU by a stream of its own, beside the computation."""
        if self.stream is None:
            return batch[0].clone(), tuple(column.clone() for column in batch[1])
        with torch.cuda.stream(self.stream):
            tensors = [tensor.to(self.device, non_blocking=True) for tensor in (batch[0], *batch[1])]
            self.copied[number % 2].record(self.stream)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(computing)  # its memory is not reused before the computation is done with it
        return tensors[0], tuple(tensors[1:])


def as_images(tiles: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float32 in [0, 1], contiguous."""
    return tiles.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
