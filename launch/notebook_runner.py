"""Execute a notebook as Kaggle does, in a process of its own: `python notebook_runner.py SOURCE TARGET`.

Cells run in order and their printed output goes to standard output. The first error ends the run with exit
code 1. After every cell the cells with their outputs are written to TARGET, as papermill does on Kaggle.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


def execute_notebook(source: Path, target: Path) -> int:
    """Execute a notebook in the current folder and return the exit code: 0, or 1 where a cell raised."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class Client(NotebookClient):
        def create_kernel_manager(self) -> Any:
            # A socket file, because the sandbox may have no network, not even a loopback device.
            self.km = AsyncKernelManager(
                transport="ipc", ip=f"{folder}/k", connection_file=f"{folder}/connection.json"
            )
            return self.km

    notebook = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
    exit_code = 0
    # In /tmp, because the path of a socket file may have no more than about 100 characters.
    with tempfile.TemporaryDirectory(prefix="hcd-", dir="/tmp") as folder:
        resources = {"metadata": {"path": "."}}

        def save_and_print(cell: Any, cell_index: int, execute_reply: Any) -> None:
            """Save the notebook and print what a cell printed; nbclient passes these names."""
            nbformat.write(notebook, target)  # type: ignore[no-untyped-call]
            _print_output(cell)

        client = Client(notebook, timeout=None, resources=resources, on_cell_executed=save_and_print)
        try:
            client.execute()
        except CellExecutionError as error:
            print(_COLOUR_CODES.sub("", str(error)), file=sys.stderr, flush=True)
            exit_code = 1
        nbformat.write(notebook, target)  # type: ignore[no-untyped-call]
    return exit_code


def _print_output(cell: Any) -> None:
    """Print what a cell printed."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            print(output.text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(execute_notebook(Path(sys.argv[1]), Path(sys.argv[2])))
