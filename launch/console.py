"""Set up logging on a terminal: the progress of a command as plain lines, and results as JSON documents."""

import json
import logging
import math
import sys
from typing import Any


class _Terminal(logging.Handler):
    """A handler that prints the message alone, after `warning: ` where it is one."""

    to_errors = False  # to standard error: standard output holds a JSON document

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message and flush, so that a pipe shows it at once."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        stream = sys.stderr if self.to_errors else sys.stdout
        print(prefix + record.getMessage(), file=stream, flush=True)


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


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document to standard output; numbers that are not finite become null."""
    print(json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=True), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
