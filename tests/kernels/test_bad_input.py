"""Bad input ends a kernel with one message that lists every problem and the remedy; earlier outputs stay."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import workbench

from launch.packaging.builder import Built, build
from lib.data.tiff import TILE_BYTES, decode_tile, encode_tile

PREPARE = "notebooks/someone/hcd-prepare"
Edit = Callable[[Path], object]


# --- the competition's folder -------------------------------------------------------------------------------


def tiles_of(folder: Path, part: str = "train") -> list[Path]:
    return sorted((folder / part).glob("*.tif"))


def as_tiff(pixels: np.ndarray, compression: int = 1) -> bytes:
    done, content = cv2.imencode(".tif", pixels[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert done
    return content.tobytes()


def unknown_compression(content: bytes) -> bytes:
    """The same tile with the compression tag of a scheme nobody reads."""
    changed = bytearray(content)
    at = content.index((259).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    changed[at + 8 : at + 10] = (34999).to_bytes(2, "little")
    return bytes(changed)


def other_pixels(path: Path) -> None:
    """A proper tile that is not the one its name says."""
    path.write_bytes(encode_tile(255 - decode_tile(path.read_bytes())))


def edit_table(path: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    edit(pd.read_csv(path, dtype=str)).to_csv(path, index=False)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def relabel(value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(label=[value, *table["label"][1:]])


TILE_CASES: dict[str, tuple[Edit, list[str]]] = {
    "cut short": (
        lambda f: tiles_of(f)[0].write_bytes(tiles_of(f)[0].read_bytes()[:10_000]),
        ["1 of 60 tiles of train/", "cut short: 10,000 bytes, 27,935 expected"],
    ),
    "cut short in its header": (
        lambda f: tiles_of(f)[0].write_bytes(tiles_of(f)[0].read_bytes()[:100]),
        ["1 of 60 tiles of train/", "cannot decode it: cut short"],
    ),
    "wrong size": (
        lambda f: tiles_of(f)[0].write_bytes(as_tiff(np.zeros((64, 80, 3), np.uint8))),
        ["an image of 64 x 80 x 3", "not 96 x 96 x 3"],
    ),
    "grey": (
        lambda f: tiles_of(f)[0].write_bytes(cv2.imencode(".tif", np.zeros((96, 96), np.uint8))[1].tobytes()),
        ["an image of 96 x 96", "not 96 x 96 x 3"],
    ),
    "unknown compression": (
        lambda f: tiles_of(f)[0].write_bytes(unknown_compression(tiles_of(f)[0].read_bytes())),
        ["cannot decode it", "of an unknown compression"],
    ),
    "not a TIFF": (
        lambda f: tiles_of(f)[0].write_bytes(
            cv2.imencode(".png", np.zeros((96, 96, 3), np.uint8))[1].tobytes()
        ),
        ["not a TIFF (it starts with b'\\x89PNG"],
    ),
    "empty": (lambda f: tiles_of(f)[0].write_bytes(b""), ["the file is empty"]),
}


@pytest.mark.parametrize(
    "case",
    list(TILE_CASES),
)
def test_a_tile_that_cannot_be_used_stops_prepare(
    case: str, bench: Any, competition: Path, prepared: Path
) -> None:
    edit, expected = TILE_CASES[case]
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    name = tiles_of(folder)[0].name
    edit(folder)
    bench.earlier(prepared)
    message = bench.refused("prepare")
    for text in (*expected, f"train/{name}", "build_kernel.py download"):
        assert text in message


def test_bad_tiles_are_listed_all_and_the_next_run_is_well(bench: Any, competition: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    bad = tiles_of(folder)[:25]
    kept = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"")
    message = bench.refused("prepare")
    assert "25 of 60 tiles" in message
    assert all(path.name in message for path in bad[:20])
    assert "and 5 more" in message
    assert not (bench.working / "run.json").exists()
    for path, content in zip(bad, kept, strict=True):
        path.write_bytes(content)
    code, _, errors = bench.run("prepare")
    assert (code, errors) == (0, "")


def test_bad_tiles_of_both_folders_come_in_one_message(bench: Any, competition: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    bad = [tiles_of(folder, part)[0] for part in ("train", "test")]
    for path in bad:
        path.write_bytes(b"")
    message = bench.refused("prepare")
    assert all(path.name in message for path in bad)


def test_mismatches_do_not_hide_tiles_that_cannot_be_read(bench: Any, competition: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    first, *others = tiles_of(folder)[:4]
    first.write_bytes(b"")
    for path in others:
        other_pixels(path)
    message = bench.refused("prepare")
    assert first.name in message
    assert all(path.stem in message for path in others)


def test_a_compressed_tile_is_read(bench: Any, competition: Path, prepared: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    path = tiles_of(folder)[0]
    path.write_bytes(as_tiff(decode_tile(path.read_bytes()), compression=5))  # LZW
    assert len(path.read_bytes()) != 287 + TILE_BYTES
    code, said, _ = bench.run("prepare")
    assert code == 0
    assert "60 tiles, 0 of which do not match their SHA-1" in said
    assert (bench.working / "tiles-train.npy").read_bytes() == (prepared / "tiles-train.npy").read_bytes()


def test_one_tile_that_is_not_what_its_name_says_is_reported(bench: Any, competition: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    path = tiles_of(folder)[0]
    other_pixels(path)
    code, said, _ = bench.run("prepare")
    assert code == 0
    assert f"tiles-train.npy: 60 tiles, 1 of which do not match their SHA-1: {path.stem}" in said
    eda = json.loads((bench.working / "eda.json").read_text())
    assert eda["mismatches"] == {"tiles-train.npy": [path.stem], "tiles-test.npy": []}


def test_more_than_one_in_a_thousand_stop_the_run(bench: Any, competition: Path, prepared: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    wrong = tiles_of(folder)[:3]
    for path in wrong:
        other_pixels(path)
    bench.earlier(prepared)
    message = bench.refused("prepare")
    assert "3 do not match their id" in message
    assert "at most 0.1% of the tiles (or one) may differ" in message
    assert all(path.stem in message for path in wrong)


def test_strict_allows_no_mismatch(bench: Any, competition: Path, prepared: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    path = tiles_of(folder, "test")[0]
    other_pixels(path)
    bench.earlier(prepared)
    message = bench.refused("prepare", verify="strict")
    assert path.stem in message
    assert "verify = strict allows none" in message


TABLE_CASES: dict[str, tuple[Edit, list[str]]] = {
    "a labelled tile is missing": (
        lambda f: tiles_of(f)[0].unlink(),
        ["1 ids of train_labels.csv have no file in train/"],
    ),
    "a file without a label": (
        lambda f: shutil.copy(tiles_of(f)[0], f / "train" / f"{'a' * 40}.tif"),
        [f"1 files in train/ are not in train_labels.csv: {'a' * 40}"],
    ),
    "an id twice": (
        lambda f: edit_table(f / "train_labels.csv", lambda t: pd.concat([t, t[:1]])),
        ["train_labels.csv names 1 ids more than once"],
    ),
    "a label that is none": (
        lambda f: edit_table(f / "train_labels.csv", relabel("2")),
        ["train_labels.csv has 1 labels that are not 0 or 1", "'2'"],
    ),
    "a label missing": (
        lambda f: edit_table(f / "train_labels.csv", relabel("")),
        ["train_labels.csv has 1 labels that are not 0 or 1"],
    ),
    "one class": (
        lambda f: edit_table(f / "train_labels.csv", lambda t: t.assign(label="1")),
        ["train_labels.csv labels every tile 1"],
    ),
    "an empty folder": (lambda f: empty(f / "test"), ["the folder test/ is empty"]),
    "no folder": (lambda f: shutil.rmtree(f / "train"), ["the folder train/ is missing"]),
    "other files": (
        lambda f: (f / "train" / "notes.txt").write_text("x"),
        ["train/ holds 1 files that are not .tif: notes.txt"],
    ),
    "an empty CSV": (lambda f: (f / "train_labels.csv").write_text(""), ["train_labels.csv is empty"]),
    "only a header": (
        lambda f: (f / "train_labels.csv").write_text("id,label\n"),
        ["train_labels.csv has a header and no rows"],
    ),
    "no CSV": (lambda f: (f / "sample_submission.csv").unlink(), ["sample_submission.csv is missing"]),
    "not a CSV": (
        lambda f: (f / "train_labels.csv").write_bytes(b"\xff\xfe\x00id\x81"),
        ["train_labels.csv is not a CSV file"],
    ),
    "wrong columns": (
        lambda f: edit_table(f / "train_labels.csv", lambda t: t.rename(columns={"label": "target"})),
        ["train_labels.csv has the columns id, target; expected: id, label"],
    ),
    "another sample": (
        lambda f: edit_table(f / "sample_submission.csv", lambda t: t.assign(id=["f" * 40, *t["id"][1:]])),
        [
            "1 ids of sample_submission.csv have no file in test/",
            "1 files in test/ are not in sample_submission.csv",
        ],
    ),
}


@pytest.mark.parametrize("case", TABLE_CASES)
def test_tables_that_do_not_match_the_folders(
    case: str, bench: Any, competition: Path, prepared: Path
) -> None:
    edit, expected = TABLE_CASES[case]
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    edit(folder)
    bench.earlier(prepared)
    message = bench.refused("prepare")
    for text in (
        *expected,
        "is not in the layout of the competition's data",
        "build_kernel.py download",
        "build_kernel.py import",
    ):
        assert text in message


def test_several_findings_come_in_one_message(bench: Any, competition: Path) -> None:
    folder = bench.mount_copy(competition, workbench.COMPETITION)
    expected = []
    for case in (
        "a labelled tile is missing",
        "a file without a label",
        "an id twice",
        "a label that is none",
        "another sample",
    ):
        edit, texts = TABLE_CASES[case]
        if case == "a file without a label":  # the first tile is gone by now
            shutil.copy(tiles_of(folder)[-1], folder / "train" / f"{'a' * 40}.tif")
        else:
            edit(folder)
        expected += texts
    message = bench.refused("prepare")
    assert [text for text in expected if text not in message] == []


def test_the_script_itself_refuses_all_of_it(
    tmp_path: Path, built: Built, competition: Path, prepared: Path
) -> None:
    folder = tmp_path / "input" / workbench.COMPETITION
    shutil.copytree(competition, folder)
    shutil.copytree(prepared, tmp_path / "working")
    before = workbench.contents(tmp_path / "working")
    cut, unreadable = tiles_of(folder)[:2]
    cut.write_bytes(cut.read_bytes()[:-1])
    unreadable.write_bytes(unknown_compression(unreadable.read_bytes()))
    done = workbench.run(
        workbench.script_of(built, "prepare"), working=tmp_path / "working", inputs=tmp_path / "input"
    )
    assert done.returncode == 1
    message = workbench.one_error(done.stderr)
    assert cut.name in message
    assert unreadable.name in message
    after = workbench.contents(tmp_path / "working")
    assert {name: after.get(name) for name in before} == before


# --- what is mounted ----------------------------------------------------------------------------------------


def test_two_competitions(bench: Any, competition: Path) -> None:
    bench.mount(competition, workbench.COMPETITION)
    bench.mount_copy(competition, "datasets/someone/tiles")
    message = bench.refused("prepare")
    assert "mounted more than once" in message
    assert workbench.COMPETITION in message
    assert "datasets/someone/tiles" in message
    assert "Detach all but one" in message


def test_one_competition_under_two_layouts_is_one(bench: Any, competition: Path) -> None:
    bench.mount(competition, workbench.COMPETITION)
    bench.mount(competition, "histopathologic-cancer-detection")
    assert bench.run("prepare")[0] == 0


def test_no_competition_lists_what_is_mounted(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    message = bench.refused("prepare")
    assert "the competition's data (train_labels.csv) is not among the inputs" in message
    assert "Attach the competition histopathologic-cancer-detection" in message
    assert f"{PREPARE} (output of a prepare kernel)" in message


def test_nothing_mounted(bench: Any) -> None:
    assert "Nothing is mounted under" in bench.refused("prepare")
    bench.inputs.rmdir()
    assert "does not exist" in bench.refused("prepare")


# --- a full disk --------------------------------------------------------------------------------------------


def test_prepare_sees_a_small_disk_before_it_starts(bench: Any, competition: Path, small_disk: Any) -> None:
    bench.mount(competition, workbench.COMPETITION)
    bench.working = small_disk("2m")
    message = bench.refused("prepare")
    assert "this machine is too small for the run" in message
    assert "GiB free, the run writes" in message
    assert list(bench.working.iterdir()) == []


def fill_after_preflight(module: Any, disk: Path, *, leave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk while the kernel runs."""
    looked = module.preflight

    def preflight(*arguments: Any, **keywords: Any) -> None:
        looked(*arguments, **keywords)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - leave))

    monkeypatch.setattr(module, "preflight", preflight)


