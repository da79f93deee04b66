"""The tile store: all tiles of a folder in one .npy array, each proved by its SHA-1, built so that a kill costs little.

A tile's id is the SHA-1 of its 27,648 pixel bytes, so the proof costs a hash. The array grows in blocks; a journal beside
it says which blocks are on disk and what they hash to, and the next run goes on after them.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lib.data.tiff import TILE_BYTES, TILE_SHAPE, TileError, decode_tile
from lib.errors import KernelError, listed

BLOCK = 2048  # tiles between two entries of the journal: 54 MiB, well under a second of work to lose
MISMATCHES_ALLOWED = 0.001  # share of tiles; above it the data are not the competition's
_READ_AT_ONCE = 1 << 24  # bytes


class StoreError(KernelError):
    """Tiles cannot be read or are not what they say; the message lists them."""


@dataclass
class BuiltStore:
    """What came of building one array."""

    tiles: int
    resumed: int = 0  # tiles taken over from an interrupted run
    mismatches: list[str] = field(default_factory=list)  # ids whose pixels hash to something else


class StoreBuilder:
    """Builds `<name>` in a folder through `<name>.part` and `<name>.journal`; `publish` puts it in place.

    Nothing of an earlier array is touched before `publish`.
    """

    def __init__(self, folder: Path, name: str, *, ids: Sequence[str]) -> None:
        self.target = folder / name
        self.part = folder / f"{name}.part"
        self.journal = folder / f"{name}.journal"
        self.ids = list(ids)
        self.plan = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """What the finished array takes on disk."""
        return len(self.ids) * TILE_BYTES + 128

    @property
    def bytes_on_disk(self) -> int:
        """What an interrupted run has already taken."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def build(self, tiles: Path, *, readers: int, strict: bool, say: Callable[[str], None], folder_name: str = "") -> BuiltStore:
        """Read every tile and prove it.

        Args:
            tiles: the folder with `<id>.tif`.
            readers: threads that read, hash and decode at the same time.
            strict: stop at the first tile whose pixels do not hash to its id.
            say: takes a line of progress, about one every 10 % of the tiles.
            folder_name: how messages call the folder.

        Returns:
            The count of tiles, of those taken over, and the ids that did not match.

        Raises:
            StoreError: tiles that cannot be decoded or have the wrong size (all of them are listed), or too many
                tiles whose pixels are not what their id says.
            OSError: the disk is full.
        """
        array, done = self._open()
        result = BuiltStore(tiles=len(self.ids))
        result.resumed = min(len(done) * BLOCK, len(self.ids))
        undecodable: list[str] = []
        said = result.resumed * 10 // max(len(self.ids), 1)
        if result.resumed:
            say(f"{result.resumed:,} of {len(self.ids):,} tiles of {folder_name} were read before the interruption")
        with (
            warnings.catch_warnings(),  # here, not in the threads, which share the filters
            ThreadPoolExecutor(max_workers=readers) as pool,
            self.journal.open("a") as journal,
        ):
            warnings.filterwarnings("ignore", module="PIL")  # of damaged files it says the same once more
            for start in range(result.resumed, len(self.ids), BLOCK):
                names = self.ids[start : start + BLOCK]
                block = np.zeros((len(names), *TILE_SHAPE), dtype=np.uint8)  # (<=2048, 96, 96, 3), 54 MiB
                verdicts = list(pool.map(lambda at, b=block, n=names: _read_one(tiles, n[at], b[at]), range(len(names))))
                undecodable += [text for kind, text in verdicts if kind == "error"]
                mismatches = [text for kind, text in verdicts if kind == "mismatch"]
                result.mismatches += mismatches
                if (strict and mismatches) or len(result.mismatches) > max(MISMATCHES_ALLOWED * len(self.ids), 1):
                    refusals = [_mismatch_message(result.mismatches, start + len(names), folder_name, strict=strict)]
                    refusals += [_undecodable_message(undecodable, len(self.ids), folder_name)] if undecodable else []
                    raise StoreError("\n".join(refusals))
                if undecodable:
                    continue  # read on, to list every bad tile at once; nothing more is journaled
                array.seek(self._header_bytes + start * TILE_BYTES)
                array.write(block.data)
                array.flush()
                os.fsync(array.fileno())
                line = {"sha256": hashlib.sha256(block.data).hexdigest(), "mismatches": mismatches}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
                if (tenth := (start + len(names)) * 10 // len(self.ids)) > said:
                    said = tenth
                    say(f"{start + len(names):,} of {len(self.ids):,} tiles of {folder_name}")
        array.close()
        if undecodable:
            raise StoreError(_undecodable_message(undecodable, len(self.ids), folder_name))
        return result

    def _open(self) -> tuple[BinaryIO, list[dict[str, Any]]]:
        """The part file opened for writing, and the journal's entries that it still bears out."""
        header = _npy_header(len(self.ids))
        self._header_bytes = len(header)
        done: list[dict[str, Any]] = []
        lines = self.journal.read_text().splitlines() if self.journal.is_file() else []
        if lines and lines[0] == self.plan and self.target.is_file() and not self.part.is_file():
            # Put in place by a run that was killed before it forgot its journal. A second name, so that the record
            # that may stand for it keeps its array until this run has another.
            try:
                os.link(self.target, self.part)
            except OSError:  # a file system without links
                self.target.replace(self.part)
        if lines and self.part.is_file() and lines[0] == self.plan:
            with self.part.open("rb") as stream:
                intact = stream.read(len(header)) == header
                for line in lines[1:]:
                    try:
                        entry = json.loads(line)
                    except ValueError:  # the kill came in the middle of this line
                        break
                    rows = min(BLOCK, len(self.ids) - len(done) * BLOCK)
                    block = stream.read(rows * TILE_BYTES)
                    if not intact or hashlib.sha256(block).hexdigest() != entry["sha256"]:
                        break
                    if entry["mismatches"]:  # judged anew: the tiles may have been downloaded again, or verify changed
                        break
                    done.append(entry)
            if not intact:
                _begin(self.part, header)
            elif self.part.stat().st_nlink > 1 and len(done) * BLOCK < len(self.ids):
                # Blocks will be written, and the published array keeps its own.
                copy = self.part.with_suffix(".part.new")
                shutil.copyfile(self.part, copy)
                copy.replace(self.part)
        else:
            _begin(self.part, header)
        text = "".join(f"{line}\n" for line in [self.plan, *(json.dumps(entry) for entry in done)])
        beside = self.journal.with_suffix(".journal.new")
        beside.write_text(text)
        beside.replace(self.journal)
        return self.part.open("r+b"), done

    def publish(self) -> None:
        """Put the finished array in place of an earlier one. The journal stays until `forget`."""
        self.part.replace(self.target)
        self.part.unlink(missing_ok=True)  # a rename leaves both names where they are names of one file

    def forget(self) -> None:
        """Drop the journal, once run.json stands for the array."""
        self.journal.unlink(missing_ok=True)


def _begin(part: Path, header: bytes) -> None:
    part.unlink(missing_ok=True)  # it may be a second name of the published array
    part.write_bytes(header)


def _undecodable_message(undecodable: list[str], tiles: int, folder_name: str) -> str:
    lead = f"{len(undecodable):,} of {tiles:,} tiles of {folder_name} cannot be used:"
    return listed(lead, undecodable, remedy="Download them again: build_kernel.py download.")


def _mismatch_message(mismatches: list[str], read: int, folder_name: str, *, strict: bool) -> str:
    lead = f"of the first {read:,} tiles of {folder_name}, {len(mismatches):,} are not what their id says (its SHA-1):"
    limit = "verify = strict allows none" if strict else f"more than {MISMATCHES_ALLOWED:.1%} of the tiles are refused"
    return listed(lead, mismatches, remedy=f"{limit}. Download the data again: build_kernel.py download.")


def _npy_header(tiles: int) -> bytes:
    """The header numpy gives such an array in version 1.0 of its format, padded to a multiple of 64 bytes."""
    import io

    stream = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (tiles, *TILE_SHAPE)}
    np.lib.format.write_array_header_1_0(stream, description)  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _read_one(folder: Path, name: str, out: np.ndarray) -> tuple[str, str]:
    """Read one tile into `out`; ("", ""), ("mismatch", id) or ("error", what is wrong)."""
    try:
        with (folder / f"{name}.tif").open("rb") as stream:
            pixels = decode_tile(stream.read())
    except (TileError, OSError) as error:
        return "error", f"{folder.name}/{name}.tif: {error}"
    out[...] = pixels
    return ("", "") if hashlib.sha1(out.data, usedforsecurity=False).hexdigest() == name else ("mismatch", name)


