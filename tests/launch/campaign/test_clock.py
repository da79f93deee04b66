"""Moments and their ages, while somebody sets the clock."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from launch.campaign import clock as moments
from launch.campaign.clock import Clock, is_moment, seconds_since, stamp


@pytest.fixture
def clock(monkeypatch):
    """The machine's clock, which can be set: hours off, forward or back."""
    hours = [0.0]

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours[0])

    monkeypatch.setattr(moments, "datetime", Shifted)

    def turn(by: float) -> None:
        hours[0] = by

    return turn


def test_moments_survive_being_written():
    assert 0 <= seconds_since(stamp()) < 5
    assert seconds_since("") == 0
    assert is_moment("") and is_moment(stamp())
    assert not any(map(is_moment, ("yesterday", "2026-01-01T00:00:00", 5, None)))


@pytest.mark.parametrize("hours", [-30.0, 30.0])
def test_what_a_process_stamped_itself_it_times_by_a_clock_that_nobody_sets(clock, hours):
    known = Clock()
    text = known.stamp()
    clock(hours)
    assert 0 <= known.age(text) < 5
    time.sleep(0.05)
    assert 0.05 <= known.age(text) < 5


def test_a_moment_of_another_process_is_timed_by_the_machines_clock(clock):
    clock(-2)
    text = stamp()
    clock(0)
    assert 7200 <= Clock().age(text) < 7205


def test_a_moment_in_the_future_grows_older_as_long_as_it_is_known(clock):
    text = stamp(datetime.now(UTC) + timedelta(hours=5))
    known = Clock()
    assert known.age(text) == 0
    time.sleep(0.05)
    assert 0.05 <= known.age(text) < 5
    assert known.age("") == 0
