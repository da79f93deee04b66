"""The decision on one kernel: as a table, and as laws for any sequence of observations."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.campaign.decide import (
    FOREIGN_RUN,
    NO_RUN,
    OUTPUT,
    PROOF,
    QUOTA,
    SESSION,
    SHORT,
    STATUS,
    ConfirmPush,
    DeleteEmptyKernel,
    Elapsed,
    End,
    Fail,
    Fetch,
    FetchReply,
    Finish,
    NoteDropped,
    NoteRefusal,
    Observation,
    Observe,
    PushReply,
    ReuseOutput,
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
    Push,
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
from lib.runtime.inputs import MISSING_INPUTS

HOUR = 3600.0
TIMEOUTS = Timeouts()
SETTLED = Elapsed(since_push=TIMEOUTS.settle + 1, since_end=TIMEOUTS.settle + 1)


def push(state: str = PUSHED, **values: Any) -> Push:
    given = {
        "push_id": "id.1",
        "bundle_id": "b",
        "identity": "i",
        "limit": HOUR,
        "state": state,
        "url": "https://k",
    }
    return Push(**{**given, **values})


def entry(*pushes: Push, **values: Any) -> KernelEntry:
    return KernelEntry(kind="train", pushes=list(pushes), **values)


def waited(now: Elapsed = SETTLED, **seconds: float) -> Elapsed:
    return replace(now, waited={name.replace("_", " "): value for name, value in seconds.items()})


def seen(name: str, message: str = "", **values: Any) -> Observation:
    return Observation(has_resources=True, status=RunStatus(name, message), **values)


def listed(log: str = "", **values: Any) -> RunOutput:
    return RunOutput(listing=Listing({}, log), log_path=Path("logs/x.log"), **values)


def replied(error: Any = None, **values: Any) -> Observation:
    return Observation(reply=PushReply(error=error), **values)


OPEN, SENT, LACKING = entry(push()), entry(push(INTENDED)), entry(push(DROPPED, note="lacks x"))
ACTIVE = entry(push(active=True))
OTHER = listed(record={"push_id": "id.0"})
OWN = listed(record={"push_id": "id.1"})
NEVER = Source(carries_push_id=False)
LATER = 1e9  # seconds

TABLE = [
    # a kernel without an open push
    ("resources are observed first", entry(), Observation(), SETTLED, Observe("has_resources")),
    ("no session or quota", entry(), Observation(has_resources=False), SETTLED, Wait()),
    ("then the status", entry(), Observation(has_resources=True), SETTLED, Observe("status")),
    ("nothing runs", entry(), seen(ABSENT), SETTLED, SendPush()),
    ("a complete run that may be reused", entry(), seen(COMPLETE, may_reuse=True), SETTLED, ReuseOutput()),
    ("a complete run that was not reused", entry(), seen(COMPLETE), SETTLED, SendPush()),
    ("a foreign run", entry(), seen(RUNNING), SETTLED, (Wait, FOREIGN_RUN, "did not push is RUNNING")),
    ("a foreign run for too long", entry(), seen(QUEUED), waited(foreign_run=LATER), (Fail, "End that run")),
    ("just ended unfinished", entry(push(UNFINISHED)), Observation(), Elapsed(), Wait()),
    ("ended unfinished", entry(push(UNFINISHED)), Observation(), SETTLED, Observe("has_resources")),
    ("refused before", entry(*[push(UNFINISHED)] * 3, push(REFUSED)), seen(ABSENT), SETTLED, SendPush()),
    ("pushed too often", entry(*[push(UNFINISHED)] * 3), Observation(), SETTLED,
     (Fail, "was pushed 3 times")),
    ("a person reran it", entry(*[push(UNFINISHED)] * 3, series=3), seen(ABSENT), SETTLED, SendPush()),
    # a push without a reply
    ("its source is observed", SENT, Observation(), SETTLED, Observe("source")),
    ("the source carries the id", SENT, Observation(source=Source(carries_push_id=True, version=4)), SETTLED,
     ConfirmPush(version=4)),
    ("the source may lag", SENT, Observation(source=NEVER), SETTLED, (Wait, PROOF, "")),
    ("the status is observed", SENT, Observation(source=NEVER), waited(proof=LATER), Observe("status")),
    ("it did not happen", SENT, seen(ABSENT, source=NEVER), waited(proof=LATER),
     (SendPush, "did not happen")),
    ("sent twice, it waits longer", entry(push(INTENDED, sends=2)), seen(ABSENT, source=NEVER),
     waited(proof=1.5 * TIMEOUTS.settle), (Wait, PROOF, "")),
    ("sent too often", entry(push(INTENDED, sends=5, note="HTTP 500")), seen(ABSENT, source=NEVER),
     waited(proof=40 * TIMEOUTS.settle), (End, FAILED, "sent 5 times and never arrived: HTTP 500")),
    ("another run is active", SENT, seen(RUNNING, source=NEVER), waited(proof=LATER),
     (Wait, FOREIGN_RUN, "waiting")),
    # an open push
    ("the status is requested", OPEN, Observation(), SETTLED, Observe("status")),
    ("an unknown status", OPEN, Observation(status_problem="X?"), SETTLED,
     (Wait, STATUS, "X?; polling again")),
    ("an unknown status for too long", OPEN, Observation(status_problem="X?"), waited(status=LATER),
     (Fail, "Open https://k")),
    ("queued", OPEN, seen(QUEUED), SETTLED, Wait(subject="active QUEUED", status="queued", active=True)),
    ("new", OPEN, seen(NEW), SETTLED, Wait(subject="active NEW_SCRIPT", status="new script", active=True)),
    ("queued for too long", OPEN, seen(QUEUED), waited(active_QUEUED=LATER), Fail),
    ("running", OPEN, seen(RUNNING), SETTLED, Wait(subject="active RUNNING", status="running", active=True)),
    ("cancelling", OPEN, seen(CANCEL_REQUESTED), SETTLED, (Wait, "active CANCEL_REQUESTED", "")),
    ("no run just after a push", OPEN, seen(ABSENT), Elapsed(), Wait(status="pushed, no run yet")),
    ("no run", OPEN, seen(ABSENT), SETTLED, (Wait, NO_RUN, "")),
    ("an active run was deleted", ACTIVE, seen(ABSENT), Elapsed(), (Wait, NO_RUN, "")),
    ("no run: its source is observed", OPEN, seen(ABSENT), waited(no_run=LATER), Observe("source")),
    ("no run for too long", OPEN, seen(ABSENT, source=Source(carries_push_id=True)), waited(no_run=LATER),
     (Fail, "Open https://k")),
    ("one pushed without inputs was deleted", LACKING, seen(ABSENT, source=NEVER),
     waited(no_run=3 * TIMEOUTS.settle), (End, UNFINISHED, "lacks x")),
    ("the kernel was deleted", ACTIVE, seen(ABSENT, source=NEVER), waited(no_run=3 * TIMEOUTS.settle),
     (End, FAILED, "deleted on Kaggle")),
    # a complete run
    ("its output is listed", OPEN, seen(COMPLETE), SETTLED, Observe("output")),
    ("pushed without inputs, recent", LACKING, seen(COMPLETE), Elapsed(), Wait()),
    ("pushed without inputs", LACKING, seen(COMPLETE), SETTLED, (End, UNFINISHED, "lacks x")),
    ("output not readable", OPEN, seen(COMPLETE, output=listed(problem="HTML")), SETTLED,
     (Wait, OUTPUT, "HTML; listing")),
    ("output not readable for too long",
     OPEN, seen(COMPLETE, output=listed(problem="HTML")), waited(output=LATER),
     (Fail, "rerun the command")),
    ("no record, recent", OPEN, seen(COMPLETE, output=listed(lacks_record=True)), Elapsed(), Wait()),
    ("no record, log of another run", OPEN, seen(COMPLETE, output=listed(lacks_record=True)), SETTLED,
     (Wait, SHORT, "")),
    ("no record, log of this run",
     OPEN, seen(COMPLETE, output=listed("push id.1", lacks_record=True)), SETTLED,
     (End, UNFINISHED, "no run.json")),
    ("no record for too long", OPEN, seen(COMPLETE, output=listed(lacks_record=True)), waited(short=LATER),
     (End, UNFINISHED, "no run.json")),
    ("the output of an earlier push", OPEN, seen(COMPLETE, output=OTHER), SETTLED,
     (Wait, OUTPUT, "earlier push")),
    ("the output of this push", OPEN, seen(COMPLETE, output=OWN), Elapsed(), Fetch()),
    ("fetched", OPEN, seen(COMPLETE, output=OWN, fetched=FetchReply()), SETTLED, Finish()),
    ("not fetched", OPEN, seen(COMPLETE, output=OWN, fetched=FetchReply(problem="cut")), SETTLED,
     (Wait, OUTPUT, "cut")),
    ("not usable", OPEN, seen(COMPLETE, output=OWN, fetched=FetchReply(problem="odd", final=True)), SETTLED,
     (End, FAILED, "odd")),
    # a run that ended without output
    ("its log is listed", OPEN, seen(ERROR), SETTLED, Observe("log")),
    ("the run before", OPEN, seen(ERROR, output=listed("push id.0")), Elapsed(), Wait()),
    ("this run, recent", OPEN, seen(ERROR, output=listed("push id.1")), Elapsed(),
     (End, UNFINISHED, "Kaggle says ERROR")),
    ("this run", ACTIVE, seen(CANCELLED, output=listed()), Elapsed(), (End, FAILED, "was cancelled")),
    ("cancelled before the command was run again", ACTIVE, seen(CANCELLED, output=listed(), was_rerun=True),
     Elapsed(), (End, UNFINISHED, "was cancelled")),
    # the reply to a push
    ("accepted", SENT, Observation(reply=PushReply(version=2, url="u")), SETTLED,
     ConfirmPush(version=2, url="u")),
    ("no session", SENT, replied(CapacityError("full")), SETTLED, NoteRefusal(note="full", lacks=SESSION)),
    ("no session for too long", SENT, replied(CapacityError("full")), waited(session=LATER),
     (NoteRefusal, SESSION, "End the other sessions")),
    ("no quota", SENT, replied(QuotaError("spent")), SETTLED, NoteRefusal(note="spent", lacks=QUOTA)),
    ("no quota for too long", SENT, replied(QuotaError("spent")), waited(quota=LATER),
     (NoteRefusal, QUOTA, "Wait for the next quota")),
    ("dropped sources", SENT, replied(SourcesDroppedError("lacks", version=3)), SETTLED,
     (NoteDropped, 3, "waiting for that version")),
    ("lost", SENT, replied(NoResponseError("reset")), SETTLED,
     (Wait, "", "checking whether the push happened")),
    ("refused", SENT, replied(RefusedError("no")), SETTLED, (End, FAILED, "no")),
    ("not understood", SENT, replied(UnexpectedResponseError("odd")), SETTLED, (End, FAILED, "odd")),
    ("empty kernel", SENT, replied(EmptyKernelError("gone")), SETTLED, Observe("is_empty")),
    ("empty kernel that is empty", SENT, replied(EmptyKernelError("gone"), is_empty=True), SETTLED,
     DeleteEmptyKernel),
    ("empty kernel that is not empty", SENT, replied(EmptyKernelError("gone"), is_empty=False), SETTLED,
     (End, FAILED, "gone")),
    ("deleted too often", SENT, replied(EmptyKernelError("gone"), is_empty=True, deletions=3), SETTLED,
     (End, FAILED, "gone")),
    ("it had a version", entry(push(DONE), push(INTENDED)), replied(EmptyKernelError("gone")), SETTLED,
     (End, FAILED, "gone")),
]  # fmt: skip


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


def test_credentials_that_are_not_accepted_are_noted_as_a_refusal_and_raised():
    error = CredentialsError("401")
    decision = decide(SENT, replied(error), SETTLED, TIMEOUTS)
    assert isinstance(decision, NoteRefusal) and decision.error is error and not decision.failure


@pytest.mark.parametrize(("since_push", "fails"), [(HOUR, False), (HOUR + TIMEOUTS.overrun + 1, True)])
def test_a_run_may_be_shown_as_running_until_its_limit_and_the_overrun(since_push, fails):
    """Its timer may have begun before a restart: the age of the push counts, too."""
    now = waited(Elapsed(since_push=since_push), active_RUNNING=LATER)
    assert isinstance(decide(ACTIVE, seen(RUNNING), now, TIMEOUTS), Fail) is fails


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
    assert judged(ERROR, "killed", message="") == (UNFINISHED, "Kaggle says ERROR: no reason given", "")


# --- laws ---

NEXT_STEPS = ("rerun the command", "it will be pushed again")
names = st.sampled_from(
    [QUEUED, RUNNING, COMPLETE, ERROR, CANCELLED, CANCEL_REQUESTED, NEW, ABSENT, "WARMING_UP"]
)
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
)
SUBJECTS = [
    PROOF,
    FOREIGN_RUN,
    STATUS,
    NO_RUN,
    OUTPUT,
    SHORT,
    SESSION,
    QUOTA,
    "active QUEUED",
    "active RUNNING",
]
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
