"""Library and recipe as one readable script that unpacks and runs itself. The same tree gives the same bytes.

The code travels as plain text, so that it can be read on Kaggle, and tracebacks name `lib/<file>.py` with the
repository's line numbers. A thin script carries only the hashes of the files and imports them from the mounted dataset.
"""

import ast
import hashlib
import json
import pprint
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.plan import LIBRARY_SLUG, NOTEBOOK_KINDS, ROOT, Kernel

SOURCE_LIMIT = 1_000_000  # bytes; the service refuses more ("must be less than 1 megabytes")
_BUNDLED = ("lib", "kernels")
LIBRARY_TAG = "library"  # of the cell of a notebook that parameters and library take the place of
# Folded in JupyterLab, and on Kaggle.
_FOLDED = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
_NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def library_files(root: Path = ROOT) -> dict[str, str]:
    """Everything that travels: relative path to text, in the order of the paths.

    Raises:
        LaunchError: a file that cannot be embedded as text without changing it; all of them listed.
    """
    files, problems = {}, []
    notebooks = {f"kernels/{kind}.py" for kind in NOTEBOOK_KINDS}  # cells, no module
    for path in sorted(path for top in _BUNDLED for path in (root / top).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in notebooks:
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(f"{name} is not UTF-8 ({error})")
            continue
        if "\r" in text or "\0" in text:
            problems.append(f"{name} holds carriage returns or null bytes: save it with plain line ends")
        files[name] = text
    if problems:
        raise LaunchError("the library cannot be bundled:\n  - " + "\n  - ".join(problems))
    if not files:
        raise LaunchError(f"{root} holds no lib/ and kernels/")
    return files


def bundle_id(files: dict[str, str]) -> str:
    """SHA-256 over the names and contents of the files."""
    digest = hashlib.sha256()
    for name, text in sorted(files.items()):
        content = text.encode()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def kernel_parameters(
    kernel: Kernel,
    *,
    owner: str,
    bundle: str,
    commit: str,
    strict_bundle: bool,
    push_id: str = "",
    limit: float = 0.0,
    inputs: Mapping[str, str] | None = None,
    finished: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the script tells `lib.runtime.session.read_parameters`."""
    search = kernel.search
    searched = {} if search is None else {"search": {"name": search.name, "values": search.to_dict()}}
    return {
        "kind": kernel.kind,
        "slug": kernel.slug,
        "experiments": list(kernel.experiments),
        "owner": owner,
        "fold": kernel.fold,
        "folds": [list(folds) for folds in kernel.folds],
        "encoders": list(kernel.encoders),
        "average": kernel.average,
        "facts": dict(kernel.facts),
        "needs_gpu": kernel.needs_gpu,
        "internet": kernel.internet,
        "strict_bundle": strict_bundle,
        "push_id": push_id,
        "limit": limit,
        "inputs": dict(inputs or {}),
        "bundle_id": bundle,
        "git_commit": commit,
        "configs": [asdict(config) for config in kernel.configs],
        **searched,
        **({"finished": [dict(record) for record in finished]} if finished else {}),
    }


def _literal(text: str) -> str:
    """A Python literal that reads as the text itself where that is possible."""
    if "'''" not in text and text.endswith("\n"):
        return f"r'''{text}'''"
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + "    ''\n)"


_HEAD = '''\
"""{title}

One {what} that carries the whole library as plain text and runs by itself: this is what `kaggle kernels push` uploads.
Made by `python build_kernel.py build`. Change lib/ or kernels/ and build again, not this file.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

PARAMETERS = {parameters}

'''

_FULL = '''\
FILES = {{
{files}}}


def unpack():
    """Write the files into a folder named by their hash and return it; several processes may do so at once."""
    digest = hashlib.sha256()
    for name, text in sorted(FILES.items()):
        digest.update(f"{{name}}\\0{{len(text.encode())}}\\0".encode() + text.encode())
    if digest.hexdigest() != PARAMETERS["bundle_id"]:
        sys.exit("error: this script was changed after it was built (its files do not match bundle_id): build it again")

    def intact(folder):
        try:
            status = folder.lstat()
            if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o22):
                return False  # somebody else's: beside the right sources may lie compiled code that is not theirs
            found = {{path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}}
            return found == set(FILES) and all((folder / n).read_bytes() == t.encode() for n, t in FILES.items())
        except OSError:
            return False

    folder = Path(tempfile.gettempdir()) / f"hcd-{{PARAMETERS['bundle_id'][:16]}}"
    if intact(folder):
        return folder
    beside = Path(tempfile.mkdtemp(prefix="hcd-"))  # readable by this user alone
    for name, text in FILES.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).write_bytes(text.encode())
    try:
        os.rename(beside, folder)
    except OSError:  # another process was first, or something else lies there: trust it only if it is the same
        return folder if intact(folder) else beside
    return folder
'''

_THIN = '''\
DIGESTS = {digests}


