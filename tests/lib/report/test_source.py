"""The code that a notebook shows is that of the repository, whole, and found without an import."""

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

from launch import ROOT
from lib.data import folds
from lib.report.source import list_sources, show_source


def test_the_source_of_a_name_is_the_one_that_python_knows() -> None:
    shown = show_source("lib.data.folds", "make_folds", "fold_table_id")
    parts = [inspect.getsource(function).rstrip("\n") for function in (folds.make_folds, folds.fold_table_id)]
    assert str(shown) == "\n\n".join(parts)
    html = shown._repr_html_()
    line = inspect.getsourcelines(folds.make_folds)[1]
    assert f"lib/data/folds.py, lines {line} to {line + parts[0].count(chr(10))}" in html
    assert html.count('<pre tabindex="0" style="font-family: monospace; white-space: pre;') == 2
    assert html.count("<details>") == 2 and " open" not in html  # folded
    assert (
        re.sub(r"<[^>]+>", "", html).replace("&quot;", '"').replace("&#39;", "'").count("def make_folds(")
        == 1
    )
    assert repr(shown) == "<source of lib/data/folds.py: make_folds, fold_table_id>"
    assert str(show_source("lib.data.folds")) == (ROOT / "lib/data/folds.py").read_text().rstrip("\n")


def test_methods_and_decorators_are_part_of_a_source() -> None:
    method = str(show_source("lib.data.prepared", "Prepared.bytes_of"))
    assert method.lstrip().startswith("def bytes_of") and method.rstrip().endswith("st_size")
    assert str(show_source("lib.data.prepared", "Prepared")).startswith(
        "@dataclass(frozen=True)\nclass Prepared:"
    )


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("lib.nothing", "", r"there is no module lib.nothing: list_sources\(\)"),
        ("lib.data.folds", "made_up", "defines no made_up; it has .*make_folds"),
    ],
)
def test_what_does_not_exist_is_refused(module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_source(module, *[name] * bool(name))


def test_every_source_that_the_notebook_shows_exists() -> None:
    calls = [
        [ast.literal_eval(argument) for argument in node.args]
        for node in ast.walk(ast.parse((ROOT / "kernels" / "report.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source"
    ]
    assert len(calls) > 10
    for module, *names in calls:
        assert all(hasattr(importlib.import_module(module), name) for name in names)
        assert len(show_source(module, *names).parts) == max(len(names), 1)


def test_sources_are_shown_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from lib.report.source import show_source; "
    code += "print(show_source('lib.training.epoch', 'train_one_epoch'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("def train_one_epoch(")


def test_the_list_of_sources_has_a_purpose_for_every_module() -> None:
    [table] = list_sources().blocks
    assert {"lib.training.fold", "lib.data", "kernels.train"} <= {module for module, _, _ in table.rows}
    assert all(int(lines.replace(",", "")) > 0 and len(purpose) > 10 for _, lines, purpose in table.rows)
