"""Base class of errors that end a kernel with one message: what is wrong, the value, and what to do."""

from collections.abc import Iterable, Sequence

LISTED_AT_MOST = 20


class KernelError(Exception):
    """Ends a kernel with its message and exit code 1; other errors keep their traceback."""


class PreflightError(KernelError):
    """The run cannot succeed with these inputs or on this machine; the message lists every reason."""


def listed(lead: str, problems: Sequence[str], *, remedy: str = "") -> str:
    """A message with one problem a line: the first 20, and the number of the others."""
    lines = [lead, *(f"  - {problem}" for problem in problems[:LISTED_AT_MOST])]
    if len(problems) > LISTED_AT_MOST:
        lines.append(f"  - and {len(problems) - LISTED_AT_MOST:,} more")
    if remedy:
        lines.append(remedy)
    return "\n".join(lines)


def shorten(names: Iterable[object], *, limit: int = 3) -> str:
    """The first few names, and the number of the others."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")
