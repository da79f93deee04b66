"""Checks of this machine find each problem: client, variables, scripts, clock."""

import pytest
from fake_account import FakeKaggle, check

from launch.doctor import machine
from launch.doctor.finding import OK, PROBLEM, WARNING
from launch.doctor.machine import check_client, check_environment


@pytest.mark.parametrize(("ahead", "level"), [(0.0, OK), (200.0, OK), (-400.0, PROBLEM), (3600.0, PROBLEM)])
def test_a_wrong_clock_is_a_problem(ahead, level, home, root, kaggles_clock):
    kaggles_clock.ahead = ahead
    finding = check(FakeKaggle(), home, root)["clock"]
    assert finding.level == level
    if level == PROBLEM:
        assert ("behind" if ahead > 0 else "ahead") in finding.text


@pytest.mark.parametrize(
    ("versions", "missing", "level", "word"),
    [
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37"}, (), OK, "2.2.4"),
        ({"kaggle": "2.2.5", "kagglesdk": "0.1.38"}, (), OK, "2.2.5"),
        ({"kaggle": "2.3.0", "kagglesdk": "0.2.0"}, (), WARNING, "2.3.0"),
        ({"kaggle": "1.7.4", "kagglesdk": "0.1.0"}, (), PROBLEM, "too old"),
        ({"kaggle": ""}, (), PROBLEM, "not installed"),
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37"}, ("six",), PROBLEM, "six"),
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37", "python-slugify": ""}, (), PROBLEM, "python-slugify"),
    ],
)
def test_unsuitable_installations_of_the_client_are_found(versions, missing, level, word, monkeypatch):
    installed, find = machine._installed_version, machine.find_spec
    monkeypatch.setattr(machine, "_installed_version", lambda name: versions.get(name, installed(name)))
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name in missing else find(name))
    findings = check_client()
    worst = next((finding for finding in findings if finding.level == PROBLEM), findings[0])
    assert worst.level == level
    assert word in worst.text + worst.remedy


def test_a_requirement_of_the_client_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["certifi>=2999.1.1"])
    finding = next(finding for finding in check_client() if "certifi" in finding.text)
    assert finding.level == WARNING
    assert "certifi>=2999.1.1 (installed: 20" in finding.text
    assert "make env" in finding.remedy


@pytest.mark.parametrize(
    ("environment", "level", "word"),
    [
        ({}, OK, "no variable"),
        ({"KAGGLE_API_ENVIRONMENT": "PROD"}, OK, "no variable"),
        (
            {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": "http://127.0.0.1:1"},
            WARNING,
            "this machine",
        ),
        ({"KAGGLE_API_ENVIRONMENT": "STAGING"}, PROBLEM, "STAGING"),
        ({"KAGGLE_API_ENVIRONMENT": "hunter2"}, PROBLEM, "does not know"),
        ({"HTTPS_PROXY": "http://user:hunter2@proxy:1"}, WARNING, "HTTPS_PROXY"),
        ({"KAGGLE_PROXY": "http://user:hunter2@proxy:1"}, WARNING, "does not use it"),
    ],
)
def test_variables_that_direct_the_client_elsewhere_are_found(environment, level, word):
    [finding] = check_environment(environment)
    assert finding.level == level
    assert word in finding.text
    assert "hunter2" not in finding.text + finding.remedy


def test_a_script_over_the_limit_is_a_problem(home, root, monkeypatch):
    monkeypatch.setattr("launch.packaging.bundle.SOURCE_LIMIT", 10_000)
    finding = check(FakeKaggle(), home, root)["scripts"]
    assert finding.level == PROBLEM
    assert "10,000" in finding.text


def test_a_build_that_breaks_a_rule_is_a_problem(home, root):
    path = root / "dataset-metadata.json"
    path.write_text(path.read_text().replace("HCD lib", "x"))
    finding = check(FakeKaggle(), home, root)["scripts"]
    assert finding.level == PROBLEM
    assert "title" in finding.text
