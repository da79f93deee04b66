"""A kernel killed at any moment, then run again by the same command, leaves the files it would have left.

HCD_KILLS is the number of interrupted runs of each kernel.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workbench

from launch.packaging.builder import Built, build
from lib.data import tile_store as store
from lib.data.tiff import TILE_BYTES, encode_tile

KILLS = int(os.environ.get("HCD_KILLS", "3"))
EPOCHS = 12


@dataclass
class Uninterrupted:
    """A script, its inputs, what it leaves when nobody kills it, and how long that takes."""

    script: Path
    inputs: Path
    files: dict[str, str]
    listed: dict[str, Any]
    seconds: float


def run_uninterrupted(folder: Path, script: Path, mounts: dict[str, Path]) -> Uninterrupted:
    for place, source in mounts.items():
        workbench.mount(folder / "input", source, place)
    started = time.monotonic()
    done = workbench.run(script, working=folder / "working", inputs=folder / "input")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    files = workbench.contents(folder / "working")
    del files["run.json"]  # it holds times
    return Uninterrupted(
        script, folder / "input", files, workbench.record_of(folder / "working")["files"], seconds
    )


@pytest.fixture(scope="module")
def long_build(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A fold of several epochs, so that a kill comes between two of them."""
    out = tmp_path_factory.mktemp("build") / "dist"
    return build([workbench.experiment(epochs=str(EPOCHS))], out=out, owner="someone")


@pytest.fixture(scope="module")
def preparing(
    tmp_path_factory: pytest.TempPathFactory, built: Built, competition: Path, prepared: Path
) -> Uninterrupted:
    inputs = tmp_path_factory.mktemp("preparing") / "input"
    workbench.mount(inputs, competition, workbench.COMPETITION)
    files, record = workbench.contents(prepared), workbench.record_of(prepared)
    del files["run.json"]  # it holds times
    seconds = record["seconds"]["total"] + 1.0  # the start of Python
    return Uninterrupted(workbench.script_of(built, "prepare"), inputs, files, record["files"], seconds)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, long_build: Built, prepared: Path) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("training")
    mounts = {"notebooks/someone/hcd-prepare": prepared}
    return run_uninterrupted(folder, workbench.script_of(long_build, "train"), mounts)


def continue_to_the_end(reference: Uninterrupted, working: Path) -> str:
    """Run the same command to its end and hold what it left against the reference; its log."""
    done = workbench.run(reference.script, working=working, inputs=reference.inputs)
    assert done.returncode == 0, done.stderr
    files = workbench.contents(working)
    del files["run.json"]
    assert files == reference.files
    assert workbench.record_of(working)["files"] == reference.listed
    return done.stdout


def kill_at_random(reference: Uninterrupted, folder: Path, *, seed: int) -> None:
    """Kill one run or two, one after the other, each at a moment of its own, then let one come to its end."""
    generator = np.random.default_rng([2018, seed])
    working, instants = folder / "working", []
    for _ in range(1 + seed % 2):
        instants.append(round(float(generator.uniform(0, reference.seconds)), 3))
        process = workbench.start(
            reference.script, working=working, inputs=reference.inputs, log=folder / "log.txt"
        )
        time.sleep(instants[-1])
        process.kill()
        process.wait()
    print(f"killed after {instants} s of {reference.seconds:.1f} s")
    continue_to_the_end(reference, working)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_prepare_killed_at_any_moment(seed: int, preparing: Uninterrupted, tmp_path: Path) -> None:
    kill_at_random(preparing, tmp_path, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_fold_killed_at_any_moment(seed: int, training: Uninterrupted, tmp_path: Path) -> None:
    kill_at_random(training, tmp_path, seed=seed)


@pytest.mark.slow
def test_a_fold_killed_between_epochs_goes_on(training: Uninterrupted, tmp_path: Path) -> None:
    log, working = tmp_path / "log.txt", tmp_path / "working"
    process = workbench.start(training.script, working=working, inputs=training.inputs, log=log)
    deadline = time.monotonic() + 60
    while f"epoch 3 of {EPOCHS}" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (working / "run.json").exists()
    said = continue_to_the_end(training, working)
    went_on = re.search(r"resuming after epoch (\d+)", said)
    assert went_on
    assert 2 <= int(went_on[1]) < EPOCHS
    assert f"epoch {went_on[1]} of" not in said  # not done again


@pytest.mark.slow
def test_a_finished_fold_killed_before_its_record_is_not_trained_again(
    bench: Any, prepared: Path, folds: list[Path]
) -> None:
    """The moment between the last member's files and run.json."""
    import kernels.train

    bench.mount(prepared, "notebooks/someone/hcd-prepare")

    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels.train, "fold_table_csv", die)
        with pytest.raises(KilledError):
            bench.run("train")
    files = workbench.contents(bench.working)
    assert "run.json" not in files
    code, said, _ = bench.run("train")
    assert code == 0
    assert "fold 0, member 0: finished before, not trained again" in said
    assert {name: workbench.contents(bench.working)[name] for name in files if not name.startswith(".")} == {
        name: content for name, content in files.items() if not name.startswith(".")
    }
    assert not [path for path in bench.working.iterdir() if path.name.startswith(".")]


# --- the tile store -----------------------------------------------------------------------------------------


def write_tiles(folder: Path, number: int) -> list[str]:
    folder.mkdir()
    generator = np.random.default_rng(5)
    names = []
    for _ in range(number):
        pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        names.append(hashlib.sha1(pixels.tobytes()).hexdigest())
        (folder / f"{names[-1]}.tif").write_bytes(encode_tile(pixels))
    return sorted(names)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK", 16)


