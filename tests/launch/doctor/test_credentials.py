"""Credentials on this machine are found in the order of the client, and mistakes are named."""

import json
import os
import subprocess
import sys

import pytest
from emulated_world import TOKEN as WORLD_TOKEN
from fake_account import KEY, PLACES, TOKEN, FakeKaggle, check, write

from launch import ROOT
from launch.doctor.credentials import find_credentials
from launch.doctor.finding import OK, PROBLEM
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import connect


@pytest.mark.parametrize("first", range(len(PLACES)))
def test_of_several_credentials_the_one_the_client_uses_is_named(first, tmp_path, root):
    environment: dict[str, str] = {}
    for place, text in list(PLACES.values())[first:]:
        if place.startswith("."):
            write(tmp_path / place, text)
        else:
            environment[place] = text
    place = list(PLACES.values())[first][0]
    credentials = find_credentials(environment, tmp_path)
    assert place in credentials[0].place
    assert len(credentials) == len(PLACES) - first
    findings = check(FakeKaggle(), tmp_path, root, environment=environment)
    assert ("several credentials" in findings) == (first < len(PLACES) - 1)


@pytest.mark.parametrize("first", range(4))
def test_the_order_of_credentials_is_that_of_the_client(first, tmp_path):
    """The package itself reports, for each combination, the credential that it would send."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    values = {}
    for number, (place, text) in enumerate(list(PLACES.values())[:4]):
        if number < first:
            continue
        values[place] = text.replace(KEY, f"{number}" * 32) if "json" in place else f"KGAT_{number}"
        if place.startswith("."):
            write(tmp_path / place, values[place])
        else:
            environment[place] = values[place]
    code = """
import kagglesdk.kaggle_env as sdk
from kaggle.api.kaggle_api_extended import KaggleApi
KaggleApi._introspect_token = lambda self, token: "alice"
api = KaggleApi()
api.authenticate()
print(api.config_values["auth_method"], api.config_values.get("token") or api.config_values["key"])
"""
    # Offline, because importing the package checks a token with the service; this port is closed.
    offline = {
        **environment,
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "",
    }
    code = "import sys\nsys.argv = ['kaggle', '--help']\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    method, used = done.stdout.split()[-2:]
    first_credential = find_credentials(environment, tmp_path)[0]
    assert first_credential.method == method
    path = first_credential.path
    content = environment.get("KAGGLE_API_TOKEN") if path is None else path.read_text()
    assert used in content


@pytest.mark.parametrize(
    ("environment", "name", "word"),
    [
        ({"KAGGLE_API_TOKEN": "/no/such/file"}, "KAGGLE_API_TOKEN", "looks like a path"),
        ({"KAGGLE_API_TOKEN": f"{TOKEN}\n"}, "KAGGLE_API_TOKEN", "line ends"),
        ({"KAGGLE_API_TOKEN": "EMPTY"}, "KAGGLE_API_TOKEN", "empty file"),
        ({"KAGGLE_TOKEN": TOKEN}, "KAGGLE_TOKEN", "without checking"),
    ],
)
def test_a_misleading_variable_is_named_and_its_value_is_not_shown(environment, name, word, home, root):
    if environment.get("KAGGLE_API_TOKEN") == "EMPTY":
        write(home / "empty", "")
        environment = {"KAGGLE_API_TOKEN": str(home / "empty")}
    finding = check(FakeKaggle(), home, root, environment=environment)[name]
    assert finding.level == PROBLEM
    assert word in finding.text
    assert TOKEN not in finding.text + finding.remedy


def test_an_invalid_token_that_hides_a_key_is_named(world, home, root, monkeypatch):
    """With the real client, which falls back to the key and goes on sending the token."""
    kaggle = world()
    write(home / ".kaggle" / "kaggle.json", json.dumps({"username": "alice", "key": WORLD_TOKEN}))
    (home / ".kaggle" / "access_token").unlink()
    environment = {**kaggle.server.environment(), "HOME": str(home)}
    environment |= {"KAGGLE_API_TOKEN": TOKEN, "KAGGLE_CONFIG_DIR": str(home / ".kaggle")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # The client reads where its files are when it is imported, and an earlier test may have imported it.
    for module in [name for name in sys.modules if name.partition(".")[0] in ("kaggle", "kagglesdk")]:
        monkeypatch.delitem(sys.modules, module)
    account = connect(RetryPolicy(call_timeout=5, attempts=2, delay=0.05))
    finding = check(account, home, root, environment=environment, experiments=[])["credentials"]
    assert finding.level == PROBLEM
    assert "KAGGLE_API_TOKEN is not accepted; the client uses the legacy key in" in finding.text
    assert "but still sends the first" in finding.text
    assert finding.remedy.startswith("Remove the access token in the environment variable KAGGLE_API_TOKEN")
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    environment.pop("KAGGLE_API_TOKEN")
    account = connect(RetryPolicy(call_timeout=5, attempts=2, delay=0.05))
    assert check(account, home, root, environment=environment, experiments=[])["credentials"].level == OK


@pytest.mark.skipif(os.name != "posix", reason="permissions as on posix")
def test_a_file_that_others_can_read_gets_a_warning(home, root):
    (home / ".kaggle" / "access_token").chmod(0o644)
    assert "chmod 600 ~/.kaggle/access_token" in check(FakeKaggle(), home, root)["file permissions"].remedy
    (home / ".kaggle" / "access_token").chmod(0o600)
    assert "file permissions" not in check(FakeKaggle(), home, root)


def test_a_damaged_or_misplaced_kaggle_json_is_a_problem(tmp_path, root):
    write(tmp_path / ".kaggle" / "kaggle.json", "{")
    assert "not a JSON object" in check(None, tmp_path, root)["kaggle.json"].text
    (tmp_path / ".kaggle" / "kaggle.json").unlink()
    write(tmp_path / ".config" / "kaggle" / "kaggle.json", PLACES["kaggle.json"][1])
    finding = check(None, tmp_path, root)["kaggle.json"]
    assert finding.level == PROBLEM
    assert "Move it to ~/.kaggle/kaggle.json" in finding.remedy
