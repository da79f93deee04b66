"""Which kernel runs when: weights and prepare, folds, inference, the report; resumable, and never the same push twice.

The campaign looks at what is open, fetches what has ended, starts what is ready, and waits; the ledger knows what was
asked. Three rules hold everywhere. An answer is believed only about the push it can be tied to (the push id in source,
log or run.json). A request that changes something is repeated only once it is proved that it did not happen. Every wait
ends, in a result or in a sentence that says what was waited for.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from launch.build import Source
from launch.capacity import Capacity
from launch.client import (
    ABSENT,
    ACTIVE,
    CANCELLED,
    COMPLETE,
    ERROR,
    CapacityError,
    ClientError,
    CredentialsError,
    GhostError,
    Kaggle,
    Listing,
    NoAnswerError,
    Quota,
    QuotaError,
    RefusedError,
    RunStatus,
    SourcesDroppedError,
    StrangeAnswerError,
)
from launch.desk import CampaignStoppedError, Desk
from launch.ledger import (
    DONE,
    DROPPED,
    FAILED,
    INTENDED,
    LIMIT_NOTE,
    PUSHED,
    REFUSED,
    UNFINISHED,
    KernelEntry,
    Ledger,
    Push,
)
from launch.metadata import MACHINE_SHAPE
from launch.outputs import OUTPUTS, NoRecordError, fetch_output, keep_log, peek_record
from launch.pace import Pace, words
from launch.plan import Kernel
from launch.progress import Progress
from launch.publish import Publisher
from launch.schedule import LONGEST, expected_hours, time_limit
from launch.standings import Standing, plan_standings
from lib.config import EXPECTATIONS
from lib.run_record import RECORD_NAME
from lib.search_space import RECORDS, settled
from lib.session import MISSING_INPUTS

PUSHES = "pushes"
_LOG_LINES = 25  # of a failed kernel, shown
_TRACEBACK = "Traceback (most recent call last)"  # at the start of a line in a script's log, behind the error in a notebook's


class Campaign:
    """A campaign at work."""

    def __init__(
        self,
        *,
        kaggle: Kaggle,
        source: Source,
        kernels: Sequence[Kernel],
        ledger: Ledger,
        folder: Path,
        dataset: Path | None,
        pace: Pace,
        say: Callable[[str], None],
        show: Callable[[Sequence[Standing], Quota | None], None] = lambda standings, quota: None,
        reuse: bool = False,
        goal: Collection[str] | None = None,
    ) -> None:
        """Take a campaign up where its ledger stands.

        Args:
            kaggle: the account.
            source: what kernels are rendered from.
            kernels: the plan, in an order in which it can run.
            ledger: what happened so far.
            folder: of the campaign: outputs/, pushes/, logs/.
            dataset: the folder of the library dataset; None publishes nothing.
            pace: waits.
            say: takes a line that stays.
            show: takes the standings, whenever they were looked at.
            reuse: take over finished outputs of other campaigns even if other code made them.
            goal: slugs of the kernels that `run` brings to their ends; None for all. The others are followed where they are open.
        """
        self.progress = Progress(kernels, ledger, goal)
        self._take_up(folder / OUTPUTS, pushes=pace.pushes)
        self.desk = Desk(
            kaggle=kaggle,
            source=source,
            ledger=ledger,
            folder=folder,
            pace=pace,
            say=say,
            standings=plan_standings(kernels, ledger),
        )
        self.capacity = Capacity(self.desk, self.progress)
        self.publisher = Publisher(kaggle, ledger, dataset, source.bundle, settle=pace.settle, say=say)
        self.reuse = reuse
        self._show = show
        self._cures: dict[str, int] = {}
        self._looked_for: set[str] = set()

    def _take_up(self, outputs: Path, *, pushes: int) -> None:
        """What the ledger says that is no longer so, now that a person runs the command again."""
        for kernel in self.progress.kernels:
            entry = self.progress.entry(kernel)
            spent = entry.last is not None and entry.last.state == UNFINISHED and entry.attempts >= pushes
            if spent or (entry.last is not None and entry.last.state == FAILED):
                entry.series = len(entry.pushes)  # a person has looked, and runs the command again
            if entry.output is not None and not (outputs / kernel.slug / RECORD_NAME).is_file():
                entry.output = None  # somebody removed it here: Kaggle still holds it, and it is fetched again
                if entry.last is not None and entry.last.state == DONE:
                    entry.last.state = PUSHED

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Bring every kernel of the plan to a verified output.

        Raises:
            CampaignStoppedError: something failed that waiting does not mend; the rest was brought to its end.
            CredentialsError: the service does not know us any more.
        """
        self.capacity.announce()
        while True:
            self.publisher.step()
            self.tick()
            self._show(list(self.desk.standings.values()), self.capacity.quota)
            if all(self.progress.is_done(kernel) for kernel in self.progress.wanted) and self.publisher.rests:
                break
            if not self._can_go_on():
                raise CampaignStoppedError(self._reasons())
            time.sleep(self.desk.pace.poll)
        for problem in self.publisher.problems:
            self.desk.say(f"warning: {problem}; the kernels carry the library themselves, so nothing else depends on it")

    def push_only(self, kernels: Sequence[Kernel]) -> None:
        """Push these kernels and return when Kaggle has them; nothing waits for their end.

        Raises:
            CampaignStoppedError: an input is missing, or a push was refused.
        """
        problems = []
        for kernel in kernels:
            if lacking := self.progress.lacking(kernel):
                problems.append(f"{kernel.slug} reads {', '.join(lacking)}, not done yet: run them first")
            entry = self.progress.entry(kernel)
            if kernel.search is not None and entry.open is not None:
                self._follow(kernel, entry, entry.open)  # what it came to, if it has ended, is where the next push goes on
                self.desk.failures.pop(kernel.slug, None)
            if entry.open is not None:
                problems.append(f"{kernel.slug} was pushed and has not ended: see build_kernel.py status")
        if problems:
            raise CampaignStoppedError("nothing was pushed:\n  - " + "\n  - ".join(problems))
        for kernel in kernels:
            entry = self.progress.entry(kernel)
            entry.series, entry.output = len(entry.pushes), None
            self._looked_for.add(kernel.slug)  # asked for by name: nothing is taken over
            while kernel.slug not in self.desk.failures:
                if entry.open is None and not self.capacity.has_session(kernel):
                    self.desk.clocks.once(kernel.slug, "slot", f"{kernel.slug}: waiting for a session of this campaign to end")
                    self._follow_others(kernel)
                if entry.open is None:
                    self._start(kernel, entry)
                elif entry.open.state == INTENDED:
                    self._prove(kernel, entry, entry.open)
                if entry.open is not None and entry.open.state != INTENDED:
                    break
                time.sleep(self.desk.pace.poll)
        if self.desk.failures:
            raise CampaignStoppedError(self._reasons())

    def _follow_others(self, kernel: Kernel) -> None:
        """Look at what holds the sessions of a machine: it may have ended since."""
        for other in self.progress.kernels:
            entry = self.progress.entry(other)
            if entry.open is not None and other.needs_gpu == kernel.needs_gpu:
                self._follow(other, entry, entry.open)

    def tick(self) -> None:
        """One look at everything that is open, and a start of everything that is ready.

        Raises:
            CampaignStoppedError: the service has not answered for too long.
            CredentialsError: it does not know us any more.
        """
        trouble: ClientError | None = None
        for follow in (True, False):
            for kernel in self.progress.kernels:
                entry = self.progress.entry(kernel)
                try:
                    if follow and entry.open is not None and kernel.slug not in self.desk.failures:
                        self._follow(kernel, entry, entry.open)
                    elif not follow and self._is_ready(kernel):
                        self._start(kernel, entry)
                except (NoAnswerError, RefusedError) as error:
                    trouble = error  # the other kernels are looked at all the same
        if trouble is None:
            self.desk.clocks.forget("", "outage")
            return
        self.desk.clocks.once("", "outage", f"{trouble}; trying again for up to {words(self.desk.pace.outage)}")
        if (waited := self.desk.clocks.waited("", "outage")) > self.desk.pace.outage:
            raise CampaignStoppedError(
                f"Kaggle has not answered for {words(waited)}: {trouble}\n"
                "What runs there goes on, and the same command goes on from here."
            ) from trouble

    def _can_go_on(self) -> bool:
        """Whether anything is open, or can still start, or is on its way."""
        for kernel in self.progress.kernels:
            entry = self.progress.entry(kernel)
            if entry.open is not None and kernel.slug not in self.desk.failures:
                return True
            if self._is_ready(kernel):
                return True
        return not self.publisher.rests

    def _reasons(self) -> str:
        lines = [f"{slug}: {text}" for slug, text in self.desk.failures.items()]
        if self.desk.source.thin and self.publisher.failed:
            lines += self.publisher.problems
        done = [kernel.slug for kernel in self.progress.wanted if self.progress.is_done(kernel)]
        kept = f"\nDone and kept: {', '.join(done)}." if done else ""
        return "the campaign stopped:\n  - " + "\n  - ".join(lines) + f"{kept}\nMend the cause and run the same command again."

    # --- what is done, what is ready ---------------------------------------------------------------------------------

    def _is_ready(self, kernel: Kernel) -> bool:
        if kernel.slug in self.desk.failures or (self.desk.source.thin and not self.publisher.is_ready):
            return False
        return self.progress.is_due(kernel)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, kernel: Kernel, entry: KernelEntry) -> None:
        last = entry.last
        if entry.attempts >= self.desk.pace.pushes and (last is None or last.state != REFUSED):
            note = last.note if last is not None else ""
            self.desk.fail(kernel, f"was pushed {entry.attempts} times and did not finish; the last time: {note}")
            return
        if last is not None and last.state == UNFINISHED and self.desk.moments.age(last.ended_at) < self.desk.pace.settle:
            return  # whatever cut it off gets a moment to pass
        if not self.capacity.has_session(kernel) or not self.capacity.has_quota(kernel):
            return
        status = self.desk.kaggle.status(kernel.slug)
        if status.name in ACTIVE and self._is_foreign(kernel, status):
            return
        if (
            status.name == COMPLETE
            and not entry.pushes
            and kernel.slug not in self._looked_for
            and kernel.kind not in ("inference", "report", "probe")
        ):
            self._looked_for.add(kernel.slug)
            if self._take_over(kernel, entry):
                return
        limited = sum(push.note == LIMIT_NOTE for push in entry.pushes[entry.series :])
        limit = time_limit(kernel, ended_before=limited)
        if last is not None and last.state == REFUSED:
            push = last
            push.state, push.note, push.intended_at = INTENDED, "", self.desk.moments.stamp()
            push.bundle_id, push.identity, push.limit = self.desk.source.bundle, self.progress.identity(kernel), limit
        else:
            push = Push(
                push_id=f"{self.desk.ledger.id}.{kernel.slug}.{len(entry.pushes) + 1}",
                bundle_id=self.desk.source.bundle,
                identity=self.progress.identity(kernel),
                limit=limit,
                intended_at=self.desk.moments.stamp(),
            )
            entry.pushes.append(push)
        self.desk.ledger.save()
        self._send(kernel, entry, push)

    def _send(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """The one place that pushes. The intention stands in the ledger already."""
        folder = self.desk.folder / PUSHES / kernel.slug
        outputs = {slug: self.desk.ledger.kernels[slug].output for slug in kernel.sources}
        inputs = {slug: output.push_id for slug, output in outputs.items() if output is not None}
        finished = self._finished_trials(kernel)
        self.desk.source.write_kernel(kernel, folder, push_id=push.push_id, limit=push.limit, inputs=inputs, finished=finished)
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
        except GhostError as error:
            self._cure(kernel, entry, push, error)
        except SourcesDroppedError as error:
            push.state, push.version, push.pushed_at, push.note = DROPPED, error.version, self.desk.moments.stamp(), str(error)
            self.desk.ledger.save()
            self.desk.say(f"{kernel.slug}: {error}; waiting for that version to end, then pushing again")
            self.desk.standings[kernel.slug].turn("pushed without inputs", version=error.version)
        except NoAnswerError as error:
            self.desk.standings[kernel.slug].turn("was it pushed?")
            self.desk.say(f"{kernel.slug}: {error}; looking whether the push happened before asking again")
        except CredentialsError:
            self._refused(kernel, push, "the credentials were not accepted")
            raise
        except (RefusedError, StrangeAnswerError) as error:
            self.desk.end(kernel, push, FAILED, str(error))
            self.desk.fail(kernel, str(error))
        else:
            self._was_pushed(kernel, push, version=pushed.version, url=pushed.url)

    def _finished_trials(self, kernel: Kernel) -> list[dict[str, Any]]:
        """What the last output of a search that is here came to: its trials are not run again, and nothing mounts itself."""
        if kernel.search is None:
            return []
        try:
            records = settled(json.loads((self.desk.outputs / kernel.slug / RECORDS).read_bytes())["trials"])
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
        self.desk.standings[kernel.slug].turn(
            "pushed", version=version, url=push.url, expected=expected_hours(kernel, self.desk.ledger) * 3600
        )

    def _refused(self, kernel: Kernel, push: Push, note: str) -> None:
        push.state, push.note = REFUSED, note
        self.desk.ledger.save()
        self.desk.standings[kernel.slug].turn("refused, waiting")

    def _cure(self, kernel: Kernel, entry: KernelEntry, push: Push, error: GhostError) -> None:
        """A refused first push leaves a kernel without a version, on which every later push fails: delete it, once proved."""
        proved = not entry.ever_had_a_version and self.desk.kaggle.status(kernel.slug).name == ABSENT
        with contextlib.suppress(NoAnswerError):  # the pull of a ghost ends in an internal error
            proved = proved and self.desk.kaggle.pull(kernel.slug) is None
        tries = self._cures.get(kernel.slug, 0)
        if not proved or tries >= self.desk.pace.pushes:
            self.desk.end(kernel, push, FAILED, str(error))
            why = "although it had a version before" if entry.ever_had_a_version else "and it is not shown to be empty"
            self.desk.fail(kernel, f"{error}, {why}: it is not deleted. Look at it in the browser, or choose another slug")
            return
        self._cures[kernel.slug] = tries + 1
        self.desk.say(f"{kernel.slug}: an earlier refusal left it without a version; deleting it and pushing again")
        self.desk.kaggle.delete(kernel.slug)
        self._refused(kernel, push, "deleted: it had no version")

    def _is_foreign(self, kernel: Kernel, status: RunStatus) -> bool:
        """A run of this slug that is not ours: it is never pushed over, but waited for."""
        if self.desk.clocks.waited(kernel.slug, "foreign") > self.desk.pace.foreign_patience:
            waited = words(self.desk.pace.foreign_patience)
            self.desk.fail(kernel, f"another run of it has been {status.name} for {waited}: end it in the browser")
        self.desk.clocks.once(
            kernel.slug, "foreign", f"{kernel.slug}: a run that this campaign did not push is {status.name}: waiting for it"
        )
        self.desk.standings[kernel.slug].turn("another run of it goes on")
        return True

    # --- following ---------------------------------------------------------------------------------------------------

    def _follow(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        if push.state == INTENDED:
            self._prove(kernel, entry, push)
            return
        try:
            status = self.desk.kaggle.status(kernel.slug)
        except StrangeAnswerError as error:
            self.desk.clocks.once(kernel.slug, "unknown", f"{kernel.slug}: {error}; looking again")
            if self.desk.clocks.waited(kernel.slug, "unknown") > self.desk.pace.unknown_patience:
                self.desk.fail(kernel, f"{error}, for {words(self.desk.pace.unknown_patience)}. Look at {push.url}")
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
            return
        if status.name == COMPLETE:
            self._collect(kernel, entry, push, fresh=fresh)
        elif status.name in (ERROR, CANCELLED):
            self._has_ended(kernel, push, status, fresh=fresh)

    def _is_active(self, kernel: Kernel, push: Push, status: RunStatus) -> None:
        if not push.active:
            push.active = True
            self.desk.ledger.save()
            with contextlib.suppress(NoAnswerError, RefusedError):  # a warning is not worth a stop
                if wrong := self._wrong_machine(kernel):
                    self.desk.say(f"warning: {wrong}")
        self.desk.standings[kernel.slug].turn(status.name.lower().replace("_", " "))
        patience = self.desk.pace.queue_patience if status.name != "RUNNING" else push.limit + self.desk.pace.overrun
        since = self.desk.clocks.waited(kernel.slug, f"active {status.name}")
        if status.name == "RUNNING":
            since = min(since, self.desk.moments.age(push.pushed_at))
        if since > patience:
            self.desk.fail(
                kernel,
                f"has been {status.name} for {words(since)}, its time limit was {words(push.limit)}: Kaggle does not end it. "
                f"Look at {push.url}, end it there, and run the same command again",
            )

    def _prove(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """Whether a push happened whose answer never came: the source that Kaggle holds carries its push id, or does not."""
        try:
            pulled = self.desk.kaggle.pull(kernel.slug)
        except NoAnswerError:
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
        if status.name in ACTIVE and self._is_foreign(kernel, status):
            return
        self.desk.clocks.forget(kernel.slug, "proof")
        self.desk.say(f"{kernel.slug}: the push did not happen, sending it")
        self._send(kernel, entry, push)

    def _collect(self, kernel: Kernel, entry: KernelEntry, push: Push, *, fresh: bool) -> None:
        """A run is shown as complete: fetch its output if it is the output of this push."""
        if push.state == DROPPED:
            if not fresh:
                self.desk.end(kernel, push, UNFINISHED, push.note)
            return
        self.desk.standings[kernel.slug].turn("fetching")
        try:
            listing = self.desk.kaggle.output(kernel.slug)
            content = peek_record(self.desk.kaggle, kernel.slug, listing, folder=self.desk.outputs)
        except NoRecordError as error:
            if fresh or push.push_id not in listing.log and self.desk.clocks.waited(kernel.slug, "short") < self.desk.pace.settle:
                return
            keep_log(self.desk.folder, kernel.slug, listing)
            self.desk.end(kernel, push, UNFINISHED, f"{error}, though Kaggle calls it complete")
            return
        except (NoAnswerError, StrangeAnswerError) as error:
            self._not_yet(kernel, push, str(error))
            return
        if content.get("push_id") != push.push_id:
            self._not_yet(kernel, push, "Kaggle shows the output of an earlier push")
            return
        try:
            record = fetch_output(self.desk.kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self.desk.outputs)
        except NoAnswerError as error:
            self._not_yet(kernel, push, str(error))
            return
        except StrangeAnswerError as error:
            self.desk.end(kernel, push, FAILED, str(error))
            self.desk.fail(kernel, str(error))
            return
        keep_log(self.desk.folder, kernel.slug, listing)
        push.state, push.ended_at = DONE, self.desk.moments.stamp()
        self.desk.finish(kernel, entry, record, identity=push.identity, version=push.version, how="done")

    def _not_yet(self, kernel: Kernel, push: Push, why: str) -> None:
        """What is listed is not what the run left: listings lag, links expire. Nothing is lost by looking again."""
        self.desk.clocks.once(kernel.slug, "stale", f"{kernel.slug}: {why}; looking again")
        if self.desk.clocks.waited(kernel.slug, "stale") > self.desk.pace.stale_patience:
            self.desk.fail(
                kernel,
                f"{why}, for {words(self.desk.pace.stale_patience)}. It is complete on Kaggle ({push.url}); the same "
                "command fetches it",
            )

    def _has_ended(self, kernel: Kernel, push: Push, status: RunStatus, *, fresh: bool) -> None:
        """ERROR or cancelled: what it says of itself decides whether another push could do better."""
        try:
            listing = self.desk.kaggle.output(kernel.slug)
        except RefusedError:  # a run that was deleted or never began has no output to list
            listing = Listing({}, "")
        if fresh and push.push_id not in listing.log:
            return  # this may still be the run before
        path = keep_log(self.desk.folder, kernel.slug, listing)
        if push.state == DROPPED:
            self.desk.end(kernel, push, UNFINISHED, push.note)
            return
        ran = self.desk.moments.age(push.pushed_at)
        if status.name == CANCELLED:
            limited = ran >= 0.9 * push.limit
            if limited and push.limit >= LONGEST:
                self.desk.end(kernel, push, FAILED, LIMIT_NOTE)
                self.desk.fail(
                    kernel, f"did not finish within {words(push.limit)}, the longest session there is: make it shorter"
                )
            else:
                self.desk.end(kernel, push, UNFINISHED, LIMIT_NOTE if limited else "the run was cancelled")
            return
        said = listing.log.strip().splitlines()
        if any(MISSING_INPUTS in line for line in said):
            self.desk.end(
                kernel, push, UNFINISHED, "Kaggle had not mounted the outputs it reads yet, or had mounted earlier ones"
            )
            return
        if any(line.startswith(("error: ", "Traceback")) or _TRACEBACK in line for line in said):
            shown = "\n".join(f"      {line}" for line in said[-_LOG_LINES:])
            self.desk.end(kernel, push, FAILED, said[-1])
            message = f" ({status.message})" if status.message else ""
            self.desk.fail(kernel, f"ended with an error{message}; the end of its log ({path}):\n{shown}")
            return
        self.desk.end(kernel, push, UNFINISHED, f"Kaggle says {status.name}: {status.message or 'nothing more'}")

    def _take_over(self, kernel: Kernel, entry: KernelEntry) -> bool:
        """Use the finished output of another campaign, if it is what this one would compute: quota is not spent twice."""
        try:
            listing = self.desk.kaggle.output(kernel.slug)
            content = peek_record(self.desk.kaggle, kernel.slug, listing, folder=self.desk.outputs)
        except (NoRecordError, ClientError):
            return False
        if not self._is_wanted(kernel, content):
            return False
        if content.get("bundle_id") != self.desk.source.bundle and not self.reuse:
            self.desk.say(
                f"{kernel.slug}: Kaggle holds a finished output that other code made "
                f"(bundle {str(content.get('bundle_id'))[:12]}); it is made again. --reuse takes such outputs over"
            )
            return False
        try:
            record = fetch_output(self.desk.kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self.desk.outputs)
        except ClientError as error:
            self.desk.say(f"{kernel.slug}: {error}; it is made again")
            return False
        how = f"taken over from an earlier campaign (push {record.push_id})"
        self.desk.finish(kernel, entry, record, identity=self.progress.identity(kernel), version=None, how=how)
        return True

    def _is_wanted(self, kernel: Kernel, content: dict[str, object]) -> bool:
        """Whether a record is of the kernel, its config and its inputs."""
        config, theirs = kernel.configs[0].to_dict(), content.get("config")
        causes = {knob: value for knob, value in config.items() if knob not in EXPECTATIONS}
        same = isinstance(theirs, dict) and {k: v for k, v in theirs.items() if k not in EXPECTATIONS} == causes
        if content.get("kind") != kernel.kind or content.get("complete") is not True or not content.get("push_id"):
            return False
        if kernel.kind == "weights":
            scores = content.get("scores")
            held = scores.get("encoders", {}) if isinstance(scores, dict) else {}
            return set(kernel.encoders) <= set(held)
        if not same or kernel.datasets:  # what was attached then is not recorded
            return False
        if kernel.search is not None:
            scores = content.get("scores")
            searched = scores.get("search", {}).get("space") if isinstance(scores, dict) else None
            if searched != kernel.search.to_dict():
                return False
        if kernel.kind in ("pretrain", "embed", "train", "search"):
            prepared = next(self.desk.ledger.kernels[slug].output for slug in kernel.sources if self._kind(slug) == "prepare")
            right = content.get("experiment") == kernel.experiments[0] and content.get("fold") == kernel.fold
            return right and prepared is not None and content.get("data_id") == prepared.key
        return True

    def _kind(self, slug: str) -> str:
        return self.desk.ledger.kernels[slug].kind

    # --- small things ------------------------------------------------------------------------------------------------

    def _wrong_machine(self, kernel: Kernel) -> str:
        """What is wrong with the machine a kernel was given, as the service shows it; empty when nothing is."""
        pulled = self.desk.kaggle.pull(kernel.slug) if kernel.needs_gpu else None
        if pulled is None or pulled.machine_shape == MACHINE_SHAPE:
            return ""
        return f"{kernel.slug} was given the machine {pulled.machine_shape or 'None'!r}, not {MACHINE_SHAPE}"