def build_store(folder: Path, tiles: Path, ids: list[str], *, strict: bool = False) -> store.BuiltStore:
    builder = store.StoreBuilder(folder, "tiles.npy", ids=ids)
    return builder.build(tiles, readers=2, strict=strict, folder_name="train/")


def interrupt_store(folder: Path, tiles: Path, ids: list[str], *, at: int) -> None:
    """Build until the tile with this number, where the process dies."""
    read = store._read_one

    def dying(place: str, name: str, *rest: Any) -> tuple[str, str] | None:
        if name == ids[at]:
            raise KeyboardInterrupt
        return read(place, name, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "_read_one", dying)
        with pytest.raises(KeyboardInterrupt):
            build_store(folder, tiles, ids)


def pixels_of(tiles: Path, ids: list[str]) -> bytes:
    return b"".join((tiles / f"{name}.tif").read_bytes()[-TILE_BYTES:] for name in ids)


def test_the_store_goes_on_after_the_last_whole_block(
    tmp_path: Path, small_blocks: None, caplog: pytest.LogCaptureFixture
) -> None:
    ids = write_tiles(tmp_path / "tiles", 60)
    interrupt_store(tmp_path, tmp_path / "tiles", ids, at=40)
    shutil.copytree(tmp_path / "tiles", tmp_path / "rest")
    for name in ids[:32]:
        (tmp_path / "rest" / f"{name}.tif").unlink()  # what was taken over is not read again
    caplog.clear()
    with caplog.at_level(logging.INFO):
        result = build_store(tmp_path, tmp_path / "rest", ids)
    assert caplog.messages[0] == "32 of 60 tiles of train/ were read before the interruption"
    assert (result.tiles, result.resumed, result.mismatches) == (60, 32, [])
    assert (tmp_path / "tiles.npy.part").read_bytes()[128:] == pixels_of(tmp_path / "tiles", ids)
    assert np.load(tmp_path / "tiles.npy.part").shape == (60, 96, 96, 3)


@pytest.mark.parametrize(
    "damage", ["a byte of the second block", "a cut journal line", "a cut array", "other tiles"]
)
def test_the_store_takes_over_only_what_is_whole(damage: str, tmp_path: Path, small_blocks: None) -> None:
    ids = write_tiles(tmp_path / "tiles", 60)
    interrupt_store(tmp_path, tmp_path / "tiles", ids, at=59)
    part, journal = tmp_path / "tiles.npy.part", tmp_path / "tiles.npy.journal"
    expected = 16
    if damage == "a byte of the second block":
        workbench.flip_byte(part, at=128 + 20 * TILE_BYTES)
    elif damage == "a cut journal line":
        text = journal.read_text()
        journal.write_text(text[: text.rindex('"sha256"') + 20])
        expected = 32
    elif damage == "a cut array":
        part.write_bytes(part.read_bytes()[: 128 + 30 * TILE_BYTES])
    else:
        ids = ids[1:]
        expected = 0
    result = build_store(tmp_path, tmp_path / "tiles", ids)
    assert result.resumed == expected
    assert part.read_bytes()[128:] == pixels_of(tmp_path / "tiles", ids)


def test_tiles_downloaded_again_replace_the_mismatches_of_an_interrupted_run(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MISMATCHES_ALLOWED", 0.03)
    tiles, ids = tmp_path / "tiles", write_tiles(tmp_path / "tiles", 60)
    good = {name: (tiles / f"{name}.tif").read_bytes() for name in (ids[3], ids[50], ids[51])}
    for name in good:
        (tiles / f"{name}.tif").write_bytes(encode_tile(np.zeros((96, 96, 3), np.uint8)))
    with pytest.raises(store.StoreError, match="build_kernel.py download"):
        build_store(tmp_path, tiles, ids)
    for name, content in good.items():
        (tiles / f"{name}.tif").write_bytes(content)
    result = build_store(tmp_path, tiles, ids)
    assert result.mismatches == []
    assert (tmp_path / "tiles.npy.part").read_bytes()[128:] == pixels_of(tiles, ids)


def test_strict_holds_for_what_an_interrupted_run_left(tmp_path: Path, small_blocks: None) -> None:
    tiles, ids = tmp_path / "tiles", write_tiles(tmp_path / "tiles", 60)
    (tiles / f"{ids[3]}.tif").write_bytes(encode_tile(np.zeros((96, 96, 3), np.uint8)))
    interrupt_store(tmp_path, tiles, ids, at=40)
    with pytest.raises(store.StoreError, match="verify = strict allows none"):
        build_store(tmp_path, tiles, ids, strict=True)


def test_prepare_killed_after_its_record_keeps_its_output_when_the_next_run_fails(
    bench: Any, competition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between run.json and the journals' removal; then a run that cannot come to its end."""

    bench.mount(competition, workbench.COMPETITION)
    with monkeypatch.context() as patched:
        patched.setattr(store.StoreBuilder, "forget", lambda self: None)
        assert bench.run("prepare")[0] == 0

    def fail(*_: object, **__: object) -> None:
        raise store.StoreError("something else went wrong")

    monkeypatch.setattr("kernels.prepare.describe_tiles", fail)
    bench.refused("prepare")


def test_what_a_killed_write_left_beside_is_cleared_away(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    left = bench.working / "..unfinished-0-member-0.safetensors.12345.part"
    left.write_bytes(b"half of it")
    assert bench.run("train")[0] == 0
    assert not left.exists()
