"""Checks of gated encoders: which of them the model hub opens to the user's token."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import requests

from launch.doctor.finding import Finding, first_line, ok, problem, warning
from launch.experiments import Experiment
from lib.model.hub_encoders import ENCODERS, repository_of

_HUB = "https://huggingface.co"
_TIMEOUT = 20.0  # seconds of a request
_NAME = "gated encoders"
_INVALID = "invalid"  # a part of the hub's message about a token that it does not know


class NoHubError(Exception):
    """The hub does not respond, or answers something that says nothing about access."""


def check_gated_encoders(
    experiments: Sequence[Experiment], environment: Mapping[str, str], home: Path
) -> list[Finding]:
    """Which gated encoders are open to the user's token; one request for each encoder, nothing is downloaded.

    The encoders of the experiments are checked, and all those that are known to be gated. An encoder of an
    experiment that is not open is a problem, another one is a warning.

    Args:
        experiments: that are about to be run.
        environment: of this process, for the token and the address of the hub.
        home: home folder of the user, for the file with the token.
    """
    needed = [repository_of(each.config.backbone) for each in experiments if each.config.downloads_weights]
    needed = [name for name in dict.fromkeys(needed) if name]
    lower = {name.lower() for name in needed}
    known = [name for name, entry in ENCODERS.items() if entry.gated and name.lower() not in lower]
    token = _token(environment, home)
    hub = environment.get("HF_ENDPOINT", "").rstrip("/") or _HUB
    findings: list[Finding] = []
    open_ones: list[str] = []
    for name in [*needed, *known]:
        try:
            refusal = _refusal(hub, name, token)
        except NoHubError as error:
            remedy = "Check the network and proxies, then repeat doctor --check-gated."
            return [*findings, warning(_NAME, f"{name} and those after it are unknown: {error}", remedy)]
        if refusal:
            report = problem if name in needed else warning
            findings.append(report(_NAME, f"{name}: {refusal}", _remedy(hub, name, token)))
        else:
            open_ones.append(name)
    whose = "your token" if token else "everybody (there is no token on this machine)"
    if open_ones:
        findings.insert(0, ok(_NAME, f"open to {whose}: {', '.join(open_ones)}"))
    return findings


def _token(environment: Mapping[str, str], home: Path) -> str:
    """The user's token, in the order of huggingface_hub: a variable, then a file; empty without one."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := environment.get(variable, "").strip():
            return value
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    folder = Path(environment.get("HF_HOME") or cache / "huggingface")
    path = Path(environment.get("HF_TOKEN_PATH") or folder / "token")
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _refusal(hub: str, repository: str, token: str) -> str:
    """Why the hub does not give a file of the repository; empty where it does.

    The request is the one that precedes a download, for a file that every encoder has.

    Raises:
        NoHubError: there is no answer, or one that says nothing about access.
    """
    url = f"{hub}/{repository}/resolve/main/config.json"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.request("HEAD", url, headers=headers, timeout=_TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        raise NoHubError(f"no response of {hub} ({type(error).__name__})") from error
    code = answer.headers.get("X-Error-Code", "")
    message = first_line(answer.headers.get("X-Error-Message", ""))
    if answer.status_code < 400 or code == "EntryNotFound":
        return ""
    if answer.status_code == 401 and token and _INVALID in message.lower():
        return "the hub does not accept your token"
    if code == "GatedRepo" or answer.status_code in (401, 403):
        return "your token is not let in" if token else "it needs a token, and there is none on this machine"
    if answer.status_code == 404:
        return "the hub has no such encoder, or hides it from your token"
    raise NoHubError(f"HTTP {answer.status_code} {message}".strip())


def _remedy(hub: str, repository: str, token: str) -> str:
    steps = [] if token else [f"Make a token at {hub}/settings/tokens, and put it into HF_TOKEN."]
    steps += [
        f"Read and accept the terms at {hub}/{repository}; some authors approve by hand, which takes days.",
        "Then download the weights here, and upload them: build_kernel.py weights EXPERIMENT --upload.",
    ]
    return "\n".join(steps)
