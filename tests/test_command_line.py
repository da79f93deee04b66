"""What the command line does when it is not allowed to write."""

import sys

import pytest

from build_kernel import command_line

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/sys and /proc are Linux's")


@LINUX
@pytest.mark.parametrize("command", ["build", "smoke"])
def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody makes folders in /sys, root neither."""
    assert command_line([command, "--out", "/sys/hcd/out"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: /sys/hcd cannot be read or written") and "--out" in said and len(said.splitlines()) == 1
