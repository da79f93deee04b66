"""Check a build against the rules of the Kaggle client and service, and report all problems at once."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from launch.packaging.backbones import check_backbones
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
from lib.config import WEIGHT_ENDINGS
from lib.validation import UNREADABLE, is_safe_name

# Lines of the parameters in a script: kernels that read weights, and a file that holds them.
_KIND = re.compile(r"^PARAMETERS = .'kind': '(train|embed|search|pretrain)'", re.MULTILINE)
_PARAMETERS = re.compile(r"^PARAMETERS = (.*\n(?: .*\n)*)", re.MULTILINE)
_WEIGHTS = re.compile(
    rf"^\s*'(weights|pretrain_weights)': '([^'\n]+(?:{'|'.join(map(re.escape, WEIGHT_ENDINGS))}))'",
    re.MULTILINE,
)


@dataclass
class CheckResult:
    """The result of a check.

    Attributes:
        sizes: one line a kernel, with the size of its source.
        problems: what Kaggle or its client would refuse, and secrets and paths of this machine.
        warnings: what need not be fixed before a rehearsal.
    """

    sizes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(out: Path) -> CheckResult:
    """Check a build against the rules of the client and the service, and for secrets.

    Args:
        out: the folder that `build` wrote to.
    """
    result = CheckResult()
    folders = sorted(path for path in (out / "kernels").glob("*") if path.is_dir()) if out.is_dir() else []
    if not folders:
        result.problems.append(f"{out} holds no build: run build_kernel.py build first")
        return result
    metadata: dict[str, dict[str, object]] = {}
    for folder in folders:
        try:
            content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except UNREADABLE as error:
            result.problems.append(f"{folder.name}: {METADATA} cannot be read: {error}")
            continue
        if isinstance(content, dict):
            metadata[folder.name] = content
        else:
            result.problems.append(f"{folder.name}: {METADATA} holds no JSON object")
    for slug in metadata:
        _check_kernel(slug, metadata, out, result)
    names = [name for slug in metadata for name in _backbones(out / "kernels" / slug)]
    result.problems += check_backbones(names)
    owners = {str(entry.get("id", "")).partition("/")[0] for entry in metadata.values()}
    if len(owners) > 1:
        result.problems.append(f"the kernels belong to different owners: {', '.join(sorted(owners))}")
    if PLACEHOLDER_OWNER in owners:
        result.warnings.append(
            f"the owner is still {PLACEHOLDER_OWNER!r}: write yours into {METADATA} (or build with --owner) "
            "before you push"
        )
    _check_dataset(out / "dataset", result)
    return result


def _check_kernel(slug: str, metadata: dict[str, dict[str, object]], out: Path, result: CheckResult) -> None:
    """Check the metadata and the source of one kernel, and that the build holds the kernels it reads."""
    entry, folder = metadata[slug], out / "kernels" / slug
    problems = check_kernel_metadata(entry, folder)
    if str(entry.get("id", "")).partition("/")[2] != slug:
        problems.append(f"its id is {entry.get('id')!r}")
    sources = entry.get("kernel_sources")
    for source in sources if isinstance(sources, list) else []:
        if str(source).partition("/")[2] not in metadata:
            problems.append(f"reads {source}, which this build does not hold")
    code_file = str(entry.get("code_file"))
    script = folder / code_file
    if is_safe_name(code_file) and script.is_file():
        content = script.read_bytes()
        problems += _check_source(content, name=script.name)
        if (file := _weights_file(content)) and not _attached(entry):
            problems.append(f"its weights are the file {file}, and no dataset that could hold it is attached")
        result.sizes.append(f"{slug}: {len(content):,} bytes, {len(content) / SOURCE_LIMIT:.0%} of the limit")
    result.problems += [f"{slug}: {problem}" for problem in problems]


def _weights_file(content: bytes) -> str:
    """The file of weights that a kernel's parameters name; empty for none, or where no weights are read."""
    text = content.decode("utf-8", errors="replace")
    kind = _KIND.search(text)
    if kind is None:
        return ""
    option = "pretrain_weights" if kind[1] == "pretrain" else "weights"
    return next((name for wanted, name in _WEIGHTS.findall(text) if wanted == option), "")


def _backbones(folder: Path) -> list[str]:
    """The backbones that a kernel's parameters name; empty for a notebook, or where they cannot be read."""
    names: list[str] = []
    for script in sorted(folder.glob("*.py")):
        block = _PARAMETERS.search(script.read_text(encoding="utf-8", errors="replace"))
        try:
            values = ast.literal_eval(block[1]) if block else {}
            names += [str(name) for name in values.get("encoders", ())]
            if values.get("experiments"):
                names += [str(config["backbone"]) for config in values["configs"]]
            searched = values.get("search", {}).get("values", {}).get("space", {}).get("backbone", ())
            names += [searched] if isinstance(searched, str) else [str(name) for name in searched]
        except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # the compiler's message is a problem already
    return names


def _attached(metadata: dict[str, object]) -> list[str]:
    """The attached datasets that the user made."""
    sources = metadata.get("dataset_sources")
    names = [str(source) for source in sources] if isinstance(sources, list) else []
    return [name for name in names if name.partition("/")[2] != LIBRARY_SLUG]


def _check_dataset(folder: Path, result: CheckResult) -> None:
    """Check the metadata and the files of the library dataset."""
    try:
        metadata = json.loads((folder / DATASET_METADATA).read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError("it holds no JSON object")
        texts, number = texts_in(folder), len(list(folder.iterdir()))
    except UNREADABLE as error:
        result.problems.append(f"{LIBRARY_SLUG}: {DATASET_METADATA} cannot be read: {error}")
        return
    problems = check_dataset_metadata(metadata)
    if number > 50:
        problems.append("more than 50 files at the top")
    result.problems += [f"{LIBRARY_SLUG}: {problem}" for problem in problems]
    for name, text in texts.items():
        result.problems += [f"{LIBRARY_SLUG}/{name}: {problem}" for problem in _private_texts(text)]


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
    return problems + _private_texts(text)


def _code_of(text: str, name: str) -> list[str]:
    """The pieces of a source that are compiled one by one: a whole script, or each cell of a notebook."""
    if not name.endswith(".ipynb"):
        return [text]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


def _private_texts(text: str) -> list[str]:
    """Secrets, and paths of the machine that the build was made on."""
    problems = secrets_in(text, own=own_secrets())
    if paths := paths_in(text):
        problems.append(f"holds a path of a machine: {', '.join(paths[:3])}")
    return problems
