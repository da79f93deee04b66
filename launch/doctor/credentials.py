"""Kaggle credentials on this machine: their places, and mistakes that show without a request to Kaggle.

Findings name the kind and the place of a credential, never its value.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.finding import Finding, problem, warning
from lib.validation import UNREADABLE


@dataclass(frozen=True)
class Credential:
    """A credential that the client can find.

    Attributes:
        method: the client's name for it: ACCESS_TOKEN, LEGACY_API_KEY or OAUTH.
        kind: the same in words.
        place: where it is kept.
        path: of its file, if it is kept in one.
    """

    method: str
    kind: str
    place: str
    path: Path | None = None


def find_credentials(environment: Mapping[str, str], home: Path) -> list[Credential]:
    """Credentials in the order in which the client (2.2.4 and 2.2.5) uses them; only the first is used."""
    credentials = []
    if value := environment.get("KAGGLE_API_TOKEN"):
        path = _existing_path(value)
        place = "the environment variable KAGGLE_API_TOKEN" + (", which names a file" if path else "")
        if path is None or _read(path):
            credentials.append(Credential("ACCESS_TOKEN", "access token", place, path))
    for name in ("access_token", "access_token.txt"):
        path = home / ".kaggle" / name
        if _read(path):
            credentials.append(Credential("ACCESS_TOKEN", "access token", f"~/.kaggle/{name}", path))
    path = _key_file(environment, home)
    sources = _key_file_fields(path)
    for field in ("username", "key"):
        if f"KAGGLE_{field.upper()}" in environment:
            sources[field] = "environment"
    if {"username", "key"} <= set(sources):
        from_environment = [field for field, source in sources.items() if source == "environment"]
        if len(from_environment) == 2:
            credentials.append(Credential("LEGACY_API_KEY", "legacy key", "KAGGLE_USERNAME and KAGGLE_KEY"))
        else:
            mixed = f", with the {from_environment[0]} from the environment" if from_environment else ""
            place = f"{_short(path, home)}{mixed}"
            credentials.append(Credential("LEGACY_API_KEY", "legacy key", place, path))
    path = home / ".kaggle" / "credentials.json"
    if _read(path):
        credentials.append(Credential("OAUTH", "OAuth login", "~/.kaggle/credentials.json", path))
    return credentials


def check_local_credentials(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Mistakes in variables and files of credentials; empty where there are none."""
    return [
        *_check_token_variable(environment),
        *_check_sdk_variable(environment),
        *_check_unused(environment, home),
        *_check_key_file(environment, home),
        *_check_key_variable(environment, home),
        *_check_misplaced_key_file(environment, home),
        *_check_permissions(environment, home),
    ]


def _check_token_variable(environment: Mapping[str, str]) -> list[Finding]:
    """KAGGLE_API_TOKEN holds a token or the path of a file with one; the client sends whatever it holds."""
    name = "KAGGLE_API_TOKEN"
    value = environment.get(name)
    if not value:
        return []
    remedy = "Correct or unset it: the client sends its value as it is."
    path = _existing_path(value)
    if path is not None and not _read(path):
        return [problem(name, "names an empty file", f"{remedy} It overrides ~/.kaggle/access_token.")]
    if path is None and re.search(r"[/\\~]", value):
        return [problem(name, "looks like a path, but there is no such file", remedy)]
    if value != value.strip() or "\n" in value:
        return [problem(name, "has blanks or line ends around the token", remedy)]
    return []


def _check_sdk_variable(environment: Mapping[str, str]) -> list[Finding]:
    """KAGGLE_TOKEN is read by the SDK alone, which sends it in place of a legacy key."""
    if not environment.get("KAGGLE_TOKEN"):
        return []
    text = "is set: the client sends it without checking it, in place of a legacy key"
    return [problem("KAGGLE_TOKEN", text, "Unset it. The variable for a token is KAGGLE_API_TOKEN.")]


def _check_unused(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Several credentials, of which the client uses the first."""
    credentials = find_credentials(environment, home)
    if len(credentials) < 2:
        return []
    used, *unused = [f"{credential.kind} in {credential.place}" for credential in credentials]
    text = f"{used} is used; not used: {', '.join(unused)}"
    remedy = "No action is needed if all belong to the same account. Otherwise remove the others."
    return [warning("several credentials", text, remedy)]


def _check_key_file(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """A kaggle.json that the client cannot use."""
    path = _key_file(environment, home)
    if not path.is_file() or {"username", "key"} <= set(_key_file_fields(path)):
        return []
    text = f"{_short(path, home)} is not a JSON object with username and key"
    return [_unusable("kaggle.json", text, "Download it again, or remove it.", environment, home)]


def _check_key_variable(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """KAGGLE_KEY without a user name."""
    named = "KAGGLE_USERNAME" in environment or _key_file_fields(_key_file(environment, home))
    if "KAGGLE_KEY" not in environment or named:
        return []
    text = "is set without KAGGLE_USERNAME"
    return [_unusable("KAGGLE_KEY", text, "Set both or neither.", environment, home)]


def _check_misplaced_key_file(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """A kaggle.json in a folder that the client does not read."""
    path = _key_file(environment, home)
    if path.is_file():
        return []
    others = {home / ".kaggle" / "kaggle.json", _xdg_folder(environment, home) / "kaggle.json"} - {path}
    findings = []
    for other in sorted(others):
        if other.is_file():
            text = f"{_short(other, home)} is not read: the client reads {_short(path, home)}"
            remedy = f"Move it to {_short(path, home)}."
            findings.append(_unusable("kaggle.json", text, remedy, environment, home))
    return findings


def _check_permissions(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Files of credentials that other users of this machine can read."""
    if os.name != "posix":
        return []
    paths = {credential.path for credential in find_credentials(environment, home) if credential.path}
    findings = []
    for path in sorted(paths):
        if path.stat().st_mode & 0o077:
            text = f"{_short(path, home)} can be read by other users of this machine"
            findings.append(warning("file permissions", text, f"chmod 600 {_short(path, home)}"))
    return findings


def _unusable(name: str, text: str, remedy: str, environment: Mapping[str, str], home: Path) -> Finding:
    """A warning where another credential can be used, else a problem."""
    make = warning if find_credentials(environment, home) else problem
    return make(name, text, remedy)


def _existing_path(value: str) -> Path | None:
    try:
        return Path(value) if Path(value).exists() else None
    except (OSError, ValueError):  # a name too long for a path, a null byte
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _key_file_fields(path: Path) -> dict[str, str]:
    """The fields username and key that a kaggle.json holds, without their values."""
    try:
        content = json.loads(_read(path))
    except UNREADABLE:
        return {}
    fields = ("username", "key")
    return {field: "file" for field in fields if isinstance(content, dict) and content.get(field)}


def _key_file(environment: Mapping[str, str], home: Path) -> Path:
    """The kaggle.json that the client reads."""
    if folder := environment.get("KAGGLE_CONFIG_DIR"):
        return Path(folder) / "kaggle.json"
    usual = home / ".kaggle"
    if usual.exists() or not sys.platform.startswith("linux"):
        return usual / "kaggle.json"
    return _xdg_folder(environment, home) / "kaggle.json"


def _xdg_folder(environment: Mapping[str, str], home: Path) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"


def _short(path: Path, home: Path) -> str:
    """The path, with ~ for the home folder."""
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
