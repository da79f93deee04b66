"""What must never leave this machine: secrets, and its paths. The one place that decides what looks like one.

A bundle that holds a secret is refused where it is built and again where it is sent; messages are cleaned of the same texts.
Patterns ask for the form a service gives its tokens, not for a word such as "password": the sources speak of those.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from launch import ROOT
from launch.errors import LaunchError

_LEAST = 8  # characters of a credential; what is shorter is no secret, and would blot out ordinary words
# Each begins with letters of its own, which the search leaps to: together they read 350 kB of sources in 20 ms (2026-11-25).
_SECRETS = (
    ("a Kaggle token", r"KGAT_[0-9A-Za-z]{16,}"),
    ("a Kaggle key", r"""(?:key|Key|KEY)\\?["']?[ \t]*[:=][ \t]*\\?["']?[0-9a-f]{32}(?![0-9A-Za-z])"""),
    ("a Hugging Face token", r"hf_[0-9A-Za-z]{30,}"),
    ("a Hugging Face token", r"api_org_[0-9A-Za-z]{30,}"),
    ("a GitHub token", r"gh[pousr]_[0-9A-Za-z]{30,}"),
    ("a GitHub token", r"github_pat_[0-9A-Za-z_]{30,}"),
    ("a GitLab token", r"glpat-[0-9A-Za-z_-]{20,}"),
    ("an AWS access key", r"A(?:KIA|SIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS secret key", r"""aws_secret_access_key\\?["']?\s*[:=]\s*\\?["']?[0-9A-Za-z/+=]{40}"""),
    ("an AWS secret key", r"""AWS_SECRET_ACCESS_KEY\\?["']?\s*[:=]\s*\\?["']?[0-9A-Za-z/+=]{40}"""),
    ("a Google key", r"AIza[0-9A-Za-z_-]{35}"),
    ("a Google token", r"ya29\.[0-9A-Za-z_-]{30,}"),
    ("a Google secret", r"GOCSPX-[0-9A-Za-z_-]{20,}"),
    ("a Slack token", r"xox[abeoprs]-[0-9A-Za-z-]{10,}"),
    ("a Slack token", r"xapp-[0-9]-[0-9A-Za-z-]{10,}"),
    ("a Slack address", r"hooks\.slack\.com/services/T[0-9A-Z]+/B[0-9A-Z]+/[0-9A-Za-z]+"),
    ("an API key", r"sk-(?<![0-9A-Za-z_-]sk-)(?=[a-z-]*[0-9A-Z_])[0-9A-Za-z_-]{24,}"),
    ("an API key", r"sk_live_[0-9A-Za-z]{16,}"),
    ("a package registry's token", r"pypi-AgE[0-9A-Za-z_-]{30,}"),
    ("a package registry's token", r"npm_[0-9A-Za-z]{36}"),
    ("a signed token", r"eyJ(?<![0-9A-Za-z_-]eyJ)[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}"),
    ("a signed address", r"X-(?:Amz|Goog)-Signature=[0-9A-Fa-f]{32,}"),
    (
        "an authorisation",
        r"""uthorization\\?["']?[ \t]*[:=,][ \t]*\\?["']?(?:Bearer|Basic|Token)[ \t]+[0-9A-Za-z+/._=-]{16,}""",
    ),
    ("an address with a password", r"""://[^\s/:@"'{}<>()]+:[^\s/:@"'{}<>()]+@"""),
    ("a private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
)
_PATTERNS = tuple((what, re.compile(pattern)) for what, pattern in _SECRETS)
_QUERY = re.compile(
    r"""(?<!\S)([^\s?]*+)\?[^\s'")]+"""
)  # a signed address carries its permission behind the question mark
_TELLING = re.compile(
    r"(?=.*[0-9])[^\s/]{16,}"
)  # of a credential: no word, scope or path that a source may hold, too
_HOMES = re.compile(r"""(?<![\w.<])(/(?:home|Users|root)/|[A-Za-z]:\\Users\\)[^\s"']+""")


def own_secrets(environment: Mapping[str, str] | None = None, home: Path | None = None) -> tuple[str, ...]:
    """The credentials of this user, whatever they look like, the longest first: what they are is sent to nobody.

    Args:
        environment: of this process by default.
        home: the user's by default.
    """
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    names = ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    found = {environment.get(name, "").strip() for name in names}
    places = (".kaggle/access_token", ".kaggle/access_token.txt", ".cache/huggingface/token")
    found |= {_content(home / place) for place in places}
    folder = Path(environment.get("KAGGLE_CONFIG_DIR") or home / ".kaggle")
    for path in {
        folder / "kaggle.json",
        home / ".kaggle" / "kaggle.json",
        home / ".kaggle" / "credentials.json",
    }:
        try:
            content = json.loads(_content(path) or "{}")
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            found |= {
                value for name, value in content.items() if isinstance(value, str) and name != "username"
            }
    return tuple(
        sorted((secret for secret in found if len(secret) >= _LEAST), key=lambda each: (-len(each), each))
    )


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def secrets_in(text: str, *, own: Iterable[str] = ()) -> list[str]:
    """What in a text looks like a secret, with its line; the secret itself is not shown.

    Args:
        text: any.
        own: credentials to look for by their value.
    """
    found = [(match.start(), what) for what, pattern in _PATTERNS for match in pattern.finditer(text)]
    for secret in own:
        if _TELLING.fullmatch(secret) and (at := text.find(secret)) >= 0:
            found.append((at, "a credential of yours"))
    lines: dict[str, None] = {}
    line, before = 1, 0
    for at, what in sorted(found):
        line, before = line + text.count("\n", before, at), at
        lines[f"line {line} holds {what}"] = None
    return list(lines)


def refuse_secrets(texts: Mapping[str, str], *, own: Iterable[str] | None = None) -> None:
    """Stop before anything that looks like a secret leaves.

    Args:
        texts: name to content, of all that would be sent.
        own: see `secrets_in`; the user's own by default.

    Raises:
        LaunchError: with every file and line; no secret is shown.
    """
    own = own_secrets() if own is None else tuple(own)
    found = [f"{name}: {what}" for name, text in texts.items() for what in secrets_in(text, own=own)]
    if found:
        raise LaunchError(
            "\n  - ".join(["this would leave your machine with a secret in it:", *found[:20]])
            + (f"\n  - and {len(found) - 20:,} more" if len(found) > 20 else "")
            + "\nNothing was built or sent. Take it out; and make a new one at its service if it was ever shared."
        )


def texts_in(folder: Path) -> dict[str, str]:
    """The texts in a folder by their relative names; what is not text (weights) is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".npy", ".png"):
            found[path.relative_to(folder).as_posix()] = path.read_bytes().decode("utf-8", errors="replace")
    return found


def paths_in(text: str) -> list[str]:
    """Paths of a person's machine, this one's or another's."""
    here = {str(ROOT), str(Path.home())} - {"/", ""}
    return sorted(
        {match.group(0) for match in _HOMES.finditer(text)} | {path for path in here if path in text}
    )


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """A message without these secrets, without anything that looks like one, and without what signs an address."""
    for secret in secrets:
        text = text.replace(secret, "***")
    for _, pattern in _PATTERNS:
        text = pattern.sub("***", text)
    return _QUERY.sub(lambda match: f"{match[1]}?***" if "/" in match[1] else match[0], text)
