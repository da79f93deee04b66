"""Which kernels of a run on this machine run again, and what becomes of their earlier output."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from instant import leave, parameters_in, write_data

from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.local import LocalRun, attached_datasets, local
from launch.packaging.builder import build
from launch.sandbox import Outcome


@pytest.mark.parametrize("name", ["map.csv", "sub/map.csv"])
def test_an_attached_file_counts_by_its_content(name: str, tmp_path: Path) -> None:
    """Also one of the same size, and one in a folder."""
    attach = tmp_path / "attach"
    (attach / name).parent.mkdir(parents=True)
    datasets = attached_datasets([attach], "me")
    experiment = load_experiment("smoke", ["slide_map=map.csv"])  # prepare reads the attached folder
    built = build([experiment], out=tmp_path / "build", owner="me", datasets=tuple(datasets))
    run = LocalRun(tmp_path, built, tmp_path / "data", datasets, None)
    kernel = next(kernel for kernel in built.kernels if kernel.kind == "prepare")
    (attach / name).write_text("id,wsi\na,b\n")
    first = run._identity(kernel)
    assert run._identity(kernel) == first
    (attach / ".DS_Store").touch()
    assert run._identity(kernel) == first
    (attach / name).write_text("id,wsi\na,c\n")
    assert run._identity(kernel) != first


def test_hours_that_are_expected_run_no_kernel_again(tmp_path: Path) -> None:
    identities = []
    for number, options in enumerate(([], ["expected_hours=3"], ["seed=3"])):
        built = build([load_experiment("smoke", options)], out=tmp_path / str(number), owner="me")
        run = LocalRun(tmp_path, built, tmp_path, {}, None)
        fold = next(kernel for kernel in built.kernels if kernel.kind == "train")
        identities.append(run._identity(replace(fold, sources=())))
    assert identities[0] == identities[1] != identities[2]


def test_folds_pick_the_folds_that_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class StoppedError(Exception):
        """Nothing is trained here."""

    def stop(run: LocalRun) -> None:
        started.extend(kernel.slug for kernel in run.built.kernels if kernel.kind == "train")
        raise StoppedError

    monkeypatch.setattr(LocalRun, "run", stop)
    (tmp_path / "train_labels.csv").touch()
    with pytest.raises(StoppedError):
        local(
            [load_experiment("smoke", ["weights=none"])],
            data=tmp_path,
            out=tmp_path / "out",
            folds=(1,),
            owner="me",
        )
    assert [slug[-7:] for slug in started] == ["-fold-1"]


@pytest.fixture
def options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> dict[str, Any]:
    """Of `local`, with kernels that take no time; where there are more than 10 folds they fail."""
    data, _ = write_data(tmp_path / "data")
    caplog.set_level(logging.INFO, logger="launch")

    def run_script(script: Path, *, folder: Path, **_: Any) -> Outcome:
        log, parameters = folder / "log.txt", parameters_in(script)
        (folder / "working").mkdir(exist_ok=True)
        if parameters["kind"] == "train" and parameters["configs"][0]["num_folds"] > 10:
            log.write_text("begun\nerror: too many folds\n")
            return Outcome(1, 0.1, log)
        log.write_text("begun\n")
        leave(folder / "working", parameters, data, data_id="d" * 64, script=script)
        return Outcome(0, 0.1, log)

    monkeypatch.setattr("launch.local.run_script", run_script)
    return {"data": data, "out": tmp_path / "local", "owner": "me"}


def test_a_finished_training_is_kept_when_the_data_change(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    experiment = load_experiment("smoke", ["weights=none", "num_folds=3"])
    local([experiment], **options)
    [fold] = [path.parent for path in options["out"].glob("hcd-*-fold-0/working/*.safetensors")]
    trained = {path.name: path.read_bytes() for path in fold.iterdir()}
    labels = options["data"] / "train_labels.csv"
    lines = labels.read_text().splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1].endswith("0") else "0")
    labels.write_text("\n".join(lines) + "\n")
    caplog.clear()
    local([experiment], **options)
    assert "run.json" in trained
    assert {path.name: path.read_bytes() for path in (fold.parent / "earlier").iterdir()} == trained
    assert sum("that output is kept in" in message for message in caplog.messages) == 3
    assert (fold / "run.json").read_bytes() != trained["run.json"]
    assert not any("finished before" in message for message in caplog.messages)


def test_prepared_data_serve_another_config_and_a_failure_shows_the_end_of_the_log(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    local([load_experiment("smoke", ["weights=none", "num_folds=3"])], **options)
    before = {path: path.stat().st_mtime_ns for path in options["out"].glob("hcd-*/working/*")}
    caplog.clear()
    with pytest.raises(LaunchError) as failure:
        local([load_experiment("smoke", ["weights=none", "num_folds=20"])], **options)
    assert "ended with exit code 1" in str(failure.value)
    assert "    begun\n    error: too many folds" in str(failure.value)
    [message] = [message for message in caplog.messages if "finished before" in message]
    assert message == "hcd-prepare: finished before, not run again"
    assert len(before) > 10 and before == {path: path.stat().st_mtime_ns for path in before}
