"""Memory of a device: whether it ran out, and all tiles of a training in it where it has room for them."""

import logging

import numpy as np
import torch

logger = logging.getLogger(__name__)

_CHUNK = 64 << 20  # bytes of each of the two pinned buffers of an upload
_GIB = 1 << 30
# The messages of a RuntimeError with which other allocators than that of device memory fail: torch's of host
# memory (Linux, Windows), CUDA's of pinned memory, and the workspaces of cuBLAS and cuDNN.
_OUT_OF_MEMORY = (
    "not enough memory: you tried to allocate",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or NumPy could not allocate memory, of a device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


class TilesInTheWay(RuntimeError):
    """Memory ran out in one of several processes, which holds all tiles on its device."""

    def __init__(self) -> None:
        super().__init__(
            "out of memory with the tiles in device memory: keep them in the host's (--set tiles_on=host)"
        )


class DeviceTiles:
    """All tiles of a training: in host memory, and in that of the device from `place` until `release`.

    The batches are the same to the bit, wherever the tiles are (lib.data.batches).

    Attributes:
        host: (N, 96, 96, 3) uint8; may be mapped from a file.
        resident: the same on the device, or None.
    """

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self.resident: torch.Tensor | None = None
        self._released = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tiles: (N, 96, 96, 3)."""
        return self.host.shape

    def __len__(self) -> int:
        return len(self.host)

    def place(self, device: torch.device, *, tiles_on: str, reserve: int, name: str) -> None:
        """Copy the tiles to a GPU, if the option says so and its memory has room.

        Does nothing after a `release`: the memory did not suffice.

        Args:
            device: a GPU; on a CPU the host's memory is that of the device.
            tiles_on: as in Config. auto: if `reserve` is left free; device: if the tiles alone fit.
            reserve: bytes of the device that training and prediction need.
            name: begins the line in the log.
        """
        if device.type != "cuda" or tiles_on == "host" or self.resident is not None or self._released:
            return
        free = free_device_memory(device)
        needed = self.host.nbytes + (reserve if tiles_on == "auto" else 0)
        reason = (
            f"{free / _GIB:.1f} GiB of {device} are free, and the tiles need {self.host.nbytes / _GIB:.2f}"
        )
        if tiles_on == "auto":
            reason += f" beside {reserve / _GIB:.1f} for the training"
        if free < needed:
            logger.info("%s: the tiles stay in host memory: %s", name, reason)
            return
        try:
            self.resident = upload(self.host, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.resident is None:  # outside the except block: the memory of its frames is freed here
            torch.cuda.empty_cache()
            self._released = True
            logger.info("%s: the tiles stay in host memory: memory ran out during their upload", name)
            return
        logger.info("%s: the tiles are in device memory: %s", name, reason)

    def release(self) -> bool:
        """Free the device memory for good, because the training needs it; whether there was any to free."""
        if self.resident is None:
            return False
        self._released = True
        self.free()
        logger.info("the device's memory did not suffice: its %.2f GiB of tiles are freed", self.gib)
        return True

    def free(self) -> None:
        """Free the device memory, which the tiles may be placed in again."""
        if self.resident is not None:
            self.resident = None
            torch.cuda.empty_cache()

    @property
    def gib(self) -> float:
        """Size of the tiles in GiB."""
        return self.host.nbytes / _GIB


def free_device_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate: free ones, and those that torch keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def upload(tiles: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy all tiles to a device: one pinned buffer is filled while the other is copied.

    On a CPU it does the same without pinned memory, streams and events, so that tests run it.

    Args:
        tiles: (N, 96, 96, 3) uint8; each is read once and in order, as a file is read fastest.
        device: where the tiles are needed.

    Returns:
        The same on the device, complete.

    Raises:
        RuntimeError: out of memory, of the device or pinned (`is_out_of_memory`).
    """
    cuda = device.type == "cuda"
    with torch.inference_mode(False):
        store = torch.empty(tiles.shape, dtype=torch.uint8, device=device)
        if not len(tiles):
            return store
        rows = min(len(tiles), max(1, _CHUNK // max(1, tiles[0].nbytes)))
        buffers = [
            torch.empty((rows, *tiles.shape[1:]), dtype=torch.uint8, pin_memory=cuda) for _ in range(2)
        ]
    stream = torch.cuda.Stream(device) if cuda else None
    copied = [torch.cuda.Event() for _ in range(2)] if cuda else []
    if stream is not None:  # what computed in this memory before must have ended
        stream.wait_stream(torch.cuda.current_stream(device))
    for number, start in enumerate(range(0, len(tiles), rows)):
        part, turn = tiles[start : start + rows], number % 2
        if copied:
            copied[turn].synchronize()  # the copy from this buffer, two chunks ago, must have ended
        filled = buffers[turn][: len(part)]
        np.copyto(filled.numpy(), part)
        with torch.cuda.stream(stream):  # nothing where there is no stream
            store[start : start + len(part)].copy_(filled, non_blocking=True)
            if stream is not None:
                copied[turn].record(stream)
    if stream is not None:
        stream.synchronize()
    return store
