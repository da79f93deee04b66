"""Programs that need torch (predict, export), started as child processes: this package imports no torch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError

_SHOWN_LINES = 25  # of the traceback of a program that failed
_ERROR = "error: "  # before the message of a program that refuses


def predict(options: Mapping[str, Any]) -> None:
    """Predict a folder of tiles, and write a page with the scores where labels are given.

    Args:
        options: the fields of `lib.inference.predict_folder.Options`.

    Raises:
        LaunchError: tiles, labels or members cannot be used; the message lists every problem.
    """
    run_program("lib.inference.predict_folder", dict(options))
    if options.get("labels"):
        run_program("lib.report.external_test_page", {"out": options["out"]})


def export(options: Mapping[str, Any]) -> None:
    """Export members to a folder; the options are the fields of `lib.inference.export_folder.Options`.

    Raises:
        LaunchError: members cannot be used, or the folder is not empty.
    """
    run_program("lib.inference.export_folder", dict(options))


def run_program(module: str, options: Mapping[str, Any]) -> None:
    """Run a module of the library in a process of its own, with its options as JSON; its output is shown.

    Raises:
        LaunchError: it refused its input, with its message; or it failed, with the end of its traceback.
    """
    command = [sys.executable, "-m", module, json.dumps(options, default=_as_text)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        _, errors = process.communicate()
    finally:
        process.kill()  # after Ctrl-C; a process that has ended is left alone
        process.wait()
    if process.returncode == 0:
        return
    _, found, message = f"\n{errors}".rpartition(f"\n{_ERROR}")
    if process.returncode == 1 and found:
        raise LaunchError(message.rstrip())
    lines = errors.rstrip().splitlines()
    if lines and lines[-1].startswith("ModuleNotFoundError: "):
        package = lines[-1].rpartition(" ")[2].strip("'\"")
        raise LaunchError(
            f"the package {package} is not installed: run `make env`, then use .venv/bin/python"
        )
    shown = "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:])
    raise LaunchError(f"{module} ended with exit code {process.returncode}:\n{shown}")


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is no option")
