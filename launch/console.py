"""Set up logging on a terminal: the progress of a command as plain lines on standard output."""

import logging
import sys


class _Terminal(logging.Handler):
    """A handler that prints the message alone, after `warning: ` where it is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message and flush, so that a pipe shows it at once."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(prefix + record.getMessage(), file=sys.stdout, flush=True)


def log_to_terminal() -> None:
    """Print what the loggers below `launch` report, from INFO on. Calling it twice prints nothing twice."""
    logger = logging.getLogger("launch")
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO)
