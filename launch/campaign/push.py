"""Kernels on their way to Kaggle: the one place that pushes, and the proof whether a push happened whose answer got lost.

The intention stands in the ledger before the request is sent. What the service refused did not happen and is asked for
again; what it did not answer is looked for first.
"""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from launch.campaign.ledger import (
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
from launch.campaign.progress import Progress
from launch.campaign.quota import Capacity
from launch.campaign.schedule import expected_hours, time_limit
from launch.campaign.state import CampaignState
from launch.campaign.takeover import OutputReuse
from launch.campaign.waits import words
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
from launch.kaggle_api.types import ABSENT, ACTIVE, COMPLETE, RunStatus
from launch.plan import Kernel
from lib.search_space import RECORDS, reusable_trials

PUSHES = "pushes"  # in the folder of a campaign


@dataclass
class KernelPusher:
    """Starts kernels.

    Attributes:
        desk: what the parts of the campaign share.
        progress: of its plan.
        capacity: what there is to run on.
        takeover: of outputs that need no push.
    """

    desk: CampaignState
    progress: Progress
    capacity: Capacity
    takeover: OutputReuse
    _cures: dict[str, int] = field(default_factory=dict, init=False)  # deleted ghosts, by slug

    def start(self, kernel: Kernel, entry: KernelEntry) -> None:
        """Push a kernel whose turn it is, as soon as there is something to run on and no other run of it goes on."""
        last = entry.last
        if entry.attempts >= self.desk.pace.pushes and (last is None or last.state != REFUSED):
            note = last.note if last is not None else ""
            self.desk.fail(
                kernel, f"was pushed {entry.attempts} times and did not finish; the last time: {note}"
            )
            return
        if (
            last is not None
            and last.state == UNFINISHED
            and self.desk.moments.age(last.ended_at) < self.desk.pace.settle
        ):
            return  # whatever cut it off gets a moment to pass
        if not self.capacity.has_session(kernel) or not self.capacity.has_quota(kernel):
            return
        status = self.desk.kaggle.status(kernel.slug)
        if status.name in ACTIVE:
            self._wait_for_the_other(kernel, status)
            return
        if status.name == COMPLETE and self.takeover.succeeds(kernel, entry):
            return
        push = self._intend(kernel, entry)
        self.desk.ledger.save()
        self._send(kernel, entry, push)

    def prove(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """Whether a push happened whose answer never came: the source that Kaggle holds carries its push id, or does not."""
        try:
            pulled = self.desk.kaggle.pull(kernel.slug)
        except NoResponseError:
            if entry.ever_had_a_version:
                raise
            pulled = None  # the pull of a ghost ends in an internal error
        if pulled is not None and push.push_id in pulled.source:
            self._was_pushed(kernel, push, version=pulled.version)
            return
        self.desk.standings[kernel.slug].turn("was it pushed?")
        if self.desk.clocks.waited(kernel.slug, "proof") < self.desk.pace.settle:
            return  # what Kaggle shows lags behind
        status = self.desk.kaggle.status(kernel.slug)
        if status.name in ACTIVE:
            self._wait_for_the_other(kernel, status)
            return
        self.desk.clocks.forget(kernel.slug, "proof")
        self.desk.say(f"{kernel.slug}: the push did not happen, sending it")
        self._send(kernel, entry, push)

    def _intend(self, kernel: Kernel, entry: KernelEntry) -> Push:
        """The push that is to be sent: the last one where it was refused, and so did not happen, else a new one."""
        limited = sum(push.note == LIMIT_NOTE for push in entry.pushes[entry.series :])
        limit = time_limit(kernel, ended_before=limited)
        bundle, identity, now = (
            self.desk.source.bundle,
            self.progress.identity(kernel),
            self.desk.moments.stamp(),
        )
        last = entry.last
        if last is not None and last.state == REFUSED:
            last.state, last.note, last.intended_at = INTENDED, "", now
            last.bundle_id, last.identity, last.limit = bundle, identity, limit
            return last
        push_id = f"{self.desk.ledger.id}.{kernel.slug}.{len(entry.pushes) + 1}"
        push = Push(push_id=push_id, bundle_id=bundle, identity=identity, limit=limit, intended_at=now)
        entry.pushes.append(push)
        return push

    def _send(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """The one place that pushes. The intention stands in the ledger already."""
        folder = self.desk.folder / PUSHES / kernel.slug
        outputs = {slug: self.desk.ledger.kernels[slug].output for slug in kernel.sources}
        inputs = {slug: output.push_id for slug, output in outputs.items() if output is not None}
        finished = self._finished_trials(kernel)
        self.desk.source.write_kernel(
            kernel, folder, push_id=push.push_id, limit=push.limit, inputs=inputs, finished=finished
        )
        push.bundle_id = self.desk.source.bundle
        try:
            pushed = self.desk.kaggle.push(folder, limit=push.limit)
        except CapacityError as error:
            self._refused(kernel, push, str(error))
            self._cures.pop(kernel.slug, None)  # if this leaves a ghost, it is known where it comes from
            self.capacity.sessions_were_taken(kernel, error)
        except QuotaError as error:
            self._refused(kernel, push, str(error))
            self.capacity.quota_was_spent(kernel, error)
        except EmptyKernelError as error:
            self._cure(kernel, entry, push, error)
        except SourcesDroppedError as error:
            push.state, push.version, push.pushed_at, push.note = (
                DROPPED,
                error.version,
                self.desk.moments.stamp(),
                str(error),
            )
            self.desk.ledger.save()
            self.desk.say(f"{kernel.slug}: {error}; waiting for that version to end, then pushing again")
            self.desk.standings[kernel.slug].turn("pushed without inputs", version=error.version)
        except NoResponseError as error:
            self.desk.standings[kernel.slug].turn("was it pushed?")
            self.desk.say(f"{kernel.slug}: {error}; looking whether the push happened before asking again")
        except CredentialsError:
            self._refused(kernel, push, "the credentials were not accepted")
            raise
        except (RefusedError, UnexpectedResponseError) as error:
            self.desk.end(kernel, push, FAILED, str(error))
            self.desk.fail(kernel, str(error))
        else:
            self._was_pushed(kernel, push, version=pushed.version, url=pushed.url)

    def _finished_trials(self, kernel: Kernel) -> list[dict[str, Any]]:
        """What the last output of a search that is here came to: its trials are not run again, and nothing mounts itself."""
        if kernel.search is None:
            return []
        try:
            records = reusable_trials(
                json.loads((self.desk.outputs / kernel.slug / RECORDS).read_bytes())["trials"]
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        if records:
            self.desk.say(f"{kernel.slug}: {len(records)} trials of its last output are not run again")
        return records

    def _was_pushed(self, kernel: Kernel, push: Push, *, version: int | None, url: str = "") -> None:
        push.state, push.version, push.pushed_at = PUSHED, version, self.desk.moments.stamp()
        push.url = url or f"https://www.kaggle.com/code/{self.desk.source.owner}/{kernel.slug}"
        self.desk.ledger.save()
        self.desk.clocks.forget_all(kernel.slug)
        self.capacity.was_granted(kernel)
        self.desk.say(f"{kernel.slug}: pushed, version {version or 'unknown'}, at most {words(push.limit)}")
        expected = expected_hours(kernel, self.desk.ledger) * 3600
        self.desk.standings[kernel.slug].turn("pushed", version=version, url=push.url, expected=expected)

    def _refused(self, kernel: Kernel, push: Push, note: str) -> None:
        push.state, push.note = REFUSED, note
        self.desk.ledger.save()
        self.desk.standings[kernel.slug].turn("refused, waiting")

    def _cure(self, kernel: Kernel, entry: KernelEntry, push: Push, error: EmptyKernelError) -> None:
        """A refused first push leaves a kernel without a version, on which every later push fails: delete it, once proved."""
        proved = not entry.ever_had_a_version and self.desk.kaggle.status(kernel.slug).name == ABSENT
        with contextlib.suppress(NoResponseError):  # the pull of a ghost ends in an internal error
            proved = proved and self.desk.kaggle.pull(kernel.slug) is None
        tries = self._cures.get(kernel.slug, 0)
        if not proved or tries >= self.desk.pace.pushes:
            self.desk.end(kernel, push, FAILED, str(error))
            why = (
                "although it had a version before"
                if entry.ever_had_a_version
                else "and it is not shown to be empty"
            )
            self.desk.fail(
                kernel,
                f"{error}, {why}: it is not deleted. Look at it in the browser, or choose another slug",
            )
            return
        self._cures[kernel.slug] = tries + 1
        self.desk.say(
            f"{kernel.slug}: an earlier refusal left it without a version; deleting it and pushing again"
        )
        self.desk.kaggle.delete(kernel.slug)
        self._refused(kernel, push, "deleted: it had no version")

    def _wait_for_the_other(self, kernel: Kernel, status: RunStatus) -> None:
        """A run of this slug that is not ours: it is never pushed over, but waited for."""
        patience = self.desk.pace.foreign_patience
        if self.desk.clocks.waited(kernel.slug, "foreign") > patience:
            self.desk.fail(
                kernel,
                f"another run of it has been {status.name} for {words(patience)}: end it in the browser",
            )
            return
        text = f"{kernel.slug}: a run that this campaign did not push is {status.name}: waiting for it"
        self.desk.clocks.once(kernel.slug, "foreign", text)
        self.desk.standings[kernel.slug].turn("another run of it goes on")
