"""The command `doctor` reports every check, whatever becomes of the others, and shows no secret."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_account import EXPERIMENT, KEY, TOKEN, FakeKaggle, check, write

from launch import ROOT
from launch.doctor import account as account_module
from launch.doctor import command
from launch.doctor.command import doctor, print_findings
from launch.doctor.environment_check import GPU, RESULTS
from launch.doctor.finding import OK, PROBLEM, WARNING, Finding, ok, problem
from launch.errors import LaunchError
from launch.kaggle_api.errors import CredentialsError, NoResponseError, RefusedError, UnexpectedResponseError
from launch.kaggle_api.types import Quota


def test_on_a_complete_account_there_is_no_problem(home, root):
    findings = check(FakeKaggle(), home, root)
    levels = {name: finding.level for name, finding in findings.items() if finding.level != OK}
    assert levels == {"phone": WARNING}
    assert set(findings) >= {
        "credentials",
        "owner",
        "rules",
        "quota",
        "submissions",
        "slugs",
        "scripts",
        "clock",
        "disk",
        "Python",
    }


SECRETS = [TOKEN, KEY, "KGAT_" + "env0" * 6, "e" * 32, "refresh-me-not"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("reached", [False, True])
def test_no_secret_is_shown(terminal, reached, home, root, monkeypatch, capsys, caplog):
    """Secrets are in every place of credentials, and every error quotes them."""
    caplog.set_level("INFO", logger="launch")
    write(home / ".kaggle" / "access_token.txt", TOKEN)
    write(home / ".kaggle" / "kaggle.json", json.dumps({"username": "alice", "key": KEY}))
    write(
        home / ".kaggle" / "credentials.json",
        json.dumps({"refresh_token": SECRETS[4], "access_token": TOKEN}),
    )
    environment = {
        "HOME": str(home),
        "KAGGLE_API_TOKEN": SECRETS[2],
        "KAGGLE_KEY": SECRETS[3],
        "KAGGLE_TOKEN": SECRETS[3],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = " ".join(SECRETS)
    kaggle = FakeKaggle(
        has_entered=RefusedError(text),
        submissions=NoResponseError(text),
        quota=UnexpectedResponseError(text),
        status=RuntimeError(text),
        pull=LaunchError(text),
    )

    def connect(retry_policy: Any) -> Any:
        if reached:
            return kaggle
        raise NoResponseError(text)

    monkeypatch.setattr(command, "connect", connect)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with pytest.raises(LaunchError) as stopped:
        doctor([EXPERIMENT], check_kaggle=True, folder=home / "check")
    printed = capsys.readouterr()
    everything = "\n".join([caplog.text, printed.out, printed.err, str(stopped.value)])
    assert [secret for secret in SECRETS if secret in everything] == []
    assert "credentials" in everything


def test_without_a_network_the_other_checks_are_reported(home, root, kaggles_clock):
    kaggles_clock.error = ConnectionError("no network")
    silence = NoResponseError("no response from Kaggle (ConnectionError)")
    kaggle = FakeKaggle(
        **dict.fromkeys(("has_entered", "submissions", "quota", "status", "pull", "dataset"), silence)
    )
    findings = check(kaggle, home, root)
    assert [name for name, finding in findings.items() if finding.level == PROBLEM] == ["connection"]
    assert findings["clock"].level == WARNING
    assert findings["scripts"].level == OK
    assert len(kaggle.requested) == 2  # so that the user does not wait for each
    unconnected = check(None, home, root, connect_error=NoResponseError("no response from Kaggle"))
    assert [name for name, finding in unconnected.items() if finding.level == PROBLEM] == ["connection"]


@pytest.mark.parametrize("request_name", ["has_entered", "submissions", "quota", "status", "pull", "dataset"])
def test_an_unexpected_exception_in_a_check_does_not_stop_the_others(request_name, home, root):
    whole = check(FakeKaggle(), home, root)
    findings = check(FakeKaggle(**{request_name: ZeroDivisionError("surprise")}), home, root)
    varying = ("clock", "disk")  # they change by themselves
    changed = {name for name in whole if findings[name] != whole[name] and name not in varying}
    assert len(changed) == 1
    [name] = changed
    assert findings[name].level == WARNING
    assert "ZeroDivisionError" in findings[name].text


@pytest.fixture
def account(home, monkeypatch):
    """The account that the command connects to; the owner in the metadata is alice, too."""
    kaggle = FakeKaggle()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(command, "connect", lambda retry_policy: kaggle)
    monkeypatch.setattr(account_module, "owner_of", lambda base: "alice")
    return kaggle


def test_the_command_lists_the_problems(account, tmp_path, capsys):
    account.responses |= {"has_entered": False, "quota": Quota(used=1.0, allowed=1.5, refresh=None)}
    with pytest.raises(LaunchError) as stopped:
        doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check")
    assert [line.split(":")[0].strip(" -") for line in str(stopped.value).splitlines()[1:]] == [
        "rules",
        "quota",
    ]
    printed = capsys.readouterr().out
    assert re.search(r"^problem rules: .*\n        Accept the rules", printed, flags=re.MULTILINE)
    assert re.search(r"^ok      credentials: ", printed, flags=re.MULTILINE)
    assert re.search(r"^warning environment check: ", printed, flags=re.MULTILINE)


def test_the_command_shows_kept_results_with_their_date(account, tmp_path, capsys, caplog):
    caplog.set_level("INFO", logger="launch")
    problems = {GPU: ["ended as ERROR", "See its log"]}
    results = {"format": 2, "date": "2026-11-24T10:00:00+00:00", "problems": {}, "records": {}}
    write(tmp_path / "check" / RESULTS, json.dumps(results))
    doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check")
    assert "24 Nov 2026" in caplog.text
    assert capsys.readouterr().out.splitlines()[-1].startswith("no problems")
    write(tmp_path / "check" / RESULTS, json.dumps({**results, "problems": problems}))
    with pytest.raises(LaunchError, match="ended as ERROR"):
        doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check")


def test_environment_checks_are_pushed_only_with_working_credentials(account, tmp_path, monkeypatch):
    pushed: list[str] = []

    def run_environment_checks(kaggle: Any, folder: Path, *, timeouts: Any) -> list[Finding]:
        pushed.append(kaggle.user)
        return [problem("environment check gpu: GPUs", "torch sees no GPU", "Verify your phone number")]

    monkeypatch.setattr(command, "run_environment_checks", run_environment_checks)
    with pytest.raises(LaunchError, match="torch sees no GPU"):
        doctor([EXPERIMENT], check_kaggle=True, folder=tmp_path)
    assert pushed == ["alice"]
    account.responses["has_entered"] = CredentialsError("HTTP 401")
    with pytest.raises(LaunchError, match="not pushed"):
        doctor([EXPERIMENT], check_kaggle=True, folder=tmp_path)
    assert pushed == ["alice"]


def test_a_terminal_shows_the_same_words(monkeypatch, capsys):
    findings = [
        problem("rules", "not accepted", "Accept [them] in the browser."),
        ok("disk", "79 GB free"),
    ]
    print_findings(findings)
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_findings(findings)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in shown.splitlines()] == plain.splitlines()
    assert len(plain.splitlines()) == 3


@pytest.mark.slow
def test_a_killed_environment_check_is_resumed_and_its_results_are_shown(tmp_path):
    """The command as a user runs it, with the real client, an empty home folder, and kernels that are run."""
    from launch.emulator.account import Settings
    from launch.emulator.kaggle import EmulatedKaggle
    from launch.emulator.server import Server
    from launch.emulator.synthetic_tiles import write_competition

    checkout, home = tmp_path / "checkout", tmp_path / "home"
    home.mkdir()
    for name in ("launch", "lib", "kernels", "experiments"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("build_kernel.py", "kernel-metadata.json", "dataset-metadata.json"):
        (checkout / name).write_text((ROOT / name).read_text().replace("your-kaggle-username", "alice"))
    write_competition(tmp_path / "data", labelled=60, unlabelled=10, seed=3)
    (tmp_path / "held-back.csv").write_text((tmp_path / "data" / "sample_submission.csv").read_text())
    emulator = EmulatedKaggle(
        tmp_path / "kaggle",
        data=tmp_path / "data",
        labels=tmp_path / "held-back.csv",
        owner="alice",
        token=TOKEN,
        settings=Settings(status_delay=0.0),
    )

    def start(*options: str) -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), **server.environment()}
        arguments = [sys.executable, "build_kernel.py", "doctor", "smoke", *options]
        return subprocess.Popen(
            arguments,
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pushes() -> list[str]:
        return [change["slug"] for change in emulator.account.changes() if change["method"] == "SaveKernel"]

    with Server(emulator) as server:
        first = start()
        checked, _ = first.communicate(timeout=120)
        assert first.returncode == 0, checked
        assert (
            "ok      credentials: access token in the environment variable KAGGLE_API_TOKEN, accepted"
            in checked
        )
        assert "ok      owner: alice" in checked
        assert "ok      clock: within" in checked
        assert "ok      rules: " in checked
        assert pushes() == []

        killed = start("--check-kaggle")
        deadline = time.monotonic() + 120
        while len(pushes()) < 2:
            assert killed.poll() is None and time.monotonic() < deadline, "the kernels were not pushed"
            time.sleep(0.05)
        killed.kill()
        killed.communicate()

        second = start("--check-kaggle")
        printed, _ = second.communicate(timeout=240)
        assert sorted(pushes()) == [
            "hcd-environment-check-cpu",
            "hcd-environment-check-gpu",
            "hcd-environment-check-mount",
        ]
        results = json.loads((checkout / "runs" / "environment-check" / "emulator" / RESULTS).read_text())
        assert results["problems"] == {}
        assert sorted(results["records"]) == [
            "hcd-environment-check-cpu",
            "hcd-environment-check-gpu",
            "hcd-environment-check-mount",
        ]
        assert re.search(
            r"^ok      environment check mount: mounted output: mounted at notebooks/alice/\S+-cpu, complete",
            printed,
            re.MULTILINE,
        )
        assert re.search(r"^ok      environment check mount: competition: ", printed, re.MULTILINE)
        assert re.search(r"^warning environment check cpu: place: rehearsal", printed, re.MULTILINE)

        again = start()
        kept, _ = again.communicate(timeout=120)
        assert "environment check mount: mounted output: mounted at" in kept
        assert len(pushes()) == 3
    assert TOKEN not in checked + printed + kept
