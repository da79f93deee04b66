"""The doctor finds what is wrong before it costs anything, whatever else is wrong, and shows no secret."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import ROOT
from launch.doctor import command as module
from launch.doctor.command import (
    check_client,
    check_environment,
    doctor,
    examine,
    find_credentials,
    print_findings,
)
from launch.doctor.environment_check import CPU, GPU, RESULTS, Finding
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.kaggle_api.errors import CredentialsError, NoResponseError, RefusedError, UnexpectedResponseError
from launch.kaggle_api.types import (
    ABSENT,
    COMPLETE,
    RUNNING,
    DatasetState,
    PulledKernel,
    Quota,
    RunStatus,
    Submission,
)

TOKEN, KEY = "KGAT_" + "a1b2" * 8, "0123456789abcdef" * 2
EXPERIMENT = load_experiment("smoke", ["expected_hours=2.0", "num_folds=3"])


class FakeKaggle:
    """An account on which everything is as it should be; a test replaces what is not."""

    def __init__(self, **changes: Any) -> None:
        self.user = "alice"
        self.retry_policy = None
        self.api = SimpleNamespace(config_values={"auth_method": "ACCESS_TOKEN"})
        self.asked: list[str] = []
        self.answers = {
            "has_entered": True,
            "submissions": [],
            "quota": Quota(used=3.0, allowed=30.0, refresh=datetime.now(UTC) + timedelta(days=2)),
            "status": RunStatus(ABSENT),
            "pull": None,
            "dataset": None,
            **changes,
        }

    def _answer(self, name: str, *arguments: Any) -> Any:
        self.asked.append(name)
        answer = self.answers[name]
        if callable(answer):
            answer = answer(*arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has_entered(self) -> Any:
        return self._answer("has_entered")

    def submissions(self) -> Any:
        return self._answer("submissions")

    def quota(self) -> Any:
        return self._answer("quota")

    def status(self, slug: str) -> Any:
        return self._answer("status", slug)

    def pull(self, slug: str) -> Any:
        return self._answer("pull", slug)

    def dataset(self, slug: str) -> Any:
        return self._answer("dataset", slug)


@pytest.fixture(autouse=True)
def kaggles_clock(monkeypatch):
    """Kaggle's clock, as far from ours as a test says; no test asks the network."""
    clock = SimpleNamespace(ahead=0.0, error=None)

    def head(*arguments: Any, **options: Any) -> Any:
        if clock.error is not None:
            raise clock.error
        moment = datetime.now(UTC) + timedelta(seconds=clock.ahead)
        return SimpleNamespace(headers={"Date": format_datetime(moment, usegmt=True)})

    monkeypatch.setattr("requests.head", head)
    return clock


