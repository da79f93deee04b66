"""Everything that can be wrong before it costs anything: credentials, rules, quota, slugs, versions, sizes, clock.

No check depends on another: without a network, or without credentials, the rest is still reported. Nothing is changed, and
no secret is shown: of a credential only its kind and where it lies.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from launch import ROOT
from launch.campaign.schedule import expected_hours, next_reset, plan_over_weeks
from launch.campaign.spec import uses_emulator
from launch.campaign.waits import Timeouts
from launch.doctor.environment_check import (
    CPU,
    EMULATOR_TIMEOUTS,
    GPU,
    Finding,
    kept_results,
    plan_environment_checks,
    run_environment_checks,
)
from launch.errors import LaunchError
from launch.experiments import Experiment
from launch.kaggle_api.calls import RetryPolicy
from launch.kaggle_api.client import Kaggle, connect
from launch.kaggle_api.errors import RULES, ClientError, CredentialsError, NoResponseError
from launch.kaggle_api.types import ABSENT, ACTIVE
from launch.packaging.bundle import SOURCE_LIMIT
from launch.packaging.metadata import METADATA, PLACEHOLDER_OWNER, owner_of, read_base
from launch.packaging.secret_scan import clean, own_secrets
from launch.plan import LIBRARY_SLUG, Kernel, plan_kernels
from lib.runtime.inputs import COMPETITION
from lib.validation import UNREADABLE

T = TypeVar("T")

CHECK_FOLDER = ROOT / "runs" / "environment-check"
# The client and the SDK it was tried with.
_KNOWN_CLIENTS = {"2.2.4": "0.1.37", "2.2.5": "0.1.38"}
_OLDEST_CLIENT = (2, 2)  # before it, no quota, no output of more than one page
_PYTHONS = ((3, 11), (3, 12), (3, 13))
_CLOCK_TOLERANCE = 300.0  # seconds
_ROOM = 1 << 30  # bytes: what a campaign fetches (predictions, histories, figures) and some to spare
_PATIENCE = RetryPolicy(
    call_timeout=20.0, attempts=2, delay=1.0, max_delay=5.0
)  # somebody waits in front of it
_SILENCES = 2  # unanswered questions in a row, after which no more are asked
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")

_HOW_TO_GET_A_TOKEN = """\
1. Make an account at kaggle.com, and verify your phone number at kaggle.com/settings (GPU and internet need it).
2. Open kaggle.com/settings/api and press "Generate New Token". It is shown once; it starts with KGAT_.
3. Put it into the file ~/.kaggle/access_token, one line, nothing else:
       mkdir -p ~/.kaggle && touch ~/.kaggle/access_token && chmod 600 ~/.kaggle/access_token
   and paste it with an editor (typed into a shell it would stay in its history).
