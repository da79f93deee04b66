"""Lines about the progress of a long loop: their text, and how often they come."""

import math

import pytest

from lib.progress import Progress, describe_rate, describe_time


def test_a_line_comes_every_so_often_with_rate_and_time_left() -> None:
    clock = iter([100.0, 110.0, 129.0, 131.0, 140.0])  # the first step took long: it warms up
    progress = Progress(total=10_000, every=30.0, now=lambda: next(clock))
    texts = [progress.update(done) for done in (1_000, 2_000, 3_900, 4_100, 5_000)]
    assert texts == ["", "", "", "4,100 of 10,000 tiles (41 %), 100 tiles/s, 0:59 left", ""]
    assert progress.rate == 100.0


def test_nothing_is_invented_where_nothing_was_measured() -> None:
    progress = Progress(total=0, every=0.0, now=lambda: 5.0)
    assert progress.update(0) == "" and math.isnan(progress.rate)
    assert progress.update(0) == "0 of 0 tiles (100 %)"


@pytest.mark.parametrize(
    ("rate", "text"), [(math.nan, ""), (0.0, ""), (3.26, "3.3 tiles/s"), (12345.6, "12,346 tiles/s")]
)
def test_rates(rate: float, text: str) -> None:
    assert describe_rate(rate) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.2, "1:00"), (3723, "1:02:03")])
def test_times(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text
