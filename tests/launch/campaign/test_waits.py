"""Clocks of waits, and what is said of them."""

import time

import pytest

from launch.campaign.waits import WaitTimers, words


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def clocks(said):
    return WaitTimers(said.append)


def test_the_first_to_ask_starts_the_clock(clocks):
    assert clocks.waited("fold-0", "stale") == 0
    time.sleep(0.05)
    assert clocks.waited("fold-0", "stale") >= 0.05
    assert clocks.waited("fold-1", "stale") == 0
    clocks.start("fold-0", "stale")
    assert clocks.waited("fold-0", "stale") < 0.05


def test_what_nobody_waits_for_is_over(clocks):
    assert clocks.is_over("GPU", "hold", 60)
    clocks.start("GPU", "hold")
    assert not clocks.is_over("GPU", "hold", 60)
    time.sleep(0.05)
    assert clocks.is_over("GPU", "hold", 0.04)
    assert clocks.is_over("CPU", "hold", 60)


def test_a_wait_is_told_once_until_it_is_over(clocks, said):
    for text in ("no answer", "still none"):
        clocks.once("", "outage", text)
    clocks.once("fold-0", "outage", "another")
    assert said == ["no answer", "another"]
    clocks.forget("", "outage")
    clocks.once("", "outage", "again none")
    assert said[2:] == ["again none"]


def test_all_waits_of_one_end_at_once(clocks, said):
    for who in ("fold-0", "fold-1"):
        clocks.start(who, "proof")
        clocks.once(who, "stale", who)
    clocks.forget_all("fold-0")
    assert clocks.is_over("fold-0", "proof", 60) and not clocks.is_over("fold-1", "proof", 60)
    for who in ("fold-0", "fold-1"):
        clocks.once(who, "stale", who)
    assert said == ["fold-0", "fold-1", "fold-0"]


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
    assert words(seconds) == text