@pytest.fixture
def home(tmp_path) -> Path:
    """A home with an access token."""
    folder = tmp_path / "home"
    write(folder / ".kaggle" / "access_token", TOKEN)
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """A checkout that belongs to alice."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("lib", "kernels", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("kernel-metadata.json", "dataset-metadata.json"):
        (folder / name).write_text((ROOT / name).read_text().replace("your-kaggle-username", "alice"))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def look(kaggle: Any, home: Path, root: Path, **options: Any) -> dict[str, Finding]:
    """Findings by name; of several, the worst."""
    keywords = {"experiments": [EXPERIMENT], "folder": home.parent / "check", "environment": {}, **options}
    found: dict[str, Finding] = {}
    for finding in examine(kaggle, home=home, root=root, **keywords):
        if finding.name not in found or finding.ok is False:
            found[finding.name] = finding
    return found


def test_where_all_is_well_nothing_is_to_do(home, root):
    findings = look(FakeKaggle(), home, root)
    assert {name: found.ok for name, found in findings.items() if found.ok is not True} == {"phone": None}
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


# --- credentials -----------------------------------------------------------------------------------------------------


def test_who_has_never_seen_a_token_is_told_step_by_step(tmp_path, root):
    found = look(None, tmp_path, root)["credentials"]
    assert found.ok is False
    for step in ("kaggle.com/settings/api", "~/.kaggle/access_token", "chmod 600", "phone number", "again"):
        assert step in found.remedy


PLACES = {
    "environment": ("KAGGLE_API_TOKEN", TOKEN),
    "file": (".kaggle/access_token", TOKEN),
    "file.txt": (".kaggle/access_token.txt", TOKEN),
    "kaggle.json": (".kaggle/kaggle.json", json.dumps({"username": "alice", "key": KEY})),
    "OAuth": (".kaggle/credentials.json", json.dumps({"refresh_token": TOKEN, "username": "alice"})),
}


@pytest.mark.parametrize("first", range(len(PLACES)))
def test_of_several_credentials_the_one_the_client_takes_is_named(first, tmp_path, root):
    environment: dict[str, str] = {}
    for place, text in list(PLACES.values())[first:]:
        if place.startswith("."):
            write(tmp_path / place, text)
        else:
            environment[place] = text
    place = list(PLACES.values())[first][0]
    found = find_credentials(environment, tmp_path)
    assert place in found[0].place
    assert len(found) == len(PLACES) - first
    findings = look(FakeKaggle(), tmp_path, root, environment=environment)
    assert ("several credentials" in findings) == (first < len(PLACES) - 1)


@pytest.mark.parametrize("first", range(4))
def test_the_order_is_the_clients_own(first, tmp_path):
    """The package itself says which it takes: what it would send for each mixture is what we named."""
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
    # Offline: importing the package asks the service about a token; nothing is listening there.
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
    method, taken = done.stdout.split()[-2:]
    found = find_credentials(environment, tmp_path)[0]
    assert found.method == method
    named = environment.get("KAGGLE_API_TOKEN") if found.path is None else found.path.read_text()
    assert taken in named


@pytest.mark.parametrize(
    ("environment", "name", "word"),
    [
        ({"KAGGLE_API_TOKEN": "/no/such/file"}, "KAGGLE_API_TOKEN", "looks like a path"),
        ({"KAGGLE_API_TOKEN": f"{TOKEN}\n"}, "KAGGLE_API_TOKEN", "line ends"),
        ({"KAGGLE_API_TOKEN": "EMPTY"}, "KAGGLE_API_TOKEN", "empty file"),
        ({"KAGGLE_TOKEN": TOKEN}, "KAGGLE_TOKEN", "unproved"),
    ],
)
def test_a_variable_that_misleads_the_client_is_named_and_not_shown(environment, name, word, home, root):
    if environment.get("KAGGLE_API_TOKEN") == "EMPTY":
        write(home / "empty", "")
        environment = {"KAGGLE_API_TOKEN": str(home / "empty")}
    found = look(FakeKaggle(), home, root, environment=environment)[name]
    assert found.ok is False
    assert word in found.found
    assert TOKEN not in found.found + found.remedy


def test_a_token_that_is_not_accepted_is_named_although_the_key_behind_it_works(home, root):
    write(home / ".kaggle" / "kaggle.json", PLACES["kaggle.json"][1])
    kaggle = FakeKaggle()
    kaggle.api.config_values["auth_method"] = "LEGACY_API_KEY"
    found = look(kaggle, home, root)["credentials"]
    assert found.ok is False
    assert "~/.kaggle/access_token is not accepted" in found.found
    # And with it sent in place of the key, as the client does, everything is refused.
    kaggle.answers["has_entered"] = CredentialsError("Kaggle refused (HTTP 401)")
    assert look(kaggle, home, root)["credentials"] == found
    assert "kaggle.json" in found.found


def test_an_oauth_login_is_not_for_a_campaign(tmp_path, root):
    write(tmp_path / ".kaggle" / "credentials.json", PLACES["OAuth"][1])
    kaggle = FakeKaggle()
    kaggle.api.config_values["auth_method"] = "OAUTH"
    found = look(kaggle, tmp_path, root)["credentials"]
    assert found.ok is None
    assert "12 h" in found.remedy


@pytest.mark.skipif(os.name != "posix", reason="permissions as on posix")
def test_a_key_that_others_can_read_is_named(home, root):
    (home / ".kaggle" / "access_token").chmod(0o644)
    assert "chmod 600 ~/.kaggle/access_token" in look(FakeKaggle(), home, root)["file permissions"].remedy
    (home / ".kaggle" / "access_token").chmod(0o600)
    assert "file permissions" not in look(FakeKaggle(), home, root)


def test_a_damaged_or_misplaced_kaggle_json_is_named(tmp_path, root):
    write(tmp_path / ".kaggle" / "kaggle.json", "{")
    assert "not a JSON object" in look(None, tmp_path, root)["kaggle.json"].found
    (tmp_path / ".kaggle" / "kaggle.json").unlink()
    write(tmp_path / ".config" / "kaggle" / "kaggle.json", PLACES["kaggle.json"][1])
    found = look(None, tmp_path, root)["kaggle.json"]
    assert found.ok is False
    assert "Move it to ~/.kaggle/kaggle.json" in found.remedy


def test_credentials_that_the_service_refuses_are_to_do_and_nobody_asks_on(home, root):
    kaggle = FakeKaggle(has_entered=CredentialsError("Kaggle refused (HTTP 401)"))
    findings = look(kaggle, home, root)
    assert findings["credentials"].ok is False
    assert "kaggle.com/settings/api" in findings["credentials"].remedy
    assert findings["slugs"].ok is None
    assert kaggle.asked == ["has_entered"]
    refused = look(
        None, home, root, refusal=CredentialsError("Kaggle does not accept the credentials (HTTP 401).")
    )
    assert refused["credentials"].ok is False


SECRETS = [TOKEN, KEY, "KGAT_" + "env0" * 6, "e" * 32, "refresh-me-not"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("reached", [False, True])
def test_no_secret_is_ever_shown(terminal, reached, home, root, monkeypatch, capsys):
    """Planted everywhere, and quoted by every error."""
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
    told = " ".join(SECRETS)
    kaggle = FakeKaggle(
        has_entered=RefusedError(told),
        submissions=NoResponseError(told),
        quota=UnexpectedResponseError(told),
        status=RuntimeError(told),
        pull=LaunchError(told),
    )

    def connect(patience: Any) -> Any:
        if reached:
            return kaggle
        raise NoResponseError(told)

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    said: list[str] = []
    with pytest.raises(LaunchError) as stopped:
        doctor([EXPERIMENT], check_kaggle=True, folder=home / "check", say=said.append)
    printed = capsys.readouterr()
    everything = "\n".join([*said, printed.out, printed.err, str(stopped.value)])
    assert [secret for secret in SECRETS if secret in everything] == []
    assert "credentials" in everything


# --- each check ------------------------------------------------------------------------------------------------------


def test_without_a_network_the_rest_is_still_reported(home, root, kaggles_clock):
    kaggles_clock.error = ConnectionError("no network")
    silence = NoResponseError("no answer from Kaggle (ConnectionError)")
    kaggle = FakeKaggle(
        **dict.fromkeys(("has_entered", "submissions", "quota", "status", "pull", "dataset"), silence)
    )
    findings = look(kaggle, home, root)
    assert [name for name, found in findings.items() if found.ok is False] == ["connection"]
    assert findings["clock"].ok is None
    assert findings["scripts"].ok is True
    assert len(kaggle.asked) == 2  # nobody waits for every question
    unconnected = look(None, home, root, refusal=NoResponseError("Kaggle could not be asked who you are"))
    assert [name for name, found in unconnected.items() if found.ok is False] == ["connection"]


@pytest.mark.parametrize("check", ["has_entered", "submissions", "quota", "status", "pull", "dataset"])
def test_a_check_that_fails_in_an_unforeseen_way_stops_no_other(check, home, root):
    whole = look(FakeKaggle(), home, root)
    findings = look(FakeKaggle(**{check: ZeroDivisionError("surprise")}), home, root)
    moving = ("clock", "disk")  # what is left of the disk changes by itself
    changed = {name for name in whole if findings[name] != whole[name] and name not in moving}
    assert len(changed) == 1
    [name] = changed
    assert findings[name].ok is None
    assert "ZeroDivisionError" in findings[name].found


def test_the_placeholder_is_a_note_and_a_foreign_owner_is_to_do(home, root):
    path = root / "kernel-metadata.json"
    mine = path.read_text()
    path.write_text(mine.replace("alice", "your-kaggle-username"))
    found = look(FakeKaggle(), home, root)["owner"]
    assert (found.ok, '"alice"' in found.remedy) == (
        None,
        True,
    )  # `run` takes the account whose credentials these are
    path.write_text(mine.replace("alice", "bob"))
    found = look(FakeKaggle(), home, root)["owner"]
    assert (found.ok, "bob" in found.found) == (False, True)
    path.write_text(mine.replace("alice", "Alice"))
    assert look(FakeKaggle(), home, root)["owner"].ok is True


def test_rules_that_were_not_accepted_are_to_do(home, root):
    found = look(FakeKaggle(has_entered=False), home, root)["rules"]
    assert found.ok is False
    assert "kaggle.com/competitions/histopathologic-cancer-detection/rules" in found.remedy


@pytest.mark.parametrize(
    ("left", "allowed", "ok", "word"),
    [(8.0, 30.0, True, "6.2 h"), (3.0, 30.0, None, "from "), (1.0, 1.5, False, "can never|hours")],
)
def test_the_quota_is_held_against_what_is_planned(left, allowed, ok, word, home, root):
    """Three folds of 2 h and an inference of 0.25 h."""
    quota = Quota(used=allowed - left, allowed=allowed, refresh=datetime(2030, 1, 5, tzinfo=UTC))
    found = look(FakeKaggle(quota=quota), home, root)["quota"]
    assert found.ok is ok
    assert re.search(word, found.found + found.remedy)
    assert "05 Jan" in found.found
    assert look(FakeKaggle(quota=None), home, root)["quota"].ok is None


def test_slugs_that_are_taken_by_something_else_are_to_do(home, root):
    taken = FakeKaggle(dataset=lambda slug: DatasetState("ready", 1) if slug == "hcd-prepare" else None)
    found = look(taken, home, root)["slugs"]
    assert (found.ok, "dataset hcd-prepare" in found.found) == (False, True)
    pulled = PulledKernel("", 1, "", False)
    taken = FakeKaggle(pull=lambda slug: pulled if slug == "hcd-lib" else None)
    found = look(taken, home, root)["slugs"]
    assert (found.ok, "kernel hcd-lib" in found.found) == (False, True)


def test_a_kernel_at_work_and_a_ghost_are_named(home, root):
    slug = f"hcd-{EXPERIMENT.name}-fold-1"
    kaggle = FakeKaggle(status=lambda asked: RunStatus(RUNNING if asked == slug else COMPLETE))
    found = look(kaggle, home, root)["slugs"]
    assert (found.ok, f"{slug} is RUNNING" in found.found) == (None, True)
    kaggle = FakeKaggle(pull=lambda asked: NoResponseError("HTTP 500") if asked == slug else None)
    found = look(kaggle, home, root)["slugs"]
    assert found.ok is None
    assert slug in found.found
    assert f"kaggle kernels delete alice/{slug} -y" in found.remedy


def test_submissions_are_counted(home, root):
    entry = Submission(1, "m", "COMPLETE", 0.9612, 0.95, "", "")
    assert "0.9612" in look(FakeKaggle(submissions=[entry]), home, root)["submissions"].found


@pytest.mark.parametrize(("ahead", "ok"), [(0.0, True), (200.0, True), (-400.0, False), (3600.0, False)])
def test_a_clock_that_is_off_is_to_do(ahead, ok, home, root, kaggles_clock):
    kaggles_clock.ahead = ahead
    found = look(FakeKaggle(), home, root)["clock"]
    assert found.ok is ok
    if not ok:
        assert ("behind" if ahead > 0 else "ahead") in found.found


@pytest.mark.parametrize(
    ("versions", "missing", "ok", "word"),
    [
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37"}, (), True, "2.2.4"),
        ({"kaggle": "2.2.5", "kagglesdk": "0.1.38"}, (), True, "2.2.5"),
        ({"kaggle": "2.3.0", "kagglesdk": "0.2.0"}, (), None, "2.3.0"),
        ({"kaggle": "1.7.4", "kagglesdk": "0.1.0"}, (), False, "too old"),
        ({"kaggle": ""}, (), False, "not installed"),
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37"}, ("six",), False, "six"),
        ({"kaggle": "2.2.4", "kagglesdk": "0.1.37", "python-slugify": ""}, (), False, "python-slugify"),
    ],
)
def test_traps_of_the_client_are_named(versions, missing, ok, word, monkeypatch):
    installed, find = module._installed, module.find_spec
    monkeypatch.setattr(module, "_installed", lambda name: versions.get(name, installed(name)))
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else find(name))
    findings = check_client()
    worst = next((each for each in findings if each.ok is False), findings[0])
    assert worst.ok is ok
    assert word in worst.found + worst.remedy


def test_a_certifi_that_the_client_finds_too_old_is_explained(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["certifi>=2999.1.1"])
    found = next(each for each in check_client() if "certifi" in each.found)
    assert found.ok is None
    assert "2.2.4" in found.remedy


@pytest.mark.parametrize(
    ("environment", "ok", "word"),
    [
        ({}, True, "nothing"),
        ({"KAGGLE_API_ENVIRONMENT": "PROD"}, True, "nothing"),
        ({"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": "http://127.0.0.1:1"}, None, "this machine"),
        ({"KAGGLE_API_ENVIRONMENT": "STAGING"}, False, "STAGING"),
        ({"KAGGLE_API_ENVIRONMENT": "hunter2"}, False, "does not know"),
        ({"HTTPS_PROXY": "http://user:hunter2@proxy:1"}, None, "HTTPS_PROXY"),
        ({"KAGGLE_PROXY": "http://user:hunter2@proxy:1"}, None, "does not use it"),
    ],
)
def test_variables_that_lead_elsewhere_are_named(environment, ok, word):
    [found] = check_environment(environment)
    assert found.ok is ok
    assert word in found.found
    assert "hunter2" not in found.found + found.remedy


def test_a_script_over_the_limit_is_to_do(home, root, monkeypatch):
    monkeypatch.setattr("launch.packaging.bundle.SOURCE_LIMIT", 10_000)
    found = look(FakeKaggle(), home, root)["scripts"]
    assert found.ok is False
    assert "10,000" in found.found


def test_a_build_that_breaks_a_rule_is_to_do(home, root):
    path = root / "dataset-metadata.json"
    path.write_text(path.read_text().replace("HCD lib", "x"))
    found = look(FakeKaggle(), home, root)["scripts"]
    assert found.ok is False
    assert "title" in found.found


def test_canaries_prove_the_phone_number(home, root):
    folder = home / "check"
    card, internet = [{"name": "Tesla T4"}], {"huggingface": "reached"}
    for slug, facts in ((GPU, {"cards": card}), (CPU, {"internet": internet})):
        results = {
            "format": 1,
            "date": "2026-11-24T10:00:00+00:00",
            "problems": {},
            "records": {slug: {"scores": facts}},
        }
        write(folder / RESULTS, json.dumps(results))
        found = look(FakeKaggle(), home, root, folder=folder)["phone"]
        assert found.ok is True
        assert "24 Nov 2026" in found.found
    results["records"] = {GPU: {"scores": {"cards": []}}}
    write(folder / RESULTS, json.dumps(results))
    assert look(FakeKaggle(), home, root, folder=folder)["phone"].ok is None


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def account(home, monkeypatch):
    """The command finds this account; its metadata are alice's."""
    kaggle = FakeKaggle()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "connect", lambda patience: kaggle)
    monkeypatch.setattr(module, "owner_of", lambda base: "alice")
    return kaggle


