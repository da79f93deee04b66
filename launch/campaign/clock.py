"""Moments as the ledger keeps them, and how long ago they were, whatever is done to the machine's clock meanwhile."""

import time
from datetime import UTC, datetime

# It goes on while a laptop is asleep; time.monotonic does not on Linux. macOS calls such a clock CLOCK_MONOTONIC.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds by a clock that nobody sets and that does not stop when the machine sleeps; since when, is not said."""
    return time.clock_gettime(_STEADY)


def stamp(moment: datetime | None = None) -> str:
    """A moment, now by default, as RFC 3339."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds")


def is_moment(text: object) -> bool:
    """Whether this is what `stamp` writes, or empty: not known yet."""
    try:
        return text == "" or datetime.fromisoformat(str(text)).tzinfo is not None
    except ValueError:
        return False


def seconds_since(text: str) -> float:
    """Seconds since a moment written by `stamp`; 0 where it is empty or lies in the future."""
    if not text:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds())


class Clock:
    """The moments of one process.

    What it stamped itself it times by a clock that nobody sets. Of a moment that another process wrote it knows what the
    machine's clock says; when that was set back, it is no younger than this process has known of it, so that every wait ends.
    """

    def __init__(self) -> None:
        self._made: dict[str, float] = {}
        self._met: dict[str, float] = {}

    def stamp(self) -> str:
        """Now, as `stamp` writes it."""
        text = stamp()
        self._made[text] = steady()
        return text

    def age(self, text: str) -> float:
        """Seconds since a moment; 0 where it is empty."""
        now = steady()
        if not text:
            return 0.0
        if text in self._made:
            return now - self._made[text]
        return max(seconds_since(text), now - self._met.setdefault(text, now))
