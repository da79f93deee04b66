"""How long to wait for what, and for how long something has been waited for."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for what, in seconds; and how often a kernel may be pushed.

    Attributes:
        poll: between looks.
        settle: after a push, how long answers may still be about what was before it (Kaggle: about a minute).
        capacity: before asking again when all sessions were taken.
        capacity_patience: how long to be refused for that reason.
        quota_patience: how long to wait for quota; two resets by default.
        foreign_patience: how long to wait for a run of the same slug that the campaign did not push.
        queue_patience: how long a push may stay queued, or shown without a run.
        overrun: beyond its time limit, how long a run may still be shown as running.
        stale_patience: how long a finished run may show the output of an earlier push, or a listing that lacks files.
        unknown_patience: how long a status may be one that nobody knows.
        outage: how long the service may not answer at all.
        quota_every: how long a quota that was read is good for.
        pushes: how often an unfinished kernel is pushed before a person must look.
        score_poll: between two requests for the list of submissions.
        score_settle: until a submission that was sent must be listed.
        score_timeout: until it must have a score.
    """

    poll: float = 30.0
    settle: float = 120.0
    capacity: float = 120.0
    capacity_patience: float = 26 * 3600.0
    quota_patience: float = 15 * 86400.0
    foreign_patience: float = 13 * 3600.0
    queue_patience: float = 6 * 3600.0
    overrun: float = 1800.0
    stale_patience: float = 900.0
    unknown_patience: float = 900.0
    outage: float = 3600.0
    quota_every: float = 300.0
    pushes: int = 3
    score_poll: float = 10.0
    score_settle: float = 60.0
    score_timeout: float = 1800.0


REHEARSAL = Timeouts(
    poll=0.25,
    settle=2.0,
    capacity=0.5,
    capacity_patience=120.0,
    queue_patience=120.0,
    overrun=60.0,
    stale_patience=20.0,
    unknown_patience=20.0,
    outage=60.0,
    quota_every=5.0,
    score_poll=0.2,
    score_settle=3.0,
    score_timeout=60.0,
)


class WaitTimers:
    """What is waited for and since when, by a clock that nobody sets, and what of it was said.

    A wait has two names: who waits (a kernel's slug, a machine, "" for everybody), and for what.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began: dict[tuple[str, str], float] = {}
        self._said: set[tuple[str, str]] = set()

    def start(self, who: str, what: str) -> None:
        """Wait from now on, whatever was before."""
        self._began[who, what] = time.monotonic()

    def waited(self, who: str, what: str) -> float:
        """Seconds waited so far; the first to ask starts the clock."""
        moment = time.monotonic()
        return moment - self._began.setdefault((who, what), moment)

    def is_over(self, who: str, what: str, seconds: float) -> bool:
        """Whether more than this many seconds were waited, or nothing is waited for."""
        return (who, what) not in self._began or self.waited(who, what) > seconds

    def once(self, who: str, what: str, text: str) -> None:
        """Say something when a wait begins, not at every look."""
        if (who, what) not in self._said:
            self._said.add((who, what))
            self._say(text)

    def forget(self, who: str, what: str) -> None:
        """The wait is over; the next one is timed and told anew."""
        self._began.pop((who, what), None)
        self._said.discard((who, what))

    def forget_all(self, who: str) -> None:
        """All waits of this one are over."""
        for key in [key for key in (*self._began, *self._said) if key[0] == who]:
            self.forget(*key)


def words(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
