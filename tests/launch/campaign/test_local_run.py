"""Status, board and logs of a run of `local`."""

import fcntl
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from json_keys import compare_keys

from launch.campaign.board import StatusTable
from launch.campaign.local_run import read_statuses
from launch.cli import command_line
from launch.experiments import load_experiment
from launch.local import LocalRun
from launch.packaging.builder import build
from launch.sandbox import Outcome


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run with a kernel in each state: one was running when its process was killed, one still runs."""
    states = [("prepare", "prepare", -1, "done"), ("x-fold-0", "train", 0, "done")]
    states += [("x-fold-1", "train", 1, "running"), ("x-fold-2", "train", 2, "running")]
    states += [("x-inference", "inference", -1, "waiting")]
    kernels = [
        {"slug": f"hcd-{slug}", "kind": kind, "fold": fold, "state": state}
        for slug, kind, fold, state in states
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"format": 1, "kernels": kernels}))
    record = tmp_path / "hcd-x-fold-0" / "working" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"scores": {"fold": {"auc": 0.91234}}, "seconds": {"total": 12.5}}))
    for fold in (1, 2):
        place = tmp_path / f"hcd-x-fold-{fold}"
        place.mkdir()
        (place / "identity.json").touch()
        (place / "log.txt").write_text(
            "[ 1.0 s] fold 2, member 0: epoch 1 of 5, loss 0.3\n"
            "[ 9.0 s] fold 2, member 0: epoch 2 of 5: 8 of 20 tiles (40 %), 9 tiles/s, 0:03 left\n"
        )
    with (tmp_path / "hcd-x-fold-2" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def test_status_and_watch_tell_the_state_of_every_kernel(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_line(["status", "--local", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "hcd-prepare: done",
        "hcd-x-fold-0: done, AUC 0.9123",
        "hcd-x-fold-1: stopped",
        "hcd-x-fold-2: running, epoch 2 of 5, 40 %",
        "hcd-x-inference: waiting",
    ]

    def end(seconds: float) -> None:
        plan = run / "plan.json"
        plan.write_text(plan.read_text().replace("running", "done"))

    monkeypatch.setattr("launch.campaign.local_run.time.sleep", end)
    assert command_line(["watch", "--local", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("hcd-prepare: done") == 2 and "next status in 60 s" in printed


def test_status_as_json_holds_what_the_table_shows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["status", "--local", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    compare_keys("status --local", document)
    assert err == "" and document["is_running"] and document["folder"] == str(run)
    rows = {row["slug"]: row for row in document["kernels"]}
    states = {slug.removeprefix("hcd-"): row["state"] for slug, row in rows.items()}
    assert states == {
        "prepare": "done",
        "x-fold-0": "done",
        "x-fold-1": "stopped",
        "x-fold-2": "running",
        "x-inference": "waiting",
    }
    done, running, waiting = (rows[f"hcd-{slug}"] for slug in ("x-fold-0", "x-fold-2", "x-inference"))
    assert (done["auc"], done["seconds"], done["fold"], done["epoch"]) == (0.91234, 12.5, 0, None)
    assert (running["epoch"], running["epochs"], running["percent_of_epoch"]) == (2, 5, 40)
    begun = (run / "hcd-x-fold-2" / "identity.json").stat().st_mtime
    assert abs(datetime.fromisoformat(running["started_at"]).timestamp() - begun) <= 1
    assert Path(running["log"]).is_file()
    assert {name for name, value in waiting.items() if value is not None} == {"slug", "kind", "state"}
    assert rows["hcd-prepare"]["fold"] is None

    plan = run / "plan.json"
    plan.write_text(plan.read_text().replace("running", "done"))
    assert command_line(["status", "--local", str(run), "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["is_running"]
    assert command_line(["status", "--local", str(run / "absent"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "holds no run of `local`" in err


def test_the_table_has_no_quota(run: Path) -> None:
    from rich.console import Console

    with (run / "out").open("w") as out:
        console = Console(width=80, height=24, record=True, file=out)
        console.print(StatusTable("local run", read_statuses(run), None, emulated=False, has_quota=False))
    shown = console.export_text()
    assert "running, epoch 2 of 5, 40 %" in shown and "0.9123" in shown and "quota" not in shown
    [stopped] = [line for line in shown.splitlines() if "stopped" in line]
    assert stopped.split() == ["hcd-x-fold-1", "stopped"]  # since when is not known


@pytest.mark.parametrize("name", ["fold-1", "x-fold-1", "hcd-x-fold-1"])
def test_logs_are_printed_and_followed_to_their_end(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for follow in ([], ["--follow"]):
        assert command_line(["logs", name, "--local", str(run), *follow]) == 0
        assert "epoch 2 of 5: 8 of 20 tiles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logs", "fold-9"], "no kernel is called 'fold-9'; there are: prepare, x-fold-0, "),
        (["logs", "train"], "more than one kernel is called 'train'"),
        (["logs", "inference"], "hcd-x-inference has not started yet"),
    ],
)
def test_a_log_that_cannot_be_shown_is_told(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line([*arguments, "--local", str(run)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["status", "--local", str(tmp_path)]) == 1
    assert "holds no run of `local`" in capsys.readouterr().err


def test_local_keeps_the_state_of_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build([load_experiment("smoke", ["weights=none"])], out=tmp_path / "build", owner="me", folds=[0])
    seen: list[list[str]] = []
    run = LocalRun(tmp_path, built, tmp_path, {}, None)
    run.refresh = lambda: seen.append([status.state for status in read_statuses(tmp_path)])
    outcome = Outcome(0, 1.0, tmp_path / "log.txt")
    monkeypatch.setattr(LocalRun, "run_kernel", lambda *rest: outcome)
    monkeypatch.setattr(LocalRun, "check_outcome", lambda *rest: None)
    monkeypatch.setattr("launch.campaign.local_run.is_running", lambda place: True)
    run.run()
    assert seen[0] == ["waiting"] * 4 and seen[-1] == ["done"] * 4
    assert ["done", "running", "waiting", "waiting"] in seen
