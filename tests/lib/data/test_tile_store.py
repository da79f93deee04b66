"""Every tile is verified, every bad one listed, and an interrupted build ends in the same bytes."""

import errno
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data import tile_store as module
from lib.data.tiff import encode_tile
from lib.data.tile_store import StoreBuilder, StoreError, read_array

TILES, BLOCK = 30, 8
NAME = "tiles.npy"


class Killed(Exception):
    """Stands for kill -9."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", BLOCK)


@pytest.fixture
def tiles(random_tiles: Callable[..., np.ndarray]) -> np.ndarray:
    return random_tiles(TILES)


@pytest.fixture
def source(
    tmp_path: Path, tiles: np.ndarray, write_tiles: Callable[[Path, np.ndarray], list[str]]
) -> tuple[Path, list[str]]:
    return tmp_path / "train", write_tiles(tmp_path / "train", tiles)


def _build(
    folder: Path, source: tuple[Path, list[str]], *, readers: int = 4, strict: bool = False
) -> module.BuiltStore:
    folder.mkdir(exist_ok=True)
    return StoreBuilder(folder, NAME, ids=source[1]).build(
        source[0], readers=readers, strict=strict, folder_name="train/"
    )


def _kill_after(folder: Path, source: tuple[Path, list[str]], *, blocks: int) -> None:
    """Build until so many blocks are journaled, then die in the middle of the next."""
    folder.mkdir(exist_ok=True)
    calls = 0
    real = module._read_one

    def dying(folder: str, name: str, *rest: Any) -> tuple[str, str] | None:
        nonlocal calls
        calls += 1
        if calls > blocks * BLOCK + 3:
            raise Killed
        return real(folder, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read_one", dying)
        with pytest.raises(Killed):
            _build(folder, source, readers=1)


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_real_tile_matches_its_id(
    real_tiles: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 128)
    table = {"train": "train_labels.csv", "test": "sample_submission.csv"}[part]
    ids = pd.read_csv(real_tiles / table)["id"].tolist()
    assert len(ids) == {"train": 480, "test": 120}[part]
    builder = StoreBuilder(tmp_path, NAME, ids=ids)
    built = builder.build(real_tiles / part, readers=4, strict=True)
    assert (built.tiles, built.mismatches, built.resumed) == (len(ids), [], 0)
    builder.publish()
    array = read_array(tmp_path / NAME)
    assert [hashlib.sha1(tile.tobytes()).hexdigest() for tile in array] == ids


@pytest.mark.parametrize("readers", [1, 8])
def test_the_array_holds_the_pixels_in_the_order_of_the_ids(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray, readers: int
) -> None:
    folder = tmp_path / "working"
    folder.mkdir()
    order = np.random.default_rng(1).permutation(TILES)
    builder = StoreBuilder(folder, NAME, ids=[source[1][at] for at in order])
    builder.build(source[0], readers=readers, strict=True)
    assert not builder.target.exists()
    builder.publish()
    builder.forget()
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert builder.target.stat().st_size == builder.bytes
    assert np.array_equal(np.load(builder.target, allow_pickle=False), tiles[order])
    assert np.array_equal(read_array(builder.target), tiles[order])


def _swap(source: tuple[Path, list[str]], tiles: np.ndarray, at: list[int]) -> None:
    for number in at:
        (source[0] / f"{source[1][number]}.tif").write_bytes(encode_tile(255 - tiles[number]))


def test_a_mismatch_within_the_limit_is_reported_and_kept(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    _swap(source, tiles, [11])
    built = _build(tmp_path / "working", source)
    assert built.mismatches == [source[1][11]]
    assert np.array_equal(np.load(tmp_path / "working" / f"{NAME}.part")[11], 255 - tiles[11])


def test_one_in_a_thousand_is_the_limit(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.MISMATCHES_ALLOWED == 0.001
    monkeypatch.setattr(module, "MISMATCHES_ALLOWED", 0.1)  # of 30: three
    _swap(source, tiles, [1, 10, 20])
    assert _build(tmp_path / "three", source).mismatches == [source[1][at] for at in (1, 10, 20)]
    _swap(source, tiles, [29])
    with pytest.raises(StoreError) as refused:
        _build(tmp_path / "four", source)
    assert all(source[1][at] in str(refused.value) for at in (1, 10, 20, 29)) and "at most 10.0%" in str(
        refused.value
    )


def test_two_of_a_few_are_too_many(tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray) -> None:
    _swap(source, tiles, [0, 29])
    with pytest.raises(StoreError, match="2 do not match their id"):
        _build(tmp_path / "working", source)
    assert not (tmp_path / "working" / NAME).exists()


def test_strict_stops_in_the_block_of_the_first(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    _swap(source, tiles, [9])
    with pytest.raises(StoreError, match=f"first 16 tiles of train/(.|\n)*{source[1][9]}(.|\n)*strict"):
        _build(tmp_path / "working", source, strict=True)


def test_strict_also_holds_for_what_an_interrupted_run_has_read(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    _swap(source, tiles, [2])
    _kill_after(tmp_path / "working", source, blocks=2)
    with pytest.raises(StoreError, match=source[1][2]):
        _build(tmp_path / "working", source, strict=True)


def test_every_tile_that_cannot_be_used_is_listed_at_once(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    files = [source[0] / f"{name}.tif" for name in source[1]]
    files[0].write_bytes(b"")
    files[9].write_bytes(files[9].read_bytes()[:20_000])
    files[17].write_bytes(b"<html>")
    files[29].unlink()
    with pytest.raises(StoreError) as refused:
        _build(tmp_path / "working", source)
    message = str(refused.value)
    assert "4 of 30 tiles of train/" in message and "download" in message
    for at, said in ((0, "empty"), (9, "cut short"), (17, "not a TIFF"), (29, "No such file")):
        line = next(line for line in message.splitlines() if source[1][at] in line)
        assert said in line and line.count("train/") >= 1
    # Mended, it goes on and ends as if nothing had been wrong.
    for at in (0, 9, 17, 29):
        files[at].write_bytes(encode_tile(tiles[at]))
    assert _build(tmp_path / "working", source).mismatches == []
    assert np.array_equal(np.load(tmp_path / "working" / f"{NAME}.part"), tiles)


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


_TILE = 27_648
_DAMAGES = {
    "none": (lambda part, journal: None, 3),
    "part cut in the third block": (lambda part, journal: _cut(part, 128 + 20 * _TILE), 2),
    "part cut in its header": (lambda part, journal: _cut(part, 60), 0),
    "part gone": (lambda part, journal: part.unlink(), 0),
    "first block damaged": (lambda part, journal: _flip(part, 128 + 5 * _TILE), 0),
    "second block damaged": (lambda part, journal: _flip(part, 128 + 9 * _TILE), 1),
    "header damaged": (lambda part, journal: _flip(part, 70), 0),
    "journal cut in its last line": (lambda part, journal: _cut(journal, len(journal.read_bytes()) - 30), 2),
    "journal without its last newline": (
        lambda part, journal: _cut(journal, len(journal.read_bytes()) - 1),
        3,
    ),
    "journal cut in its first line": (lambda part, journal: _cut(journal, 20), 0),
    "journal empty": (lambda part, journal: _cut(journal, 0), 0),
    "journal gone": (lambda part, journal: journal.unlink(), 0),
    "journal of zeros": (lambda part, journal: journal.write_bytes(b"\0" * 300), 0),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_an_interrupted_build_ends_in_the_same_bytes(
    tmp_path: Path, source: tuple[Path, list[str]], damage: str
) -> None:
    _build(tmp_path / "whole", source)
    folder = tmp_path / "working"
    _kill_after(folder, source, blocks=3)
    act, intact = _DAMAGES[damage]
    act(folder / f"{NAME}.part", folder / f"{NAME}.journal")
    built = _build(folder, source)
    assert built.resumed == intact * BLOCK
    assert (folder / f"{NAME}.part").read_bytes() == (tmp_path / "whole" / f"{NAME}.part").read_bytes()
    assert (folder / f"{NAME}.journal").read_bytes() == (tmp_path / "whole" / f"{NAME}.journal").read_bytes()


def test_a_build_killed_many_times_reads_every_block_once(
    tmp_path: Path, source: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working"
    for _ in range(3):
        _kill_after(folder, source, blocks=1)
    assert len((folder / f"{NAME}.journal").read_text().splitlines()) == 1 + 3
    read: list[str] = []
    real = module._read_one
    monkeypatch.setattr(
        module, "_read_one", lambda folder, name, *rest: read.append(name) or real(folder, name, *rest)
    )
    assert _build(folder, source).resumed == 24
    assert sorted(read) == sorted(source[1][24:])


def test_mismatches_of_the_interrupted_part_are_not_forgotten(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    _swap(source, tiles, [2])
    _kill_after(tmp_path / "working", source, blocks=2)
    assert _build(tmp_path / "working", source).mismatches == [source[1][2]]
    # Downloaded again in the meantime, the tile is no mismatch any more.
    _kill_after(tmp_path / "again", source, blocks=2)
    (source[0] / f"{source[1][2]}.tif").write_bytes(encode_tile(tiles[2]))
    assert _build(tmp_path / "again", source).mismatches == []
    assert np.array_equal(np.load(tmp_path / "again" / f"{NAME}.part"), tiles)


def test_other_ids_are_begun_anew(tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray) -> None:
    folder = tmp_path / "working"
    _kill_after(folder, source, blocks=3)
    other = (source[0], source[1][::-1])
    assert _build(folder, other).resumed == 0
    assert np.array_equal(np.load(folder / f"{NAME}.part"), tiles[::-1])


def test_published_but_not_recorded_is_taken_up_whole(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    folder = tmp_path / "working"
    _build(folder, source)
    builder = StoreBuilder(folder, NAME, ids=source[1])
    builder.publish()  # and then the kill, before run.json and `forget`
    built = _build(folder, source)
    assert built.resumed == TILES
    assert np.array_equal(np.load(folder / f"{NAME}.part"), tiles)


def test_an_earlier_array_is_untouched_until_the_new_one_is_published(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    folder = tmp_path / "working"
    _build(folder, source)
    first = StoreBuilder(folder, NAME, ids=source[1])
    first.publish()
    first.forget()
    before = first.target.read_bytes()
    _kill_after(folder, (source[0], source[1][::-1]), blocks=1)
    assert first.target.read_bytes() == before


def test_a_published_array_keeps_its_bytes_while_a_block_of_it_is_read_again(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    folder = tmp_path / "working"
    _swap(source, tiles, [2])
    _build(folder, source)
    builder = StoreBuilder(folder, NAME, ids=source[1])
    builder.publish()  # the record is written, and then the kill before `forget`
    before = builder.target.read_bytes()
    (source[0] / f"{source[1][2]}.tif").write_bytes(encode_tile(tiles[2]))
    _kill_after(folder, source, blocks=1)
    assert not builder.target.exists() or builder.target.read_bytes() == before


def test_progress_is_logged_about_ten_times(
    tmp_path: Path,
    source: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)
    with caplog.at_level(logging.INFO):
        StoreBuilder(tmp_path, NAME, ids=source[1]).build(
            source[0], readers=2, strict=True, folder_name="train/"
        )
    assert len(caplog.messages) == 10 and caplog.messages[-1].startswith("train/: 30 of 30 tiles (100 %), ")


# Reading the files


def _compressed(pixels: np.ndarray) -> bytes:
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, format="TIFF", compression="tiff_lzw")
    return image.getvalue()


def test_other_layouts_and_longer_files_are_read_too(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray
) -> None:
    files = [source[0] / f"{name}.tif" for name in source[1]]
    files[3].write_bytes(_compressed(tiles[3]))
    files[4].write_bytes(encode_tile(tiles[4]) + b"more")
    other = bytearray(encode_tile(tiles[5]))
    other[267:286] = b"2019:01:01 00:00:00"  # the same layout under another date
    files[5].write_bytes(other)
    assert _build(tmp_path / "working", source, strict=True).mismatches == []
    assert np.array_equal(np.load(tmp_path / "working" / f"{NAME}.part"), tiles)


def test_reads_that_come_short_are_repeated(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.readv

    def short(file: int, buffers: tuple[bytearray, memoryview]) -> int:
        return real(file, (buffers[0], buffers[1][:10_000]))

    monkeypatch.setattr(os, "readv", short)
    assert _build(tmp_path / "working", source, strict=True).mismatches == []
    assert np.array_equal(np.load(tmp_path / "working" / f"{NAME}.part"), tiles)


def test_a_system_without_scattered_reads_will_do(
    tmp_path: Path, source: tuple[Path, list[str]], tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "readv")
    assert _build(tmp_path / "working", source, strict=True).mismatches == []
    assert np.array_equal(np.load(tmp_path / "working" / f"{NAME}.part"), tiles)


def test_slow_opens_are_waited_for_together(
    tmp_path: Path,
    random_tiles: Callable[..., np.ndarray],
    write_tiles: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiles = random_tiles(600)
    source = tmp_path / "many", write_tiles(tmp_path / "many", tiles)
    monkeypatch.setattr(module, "BLOCK", 2048)
    real = os.open

    def slow(path: str, *rest: Any) -> int:
        time.sleep(0.005)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", slow)
    started = time.monotonic()
    _build(tmp_path / "working", source, readers=32, strict=True)
    assert time.monotonic() - started < 600 * 0.005 / 5


def test_memory_does_not_grow_with_the_number_of_blocks(
    tmp_path: Path, source: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)
    allocated: list[int] = []
    real = np.empty

    def counting(size: int, **rest: Any) -> np.ndarray:
        allocated.append(size)
        return real(size, **rest)

    monkeypatch.setattr(module.np, "empty", counting)
    _build(tmp_path / "working", source)
    assert allocated == [_TILE] * module._BUFFERS


def test_the_hash_is_that_of_the_file_however_often_it_was_interrupted(
    tmp_path: Path, source: tuple[Path, list[str]]
) -> None:
    whole = _build(tmp_path / "whole", source)
    assert whole.sha256 == hashlib.sha256((tmp_path / "whole" / f"{NAME}.part").read_bytes()).hexdigest()
    for _ in range(3):
        _kill_after(tmp_path / "working", source, blocks=1)
    assert _build(tmp_path / "working", source).sha256 == whole.sha256
    assert _build(tmp_path / "working", source).sha256 == whole.sha256  # nothing left to read


def test_the_journal_speaks_of_a_block_only_once_the_disk_has_it(
    tmp_path: Path, source: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    journal = tmp_path / "working" / f"{NAME}.journal"
    real = os.fsync

    def noting(file: int) -> None:
        before = len(journal.read_text().splitlines()) - 1
        assert before * BLOCK <= (flushed[-1] if flushed else 0)
        tiles = (os.fstat(file).st_size - 128) // _TILE
        real(file)
        flushed.append(tiles)

    monkeypatch.setattr(os, "fsync", noting)
    _build(tmp_path / "working", source)
    assert flushed and flushed[-1] == TILES
    assert len(journal.read_text().splitlines()) == 1 + 4


def test_a_disk_that_fails_while_it_flushes_ends_the_build(
    tmp_path: Path, source: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)  # more blocks than may wait for the disk

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            _build(tmp_path / "working", source)
    assert len((tmp_path / "working" / f"{NAME}.journal").read_text().splitlines()) == 1
    assert _build(tmp_path / "working", source).resumed == 0


# read_array


@pytest.fixture
def array(tmp_path: Path, tiles: np.ndarray) -> Path:
    np.save(tmp_path / NAME, tiles)
    return tmp_path / NAME


def test_an_array_is_read_in_pieces_and_proved(
    array: Path, tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_AT_ONCE", 100_001)
    right = hashlib.sha256(array.read_bytes()).hexdigest()
    assert np.array_equal(read_array(array, sha256=right), tiles)
    with pytest.raises(StoreError, match=r"damaged(.|\n)*prepare kernel again"):
        read_array(array, sha256="0" * 64)


def test_an_array_is_read_into_the_memory_it_is_given(array: Path, tiles: np.ndarray) -> None:
    given: list[bytearray] = []

    def allocate(size: int) -> memoryview:
        given.append(bytearray(size))
        return memoryview(given[-1])

    right = hashlib.sha256(array.read_bytes()).hexdigest()
    found = read_array(array, sha256=right, allocate=allocate)
    assert found.shape == tiles.shape and given == [tiles.tobytes()]
    given[0][0] ^= 1
    assert found[0, 0, 0, 0] == given[0][0]  # no copy


def test_a_cut_is_found_before_memory_is_taken(array: Path) -> None:
    _cut(array, 128 + _TILE)
    with pytest.raises(StoreError, match="cut short"):
        read_array(array, allocate=lambda size: pytest.fail("memory was taken"))


def test_an_array_without_tiles_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / NAME, np.empty((0, 96, 96, 3), np.uint8))
    assert read_array(tmp_path / NAME).shape == (0, 96, 96, 3)


@pytest.mark.parametrize("at", [40, 128, 500_000])
def test_damage_anywhere_is_found(array: Path, at: int) -> None:
    right = hashlib.sha256(array.read_bytes()).hexdigest()
    _flip(array, at)
    with pytest.raises(StoreError):
        read_array(array, sha256=right)


@pytest.mark.parametrize("length", [0, 5, 60, 127, 128, 128 + _TILE, 128 + TILES * _TILE - 1])
def test_a_cut_is_found_without_a_hash(array: Path, length: int) -> None:
    _cut(array, length)
    with pytest.raises(StoreError):
        read_array(array)


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((4, 96, 96, 3)),
        np.zeros((4, 3, 96, 96), np.uint8),
        np.zeros(5, np.uint8),
        np.array([{"a": 1}], dtype=object),
    ],
    ids=["float", "channels first", "flat", "pickled"],
)
def test_another_array_is_refused(tmp_path: Path, other: np.ndarray) -> None:
    np.save(tmp_path / NAME, other, allow_pickle=True)
    with pytest.raises(StoreError, match="not N x 96 x 96 x 3 uint8"):
        read_array(tmp_path / NAME)


def test_fortran_order_and_other_files_are_refused(tmp_path: Path, tiles: np.ndarray) -> None:
    np.save(tmp_path / NAME, np.asfortranarray(tiles))
    with pytest.raises(StoreError):
        read_array(tmp_path / NAME)
    (tmp_path / NAME).write_text(json.dumps({"not": "an array"}))
    with pytest.raises(StoreError, match="not a numpy array"):
        read_array(tmp_path / NAME)


def test_names_that_are_no_hash_are_told_what_a_name_must_be(
    tmp_path: Path, source: tuple[Path, list[str]]
) -> None:
    folder, names = source
    own = [f"slide7_x{number}" for number in range(len(names))]
    for name, new in zip(names, own, strict=True):
        (folder / f"{name}.tif").rename(folder / f"{new}.tif")
    with pytest.raises(StoreError, match=r"(?s)slide7_x0.*must be the SHA-1 of its pixels.*hexdigest"):
        _build(tmp_path / "working", (folder, own))