def test_the_command_lists_what_is_to_do(account, tmp_path):
    account.answers |= {"has_entered": False, "quota": Quota(used=1.0, allowed=1.5, refresh=None)}
    said: list[str] = []
    with pytest.raises(LaunchError) as stopped:
        doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check", say=said.append)
    assert [line.split(":")[0].strip(" -") for line in str(stopped.value).splitlines()[1:]] == [
        "rules",
        "quota",
    ]
    printed = "\n".join(said)
    assert re.search(r"^to do  rules: .*\n       Accept the rules", printed, flags=re.MULTILINE)
    assert re.search(r"^ok     credentials: ", printed, flags=re.MULTILINE)
    assert re.search(r"^note   canaries: ", printed, flags=re.MULTILINE)


def test_the_command_ends_well_and_shows_kept_canaries_with_their_date(account, tmp_path):
    problems = {GPU: ["ended as ERROR", "Look at it"]}
    results = {"format": 1, "date": "2026-11-24T10:00:00+00:00", "problems": {}, "records": {}}
    write(tmp_path / "check" / RESULTS, json.dumps(results))
    said: list[str] = []
    doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check", say=said.append)
    assert any("24 Nov 2026" in line for line in said)
    assert said[-1].startswith("nothing is to do")
    write(tmp_path / "check" / RESULTS, json.dumps({**results, "problems": problems}))
    with pytest.raises(LaunchError, match="ended as ERROR"):
        doctor([EXPERIMENT], check_kaggle=False, folder=tmp_path / "check", say=said.append)


