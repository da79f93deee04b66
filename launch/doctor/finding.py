"""Result of one check: ok, a warning or a problem, with its remedy."""

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: subject of the check.
        level: OK, WARNING (unknown, or only worth knowing) or PROBLEM (something must be done).
        text: the state that was found.
        remedy: what to do about it.
    """

    name: str
    level: str
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """A finding with nothing to do."""
    return Finding(name, OK, text)


def warning(name: str, text: str, remedy: str = "") -> Finding:
    """A finding that does not stop a campaign."""
    return Finding(name, WARNING, text, remedy)


def problem(name: str, text: str, remedy: str = "") -> Finding:
    """A finding that must be dealt with before a campaign."""
    return Finding(name, PROBLEM, text, remedy)


def first_line(text: object) -> str:
    """The first line of a message."""
    return (str(text).splitlines() or [""])[0]
