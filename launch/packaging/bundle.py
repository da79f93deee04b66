"""Render a kernel's source: parameters, recipe, and the part of the library that the recipe imports.

The same checkout gives the same bytes. The code is plain text, so that it can be read on Kaggle and a
traceback names `lib/<file>.py` with the repository's line number. A notebook is read from its first cell on,
so it carries the files compressed, in a cell of a few lines, and shows the code where it is used. A thin
script holds only hashes: it imports the files from the mounted dataset.
"""

import ast
import base64
import copy
import functools
import hashlib
import json
import lzma
import pprint
import re
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError
from launch.packaging.closure import embedded_files
from launch.plan import LIBRARY_SLUG, NOTEBOOK_KINDS, Kernel
from lib.config import NEUTRAL_OPTIONS, Config, to_toml

SOURCE_LIMIT = 1_000_000  # bytes; the service refuses more ("must be less than 1 megabytes")
LIBRARY_TAG = "library"  # of the notebook cell that parameters and library are put into
_WIDTH = 110
_BUNDLED = ("lib", "kernels")
_BOOTSTRAP = Path(__file__).with_name("bootstrap")
_PLACEHOLDER = "# placeholder"
_PACKED_LINE = 32_000  # characters of a line of compressed files; editors scroll such a line sideways
_PACKED_IMPORTS = "import base64\nimport json\nimport lzma\n"
_START = 'if __name__ == "__main__":'
# The library cell of a notebook is folded in JupyterLab, and on Kaggle.
_FOLDED = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
_NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def library_files(root: Path = ROOT) -> dict[str, str]:
    """The library: relative path to text of every file below lib/ and kernels/, in the order of the paths.

    Hidden files, compiled code and recipes that are notebooks are left out.

    Raises:
        LaunchError: files that cannot be embedded as text without changing them; all of them listed.
    """
    files, problems = {}, []
    notebooks = {f"kernels/{kind}.py" for kind in NOTEBOOK_KINDS}  # cells, no module
    for path in sorted(path for top in _BUNDLED for path in (root / top).rglob("*") if path.is_file()):
        parts = path.relative_to(root).parts
        name = "/".join(parts)
        if name in notebooks or "__pycache__" in parts or any(part.startswith(".") for part in parts):
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


def bundle_id(files: Mapping[str, str]) -> str:
    """The SHA-256 over names and contents of files: of the library (BUNDLE_ID) or of a script (FILES_ID)."""
    digest = hashlib.sha256()
    for name, text in sorted(files.items()):
        content = text.encode()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
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
    """The parameters of a script, as `lib.runtime.session.read_parameters` reads them."""
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


def carries_push_id(source: str, push_id: str) -> bool:
    """Whether the source of a kernel is that of a push."""
    return re.search(re.escape(push_id) + r"(?!\d)", source) is not None


def push_id_in(source: str, slug: str) -> str:
    """The push id among the parameters of a kernel's source; empty where there is none.

    The source of a search also holds the ids of the earlier pushes that its finished trials come from.
    """
    # Kaggle may write the quotes in a notebook otherwise than we do.
    pattern = rf"push_id\W.{{0,20}}?(?<![0-9a-z])([0-9a-f]{{8}}\.{re.escape(slug)}\.\d+)"
    match = re.search(pattern, source)
    return match[1] if match else ""


def _literal(text: str) -> str:
    """A Python literal of a text; where possible a raw string with the text unchanged."""
    if "'''" not in text and text.endswith("\n"):
        return f"r'''{text}'''"
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + "    ''\n)"


def render_script(
    kernel: Kernel, files: Mapping[str, str], parameters: Mapping[str, Any], *, thin: bool = False
) -> str:
    """The source of a kernel that is a script.

    Args:
        kernel: the kernel.
        files: the whole library; the script carries what its recipe imports.
        parameters: see `kernel_parameters`.
        thin: carry hashes, and import the files from the dataset.

    Raises:
        LaunchError: the recipe cannot be embedded, or the script is over the limit.
    """
    recipe = f"kernels/{kernel.kind}.py"
    embedded = embedded_files(files, recipe=recipe)
    purpose = ast.get_docstring(ast.parse(embedded[recipe])) or ""
    source = _bootstrap(kernel, embedded, parameters, thin=thin, purpose=purpose)
    _require_limit(kernel, source)
    return source


