"""Decide the next step of one kernel from its ledger entry and an observation.

`decide` is a pure function. The loop calls the service and passes what it returned as an Observation. The
decision names one step: observe more, wait, push, fetch, or end. It carries the message that the user sees.
An observation is believed only about the push that it can be tied to: shortly after a push, and in listings
for longer, the service shows the state of an earlier one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.campaign.ledger import (
    DROPPED,
    FAILED,
    INTENDED,
    LIMIT_NOTE,
    REFUSED,
    REPLACED,
    UNFINISHED,
    KernelEntry,
    Push,
)
from launch.campaign.outputs import TRACEBACK, uncaught_error
from launch.campaign.waits import LONGEST_SESSION, Timeouts, describe_seconds
from launch.kaggle_api.errors import (
    CapacityError,
    ClientError,
    CredentialsError,
    EmptyKernelError,
    NoResponseError,
    QuotaError,
    SourcesDroppedError,
)
from launch.kaggle_api.types import (
    ABSENT,
    ACTIVE,
    CANCELLED,
    COMPLETE,
    NEW,
    QUEUED,
    RUNNING,
    Listing,
    RunStatus,
)
from lib.runtime.inputs import MISSING_INPUTS, mounted_instead
from lib.runtime.run_record import RunRecord

CANCELLED_NOTE = "the run was cancelled on Kaggle"  # of a push that did not finish
_LOG_LINES_SHOWN = 25  # of a kernel that failed
RERUN = "rerun the command"

# What a wait is for: the keys of Elapsed.waited.
PROOF, FOREIGN_RUN, FOREIGN_END, STATUS, NO_RUN, OUTPUT, SHORT = (
    "proof",
    "foreign run",
    "foreign end",
    "status",
    "no run",
    "output",
    "short",
)
MISSING, PROCESSING = "missing datasets", "datasets in processing"
SESSION, QUOTA = "session", "quota"  # waits of all kernels of a machine
INPUT, INPUT_GONE, INPUT_RUN = "input", "no input", "run of an input"
STALL = "stall"  # since the last decision that brought the kernel further
SENT_STATUS = "was it pushed?"


# --- what decide gets ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Elapsed:
    """Seconds at the moment of a decision, by a clock that nobody sets.

    Attributes:
        since_push: since Kaggle accepted the latest push.
        since_end: since the latest push ended.
        waited: for each subject of a running wait, the seconds so far.
    """

    since_push: float = 0.0
    since_end: float = 0.0
    waited: Mapping[str, float] = field(default_factory=dict)

    def waiting_for(self, subject: str) -> float:
        """Seconds of a wait; 0 before it begins."""
        return self.waited.get(subject, 0.0)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source that Kaggle holds of a kernel.

    Attributes:
        carries_push_id: whether it is that of the open push.
        version: its number.
        pushed_by: who pushed it, in words, where it is not that of the open push; empty where Kaggle holds no
            source.
    """

    carries_push_id: bool
    version: int | None = None
    pushed_by: str = ""


@dataclass(frozen=True, kw_only=True)
class RunOutput:
    """What Kaggle lists for a run.

    Attributes:
        listing: its files and its log.
        record: the content of its run.json; None where it has none, or where it was not requested.
        lacks_record: there is no run.json.
        problem: why listing or record could not be read; empty where they could.
        log_path: where the log is kept when the run has ended.
    """

    listing: Listing = field(default_factory=lambda: Listing({}, ""))
    record: Mapping[str, Any] | None = None
    lacks_record: bool = False
    problem: str = ""
    log_path: Path = Path()


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """The attached datasets of a kernel that a push cannot have.

    Attributes:
        unusable: those that no wait makes usable, with the reason: `alice/map (does not exist, ...)`.
        processing: those that Kaggle still processes.
    """

    unusable: Sequence[str] = ()
    processing: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class PushReply:
    """The reply to a push: a version, or the error that came instead."""

    version: int | None = None
    url: str = ""
    error: ClientError | None = None