4. Run this command again."""
_NEW_TOKEN = "Make a new token at kaggle.com/settings/api and put it into ~/.kaggle/access_token."


# --- credentials on this machine -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credential:
    """A credential the client would find.

    Attributes:
        method: as the client calls it: ACCESS_TOKEN, LEGACY_API_KEY or OAUTH.
        kind: in words.
        place: where it lies; never what it is.
        path: of its file, if it lies in one.
    """

    method: str
    kind: str
    place: str
    path: Path | None = None


def find_credentials(environment: Mapping[str, str], home: Path) -> list[Credential]:
    """What there is, in the order in which the client (2.2.4 and 2.2.5) takes it; the first counts."""
    found = []
    if value := environment.get("KAGGLE_API_TOKEN"):
        path = _existing(value)
        place = "the environment variable KAGGLE_API_TOKEN" + (", which names a file" if path else "")
        if path is None or _content(path):
            found.append(Credential("ACCESS_TOKEN", "access token", place, path))
    for name in ("access_token", "access_token.txt"):
        if _content(home / ".kaggle" / name):
            found.append(
                Credential("ACCESS_TOKEN", "access token", f"~/.kaggle/{name}", home / ".kaggle" / name)
            )
    path = _config_folder(environment, home) / "kaggle.json"
    values = _read_key_file(path)
    for name in ("username", "key"):
        if f"KAGGLE_{name.upper()}" in environment:
            values[name] = "environment"
    if {"username", "key"} <= set(values):
        from_environment = [name for name, source in values.items() if source == "environment"]
        if len(from_environment) == 2:
            found.append(Credential("LEGACY_API_KEY", "legacy key", "KAGGLE_USERNAME and KAGGLE_KEY"))
        else:
            mixed = f", with the {from_environment[0]} from the environment" if from_environment else ""
            found.append(Credential("LEGACY_API_KEY", "legacy key", f"{_shown(path, home)}{mixed}", path))
    if _content(home / ".kaggle" / "credentials.json"):
        path = home / ".kaggle" / "credentials.json"
        found.append(Credential("OAUTH", "OAuth login", "~/.kaggle/credentials.json", path))
    return found


def credential_traps(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """What is odd about the credentials on this machine, seen without asking anybody."""
    findings = []
    found = find_credentials(environment, home)
    if value := environment.get("KAGGLE_API_TOKEN"):
        path = _existing(value)
        unset = "Correct it or unset it: the client sends whatever stands there."
        if path is not None and not _content(path):
            findings.append(
                Finding(
                    "KAGGLE_API_TOKEN",
                    False,
                    "names an empty file",
                    f"{unset} It hides ~/.kaggle/access_token.",
                )
            )
        elif path is None and re.search(r"[/\\~]", value):
            findings.append(
                Finding("KAGGLE_API_TOKEN", False, "looks like a path, and there is no such file", unset)
            )
        elif value != value.strip() or "\n" in value:
            findings.append(Finding("KAGGLE_API_TOKEN", False, "has blanks or line ends around it", unset))
    if environment.get("KAGGLE_TOKEN"):
        text = "is set: the client sends it unproved, in place of a legacy key"
        findings.append(
            Finding("KAGGLE_TOKEN", False, text, "Unset it; the variable for a token is KAGGLE_API_TOKEN.")
        )
    shadowed = [f"{each.kind} in {each.place}" for each in found[1:]]
    if shadowed:
        text = f"{found[0].kind} in {found[0].place} is used; not used: {', '.join(shadowed)}"
        findings.append(
            Finding(
                "several credentials",
                None,
                text,
                "Fine if all are of the same account; else remove the others.",
            )
        )
    path = _config_folder(environment, home) / "kaggle.json"
    if path.is_file() and not {"username", "key"} <= set(_read_key_file(path)):
        text = f"{_shown(path, home)} is not a JSON object with username and key"
        findings.append(
            Finding("kaggle.json", None if found else False, text, "Download it again, or remove it.")
        )
    if "KAGGLE_KEY" in environment and "KAGGLE_USERNAME" not in environment and not _read_key_file(path):
        findings.append(
            Finding(
                "KAGGLE_KEY",
                None if found else False,
                "is set without KAGGLE_USERNAME",
                "Set both or neither.",
            )
        )
    elsewhere = {home / ".kaggle" / "kaggle.json", _xdg(environment, home) / "kaggle.json"} - {path}
    for other in sorted(elsewhere):
        if other.is_file() and not path.is_file():
            text = f"{_shown(other, home)} is not read: the client looks in {_shown(path.parent, home)}"
            findings.append(
                Finding("kaggle.json", None if found else False, text, f"Move it to {_shown(path, home)}.")
            )
    if os.name == "posix":
        files = sorted({each.path for each in found if each.path is not None})
        for file in files:
            if file.stat().st_mode & 0o077:
                text = f"{_shown(file, home)} can be read by others on this machine"
                findings.append(Finding("file permissions", None, text, f"chmod 600 {_shown(file, home)}"))
    return findings


def _existing(value: str) -> Path | None:
    try:
        return Path(value) if Path(value).exists() else None
    except (OSError, ValueError):  # a name too long for a path, a null byte
        return None


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_key_file(path: Path) -> dict[str, str]:
    """Which of username and key a kaggle.json holds; their values are dropped here."""
    try:
        content = json.loads(_content(path))
    except UNREADABLE:
        return {}
    return {name: "file" for name in ("username", "key") if isinstance(content, dict) and content.get(name)}


def _config_folder(environment: Mapping[str, str], home: Path) -> Path:
    if chosen := environment.get("KAGGLE_CONFIG_DIR"):
        return Path(chosen)
    usual = home / ".kaggle"
    return usual if usual.exists() or not sys.platform.startswith("linux") else _xdg(environment, home)


def _xdg(environment: Mapping[str, str], home: Path) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"


def _shown(path: Path, home: Path) -> str:
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


# --- the service -----------------------------------------------------------------------------------------------------


class _UnaskedError(Exception):
    """A question that was not asked, and why."""


@dataclass
class _Line:
    """Questions to the service; after two in a row without an answer no more are asked, so that nobody waits for each."""

    kaggle: Kaggle | None
    silent: str = ""
    refused: str = ""
    answered: bool = False
    silences: int = 0

    def ask(self, question: Callable[[Kaggle], T], *, may_fail: bool = False) -> T:
        if self.kaggle is None or self.silent:
            raise _UnaskedError(self.silent)
        try:
            answer = question(self.kaggle)
        except CredentialsError as error:
            self.silent, self.refused = "the credentials are not accepted", str(error)
            raise _UnaskedError(self.silent) from None
        except NoResponseError:
            self.silences += not may_fail
            if self.silences >= _SILENCES:
                self.silent = "Kaggle does not answer"
            raise
        self.answered, self.silences = True, 0
        return answer


def examine(
    kaggle: Kaggle | None,
    *,
    experiments: Sequence[Experiment],
    folder: Path,
    refusal: LaunchError | None = None,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
    root: Path = ROOT,
) -> list[Finding]:
    """Look at everything; each check survives the failure of the others.

    Args:
        kaggle: the account, or None where there is no way to it.
        experiments: that are about to be run.
        folder: where the results of canaries are kept.
        refusal: why there is no account.
        environment: of this process.
        home: of the user.
        root: of the checkout.
    """
    environment = os.environ if environment is None else environment
    home = home or Path.home()
    line = _Line(kaggle, silent=_why_not(kaggle, refusal))
    secrets = own_secrets(environment, home)  # whatever an error's text quotes
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python,
        "Kaggle client": check_client,
        "environment": lambda: check_environment(environment),
        "disk": lambda: check_disk(folder),
        "scripts": lambda: check_scripts(experiments, root=root),
        "clock": check_clock,
        "owner": lambda: _check_owner(line, root),
        "rules": lambda: _check_rules(line),
        "submissions": lambda: _check_submissions(line),
        "quota": lambda: _check_quota(line, experiments),
        "slugs": lambda: _check_slugs(line, experiments),
        "phone": lambda: _check_phone(folder),
    }
    findings = []
    for name, check in checks.items():
        findings += _survived(name, check, secrets)
    # Last asked, first shown: only the answers tell whether the credentials are accepted.
    credentials = _survived(
        "credentials", lambda: _check_credentials(line, refusal, environment, home), secrets
    )
    return credentials + findings


def _why_not(kaggle: Kaggle | None, refusal: LaunchError | None) -> str:
    if kaggle is not None:
        return ""
    return (
        "no credentials that work"
        if refusal is None or isinstance(refusal, CredentialsError)
        else "Kaggle was not reached"
    )


def _survived(name: str, check: Callable[[], list[Finding]], secrets: tuple[str, ...]) -> list[Finding]:
    try:
        found = check()
    except _UnaskedError as error:
        found = [Finding(name, None, f"not asked: {error}")]
    except ClientError as error:
        found = [
            Finding(
                name, None, f"unknown: {error}", "Run this command again; status.kaggle.com tells of outages."
            )
        ]
    except LaunchError as error:
        found = [Finding(name, False, str(error))]
    except Exception as error:  # the other checks are worth more than this one's traceback
        found = [
            Finding(name, None, f"this check itself failed ({type(error).__name__})", "Please report it.")
        ]
    return [
        Finding(each.name, each.ok, clean(each.found, secrets), clean(each.remedy, secrets)) for each in found
    ]


def _check_credentials(
    line: _Line, refusal: LaunchError | None, environment: Mapping[str, str], home: Path
) -> list[Finding]:
    traps = credential_traps(environment, home)
    found = find_credentials(environment, home)
    if not found:
        return [Finding("credentials", False, "none on this machine", _HOW_TO_GET_A_TOKEN), *traps]
    used = found[0]
    text = f"{used.kind} in {used.place}"
    if line.kaggle is None:
        if isinstance(refusal, CredentialsError) or refusal is None:
            return [Finding("credentials", False, f"{text}: {_first_line(refusal)}", _NEW_TOKEN), *traps]
        return [
            Finding("credentials", None, f"{text}; not proved: Kaggle was not reached"),
            _unreached(str(refusal)),
            *traps,
        ]
    taken = str(line.kaggle.api.config_values.get("auth_method") or used.method)
    if taken != used.method:
        other = next((each for each in found if each.method == taken), None)
        instead = (
            f"; the client went on with the {other.kind} in {other.place}, but still sends the first"
            if other
            else ""
        )
        remedy = f"Remove the {used.kind} in {used.place}. {_NEW_TOKEN}"
        return [Finding("credentials", False, f"{text} is not accepted{instead}", remedy), *traps]
    if line.refused:
        return [Finding("credentials", False, f"{text}: {_first_line(line.refused)}", _NEW_TOKEN), *traps]
    if not line.answered:
        why = line.silent or "it answers no question"
        return [
            Finding("credentials", None, f"{text}; not proved: Kaggle was not reached"),
            _unreached(why),
            *traps,
        ]
    if taken == "OAUTH":
        remedy = f"It lasts about 12 h and a campaign longer. {_NEW_TOKEN}"
        return [Finding("credentials", None, f"{text}, accepted", remedy), *traps]
    return [Finding("credentials", True, f"{text}, accepted"), *traps]


def _unreached(why: str) -> Finding:
    remedy = "Look at the network and at proxies; status.kaggle.com tells of outages. Until then the rest is unknown."
    return Finding("connection", False, why, remedy)


def _check_owner(line: _Line, root: Path) -> list[Finding]:
    owner = owner_of(read_base(root))
    if line.kaggle is None:
        if owner == PLACEHOLDER_OWNER:
            return [
                Finding(
                    "owner", False, f"{METADATA} still says {owner}", f"Write your user name into {METADATA}."
                )
            ]
        return [Finding("owner", None, f"{METADATA} says {owner}; not compared: {line.silent}")]
    user = line.kaggle.user
    if owner == PLACEHOLDER_OWNER:
        remedy = f'`run` pushes as {user}. For `build` and the plain client write "{user}" into {METADATA}, or pass --owner {user}.'
        return [Finding("owner", None, f"you are {user}; {METADATA} still holds the placeholder", remedy)]
    if owner.lower() != user.lower():
        remedy = f'Write "{user}" into {METADATA}, or use the credentials of {owner}: kernels are pushed as {user}.'
        return [Finding("owner", False, f"you are {user}, {METADATA} says {owner}", remedy)]
    return [Finding("owner", True, f"{user}, as in {METADATA}")]


def _check_rules(line: _Line) -> list[Finding]:
    if line.ask(lambda kaggle: kaggle.has_entered()):
        return [Finding("rules", True, f"of {COMPETITION} accepted")]
    return [
        Finding("rules", False, f"of {COMPETITION} not accepted: neither data nor submissions", f"{RULES}.")
    ]


def _check_submissions(line: _Line) -> list[Finding]:
    entries = line.ask(lambda kaggle: kaggle.submissions())
    scores = [each.public for each in entries if each.public is not None]
    best = f", the best public score {max(scores):.4f}" if scores else ""
    return [Finding("submissions", True, f"can be listed: {len(entries)} so far{best}")]


def _check_quota(line: _Line, experiments: Sequence[Experiment]) -> list[Finding]:
    kernels = [kernel for kernel in plan_kernels(experiments) if kernel.needs_gpu] if experiments else []
    hours = {kernel.slug: expected_hours(kernel) for kernel in kernels}
    cost = sum(hours.values())
    needed = (
        f"{', '.join(each.name for each in experiments)} is expected to cost {cost:.1f} h"
        if hours
        else "nothing planned"
    )
    quota = line.ask(lambda kaggle: kaggle.quota())
    if quota is None:
        return [
            Finding("quota", None, f"Kaggle does not say what is left; {needed}", "See kaggle.com/settings.")
        ]
    found = f"{quota.left:.1f} of {quota.allowed:.0f} h left until {next_reset(quota):%a %d %b %H:%M} UTC; {needed}"
    longest = max(hours.values(), default=0.0)
    if longest > quota.allowed:
        return [
            Finding(
                "quota",
                False,
                found,
                "One kernel is expected to take longer than a week's quota: correct its `expected_hours`.",
            )
        ]
    if cost > quota.left:
        weeks = plan_over_weeks(hours, quota)
        return [
            Finding(
                "quota", None, found, "\n".join(["A campaign waits for the next quota by itself:", *weeks])
            )
        ]
    return [Finding("quota", True, found)]


def _check_slugs(line: _Line, experiments: Sequence[Experiment]) -> list[Finding]:
    kernels: list[Kernel] = [*(plan_kernels(experiments) if experiments else []), *plan_environment_checks()]
    findings = []
    for kernel in kernels:
        slug = kernel.slug
        status = line.ask(lambda kaggle, slug=slug: kaggle.status(slug))  # type: ignore[misc]
        if status.name in ACTIVE:
            remedy = (
                "If a campaign of yours pushed it, all is well; else the next campaign waits for its end."
            )
            findings.append(Finding("slugs", None, f"a run of {slug} is {status.name} now", remedy))
        if status.name == ABSENT:
            try:
                line.ask(lambda kaggle, slug=slug: kaggle.pull(slug), may_fail=True)  # type: ignore[misc]
            except NoResponseError:
                text = f"{slug} has no run and cannot be pulled: what a refused first push leaves behind"
                remedy = f"A campaign deletes it and pushes again. By hand: kaggle kernels delete {_user(line)}/{slug} -y"
                findings.append(Finding("slugs", None, text, remedy))
        if line.ask(lambda kaggle, slug=slug: kaggle.dataset(slug)) is not None:  # type: ignore[misc]
            text = f"you have a dataset {slug}: a kernel of the same slug is refused"
            findings.append(Finding("slugs", False, text, "Rename or delete the dataset in the browser."))
    if line.ask(lambda kaggle: kaggle.pull(LIBRARY_SLUG)) is not None:
        text = f"you have a kernel {LIBRARY_SLUG}: the dataset of the same slug is refused"
        findings.append(Finding("slugs", False, text, "Rename or delete that kernel in the browser."))
    return findings or [
        Finding(
            "slugs", True, f"{len(kernels)} kernels and a dataset: none is taken by something else or at work"
        )
    ]


def _user(line: _Line) -> str:
    return line.kaggle.user if line.kaggle is not None else ""


def _check_phone(folder: Path) -> list[Finding]:
    """There is no call that tells; a canary that had a GPU or internet proves it."""
    kept = kept_results(folder)
    if kept is not None:
        date, records, _ = kept
        cards = records.get(GPU, {}).get("scores", {}).get("cards")
        internet = records.get(CPU, {}).get("scores", {}).get("internet", {})
        if isinstance(cards, list) and cards or isinstance(internet, dict) and "reached" in internet.values():
            return [
                Finding(
                    "phone",
                    True,
                    f"verified: the canaries of {date:%d %b %Y} had what only a verified account gets",
                )
            ]
    remedy = (
        "Look at kaggle.com/settings: without a verified number Kaggle gives neither a GPU nor internet (the weights kernel "
        "needs it). doctor --check-kaggle proves it."
    )
    return [Finding("phone", None, "no call tells whether the phone number is verified", remedy)]


# --- this machine ----------------------------------------------------------------------------------------------------


def check_python() -> list[Finding]:
    """The version of Python."""
    version = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    if version < _PYTHONS[0]:
        return [
            Finding(
                "Python",
                False,
                text,
                "Install Python 3.11 or newer and make the environment again (make env).",
            )
        ]
    known = "3.11, 3.12 and 3.13"
    return [
        Finding(
            "Python",
            True if version in _PYTHONS else None,
            text,
            "" if version in _PYTHONS else f"Tried with {known}.",
        )
    ]


def check_client() -> list[Finding]:
    """The Kaggle client: its version, and whether everything it imports is there."""
    remedy = "Install the pinned set: make env (or pip install -r requirements.txt)."
    versions = {name: _installed(name) for name in ("kaggle", "kagglesdk", "certifi")}
    client, sdk = versions["kaggle"], versions["kagglesdk"]
    if not client:
        return [Finding("Kaggle client", False, "not installed", remedy)]
    findings = []
    found = f"kaggle {client} with kagglesdk {sdk or 'absent'}"
    if _numbers(client) < _OLDEST_CLIENT:
        old = "pip takes old ones where Python is older than 3.11."
        return [Finding("Kaggle client", False, f"{found}: too old", f"{remedy} {old}")]
    if _KNOWN_CLIENTS.get(client) == sdk:
        findings.append(Finding("Kaggle client", True, found))
    else:
        tried = ", ".join(f"{name} with {other}" for name, other in _KNOWN_CLIENTS.items())
        findings.append(
            Finding(
                "Kaggle client",
                None,
                found,
                f"Tried with {tried}: what is new in yours is not known. {remedy}",
            )
        )
    if find_spec("six") is None:
        text = "the client imports six and does not declare it; it is not installed"
        findings.append(Finding("Kaggle client", False, text, f"pip install six. {remedy}"))
    missing, unmet = _requirements("kaggle")
    if missing:
        findings.append(
            Finding("Kaggle client", False, f"it needs {', '.join(missing)}, not installed", remedy)
        )
    if unmet:
        text = f"it asks for {', '.join(unmet)}"
        why = (
            "kaggle 2.2.5 asks for a newer certifi than there was; pip then silently takes 2.2.4. Both work."
        )
        findings.append(
            Finding("Kaggle client", None, text, why if any("certifi" in each for each in unmet) else remedy)
        )
    return findings


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _requirements(name: str) -> tuple[list[str], list[str]]:
    """What a package asks for and is not there, and what is there in another version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"], []
    missing, unmet = [], []
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = _installed(requirement.name)
        if not here:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(here, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier} (here: {here})")
    return missing, unmet


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Variables that lead the client elsewhere; of their values only known words are shown."""
    findings = []
    where = environment.get("KAGGLE_API_ENVIRONMENT")
    if uses_emulator(environment):
        text = "KAGGLE_API_ENVIRONMENT is LOCALHOST: the client talks to this machine, not to Kaggle"
        findings.append(
            Finding("environment", None, text, "Right for the emulated Kaggle; unset it for the real one.")
        )
    elif where in ("TEST", "QA", "STAGING", "ADMIN"):
        text = f"KAGGLE_API_ENVIRONMENT is {where}: parts of the client follow it, others do not"
        findings.append(Finding("environment", False, text, "Unset it."))
    elif where not in (None, "PROD"):
        findings.append(
            Finding(
                "environment",
                False,
                "KAGGLE_API_ENVIRONMENT holds a word the client does not know",
                "Unset it.",
            )
        )
    proxies = sorted(name for name in _PROXIES if environment.get(name))
    if proxies and not uses_emulator(environment):
        text = f"requests go through the proxy of {', '.join(proxies)}"
        findings.append(
            Finding("environment", None, text, "Fine where the network needs it; uploads may be slower.")
        )
    if environment.get("KAGGLE_PROXY"):
        text = "KAGGLE_PROXY is set: the client prints it and does not use it"
        findings.append(Finding("environment", None, text, "Set HTTPS_PROXY instead."))
    return findings or [Finding("environment", True, "nothing leads the client away from Kaggle")]


def check_disk(folder: Path) -> list[Finding]:
    """Room for what a campaign fetches; tiles and weights stay on Kaggle."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free, a campaign needs about {_ROOM / 1e9:.0f} GB"
    return [Finding("disk", free >= _ROOM, found, "" if free >= _ROOM else "Free some space.")]


