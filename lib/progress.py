"""Progress of a long loop: how much is done, at which rate, and the time that is left."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Progress:
    """The progress of a loop over tiles, as the text of a log line every so often.

    Nothing here waits for a device: a loop that queues work on a GPU is ahead of it by a few steps at most.

    Attributes:
        total: tiles of the whole loop.
        every: seconds between two lines.
        now: monotonic clock, in seconds.
        rate: tiles per second since the first `update`; NaN before the second.
    """

    total: int
    every: float = 30.0
    now: Callable[[], float] = time.monotonic
    rate: float = field(default=math.nan, init=False)
    _first: tuple[float, int] | None = field(default=None, init=False)  # when, and the tiles done by then
    _told: float = field(default=0.0, init=False)

    def update(self, done: int) -> str:
        """The text of a line where one is due; empty otherwise.

        The first call starts the clock: call it after the first step, which may compile or warm up.

        Args:
            done: tiles done so far.
        """
        now = self.now()
        if self._first is None:
            self._first, self._told = (now, done), now
            return ""
        started, before = self._first
        if now > started:
            self.rate = (done - before) / (now - started)
        if now - self._told < self.every:
            return ""
        self._told = now
        return self.describe(done)

    def describe(self, done: int) -> str:
        """`12,345 of 57,458 tiles (21 %), 1,234 tiles/s, 0:37 left`, as far as it is known."""
        percent = 100 * done // self.total if self.total else 100
        parts = [f"{done:,} of {self.total:,} tiles ({percent} %)"]
        if speed := describe_rate(self.rate):
            parts += [speed, f"{describe_time((self.total - done) / self.rate)} left"]
        return ", ".join(parts)


def describe_rate(rate: float) -> str:
    """`1,234 tiles/s`; empty where no rate is known."""
    if math.isnan(rate) or rate <= 0:
        return ""
    return f"{rate:,.0f} tiles/s" if rate >= 10 else f"{rate:.1f} tiles/s"


def describe_time(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
