"""Text on a terminal: messages and progress whose lines wrap at words, and results as JSON documents."""

import json
import logging
import math
import shutil
import sys
import textwrap
from typing import Any, TextIO

_INDENT = "    "  # of the second and later lines of a message


class _Terminal(logging.Handler):
    """A handler that prints the message alone, after `warning: ` where it is one."""

    to_errors = False  # to standard error: standard output holds a JSON document

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message and flush, so that a pipe shows it at once."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print_text(prefix + record.getMessage(), to_errors=self.to_errors)


def log_to_terminal(*, to_errors: bool = False) -> None:
    """Print what the loggers below `launch` report, from INFO on. Calling it twice prints nothing twice.

    Args:
        to_errors: print to standard error instead of standard output.
    """
    logger = logging.getLogger("launch")
    handlers = [handler for handler in logger.handlers if isinstance(handler, _Terminal)]
    if not handlers:
        handlers = [_Terminal()]
        logger.addHandler(handlers[0])
    for handler in handlers:
        handler.to_errors = to_errors
    logger.setLevel(logging.INFO)


def print_text(text: str, *, to_errors: bool = False) -> None:
    """Print a message for people: on a terminal its lines wrap at words, elsewhere they stay as they are.

    Args:
        text: of one line or several; a line keeps its own indent.
        to_errors: print to standard error instead of standard output.
    """
    stream = sys.stderr if to_errors else sys.stdout
    print(wrapped(text, width_of(stream)), file=stream, flush=True)


def print_command(text: str, *, to_errors: bool = False) -> None:
    """Print a command; where it needs several lines of a terminal, a shell takes them as they are shown."""
    stream = sys.stderr if to_errors else sys.stdout
    width = width_of(stream)
    lines = wrapped(text, None if width is None else width - 2)
    print(lines.replace("\n", " \\\n"), file=stream, flush=True)


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal that shows a stream; None where the stream is no terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """Text with lines of at most `width` columns, broken at spaces; a longer path stays whole."""
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=indent or _INDENT,  # an indented line is a paragraph of its own
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document to standard output; numbers that are not finite become null."""
    print(json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=True), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
