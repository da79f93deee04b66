"""`doctor --check-gated` says which gated encoders are open to the user's token, against the emulated hub."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_account import FakeKaggle, check, write

from launch import ROOT
from launch.doctor.finding import OK, PROBLEM, WARNING, Finding
from launch.doctor.gated import check_gated_encoders
from launch.emulator.hub import Hub
from launch.experiments import Experiment
from lib.config import Config
from lib.model.hub_encoders import ENCODERS

LET_IN, OTHER = "hf_" + "a1b2" * 8, "hf_" + "c3d4" * 8
OPEN = {"MahmoodLab/UNI2-h", "bioptimus/H-optimus-1"}
GATED = {name for name, entry in ENCODERS.items() if entry.gated}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a hub that lets one token into two of the gated repositories."""
    gated = {name: ([LET_IN] if name in OPEN else []) for name in GATED}
    with Hub(tmp_path / "hub", encoders=[], fetched=None, gated=gated, tokens=[OTHER]) as served:
        yield {"HF_ENDPOINT": served.environment()["HF_ENDPOINT"]}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def experiment(repository: str) -> Experiment:
    return Experiment("mine", Config(backbone=f"hf-hub:{repository}", weights="timm"))


def texts(findings: list[Finding], level: str) -> list[str]:
    return [finding.text for finding in findings if finding.level == level]


def test_open_encoders_are_named_and_each_refused_one_has_a_remedy(hub, tmp_path):
    findings = check_gated_encoders([experiment("MahmoodLab/UNI2-h")], hub | {"HF_TOKEN": LET_IN}, tmp_path)
    [text] = texts(findings, OK)
    assert text.startswith("open to your token: ") and {*text.split(": ")[1].split(", ")} == OPEN
    refused = texts(findings, WARNING)
    assert {text.split(":")[0] for text in refused} == GATED - OPEN
    assert all("your token is not let in" in text for text in refused)
    assert all("accept the terms at" in finding.remedy for finding in findings if finding.level != OK)
    assert LET_IN not in json.dumps([[finding.text, finding.remedy] for finding in findings])


def test_a_refused_encoder_of_an_experiment_is_a_problem(hub, tmp_path):
    repository = "paige-ai/Virchow2"
    findings = check_gated_encoders([experiment(repository)], hub | {"HF_TOKEN": LET_IN}, tmp_path)
    assert texts(findings, PROBLEM) == [f"{repository}: your token is not let in"]
    assert repository not in " ".join(texts(findings, WARNING))


def test_without_a_token_the_remedy_begins_with_one(hub, tmp_path):
    findings = check_gated_encoders([experiment("MahmoodLab/UNI2-h")], hub, tmp_path)
    [finding] = [finding for finding in findings if finding.level == PROBLEM]
    assert "needs a token, and there is none on this machine" in finding.text
    assert finding.remedy.splitlines()[0].startswith("Make a token at ")
    assert not texts(findings, OK)


@pytest.mark.parametrize("place", [".cache/huggingface/token", "elsewhere/token", "named"])
def test_the_token_is_found_in_the_files_of_the_hubs_own_program(hub, tmp_path, place):
    write(tmp_path / place, OTHER if place == "named" else LET_IN + "\n")
    environment = {
        ".cache/huggingface/token": {},
        "elsewhere/token": {"HF_HOME": str(tmp_path / "elsewhere")},
        "named": {"HF_TOKEN_PATH": str(tmp_path / "named")},
    }[place]
    findings = check_gated_encoders([], hub | environment, tmp_path)
    assert bool(texts(findings, OK)) == (place != "named")


def test_a_token_that_the_hub_does_not_know_is_said_so(hub, tmp_path):
    findings = check_gated_encoders([], hub | {"HF_TOKEN": "hf_" + "0" * 30}, tmp_path)
    assert len(findings) == len(GATED)
    assert all("does not accept your token" in finding.text for finding in findings)


def test_without_a_network_one_request_is_sent_and_nothing_is_claimed(tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": LET_IN}
    begun = time.monotonic()
    [finding] = check_gated_encoders([experiment("MahmoodLab/UNI2-h")], environment, tmp_path)
    assert time.monotonic() - begun < 5
    assert finding.level == WARNING and "MahmoodLab/UNI2-h and those after it are unknown" in finding.text


def test_an_absent_repository_and_one_that_needs_no_token(hub, tmp_path):
    findings = check_gated_encoders([experiment("someone/absent")], hub | {"HF_TOKEN": LET_IN}, tmp_path)
    assert texts(findings, PROBLEM) == [
        "someone/absent: the hub has no such encoder, or hides it from your token"
    ]
    none = Experiment("other", Config(backbone="hf-hub:someone/absent", weights="none"))
    timm = Experiment("timm", Config(backbone="resnet18.tv_in1k"))
    assert not texts(check_gated_encoders([none, timm], hub, tmp_path), PROBLEM)


def test_doctor_calls_the_hub_only_on_request(hub, home, root):
    assert "gated encoders" not in check(FakeKaggle(), home, root)
    done = subprocess.run(
        [sys.executable, "build_kernel.py", "doctor", "resnet18", "--check-gated", "--json"],
        cwd=ROOT,
        env={**os.environ, **hub, "HOME": str(home), "HF_TOKEN": LET_IN, "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    findings = [entry for entry in json.loads(done.stdout)["findings"] if entry["check"] == "gated encoders"]
    assert {entry["level"] for entry in findings} == {OK, WARNING}
    assert len(findings) == 1 + len(GATED - OPEN)
