"""How a run ended that left no output, and whether it is worth another push."""

from pathlib import Path

import pytest

from launch.campaign.ledger import DROPPED, FAILED, LIMIT_NOTE, PUSHED, UNFINISHED, Push
from launch.campaign.monitor import judge
from launch.campaign.schedule import LONGEST
from launch.kaggle_api.types import CANCELLED, ERROR, RunStatus
from lib.runtime.inputs import MISSING_INPUTS

HOUR = 3600.0


def judged(name=ERROR, *said, ran=60.0, limit=HOUR, state=PUSHED, message="", note=""):
    push = Push(push_id="p", bundle_id="b", identity="i", limit=limit, state=state, note=note)
    return judge(push, RunStatus(name, message), said, ran=ran, kept=Path("logs/x.log"))


def test_a_push_without_its_inputs_is_repeated_whatever_it_came_to():
    assert judged(ERROR, "error: no data", state=DROPPED, note="lacks x") == (UNFINISHED, "lacks x", "")
    assert judged(CANCELLED, ran=12 * HOUR, limit=LONGEST, state=DROPPED, note="lacks x")[0] == UNFINISHED


@pytest.mark.parametrize(
    ("ran", "limit", "state", "note"),
    [
        (0.89 * HOUR, HOUR, UNFINISHED, "the run was cancelled"),
        (0.91 * HOUR, HOUR, UNFINISHED, LIMIT_NOTE),  # the next one is given more
        (0.91 * LONGEST, LONGEST, FAILED, LIMIT_NOTE),  # there is no more
    ],
)
def test_one_that_was_cancelled_came_to_its_limit_or_somebody_ended_it(ran, limit, state, note):
    found, why, failure = judged(CANCELLED, ran=ran, limit=limit)
    assert (found, why) == (state, note)
    assert bool(failure) == (state == FAILED)


def test_an_error_of_its_own_is_not_repeated_and_the_end_of_its_log_is_shown():
    lines = [f"line {number}" for number in range(40)]
    state, note, failure = judged(ERROR, *lines, "error: fold 0 has no tumour", message="exit 1")
    assert (state, note) == (FAILED, "error: fold 0 has no tumour")
    assert failure.startswith("ended with an error (exit 1); the end of its log (logs/x.log):\n")
    assert "line 16" in failure and "line 15" not in failure
    assert (
        judged(ERROR, "ValueError  Traceback (most recent call last)", "ValueError: x")[0] == FAILED
    )  # of a notebook


def test_what_waiting_mends_is_repeated():
    state, note, failure = judged(ERROR, f"error: {MISSING_INPUTS}: hcd-prepare")
    assert state == UNFINISHED and "not mounted" in note and not failure
    assert judged(ERROR, "killed", message="") == (UNFINISHED, "Kaggle says ERROR: nothing more", "")