def render_notebook(
    kernel: Kernel,
    files: Mapping[str, str],
    parameters: Mapping[str, Any],
    *,
    thin: bool = False,
    root: Path = ROOT,
) -> str:
    """The source of a kernel that is a notebook: its cells, with the library in a folded, short one.

    `kernels/<kind>.py` holds the cells in jupytext's percent format. The one tagged `library` is replaced by
    parameters and library.

    Raises:
        LaunchError: it has no cell for the library, its imports cannot be embedded, or it is over the limit.
    """
    import nbformat

    recipe = f"kernels/{kernel.kind}.py"
    text = (root / recipe).read_text(encoding="utf-8")
    notebook = copy.deepcopy(_cells_in(text))
    places = [cell for cell in notebook.cells if LIBRARY_TAG in cell.metadata.get("tags", [])]
    if len(places) != 1:
        raise LaunchError(f"{recipe} needs one cell with the tag {LIBRARY_TAG}, it has {len(places)}")
    purpose = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    embedded = embedded_files(files, recipe=recipe, source=text)
    places[0].source = _bootstrap(kernel, embedded, parameters, thin=thin, purpose=purpose).rstrip("\n")
    places[0].metadata |= _FOLDED
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws ids at random; the same checkout must give the same bytes
    notebook.metadata.clear()
    notebook.metadata.update(_NOTEBOOK_METADATA)
    nbformat.validate(notebook)
    plain = dict(notebook) | {
        "cells": [{**cell, "source": cell.source.splitlines(keepends=True)} for cell in notebook.cells]
    }
    source = json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    _require_limit(kernel, source)
    return source


@functools.lru_cache(maxsize=2)
def _cells_in(text: str) -> Any:
    """The notebook of a text in jupytext's percent format. Not to be changed."""
    import jupytext

    return jupytext.reads(text, fmt="py:percent")


def _bootstrap(
    kernel: Kernel, embedded: Mapping[str, str], parameters: Mapping[str, Any], *, thin: bool, purpose: str
) -> str:
    """Summary, parameters, the files or their hashes, and the code that imports them and runs the recipe."""
    notebook = kernel.kind in NOTEBOOK_KINDS
    values = {
        "PARAMETERS": _in_few_lines(parameters) if notebook else _formatted(parameters),
        "RECIPE": repr("" if notebook else f"kernels.{kernel.kind}"),
    }
    if thin:
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(embedded.items())}
        values |= {"DIGESTS": _formatted(digests), "DATASET": repr(f"{parameters['owner']}/{LIBRARY_SLUG}")}
    else:
        entries = "".join(f"    {name!r}: {_literal(text)},\n" for name, text in embedded.items())
        packed = pack_files(embedded) if notebook else f"{{\n{entries}}}"
        values |= {"FILES": packed, "FILES_ID": repr(bundle_id(embedded))}
    template = (_BOOTSTRAP / ("find_library.py" if thin else "unpack.py")).read_text(encoding="utf-8")
    body = ("\n" + _PACKED_IMPORTS if notebook and not thin else "") + fill_placeholders(template, values)
    # The summary names lines of the source, and moves them down by its own length: the same for any numbers.
    draft = _summary(kernel, embedded, parameters, thin=thin, purpose=purpose, body=body, above=0)
    above = draft.count("\n")
    source = _summary(kernel, embedded, parameters, thin=thin, purpose=purpose, body=body, above=above) + body
    _verify(source, None if thin else embedded, parameters)
    return source


def fill_placeholders(template: str, values: Mapping[str, str]) -> str:
    """A bootstrap file without its docstring, each placeholder with its value.

    A placeholder is one line at the top level of the file, `NAME: type = value  # placeholder`. It becomes
    `NAME = ` and the value.

    Raises:
        AssertionError: the placeholders of the file and the values differ in their names.
    """
    docstring, *statements = ast.parse(template).body
    assert isinstance(docstring, ast.Expr) and docstring.end_lineno is not None
    lines = template.splitlines()
    places = {
        node.target.id: node.lineno - 1
        for node in statements
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and lines[node.lineno - 1].endswith(_PLACEHOLDER)
    }
    assert places.keys() == values.keys(), (sorted(places), sorted(values))
    for name, place in places.items():
        lines[place] = f"{name} = {values[name]}"
    return "\n".join(lines[docstring.end_lineno :]) + "\n"