def find_library():
    """The mounted dataset with exactly the files this script was built with."""
    root = Path(os.environ.get("HCD_INPUT", "/kaggle/input"))
    owner, slug = PARAMETERS["owner"], "{slug}"
    places = ["datasets/" + owner + "/" + slug, "datasets/organizations/" + owner + "/" + slug, slug]
    found = [root / place for place in places if (root / place / "lib").is_dir()]
    if not found:
        where = owner + "/" + slug + " is not mounted under " + str(root)
        sys.exit("error: the dataset " + where + ": attach it, or build without --thin")
    wrong = []
    for name, digest in DIGESTS.items():
        path = found[0] / name
        if not path.is_file():
            wrong.append(name + " is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(name + " differs")
    if wrong:
        sys.exit(
            "error: " + str(found[0]) + " is not the library this script was built with:\\n  - " + "\\n  - ".join(wrong)
            + "\\nUpload dist/dataset, wait until the new version is ready, and push again; or build without --thin."
        )
    return found[0]
'''

_RUN = """\


if __name__ == "__main__":
{imports}
    from kernels.{recipe} import main

    sys.exit(main(PARAMETERS))
"""
# How the library gets onto the path; a thin kernel's dataset is mounted read-only.
_IMPORTS = {
    False: "sys.path.insert(0, str(unpack()))",
    True: "sys.dont_write_bytecode = True\nsys.path.insert(0, str(find_library()))",
}


def render_script(
    kernel: Kernel, files: dict[str, str], parameters: dict[str, Any], *, thin: bool = False
) -> str:
    """The source of a kernel.

    Raises:
        LaunchError: it is over the limit, or does not read back as what went in.
    """
    # The recipe last: whoever scrolls to the end of the script finds what it does.
    recipe = f"kernels/{kernel.kind}.py"
    order = [name for name in files if name != recipe] + [recipe]
    run = _RUN.format(imports=textwrap.indent(_IMPORTS[thin], "    "), recipe=kernel.kind)
    source = _library(kernel, {name: files[name] for name in order}, parameters, thin=thin, what="file") + run
    _hold_to_limit(kernel, source)
    _verify(source, files if not thin else None, parameters)
    return source


def render_notebook(
    kernel: Kernel,
    files: dict[str, str],
    parameters: dict[str, Any],
    *,
    thin: bool = False,
    root: Path = ROOT,
) -> str:
    """The source of a kernel that is a notebook: its cells, and the library in a folded one.

    `kernels/<kind>.py` holds the cells in jupytext's percent format; the one tagged `library` stands for parameters and library.

    Raises:
        LaunchError: it is over the limit, has no place for the library, or does not read back as what went in.
    """
    import jupytext
    import nbformat

    name = f"kernels/{kernel.kind}.py"
    notebook = jupytext.reads((root / name).read_text(encoding="utf-8"), fmt="py:percent")
    places = [cell for cell in notebook.cells if LIBRARY_TAG in cell.metadata.get("tags", [])]
    if len(places) != 1:
        raise LaunchError(f"{name} needs one cell with the tag {LIBRARY_TAG}, it has {len(places)}")
    library = _library(kernel, files, parameters, thin=thin, what="notebook") + f"\n\n{_IMPORTS[thin]}\n"
    places[0].source = library
    places[0].metadata |= _FOLDED
    for number, cell in enumerate(notebook.cells):
        cell.id = (
            f"cell-{number}"  # jupytext draws them at random, and the same tree shall give the same bytes
        )
    notebook.metadata.clear()
    notebook.metadata.update(_NOTEBOOK_METADATA)
    nbformat.validate(notebook)
    plain = dict(notebook) | {
        "cells": [{**cell, "source": cell.source.splitlines(keepends=True)} for cell in notebook.cells]
    }
    source = json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    _hold_to_limit(kernel, source)
    _verify(library, files if not thin else None, parameters)
    return source


def _library(
    kernel: Kernel, files: dict[str, str], parameters: dict[str, Any], *, thin: bool, what: str
) -> str:
    """Parameters, and the library or where to find it."""
    of = f" of {' + '.join(kernel.experiments)}" if kernel.experiments else ""
    title = f"{kernel.slug}: the {kernel.kind} kernel{of}."
    head = _HEAD.format(
        title=title, what=what, parameters=pprint.pformat(parameters, sort_dicts=False, width=118)
    )
    if thin:
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(files.items())}
        return head + _THIN.format(digests=pprint.pformat(digests, width=118), slug=LIBRARY_SLUG)
    embedded = "".join(f"    {name!r}: {_literal(text)},\n" for name, text in files.items())
    return head + _FULL.format(files=embedded)


def _hold_to_limit(kernel: Kernel, source: str) -> None:
    if (size := len(source.encode())) >= SOURCE_LIMIT:
        raise LaunchError(
            f"{kernel.slug} has {size:,} bytes, Kaggle takes less than {SOURCE_LIMIT:,}: build with --thin"
        )


def _verify(source: str, files: dict[str, str] | None, parameters: dict[str, Any]) -> None:
    """Read the script back as Python would: what does not come out as it went in must not be pushed."""
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    assert json.loads(json.dumps(values["PARAMETERS"])) == json.loads(json.dumps(parameters)), (
        "parameters changed on the way"
    )
    assert files is None or values["FILES"] == files, "the library changed on the way"
