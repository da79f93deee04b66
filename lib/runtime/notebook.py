"""The executed notebook of a kernel, kept as an ordinary file of its output."""

import json
from pathlib import Path

from lib.files import write_atomic
from lib.runtime.inputs import EXECUTED_NOTEBOOK
from lib.validation import UNREADABLE

KEPT_NOTEBOOK = "report.ipynb"


def keep_executed_notebook(folder: Path) -> dict[str, bool]:
    """Copy the notebook that is being executed, with the outputs up to here; its name, which is fetched.

    Kaggle runs a notebook by papermill, which saves it in the working folder after every cell, as
    launch/notebook_runner.py does; the API lists no such file. In Jupyter there is none: the user saves the
    notebook that is open.

    Args:
        folder: the working folder.
    """
    try:
        content = (folder / EXECUTED_NOTEBOOK).read_bytes()
        cells = json.loads(content)["cells"]
        has_outputs = any(cell.get("outputs") for cell in cells)
    except (*UNREADABLE, KeyError, TypeError, AttributeError):
        return {}
    if not has_outputs:
        return {}
    write_atomic(folder / KEPT_NOTEBOOK, content)
    return {KEPT_NOTEBOOK: True}
