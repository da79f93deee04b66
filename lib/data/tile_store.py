"""Tile store: all tiles of a folder in one .npy array, verified by SHA-1, resumable after an interruption.

A tile's id is the SHA-1 of its 27,648 pixel bytes, so a hash verifies it. Many reader threads have one file
open each, because a mounted network file system is slow but serves many requests at a time. They fill one
block of the array while the block before it is hashed, written and flushed to disk. A journal beside the
array records the finished blocks and the hash of the file up to each; the next run continues after them.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tokenize
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.competition import REMEDY
from lib.data.tiff import HEADER, TILE_BYTES, TILE_SHAPE, TileError, decode_tile
from lib.errors import KernelError, listed
from lib.progress import Progress
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

BLOCK = 2048  # tiles between two entries of the journal: 54 MiB, less than a second of work
CHUNK = 32  # tiles a reader thread reads at a time
MISMATCHES_ALLOWED = 0.001  # share of tiles; above it the data are not the competition's
_BUFFERS = 2  # blocks in memory, 108 MiB: one is being written, one is being read
_READ_AT_ONCE = 1 << 24  # bytes
_FILE_BYTES = len(HEADER) + TILE_BYTES
_SHA1 = re.compile(r"[0-9a-f]{40}")
# The errors of numpy's header parser, which numpy does not convert.
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


class StoreError(KernelError):
    """Tiles cannot be read or do not match their ids; the message lists them."""


@dataclass
class BuiltStore:
    """The result of building one array."""

    tiles: int
    resumed: int = 0  # tiles kept from an interrupted run
    mismatches: list[str] = field(default_factory=list)  # ids whose pixels have another SHA-1
    sha256: str = ""  # of the whole file, computed while it was written


class StoreBuilder:
    """Builds `<name>` in a folder as `<name>.part` with `<name>.journal`; `publish` puts it in place.

    An earlier array stays unchanged until `publish`.
    """

    def __init__(self, folder: Path, name: str, *, ids: Sequence[str]) -> None:
        self.target = folder / name
        self.part = folder / f"{name}.part"
        self.journal = folder / f"{name}.journal"
        self.ids = list(ids)
        self.plan = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        self._header = _npy_header(len(self.ids))

    @property
    def bytes(self) -> int:
        """The size of the finished array on disk."""
        return len(self._header) + len(self.ids) * TILE_BYTES

    @property
    def bytes_on_disk(self) -> int:
        """The size of the part that an interrupted run wrote."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def build(self, tiles: Path, *, readers: int, strict: bool, folder_name: str = "") -> BuiltStore:
        """Read every tile and check its SHA-1; the progress is logged about every 10 % of the tiles.

        Args:
            tiles: the folder with `<id>.tif`.
            readers: threads that open, read and hash at the same time.
            strict: stop at the first block with a tile whose pixels do not hash to its id.
            folder_name: the folder's name in messages.

        Returns:
            The numbers of tiles and of resumed tiles, the ids that do not match, and the SHA-256 of the file.

        Raises:
            StoreError: tiles that cannot be decoded or have the wrong size (all of them are listed), or too
                many tiles whose pixels do not match their id.
            OSError: the disk is full.
        """
        done, digest = self._resume()
        result = BuiltStore(tiles=len(self.ids), resumed=min(done * BLOCK, len(self.ids)))
        undecodable: list[str] = []
        logged = result.resumed * 10 // max(len(self.ids), 1)
        if result.resumed:
            logger.info(
                f"{result.resumed:,} of {len(self.ids):,} tiles of {folder_name} "
                "were read before the interruption"
            )
        with (
            warnings.catch_warnings(),  # not in the threads, which share the filters
            self.part.open("r+b", buffering=0) as array,
            self.journal.open("a") as journal,
            _Blocks(tiles, self.ids, start=result.resumed, readers=readers) as blocks,
        ):
            warnings.filterwarnings(
                "ignore", module="PIL"
            )  # its warnings repeat our errors about damaged files
            array.seek(len(self._header) + result.resumed * TILE_BYTES)
            progress = Progress(total=len(self.ids))
            progress.update(result.resumed)
            while (block := blocks.next()) is not None:
                undecodable += block.undecodable
                result.mismatches += block.mismatches
                if (strict and block.mismatches) or len(result.mismatches) > max(
                    MISMATCHES_ALLOWED * len(self.ids), 1
                ):
                    refusals = [_mismatch_message(result.mismatches, block.end, folder_name, strict=strict)]
                    refusals += (
                        [_undecodable_message(undecodable, len(self.ids), folder_name)] if undecodable else []
                    )
                    raise StoreError("\n".join(refusals))
                if undecodable:
                    continue  # read on, to list every bad tile; no block is journaled any more
                _write_all(array, block.pixels)
                digest.update(block.pixels)
                os.fsync(array.fileno())  # before its line, so that a journaled block is on the disk
                entry = {"sha256": digest.hexdigest(), "mismatches": block.mismatches}
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
                progress.update(block.end)
                if (tenth := block.end * 10 // len(self.ids)) > logged:
                    logged = tenth
                    logger.info("%s: %s", folder_name, progress.describe(block.end))
        if undecodable:
            raise StoreError(_undecodable_message(undecodable, len(self.ids), folder_name))
        result.sha256 = digest.hexdigest()
        return result

    def _resume(self) -> tuple[int, "hashlib._Hash"]:
        """Prepare part and journal to continue.

        Returns:
            The number of intact blocks, and the digest of the file up to their end.
        """
        lines = self.journal.read_text(errors="replace").splitlines() if self.journal.is_file() else []
        if lines and lines[0] == self.plan and self.target.is_file() and not self.part.is_file():
            # A run published the array and was killed before it removed the journal. A hard link is used, so
            # that the array of a valid record stays until this run has a new one.
            try:
                os.link(self.target, self.part)
            except OSError:  # a file system without links
                self.target.replace(self.part)
        kept: list[str] = []
        digest = hashlib.sha256(self._header)
        intact = False
        if lines and self.part.is_file() and lines[0] == self.plan:
            with self.part.open("rb", buffering=0) as stream:
                intact = stream.read(len(self._header)) == self._header
                buffer = memoryview(bytearray(BLOCK * TILE_BYTES if intact else 0))
                for line in lines[1:] if intact else []:
                    rows = min(BLOCK, len(self.ids) - len(kept) * BLOCK)
                    block = buffer[: _read_into(stream, buffer[: rows * TILE_BYTES])]
                    extended = digest.copy()
                    extended.update(block)
                    # A block with mismatches is read again: tiles may be downloaded again, or `verify`
                    # changed.
                    if _entry(line) != {"sha256": extended.hexdigest(), "mismatches": []}:
                        break
                    digest = extended
                    kept.append(line)
        if not intact:
            self.part.unlink(missing_ok=True)  # it may be a second name of the published array
            self.part.write_bytes(self._header)
        elif self.part.stat().st_nlink > 1 and len(kept) * BLOCK < len(self.ids):
            # Blocks will be written, which must not change the published array.
            unlinked = self.part.with_suffix(".part.new")
            shutil.copyfile(self.part, unlinked)
            unlinked.replace(self.part)
        rewritten = self.journal.with_suffix(".journal.new")
        rewritten.write_text("".join(f"{line}\n" for line in [self.plan, *kept]))
        rewritten.replace(self.journal)
        return len(kept), digest

    def publish(self) -> None:
        """Put the finished array in place of an earlier one. The journal stays until `forget`."""
        self.part.replace(self.target)
        self.part.unlink(missing_ok=True)  # a rename between two names of one file keeps both

    def forget(self) -> None:
        """Remove the journal, after run.json was written."""
        self.journal.unlink(missing_ok=True)


@dataclass
class _Block:
    """Consecutive tiles that were read: their faults, and their pixels, valid until the next request."""

    end: int  # number of tiles up to the end of the block
    pixels: memoryview
    undecodable: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


class _Blocks:
    """Reads the tiles in blocks and in order; threads fill the next ones. Memory: `_BUFFERS` blocks."""

    def __init__(self, tiles: Path, ids: Sequence[str], *, start: int, readers: int) -> None:
        self._folder, self._ids, self._start = tiles, ids, start
        self._pool = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="reader")
        rows = min(BLOCK, len(ids) - start)
        blocks = -(-(len(ids) - start) // BLOCK)
        self._free = deque(
            np.empty(rows * TILE_BYTES, dtype=np.uint8).data for _ in range(min(_BUFFERS, blocks))
        )
        self._reading: deque[tuple[_Block, memoryview, list[Future[list[tuple[str, str]]]]]] = deque()
        self._in_use: memoryview | None = None

    def __enter__(self) -> "_Blocks":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> _Block | None:
        """The next block, or None after the last; the pixels of the previous block are then overwritten."""
        if self._in_use is not None:
            self._free.append(self._in_use)
            self._in_use = None
        while self._free and self._start < len(self._ids):
            self._submit(self._free.popleft())
        if not self._reading:
            return None
        block, self._in_use, chunks = self._reading.popleft()
        for chunk in chunks:
            for kind, text in chunk.result():
                (block.undecodable if kind == "error" else block.mismatches).append(text)
        return block

    def _submit(self, buffer: memoryview) -> None:
        names = self._ids[self._start : self._start + BLOCK]
        self._start += len(names)
        chunks = [
            self._pool.submit(
                _read_chunk, self._folder, names[start : start + CHUNK], buffer[start * TILE_BYTES :]
            )
            for start in range(0, len(names), CHUNK)
        ]
        self._reading.append((_Block(self._start, buffer[: len(names) * TILE_BYTES]), buffer, chunks))


def _entry(line: str) -> object:
    try:
        return json.loads(line)
    except UNREADABLE:  # the process was killed while it wrote this line
        return None


def _write_all(stream: Any, content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]


def _read_into(stream: Any, buffer: memoryview) -> int:
    """Fill the buffer from an unbuffered stream; the number of bytes, smaller only at the end of the file."""
    done = 0
    while done < len(buffer) and (count := stream.readinto(buffer[done : done + _READ_AT_ONCE])):
        done += count
    return done


def _undecodable_message(undecodable: list[str], tiles: int, folder_name: str) -> str:
    lead = f"{len(undecodable):,} of {tiles:,} tiles of {folder_name} cannot be used:"
    return listed(lead, undecodable, remedy=REMEDY)


def _mismatch_message(mismatches: list[str], read: int, folder_name: str, *, strict: bool) -> str:
    wrong = f"{len(mismatches):,} do not match their id (their SHA-1)"
    lead = f"of the first {read:,} tiles of {folder_name}, {wrong}:"
    share = f"at most {MISMATCHES_ALLOWED:.1%} of the tiles (or one) may differ"
    limit = "verify = strict allows none" if strict else share
    if not all(_SHA1.fullmatch(name) for name in mismatches):
        rule = (
            "A tile's name and its id in the tables must be the SHA-1 of its pixels, 40 hexadecimal digits: "
            "hashlib.sha1(pixels.tobytes()).hexdigest() of the (96, 96, 3) uint8 array, RGB"
        )
        return listed(lead, mismatches, remedy=f"{rule}. {REMEDY}")
    return listed(lead, mismatches, remedy=f"{limit}. {REMEDY}")


def _npy_header(tiles: int) -> bytes:
    """The header of such an array in version 1.0 of numpy's format, padded to a multiple of 64 bytes."""
    import io

    stream = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (tiles, *TILE_SHAPE)}
    np.lib.format.write_array_header_1_0(stream, description)  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _read_chunk(folder: Path, names: Sequence[str], out: memoryview) -> list[tuple[str, str]]:
    """Read tiles one after the other into `out`; the faults of `_read_one`."""
    header = bytearray(len(HEADER))
    faults = []
    for row, name in enumerate(names):
        fault = _read_one(f"{folder}{os.sep}", name, out[row * TILE_BYTES : (row + 1) * TILE_BYTES], header)
        if fault is not None:
            faults.append(fault)
    return faults


