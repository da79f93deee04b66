"""Whole campaigns on this machine: smoke, smoke --data --tiles, thin kernels, local; and that they agree to the last digit."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from launch.errors import LaunchError
from launch.plan import load_experiment
from launch.rehearsal import smoke as rehearsal
from launch.rehearsal.competition import write_competition

KNOBS = ["epochs=2", "warmup_epochs=0", "input_size=32", "folds=2", "views=1", "stain_groups=6", "batch_size=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("competition") / "data"
    write_competition(folder, labelled=60, unlabelled=12, seed=5)
    return folder


def outputs(run: Path) -> dict[str, str]:
    """SHA-1 of every file the kernels left, less run.json, which holds times."""
    return {
        str(path.relative_to(run)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("hcd-*/working/**/*"))
        if path.is_file() and path.name != "run.json"
    }


def test_local_equals_smoke_to_the_last_digit_and_is_not_done_twice(data, tmp_path, capsys):
    experiment = load_experiment("smoke", KNOBS)
    said: list[str] = []
    [smoked] = rehearsal.smoke(experiment, data=data, tiles=None, out=tmp_path / "smoke", owner="someone", say=said.append)
    printed = capsys.readouterr().out
    assert f"pooled out-of-fold AUC {smoked.pooled:.4f} on n = 60 tiles" in printed
    assert "submission.csv (12 tiles, matches sample_submission.csv)" in printed
    [trained] = rehearsal.local([experiment], data=data, out=tmp_path / "local", owner="someone", say=said.append)
    assert trained.pooled == smoked.pooled
    assert outputs(tmp_path / "smoke") == outputs(tmp_path / "local")
    assert len(outputs(tmp_path / "local")) > 15

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "local").glob("hcd-*/working/*")}
    said.clear()
    [again] = rehearsal.local([experiment], data=data, out=tmp_path / "local", owner="someone", say=said.append)
    assert again.pooled == trained.pooled
    assert sum("finished before" in line for line in said) == 4
    assert not any("started" in line for line in said)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "local").glob("hcd-*/working/*")}

    # Another learning rate: the folds are trained again, the prepared data are not made again.
    said.clear()
    other = load_experiment("smoke", [*KNOBS, "learning_rate=1e-3"])
    rehearsal.local([other], data=data, out=tmp_path / "local", owner="someone", say=said.append)
    assert [line for line in said if "finished before" in line] == [
        "hcd-prepare-" + _hash(said) + ": finished before, not run again"
    ]


def test_a_finished_training_is_kept_when_the_data_change(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    said: list[str] = []
    chosen = [load_experiment("smoke", KNOBS)]
    rehearsal.local(chosen, data=folder, out=tmp_path / "out", owner="someone", say=said.append)
    trained = {
        path.name: path.read_bytes() for path in next((tmp_path / "out").glob("hcd-*-fold-0")).glob("working/*.safetensors")
    }
    labels = folder / "train_labels.csv"
    lines = labels.read_text().splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1].endswith("0") else "0")
    labels.write_text("\n".join(lines) + "\n")
    rehearsal.local(chosen, data=folder, out=tmp_path / "out", owner="someone", say=said.append)
    kept = next((tmp_path / "out").glob("hcd-*-fold-0")) / "earlier"
    assert trained
    assert {path.name: path.read_bytes() for path in kept.glob("*.safetensors")} == trained
    assert any("that output is kept in" in line for line in said)


def _hash(said: list[str]) -> str:
    return next(line.split(":")[0].removeprefix("hcd-prepare-") for line in said if line.startswith("hcd-prepare-"))


def test_a_stratified_part_of_a_folder_with_thin_kernels(data, tmp_path):
    experiment = load_experiment("smoke", KNOBS)
    said: list[str] = []
    out = tmp_path / "thin"
    [summary] = rehearsal.smoke(experiment, data=data, tiles=50, out=out, thin=True, owner="someone", say=said.append)
    assert len(summary.table) == 50
    labels = pd.read_csv(data / "train_labels.csv")
    assert abs(summary.table["label"].mean() - labels["label"].mean()) < 0.02
    sample = pd.read_csv(next(out.glob("part-*")) / "sample_submission.csv")
    submission = pd.read_csv(next(out.glob("hcd-*-inference/working/submission.csv")))
    assert submission["id"].tolist() == sample["id"].tolist()
    script = next(out.glob("build/kernels/hcd-*-fold-0/*.py")).read_text()
    assert "DIGESTS" in script
    assert "FILES" not in script


def test_a_kernel_that_fails_is_shown_with_the_end_of_its_log(data, tmp_path):
    said: list[str] = []
    with pytest.raises(LaunchError) as failure:
        rehearsal.local(
            [load_experiment("smoke", [*KNOBS, "weights=absent.safetensors"])],
            data=data,
            out=tmp_path / "out",
            owner="someone",
            say=said.append,
        )
    assert "ended with exit code 1" in str(failure.value)
    assert "the file absent.safetensors is not among the inputs" in str(failure.value)
    assert any("prepare" in line and "done" in line for line in said)


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(LaunchError, match="build_kernel.py download"):
        rehearsal.local([load_experiment("smoke")], data=tmp_path / "no", out=tmp_path / "out", owner="someone", say=print)
    with pytest.raises(LaunchError, match="no folder in competition layout"):
        rehearsal.smoke(load_experiment("smoke"), data=tmp_path, tiles=None, out=tmp_path / "out", owner="someone", say=print)
