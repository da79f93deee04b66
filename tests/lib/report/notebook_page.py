"""The report's notebook as a page of nbconvert: its cells, evaluated here, then the command of the docs."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jupytext
import nbformat
from IPython.core.formatters import DisplayFormatter

from launch import ROOT
from lib.report.document import Report
from lib.runtime.session import Session

LAST = "session.write_outputs"  # of the cell that writes the files of the kernel


def documented_command() -> list[str]:
    """The arguments of nbconvert in docs/outputs.md, without the notebook."""
    [command] = re.findall(
        r"^    jupyter nbconvert (.*) report\.ipynb$", (ROOT / "docs/outputs.md").read_text(), re.M
    )
    return shlex.split(command)


def write_notebook_page(report: Report, session: Session, folder: Path) -> Path:
    """Evaluate the cells of kernels/report.py but the last one, and convert them to report.html.

    Args:
        report: its sections are those that are already made, where they are made.
        session: of the same outputs.
        folder: gets report.ipynb and report.html.
    """
    notebook = jupytext.read(ROOT / "kernels" / "report.py")
    shown: list[Any] = []
    with (
        patch("lib.runtime.session.open_notebook", lambda values: session),
        patch.object(Report, "of", lambda session: report),
        patch("IPython.display.display", shown.append),
    ):
        namespace: dict[str, Any] = {}
        for cell in notebook.cells:
            if cell.cell_type != "code" or LAST in cell.source:
                continue
            shown.clear()
            _evaluate(cell.source, namespace, shown)
            cell.outputs = [_output(value) for value in shown]
            cell.execution_count = 1
    nbformat.write(notebook, folder / "report.ipynb")
    command = [sys.executable, "-m", "nbconvert", *documented_command(), "report.ipynb"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


def _evaluate(source: str, namespace: dict[str, Any], shown: list[Any]) -> None:
    """Run a cell; the value of an expression at its end is shown."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        if value is not None:
            shown.append(value)


def _output(value: Any) -> Any:
    """The output that Jupyter would store for a value."""
    data, metadata = DisplayFormatter().format(value)
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata)
