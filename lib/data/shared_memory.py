"""Shared memory: one copy of the tiles for all worker processes of a fold."""

import mmap
import os
import tempfile

import numpy as np


class SharedMemory:
    """Memory that other processes can map by its file descriptor.

    It is an anonymous file in memory where the system has them, not in /dev/shm, which a container often
    limits to 64 MiB. Elsewhere it is an unlinked temporary file.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("tiles")
        else:
            self.descriptor, name = tempfile.mkstemp()
            os.unlink(name)  # noqa: PTH108

    def allocate(self, size: int) -> np.ndarray:
        """Resize the memory and return all of it, (size,) uint8."""
        os.truncate(self.descriptor, max(size, 1))
        return np.frombuffer(mmap.mmap(self.descriptor, max(size, 1)), dtype=np.uint8, count=size)


def map_shared(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """The memory of a descriptor inherited from another process, as uint8 of this shape."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(descriptor, max(size, 1)), dtype=np.uint8, count=size).reshape(shape)