def check_scripts(experiments: Sequence[Experiment], *, root: Path = ROOT) -> list[Finding]:
    """A fresh build in a temporary folder, held against every rule of client and service."""
    from launch.packaging.builder import build
    from launch.packaging.check import check

    if not experiments:
        return [Finding("scripts", None, "no experiment named, nothing built", "Name one.")]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "dist"
        built = build(experiments, out=out, root=root)
        sizes = dict(built.sizes)
        for kernel in plan_environment_checks():
            sizes[kernel.slug] = built.source.write_kernel(kernel, out / "kernels" / kernel.slug)
        problems = check(out).problems
    largest = max(sizes, key=lambda slug: sizes[slug])
    found = f"{len(sizes)} build; the largest, {largest}, has {sizes[largest]:,} bytes of {SOURCE_LIMIT:,}"
    if problems:
        return [
            Finding(
                "scripts",
                False,
                f"{len(problems)} problems: " + "; ".join(problems[:5]),
                "See build_kernel.py check.",
            )
        ]
    return [Finding("scripts", True, found)]


def check_clock() -> list[Finding]:
    """The clock of this machine against the Date that Kaggle's answers carry: signed links depend on it."""
    from email.utils import parsedate_to_datetime

    import requests
    from kagglesdk.kaggle_env import get_endpoint, get_env

    try:
        before = time.time()
        answer = requests.head(get_endpoint(get_env()), timeout=(5, 5), allow_redirects=False)
        here = (before + time.time()) / 2
        there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (
        Exception
    ) as error:  # unknown is all it can become: no network, no header, a word the SDK does not know
        return [
            Finding("clock", None, f"not compared: Kaggle's time could not be had ({type(error).__name__})")
        ]
    ahead = here - there
    if abs(ahead) > _CLOCK_TOLERANCE:
        text = f"{abs(ahead) / 60:.0f} min {'ahead of' if ahead > 0 else 'behind'} Kaggle's"
        return [
            Finding("clock", False, text, "Set it (timedatectl set-ntp true): signed links depend on it.")
        ]
    return [Finding("clock", True, f"within {max(1, round(abs(ahead)))} s of Kaggle's")]