@dataclass(frozen=True, kw_only=True)
class FetchReply:
    """The result of a fetch.

    Attributes:
        record: of the output that was fetched and verified; None where there was a problem.
        problem: why nothing was fetched.
        final: the problem stays when the output is listed again.
    """

    record: RunRecord | None = None
    problem: str = ""
    final: bool = False


@dataclass(frozen=True, kw_only=True)
class HeldInput:
    """What Kaggle holds of an output that a kernel reads, against what the ledger holds.

    Attributes:
        slug: of the kernel that made it.
        wanted: the push id of the output that the ledger holds.
        push_id: in the output that Kaggle lists; empty where it lists none, or could not be observed.
        status: of the latest run, observed where the push ids differ.
        is_latest: the latest version on Kaggle is the wanted push; None where that was not observed.
        misfit: why the listed output cannot replace the wanted one; empty where it can.
        redone: how often this process has replaced it already.
    """

    slug: str
    wanted: str
    push_id: str = ""
    status: str = ""
    is_latest: bool | None = None
    misfit: str = ""
    redone: int = 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the loop knows of a kernel from calls; None: not called yet.

    Attributes:
        has_resources: a session and quota are free for it.
        status: of the latest run that Kaggle shows.
        status_problem: why the status could not be understood.
        source: what Kaggle holds of the kernel.
        output: of the latest run.
        fetched: the result of fetching that output.
        datasets: those of its attached datasets that a push cannot have.
        reply: of a push that was just sent.
        is_empty: Kaggle shows neither a run nor a source of the kernel.
        deletions: how often this process deleted the kernel because it was empty.
        may_reuse: an output of an earlier campaign has not been checked for reuse yet.
        was_rerun: the user has run the command again since the open push was last seen queued or running.
        inputs: what Kaggle holds of the outputs that the kernel reads; empty where it reads none.
    """

    has_resources: bool | None = None
    status: RunStatus | None = None
    status_problem: str = ""
    source: Source | None = None
    output: RunOutput | None = None
    fetched: FetchReply | None = None
    datasets: Datasets | None = None
    reply: PushReply | None = None
    is_empty: bool | None = None
    deletions: int = 0
    may_reuse: bool = False
    was_rerun: bool = False
    inputs: Sequence[HeldInput] | None = ()


# --- what decide returns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observe:
    """Call the service for one more part of the observation, by the name of its field, and decide again."""

    part: str


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Do nothing until the next poll.

    Attributes:
        subject: what is waited for; its timer starts unless it runs. Empty: nothing is timed.
        message: logged when the wait begins.
        status: shown in the table.
        active: the open push was seen queued or running.
        note: why the request of the open push got no usable response.
    """

    subject: str = ""
    message: str = ""
    status: str = ""
    active: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SendPush:
    """Send a push: the open one again, or a new attempt where none is open."""

    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ConfirmPush:
    """The open push happened."""

    version: int | None = None
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class NoteRefusal:
    """Kaggle refused the open push, so it did not happen and is sent again later.

    Attributes:
        note: why.
        lacks: what was missing: SESSION, QUOTA, or empty.
        failure: why this run of the campaign gives the kernel up; empty where it waits.
        error: raised after the refusal is noted: credentials concern every kernel.
    """

    note: str
    lacks: str = ""
    failure: str = ""
    error: ClientError | None = None


@dataclass(frozen=True, kw_only=True)
class NoteDropped:
    """The push happened without some of its inputs: its run must end before the next push."""

    version: int | None
    note: str
    message: str


@dataclass(frozen=True, kw_only=True)
class DeleteEmptyKernel:
    """Delete a kernel without any version, on which every push fails, so that it can be pushed again."""

    message: str


@dataclass(frozen=True)
class ReuseOutput:
    """Check the output of an earlier campaign, and take it where it is what this kernel would compute."""


@dataclass(frozen=True, kw_only=True)
class TakeOver:
    """Use the output that Kaggle holds of an input in place of the one that the ledger holds."""

    slug: str
    message: str


@dataclass(frozen=True, kw_only=True)
class RedoInput:
    """Make an input again: Kaggle holds the output of the ledger no more, and none that can replace it."""

    slug: str
    message: str