def test_canaries_are_pushed_only_with_credentials_that_work(account, tmp_path, monkeypatch):
    pushed: list[str] = []

    def run_environment_checks(kaggle: Any, folder: Path, say: Any, *, pace: Any) -> list[Finding]:
        pushed.append(kaggle.user)
        return [
            Finding("environment check gpu: cards", False, "torch sees no GPU", "Verify your phone number")
        ]

    monkeypatch.setattr(module, "run_environment_checks", run_environment_checks)
    with pytest.raises(LaunchError, match="torch sees no GPU"):
        doctor([EXPERIMENT], check_kaggle=True, folder=tmp_path, say=lambda line: None)
    assert pushed == ["alice"]
    account.answers["has_entered"] = CredentialsError("HTTP 401")
    with pytest.raises(LaunchError, match="not pushed"):
        doctor([EXPERIMENT], check_kaggle=True, folder=tmp_path, say=lambda line: None)
    assert pushed == ["alice"]


def test_a_terminal_gets_the_same_words(monkeypatch, capsys):
    findings = [
        Finding("rules", False, "not accepted", "Accept [them] in the browser."),
        Finding("disk", True, "79 GB free"),
    ]
    plain: list[str] = []
    print_findings(findings, plain.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_findings(findings, plain.append)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in shown.splitlines()] == plain


