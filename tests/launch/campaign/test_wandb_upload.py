"""Histories that are sent to Weights & Biases: only with the key, each once. The service is not called."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.campaign import wandb_upload
from launch.campaign.wandb_upload import KEY, upload_histories


class ServiceError(Exception):
    """Stands for wandb.Error."""


class FakeRun:
    """Keeps what is logged."""

    def __init__(self, **options: Any) -> None:
        self.options, self.rows, self.summary, self.finished = options, [], {}, False

    def log(self, row: dict[str, Any], *, step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def run(tmp_path: Path) -> Path:
    kernels = [
        {"slug": f"hcd-x-fold-{fold}", "kind": "train", "fold": fold, "state": state}
        for fold, state in ((0, "done"), (1, "running"))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"format": 1, "kernels": kernels}))
    working = tmp_path / "hcd-x-fold-0" / "working"
    working.mkdir(parents=True)
    record = {"experiment": "x", "config": {"epochs": 2}, "scores": {"fold": {"auc": 0.9}}}
    (working / "run.json").write_text(json.dumps(record))
    lines = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "validation_auc": 0.875}]
    (working / "history-0-member-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_each_history_is_sent_once_and_again_after_a_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[FakeRun] = []
    failures = [ServiceError("no network")]

    def init(**options: Any) -> FakeRun:
        if failures:
            raise failures.pop()
        runs.append(FakeRun(**options))
        return runs[-1]

    fake = SimpleNamespace(init=init, Error=ServiceError)
    monkeypatch.setattr(wandb_upload.importlib, "import_module", lambda name: fake)
    monkeypatch.setenv(KEY, "a-key")
    assert upload_histories(run) == 0
    assert "was not sent: no network" in caplog.messages[-1]
    assert (upload_histories(run), upload_histories(run)) == (1, 0)
    [sent] = runs
    assert sent.options == {
        "project": wandb_upload.PROJECT,
        "group": "x",
        "name": "hcd-x-fold-0-member-1",
        "config": {"epochs": 2},
    }
    assert sent.rows == [(1, {"loss": 0.5}), (2, {"loss": 0.25, "validation_auc": 0.875})]
    assert sent.summary == {"fold_auc": 0.9} and sent.finished
    assert "a-key" not in caplog.text


def test_a_run_is_finished_when_its_upload_fails_and_a_linear_probe_has_steps(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[FakeRun] = []

    class BreakingRun(FakeRun):
        def log(self, row: dict[str, Any], *, step: int) -> None:
            if len(runs) == 1 and step == 2:
                raise ServiceError("the connection was lost")
            super().log(row, step=step)

    def init(**options: Any) -> FakeRun:
        assert all(earlier.finished for earlier in runs)  # wandb has one run at a time
        runs.append(BreakingRun(**options))
        return runs[-1]

    history = run / "hcd-x-fold-0" / "working" / "history-0-member-1.jsonl"
    history.write_text('{"penalty": 1.0, "loss": 0.5}\n{"penalty": 0.1, "loss": 0.4}\n')
    fake = SimpleNamespace(init=init, Error=ServiceError)
    monkeypatch.setattr(wandb_upload.importlib, "import_module", lambda name: fake)
    monkeypatch.setenv(KEY, "a-key")
    assert (upload_histories(run), upload_histories(run)) == (0, 1)
    assert runs[1].rows == [(1, {"penalty": 1.0, "loss": 0.5}), (2, {"penalty": 0.1, "loss": 0.4})]
    assert "fold_auc" not in runs[0].summary and runs[0].finished


def test_without_the_key_nothing_is_imported_and_without_the_package_it_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(wandb_upload.importlib, "import_module", absent)
    monkeypatch.delenv(KEY, raising=False)
    with caplog.at_level(logging.INFO):
        assert upload_histories(run) == 0
    assert not caplog.messages
    monkeypatch.setenv(KEY, "a-key")
    assert upload_histories(run) == 0
    assert "the package wandb is not installed" in caplog.messages[0]