@pytest.mark.parametrize(
    "leave", [0, 100_000, 1_700_000]
)  # for the journal, in the first array, in the second
def test_the_disk_fills_up_while_prepare_reads(
    leave: int,
    bench: Any,
    competition: Path,
    prepared: Path,
    small_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import kernels.prepare

    bench.mount(competition, workbench.COMPETITION)
    bench.working = small_disk("45m")
    bench.earlier(prepared)
    with monkeypatch.context() as patched:
        fill_after_preflight(kernels.prepare, bench.working, leave=leave, monkeypatch=patched)
        message = bench.refused("prepare")
    assert message.startswith("the disk is full")
    assert "Free some space and run the same command again" in message
    (bench.working / "filler").unlink()
    assert bench.run("prepare")[0] == 0
    assert workbench.outputs(bench.working).keys() == workbench.outputs(prepared).keys()


def test_train_sees_a_small_disk_before_it_starts(
    bench: Any, prepared: Path, folds: list[Path], small_disk: Any
) -> None:
    bench.mount(prepared, PREPARE)
    bench.working = small_disk("10m")
    bench.earlier(folds[0])
    assert "this machine is too small for the run" in bench.refused("train")


def test_the_disk_fills_up_while_a_fold_trains(
    bench: Any, prepared: Path, folds: list[Path], small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kernels.train

    bench.mount(prepared, PREPARE)
    bench.working = small_disk("1100m")
    bench.earlier(folds[0])
    with monkeypatch.context() as patched:
        fill_after_preflight(kernels.train, bench.working, leave=100_000, monkeypatch=patched)
        message = bench.refused("train")
    assert message.startswith("the disk is full")


# --- the prepared data --------------------------------------------------------------------------------------


def edit_label(folder: Path) -> None:
    """Turn the first label over; the file keeps its size."""
    lines = (folder / "index-train.csv").read_text().splitlines()
    row, name, label, *rest = lines[1].split(",")
    lines[1] = ",".join([row, name, str(1 - int(label)), *rest])
    (folder / "index-train.csv").write_text("\n".join(lines) + "\n")


PREPARED_CASES: dict[str, tuple[Edit, list[str]]] = {
    "a byte of the tiles": (
        lambda f: workbench.flip_byte(f / "tiles-train.npy"),
        ["tiles-train.npy is damaged", "Run the prepare kernel again"],
    ),
    "a byte of their header": (
        lambda f: workbench.flip_byte(f / "tiles-train.npy", at=0),
        ["tiles-train.npy is not a numpy array", "Run the prepare kernel again"],
    ),
    "tiles cut short": (
        lambda f: (f / "tiles-train.npy").write_bytes((f / "tiles-train.npy").read_bytes()[:-5]),
        ["tiles-train.npy has", "recorded", "Run that kernel again"],
    ),
    "tiles and figure gone": (
        lambda f: [(f / name).unlink() for name in ("tiles-train.npy", "tiles.png")],
        ["tiles-train.npy is missing", "tiles.png is missing", "Run that kernel again"],
    ),
    "the index edited": (edit_label, ["index-train.csv is damaged", "Run that kernel again"]),
    "the index and its record edited": (
        lambda f: (edit_label(f), workbench.reseal(f)),
        ["the index has data id", "prepare again"],
    ),
    "no record": (
        lambda f: (f / "run.json").unlink(),
        [
            "the output of a prepare kernel is not among the inputs",
            PREPARE,
            "Run the prepare kernel to its end",
        ],
    ),
    "an incomplete record": (lambda f: workbench.reseal(f, complete=False), ["does not have complete: true"]),
    "a record of another format": (
        lambda f: workbench.reseal(f, format=1),
        ["has format 1, this code reads format 2"],
    ),
}


@pytest.mark.parametrize("case", PREPARED_CASES)
def test_prepared_data_that_are_not_what_they_say(
    case: str, bench: Any, prepared: Path, folds: list[Path]
) -> None:
    edit, expected = PREPARED_CASES[case]
    edit(bench.mount_copy(prepared, PREPARE))
    bench.earlier(folds[0])
    message = bench.refused("train")
    for text in expected:
        assert text in message


def test_train_without_prepared_data(bench: Any, competition: Path) -> None:
    bench.mount(competition, workbench.COMPETITION)
    message = bench.refused("train")
    assert "the output of a prepare kernel is not among the inputs" in message
    assert workbench.COMPETITION in message


def test_prepared_data_twice(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    bench.mount_copy(prepared, "datasets/someone/prepared")
    message = bench.refused("train")
    assert PREPARE in message
    assert "datasets/someone/prepared" in message
    assert "Detach all but one" in message


def test_the_train_script_itself_refuses_damaged_tiles(tmp_path: Path, built: Built, prepared: Path) -> None:
    folder = tmp_path / "input" / PREPARE
    shutil.copytree(prepared, folder)
    workbench.flip_byte(folder / "tiles-train.npy")
    done = workbench.run(
        workbench.script_of(built, "train"), working=tmp_path / "working", inputs=tmp_path / "input"
    )
    assert done.returncode == 1
    assert "tiles-train.npy is damaged" in workbench.one_error(done.stderr)
    assert list((tmp_path / "working").iterdir()) == []


# --- weights, device, fold, loss ----------------------------------------------------------------------------


def save_weights(path: Path, backbone: str, *, value: float | None = None) -> None:
    """A weight file of a timm network from random weights, or one that holds a single value."""
    import timm
    from safetensors.torch import save_file

    tensors = timm.create_model(backbone, num_classes=10).state_dict()
    if value is not None:
        tensors = {
            name: tensor.fill_(value) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    path.parent.mkdir(parents=True)
    save_file(tensors, path)


def test_a_weight_file_that_is_not_there(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    message = bench.refused("train", weights="mine.safetensors")
    assert "the file mine.safetensors is not among the inputs" in message
    assert "Attach the dataset that holds it" in message
    assert f"{PREPARE} (output of a prepare kernel)" in message


def test_a_weight_file_of_another_network(bench: Any, prepared: Path, folds: list[Path]) -> None:
    bench.mount(prepared, PREPARE)
    save_weights(bench.inputs / "datasets/someone/mine/mine.safetensors", "test_efficientnet")
    bench.earlier(folds[0])
    message = bench.refused("train", weights="mine.safetensors")
    assert "mine.safetensors does not hold the weights of test_resnet" in message
    assert "is missing" in message
    assert "--set backbone=" in message


def test_a_damaged_weight_file(bench: Any, prepared: Path, folds: list[Path]) -> None:
    bench.mount(prepared, PREPARE)
    path = bench.inputs / "datasets/someone/mine/mine.safetensors"
    save_weights(path, "test_resnet")
    path.write_bytes(path.read_bytes()[:-1000])
    bench.earlier(folds[0])
    message = bench.refused("train", weights="mine.safetensors")
    assert "mine.safetensors is not a safetensors file, or is damaged" in message


def test_a_weight_file_that_fits_is_used(bench: Any, prepared: Path, folds: list[Path]) -> None:
    bench.mount(prepared, PREPARE)
    save_weights(bench.inputs / "datasets/someone/mine/mine.safetensors", "test_resnet", value=0.01)
    code, _, errors = bench.run("train", weights="mine.safetensors")
    assert (code, errors) == (0, "")
    assert (
        workbench.outputs(bench.working)["oof-0-member-0.csv"]
        != workbench.outputs(folds[0])["oof-0-member-0.csv"]
    )


def test_timm_weights_without_the_weights_kernel(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    message = bench.refused("train", weights="timm")
    assert "the weights of test_resnet are not among the inputs" in message
    assert "no output of a weights kernel is mounted" in message
    assert "Run the weights kernel" in message


def test_the_weights_kernel_held_other_encoders(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    save_weights(bench.inputs / "notebooks/someone/hcd-weights/resnet18/model.safetensors", "test_resnet")
    record = workbench.record_of(prepared) | {"kind": "weights", "files": {}}
    (bench.inputs / "notebooks/someone/hcd-weights/run.json").write_text(json.dumps(record))
    message = bench.refused("train", weights="timm")
    assert "hcd-weights holds resnet18" in message


def test_no_gpu(bench: Any, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.mount(prepared, PREPARE)
    message = bench.refused("train", device="cuda")
    assert "a GPU is required and none works" in message
    assert "NvidiaTeslaT4" in message
    assert "--set device=cpu" in message


def test_a_fold_beyond_the_last(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    message = bench.refused("train", parameters=workbench.parameters_of("train") | {"fold": 2})
    assert "fold 2 does not exist: there are folds 0 to 1" in message


def test_more_folds_than_tiles_of_a_class(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    message = bench.refused("train", num_folds="20")
    assert "20 folds need at least" in message
    assert "--set num_folds=2" in message


def test_folds_by_slide_without_a_map(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    assert "fold_split = slide needs a tile-to-slide map" in bench.refused(
        "train", fold_split="slide", slide_map="map.csv"
    )


def test_an_unknown_backbone(bench: Any, prepared: Path, folds: list[Path]) -> None:
    bench.mount(prepared, PREPARE)
    bench.earlier(folds[0])
    message = bench.refused("train", backbone="resnet19")
    assert "timm cannot build the backbone 'resnet19'" in message


def test_a_loss_that_is_no_number(bench: Any, prepared: Path, folds: list[Path]) -> None:
    bench.mount(prepared, PREPARE)
    save_weights(bench.inputs / "datasets/someone/mine/mine.safetensors", "test_resnet", value=3e38)
    bench.earlier(folds[0])
    message = bench.refused("train", weights="mine.safetensors")
    assert "the loss is not finite (epoch 1, by step 1" in message
    assert "--set learning_rate=" in message


def test_parameters_edited_by_hand(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, PREPARE)
    parameters = workbench.parameters_of("train")
    parameters["configs"][0] |= {"epochs": 0, "batch_sise": 3}
    message = bench.refused("train", parameters=parameters)
    assert "epochs = 0" in message
    assert "batch_sise" in message


# --- the folds that are averaged ----------------------------------------------------------------------------


@pytest.fixture
def mounted(bench: Any, competition: Path, prepared: Path, folds: list[Path]) -> list[Path]:
    """All inputs of an inference, the two folds as copies that may be changed."""
    bench.mount(competition, workbench.COMPETITION)
    bench.mount(prepared, PREPARE)
    return [bench.mount_copy(fold, f"notebooks/someone/fold-{number}") for number, fold in enumerate(folds)]


def cut_checkpoint(folder: Path, fold: int) -> None:
    path = folder / f"fold-{fold}-member-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


Pair = list[Path]
FOLD_CASES: dict[str, tuple[Callable[[Pair], object], list[str]]] = {
    "missing": (
        lambda f: shutil.rmtree(f[1]),
        ["fold 1 of smoke-", "is missing: run it to its end and attach its output"],
    ),
    "both missing": (
        lambda f: [shutil.rmtree(each) for each in f],
        ["fold 0 of smoke-", "fold 1 of smoke-"],
    ),
    "twice": (
        lambda f: shutil.copytree(f[0], f[0].with_name("again")),
        ["fold 0 of smoke-", "mounted more than once", "fold-0", "again", "detach all but one"],
    ),
    "other data": (
        lambda f: workbench.reseal(f[1], data_id="7be0" * 16),
        [
            "fold 1 of smoke-",
            "was trained on data 7be07be0...",
            "push it again (build_kernel.py push fold-1)",
        ],
    ),
    "another fold table": (
        lambda f: workbench.reseal(f[1], fold_table_id="7be0" * 16),
        ["come from different fold tables", "fold 1 7be07be0..."],
    ),
    "other labels": (
        lambda f: workbench.reseal(f[0], label_set=[0, 1, 2]),
        ["has the labels [0, 1, 2], not [0, 1]"],
    ),
    "another format": (
        lambda f: workbench.reseal(f[0], checkpoint_format=9),
        ["has checkpoint format 9, this code reads 2", "push fold-0"],
    ),
    "other members": (lambda f: workbench.reseal(f[0], members=[0, 1]), ["has members [0, 1], 1 expected"]),
    "scores that are not those of the predictions": (
        lambda f: (
            edit_table(
                f[1] / "oof-1-member-0.csv", lambda table: table.assign(logit=table["logit"].to_numpy()[::-1])
            )
            or workbench.reseal(f[1])
        ),
        ["the scores of fold 1 of smoke-", "the fold: run.json says AUC ", "member 0: run.json says AUC "],
    ),
    "a damaged checkpoint": (
        lambda f: workbench.flip_byte(f[0] / "fold-0-member-0.safetensors"),
        ["fold-0-member-0.safetensors is damaged: its SHA-256 is not the recorded one"],
    ),
    "a checkpoint cut short, and recorded so": (
        lambda f: (cut_checkpoint(f[1], 1), workbench.reseal(f[1])),
        [
            "fold-1-member-0.safetensors is damaged or not a checkpoint of this project",
            "Train this member again",
        ],
    ),
    "a checkpoint of another fold": (
        lambda f: (
            shutil.copy(f[0] / "fold-0-member-0.safetensors", f[1] / "fold-1-member-0.safetensors"),
            workbench.reseal(f[1]),
        ),
        ["run.json does not list the checkpoint of ('smoke-"],
    ),
    "a foreign experiment": (
        lambda f: workbench.reseal(
            Path(shutil.copytree(f[0], f[0].with_name("foreign"))), experiment="resnet34"
        ),
        ["outputs of other experiments are mounted: resnet34: detach them, or build with them"],
    ),
    "several at once": (
        lambda f: (
            workbench.reseal(f[0], data_id="7be0" * 16, label_set=[1]),
            workbench.reseal(Path(shutil.copytree(f[1], f[1].with_name("foreign"))), experiment="resnet34"),
            shutil.rmtree(f[1]),
        ),
        [
            "was trained on data 7be07be0",
            "has the labels [1]",
            "fold 1 of smoke-",
            "other experiments are mounted: resnet34",
        ],
    ),
}


@pytest.mark.parametrize("case", FOLD_CASES)
def test_folds_that_may_not_be_averaged(case: str, bench: Any, mounted: list[Path]) -> None:
    edit, expected = FOLD_CASES[case]
    edit(mounted)
    bench.working.joinpath("submission.csv").write_text("an earlier one")
    message = bench.refused("inference")
    assert [text for text in expected if text not in message] == []
    assert bench.working.joinpath("submission.csv").read_text() == "an earlier one"


def test_a_damaged_fold_does_not_hide_a_missing_one(bench: Any, mounted: list[Path]) -> None:
    workbench.flip_byte(mounted[0] / "fold-0-member-0.safetensors")
    shutil.rmtree(mounted[1])
    message = bench.refused("inference")
    assert "fold-0-member-0.safetensors is damaged" in message
    assert "fold 1 of smoke-" in message


def test_folds_of_different_code_are_a_warning(bench: Any, mounted: list[Path]) -> None:
    workbench.reseal(mounted[1], bundle_id="7be0" * 16)
    code, said, errors = bench.run("inference")
    assert (code, errors) == (0, "")
    assert "warning: the folds were trained by different code" in said
    assert "fold 1 of smoke-" in said
    first = workbench.outputs(bench.working)
    assert "the folds were trained by different code" in bench.refused("inference", strict_bundle=True)
    assert workbench.outputs(bench.working) == first


def test_prepared_data_of_another_competition(bench: Any, mounted: list[Path], competition: Path) -> None:
    place = bench.inputs / workbench.COMPETITION
    place.unlink()
    shutil.copytree(competition, place)
    gone = pd.read_csv(place / "sample_submission.csv")["id"][0]
    edit_table(place / "sample_submission.csv", lambda table: table[1:])
    (place / "test" / f"{gone}.tif").unlink()
    assert "the prepared test tiles are not those of sample_submission.csv" in bench.refused("inference")


def test_the_inference_script_itself(
    tmp_path: Path, built: Built, competition: Path, prepared: Path, folds: list[Path]
) -> None:
    inputs, working = tmp_path / "input", tmp_path / "working"
    mounts = {workbench.COMPETITION: competition, PREPARE: prepared, "notebooks/someone/a": folds[1]}
    for place, source in mounts.items():
        workbench.mount(inputs, source, place)
    script = workbench.script_of(built, "inference")
    done = workbench.run(script, working=working, inputs=inputs)
    assert done.returncode == 1
    assert "fold 0 of smoke-" in workbench.one_error(done.stderr)
    assert list(working.iterdir()) == []
    workbench.mount(inputs, folds[0], "notebooks/someone/b")
    done = workbench.run(script, working=working, inputs=inputs)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(workbench.outputs(working)) == {
        "run.json",
        "submission.csv",
        "members.csv",
        "ensemble.csv",
        "correlations.csv",
    }
    wanted = pd.read_csv(competition / "sample_submission.csv")["id"].tolist()
    assert pd.read_csv(working / "submission.csv")["id"].tolist() == wanted


# --- the command line ---------------------------------------------------------------------------------------


def command(*arguments: str, cwd: Path = workbench.ROOT) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(workbench.ROOT / "build_kernel.py"), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_the_builder_lists_all_that_is_wrong_with_a_config(tmp_path: Path) -> None:
    wrong = {
        "learning_rat=1": "unknown key 'learning_rat'; did you mean learning_rate?",
        "epochs=many": "epochs = 'many': a whole number expected",
        "num_folds=1": "num_folds = 1: from 2 to 20 expected",
        "fold_split=random": "fold_split = 'random': one of stratified, stain, slide expected",
        "flip": "'flip': KEY=VALUE expected",
    }
    options = [part for override in wrong for part in ("--set", override)]
    done = command("build", "smoke", *options, "--out", str(tmp_path / "dist"))
    assert done.returncode == 1
    message = workbench.one_error(done.stderr)
    assert [text for text in wrong.values() if text not in message] == []
    assert not (tmp_path / "dist").exists()


def test_the_builder_names_the_experiments_there_are(tmp_path: Path) -> None:
    done = command("build", "resnet19", "--out", str(tmp_path / "dist"))
    assert done.returncode == 1
    message = workbench.one_error(done.stderr)
    assert "there is no experiment 'resnet19'" in message
    assert "resnet18, resnet34, smoke" in message


@pytest.mark.parametrize("subcommand", ["smoke", "local"])
def test_data_that_are_no_competition(subcommand: str, tmp_path: Path) -> None:
    arguments = [subcommand, "smoke", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    done = command(*arguments)
    assert done.returncode == 1
    message = workbench.one_error(done.stderr)
    assert str(tmp_path) in message
    assert "train_labels.csv is missing" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["biuld"],
        ["build", "--otu", "x"],
        ["smoke", "--tiles", "many"],
        ["doctor", "--average", "mean"],
        ["smoke", "--folds", "two"],
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Error:" in done.stderr


def test_experiments_that_cannot_share_prepared_data(tmp_path: Path) -> None:
    from launch.errors import LaunchError

    with pytest.raises(LaunchError, match="differ in stain_groups"):
        build(
            [workbench.experiment(), workbench.experiment(stain_groups="9")],
            out=tmp_path / "dist",
            owner="someone",
        )
