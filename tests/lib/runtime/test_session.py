"""Inputs are found wherever Kaggle mounts them; what cannot work is said before it costs anything."""

import json
import logging
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.config import Config
from lib.runtime import session as module
from lib.runtime.session import (
    MISSING_INPUTS,
    Parameters,
    PreflightError,
    Session,
    choose_devices,
    find_competition,
    find_file,
    find_output,
    find_outputs,
    list_mounts,
    log_to_stdout,
    preflight,
    require_inputs,
    run_kernel,
)

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


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    yield
    for name in ("lib", "kernels"):
        logging.getLogger(name).handlers.clear()


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


def _session(folder: Path) -> Session:
    parameters = Parameters(
        kind="train", slug="hcd-x-fold-0", experiments=("x",), configs=(Config(),), owner="someone"
    )
    return Session(parameters=parameters, input=folder, working=folder, place="local")


@pytest.mark.parametrize("place", LAYOUTS)
def test_the_competition_is_found_under_every_layout(tmp_path: Path, place: str) -> None:
    folder = _competition(tmp_path, place)
    _output(tmp_path, "notebooks/someone/hcd-prepare", "prepare")
    assert find_competition(tmp_path) == folder
    assert folder in list_mounts(tmp_path)
    assert not any(mount.is_relative_to(folder / "train") for mount in list_mounts(tmp_path))


@pytest.mark.parametrize("place", [layout.replace(SLUG, "hcd-prepare") for layout in LAYOUTS])
def test_an_output_is_found_by_what_it_says_not_where_it_lies(tmp_path: Path, place: str) -> None:
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


def test_links_in_a_circle_and_links_to_nothing_do_no_harm(tmp_path: Path) -> None:
    folder = _competition(tmp_path, f"competitions/{SLUG}")
    (tmp_path / "competitions" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing", target_is_directory=True)
    assert list_mounts(tmp_path) == [folder]


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
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


def test_no_inputs_at_all_are_said_to_be_none(tmp_path: Path) -> None:
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


def test_too_little_disk_and_memory_are_said_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9 << 30, 8 << 30, 1 << 30))
    monkeypatch.setattr(module, "free_memory", lambda: 2 << 30)
    with pytest.raises(PreflightError) as refused:
        preflight(_session(tmp_path), disk=5 << 30, memory=7 << 30)
    for piece in ("1.00 GiB free", "writes 5.00 GiB", "2.00 GiB of memory", "about 7.00 GiB"):
        assert piece in str(refused.value)
    preflight(_session(tmp_path), disk=1 << 30, memory=2 << 30)  # just enough is enough
    monkeypatch.setattr(module, "free_memory", lambda: None)
    preflight(_session(tmp_path), disk=1 << 30, memory=7 << 30)  # unknown is not too little


def test_a_gpu_that_is_demanded_and_absent_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for config, required in ((Config(device="cuda"), False), (Config(), True)):
        with pytest.raises(PreflightError, match="NvidiaTeslaT4"):
            choose_devices(config, gpu_required=required)
    monkeypatch.delenv("HCD_WORKERS", raising=False)
    assert [device.type for device in choose_devices(Config(), gpu_required=False)] == ["cpu"]
    monkeypatch.setenv("HCD_WORKERS", "2")
    assert [device.type for device in choose_devices(Config(), gpu_required=False)] == ["cpu", "cpu"]


def test_an_error_of_ours_ends_a_kernel_with_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {
        "kind": "train",
        "slug": "s",
        "experiments": ["x"],
        "configs": [Config().to_dict()],
        "owner": "someone",
    }

    def stop(error: Exception) -> object:
        def recipe(session: Session) -> None:
            raise error

        return recipe

    assert run_kernel(lambda session: None, values) == 0
    capsys.readouterr()
    assert run_kernel(stop(PreflightError("no tiles")), values) == 1
    assert capsys.readouterr().err == "error: no tiles\n"
    assert run_kernel(stop(OSError(28, "No space left on device")), values) == 1
    assert "the disk is full" in capsys.readouterr().err
    for error in (ValueError("a mistake of ours"), FileNotFoundError(2, "gone")):
        with pytest.raises(type(error)):  # keeps its traceback
            run_kernel(stop(error), values)


def test_messages_are_printed_with_seconds_once_and_warnings_are_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lib.runtime.session.time.monotonic", lambda: 112.34)
    log_to_stdout(50.0)
    log_to_stdout(100.0)  # replaces the first
    logging.getLogger("lib.data.tile_store").info("%d of 30 tiles, 5 %% of all", 3)
    logging.getLogger("kernels.train").warning("older than tested")
    logging.getLogger("kernels.train").debug("not shown")
    logging.getLogger("timm").info("not shown")
    assert capsys.readouterr().out == (
        "[   12.3 s] 3 of 30 tiles, 5 % of all\n[   12.3 s] warning: older than tested\n"
    )


def test_a_stage_logs_its_start_and_its_duration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = _session(tmp_path)
    with caplog.at_level(logging.INFO), session.stage("read the tiles", note="12 MiB"):
        assert caplog.messages == ["read the tiles ... (12 MiB)"]
    assert caplog.messages[1:] == [f"read the tiles took {session.seconds['read the tiles']:.1f} s"]


def _pushed(root: Path, place: str, push_id: str) -> None:
    (root / place).mkdir(parents=True)
    (root / place / "run.json").write_text(json.dumps({"kind": "train", "push_id": push_id}))


def test_outputs_of_the_pushes_it_was_told_to_read_are_demanded(tmp_path: Path) -> None:
    _pushed(tmp_path, "notebooks/alice/hcd-x-fold-0", "c.fold-0.1")
    _pushed(tmp_path, "notebooks/alice/hcd-x-fold-1", "c.fold-1.1")

    def demand(**inputs: str) -> None:
        parameters = Parameters(
            kind="inference", slug="x", experiments=(), configs=(Config(),), owner="alice", inputs=inputs
        )
        require_inputs(Session(parameters=parameters, input=tmp_path, working=tmp_path, place="kaggle"))

    demand()
    demand(**{"hcd-x-fold-0": "c.fold-0.1", "hcd-x-fold-1": "c.fold-1.1"})
    demand(**{"hcd-weights": ""})  # weights that were fetched on the user's machine come from no push
    with pytest.raises(PreflightError) as failure:
        demand(**{"hcd-x-fold-0": "c.fold-0.2", "hcd-x-fold-1": "c.fold-1.1", "hcd-prepare": "c.prepare.1"})
    text = str(failure.value)
    assert MISSING_INPUTS in text  # by these words the campaign knows that pushing again helps
    assert "hcd-x-fold-0, push c.fold-0.2" in text and "hcd-prepare, push c.prepare.1" in text
    assert "c.fold-0.1, c.fold-1.1" in text  # what is mounted instead
    assert "hcd-x-fold-1, push" not in text