def _read_one(folder: str, name: str, out: memoryview, header: bytearray) -> tuple[str, str] | None:
    """Read one tile into `out`, without a copy if the file has the layout of the competition's files.

    Args:
        folder: with the separator at its end.
        name: the tile's id.
        out: 27,648 bytes for the pixels.
        header: a buffer of 287 bytes.

    Returns:
        None, ("mismatch", id) or ("error", message).
    """
    path = f"{folder}{name}.tif"
    try:
        if not _read_in_place(path, out, header):
            with Path(path).open("rb") as stream:
                out[:] = decode_tile(stream.read()).reshape(-1).data
    except (TileError, OSError) as error:
        return "error", f"{Path(folder).name}/{name}.tif: {error}"
    return None if hashlib.sha1(out, usedforsecurity=False).hexdigest() == name else ("mismatch", name)


def _read_in_place(path: str, out: memoryview, header: bytearray) -> bool:
    """True if the file begins with the competition's header; then `out` holds the pixels."""
    if not hasattr(os, "readv"):
        return False
    file = os.open(path, os.O_RDONLY)
    try:
        return os.readv(file, (header, out)) == _FILE_BYTES and header == HEADER
    finally:
        os.close(file)


def array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and first byte of the array in a file; the array is not read.

    Raises:
        ValueError: not an array in C order in version 1.0 of numpy's format, or the file is too short for it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
            if version != (1, 0):  # later versions allow headers of 4 GiB
                raise ValueError(f"version {version[0]}.{version[1]} of the format, not 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
        except _HEADER_ERRORS as error:
            raise ValueError(f"not a numpy array: {error or type(error).__name__}") from error
        if fortran or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"an array of {shape} {dtype}{', in Fortran order' if fortran else ''}")
        start = stream.tell()
        present, size = os.fstat(stream.fileno()).st_size - start, math.prod(shape) * dtype.itemsize
        if present < size:
            raise ValueError(f"cut short: {present:,} of {size:,} bytes")
        return shape, dtype, start


