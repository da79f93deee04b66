#!/usr/bin/env python3
"""Histopathologic Cancer Detection on Kaggle: rehearse, build, run, report. Entry point of a checkout.

    python build_kernel.py --help

The commands are in launch/cli/. `pip install -e .` installs the same commands as `hcd`.
"""

import sys


def command_line() -> int:
    """Run the command line and return its exit code; name the remedy where packages are missing."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print(
            "error: the packages are not installed: run `make env`, then use .venv/bin/python",
            file=sys.stderr,
        )
        return 1
    from launch import cli

    return cli.command_line()


if __name__ == "__main__":
    sys.exit(command_line())
