"""The decision on one kernel: as a table, and as laws for any sequence of observations."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from decision_table import (
    ACTIVE,
    HOUR,
    LATER,
    NEXT_STEPS,
    SENT,
    SETTLED,
    SUBJECTS,
    TABLE,
    TIMEOUTS,
    entry,
    markdown,
    push,
    replied,
    seen,
    waited,
    way_out,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import launch.campaign.decide as decide_module
from launch.campaign.decide import (
    ConfirmPush,
    Datasets,
    DeleteEmptyKernel,
    Elapsed,
    End,
    Fail,
    FetchReply,
    Finish,
    HeldInput,
    NoteDropped,
    NoteRefusal,
    Observation,
    PushReply,
    RunOutput,
    SendPush,
    Source,
    Wait,
    decide,
    judge_end,
)
from launch.campaign.ledger import (
    DONE,
    DROPPED,
    FAILED,
    INTENDED,
    LIMIT_NOTE,
    PUSHED,
    REFUSED,
    UNFINISHED,
    KernelEntry,
)
from launch.campaign.state import apply
from launch.campaign.waits import LONGEST_SESSION, Timeouts
from launch.kaggle_api.errors import (
    CapacityError,
    CredentialsError,
    EmptyKernelError,
    NoResponseError,
    QuotaError,
    RefusedError,
    SourcesDroppedError,
    UnexpectedResponseError,
)
from launch.kaggle_api.types import (
    ABSENT,
    CANCEL_REQUESTED,
    CANCELLED,
    COMPLETE,
    ERROR,
    NEW,
    QUEUED,
    RUNNING,
    Listing,
    RunStatus,
)
from lib.runtime.inputs import MISSING_INPUTS, missing_inputs


@pytest.mark.parametrize(
    ("given", "observation", "now", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_decision_on_an_observation(given, observation, now, expected):
    decision = decide(given, observation, now, TIMEOUTS)
    if isinstance(expected, type):
        assert isinstance(decision, expected)
    elif not isinstance(expected, tuple):
        assert decision == expected
    else:
        kind, *parts = expected
        assert isinstance(decision, kind)
        text = repr(decision)
        assert all(str(part) in text for part in parts), (decision, parts)
        if kind is Wait:
            assert decision.subject == parts[0]


def test_no_case_is_without_a_way_out():
    cases = {row[0]: way_out(*row[:4]) for row in TABLE}
    assert len(cases) == len(TABLE), "two rows have the same name"
    assert [name for name, text in cases.items() if not text] == []
    assert all(name in markdown() for name in cases)


def test_every_way_through_the_decision_is_a_row_of_the_table():
    """A row for every `return` in decide.py: add one to decision_table.py, and run `make docs`."""
    code = Path(decide_module.__file__)
    functions = [node for node in ast.parse(code.read_text()).body if isinstance(node, ast.FunctionDef)]
    returns = {line.lineno for node in functions for line in ast.walk(node) if isinstance(line, ast.Return)}
    reached = set()

    def trace(frame, event, argument):
        if frame.f_code.co_filename != str(code):
            return None
        reached.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _, given, observation, now, _ in TABLE:
            decide(given, observation, now, TIMEOUTS)
    finally:
        sys.settrace(before)
    lines = code.read_text().splitlines()
    missing = [f"line {line}: {lines[line - 1].strip()}" for line in sorted(returns - reached)]
    assert not missing, "\n".join(missing)


def test_credentials_that_are_not_accepted_are_noted_as_a_refusal_and_raised():
    error = CredentialsError("401")
    decision = decide(SENT, replied(error), SETTLED, TIMEOUTS)
    assert isinstance(decision, NoteRefusal) and decision.error is error and not decision.failure


@pytest.mark.parametrize(("since_push", "fails"), [(HOUR, False), (HOUR + TIMEOUTS.overrun + 1, True)])
def test_a_run_may_be_shown_as_running_until_its_limit_and_the_overrun(since_push, fails):
    """Its timer may have begun before a restart: the age of the push counts, too."""
    now = waited(Elapsed(since_push=since_push), active_RUNNING=LATER)
    own = Source(carries_push_id=True)
    assert isinstance(decide(ACTIVE, seen(RUNNING, source=own), now, TIMEOUTS), Fail) is fails


# --- runs that ended without output ---


def judged(name=ERROR, *log, ran=60.0, limit=HOUR, state=PUSHED, message="", note="") -> tuple[str, str, str]:
    ended = push(state, limit=limit, note=note)
    end = judge_end(ended, RunStatus(name, message), log, ran=ran, log_path=Path("logs/x.log"))
    return end.state, end.note, end.failure


def test_a_push_without_its_inputs_is_repeated_however_it_ended():
    assert judged(ERROR, "error: no data", state=DROPPED, note="lacks x") == (UNFINISHED, "lacks x", "")
    assert (
        judged(CANCELLED, ran=12 * HOUR, limit=LONGEST_SESSION, state=DROPPED, note="lacks x")[0]
        == UNFINISHED
    )


@pytest.mark.parametrize(
    ("ran", "limit", "state", "note"),
    [
        (0.89 * HOUR, HOUR, FAILED, "the run was cancelled on Kaggle"),  # only a person starts it again
        (0.91 * HOUR, HOUR, UNFINISHED, LIMIT_NOTE),  # the next one is given more time
        (0.91 * LONGEST_SESSION, LONGEST_SESSION, FAILED, LIMIT_NOTE),  # there is no longer session
    ],
)
def test_a_cancelled_run_reached_its_limit_or_somebody_ended_it(ran, limit, state, note):
    ended, why, failure = judged(CANCELLED, ran=ran, limit=limit)
    assert (ended, why) == (state, note)
    assert bool(failure) == (state == FAILED)


def test_an_error_of_the_kernel_is_not_repeated_and_the_end_of_its_log_is_shown():
    lines = [f"line {number}" for number in range(40)]
    state, note, failure = judged(ERROR, *lines, "error: fold 0 has no tumour", message="exit 1")
    assert (state, note) == (FAILED, "error: fold 0 has no tumour")
    assert failure.startswith("ended with an error (exit 1). Fix the cause and rerun the command")
    assert "The end of its log (logs/x.log):\n" in failure
    assert "line 16" in failure and "line 15" not in failure
    assert (
        judged(ERROR, "ValueError  Traceback (most recent call last)", "ValueError: x")[0] == FAILED
    )  # of a notebook


def test_an_end_that_another_push_may_fix_is_repeated():
    state, note, failure = judged(ERROR, f"error: {MISSING_INPUTS}: hcd-prepare")
    assert state == UNFINISHED and "not mounted" in note and not failure
    message = missing_inputs(
        {"hcd-prepare": "a.hcd-prepare.1", "hcd-x-fold-0": "a.hcd-x-fold-0.1"},
        {"hcd-prepare": "b.hcd-prepare.2"},
    )
    end = judge_end(push(), RunStatus(ERROR, ""), message.splitlines(), ran=60.0, log_path=Path("x.log"))
    assert end.mounted == {"hcd-prepare": "b.hcd-prepare.2", "hcd-x-fold-0": ""}
    assert "it had mounted push b.hcd-prepare.2 of hcd-prepare, nothing of hcd-x-fold-0" in end.message
    assert judged(ERROR, "killed", message="") == (UNFINISHED, "Kaggle says ERROR: no reason given", "")


# --- laws ---

names = st.sampled_from([QUEUED, RUNNING, COMPLETE, ERROR, CANCELLED, CANCEL_REQUESTED, NEW, ABSENT])
texts = st.sampled_from(
    ["", "id.1", "error: no", "killed", f"error: {MISSING_INPUTS}", "Traceback (most recent call last)"]
)
errors = st.sampled_from(
    [
        CapacityError("full"),
        QuotaError("spent"),
        EmptyKernelError("gone"),
        SourcesDroppedError("lacks", version=2),
        SourcesDroppedError("lacks", version=None),
        NoResponseError("reset"),
        CredentialsError("401"),
        RefusedError("no"),
        UnexpectedResponseError("odd"),
    ]
)
seconds = st.sampled_from([0.0, 1.0, TIMEOUTS.settle, 2 * HOUR, LATER])
outputs = st.builds(
    RunOutput,
    listing=st.builds(Listing, st.just({}), texts),
    record=st.none()
    | st.fixed_dictionaries({}, optional={"push_id": st.sampled_from(["id.1", "id.2", "x", 3])}),
    lacks_record=st.booleans(),
    problem=st.sampled_from(["", "HTML"]),
)
inputs = st.builds(
    HeldInput,
    slug=st.sampled_from(["hcd-prepare", "hcd-x-fold-0"]),
    wanted=st.just("id.1"),
    push_id=st.sampled_from(["", "id.1", "id.0", "x.1"]),
    status=st.just("") | names,
    is_latest=st.none() | st.booleans(),
    misfit=st.sampled_from(["", "its data are others"]),
    redone=st.integers(0, 4),
)
lists = st.lists(st.just("me/x"), max_size=1)
observations = st.builds(
    Observation,
    has_resources=st.none() | st.booleans(),
    status=st.none() | st.builds(RunStatus, names, texts),
    status_problem=st.sampled_from(["", "X?"]),
    source=st.none()
    | st.builds(Source, carries_push_id=st.booleans(), version=st.none() | st.integers(1, 9)),
    output=st.none() | outputs,
    fetched=st.none() | st.builds(FetchReply, problem=st.sampled_from(["", "cut"]), final=st.booleans()),
    reply=st.none() | st.builds(PushReply, version=st.none() | st.integers(1, 9), error=st.none() | errors),
    is_empty=st.none() | st.booleans(),
    deletions=st.integers(0, 4),
    may_reuse=st.booleans(),
    inputs=st.none() | st.lists(inputs, max_size=2),
    datasets=st.none() | st.builds(Datasets, unusable=lists, processing=lists),
)
elapsed = st.builds(
    Elapsed,
    since_push=seconds,
    since_end=seconds,
    waited=st.dictionaries(st.sampled_from(SUBJECTS), seconds, max_size=4),
)


@dataclass
class Simulated:
    """A kernel whose decisions are carried out without a service."""

    entry: KernelEntry
    pushes: int = 0

    def carry_out(self, decision: Any) -> None:
        last = self.entry.open
        match decision:
            case SendPush() if last is None:
                if self.entry.last is not None and self.entry.last.state == REFUSED:
                    self.entry.last.state = INTENDED
                else:
                    self.entry.pushes.append(push(INTENDED, push_id=f"id.{len(self.entry.pushes) + 1}"))
                    self.pushes += 1
            case SendPush() | ConfirmPush() | NoteRefusal() | NoteDropped() | End() | DeleteEmptyKernel():
                assert last is not None, f"{decision} without an open push"
                if isinstance(decision, DeleteEmptyKernel):
                    decision = NoteRefusal(note="deleted")
                if not isinstance(decision, SendPush):
                    apply(last, decision, stamp="2026-01-01T00:00:00+00:00")
            case Wait(active=True):
                assert last is not None
                last.active = True
            case Finish():
                assert last is not None
                last.state = DONE


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(observations, elapsed), max_size=30), st.integers(1, 4))
def test_laws_of_the_decision(steps, pushes):
    """It is deterministic, never raises, bounds the pushes of a series, and every end names a next step."""
    timeouts, kernel = Timeouts(pushes=pushes), Simulated(entry())
    for observation, now in steps:
        before = repr(kernel.entry)
        decision = decide(kernel.entry, observation, now, timeouts)
        assert decision == decide(kernel.entry, observation, now, timeouts)
        assert repr(kernel.entry) == before  # it changes nothing
        messages = [decision.message] if isinstance(decision, (Fail, End)) else []
        messages += (
            [decision.failure] if isinstance(decision, (End, NoteRefusal)) and decision.failure else []
        )
        assert all(any(step in message for step in NEXT_STEPS) for message in messages), messages
        kernel.carry_out(decision)
        if isinstance(decision, Finish):
            kernel.pushes = 0  # the count begins again after a success
        assert kernel.entry.attempts <= pushes and kernel.pushes <= pushes