def array_layout(path: Path) -> tuple[int, int]:
    """The number of tiles in a file and their first byte.

    Raises:
        StoreError: it is not a tile array, or is cut short.
    """
    try:
        shape, dtype, start = array_header(path)
    except ValueError as error:
        raise StoreError(f"{path} is {error}. Run the prepare kernel again.") from error
    if dtype != np.uint8 or shape[1:] != TILE_SHAPE:
        raise StoreError(
            f"{path} holds {shape} {dtype}, not N x 96 x 96 x 3 uint8. Run the prepare kernel again."
        )
    return shape[0], start


def read_array(
    path: Path, *, sha256: str = "", allocate: Callable[[int], "memoryview | np.ndarray"] | None = None
) -> np.ndarray:
    """Read a tile array into memory in one sequential read, and check its hash.

    Args:
        path: `tiles-train.npy` or `tiles-test.npy`.
        sha256: the expected SHA-256 of the file; empty to skip the check.
        allocate: returns writable memory of a given size in bytes, such as shared memory; by default new
            memory.

    Returns:
        (N, 96, 96, 3) uint8 in that memory: 27,648 bytes a tile, 5.67 GiB for the full training set

    Raises:
        StoreError: it is not a tile array, is cut short, or is damaged.
    """
    tiles, start = array_layout(path)
    shape, size = (tiles, *TILE_SHAPE), tiles * TILE_BYTES
    with path.open("rb", buffering=0) as stream:
        digest = hashlib.sha256(stream.read(start))
        memory = allocate(size) if allocate is not None and size else np.empty(size, dtype=np.uint8)
        array = np.frombuffer(memory, dtype=np.uint8, count=size) if size else np.empty(0, dtype=np.uint8)
        view = array.data
        with ThreadPoolExecutor(max_workers=1) as hashing:  # one piece is hashed while the next is read
            for begin in range(0, size, _READ_AT_ONCE):
                piece = view[begin : begin + _READ_AT_ONCE]
                if (count := _read_into(stream, piece)) < len(piece):
                    raise _cut_short(path, begin + count, size)
                if sha256:
                    hashing.submit(digest.update, piece)
    if sha256 and digest.hexdigest() != sha256:
        raise StoreError(
            f"{path} is damaged: its SHA-256 is not the one in run.json. Run the prepare kernel again."
        )
    return array.reshape(shape)


def _cut_short(path: Path, size: int, expected: int) -> StoreError:
    return StoreError(f"{path} is cut short: {size:,} of {expected:,} bytes. Run the prepare kernel again.")
