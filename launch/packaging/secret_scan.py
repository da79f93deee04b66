"""Find secrets and paths of this machine in texts, refuse to send them, and remove them from messages.

A bundle that holds a secret is refused when it is built and again when it is sent. A pattern matches the form
that a service gives its tokens, not a word such as "password", which the sources use themselves.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from launch import ROOT
from launch.errors import LaunchError

_LEAST = 8  # characters of a credential; a shorter one is no secret, and removing it would damage messages
# Each pattern begins with fixed letters, which the regex engine searches for first: all of them together scan
# 350 kB of sources in 20 ms (2026-11-25).
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
        r"""uthorization\\?["']?[ \t]*[:=,][ \t]*\\?["']?(?:Bearer|Basic|Token)[ \t]+"""
        r"""[0-9A-Za-z+/._=-]{16,}""",
    ),
    ("an address with a password", r"""://[^\s/:@"'{}<>()]+:[^\s/:@"'{}<>()]+@"""),
    ("a private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _SECRETS)
# A signed URL has its signature behind the question mark.
_QUERY = re.compile(r"""(?<!\S)([^\s?]*+)\?[^\s'")]+""")
# A credential that can be searched for by its value: no word, scope or path that a source may hold, too.
_TELLING = re.compile(r"(?=.*[0-9])[^\s/]{16,}")
_HOMES = re.compile(r"""(?<![\w.<])(/(?:home|Users|root)/|[A-Za-z]:\\Users\\)[^\s"']+""")


def own_secrets(environment: Mapping[str, str] | None = None, home: Path | None = None) -> tuple[str, ...]:
    """The credentials of this user from environment and files, the longest first.

    Args:
        environment: environment variables; those of this process by default.
        home: home folder; that of the user by default.
    """
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    names = ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    secrets = {environment.get(name, "").strip() for name in names}
    places = (".kaggle/access_token", ".kaggle/access_token.txt", ".cache/huggingface/token")
    secrets |= {_content(home / place) for place in places}
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
            secrets |= {
                value for name, value in content.items() if isinstance(value, str) and name != "username"
            }
    long_enough = (secret for secret in secrets if len(secret) >= _LEAST)
    return tuple(sorted(long_enough, key=lambda secret: (-len(secret), secret)))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def secrets_in(text: str, *, own: Iterable[str] = ()) -> list[str]:
    """List the parts of a text that look like a secret: line and kind, without the secret itself.

    Args:
        text: any text.
        own: credentials to search for by their value.
    """
    matches = [(match.start(), kind) for kind, pattern in _PATTERNS for match in pattern.finditer(text)]
    for secret in own:
        if _TELLING.fullmatch(secret) and (position := text.find(secret)) >= 0:
            matches.append((position, "a credential of yours"))
    descriptions: dict[str, None] = {}  # an ordered set
    line, before = 1, 0
    for position, kind in sorted(matches):
        line, before = line + text.count("\n", before, position), position
        descriptions[f"line {line} holds {kind}"] = None
    return list(descriptions)


def refuse_secrets(texts: Mapping[str, str], *, own: Iterable[str] | None = None) -> None:
    """Refuse texts that hold something that looks like a secret.

    Args:
        texts: name to content of everything that would be built or sent.
        own: see `secrets_in`; the credentials of this user by default.

    Raises:
        LaunchError: lists file, line and kind of each secret; no secret is shown.
    """
    own = own_secrets() if own is None else tuple(own)
    problems = [f"{name}: {text}" for name, content in texts.items() for text in secrets_in(content, own=own)]
    if problems:
        raise LaunchError(
            "\n  - ".join(["a secret would leave your machine:", *problems[:20]])
            + (f"\n  - and {len(problems) - 20:,} more" if len(problems) > 20 else "")
            + "\nNothing was built or sent. Remove the secret. "
            + "If it was ever shared, replace it at the service that issued it."
        )


def texts_in(folder: Path) -> dict[str, str]:
    """Read every text file below a folder: relative name to text. Weights, arrays and images are left out."""
    texts = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".npy", ".png"):
            texts[path.relative_to(folder).as_posix()] = path.read_bytes().decode("utf-8", errors="replace")
    return texts


def paths_in(text: str) -> list[str]:
    """List the paths in a text that are below a home folder, or below this checkout."""
    here = {str(ROOT), str(Path.home())} - {"/", ""}
    return sorted(
        {match.group(0) for match in _HOMES.finditer(text)} | {path for path in here if path in text}
    )


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace in a message these secrets, everything that looks like one, and the queries of signed URLs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    for _, pattern in _PATTERNS:
        text = pattern.sub("***", text)
    return _QUERY.sub(lambda match: f"{match[1]}?***" if "/" in match[1] else match[0], text)
