"""Check the names of backbones against the installed timm, in a program of its own: nothing imports it here.

Most names are found in timm's source text within milliseconds. For the others this file is started as a
program, `python backbones.py NAME...`, which imports timm (seconds) and prints what is wrong as JSON. Where
timm is not installed only the form of a name is checked: the weights kernel checks the rest on free CPU time.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

_HUB = re.compile(r"hf[-_]hub:[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TIMEOUT = 120.0  # seconds of the program
_SHOWN = 5  # names that are close to an unknown one


def check_backbones(names: Iterable[str]) -> list[str]:
    """What is wrong with the names of backbones, a sentence each; empty where nothing wrong is known."""
    problems, unlisted = [], []
    for name in dict.fromkeys(names):
        scheme = name.partition(":")[0] if ":" in name else ""
        if scheme == "local-dir":
            problems.append(
                f"{name!r} is a folder of this machine, which a kernel on Kaggle does not have: attach its "
                "weights as a dataset and name the file (weights = FILE.safetensors)"
            )
        elif scheme and not _HUB.fullmatch(name):
            problems.append(f"{name!r} is no name of a model: write hf-hub:OWNER/NAME for one of the hub")
        elif not scheme and not _is_in_source(name):
            unlisted.append(name)
    return problems + _ask_timm(unlisted)


def _is_in_source(name: str) -> bool:
    """Whether timm's source registers this name: a model, or the pretrained weights of one."""
    key = re.escape(name)
    pattern = rf"[\"']{key}[\"']\s*:" if "." in name else rf"^@register_model\s*\ndef {key}\("
    return re.search(pattern, _source(), re.MULTILINE) is not None


@functools.cache
def _source() -> str:
    """The text of timm's models; empty where timm is not installed."""
    spec = find_spec("timm")
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or [])] if spec else []
    paths = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def _ask_timm(names: Sequence[str]) -> list[str]:
    """What timm itself says of names; nothing where it is not installed or its program fails."""
    if not names or not _source():
        return []
    command = [sys.executable, str(Path(__file__)), *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        return [str(problem) for problem in json.loads(done.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, TypeError):
        return []  # a check that fails must not stop a build


def _problems(names: Sequence[str]) -> list[str]:
    """What is wrong with these names, by timm's registry. It runs in the program."""
    from difflib import get_close_matches

    import timm
    from timm.models import get_deprecated_models, is_model

    removed = {name for name, current in get_deprecated_models().items() if current is None}
    problems = []
    for name in names:
        architecture, _, tag = name.partition(".")
        if not is_model(architecture) or architecture in removed:
            close = get_close_matches(architecture.lower(), timm.list_models(), n=_SHOWN)
            hint = f"close names: {', '.join(close)}" if close else "timm.list_models() lists all"
            problems.append(f"timm {timm.__version__} knows no backbone {architecture!r}: {hint}")
            continue
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        if tag and name not in known:
            close = get_close_matches(name, known, n=_SHOWN, cutoff=0.0)
            hint = f"it has {', '.join(close)}" if close else "it has none; use --set weights=none"
            problems.append(
                f"timm {timm.__version__} knows no pretrained weights {tag!r} of {architecture}: {hint}"
            )
    return problems


if __name__ == "__main__":
    print(json.dumps(_problems(sys.argv[1:])))
