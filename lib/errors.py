"""The one base of errors whose message is all the user needs: what is wrong, and what to do."""

from collections.abc import Sequence

LISTED_AT_MOST = 20


class KernelError(Exception):
    """Ends a kernel with its message and exit code 1, without a traceback. Everything else keeps its traceback."""


def listed(lead: str, problems: Sequence[str], *, remedy: str = "") -> str:
    """A message with every problem on its own line; of a long list the first 20 and the count of the others."""
    lines = [lead, *(f"  - {problem}" for problem in problems[:LISTED_AT_MOST])]
    if len(problems) > LISTED_AT_MOST:
        lines.append(f"  - and {len(problems) - LISTED_AT_MOST:,} more")
    if remedy:
        lines.append(remedy)
    return "\n".join(lines)
