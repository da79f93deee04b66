"""A push followed to its end: what its run is doing, what it left, and whether another push could do better.

An answer is believed only about the push it can be tied to: for a while after a push, and in listings for longer, the
service shows what was before it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.campaign.ledger import DONE, DROPPED, FAILED, INTENDED, LIMIT_NOTE, UNFINISHED, KernelEntry, Push
from launch.campaign.outputs import NoRecordError, fetch_output, keep_log, peek_record
from launch.campaign.push import KernelPusher
from launch.campaign.schedule import LONGEST
from launch.campaign.state import CampaignState
from launch.campaign.waits import words
from launch.kaggle_api.errors import NoResponseError, RefusedError, UnexpectedResponseError
from launch.kaggle_api.types import ABSENT, ACTIVE, CANCELLED, COMPLETE, ERROR, Listing, RunStatus
from launch.packaging.metadata import MACHINE_SHAPE
from launch.plan import Kernel
from lib.runtime.inputs import MISSING_INPUTS

_LOG_LINES = 25  # of a failed kernel, shown
_TRACEBACK = "Traceback (most recent call last)"  # at the start of a line in a script's log, behind the error in a notebook's


@dataclass
class RunMonitor:
    """Looks at open pushes.

    Attributes:
        desk: what the parts of the campaign share.
        pusher: proves a push whose answer never came, and repeats it where it did not happen.
    """

    desk: CampaignState
    pusher: KernelPusher

    def follow(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """One look at a push that is open; what has ended is judged, and its output fetched."""
        if push.state == INTENDED:
            self.pusher.prove(kernel, entry, push)
            return
        try:
            status = self.desk.kaggle.status(kernel.slug)
        except UnexpectedResponseError as error:
            self.desk.clocks.once(kernel.slug, "unknown", f"{kernel.slug}: {error}; looking again")
            if self.desk.clocks.waited(kernel.slug, "unknown") > self.desk.pace.unknown_patience:
                self.desk.fail(
                    kernel, f"{error}, for {words(self.desk.pace.unknown_patience)}. Look at {push.url}"
                )
            return
        self.desk.clocks.forget(kernel.slug, "unknown")
        if status.name in ACTIVE:
            self._is_active(kernel, push, status)
            return
        fresh = not push.active and self.desk.moments.age(push.pushed_at) < self.desk.pace.settle
        if status.name == ABSENT:
            self.desk.standings[kernel.slug].turn("pushed, no run yet")
            if not fresh and self.desk.clocks.waited(kernel.slug, "absent") > self.desk.pace.queue_patience:
                self.desk.fail(kernel, f"Kaggle shows no run of it ({status.message}). Look at {push.url}")
        elif status.name == COMPLETE:
            self._collect(kernel, entry, push, fresh=fresh)
        elif status.name in (ERROR, CANCELLED):
            self._has_ended(kernel, push, status, fresh=fresh)

    def _is_active(self, kernel: Kernel, push: Push, status: RunStatus) -> None:
        if not push.active:
            push.active = True
            self.desk.ledger.save()
            with contextlib.suppress(NoResponseError, RefusedError):  # a warning is not worth a stop
                if wrong := self._wrong_machine(kernel):
                    self.desk.say(f"warning: {wrong}")
        self.desk.standings[kernel.slug].turn(status.name.lower().replace("_", " "))
        patience = (
            self.desk.pace.queue_patience if status.name != "RUNNING" else push.limit + self.desk.pace.overrun
        )
        since = self.desk.clocks.waited(kernel.slug, f"active {status.name}")
        if status.name == "RUNNING":
            since = min(since, self.desk.moments.age(push.pushed_at))
        if since > patience:
            self.desk.fail(
                kernel,
                f"has been {status.name} for {words(since)}, its time limit was {words(push.limit)}: Kaggle does not end it. "
                f"Look at {push.url}, end it there, and run the same command again",
            )

    def _wrong_machine(self, kernel: Kernel) -> str:
        """What is wrong with the machine a kernel was given, as the service shows it; empty when nothing is."""
        pulled = self.desk.kaggle.pull(kernel.slug) if kernel.needs_gpu else None
        if pulled is None or pulled.machine_shape == MACHINE_SHAPE:
            return ""
        return f"{kernel.slug} was given the machine {pulled.machine_shape or 'None'!r}, not {MACHINE_SHAPE}"

    def _collect(self, kernel: Kernel, entry: KernelEntry, push: Push, *, fresh: bool) -> None:
        """A run is shown as complete: fetch its output if it is the output of this push."""
        if push.state == DROPPED:
            if not fresh:
                self.desk.end(kernel, push, UNFINISHED, push.note)
            return
        self.desk.standings[kernel.slug].turn("fetching")
        kaggle, slug, outputs = self.desk.kaggle, kernel.slug, self.desk.outputs
        try:
            listing = kaggle.output(slug)
            content = peek_record(kaggle, slug, listing, folder=outputs)
        except NoRecordError as error:
            if fresh or (
                push.push_id not in listing.log
                and self.desk.clocks.waited(slug, "short") < self.desk.pace.settle
            ):
                return
            keep_log(self.desk.folder, slug, listing)
            self.desk.end(kernel, push, UNFINISHED, f"{error}, though Kaggle calls it complete")
            return
        except (NoResponseError, UnexpectedResponseError) as error:
            self._not_yet(kernel, push, str(error))
            return
        if content.get("push_id") != push.push_id:
            self._not_yet(kernel, push, "Kaggle shows the output of an earlier push")
            return
        try:
            record = fetch_output(kaggle, slug, listing, content, kind=kernel.kind, folder=outputs)
        except NoResponseError as error:
            self._not_yet(kernel, push, str(error))
            return
        except UnexpectedResponseError as error:
            self.desk.end(kernel, push, FAILED, str(error))
            self.desk.fail(kernel, str(error))
            return
        keep_log(self.desk.folder, slug, listing)
        push.state, push.ended_at = DONE, self.desk.moments.stamp()
        self.desk.finish(kernel, entry, record, identity=push.identity, version=push.version, how="done")

    def _not_yet(self, kernel: Kernel, push: Push, why: str) -> None:
        """What is listed is not what the run left: listings lag, links expire. Nothing is lost by looking again."""
        patience = self.desk.pace.stale_patience
        self.desk.clocks.once(kernel.slug, "stale", f"{kernel.slug}: {why}; looking again")
        if self.desk.clocks.waited(kernel.slug, "stale") > patience:
            text = f"{why}, for {words(patience)}. It is complete on Kaggle ({push.url}); the same command fetches it"
            self.desk.fail(kernel, text)

    def _has_ended(self, kernel: Kernel, push: Push, status: RunStatus, *, fresh: bool) -> None:
        """ERROR or cancelled: its log is kept, and what it says of itself decides whether another push could do better."""
        try:
            listing = self.desk.kaggle.output(kernel.slug)
        except RefusedError:  # a run that was deleted or never began has no output to list
            listing = Listing({}, "")
        if fresh and push.push_id not in listing.log:
            return  # this may still be the run before
        kept = keep_log(self.desk.folder, kernel.slug, listing)
        ran = self.desk.moments.age(push.pushed_at)
        state, note, failure = judge(push, status, listing.log.strip().splitlines(), ran=ran, kept=kept)
        self.desk.end(kernel, push, state, note)
        if failure:
            self.desk.fail(kernel, failure)


def judge(
    push: Push, status: RunStatus, said: Sequence[str], *, ran: float, kept: Path
) -> tuple[str, str, str]:
    """What a run that left no output came to.

    Args:
        push: that it came from.
        status: ERROR or cancelled.
        said: the lines of its log.
        ran: seconds since it was pushed.
        kept: where its log lies.

    Returns:
        The state of the push; why; and, where another push could do no better, what a person must know, else an empty text.
    """
    if push.state == DROPPED:
        return UNFINISHED, push.note, ""
    if status.name == CANCELLED:
        limited = ran >= 0.9 * push.limit
        if limited and push.limit >= LONGEST:
            longest = (
                f"did not finish within {words(push.limit)}, the longest session there is: make it shorter"
            )
            return FAILED, LIMIT_NOTE, longest
        return UNFINISHED, LIMIT_NOTE if limited else "the run was cancelled", ""
    if any(MISSING_INPUTS in line for line in said):
        return UNFINISHED, "Kaggle had not mounted the outputs it reads yet, or had mounted earlier ones", ""
    if any(line.startswith(("error: ", "Traceback")) or _TRACEBACK in line for line in said):
        shown = "\n".join(f"      {line}" for line in said[-_LOG_LINES:])
        message = f" ({status.message})" if status.message else ""
        return FAILED, said[-1], f"ended with an error{message}; the end of its log ({kept}):\n{shown}"
    return UNFINISHED, f"Kaggle says {status.name}: {status.message or 'nothing more'}", ""