# --- against the emulated Kaggle -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_the_probe_and_repeated_the_command_shows_what_real_canaries_saw(tmp_path):
    """The command as a user runs it, with the real client, an empty home, and kernels that really run."""
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
        command = [sys.executable, "build_kernel.py", "doctor", "smoke", *options]
        return subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pushes() -> list[str]:
        return [each["slug"] for each in emulator.account.changes() if each["method"] == "SaveKernel"]

    with Server(emulator) as server:
        first = start()
        examined, _ = first.communicate(timeout=120)
        assert first.returncode == 0, examined
        assert (
            "ok     credentials: access token in the environment variable KAGGLE_API_TOKEN, accepted"
            in examined
        )
        assert "ok     owner: alice" in examined
        assert "ok     clock: within" in examined
        assert "ok     rules: " in examined
        assert pushes() == []

        killed = start("--check-kaggle")
        deadline = time.monotonic() + 120
        while len(pushes()) < 2:
            assert killed.poll() is None and time.monotonic() < deadline, "the canaries were not pushed"
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
            r"^ok     environment check mount: mounted output: found at notebooks/alice/hcd-environment-check-cpu, whole",
            printed,
            re.MULTILINE,
        )
        assert re.search(r"^ok     environment check mount: competition: ", printed, re.MULTILINE)
        assert re.search(r"^note   environment check cpu: place: rehearsal", printed, re.MULTILINE)

        again = start()
        kept, _ = again.communicate(timeout=120)
        assert "environment check mount: mounted output: found at" in kept
        assert len(pushes()) == 3
    assert TOKEN not in examined + printed + kept