# --- the command -----------------------------------------------------------------------------------------------------


def _first_line(text: object) -> str:
    """The first line of a message that has several."""
    return (str(text).splitlines() or [""])[0]


def print_findings(findings: Sequence[Finding], say: Callable[[str], None]) -> None:
    """One line a check, the remedy under it; in colour on a terminal, plain elsewhere."""
    words = {True: ("ok", "green"), False: ("to do", "bold red"), None: ("note", "yellow")}
    terminal = sys.stdout.isatty()
    for finding in findings:
        word, style = words[finding.ok]
        first, *rest = [line for line in finding.found.splitlines() if line.strip()] or [""]
        below = [*rest, *finding.remedy.splitlines()] if finding.ok is not True else rest
        if not terminal:
            say(f"{word:<6} {finding.name}: {first}")
            for line in below:
                say(f"       {line}")
            continue
        from rich.console import Console
        from rich.padding import Padding
        from rich.text import Text

        console = Console(highlight=False)
        console.print(Text.assemble((f"{word:<6} ", style), (f"{finding.name}: ", "bold"), first))
        for line in below:
            console.print(Padding(Text(line), (0, 0, 0, 7)))


def doctor(
    experiments: Sequence[Experiment],
    *,
    check_kaggle: bool,
    folder: Path,
    say: Callable[[str], None],
    patience: RetryPolicy | None = None,
    pace: Timeouts | None = None,
) -> None:
    """Examine, show, and with `probe` push the canaries and hold what they saw against what the code assumes.

    Args:
        experiments: that are about to be run.
        probe: push the canaries; without it the last ones' results are shown again.
        folder: where their results are kept.
        say: takes a line.
        patience: deadlines of questions to the service.
        pace: waits for the canaries.

    Raises:
        LaunchError: something must be done; the message lists it.
    """
    if uses_emulator():
        folder = folder / "emulator"  # what a rehearsal saw says nothing about Kaggle
        pace = pace or EMULATOR_TIMEOUTS
    kaggle: Kaggle | None = None
    refusal: LaunchError | None = None
    if find_credentials(os.environ, Path.home()):
        try:
            kaggle = connect(patience or _PATIENCE)
        except ClientError as error:
            refusal = error
        except Exception as error:  # the client's own failure to import, whatever it is
            refusal = LaunchError(f"the Kaggle client cannot be used ({type(error).__name__})")
    say("looking at credentials, rules, quota, slugs, versions and sizes; about half a minute")
    findings = examine(kaggle, experiments=experiments, folder=folder, refusal=refusal)
    print_findings(findings, say)
    seen: list[Finding] = []
    if check_kaggle:
        blocked = [
            each.name for each in findings if each.ok is False and each.name in ("credentials", "connection")
        ]
        if kaggle is None or blocked:
            seen = [
                Finding(
                    "canaries",
                    False,
                    "not pushed: there is no way to Kaggle",
                    f"See {' and '.join(blocked)} above.",
                )
            ]
        else:
            # Nobody waits in front of it now, except in a rehearsal.
            kaggle.retry_policy = patience or (_PATIENCE if pace is EMULATOR_TIMEOUTS else RetryPolicy())
            seen = run_environment_checks(kaggle, folder, say, pace=pace)
    elif (kept := kept_results(folder)) is not None:
        date, _, seen = kept
        say(f"what the canaries of {date:%d %b %Y %H:%M} UTC saw (doctor --check-kaggle pushes new ones):")
    else:
        text = "no canary has looked at your Kaggle yet"
        seen = [
            Finding(
                "canaries",
                None,
                text,
                "doctor --check-kaggle pushes three of a few minutes, about 0.1 h of GPU quota.",
            )
        ]
    print_findings(seen, say)
    wrong = [each for each in [*findings, *seen] if each.ok is False]
    if wrong:
        lines = [f"{each.name}: {_first_line(each.found)}" for each in wrong]
        things = "one thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        raise LaunchError(f"{things} to do, how is said above:\n  - " + "\n  - ".join(lines))
    unknown = sum(each.ok is None for each in [*findings, *seen])
    say(
        "nothing is to do"
        + (f"; {unknown} notes to read" if unknown > 1 else "; one note to read" if unknown else "")
    )
