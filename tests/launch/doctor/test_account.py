"""Checks of the Kaggle account find each problem and name its remedy."""

import json
import re
from datetime import UTC, datetime

import pytest
from fake_account import EXPERIMENT, PLACES, FakeKaggle, check, write

from launch.doctor.environment_check import CPU, GPU, RESULTS
from launch.doctor.finding import OK, PROBLEM, WARNING
from launch.kaggle_api.errors import CredentialsError, NoResponseError
from launch.kaggle_api.types import (
    COMPLETE,
    RUNNING,
    DatasetState,
    PulledKernel,
    Quota,
    RunStatus,
    Submission,
)


def test_without_credentials_the_remedy_explains_each_step(tmp_path, root):
    finding = check(None, tmp_path, root)["credentials"]
    assert finding.level == PROBLEM
    for step in ("kaggle.com/settings/api", "~/.kaggle/access_token", "chmod 600", "phone number", "again"):
        assert step in finding.remedy


def test_a_refused_token_is_named_even_if_the_client_falls_back_to_a_key(home, root):
    write(home / ".kaggle" / "kaggle.json", PLACES["kaggle.json"][1])
    kaggle = FakeKaggle()
    kaggle.api.config_values["auth_method"] = "LEGACY_API_KEY"
    finding = check(kaggle, home, root)["credentials"]
    assert finding.level == PROBLEM
    assert "~/.kaggle/access_token is not accepted" in finding.text
    # The client sends the token in place of the key, so Kaggle refuses everything.
    kaggle.responses["has_entered"] = CredentialsError("Kaggle refused (HTTP 401)")
    assert check(kaggle, home, root)["credentials"] == finding
    assert "kaggle.json" in finding.text


def test_an_oauth_login_gets_a_warning(tmp_path, root):
    write(tmp_path / ".kaggle" / "credentials.json", PLACES["OAuth"][1])
    kaggle = FakeKaggle()
    kaggle.api.config_values["auth_method"] = "OAUTH"
    finding = check(kaggle, tmp_path, root)["credentials"]
    assert finding.level == WARNING
    assert "12 h" in finding.remedy


def test_refused_credentials_are_a_problem_and_end_the_requests(home, root):
    kaggle = FakeKaggle(has_entered=CredentialsError("Kaggle refused (HTTP 401)"))
    findings = check(kaggle, home, root)
    assert findings["credentials"].level == PROBLEM
    assert "kaggle.com/settings/api" in findings["credentials"].remedy
    assert findings["slugs"].level == WARNING
    assert kaggle.requested == ["has_entered"]
    refused = check(
        None, home, root, connect_error=CredentialsError("Kaggle does not accept the credentials (HTTP 401).")
    )
    assert refused["credentials"].level == PROBLEM


def test_the_placeholder_is_a_warning_and_another_owner_is_a_problem(home, root):
    path = root / "kernel-metadata.json"
    mine = path.read_text()
    path.write_text(mine.replace("alice", "your-kaggle-username"))
    finding = check(FakeKaggle(), home, root)["owner"]
    assert finding.level == WARNING  # `run` pushes to the account of the credentials
    assert '"alice"' in finding.remedy
    path.write_text(mine.replace("alice", "bob"))
    finding = check(FakeKaggle(), home, root)["owner"]
    assert finding.level == PROBLEM
    assert "bob" in finding.text
    path.write_text(mine.replace("alice", "Alice"))
    assert check(FakeKaggle(), home, root)["owner"].level == OK


def test_rules_that_were_not_accepted_are_a_problem(home, root):
    finding = check(FakeKaggle(has_entered=False), home, root)["rules"]
    assert finding.level == PROBLEM
    assert "kaggle.com/competitions/histopathologic-cancer-detection/rules" in finding.remedy


@pytest.mark.parametrize(
    ("left", "allowed", "level", "word"),
    [(8.0, 30.0, OK, "7.8 h"), (3.0, 30.0, WARNING, "from "), (1.0, 1.5, PROBLEM, "longer than a week")],
)
def test_the_quota_is_compared_with_the_expected_cost(left, allowed, level, word, home, root):
    """Three folds of 2 h, and an inference that is as much slower than its estimate as they are."""
    quota = Quota(used=allowed - left, allowed=allowed, refresh=datetime(2030, 1, 5, tzinfo=UTC))
    finding = check(FakeKaggle(quota=quota), home, root)["quota"]
    assert finding.level == level
    assert re.search(word, finding.text + finding.remedy)
    assert "05 Jan" in finding.text
    assert check(FakeKaggle(quota=None), home, root)["quota"].level == WARNING


def test_slugs_that_are_used_by_something_else_are_a_problem(home, root):
    taken = FakeKaggle(dataset=lambda slug: DatasetState("ready", 1) if slug == "hcd-prepare" else None)
    finding = check(taken, home, root)["slugs"]
    assert finding.level == PROBLEM
    assert "dataset hcd-prepare" in finding.text
    pulled = PulledKernel("", 1, "", False)
    taken = FakeKaggle(pull=lambda slug: pulled if slug == "hcd-lib" else None)
    finding = check(taken, home, root)["slugs"]
    assert finding.level == PROBLEM
    assert "kernel hcd-lib" in finding.text


def test_a_running_kernel_and_an_empty_kernel_get_a_warning(home, root):
    slug = f"hcd-{EXPERIMENT.name}-fold-1"
    kaggle = FakeKaggle(status=lambda requested: RunStatus(RUNNING if requested == slug else COMPLETE))
    finding = check(kaggle, home, root)["slugs"]
    assert finding.level == WARNING
    assert f"{slug} is RUNNING" in finding.text
    kaggle = FakeKaggle(pull=lambda requested: NoResponseError("HTTP 500") if requested == slug else None)
    finding = check(kaggle, home, root)["slugs"]
    assert finding.level == WARNING
    assert slug in finding.text
    assert f"kaggle kernels delete alice/{slug} -y" in finding.remedy


def test_submissions_are_counted(home, root):
    entry = Submission(1, "m", "COMPLETE", 0.9612, 0.95, "", "")
    assert "0.9612" in check(FakeKaggle(submissions=[entry]), home, root)["submissions"].text


def test_environment_checks_prove_the_phone_number(home, root):
    folder = home / "check"
    gpus, internet = [{"name": "Tesla T4"}], {"huggingface": "reached"}
    for slug, scores in ((GPU, {"gpus": gpus}), (CPU, {"internet": internet})):
        results = {
            "format": 2,
            "date": "2026-11-24T10:00:00+00:00",
            "problems": {},
            "records": {slug: {"scores": scores}},
        }
        write(folder / RESULTS, json.dumps(results))
        finding = check(FakeKaggle(), home, root, folder=folder)["phone"]
        assert finding.level == OK
        assert "24 Nov 2026" in finding.text
    results["records"] = {GPU: {"scores": {"gpus": []}}}
    write(folder / RESULTS, json.dumps(results))
    assert check(FakeKaggle(), home, root, folder=folder)["phone"].level == WARNING