@dataclass(frozen=True)
class Fetch:
    """Fetch the observed output."""


@dataclass(frozen=True)
class Finish:
    """The observed output was fetched and verified: the kernel is done."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The open push ended without its output.

    Attributes:
        state: UNFINISHED (it is pushed again), REPLACED (by somebody else's version, whose output is used if
            it fits; else it is pushed again) or FAILED.
        note: why, for the ledger.
        message: what happened, and the next step.
        failure: why this run of the campaign gives the kernel up, and the next step; empty where it pushes
            again.
        mounted: of a run that lacked inputs: the push id that was mounted in place of each, by slug.
    """

    state: str
    note: str
    message: str
    failure: str = ""
    mounted: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fail:
    """Give the kernel up in this run of the campaign; its open push stays as it is."""

    message: str


Decision = (
    Observe
    | Wait
    | SendPush
    | ConfirmPush
    | NoteRefusal
    | NoteDropped
    | DeleteEmptyKernel
    | ReuseOutput
    | TakeOver
    | RedoInput
    | Fetch
    | Finish
    | End
    | Fail
)


# --- the decision -------------------------------------------------------------------------------------------


def decide(entry: KernelEntry, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    """Decide the next step of a kernel.

    Args:
        entry: of the kernel in the ledger.
        observation: what the service returned so far.
        now: seconds since pushes and since waits began.
        timeouts: limits.
    """
    if observation.reply is not None:
        is_open = entry.open is not None
        return _after_push(entry, observation, observation.reply, now, timeouts) if is_open else Wait()
    decision = _next_step(entry, observation, now, timeouts)
    is_stalled = now.waiting_for(STALL) > timeouts.stall_timeout and observation.has_resources is not False
    if isinstance(decision, Wait) and is_stalled:
        # Every wait ends, but answers that alternate can begin two waits again and again.
        page = entry.open.url if entry.open is not None and entry.open.url else "the kernel's page on Kaggle"
        return Fail(
            message=f"came no further for {describe_seconds(timeouts.stall_timeout)}, because what Kaggle "
            f"answers changes all the time. Open {page}, check the run, end it if need be, and {RERUN}"
        )
    return decision


def _next_step(entry: KernelEntry, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    push = entry.open
    if push is None:
        return _start(entry, observation, now, timeouts)
    if push.state == INTENDED:
        return _confirm(push, observation, now, timeouts)
    return _follow(push, observation, now, timeouts)


def _start(entry: KernelEntry, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    """A kernel without an open push, whose inputs are done."""
    last = entry.last
    if entry.attempts >= timeouts.pushes and (last is None or last.state not in (REFUSED, REPLACED)):
        return _pushed_too_often(entry)
    if last is not None and last.state == UNFINISHED and now.since_end < timeouts.settle:
        return Wait()  # the cause of the last end, such as a listing that lags, may pass
    if observation.has_resources is None:
        return Observe("has_resources")
    if not observation.has_resources:
        return Wait()
    if (decision := _read_status(observation, now, timeouts)) is not None:
        return decision
    status = observation.status
    assert status is not None
    if status.name in ACTIVE:
        return _foreign_run(status, observation, now, timeouts)
    if status.name == COMPLETE and observation.may_reuse:
        return ReuseOutput()
    if FOREIGN_RUN in now.waited and now.waiting_for(FOREIGN_END) < 2 * timeouts.settle:
        # Whoever pushed that run polls it, and loses its output where the next push comes first.
        message = "that run has ended; its output is not used, and its owner is given time to fetch it"
        return Wait(subject=FOREIGN_END, message=message, status="another run of it has ended")
    if last is not None and last.state == REPLACED:
        if entry.replaced >= timeouts.replacements:
            return Fail(
                message=f"{last.note}; that happened to {entry.replaced} pushes. Let the other one finish or "
                f"stop it, and {RERUN}: it uses the output on Kaggle if it fits (with --reuse whichever code "
                "made it), else it pushes again"
            )
        if entry.attempts >= timeouts.pushes:
            return _pushed_too_often(entry)
    if observation.inputs is None:
        return Observe("inputs")
    for held in observation.inputs:
        if (decision := _check_input(held, entry, now, timeouts)) is not None:
            return decision
    return SendPush()


def _pushed_too_often(entry: KernelEntry) -> Fail:
    note, mounted = (
        (entry.last.note, entry.last.mounted) if entry.last is not None else ("no reason given", {})
    )
    remedy = "Fix the cause"
    if mounted:
        remedy = f"Wait an hour, or make its inputs again ({', '.join(mounted)}: build_kernel.py push)"
    return Fail(
        message=f"was pushed {entry.attempts} times and did not finish; the last time: {note}. "
        f"{remedy} and {RERUN}: it pushes again"
    )


def _check_input(held: HeldInput, entry: KernelEntry, now: Elapsed, timeouts: Timeouts) -> Decision | None:
    """What to do about an input before a push that reads it; None where the push can succeed.

    The kernel itself refuses inputs of other pushes. A push whose inputs are known to be others would fail.
    """
    if held.push_id == held.wanted:
        return None
    slug, wanted = held.slug, f"push {held.wanted}, which this campaign used"
    if held.redone >= timeouts.pushes:
        return Fail(
            message=f"other campaigns have replaced the output of {slug} {held.redone} times. "
            f"Run one campaign at a time: wait for the end of the others, then {RERUN}"
        )
    if held.status == ABSENT and held.is_latest is None:  # there is no source, either
        if now.waiting_for(INPUT_GONE) <= 2 * timeouts.settle:
            return Wait(subject=INPUT_GONE, message=f"Kaggle shows no kernel {slug}, whose output it reads")
        return RedoInput(slug=slug, message=f"it was deleted on Kaggle with {wanted}; it is made again")
    if held.is_latest is False and held.status in ACTIVE:
        limit = timeouts.foreign_run_timeout
        if now.waiting_for(INPUT_RUN) > limit:
            return Fail(
                message=f"another run of {slug}, whose output it reads, has been {held.status} for "
                f"{describe_seconds(limit)}. End that run in the browser and {RERUN}"
            )
        message = f"another run of {slug}, whose output it reads, is {held.status}: waiting for its end"
        return Wait(subject=INPUT_RUN, message=message, status=f"waits for {slug}")
    if held.is_latest is False and held.push_id:
        lead = f"a later push ({held.push_id}) replaced {wanted}"
        if held.misfit:
            return RedoInput(
                slug=slug, message=f"{lead}, and cannot be used: {held.misfit}. It is made again"
            )
        return TakeOver(slug=slug, message=f"{lead}; it is the same input, and is used instead")
    if held.is_latest is False:
        # The latest version left no output. Kaggle mounts the last complete one, which may be the wanted one.
        mounted = entry.last.mounted.get(slug, held.wanted) if entry.last is not None else held.wanted
        if mounted == held.wanted:
            return None
        message = f"Kaggle mounts {f'push {mounted}' if mounted else 'nothing'} in place of {wanted}"
        return RedoInput(slug=slug, message=f"{message}; it is made again")
    if held.is_latest and now.waiting_for(INPUT) <= timeouts.output_timeout:
        message = f"Kaggle does not list {wanted}, as the output of {slug} yet, though it is the latest"
        return Wait(subject=INPUT, message=f"{message}; listing it again", status=f"waits for {slug}")
    return None


def _confirm(push: Push, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    """A push without a reply: the source that Kaggle holds carries its id, or the push did not happen."""
    if observation.source is None:
        return Observe("source")
    if observation.source.carries_push_id:
        return ConfirmPush(version=observation.source.version)
    # The source that Kaggle shows lags behind. Each repetition waits twice as long as the one before.
    if now.waiting_for(PROOF) < timeouts.settle * 2 ** max(push.sends - 1, 0):
        return Wait(subject=PROOF, status=SENT_STATUS)
    if (decision := _read_status(observation, now, timeouts)) is not None:
        return decision
    status = observation.status
    assert status is not None
    if status.name in ACTIVE:
        return _foreign_run(status, observation, now, timeouts)
    if FOREIGN_RUN in now.waited:  # that run has ended
        return _replaced(push, observation.source)
    if push.sends >= timeouts.sends:
        note = f"the push was sent {push.sends} times and never arrived: {push.note or 'no response'}"
        failure = f"{note}. Fix the cause and {RERUN}: it pushes again"
        return End(state=FAILED, note=note, message=failure, failure=failure)
    return SendPush(message="the push did not happen; sending it again")


def _follow(push: Push, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    """A push that happened: its run is waited for, and its output fetched."""
    if push.state != DROPPED:
        return _follow_run(push, observation, now, timeouts)
    datasets, waited = observation.datasets, now.waiting_for(PROCESSING)
    if datasets is None:
        return Observe("datasets")
    if datasets.unusable:
        if now.waiting_for(MISSING) < timeouts.settle:
            return Wait(subject=MISSING, status="pushed without inputs")
        return Fail(
            message=f"Kaggle pushed it without {', '.join(datasets.unusable)}. It is not pushed again. "
            f"Correct --dataset, or make the dataset, and {RERUN}"
        )
    decision = _follow_run(push, observation, now, timeouts)
    if not isinstance(decision, End) or not datasets.processing:
        return decision
    names, limit = ", ".join(datasets.processing), timeouts.dataset_timeout
    if waited > limit:
        return Fail(
            message=f"Kaggle has processed the dataset {names} for {describe_seconds(limit)}. Open its page "
            f"on Kaggle, and {RERUN} when it is ready"
        )
    message = f"Kaggle still processes the dataset {names}; it is pushed again when that is ready"
    return Wait(subject=PROCESSING, message=message, status="waiting for a dataset")


def _follow_run(push: Push, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    if (decision := _read_status(observation, now, timeouts, url=push.url)) is not None:
        return decision
    status = observation.status
    assert status is not None
    if status.name in ACTIVE:
        return _active(push, status, observation, now, timeouts)
    # The status may still be the one of the run before.
    is_recent = not push.active and now.since_push < timeouts.settle
    if status.name in (ABSENT, NEW):  # nothing ran: Kaggle shows no run, or a version saved without one
        return _no_run(push, status, observation, now, timeouts, is_recent=is_recent)
    if status.name == COMPLETE:
        return _complete(push, observation, now, timeouts, is_recent=is_recent)
    return _ended(push, status, observation, now, timeouts, is_recent=is_recent)


def _read_status(
    observation: Observation, now: Elapsed, timeouts: Timeouts, *, url: str = ""
) -> Decision | None:
    """What to do while the status is not known; None when it is."""
    if observation.status_problem:
        problem, limit = observation.status_problem, timeouts.status_timeout
        if now.waiting_for(STATUS) > limit:
            page = f"Open {url} and check the run" if url else "Open the kernel's page on Kaggle"
            return Fail(message=f"{problem}, for {describe_seconds(limit)}. {page}, then {RERUN}")
        return Wait(subject=STATUS, message=f"{problem}; polling again")
    return Observe("status") if observation.status is None else None


def _foreign_run(status: RunStatus, observation: Observation, now: Elapsed, timeouts: Timeouts) -> Decision:
    """A run of this kernel that the campaign did not push: never push over it, wait for its end."""
    limit, source = timeouts.foreign_run_timeout, observation.source
    is_over = now.waiting_for(FOREIGN_RUN) > limit
    if source is None and (is_over or FOREIGN_RUN not in now.waited):
        return Observe("source")  # it tells who pushed the run
    run = _describe_version(source)
    if is_over:
        return Fail(
            message=f"{run} and is still {status.name} after {describe_seconds(limit)}. "
            f"End that run in the browser, or let it end, and {RERUN}"
        )
    message = (
        f"{run} and is {status.name}: waiting for its end, at most {describe_seconds(limit)}. Its output is "
        "used if it fits, else the kernel is pushed then. End that run in the browser to push sooner"
    )
    message = message if source is not None else ""  # it was logged when the wait began
    return Wait(subject=FOREIGN_RUN, message=message, status="another run of it is active")


def _describe_version(source: Source | None) -> str:
    """The beginning of a sentence: which version somebody else pushed."""
    number = f"version {source.version}" if source is not None and source.version else "its latest version"
    by = source.pushed_by if source is not None and source.pushed_by else "somebody else"
    return f"{number} was pushed by {by}"


def _is_replaced(push: Push, source: Source, now: Elapsed, timeouts: Timeouts) -> bool:
    """Whether somebody pushed another version over a push.

    After a push Kaggle shows the source before it for a while. A lower number most probably is that one.
    """
    if source.carries_push_id or not source.pushed_by:
        return False
    is_older = source.version is not None and push.version is not None and source.version < push.version
    return now.since_push >= (timeouts.output_timeout if is_older else timeouts.settle)


def _replaced(push: Push, source: Source | None) -> End:
    """The end of a push over which somebody pushed another version, whose run is not active."""
    own = f"version {push.version}" if push.version else "the push"
    note = f"{_describe_version(source)}, over {own} of this campaign"
    message = f"{note}; its output is used if it fits, else it will be pushed again"
    return End(state=REPLACED, note=note, message=message)


def _active(
    push: Push, status: RunStatus, observation: Observation, now: Elapsed, timeouts: Timeouts
) -> Decision:
    if FOREIGN_RUN in now.waited:  # the push was replaced
        return _foreign_run(status, observation, now, timeouts)
    subject = f"active {status.name}"
    waited, limit = now.waiting_for(subject), timeouts.queue_timeout
    if status.name == RUNNING:
        waited, limit = min(waited, now.since_push), push.limit + timeouts.overrun
    has_run = status.name in (QUEUED, NEW) and f"active {RUNNING}" in now.waited
    if has_run or waited > limit:  # the run of this push is over: this may be another one
        if observation.source is None:
            return Observe("source")
        if _is_replaced(push, observation.source, now, timeouts):
            return _foreign_run(status, observation, now, timeouts)
    if waited > limit:
        return Fail(
            message=f"has been {status.name} for {describe_seconds(waited)}, its time limit was "
            f"{describe_seconds(push.limit)}: Kaggle does not end it. Open {push.url}, end it there and "
            f"{RERUN}"
        )
    return Wait(subject=subject, status=status.name.lower().replace("_", " "), active=True)


def _no_run(
    push: Push,
    status: RunStatus,
    observation: Observation,
    now: Elapsed,
    timeouts: Timeouts,
    *,
    is_recent: bool,
) -> Decision:
    """A push that happened and of which Kaggle shows no run: not begun yet, or the kernel was deleted."""
    waited = now.waiting_for(NO_RUN)
    if waited > 2 * timeouts.settle and not is_recent:
        if observation.source is None:
            return Observe("source")
        if not observation.source.carries_push_id and push.state == DROPPED:
            return _push_again(push.note)
        if _is_replaced(push, observation.source, now, timeouts):
            return _replaced(push, observation.source)
        if not observation.source.carries_push_id and not observation.source.pushed_by:
            note = "the kernel was deleted on Kaggle"
            failure = f"{note}. {RERUN.capitalize()} to push it again"
            return End(state=FAILED, note=note, message=failure, failure=failure)
    if waited > timeouts.queue_timeout and not is_recent:
        return Fail(
            message=f"Kaggle shows no run of it ({status.message or status.name}) for "
            f"{describe_seconds(timeouts.queue_timeout)}. "
            f"Open {push.url}, run it there or delete it, and {RERUN}"
        )
    return Wait(subject="" if is_recent else NO_RUN, status="pushed, no run yet")


def _complete(
    push: Push, observation: Observation, now: Elapsed, timeouts: Timeouts, *, is_recent: bool
) -> Decision:
    """A run that is shown as complete: fetch its output if it is the output of this push."""
    if push.state == DROPPED:
        return Wait() if is_recent else _push_again(push.note)
    output, fetched = observation.output, observation.fetched
    if output is None:
        return Observe("output")
    if output.problem:
        return _output_not_listed(push, output.problem, now, timeouts)
    if output.lacks_record or output.record is None:
        if is_recent:
            return Wait()
        is_own, lines = push.push_id in output.listing.log, output.listing.log.strip().splitlines()
        if is_own and uncaught_error(lines):
            return _failed_by_its_log(lines, output.log_path, "although Kaggle calls the run complete")
        if now.waiting_for(SHORT) < timeouts.settle:
            return Wait(subject=SHORT)  # the listing may lag or lack a page, or be that of an earlier run
        if not is_own:
            if observation.source is None:
                return Observe("source")
            if _is_replaced(push, observation.source, now, timeouts):
                return _replaced(push, observation.source)
        return _push_again("its output holds no run.json, though Kaggle calls the run complete")
    if output.record.get("push_id") != push.push_id:
        if observation.source is None and not is_recent:
            return Observe("source")
        if observation.source is not None and _is_replaced(push, observation.source, now, timeouts):
            return _replaced(push, observation.source)
        return _output_not_listed(push, "Kaggle shows the output of another push", now, timeouts)
    if fetched is None:
        return Fetch()
    if fetched.problem and fetched.final:
        failure = f"{fetched.problem.rstrip('.')}. Fix the cause and {RERUN}: it pushes again"
        return End(state=FAILED, note=fetched.problem, message=failure, failure=failure)
    if fetched.problem:
        return _output_not_listed(push, fetched.problem, now, timeouts)
    return Finish()


def _output_not_listed(push: Push, problem: str, now: Elapsed, timeouts: Timeouts) -> Decision:
    """The output is not listed as the run left it: listings lag and links expire, so list it again."""
    limit = timeouts.output_timeout
    if now.waiting_for(OUTPUT) > limit:
        return Fail(
            message=f"{problem}, for {describe_seconds(limit)}. The run is complete on Kaggle ({push.url}): "
            f"{RERUN} to fetch its output"
        )
    return Wait(subject=OUTPUT, message=f"{problem}; listing it again", status="fetching")


def _ended(
    push: Push,
    status: RunStatus,
    observation: Observation,
    now: Elapsed,
    timeouts: Timeouts,
    *,
    is_recent: bool,
) -> Decision:
    """A run that ended with ERROR or was cancelled: its log says whether another push could do better."""
    output = observation.output
    if output is None:
        return Observe("log")
    if push.push_id not in output.listing.log and push.state != DROPPED:
        if is_recent:
            return Wait()  # this may be the run before
        if observation.source is None:
            return Observe("source")
        if _is_replaced(push, observation.source, now, timeouts):
            return _replaced(push, observation.source)
    lines = output.listing.log.strip().splitlines()
    return judge_end(
        push,
        status,
        lines,
        ran=now.since_push,
        log_path=output.log_path,
        was_rerun=observation.was_rerun,
    )


def judge_end(
    push: Push,
    status: RunStatus,
    log: Sequence[str],
    *,
    ran: float,
    log_path: Path,
    was_rerun: bool = False,
) -> End:
    """How a push ended that left no output, and whether another push could do better.

    Args:
        push: the open push.
        status: ERROR or cancelled.
        log: the lines of its log.
        ran: seconds since it was pushed.
        log_path: where the log is kept.
        was_rerun: the user has run the command again since the run was cancelled.
    """
    if push.state == DROPPED:
        return _push_again(push.note)
    if status.name == CANCELLED:
        at_limit = ran >= 0.9 * push.limit
        if at_limit and push.limit >= LONGEST_SESSION:
            failure = (
                f"did not finish within {describe_seconds(push.limit)}, the longest session on Kaggle. "
                f"Make the experiment cheaper and {RERUN}"
            )
            return End(state=FAILED, note=LIMIT_NOTE, message=failure, failure=failure)
        if at_limit:
            return _push_again(LIMIT_NOTE)
        note = CANCELLED_NOTE
        if was_rerun:
            return _push_again(note)
        # A person cancelled it, so only a person starts it again.
        failure = f"{note}, so it is not pushed again by itself. {RERUN.capitalize()} to push it again"
        return End(state=FAILED, note=note, message=failure, failure=failure)
    if any(MISSING_INPUTS in line for line in log):
        return _without_inputs(mounted_instead(log))
    if any(line.startswith(("error: ", "Traceback")) or TRACEBACK in line for line in log):
        return _failed_by_its_log(log, log_path, status.message)
    return _push_again(f"Kaggle says {status.name}: {status.message or 'no reason given'}")


def _failed_by_its_log(log: Sequence[str], log_path: Path, remark: str) -> End:
    lines = "\n".join(f"      {line}" for line in log[-_LOG_LINES_SHOWN:])
    failure = (
        f"ended with an error{f' ({remark})' if remark else ''}. Fix the cause and {RERUN}: it pushes again. "
        f"The end of its log ({log_path}):\n{lines}"
    )
    return End(state=FAILED, note=log[-1], message=failure, failure=failure)


def _push_again(note: str) -> End:
    return End(state=UNFINISHED, note=note, message=f"did not finish ({note}); it will be pushed again")


def _without_inputs(mounted: Mapping[str, str]) -> End:
    """A run that did not find the outputs it was pushed to read. What to do about each is decided next."""
    parts = [f"push {push_id} of {slug}" for slug, push_id in mounted.items() if push_id]
    parts += [f"nothing of {slug}" for slug, push_id in mounted.items() if not push_id]
    note = "Kaggle had not mounted the outputs that it reads"
    note += f": it had mounted {', '.join(parts)}" if parts else ""
    message = f"did not run ({note}); its inputs are checked, then it will be pushed again"
    return End(state=UNFINISHED, note=note, message=message, mounted=mounted)


def _after_push(
    entry: KernelEntry, observation: Observation, reply: PushReply, now: Elapsed, timeouts: Timeouts
) -> Decision:
    """The reply to a push that was just sent."""
    error = reply.error
    if error is None:
        return ConfirmPush(version=reply.version, url=reply.url)
    if isinstance(error, CapacityError):
        limit, failure = timeouts.session_timeout, ""
        if now.waiting_for(SESSION) > limit:
            failure = (
                f"{error} For {describe_seconds(limit)} no session was free. End the other sessions of your "
                f"account, delete the kernels of cancelled runs, and {RERUN}"
            )
        return NoteRefusal(note=str(error), lacks=SESSION, failure=failure)
    if isinstance(error, QuotaError):
        limit, failure = timeouts.quota_timeout, ""
        if now.waiting_for(QUOTA) >= limit:
            failure = f"{error}, for {describe_seconds(limit)}. Wait for the next quota and {RERUN}"
        return NoteRefusal(note=str(error), lacks=QUOTA, failure=failure)
    if isinstance(error, EmptyKernelError):
        return _after_empty_kernel(entry, observation, error, timeouts)
    if isinstance(error, SourcesDroppedError):
        message = f"{error}; waiting for that version to end, then pushing again"
        return NoteDropped(version=error.version, note=str(error), message=message)
    if isinstance(error, NoResponseError):
        message = f"{error}; checking whether the push happened before sending it again"
        return Wait(message=message, status=SENT_STATUS, note=str(error))
    if isinstance(error, CredentialsError):
        return NoteRefusal(note="Kaggle did not accept the credentials", error=error)
    failure = f"{error}. Fix the cause and {RERUN}: it pushes again"
    return End(state=FAILED, note=str(error), message=failure, failure=failure)


def _after_empty_kernel(
    entry: KernelEntry, observation: Observation, error: EmptyKernelError, timeouts: Timeouts
) -> Decision:
    """A refused first push leaves a kernel without a version: delete it, but only where that is certain."""
    remedy = f"It is not deleted. Open it in the browser and delete it there, then {RERUN}"
    if entry.ever_had_a_version:
        failure = f"{error}, although it had a version before. {remedy}"
        return End(state=FAILED, note=str(error), message=failure, failure=failure)
    if observation.is_empty is None:
        return Observe("is_empty")
    if not observation.is_empty or observation.deletions >= timeouts.pushes:
        failure = f"{error}, and Kaggle does not show it as empty. {remedy}"
        return End(state=FAILED, note=str(error), message=failure, failure=failure)
    return DeleteEmptyKernel(
        message="an earlier refusal left it without a version; deleting it and pushing again"
    )