def read_array(path: Path, *, sha256: str = "") -> np.ndarray:
    """Read a tile array into memory by one sequential read, hashing it on the way.

    Args:
        path: `tiles-train.npy` or `tiles-test.npy`.
        sha256: what the file must hash to; empty to skip the check.

    Returns:
        (N, 96, 96, 3) uint8, in memory of its own: 27,648 bytes a tile, 5.67 GiB for the full training set.

    Raises:
        StoreError: it is no tile array, is cut short, or is damaged.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise StoreError(f"{path} is not a numpy array: {error}. Run the prepare kernel again.") from error
        if version != (1, 0) or fortran or dtype != np.uint8 or shape[1:] != TILE_SHAPE:
            raise StoreError(f"{path} holds {shape} {dtype}, not N x 96 x 96 x 3 uint8. Run the prepare kernel again.")
        start = stream.tell()
        stream.seek(0)
        digest.update(stream.read(start))
        array = np.empty(shape, dtype=np.uint8)
        view = array.reshape(-1).data if array.size else memoryview(b"")
        at = 0
        while at < len(view):
            count = stream.readinto(view[at : at + _READ_AT_ONCE])
            if not count:
                raise StoreError(f"{path} is cut short: {at:,} of {len(view):,} bytes. Run the prepare kernel again.")
            digest.update(view[at : at + count])
            at += count
    if sha256 and digest.hexdigest() != sha256:
        raise StoreError(f"{path} is damaged: its SHA-256 is not the one in run.json. Run the prepare kernel again.")
    return array
