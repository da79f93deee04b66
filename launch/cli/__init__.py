"""The command line: every command, its options and its help.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

# The modules of the sections add their commands to the group.
from launch.cli import before_quota, on_kaggle, on_this_machine, plain_client  # noqa: F401
from launch.cli.group import main
from launch.cli.process import command_line, console_script

__all__ = ["command_line", "console_script", "main"]
