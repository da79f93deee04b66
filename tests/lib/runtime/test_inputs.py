"""Inputs are found in every mount layout; a message lists what is mounted when one is missing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from timm.models import save_for_hf

from lib.config import Config
from lib.errors import PreflightError
from lib.model.features import TEST_FEATURES, TRAIN_FEATURES, encoder_options
from lib.model.network import build_network
from lib.runtime import inputs as module
from lib.runtime.inputs import (
    MISSING_INPUTS,
    encoder_folder,
    find_competition,
    find_features,
    find_file,
    find_output,
    find_outputs,
    find_weights,
    list_mounts,
    mounted_instead,
    read_output,
    require_inputs,
)
from lib.runtime.run_record import RunRecord, RunRecordError, describe_files, write_run_record

TINY = Config(backbone="test_resnet", input_size=32, weights="none")
SLUG = "histopathologic-cancer-detection"
LAYOUTS = [
    f"competitions/{SLUG}",
    SLUG,
    f"datasets/someone/{SLUG}",
    f"datasets/organizations/lab/{SLUG}",
    f"notebooks/someone/{SLUG}",
    f"datasets/someone/{SLUG}/the data",
    f"datasets/organizations/lab/{SLUG}/the data",
]


def _competition(root: Path, place: str) -> Path:
    folder = root / place
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        (folder / part / "tile.tif").touch()
    (folder / "train_labels.csv").write_text("id,label\n")
    return folder


def _output(root: Path, place: str, kind: str) -> Path:
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": kind}))
    return folder


@pytest.mark.parametrize("place", LAYOUTS)
def test_the_competition_is_found_under_every_layout(tmp_path: Path, place: str) -> None:
    folder = _competition(tmp_path, place)
    _output(tmp_path, "notebooks/someone/hcd-prepare", "prepare")
    assert find_competition(tmp_path) == folder
    assert folder in list_mounts(tmp_path)
    assert not any(mount.is_relative_to(folder / "train") for mount in list_mounts(tmp_path))


@pytest.mark.parametrize("place", [layout.replace(SLUG, "hcd-prepare") for layout in LAYOUTS])
def test_an_output_is_found_by_its_record_not_by_its_path(tmp_path: Path, place: str) -> None:
    folder = _output(tmp_path, place, "prepare")
    _output(tmp_path, "notebooks/someone/hcd-weights", "weights")
    assert find_output(tmp_path, "prepare") == folder


def test_an_output_with_a_copy_of_the_labels_is_not_the_competition(tmp_path: Path) -> None:
    folder = _competition(tmp_path, f"competitions/{SLUG}")
    (_output(tmp_path, "notebooks/someone/hcd-prepare", "prepare") / "train_labels.csv").write_text(
        "id,label\n"
    )
    assert find_competition(tmp_path) == folder


def test_two_copies_are_both_named(tmp_path: Path) -> None:
    places = [f"competitions/{SLUG}", "datasets/someone/a-copy"]
    for place in places:
        _competition(tmp_path, place)
    with pytest.raises(PreflightError) as refused:
        find_competition(tmp_path)
    assert all(place in str(refused.value) for place in places) and "Detach" in str(refused.value)
    for name in ("one", "two"):
        _output(tmp_path, f"notebooks/someone/{name}", "prepare")
    with pytest.raises(PreflightError) as refused:
        find_output(tmp_path, "prepare")
    assert "notebooks/someone/one" in str(refused.value) and "notebooks/someone/two" in str(refused.value)


def test_one_folder_under_two_layouts_counts_once(tmp_path: Path) -> None:
    folder = _competition(tmp_path, f"competitions/{SLUG}")
    (tmp_path / SLUG).symlink_to(folder, target_is_directory=True)
    assert find_competition(tmp_path).samefile(folder)
    assert len(list_mounts(tmp_path)) == 1


def test_circular_and_broken_links_are_ignored(tmp_path: Path) -> None:
    folder = _competition(tmp_path, f"competitions/{SLUG}")
    (tmp_path / "competitions" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing", target_is_directory=True)
    assert list_mounts(tmp_path) == [folder]


def test_a_missing_input_is_reported_with_the_mounted_ones(tmp_path: Path) -> None:
    _output(tmp_path, "notebooks/someone/hcd-weights", "weights")
    (tmp_path / "datasets" / "someone" / "pictures").mkdir(parents=True)
    (tmp_path / "datasets" / "someone" / "pictures" / "cat.png").touch()
    with pytest.raises(PreflightError) as refused:
        find_competition(tmp_path)
    for piece in (
        "notebooks/someone/hcd-weights (output of a weights kernel)",
        "datasets/someone/pictures",
        SLUG,
        "rules",
    ):
        assert piece in str(refused.value)
    with pytest.raises(PreflightError, match="prepare kernel"):
        find_output(tmp_path, "prepare")


def test_an_empty_and_an_absent_input_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="Nothing is mounted"):
        find_competition(tmp_path)
    with pytest.raises(PreflightError, match="does not exist"):
        find_competition(tmp_path / "nowhere")


def test_outputs_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    wanted = [_output(tmp_path, f"notebooks/someone/hcd-x-fold-{fold}", "train") for fold in (2, 0, 1)]
    assert find_outputs(tmp_path, "train") == sorted(wanted)


@pytest.mark.parametrize("place", ["datasets/someone/slides", "datasets/someone/slides/tables", "slides"])
def test_an_attached_file_is_found_at_the_top_or_one_folder_below(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "map.csv").touch()
    (tmp_path / "datasets" / "someone" / "slides").mkdir(parents=True, exist_ok=True)
    (tmp_path / "datasets" / "someone" / "slides" / "README.md").touch()
    assert find_file(tmp_path, "map.csv", remedy="Attach it.") == tmp_path / place / "map.csv"
    with pytest.raises(PreflightError, match="Attach it."):
        find_file(tmp_path, "other.csv", remedy="Attach it.")


def test_a_large_folder_is_not_listed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _competition(tmp_path, f"competitions/{SLUG}")
    for number in range(50):
        (folder / "train" / f"{number}.tif").touch()
    looked_at: list[str] = []
    scandir = module.os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda path: looked_at.append(str(path)) or scandir(path))
    list_mounts(tmp_path)
    assert str(folder) in looked_at and str(folder / "train") not in looked_at


def _pushed(root: Path, place: str, push_id: str) -> None:
    (root / place).mkdir(parents=True)
    (root / place / "run.json").write_text(json.dumps({"kind": "train", "push_id": push_id}))


def test_outputs_of_the_given_pushes_are_required(tmp_path: Path) -> None:
    _pushed(tmp_path, "notebooks/alice/hcd-x-fold-0", "c.fold-0.1")
    _pushed(tmp_path, "notebooks/alice/hcd-x-fold-1", "c.fold-1.1")

    def require(**push_ids: str) -> None:
        require_inputs(tmp_path, push_ids)

    require()
    require(**{"hcd-x-fold-0": "c.fold-0.1", "hcd-x-fold-1": "c.fold-1.1"})
    require(**{"hcd-weights": ""})  # weights that were fetched on the user's machine come from no push
    with pytest.raises(PreflightError) as failure:
        require(**{"hcd-x-fold-0": "c.fold-0.2", "hcd-x-fold-1": "c.fold-1.1", "hcd-prepare": "c.prepare.1"})
    text = str(failure.value)
    assert MISSING_INPUTS in text  # by these words the campaign knows that pushing again helps
    assert "hcd-x-fold-0, push c.fold-0.2: push c.fold-0.1 is mounted" in text
    assert "hcd-prepare, push c.prepare.1: nothing is mounted" in text
    # The campaign reads from the log what is mounted instead.
    assert mounted_instead(text.splitlines()) == {"hcd-x-fold-0": "c.fold-0.1", "hcd-prepare": ""}
    assert mounted_instead(["- hcd-x, push a.1: push by hand is mounted", "x"]) == {"hcd-x": "by hand"}
    assert "c.fold-0.1, c.fold-1.1" in text  # what is mounted instead
    assert "hcd-x-fold-1, push" not in text


def _record(output: Path, *, kind: str = "weights", **changes: Any) -> None:
    names = {str(path.relative_to(output)): False for path in output.rglob("*") if path.is_file()}
    record = RunRecord(
        kind=kind,
        experiment="",
        config=Config().to_dict(),
        push_id="",
        bundle_id="",
        git_commit="",
        data_id="",
        files=describe_files(output, names),
        complete=True,
    )
    write_run_record(output, dataclasses.replace(record, **changes))


@pytest.fixture
def weights_output(tmp_path: Path) -> Path:
    output = tmp_path / "notebooks" / "someone" / "hcd-weights"
    save_for_hf(timm.create_model("test_resnet"), str(output / "test_resnet"), safe_serialization=True)
    _record(output)
    return output


def test_weights_are_found_in_the_kernels_output_and_verified(weights_output: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, weights="timm")
    arguments = find_weights(tmp_path, config, experiment="x")
    assert arguments == {"folder": weights_output / "test_resnet"}
    assert build_network(config, **arguments) is not None
    damaged = bytearray((weights_output / "test_resnet" / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (weights_output / "test_resnet" / "model.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(RunRecordError, match="damaged"):
        find_weights(tmp_path, config, experiment="x")


def test_a_pretrained_encoder_is_that_of_the_experiment(tmp_path: Path) -> None:
    output = tmp_path / "notebooks" / "someone" / "hcd-x-pretrain"
    (output / "test_resnet").mkdir(parents=True)
    (output / "test_resnet" / "model.safetensors").touch()
    _record(output, kind="pretrain", experiment="x")
    config = dataclasses.replace(TINY, weights="pretrain")
    assert find_weights(tmp_path, config, experiment="x") == {"folder": output / "test_resnet"}
    with pytest.raises(PreflightError, match="was pretrained for the experiment x, not for y"):
        find_weights(tmp_path, config, experiment="y")


def test_an_encoder_that_is_absent_is_named_with_those_that_are_mounted(
    weights_output: Path, tmp_path: Path
) -> None:
    config = Config(backbone="resnet34.tv_in1k")
    with pytest.raises(PreflightError) as refused:
        find_weights(tmp_path, config, experiment="x")
    for piece in ("resnet34.tv_in1k", "hcd-weights holds test_resnet", "weights=none"):
        assert piece in str(refused.value)
    with pytest.raises(PreflightError, match="no output of a weights kernel is mounted"):
        find_weights(tmp_path / "nowhere", config, experiment="x")


def test_a_file_the_user_attached_is_found_by_its_name(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, weights="mine.safetensors")
    place = tmp_path / "datasets" / "someone" / "encoders" / "mine.safetensors"
    with pytest.raises(PreflightError, match="mine.safetensors"):
        find_weights(tmp_path, config, experiment="x")
    place.parent.mkdir(parents=True)
    place.touch()
    assert find_weights(tmp_path, config, experiment="x") == {"file": place}


def test_random_weights_need_nothing(tmp_path: Path) -> None:
    assert find_weights(tmp_path / "nowhere", TINY, experiment="x") == {}


def test_folders_of_encoders_are_valid_on_every_file_system_and_distinct() -> None:
    names = ["resnet34.tv_in1k", "hf-hub:owner/name", "hf-hub:owner/other"]
    folders = [encoder_folder(name) for name in names]
    assert len(set(folders)) == 3 and not any(set(name) & set('/\\:*?"<>|') for name in folders)


def _features_output(root: Path, name: str, config: Config) -> Path:
    output = root / "notebooks" / "someone" / name
    output.mkdir(parents=True)
    for file in (TRAIN_FEATURES, TEST_FEATURES):
        np.save(output / file, np.zeros((3, 4), np.float32), allow_pickle=False)
    _record(output, kind="embed", data_id="d" * 64, scores={"features": encoder_options(config)})
    return output


def test_features_are_those_of_the_encoder_and_the_data(tmp_path: Path) -> None:
    other = dataclasses.replace(TINY, tta_views=1)
    with pytest.raises(PreflightError, match="no output of an embed kernel is mounted"):
        find_features(tmp_path, encoder_options(TINY), data_id="d" * 64)
    _features_output(tmp_path, "hcd-a-embed", other)
    with pytest.raises(PreflightError, match="tta_views 1 instead of 8"):
        find_features(tmp_path, encoder_options(TINY), data_id="d" * 64)
    folder = _features_output(tmp_path, "hcd-b-embed", TINY)
    assert find_features(tmp_path, encoder_options(TINY), data_id="d" * 64) == folder
    with pytest.raises(PreflightError, match=r"data dddddddd\.\.\. instead of eeeeeeee"):
        find_features(tmp_path, encoder_options(TINY), data_id="e" * 64)
    (folder / TRAIN_FEATURES).write_bytes(b"damaged")
    with pytest.raises(RunRecordError):
        find_features(tmp_path, encoder_options(TINY), data_id="d" * 64)


def test_an_output_is_read_with_its_verified_record(tmp_path: Path) -> None:
    output = _features_output(tmp_path, "hcd-a-embed", TINY)
    folder, record = read_output(tmp_path, "embed")
    assert folder == output and set(record.hashes) == {TRAIN_FEATURES, TEST_FEATURES}
    content = bytearray((output / TRAIN_FEATURES).read_bytes())
    content[-1] ^= 1
    (output / TRAIN_FEATURES).write_bytes(bytes(content))
    with pytest.raises(RunRecordError, match="damaged"):
        read_output(tmp_path, "embed")
    read_output(tmp_path, "embed", hashed_by_reader=(TRAIN_FEATURES,))


def test_what_lies_beside_a_folder_of_data_does_not_hide_it(tmp_path: Path) -> None:
    outputs, data = tmp_path / "outputs" / "hcd-prepare", tmp_path / "datasets" / "me" / "own" / "data"
    outputs.mkdir(parents=True)
    data.mkdir(parents=True)
    (outputs / "run.json").write_text("{}")
    (data / "train_labels.csv").write_text("id,label\n")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (outputs.parent / name).touch()
    (data.parent / "README.md").touch()
    (data.parent / "__MACOSX").mkdir()
    (data.parent / "__MACOSX" / "train_labels.csv").touch()
    assert list_mounts(tmp_path) == [outputs, data]
    assert find_competition(tmp_path) == data
