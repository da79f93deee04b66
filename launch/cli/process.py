"""Process of the command line: its exit codes, and errors as one sentence."""

import errno
import sys
from collections.abc import Sequence

import click

from launch.cli.group import main
from launch.console import print_text
from launch.errors import LaunchError
from lib.errors import KernelError


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of this process when None.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong use.
    """
    try:
        main(args=arguments, standalone_mode=False)
    except (LaunchError, KernelError) as error:
        return _failed(str(error))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        return _failed(
            f"the package {error.name} is not installed: run `make env`, then use .venv/bin/python"
        )
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            path = error.filename or "a file"
            reason = f"{path} cannot be read or written ({error.strerror})"
            return _failed(f"{reason}: change its permissions, or choose another folder with --out")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _failed(
                f"the disk is full ({error}): free some space and repeat the command; it continues"
            )
        raise
    except (KeyboardInterrupt, click.Abort):
        print_text("interrupted: the same command continues from here", to_errors=True)
        return 1
    return 0


def _failed(text: str) -> int:
    print_text(f"error: {text}", to_errors=True)
    return 1


def console_script() -> None:
    """The installed command `hcd`."""
    sys.exit(command_line())
