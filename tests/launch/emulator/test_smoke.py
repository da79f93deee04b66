"""Whole campaigns with real kernels: smoke through the emulated Kaggle, local without one; they agree to the last digit."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from launch.campaign.ledger import campaign_lock, read_ledger
from launch.emulator import smoke as rehearsal
from launch.emulator.synthetic_tiles import write_competition
from launch.errors import LaunchError
from launch.local import local
from launch.plan import load_experiment
from lib.search_space import search_from_dict

ROOT = Path(__file__).resolve().parents[3]
KNOBS = [
    "weights=none",
    "epochs=2",
    "warmup_epochs=0",
    "input_size=32",
    "num_folds=2",
    "tta_views=1",
    "stain_groups=6",
    "batch_size=16",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("competition") / "data"
    write_competition(folder, labelled=60, unlabelled=12, seed=5)
    return folder


def outputs(run: Path) -> dict[str, str]:
    """SHA-1 of every file the kernels left, by kernel and name, less run.json, which holds times and push ids, and the report,
    which tells of both and of the submission."""
    return {
        f"{working.relative_to(run).parts[0]}/{path.relative_to(working)}": hashlib.sha1(
            path.read_bytes()
        ).hexdigest()
        for working in sorted(run.glob("hcd-*/**/working"))
        for path in sorted(working.rglob("*"))
        if path.is_file() and path.name != "run.json" and "hcd-report" not in path.parts
    }


def runs_in_jupyter(campaign: Path, pooled: float, scratch: Path) -> None:
    """The notebook runs from top to bottom beside the outputs that were fetched: no Kaggle, no repository, no variable set."""
    moved = shutil.copytree(
        campaign, scratch / "somewhere else", ignore=shutil.ignore_patterns("build", "pushes", "hcd-report")
    )
    execute = "from nbclient.cli import main\nmain()"  # what `jupyter execute` runs
    command = [sys.executable, "-c", execute, "report.ipynb", "--output=executed"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch)}
    done = subprocess.run(
        command, cwd=moved, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    executed = json.loads((moved / "executed.ipynb").read_text())
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    shown = "".join(
        "".join(output["data"]["text/html"])
        for cell in cells
        for output in cell["outputs"]
        if "data" in output
    )
    assert f"pooled out-of-fold AUC of {pooled:.4f}" in shown and shown.count("<img") > 10
    page = (moved / "report.html").read_text()
    assert f"pooled out-of-fold AUC of {pooled:.4f}" in page
    numbers, before = (
        json.loads((place / "results.json").read_text())
        for place in (moved, campaign / "outputs" / "hcd-report")
    )
    assert numbers == before | {"place": "local"}


def test_local_equals_smoke_to_the_last_digit_and_nothing_is_done_twice_or_lost(data, tmp_path, capsys):
    experiment = load_experiment("smoke", KNOBS)
    said: list[str] = []
    out = tmp_path / "smoke"
    result = rehearsal.smoke([experiment], data=data, tiles=50, out=out, owner="someone", say=said.append)
    [smoked] = result.summaries
    printed = capsys.readouterr().out
    assert f"pooled out-of-fold AUC {smoked.pooled:.4f} on n = 50 tiles" in printed
    assert "accepted by the emulated Kaggle" in printed  # nobody holds the labels of this folder's test tiles
    assert result.submission is not None and result.submission.state == "scored"
    part = next(path for path in out.glob("part-*") if path.is_dir())
    assert abs(smoked.table["label"].mean() - pd.read_csv(data / "train_labels.csv")["label"].mean()) < 0.02
    sample = pd.read_csv(part / "sample_submission.csv")
    submission = pd.read_csv(next(out.glob("campaign/outputs/hcd-*-inference/submission.csv")))
    assert submission["id"].tolist() == sample["id"].tolist()
    assert f"submission.csv ({len(sample)} tiles, matches sample_submission.csv)" in printed

    part = shutil.copytree(part, tmp_path / "part")
    [trained] = local([experiment], data=part, out=tmp_path / "local", owner="someone", say=said.append)
    assert trained.pooled == smoked.pooled
    assert outputs(out / "kaggle" / "kernels") == outputs(tmp_path / "local")
    assert len(outputs(tmp_path / "local")) > 15
    assert f"report: {tmp_path / 'local' / 'hcd-report' / 'working' / 'report.html'}" in said
    runs_in_jupyter(out / "campaign", trained.pooled, tmp_path)
    not_done_twice(experiment, trained.pooled, data=part, out=tmp_path / "local")
    prepared_data_serve_another_config(data=part, out=tmp_path / "local")
    a_finished_training_is_kept_when_the_data_change(experiment, data=part, out=tmp_path / "local")


def not_done_twice(experiment, pooled, *, data, out):
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in out.glob("hcd-*/working/*")}
    [again] = local([experiment], data=data, out=out, owner="someone", say=said.append)
    assert again.pooled == pooled
    assert sum("finished before" in line for line in said) == 5
    assert not any("started" in line for line in said)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("hcd-*/working/*")}


def prepared_data_serve_another_config(*, data, out):
    """One whose fold fails at once, and is shown with the end of its log."""
    said: list[str] = []
    other = load_experiment("smoke", [*KNOBS[1:], "weights=absent.safetensors"])
    with pytest.raises(LaunchError) as failure:
        local([other], data=data, out=out, owner="someone", say=said.append)
    assert "ended with exit code 1" in str(failure.value)
    assert "the file absent.safetensors is not among the inputs" in str(failure.value)
    [line] = [line for line in said if "finished before" in line]
    assert line.startswith("hcd-prepare-")
    assert next(out.glob("hcd-prepare-*/working/run.json")).is_file()  # the failure takes nothing with it


def a_finished_training_is_kept_when_the_data_change(experiment, *, data, out):
    said: list[str] = []
    [fold] = [path.parent for path in out.glob("hcd-*-fold-0/working/*.safetensors")]
    trained = {path.name: path.read_bytes() for path in fold.glob("*.safetensors")}
    labels = data / "train_labels.csv"
    lines = labels.read_text().splitlines()
    lines[1] = lines[1][:-1] + ("1" if lines[1].endswith("0") else "0")
    labels.write_text("\n".join(lines) + "\n")
    local([experiment], data=data, out=out, owner="someone", say=said.append)
    assert trained
    assert {
        path.name: path.read_bytes() for path in (fold.parent / "earlier").glob("*.safetensors")
    } == trained
    assert any("that output is kept in" in line for line in said)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_in(folder: Path) -> list[int]:
    """Those whose working directory lies in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.append(int(entry.name))
    return found


