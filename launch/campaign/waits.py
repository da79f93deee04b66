"""Time in a campaign: time-outs, one clock that nobody sets, time stamps, and timers of running waits."""

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

LONGEST_SESSION = 12 * 3600.0  # seconds after which Kaggle ends every session


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Limits of all waits, in seconds, and of repeated pushes and uploads.

    Attributes:
        poll: between two polls.
        settle: after a request, how long responses may still show the state before it (Kaggle: about a
            minute).
        session_retry: between two pushes while all sessions are taken.
        session_timeout: how long all sessions may be taken.
        quota_timeout: how long to wait for quota; two weekly resets by default.
        quota_refresh: how long a quota that was read is used.
        foreign_run_timeout: how long to wait for a run of the same kernel that the campaign did not push.
        queue_timeout: how long a push may stay queued, or without a run.
        overrun: how long a run may be shown as running beyond its time limit.
        output_timeout: how long a complete run may list the output of an earlier push, or lack files.
        status_timeout: how long a status may be one that this code does not know.
        outage_timeout: how long the service may be unreachable.
        stall_timeout: how long a kernel that has a session and quota may come no further, whatever is shown.
        pushes: how often an unfinished kernel is pushed before a person must fix the cause.
        sends: how many requests are sent for one push, each after twice the wait of the one before.
        replacements: how many pushes may be replaced by other people's versions before a person must decide.
        dataset_timeout: until an uploaded dataset must be ready.
        uploads: how often a dataset that Kaggle failed to process is uploaded.
        score_poll: between two requests for the list of submissions.
        score_settle: until a submission that was sent must be listed.
        score_timeout: until a submission must have a score.
        least_limit: the least time limit of a push, for a machine that the estimates are not about.
    """

    poll: float = 30.0
    settle: float = 120.0
    session_retry: float = 120.0
    session_timeout: float = 26 * 3600.0
    quota_timeout: float = 15 * 86400.0
    quota_refresh: float = 300.0
    foreign_run_timeout: float = 13 * 3600.0
    queue_timeout: float = 6 * 3600.0
    overrun: float = 1800.0
    output_timeout: float = 900.0
    status_timeout: float = 900.0
    outage_timeout: float = 3600.0
    stall_timeout: float = 48 * 3600.0
    pushes: int = 3
    sends: int = 5
    replacements: int = 2
    dataset_timeout: float = 1800.0
    uploads: int = 2
    score_poll: float = 10.0
    score_settle: float = 60.0
    score_timeout: float = 1800.0
    least_limit: float = 0.0


EMULATOR_TIMEOUTS = Timeouts(
    poll=0.25,
    settle=2.0,
    session_retry=0.5,
    session_timeout=120.0,
    quota_refresh=5.0,
    queue_timeout=120.0,
    overrun=60.0,
    output_timeout=20.0,
    status_timeout=20.0,
    outage_timeout=60.0,
    score_poll=0.2,
    score_settle=3.0,
    score_timeout=60.0,
    least_limit=6 * 3600.0,
)


# --- the clock ----------------------------------------------------------------------------------------------

# It counts while a laptop sleeps; time.monotonic does not on Linux. macOS calls such a clock CLOCK_MONOTONIC.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds by a clock that nobody sets and that counts a sleeping machine."""
    return time.clock_gettime(_STEADY)


def stamp(moment: datetime | None = None) -> str:
    """A time stamp in the format of RFC 3339; of now by default."""
    return (moment or datetime.now(UTC)).isoformat(timespec="milliseconds")


def is_stamp(text: object) -> bool:
    """Whether a value is a time stamp of `stamp`, or empty: not known yet."""
    try:
        return text == "" or datetime.fromisoformat(str(text)).tzinfo is not None
    except ValueError:
        return False


def seconds_since(text: str) -> float:
    """Seconds since a time stamp by the machine's clock; 0 where it is empty or in the future."""
    if not text:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds())


class Clock:
    """The age of time stamps, in one process.

    The age of its own stamps is measured by `steady`. The age of a stamp of another process is what the
    machine's clock says. If that clock was set back, the age is at least the time since this process first
    met the stamp, so that every wait ends.
    """

    def __init__(self) -> None:
        self._made: dict[str, float] = {}
        self._met: dict[str, float] = {}

    def stamp(self) -> str:
        """A time stamp of now."""
        text = stamp()
        self._made[text] = steady()
        return text

    def age(self, text: str) -> float:
        """Seconds since a time stamp; 0 where it is empty."""
        now = steady()
        if not text:
            return 0.0
        if text in self._made:
            return now - self._made[text]
        return max(seconds_since(text), now - self._met.setdefault(text, now))


# --- waits --------------------------------------------------------------------------------------------------


class WaitTimers:
    """When each running wait began, and which waits were logged.

    A wait has two names: who waits (a kernel's slug, a machine, "" for the whole campaign), and its subject.
    """

    def __init__(self) -> None:
        self._began: dict[tuple[str, str], float] = {}
        self._logged: set[tuple[str, str]] = set()

    def restart(self, who: str, subject: str) -> None:
        """Begin a wait now, whether it runs or not."""
        self._began[who, subject] = steady()

    def waited(self, who: str, subject: str) -> float:
        """Seconds of a wait so far; the first call begins it."""
        now = steady()
        return now - self._began.setdefault((who, subject), now)

    def of(self, who: str) -> dict[str, float]:
        """Seconds so far of every wait of this one, by subject. It begins none."""
        now = steady()
        return {subject: now - began for (name, subject), began in self._began.items() if name == who}

    def is_over(self, who: str, subject: str, seconds: float) -> bool:
        """Whether a wait is longer than this, or does not run."""
        return (who, subject) not in self._began or self.waited(who, subject) > seconds

    def log_once(self, who: str, subject: str, message: str) -> None:
        """Log a message at the first poll of a wait only."""
        if (who, subject) not in self._logged:
            self._logged.add((who, subject))
            logger.info("%s", message)

    def stop(self, who: str, subject: str) -> None:
        """End a wait; the next one of this name is timed and logged from the beginning."""
        self._began.pop((who, subject), None)
        self._logged.discard((who, subject))

    def stop_all(self, who: str) -> None:
        """End all waits of this one."""
        for key in [key for key in (*self._began, *self._logged) if key[0] == who]:
            self.stop(*key)


def describe_seconds(seconds: float) -> str:
    """A duration for people: 1.5 s, 43 s, 2 min, 2.0 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