def _summary(
    kernel: Kernel,
    embedded: Mapping[str, str],
    parameters: Mapping[str, Any],
    *,
    thin: bool,
    purpose: str,
    body: str,
    above: int,
) -> str:
    """The docstring of a kernel's source: what it does and differs in, and in which lines its parts begin.

    Args:
        kernel: the kernel.
        embedded: what it imports of the library.
        parameters: see `kernel_parameters`.
        thin: whether the files come from the dataset.
        purpose: the docstring of the recipe.
        body: the source below the summary.
        above: lines of the summary itself.
    """
    title, *details = purpose.splitlines()
    notebook = kernel.kind in NOTEBOOK_KINDS
    recipe = f"kernels/{kernel.kind}.py"
    lines = body.split("\n")

    def line_of(start: str) -> str:
        return (
            f"line {above + 1 + next(number for number, line in enumerate(lines) if line.startswith(start))}"
        )

    modules = [name for name in embedded if name != recipe]
    if thin:
        library = f"{line_of('DIGESTS = ')}: hashes of {len(modules)} files in the dataset {LIBRARY_SLUG}"
    elif notebook:
        library = f"{line_of('FILES = ')}: the {len(modules)} files that the cells use, compressed"
    else:
        library = f"{line_of(f'    {modules[0]!r}: ')}: the {len(modules)} files that the recipe imports"
    place = f"{recipe} in the dataset {LIBRARY_SLUG}"
    if notebook:
        place = "the cells below this one"
    elif not thin:
        place = f"{line_of(f'    {recipe!r}: ')}: {recipe}"
    start = len(lines) - lines[::-1].index(_START) + above  # the last one: a recipe has such a line, too
    experiments = [
        f"{name}, {_differences(config)}"
        for name, config in zip(kernel.experiments or ("shared by all",), kernel.configs, strict=False)
    ]
    inputs = [*["the competition"] * kernel.competition, *kernel.sources, *kernel.datasets]
    rows = {
        "Experiment": "; ".join(experiments),
        "Inputs": ", ".join(inputs) or "none",
        "Machine": ("2 x T4" if kernel.needs_gpu else "CPU")
        + f", internet {'on' if kernel.internet else 'off'}",
        "Push": parameters["push_id"] or "by hand, without an id",
    }
    lines_of_parts = {
        "Recipe": place,
        "Library": f"{library}; bundle {parameters['bundle_id'][:12]}",
        "Start": f"line {start}: make the files importable" + ("" if notebook else " and run the recipe"),
    }
    table = [_row(name, text) for name, text in rows.items()]
    table += [f"{name:12}{text}" for name, text in lines_of_parts.items()]  # one line each for any numbers
    made = "Made by `python build_kernel.py build`. Change lib/ or kernels/ and build again, not this file."
    text = "\n".join([textwrap.fill(f"{kernel.slug}: {title}", _WIDTH), *details, "", *table, "", made])
    return '"""' + text.replace("\\", "\\\\").replace('"""', r"\"\"\"") + '\n"""\n'


def _row(name: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=f"{name:12}", subsequent_indent=" " * 12, break_on_hyphens=False
    )


def _differences(config: Config) -> str:
    """The options of an experiment that are not at their defaults, as its file would have them."""
    lines = to_toml(config).splitlines()
    options = [line for line in lines if not line.startswith(NEUTRAL_OPTIONS)]  # which decide no result
    return f"not at the defaults: {', '.join(options)}" if options else "all options at their defaults"


def _formatted(values: Mapping[str, Any]) -> str:
    return pprint.pformat(dict(values), sort_dicts=False, width=_WIDTH)


def _in_few_lines(values: Mapping[str, Any]) -> str:
    """The parameters of a notebook, short ones side by side, a long one on a line of its own."""
    lines = [""]
    for name, value in values.items():
        entry = f"{name!r}: {value!r},"
        if lines[-1] and len(lines[-1]) + len(entry) >= _WIDTH:
            lines.append("")
        lines[-1] += f" {entry}" if lines[-1] else f"    {entry}"
    return "\n".join(["{", *lines, "}"])


def pack_files(files: Mapping[str, str]) -> str:
    """An expression whose value is `files`: JSON, compressed, as text without quotes and slashes."""
    text = _compressed(json.dumps(dict(files), ensure_ascii=False))
    lines = (text[start : start + _PACKED_LINE] for start in range(0, len(text), _PACKED_LINE))
    packed = "".join(f'    "{line}"\n' for line in lines)
    return f"json.loads(lzma.decompress(base64.b85decode(\n{packed})))"


@functools.lru_cache(maxsize=2)  # a campaign writes its report's notebook three times
def _compressed(text: str) -> str:
    return base64.b85encode(lzma.compress(text.encode(), preset=9)).decode("ascii")


def read_files(expression: ast.expr) -> dict[str, str]:
    """The files of a source, without running it: of a dictionary, or of what `pack_files` wrote.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(expression, ast.Dict):
        files: dict[str, str] = ast.literal_eval(expression)
        return files
    texts = [node.value for node in ast.walk(expression) if isinstance(node, ast.Constant)]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise ValueError("the files of the library are neither a dictionary nor one compressed text")
    unpacked: dict[str, str] = json.loads(lzma.decompress(base64.b85decode(texts[0])))
    return unpacked


def _require_limit(kernel: Kernel, source: str) -> None:
    if (size := len(source.encode())) >= SOURCE_LIMIT:
        raise LaunchError(
            f"{kernel.slug} has {size:,} bytes, Kaggle takes less than {SOURCE_LIMIT:,}: build with --thin"
        )


def _verify(source: str, files: Mapping[str, str] | None, parameters: Mapping[str, Any]) -> None:
    """Read the source back as Python would: a value that changed on the way must not be pushed."""
    values: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
    read = ast.literal_eval(values["PARAMETERS"])
    assert json.loads(json.dumps(read)) == json.loads(json.dumps(parameters)), "other parameters"
    assert files is None or read_files(values["FILES"]) == files, "another library"


def git_commit(root: Path = ROOT) -> str:
    """The commit of the checkout, with `+changes` when tracked files differ from it.

    Empty outside a repository.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit + ("+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
