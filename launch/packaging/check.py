"""Check a build against the rules of the Kaggle client and service, and report all problems at once."""

import json
from pathlib import Path

from launch.packaging.bundle import SOURCE_LIMIT
from launch.packaging.metadata import (
    DATASET_METADATA,
    METADATA,
    PLACEHOLDER_OWNER,
    check_dataset_metadata,
    check_kernel_metadata,
)
from launch.packaging.secret_scan import own_secrets, paths_in, secrets_in, texts_in
from launch.plan import LIBRARY_SLUG
from lib.validation import UNREADABLE, is_safe_name


def check(out: Path) -> tuple[list[str], list[str], list[str]]:
    """Hold a build against the rules of client and service.

    Returns:
        What was looked at (one line a kernel), problems, and warnings.
    """
    problems: list[str] = []
    warnings: list[str] = []
    looked: list[str] = []
    folders = sorted(path for path in (out / "kernels").glob("*") if path.is_dir()) if out.is_dir() else []
    if not folders:
        return [], [f"{out} holds no build: run build_kernel.py build first"], []
    metadata: dict[str, dict[str, object]] = {}
    for folder in folders:
        try:
            content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except UNREADABLE as error:
            problems.append(f"{folder.name}: {METADATA} cannot be read: {error}")
            continue
        if isinstance(content, dict):
            metadata[folder.name] = content
        else:
            problems.append(f"{folder.name}: {METADATA} holds no JSON object")
    for slug, entry in metadata.items():
        folder = out / "kernels" / slug
        problems += [f"{slug}: {problem}" for problem in check_kernel_metadata(entry, folder)]
        if str(entry.get("id", "")).partition("/")[2] != slug:
            problems.append(f"{slug}: its id is {entry.get('id')!r}")
        sources = entry.get("kernel_sources")
        for read in sources if isinstance(sources, list) else []:
            if str(read).partition("/")[2] not in metadata:
                problems.append(f"{slug}: reads {read}, which this build does not hold")
        code = str(entry.get("code_file"))
        script = folder / code
        if not is_safe_name(code) or not script.is_file():
            continue
        source = script.read_bytes()
        found = _check_source(source, name=script.name)
        problems += [f"{slug}: {problem}" for problem in found]
        looked.append(f"{slug}: {len(source):,} bytes, {len(source) / SOURCE_LIMIT:.0%} of the limit")
    owners = {str(entry.get("id", "")).partition("/")[0] for entry in metadata.values()}
    if len(owners) > 1:
        problems.append(f"the kernels belong to different owners: {', '.join(sorted(owners))}")
    if PLACEHOLDER_OWNER in owners:
        warnings.append(
            f"the owner is still {PLACEHOLDER_OWNER!r}: write yours into {METADATA} (or build with --owner) before you push"
        )
    try:
        dataset = json.loads((out / "dataset" / DATASET_METADATA).read_text(encoding="utf-8"))
        if not isinstance(dataset, dict):
            raise ValueError("it holds no JSON object")
        problems += [f"{LIBRARY_SLUG}: {problem}" for problem in check_dataset_metadata(dataset)]
        if len(list((out / "dataset").iterdir())) > 50:
            problems.append(f"{LIBRARY_SLUG}: more than 50 files at the top")
        for name, text in texts_in(out / "dataset").items():
            problems += [f"{LIBRARY_SLUG}/{name}: {problem}" for problem in _leaks(text)]
    except UNREADABLE as error:
        problems.append(f"{LIBRARY_SLUG}: {DATASET_METADATA} cannot be read: {error}")
    return looked, problems, warnings


def _check_source(content: bytes, *, name: str) -> list[str]:
    problems = []
    if len(content) >= SOURCE_LIMIT:
        problems.append(f"{len(content):,} bytes, Kaggle takes less than {SOURCE_LIMIT:,}")
    try:
        text = content.decode("utf-8")
        for code in _code_of(text, name):
            compile(code, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        return [*problems, f"does not compile: {error}"]
    return problems + _leaks(text)


def _code_of(text: str, name: str) -> list[str]:
    """What a source holds to be compiled: a script is one piece, a notebook one a cell."""
    if not name.endswith(".ipynb"):
        return [text]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


def _leaks(text: str) -> list[str]:
    """Secrets, and paths of the machine it was built on."""
    problems = secrets_in(text, own=own_secrets())
    if found := paths_in(text):
        problems.append(f"holds a path of a machine: {', '.join(found[:3])}")
    return problems
