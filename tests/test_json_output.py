"""Commands with --json: one document on standard output, with the keys that docs/json.md lists."""

import json
from pathlib import Path

import pytest
from json_keys import compare_keys, documented_keys

from launch.campaign.ledger import DONE, PUSHED, KernelEntry, Output, Push, SubmissionEntry, new_ledger
from launch.campaign.spec import CampaignSpec
from launch.campaign.waits import stamp
from launch.cli import command_line, main
from launch.kaggle_api.errors import NoResponseError
from launch.kaggle_api.types import RUNNING, Quota, RunStatus
from lib.config import Config


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[dict, str]:
    """The document of a command, and what it printed to standard error."""
    assert command_line([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_every_command_with_the_option_is_documented():
    commands = {
        name for name, command in main.commands.items() if "as_json" in {each.name for each in command.params}
    }
    assert commands == {"status", "experiments", "options", "doctor", "report"}
    assert all(documented_keys(name) for name in commands)


def test_experiments_and_options(capsys):
    document, _ = printed(capsys, "experiments")
    compare_keys("experiments", document)
    assert {"resnet34", "ensemble"} <= {entry["name"] for entry in document["experiments"]}
    document, _ = printed(capsys, "options")
    compare_keys("options", document)
    assert {entry["name"]: entry["default"] for entry in document["options"]} == Config().to_dict()


class Kaggle:
    """An account on which one kernel runs, and one gives no answer."""

    def status(self, slug: str) -> RunStatus:
        if slug == "hcd-silent":
            raise NoResponseError("no response")
        return RunStatus(RUNNING)

    def quota(self) -> Quota:
        return Quota(1.0, 30.0, None)


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """A campaign with a kernel in each kind of state, and an account that is reached."""
    monkeypatch.setattr("launch.campaign.spec.CAMPAIGNS", tmp_path)
    monkeypatch.delenv("KAGGLE_API_ENVIRONMENT", raising=False)
    monkeypatch.setattr("launch.kaggle_api.client.connect", Kaggle)
    made = new_ledger(tmp_path / "one", campaign="one", spec=CampaignSpec(owner="alice"))
    values = {"push_id": "p", "bundle_id": "b", "identity": "i"}
    pushed = Push(**values, limit=1.0, state=PUSHED, version=3, pushed_at=stamp(), url="https://x")
    ended = Push(**values, limit=1.0, state=DONE, version=1, pushed_at=stamp(), ended_at=stamp())
    output = Output(**values, key="k", seconds=5.0, auc=0.9, version=1)
    made.kernels = {
        "hcd-new": KernelEntry(kind="weights"),
        "hcd-runs": KernelEntry(kind="train", pushes=[pushed]),
        "hcd-silent": KernelEntry(kind="train", pushes=[pushed]),
        "hcd-done": KernelEntry(kind="train", pushes=[ended], output=output),
    }
    made.submissions = [SubmissionEntry(sha256="s", message="m", state="scored", ref=7, public=0.9)]
    made.save()
    return made


def test_status(ledger, capsys):
    document, err = printed(capsys, "status")
    compare_keys("status", document)
    assert err == ""
    rows = {row["slug"]: row for row in document["kernels"]}
    assert {slug: row["state"] for slug, row in rows.items()} == {
        "hcd-new": "waiting",
        "hcd-runs": "pushed",
        "hcd-silent": "pushed",
        "hcd-done": "done",
    }
    assert (rows["hcd-runs"]["on_kaggle"], rows["hcd-silent"]["problem"]) == ("running", "no response")
    assert (rows["hcd-done"]["auc"], document["quota"]["left_hours"], document["has_open_pushes"]) == (
        0.9,
        29.0,
        True,
    )
    assert document["service"] == "Kaggle"


def test_a_command_that_fails_prints_no_document(ledger, capsys):
    assert command_line(["status", "--campaign", "two", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == "error: there is no campaign two; there are: one\n"


def test_doctor_ends_as_without_the_option(tmp_path, monkeypatch, capsys):
    """A user without credentials: problems, so exit code 1, and the messages on standard error."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME", "KAGGLE_API_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("launch.doctor.command.CHECK_FOLDER", tmp_path / "check")
    monkeypatch.setattr(
        "requests.head", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network"))
    )
    document, err = printed(capsys, "doctor", "smoke", code=1)
    compare_keys("doctor", document)
    levels = {finding["check"]: finding["level"] for finding in document["findings"]}
    assert levels["credentials"] == "problem" and document["problems"] >= 1
    assert document["environment_check"]["findings"][0]["level"] == "warning"
    assert err.startswith("checking credentials") and "error: " in err


def test_report(tmp_path, monkeypatch, capsys):
    """The keys of the numbers are compared in tests/lib/report, where there is a report."""
    (tmp_path / "results.json").write_text('{"experiments": {"x": {"auc": 0.9}}}')
    page: Path = tmp_path / "report.html"
    monkeypatch.setattr("launch.campaign.ledger.find_campaign", lambda name: tmp_path)
    monkeypatch.setattr("launch.campaign.report.make_report", lambda folder: page)
    document, _ = printed(capsys, "report")
    assert document == {"format": 1, "page": str(page), "numbers": {"experiments": {"x": {"auc": 0.9}}}}
