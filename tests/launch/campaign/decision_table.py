"""The table of decisions: a case for every way through `decide`, for the tests and for docs/architecture.md.

A new decision needs a row in TABLE: a test fails while a `return` of launch/campaign/decide.py has none.
`make docs` writes all rows into docs/architecture.md, with their messages and their ways out.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.campaign.decide import (
    FOREIGN_END,
    FOREIGN_RUN,
    INPUT,
    INPUT_GONE,
    INPUT_RUN,
    MISSING,
    NO_RUN,
    OUTPUT,
    PROCESSING,
    PROOF,
    QUOTA,
    SESSION,
    SHORT,
    STALL,
    STATUS,
    ConfirmPush,
    Datasets,
    Decision,
    DeleteEmptyKernel,
    Elapsed,
    End,
    Fail,
    Fetch,
    FetchReply,
    Finish,
    HeldInput,
    NoteDropped,
    NoteRefusal,
    Observation,
    Observe,
    PushReply,
    RedoInput,
    ReuseOutput,
    RunOutput,
    SendPush,
    Source,
    TakeOver,
    Wait,
    decide,
)
from launch.campaign.ledger import (
    DONE,
    DROPPED,
    FAILED,
    INTENDED,
    LIMIT_NOTE,
    PUSHED,
    REFUSED,
    REPLACED,
    UNFINISHED,
    KernelEntry,
    Push,
)
from launch.campaign.outputs import TRACEBACK
from launch.campaign.waits import LONGEST_SESSION, Timeouts, describe_seconds
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


def reading(push_id: str, **values: Any) -> Observation:
    """Nothing runs of a kernel that reads push id.1 of prepare, of which Kaggle lists another push."""
    held = HeldInput(slug="hcd-prepare", wanted="id.1", push_id=push_id, **values)
    return seen(ABSENT, inputs=(held,))


def replied(error: Any = None, **values: Any) -> Observation:
    return Observation(reply=PushReply(error=error), **values)


OPEN, SENT, LACKING = entry(push()), entry(push(INTENDED)), entry(push(DROPPED, note="lacks x"))
ACTIVE = entry(push(active=True))
OTHER = listed(record={"push_id": "id.0"})
OWN = listed(record={"push_id": "id.1"})
NEVER = Source(carries_push_id=False)
ITS_OWN = Source(carries_push_id=True)
HAND = Source(carries_push_id=False, version=8, pushed_by="hand")
RIVAL = Source(carries_push_id=False, version=8, pushed_by="the campaign 1a2b3c4d of another checkout")
OLD = Source(carries_push_id=False, version=6, pushed_by="hand")
SEVENTH = entry(push(version=7))
TAKEN = push(REPLACED, note="version 8 was pushed by hand, over version 7 of this campaign")
LATER = 16 * 24 * HOUR
UNUSABLE = Datasets(unusable=["the dataset me/x: it does not exist"])
UNREADY = Datasets(processing=["me/x"])

TABLE = [
    # a kernel without an open push
    ("resources are observed first", entry(), Observation(), SETTLED, Observe("has_resources")),
    ("no session or quota", entry(), Observation(has_resources=False), SETTLED, Wait()),
    ("then the status", entry(), Observation(has_resources=True), SETTLED, Observe("status")),
    ("nothing runs", entry(), seen(ABSENT), SETTLED, SendPush()),
    ("saved and never run", entry(), seen(NEW), SETTLED, SendPush()),
    ("a complete run that may be reused", entry(), seen(COMPLETE, may_reuse=True), SETTLED, ReuseOutput()),
    ("a complete run that was not reused", entry(), seen(COMPLETE), SETTLED, SendPush()),
    # a run that the campaign did not push, and pushes that were replaced
    ("a run of somebody else: its source is observed", entry(), seen(RUNNING), SETTLED, Observe("source")),
    ("a run of another checkout", entry(), seen(RUNNING, source=RIVAL), SETTLED,
     (Wait, FOREIGN_RUN, "version 8 was pushed by the campaign 1a2b3c4d of another checkout and is RUNNING")),
    ("a run of somebody else that Kaggle does not show", entry(), seen(RUNNING, source=NEVER), SETTLED,
     (Wait, FOREIGN_RUN, "its latest version was pushed by somebody else")),
    ("a run of somebody else, seen before", entry(), seen(RUNNING), waited(foreign_run=60),
     (Wait, FOREIGN_RUN, "")),
    ("a run of somebody else for too long: its source", entry(), seen(QUEUED), waited(foreign_run=LATER),
     Observe("source")),
    ("a run of somebody else for too long", entry(), seen(QUEUED, source=HAND), waited(foreign_run=LATER),
     (Fail, "pushed by hand and is still QUEUED", "End that run")),
    ("a run of somebody else has ended", entry(), seen(COMPLETE, may_reuse=True), waited(foreign_run=60),
     ReuseOutput()),
    ("its output does not fit: its owner is given time", entry(), seen(COMPLETE), waited(foreign_run=60),
     (Wait, FOREIGN_END, "given time to fetch it")),
    ("its owner had time", entry(), seen(COMPLETE), waited(foreign_run=60, foreign_end=LATER), SendPush()),
    ("replaced: the output on Kaggle", entry(TAKEN), seen(COMPLETE, may_reuse=True), SETTLED, ReuseOutput()),
    ("replaced by something that does not fit", entry(TAKEN), seen(COMPLETE), SETTLED, SendPush()),
    ("replaced twice", entry(TAKEN, TAKEN), seen(COMPLETE), SETTLED, (Fail, "pushed by hand", "--reuse")),
    ("replaced twice, an output that may fit", entry(TAKEN, TAKEN), seen(COMPLETE, may_reuse=True), SETTLED,
     ReuseOutput()),
    ("pushed too often and replaced", entry(push(UNFINISHED), push(UNFINISHED), TAKEN), seen(ABSENT), SETTLED,
     (Fail, "was pushed 3 times")),
    ("just ended unfinished", entry(push(UNFINISHED)), Observation(), Elapsed(), Wait()),
    ("ended unfinished", entry(push(UNFINISHED)), Observation(), SETTLED, Observe("has_resources")),
    ("its inputs are observed", entry(), seen(ABSENT, inputs=None), SETTLED, Observe("inputs")),
    ("Kaggle holds its inputs", entry(), reading("id.1"), SETTLED, SendPush()),
    ("an input that could not be observed", entry(), reading(""), SETTLED, SendPush()),
    ("a later push replaced an input, and fits", entry(), reading("x.1", is_latest=False), SETTLED,
     (TakeOver, "hcd-prepare", "x.1", "is used instead")),
    ("a later push replaced an input, and does not fit", entry(),
     reading("x.1", is_latest=False, misfit="its data are others"), SETTLED,
     (RedoInput, "hcd-prepare", "its data are others. It is made again")),
    ("an input was replaced too often", entry(), reading("x.1", is_latest=False, redone=3), SETTLED,
     (Fail, "Run one campaign at a time")),
    ("a later run of an input is active", entry(), reading("", is_latest=False, status=RUNNING), SETTLED,
     (Wait, INPUT_RUN, "RUNNING")),
    ("a later run of an input is active for too long", entry(),
     reading("", is_latest=False, status=RUNNING), waited(run_of_an_input=LATER), (Fail, "End that run")),
    ("a later run of an input left no output", entry(), reading("", is_latest=False, status=ERROR), SETTLED,
     SendPush()),
    ("a later run left no output, and another input was mounted",
     entry(push(UNFINISHED, mounted={"hcd-prepare": "x.0"})),
     reading("", is_latest=False, status=ERROR), SETTLED, (RedoInput, "push x.0")),
    ("an earlier output of an input is listed", entry(), reading("id.0", is_latest=True), SETTLED,
     (Wait, INPUT, "does not list push id.1")),
    ("an earlier output of an input is listed for too long", entry(), reading("id.0", is_latest=True),
     waited(input=LATER), SendPush()),
    ("an input seems to be deleted", entry(), reading("", status=ABSENT), SETTLED,
     (Wait, INPUT_GONE, "no kernel")),
    ("an input was deleted", entry(), reading("", status=ABSENT), waited(no_input=LATER),
     (RedoInput, "was deleted on Kaggle")),
    ("pushed too often without its inputs",
     entry(*[push(UNFINISHED, note="x", mounted={"hcd-prepare": "x.0"})] * 3), Observation(), SETTLED,
     (Fail, "make its inputs again (hcd-prepare: build_kernel.py push)")),
    ("refused before", entry(*[push(UNFINISHED)] * 3, push(REFUSED)), seen(ABSENT), SETTLED, SendPush()),
    ("pushed too often", entry(*[push(UNFINISHED, note="killed")] * 3), Observation(), SETTLED,
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
    ("another run is active", SENT, seen(RUNNING, source=HAND), waited(proof=LATER),
     (Wait, FOREIGN_RUN, "pushed by hand and is RUNNING")),
    ("another run has ended", SENT, seen(COMPLETE, source=HAND), waited(proof=LATER, foreign_run=60),
     (End, REPLACED, "pushed by hand, over the push")),
    # an open push
    ("the status is requested", OPEN, Observation(), SETTLED, Observe("status")),
    ("an unknown status", OPEN, Observation(status_problem="X?"), SETTLED,
     (Wait, STATUS, "X?; polling again")),
    ("an unknown status for too long", OPEN, Observation(status_problem="X?"), waited(status=LATER),
     (Fail, "Open https://k")),
    ("queued", OPEN, seen(QUEUED), SETTLED, Wait(subject="active QUEUED", status="queued", active=True)),
    ("queued for too long: its source", OPEN, seen(QUEUED), waited(active_QUEUED=LATER), Observe("source")),
    ("queued for too long", OPEN, seen(QUEUED, source=ITS_OWN), waited(active_QUEUED=LATER), Fail),
    ("queued after it ran: its source", ACTIVE, seen(QUEUED), waited(active_RUNNING=60), Observe("source")),
    ("queued after it ran", ACTIVE, seen(QUEUED, source=ITS_OWN), waited(active_RUNNING=60),
     (Wait, "active QUEUED", "queued")),
    ("replaced by a run that is active", SEVENTH, seen(QUEUED, source=RIVAL), waited(active_RUNNING=60),
     (Wait, FOREIGN_RUN, "version 8 was pushed by the campaign 1a2b3c4d")),
    ("replaced by a run that was seen before", SEVENTH, seen(RUNNING), waited(foreign_run=60),
     (Wait, FOREIGN_RUN, "")),
    ("running", OPEN, seen(RUNNING), SETTLED, Wait(subject="active RUNNING", status="running", active=True)),
    ("cancelling", OPEN, seen(CANCEL_REQUESTED), SETTLED, (Wait, "active CANCEL_REQUESTED", "")),
    ("no run just after a push", OPEN, seen(ABSENT), Elapsed(), Wait(status="pushed, no run yet")),
    ("no run", OPEN, seen(ABSENT), SETTLED, (Wait, NO_RUN, "")),
    ("saved without a run", OPEN, seen(NEW), SETTLED, (Wait, NO_RUN, "")),
    ("saved without a run over this push", SEVENTH, seen(NEW, source=HAND),
     waited(no_run=3 * TIMEOUTS.settle), (End, REPLACED, "version 8 was pushed by hand, over version 7")),
    ("an active run was deleted", ACTIVE, seen(ABSENT), Elapsed(), (Wait, NO_RUN, "")),
    ("no run: its source is observed", OPEN, seen(ABSENT), waited(no_run=LATER), Observe("source")),
    ("no run for too long", OPEN, seen(ABSENT, source=Source(carries_push_id=True)), waited(no_run=LATER),
     (Fail, "Open https://k")),
    ("one pushed without inputs was deleted", LACKING, seen(ABSENT, source=NEVER, datasets=Datasets()),
     waited(no_run=3 * TIMEOUTS.settle), (End, UNFINISHED, "lacks x")),
    ("no run: a version of somebody else", SEVENTH, seen(ABSENT, source=HAND),
     waited(no_run=3 * TIMEOUTS.settle), (End, REPLACED, "version 8 was pushed by hand, over version 7")),
    ("the kernel was deleted", ACTIVE, seen(ABSENT, source=NEVER), waited(no_run=3 * TIMEOUTS.settle),
     (End, FAILED, "deleted on Kaggle")),
    ("alternating answers for days", OPEN, seen(QUEUED), waited(stall=LATER), (Fail, "came no further")),
    # a complete run
    ("its output is listed", OPEN, seen(COMPLETE), SETTLED, Observe("output")),
    ("pushed without inputs: its datasets are observed", LACKING, Observation(), SETTLED,
     Observe("datasets")),
    ("pushed without inputs, recent", LACKING, seen(COMPLETE, datasets=Datasets()), Elapsed(), Wait()),
    ("pushed without inputs", LACKING, seen(COMPLETE, datasets=Datasets()), SETTLED,
     (End, UNFINISHED, "lacks x")),
    ("a dataset is not seen", LACKING, Observation(datasets=UNUSABLE), SETTLED, (Wait, MISSING, "")),
    ("a dataset does not exist", LACKING, Observation(datasets=UNUSABLE),
     Elapsed(waited={MISSING: TIMEOUTS.settle}), (Fail, "the dataset me/x: it does not exist. It is not")),
    ("a dataset in processing, its run active", LACKING, seen(RUNNING, datasets=UNREADY), SETTLED,
     (Wait, "active RUNNING", "")),
    ("a dataset in processing", LACKING, seen(COMPLETE, datasets=UNREADY), SETTLED,
     (Wait, PROCESSING, "still processes the dataset me/x")),
    ("a dataset in processing for too long", LACKING, seen(COMPLETE, datasets=UNREADY),
     Elapsed(since_push=LATER, waited={PROCESSING: LATER}),
     (Fail, "has processed the dataset me/x for 30 min")),
    ("output not readable", OPEN, seen(COMPLETE, output=listed(problem="HTML")), SETTLED,
     (Wait, OUTPUT, "HTML; listing")),
    ("output not readable for too long",
     OPEN, seen(COMPLETE, output=listed(problem="HTML")), waited(output=LATER),
     (Fail, "rerun the command")),
    ("no record, recent", OPEN, seen(COMPLETE, output=listed(lacks_record=True)), Elapsed(), Wait()),
    ("no record, log of another run", OPEN, seen(COMPLETE, output=listed(lacks_record=True)), SETTLED,
     (Wait, SHORT, "")),
    ("no record, log of this run",
     OPEN, seen(COMPLETE, output=listed("push id.1", lacks_record=True)), SETTLED, (Wait, SHORT, "")),
    ("no record for too long, log of this run",
     OPEN, seen(COMPLETE, output=listed("push id.1", lacks_record=True)), waited(short=LATER),
     (End, UNFINISHED, "no run.json")),
    ("no record, and an error ended it",
     OPEN, seen(COMPLETE, output=listed(f"push id.1\n{TRACEBACK}\nKeyError: 3", lacks_record=True)), SETTLED,
     (End, FAILED, "although Kaggle calls the run complete")),
    ("no record for too long: its source", OPEN, seen(COMPLETE, output=listed(lacks_record=True)),
     waited(short=LATER), Observe("source")),
    ("no record for too long", OPEN, seen(COMPLETE, output=listed(lacks_record=True), source=ITS_OWN),
     waited(short=LATER), (End, UNFINISHED, "no run.json")),
    ("no record in somebody else's version", SEVENTH,
     seen(COMPLETE, output=listed(lacks_record=True), source=HAND), waited(short=LATER),
     (End, REPLACED, "version 8 was pushed by hand, over version 7")),
    ("the output of an earlier push, recent", OPEN, seen(COMPLETE, output=OTHER), Elapsed(),
     (Wait, OUTPUT, "another push")),
    ("output of another push: its source", OPEN, seen(COMPLETE, output=OTHER), SETTLED, Observe("source")),
    ("the output of an earlier push", OPEN, seen(COMPLETE, output=OTHER, source=ITS_OWN), SETTLED,
     (Wait, OUTPUT, "another push")),
    ("the output of a version before this one", SEVENTH, seen(COMPLETE, output=OTHER, source=OLD), SETTLED,
     (Wait, OUTPUT, "another push")),
    ("the output of somebody else's version", SEVENTH, seen(COMPLETE, output=OTHER, source=RIVAL), SETTLED,
     (End, REPLACED, "1a2b3c4d of another checkout, over version 7")),
    ("deleted, and pushed by somebody else", SEVENTH, seen(COMPLETE, output=OTHER, source=OLD),
     Elapsed(since_push=TIMEOUTS.output_timeout + 1), (End, REPLACED, "version 6 was pushed by hand")),
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
    ("a log without the id: its source", ACTIVE, seen(CANCELLED, output=listed()), Elapsed(),
     Observe("source")),
    ("cancelled", ACTIVE, seen(CANCELLED, output=listed(), source=ITS_OWN), Elapsed(),
     (End, FAILED, "was cancelled")),
    ("cancelled at its time limit", ACTIVE, seen(CANCELLED, output=listed("push id.1")),
     Elapsed(since_push=HOUR), (End, UNFINISHED, LIMIT_NOTE)),
    ("cancelled at the longest limit", entry(push(active=True, limit=LONGEST_SESSION)),
     seen(CANCELLED, output=listed("push id.1")), Elapsed(since_push=LONGEST_SESSION),
     (End, FAILED, "longest session")),
    ("inputs that were not mounted", OPEN, seen(ERROR, output=listed(f"push id.1\nerror: {MISSING_INPUTS}")),
     SETTLED, (End, UNFINISHED, "not mounted")),
    ("an error of the kernel", OPEN, seen(ERROR, output=listed("push id.1\nerror: fold 0 has no tumour")),
     SETTLED, (End, FAILED, "no tumour")),
    ("an error of somebody else's version", SEVENTH,
     seen(ERROR, output=listed("error: theirs"), source=HAND), SETTLED, (End, REPLACED, "pushed by hand")),
    ("pushed without inputs, an error", LACKING,
     seen(ERROR, output=listed("error: no data"), datasets=Datasets()), SETTLED,
     (End, UNFINISHED, "lacks x")),
    ("cancelled before the command was run again", ACTIVE,
     seen(CANCELLED, output=listed("push id.1"), was_rerun=True), Elapsed(),
     (End, UNFINISHED, "was cancelled")),
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
    ("credentials not accepted", SENT, replied(CredentialsError("401")), SETTLED,
     (NoteRefusal, "did not accept the credentials")),
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

SUBJECTS = [
    PROOF,
    FOREIGN_RUN,
    FOREIGN_END,
    STALL,
    STATUS,
    NO_RUN,
    OUTPUT,
    SHORT,
    SESSION,
    QUOTA,
    INPUT,
    INPUT_GONE,
    INPUT_RUN,
    MISSING,
    PROCESSING,
    "active QUEUED",
    "active RUNNING",
]


# --- the way out of every case ------------------------------------------------------------------------------

# A message that ends or repeats something holds one of these.
NEXT_STEPS = ("rerun the command", "it will be pushed again")
# What follows a decision that neither waits nor stops.
FOLLOWS = {
    Observe: "the service is asked, and the decision is made again at once",
    SendPush: "its reply decides; without one, the source that Kaggle holds",
    ConfirmPush: "its run is followed",
    NoteRefusal: "it is sent again when what it lacked is there",
    NoteDropped: "its run ends, then it is pushed again",
    DeleteEmptyKernel: "it is pushed again",
    ReuseOutput: "the output is used, or the kernel is pushed",
    TakeOver: "the input is fetched, and the kernel is pushed to read it",
    RedoInput: "the input is pushed by itself; the kernels that read it wait for its end",
    Fetch: "the result of the fetch decides",
    Finish: "the kernel is done",
    End: f"it is pushed again, at most {TIMEOUTS.pushes} times in all",
}
_REPLACED_FOLLOWS = "the output on Kaggle is used if it fits, else the kernel is pushed again, once"
# Waits that no timer of the kernel ends, by the name of their case.
_OTHER_WAITS = {
    "no session or quota": "a session or quota becomes free; refusals for too long, or failed kernels that "
    "hold all sessions, stop the command with what to do",
    "lost": "the source that Kaggle holds decides",
}
_FOREVER = 1e7  # seconds, longer than every limit


def next_step(message: str) -> str:
    """The sentence of a message that names the next step."""
    sentences = message.replace("\n", " ").replace(". ", ".\n").splitlines()
    return next((text for text in sentences if any(step in text.lower() for step in NEXT_STEPS)), "")


def stop_of(decision: Decision) -> str:
    """The message with which a decision gives the kernel up or repeats it; empty for other decisions."""
    if isinstance(decision, NoteRefusal):
        return decision.failure
    if isinstance(decision, End):
        return decision.failure or decision.message
    return decision.message if isinstance(decision, Fail) else ""


def way_out(name: str, entry: KernelEntry, observation: Observation, now: Elapsed) -> str:
    """How a case goes on: what follows its decision, or what ends its wait at the latest."""
    decision = decide(entry, observation, now, TIMEOUTS)
    if (message := stop_of(decision)) and not _is_repeated(decision):
        return next_step(message)
    if isinstance(decision, Wait):
        return _end_of_wait(decision.subject, entry, observation, now) or _OTHER_WAITS.get(name, "")
    return _follows(decision)


def _follows(decision: Decision) -> str:
    if isinstance(decision, End) and decision.state == REPLACED:
        return _REPLACED_FOLLOWS
    return FOLLOWS.get(type(decision), "")


def _end_of_wait(subject: str, entry: KernelEntry, observation: Observation, now: Elapsed) -> str:
    """After how long a wait ends if nothing changes, and in which decision; empty if it does not."""

    def after(seconds: float) -> Decision:
        later = Elapsed(since_push=seconds, since_end=seconds, waited=dict.fromkeys(subjects, seconds))
        return decide(entry, observation, later, TIMEOUTS)

    subjects = {*now.waited, subject}
    while isinstance(last := after(_FOREVER), Wait) and last.subject not in subjects:
        subjects.add(last.subject)  # a wait that follows this one
    if isinstance(last, Wait):
        return ""
    low, high = 0.0, _FOREVER
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if isinstance(after(middle), Wait) else (low, middle)
    decision = after(high)
    limit = describe_seconds(math.floor(high))
    message = stop_of(decision)
    stops = bool(message) and not _is_repeated(decision)
    return f"after {limit} at most: " + (next_step(message) if stops else _follows(decision))


def _is_repeated(decision: Decision) -> bool:
    """Whether a decision ends a push and repeats it."""
    return isinstance(decision, End) and not decision.failure


# --- the table in docs/architecture.md ----------------------------------------------------------------------

_STATES = {
    "": "no push is open",
    INTENDED: "sent, no reply was read",
    PUSHED: "pushed",
    DROPPED: "pushed without some inputs",
}
_REPLIED = "a push was just sent, and its reply is"


def markdown() -> str:
    """The table of all cases, by the state of the push."""
    lines: list[str] = []
    states = dict.fromkeys(_state(entry, observation) for _, entry, observation, _, _ in TABLE)
    for state in states:
        lines += [f"{state[0].upper()}{state[1:]}:", "", "| case | decision | way out |", "|---|---|---|"]
        for name, entry, observation, now, _ in TABLE:
            if _state(entry, observation) == state:
                decision = decide(entry, observation, now, TIMEOUTS)
                cells = (name, _shown(decision), way_out(name, entry, observation, now))
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _state(entry: KernelEntry, observation: Observation) -> str:
    push = entry.open
    return _REPLIED if observation.reply is not None else _STATES[push.state if push is not None else ""]


def _shown(decision: Decision) -> str:
    """A decision with its message, as far as it is one line."""
    name = type(decision).__name__
    if isinstance(decision, Observe):
        return f"{name} {decision.part}"
    if isinstance(decision, End):
        name = f"{name} {decision.state}"
    message = stop_of(decision) or getattr(decision, "message", "") or getattr(decision, "status", "")
    if message and not _is_repeated(decision):
        message = message.removesuffix(next_step(message)).strip()
    return f"{name}: {message.splitlines()[0]}" if message else name
