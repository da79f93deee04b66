"""Time stamps and their ages while somebody sets the clock, and timers of waits."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from launch.campaign import waits
from launch.campaign.waits import Clock, WaitTimers, describe_seconds, is_stamp, seconds_since, stamp, steady


def test_the_steady_clock_counts_seconds():
    before = steady()
    time.sleep(0.05)
    assert 0.05 <= steady() - before < 5


@pytest.fixture
def clock(monkeypatch):
    """The machine's clock, which can be set: hours off, forward or back."""
    hours = [0.0]

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours[0])

    monkeypatch.setattr(waits, "datetime", Shifted)

    def turn(by: float) -> None:
        hours[0] = by

    return turn


def test_time_stamps_are_read_back():
    assert 0 <= seconds_since(stamp()) < 5
    assert seconds_since("") == 0
    assert is_stamp("") and is_stamp(stamp())
    assert not any(map(is_stamp, ("yesterday", "2026-01-01T00:00:00", 5, None)))


@pytest.mark.parametrize("hours", [-30.0, 30.0])
def test_the_age_of_an_own_stamp_does_not_depend_on_the_clock_of_the_machine(clock, hours):
    known = Clock()
    text = known.stamp()
    clock(hours)
    assert 0 <= known.age(text) < 5
    time.sleep(0.05)
    assert 0.05 <= known.age(text) < 5


def test_the_age_of_a_stamp_of_another_process_is_what_the_clock_of_the_machine_says(clock):
    clock(-2)
    text = stamp()
    clock(0)
    assert 7200 <= Clock().age(text) < 7205


def test_a_stamp_in_the_future_grows_older_from_when_it_was_met(clock):
    text = stamp(datetime.now(UTC) + timedelta(hours=5))
    known = Clock()
    assert known.age(text) == 0
    time.sleep(0.05)
    assert 0.05 <= known.age(text) < 5
    assert known.age("") == 0


@pytest.fixture
def timers():
    return WaitTimers()


def test_the_first_call_begins_a_wait(timers):
    assert timers.waited("fold-0", "stale") == 0
    time.sleep(0.05)
    assert timers.waited("fold-0", "stale") >= 0.05
    assert timers.waited("fold-1", "stale") == 0
    assert timers.of("fold-0").keys() == {"stale"} and timers.of("fold-2") == {}
    timers.restart("fold-0", "stale")
    assert timers.waited("fold-0", "stale") < 0.05


def test_a_wait_that_does_not_run_is_over(timers):
    assert timers.is_over("GPU", "hold", 60)
    timers.restart("GPU", "hold")
    assert not timers.is_over("GPU", "hold", 60)
    time.sleep(0.05)
    assert timers.is_over("GPU", "hold", 0.04)
    assert timers.is_over("CPU", "hold", 60)


def test_a_wait_is_logged_once_until_it_is_over(timers, caplog):
    caplog.set_level("INFO")
    for text in ("no answer", "still none"):
        timers.log_once("", "outage", text)
    timers.log_once("fold-0", "outage", "another")
    assert caplog.messages == ["no answer", "another"]
    timers.stop("", "outage")
    timers.log_once("", "outage", "again none")
    assert caplog.messages[2:] == ["again none"]


def test_all_waits_of_one_end_at_once(timers, caplog):
    caplog.set_level("INFO")
    for who in ("fold-0", "fold-1"):
        timers.restart(who, "proof")
        timers.log_once(who, "stale", who)
    timers.stop_all("fold-0")
    assert timers.is_over("fold-0", "proof", 60) and not timers.is_over("fold-1", "proof", 60)
    for who in ("fold-0", "fold-1"):
        timers.log_once(who, "stale", who)
    assert caplog.messages == ["fold-0", "fold-1", "fold-0"]


DURATIONS = [
    (1.46, "1.5 s"),
    (43.2, "43 s"),
    (120, "2 min"),
    (3600, "60 min"),
    (7200, "2.0 h"),
    (15 * 86400, "360.0 h"),
]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_durations_for_people(seconds, text):
    assert describe_seconds(seconds) == text