def started(out: Path) -> subprocess.Popen[str]:
    """The command line's rehearsal on drawn tiles, in a process group of its own."""
    command = [sys.executable, "build_kernel.py", "smoke", "--tiles", "60", "--out", str(out)]
    return subprocess.Popen(
        command + [word for knob in KNOBS for word in ("--set", knob)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores interrupts, and so do its children: these tests may be such.
        preexec_fn=_interruptible,
    )


def ctrl_c_twice_leaves_nothing_at_work(out):
    process = started(out)
    assert process.stdout is not None
    while "pushed, version 1" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    time.sleep(0.5)
    for _ in range(2):  # as a person does who does not believe the first one
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "goes on from here" in said or process.returncode == -signal.SIGINT
    if sys.platform == "linux":
        deadline = time.monotonic() + 20
        while processes_in(out) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes_in(out)


def test_interrupted_twice_the_same_command_ends_in_a_score_and_thin_kernels_reach_the_same(tmp_path):
    out = tmp_path / "run"
    ctrl_c_twice_leaves_nothing_at_work(out)
    first = read_ledger(out / "campaign")
    assert first is not None
    again = started(out)
    printed, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    ledger = read_ledger(out / "campaign")
    assert ledger is not None and ledger.id == first.id  # what was interrupted goes on
    [entry] = ledger.submissions
    assert entry.public is not None and 0 <= entry.public <= 1
    assert f"scored by the emulated Kaggle: AUC public {entry.public:.4f}" in printed
    record = json.loads((out / "campaign" / "leaderboard.json").read_text())
    assert record["scored_by"] == "the emulated Kaggle"
    assert record["submission"]["public_auc"] == entry.public
    assert len(record["kernels"]) == 4
    requests = [json.loads(line) for line in (out / "campaign" / "requests.jsonl").read_text().splitlines()]
    assert {"CreateDataset", "SaveKernel", "CreateSubmission"} <= {each["method"] for each in requests}
    held_back = pd.read_csv(next(out.glob("drawn-*.held-back.csv")))
    submitted = next(out.glob("campaign/outputs/hcd-*-inference/submission.csv")).read_bytes()
    assert set(held_back["id"]) == set(pd.read_csv(io.BytesIO(submitted))["id"])

    page = next(out.glob("campaign/outputs/hcd-report/report.html")).read_text()
    assert "Its tiles were drawn by the project" in page and "This is a rehearsal" in page

    # What came to its end starts anew, here with kernels that take the library from the dataset: they compute the same.
    experiment = load_experiment("smoke", KNOBS)
    result = rehearsal.smoke(
        [experiment], data=None, tiles=60, out=out, thin=True, owner="someone", say=print
    )
    assert result.ledger.id != ledger.id
    assert next(out.glob("campaign/outputs/hcd-*-inference/submission.csv")).read_bytes() == submitted
    script = next(out.glob("kaggle/kernels/hcd-*-fold-0/v1/script.py")).read_text()
    assert "DIGESTS" in script
    assert "FILES" not in script


def test_a_search_is_rehearsed_alone_and_local_goes_on_with_another_space(data, tmp_path, capsys):
    knobs = [*KNOBS, "ddp=false"]
    search = search_from_dict({"method": "grid", "space": {"learning_rate": [4e-3, 1e-3]}}, name="two")
    experiment, out = load_experiment("smoke", knobs), tmp_path / "smoke"
    result = rehearsal.smoke(
        [experiment], data=data, tiles=None, out=out, search=search, owner="someone", say=print
    )
    assert sorted(entry.kind for entry in result.ledger.kernels.values() if entry.output) == [
        "prepare",
        "search",
    ]
    printed = capsys.readouterr().out
    assert "search two over smoke-" in printed and "the winner, ready to run" in printed
    ranking = pd.read_csv(next(out.glob("campaign/outputs/*-search/search.csv")))
    assert ranking["status"].tolist() == ["finished"] * 2 and ranking["auc"].is_monotonic_decreasing
    log = next(out.glob("campaign/logs/*-search.log")).read_text()
    assert "2 at a time" in log  # two processes stand in for two cards
    # The winner is an experiment that can be run.
    folder = tmp_path / "experiments"
    folder.mkdir()
    winner = next(out.glob("campaign/outputs/*-search/winner.toml"))
    (folder / "won.toml").write_text(winner.read_text())
    assert load_experiment("won", root=tmp_path).config.learning_rate == ranking["learning_rate"][0]

    # On this machine without a Kaggle, by the same kernel; another space runs what is new in it.
    one = search_from_dict({"method": "grid", "space": {"learning_rate": [4e-3]}}, name="one")
    said: list[str] = []
    assert (
        local([experiment], data=data, out=tmp_path / "out", search=one, owner="someone", say=said.append)
        == []
    )
    assert [line for line in said if "started" in line][-1].endswith("-search: started")
    local([experiment], data=data, out=tmp_path / "out", search=search, owner="someone", say=said.append)
    log = next((tmp_path / "out").glob("*-search/log.txt")).read_text()
    assert log.count("not run again") == 1 and log.count(": started on") == 1
    again = pd.read_csv(next((tmp_path / "out").glob("*-search/working/search.csv")))
    assert again[["trial", "auc"]].equals(ranking[["trial", "auc"]])


def test_two_rehearsals_in_one_folder_are_kept_apart(data, tmp_path):
    with (
        campaign_lock(tmp_path / "out", name="rehearsal.lock"),
        pytest.raises(LaunchError, match="is at work in"),
    ):
        rehearsal.smoke(
            [load_experiment("smoke", KNOBS)],
            data=data,
            tiles=None,
            out=tmp_path / "out",
            owner="someone",
            say=print,
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rehearsal.lock"]


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(LaunchError, match="build_kernel.py download"):
        local(
            [load_experiment("smoke")], data=tmp_path / "no", out=tmp_path / "out", owner="someone", say=print
        )
    with pytest.raises(LaunchError, match="no folder in competition layout"):
        rehearsal.smoke(
            [load_experiment("smoke")],
            data=tmp_path,
            tiles=None,
            out=tmp_path / "out",
            owner="someone",
            say=print,
        )
