"""Which kernel runs when: weights and prepare, folds, inference, the report; resumable, and never the same push twice.

The campaign looks at what is open, fetches what has ended, starts what is ready, and waits; the ledger knows what was
asked. Three rules hold everywhere. An answer is believed only about the push it can be tied to (the push id in source,
log or run.json). A request that changes something is repeated only once it is proved that it did not happen. Every wait
ends, in a result or in a sentence that says what was waited for.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.build import Source
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
from launch.errors import LaunchError
from launch.ledger import (
    DONE,
    DROPPED,
    FAILED,
    INTENDED,
    PUSHED,
    REFUSED,
    UNFINISHED,
    KernelEntry,
    Ledger,
    Output,
    Push,
)
from launch.metadata import MACHINE_SHAPE
from launch.moments import Moments
from launch.outputs import OUTPUTS, NoRecordError, fetch_output, keep_log, output_key, peek_record
from launch.pace import Clocks, Pace, words
from launch.plan import CPU_SESSIONS, GPU_SESSIONS, Kernel
from launch.publish import Publisher
from launch.schedule import LONGEST, expected_hours, next_reset, plan_over_weeks, time_limit
from launch.standings import Standing, plan_standings
from lib.config import EXPECTATIONS
from lib.run_record import RECORD_NAME, RunRecord
from lib.search_space import RECORDS, settled
from lib.session import MISSING_INPUTS

PUSHES = "pushes"
_LOG_LINES = 25  # of a failed kernel, shown
_TRACEBACK = "Traceback (most recent call last)"  # at the start of a line in a script's log, behind the error in a notebook's


class CampaignStoppedError(LaunchError):
    """The campaign cannot go on; the message lists every reason. What was done stands in the ledger."""


@dataclass
class Campaign:
    """A campaign at work.

    Attributes:
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

    kaggle: Kaggle
    source: Source
    kernels: Sequence[Kernel]
    ledger: Ledger
    folder: Path
    dataset: Path | None
    pace: Pace
    say: Callable[[str], None]
    show: Callable[[Sequence[Standing], Quota | None], None] = lambda standings, quota: None
    reuse: bool = False
    goal: Collection[str] | None = None
    failures: dict[str, str] = field(default_factory=dict)
    quota: Quota | None = None

    def __post_init__(self) -> None:
        self._moments = Moments()
        self._clocks = Clocks(self.say)
        self._cures: dict[str, int] = {}
        self._looked_for: set[str] = set()
        self.publisher = Publisher(
            self.kaggle, self.ledger, self.dataset, self.source.bundle, settle=self.pace.settle, say=self.say
        )
        for kernel in self.kernels:
            entry = self.ledger.entry(kernel.slug, kernel.kind)
            spent = entry.last is not None and entry.last.state == UNFINISHED and entry.attempts >= self.pace.pushes
            if spent or (entry.last is not None and entry.last.state == FAILED):
                entry.series = len(entry.pushes)  # a person has looked, and runs the command again
            if entry.output is not None and not (self._outputs() / kernel.slug / RECORD_NAME).is_file():
                entry.output = None  # somebody removed it here: Kaggle still holds it, and it is fetched again
                if entry.last is not None and entry.last.state == DONE:
                    entry.last.state = PUSHED
        self.standings = plan_standings(self.kernels, self.ledger)

    def tell(self, slug: str, facts: Mapping[str, Any]) -> None:
        """Give a report what only the user's machine knows, and the search if one was made: both decide its output."""
        searched = tuple(each.slug for each in self.kernels if each.kind == "search" and self.is_done(each))
        self.kernels = [
            replace(each, facts=facts, sources=(*(s for s in each.sources if s not in searched), *searched))
            if each.slug == slug
            else each
            for each in self.kernels
        ]

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Bring every kernel of the plan to a verified output.

        Raises:
            CampaignStoppedError: something failed that waiting does not mend; the rest was brought to its end.
            CredentialsError: the service does not know us any more.
        """
        self._open()
        while True:
            self.publisher.step()
            self.tick()
            self.show(list(self.standings.values()), self.quota)
            if all(self.is_done(kernel) for kernel in self.wanted) and self.publisher.rests:
                break
            if not self._can_go_on():
                raise CampaignStoppedError(self._reasons())
            time.sleep(self.pace.poll)
        for problem in self.publisher.problems:
            self.say(f"warning: {problem}; the kernels carry the library themselves, so nothing else depends on it")

    @property
    def wanted(self) -> list[Kernel]:
        """The kernels of the goal."""
        return [kernel for kernel in self.kernels if self.goal is None or kernel.slug in self.goal]

    def push_only(self, kernels: Sequence[Kernel]) -> None:
        """Push these kernels and return when Kaggle has them; nothing waits for their end.

        Raises:
            CampaignStoppedError: an input is missing, or a push was refused.
        """
        problems = []
        for kernel in kernels:
            lacking = [slug for slug in kernel.sources if not self._source_is_done(slug)]
            if lacking:
                problems.append(f"{kernel.slug} reads {', '.join(lacking)}, not done yet: run them first")
            entry = self.ledger.entry(kernel.slug, kernel.kind)
            if kernel.search is not None and entry.open is not None:
                self._follow(kernel, entry, entry.open)  # what it came to, if it has ended, is where the next push goes on
                self.failures.pop(kernel.slug, None)
            if entry.open is not None:
                problems.append(f"{kernel.slug} was pushed and has not ended: see build_kernel.py status")
        if problems:
            raise CampaignStoppedError("nothing was pushed:\n  - " + "\n  - ".join(problems))
        for kernel in kernels:
            entry = self.ledger.entry(kernel.slug, kernel.kind)
            entry.series, entry.output = len(entry.pushes), None
            self._looked_for.add(kernel.slug)  # asked for by name: nothing is taken over
            while kernel.slug not in self.failures:
                if entry.open is None and not self._slot_is_free(kernel):
                    self._clocks.once(kernel.slug, "slot", f"{kernel.slug}: waiting for a session of this campaign to end")
                    self._follow_others(kernel)
                if entry.open is None:
                    self._start(kernel, entry)
                elif entry.open.state == INTENDED:
                    self._prove(kernel, entry, entry.open)
                if entry.open is not None and entry.open.state != INTENDED:
                    break
                time.sleep(self.pace.poll)
        if self.failures:
            raise CampaignStoppedError(self._reasons())

    def _follow_others(self, kernel: Kernel) -> None:
        """Look at what holds the slots of a machine: it may have ended since."""
        for other in self.kernels:
            entry = self.ledger.entry(other.slug, other.kind)
            if entry.open is not None and _machine(other) == _machine(kernel):
                self._follow(other, entry, entry.open)

    def tick(self) -> None:
        """One look at everything that is open, and a start of everything that is ready.

        Raises:
            CampaignStoppedError: the service has not answered for too long.
            CredentialsError: it does not know us any more.
        """
        trouble: ClientError | None = None
        for follow in (True, False):
            for kernel in self.kernels:
                entry = self.ledger.entry(kernel.slug, kernel.kind)
                try:
                    if follow and entry.open is not None and kernel.slug not in self.failures:
                        self._follow(kernel, entry, entry.open)
                    elif not follow and self._is_ready(kernel):
                        self._start(kernel, entry)
                except (NoAnswerError, RefusedError) as error:
                    trouble = error  # the other kernels are looked at all the same
        if trouble is None:
            self._clocks.forget("", "outage")
            return
        self._clocks.once("", "outage", f"{trouble}; trying again for up to {words(self.pace.outage)}")
        if (waited := self._clocks.waited("", "outage")) > self.pace.outage:
            raise CampaignStoppedError(
                f"Kaggle has not answered for {words(waited)}: {trouble}\n"
                "What runs there goes on, and the same command goes on from here."
            ) from trouble

    def _open(self) -> None:
        self.quota = self._read_quota()
        left = {k.slug: expected_hours(k, self.ledger) for k in self.wanted if k.needs_gpu and not self.is_done(k)}
        if not left:
            return
        cost = sum(left.values())
        if self.quota is None:
            self.say(f"about {cost:.1f} h of GPU quota to spend; Kaggle does not say what is left")
            return
        self.say(
            f"about {cost:.1f} h of GPU quota to spend; {self.quota.left:.1f} of {self.quota.allowed:.1f} h are left, "
            f"full again {next_reset(self.quota):%a %d %b %H:%M} UTC"
        )
        too_long = {slug: hours for slug, hours in left.items() if hours > self.quota.allowed}
        if too_long:
            slug, hours = next(iter(too_long.items()))
            raise CampaignStoppedError(
                f"{slug} is expected to take {hours:.1f} h, the weekly quota is {self.quota.allowed:.1f} h: it can never run. "
                "Make it cheaper, or correct its `hours`."
            )
        if cost > self.quota.left:
            for line in plan_over_weeks(left, self.quota):
                self.say(f"  {line}")

    def _can_go_on(self) -> bool:
        """Whether anything is open, or can still start, or is on its way."""
        for kernel in self.kernels:
            entry = self.ledger.entry(kernel.slug, kernel.kind)
            if entry.open is not None and kernel.slug not in self.failures:
                return True
            if self._is_ready(kernel):
                return True
        return not self.publisher.rests

    def _reasons(self) -> str:
        lines = [f"{slug}: {text}" for slug, text in self.failures.items()]
        if self.source.thin and self.publisher.failed:
            lines += self.publisher.problems
        done = [kernel.slug for kernel in self.wanted if self.is_done(kernel)]
        kept = f"\nDone and kept: {', '.join(done)}." if done else ""
        return "the campaign stopped:\n  - " + "\n  - ".join(lines) + f"{kept}\nMend the cause and run the same command again."

    # --- what is done, what is ready ---------------------------------------------------------------------------------

    def is_done(self, kernel: Kernel) -> bool:
        """Whether its output is here, verified, and of its present config and inputs."""
        entry = self.ledger.entry(kernel.slug, kernel.kind)
        if entry.output is None or entry.open is not None:
            return False
        if not all(self._source_is_done(slug) for slug in kernel.sources):
            return False
        return entry.output.identity == self.identity(kernel)

    def _source_is_done(self, slug: str) -> bool:
        kernel = next((each for each in self.kernels if each.slug == slug), None)
        return kernel is not None and self.is_done(kernel)

    def _is_ready(self, kernel: Kernel) -> bool:
        entry = self.ledger.entry(kernel.slug, kernel.kind)
        if self.goal is not None and kernel.slug not in self.goal:
            return False
        if kernel.slug in self.failures or entry.open is not None or self.is_done(kernel):
            return False
        if self.source.thin and not self.publisher.is_ready:
            return False
        return all(self._source_is_done(slug) for slug in kernel.sources)

    def identity(self, kernel: Kernel) -> str:
        """What decides a kernel's output, code aside: its configs and its inputs, which must be done."""
        configs = []
        for config in kernel.configs:
            plain = asdict(config)
            for expectation in EXPECTATIONS:
                plain.pop(expectation)
            configs.append(plain)
        inputs: dict[str, str] = {}
        for slug in kernel.sources:
            output = self.ledger.kernels[slug].output
            assert output is not None, "asked for the identity of a kernel whose inputs are not there"
            inputs[slug] = output.key
        facts = [kernel.kind, kernel.fold, kernel.folds, kernel.encoders, kernel.datasets, kernel.experiments, configs, inputs]
        facts += [kernel.average] if kernel.average != "mean" else []
        facts += [dict(kernel.facts)] if kernel.facts else []
        facts += [kernel.search.to_dict()] if kernel.search is not None else []
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start(self, kernel: Kernel, entry: KernelEntry) -> None:
        last = entry.last
        if entry.attempts >= self.pace.pushes and (last is None or last.state != REFUSED):
            note = last.note if last is not None else ""
            self._fail(kernel, f"was pushed {entry.attempts} times and did not finish; the last time: {note}")
            return
        if last is not None and last.state == UNFINISHED and self._moments.age(last.ended_at) < self.pace.settle:
            return  # whatever cut it off gets a moment to pass
        if not self._slot_is_free(kernel) or not self._quota_allows(kernel):
            return
        status = self.kaggle.status(kernel.slug)
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
        limited = sum(push.note == _LIMIT_NOTE for push in entry.pushes[entry.series :])
        limit = time_limit(kernel, ended_before=limited)
        if last is not None and last.state == REFUSED:
            push = last
            push.state, push.note, push.intended_at = INTENDED, "", self._moments.stamp()
            push.bundle_id, push.identity, push.limit = self.source.bundle, self.identity(kernel), limit
        else:
            push = Push(
                push_id=f"{self.ledger.id}.{kernel.slug}.{len(entry.pushes) + 1}",
                bundle_id=self.source.bundle,
                identity=self.identity(kernel),
                limit=limit,
                intended_at=self._moments.stamp(),
            )
            entry.pushes.append(push)
        self.ledger.save()
        self._send(kernel, entry, push)

    def _send(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """The one place that pushes. The intention stands in the ledger already."""
        folder = self.folder / PUSHES / kernel.slug
        outputs = {slug: self.ledger.kernels[slug].output for slug in kernel.sources}
        inputs = {slug: output.push_id for slug, output in outputs.items() if output is not None}
        finished = self._finished_trials(kernel)
        self.source.write_kernel(kernel, folder, push_id=push.push_id, limit=push.limit, inputs=inputs, finished=finished)
        push.bundle_id = self.source.bundle
        try:
            pushed = self.kaggle.push(folder, limit=push.limit)
        except CapacityError as error:
            self._refused(kernel, push, str(error))
            self._clocks.start(_machine(kernel), "hold")
            self._cures.pop(kernel.slug, None)  # if this leaves a ghost, it is known where it comes from
            if self._clocks.waited(_machine(kernel), "capacity") > self.pace.capacity_patience:
                self._fail(kernel, f"{error}, for {words(self.pace.capacity_patience)}: end the other sessions of your account")
            else:
                self._clocks.once(_machine(kernel), "capacity", f"{error} Waiting for a free one: other sessions of yours run")
        except QuotaError as error:
            self._refused(kernel, push, str(error))
            self.quota = self._read_quota()
            self._clocks.start("GPU", "spent")
            if self._clocks.waited("GPU", "no quota") >= self.pace.quota_patience:
                self._fail(kernel, f"{error}, for {words(self.pace.quota_patience)}")
                return
            self._say_when_quota_is_back(str(error))
        except GhostError as error:
            self._cure(kernel, entry, push, error)
        except SourcesDroppedError as error:
            push.state, push.version, push.pushed_at, push.note = DROPPED, error.version, self._moments.stamp(), str(error)
            self.ledger.save()
            self.say(f"{kernel.slug}: {error}; waiting for that version to end, then pushing again")
            self.standings[kernel.slug].turn("pushed without inputs", version=error.version)
        except NoAnswerError as error:
            self.standings[kernel.slug].turn("was it pushed?")
            self.say(f"{kernel.slug}: {error}; looking whether the push happened before asking again")
        except CredentialsError:
            self._refused(kernel, push, "the credentials were not accepted")
            raise
        except (RefusedError, StrangeAnswerError) as error:
            push.state, push.note, push.ended_at = FAILED, str(error), self._moments.stamp()
            self.ledger.save()
            self._fail(kernel, str(error))
        else:
            self._was_pushed(kernel, push, version=pushed.version, url=pushed.url)

    def _finished_trials(self, kernel: Kernel) -> list[dict[str, Any]]:
        """What the last output of a search that is here came to: its trials are not run again, and nothing mounts itself."""
        if kernel.search is None:
            return []
        try:
            records = settled(json.loads((self._outputs() / kernel.slug / RECORDS).read_bytes())["trials"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        if records:
            self.say(f"{kernel.slug}: {len(records)} trials of its last output are not run again")
        return records

    def _was_pushed(self, kernel: Kernel, push: Push, *, version: int | None, url: str = "") -> None:
        push.state, push.version, push.pushed_at = PUSHED, version, self._moments.stamp()
        push.url = url or f"https://www.kaggle.com/code/{self.source.owner}/{kernel.slug}"
        self.ledger.save()
        self._clocks.forget_all(kernel.slug)
        for what in _WAITS:
            self._clocks.forget(_machine(kernel), what)
        self.say(f"{kernel.slug}: pushed, version {version or 'unknown'}, at most {words(push.limit)}")
        self.standings[kernel.slug].turn(
            "pushed", version=version, url=push.url, expected=expected_hours(kernel, self.ledger) * 3600
        )

    def _refused(self, kernel: Kernel, push: Push, note: str) -> None:
        push.state, push.note = REFUSED, note
        self.ledger.save()
        self.standings[kernel.slug].turn("refused, waiting")

    def _cure(self, kernel: Kernel, entry: KernelEntry, push: Push, error: GhostError) -> None:
        """A refused first push leaves a kernel without a version, on which every later push fails: delete it, once proved."""
        proved = not entry.ever_had_a_version and self.kaggle.status(kernel.slug).name == ABSENT
        with contextlib.suppress(NoAnswerError):  # the pull of a ghost ends in an internal error
            proved = proved and self.kaggle.pull(kernel.slug) is None
        tries = self._cures.get(kernel.slug, 0)
        if not proved or tries >= self.pace.pushes:
            push.state, push.note, push.ended_at = FAILED, str(error), self._moments.stamp()
            self.ledger.save()
            why = "although it had a version before" if entry.ever_had_a_version else "and it is not shown to be empty"
            self._fail(kernel, f"{error}, {why}: it is not deleted. Look at it in the browser, or choose another slug")
            return
        self._cures[kernel.slug] = tries + 1
        self.say(f"{kernel.slug}: an earlier refusal left it without a version; deleting it and pushing again")
        self.kaggle.delete(kernel.slug)
        self._refused(kernel, push, "deleted: it had no version")

    def _is_foreign(self, kernel: Kernel, status: RunStatus) -> bool:
        """A run of this slug that is not ours: it is never pushed over, but waited for."""
        if self._clocks.waited(kernel.slug, "foreign") > self.pace.foreign_patience:
            waited = words(self.pace.foreign_patience)
            self._fail(kernel, f"another run of it has been {status.name} for {waited}: end it in the browser")
        self._clocks.once(
            kernel.slug, "foreign", f"{kernel.slug}: a run that this campaign did not push is {status.name}: waiting for it"
        )
        self.standings[kernel.slug].turn("another run of it goes on")
        return True

    def _slot_is_free(self, kernel: Kernel) -> bool:
        machine = _machine(kernel)
        taken = sum(
            self.ledger.entry(other.slug, other.kind).open is not None for other in self.kernels if _machine(other) == machine
        )
        if taken >= (GPU_SESSIONS if kernel.needs_gpu else CPU_SESSIONS):
            return False
        return self._clocks.is_over(machine, "hold", self.pace.capacity)

    # --- the quota ---------------------------------------------------------------------------------------------------

    def _read_quota(self) -> Quota | None:
        """Kept for a while. Not knowing is no reason to stop: the refusal is what counts."""
        try:
            self.quota = self.kaggle.quota()
        except CredentialsError:
            raise
        except ClientError as error:
            self._clocks.once("", "quota", f"{error}: going on without knowing the quota")
            self.quota = None
        self._clocks.start("GPU", "quota read")
        return self.quota

    def _quota_allows(self, kernel: Kernel) -> bool:
        if not kernel.needs_gpu:
            return True
        if self._clocks.is_over("GPU", "quota read", self.pace.quota_every):
            self._read_quota()
        refused = not self._clocks.is_over("GPU", "spent", self.pace.quota_every)
        if self.quota is None:
            return not refused
        running = sum(
            max(0.0, expected_hours(other, self.ledger) - self._moments.age(push.pushed_at) / 3600)
            for other in self.kernels
            if other.needs_gpu and (push := self.ledger.entry(other.slug, other.kind).open) is not None
        )
        need = expected_hours(kernel, self.ledger)
        if self.quota.left - running >= need:
            if refused:
                return False  # it was refused a moment ago, whatever the figures say
            self._clocks.forget("GPU", "spent")
            self._clocks.forget("GPU", "quota")
            return True
        self.standings[kernel.slug].turn("waiting for quota")
        self._say_when_quota_is_back(
            f"{kernel.slug} needs about {need:.1f} h, {max(0.0, self.quota.left - running):.1f} h are left"
        )
        return False

    def _say_when_quota_is_back(self, why: str) -> None:
        if self.quota is None:
            self._clocks.once("GPU", "quota", f"{why}. Asking again until there is quota")
            return
        text = f"{why}. Waiting until {next_reset(self.quota):%a %d %b %H:%M} UTC, then going on by itself"
        left = {k.slug: expected_hours(k, self.ledger) for k in self.wanted if k.needs_gpu and not self.is_done(k)}
        running = {k.slug for k in self.kernels if self.ledger.entry(k.slug, k.kind).open is not None}
        waiting = {slug: hours for slug, hours in left.items() if slug not in running}
        self._clocks.once("GPU", "quota", "\n".join([text, *(f"  {line}" for line in plan_over_weeks(waiting, self.quota))]))

    # --- following ---------------------------------------------------------------------------------------------------

    def _follow(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        if push.state == INTENDED:
            self._prove(kernel, entry, push)
            return
        try:
            status = self.kaggle.status(kernel.slug)
        except StrangeAnswerError as error:
            self._clocks.once(kernel.slug, "unknown", f"{kernel.slug}: {error}; looking again")
            if self._clocks.waited(kernel.slug, "unknown") > self.pace.unknown_patience:
                self._fail(kernel, f"{error}, for {words(self.pace.unknown_patience)}. Look at {push.url}")
            return
        self._clocks.forget(kernel.slug, "unknown")
        if status.name in ACTIVE:
            self._is_active(kernel, push, status)
            return
        fresh = not push.active and self._moments.age(push.pushed_at) < self.pace.settle
        if status.name == ABSENT:
            self.standings[kernel.slug].turn("pushed, no run yet")
            if not fresh and self._clocks.waited(kernel.slug, "absent") > self.pace.queue_patience:
                self._fail(kernel, f"Kaggle shows no run of it ({status.message}). Look at {push.url}")
            return
        if status.name == COMPLETE:
            self._collect(kernel, entry, push, fresh=fresh)
        elif status.name in (ERROR, CANCELLED):
            self._has_ended(kernel, push, status, fresh=fresh)

    def _is_active(self, kernel: Kernel, push: Push, status: RunStatus) -> None:
        if not push.active:
            push.active = True
            self.ledger.save()
            with contextlib.suppress(NoAnswerError, RefusedError):  # a warning is not worth a stop
                if wrong := self._wrong_machine(kernel):
                    self.say(f"warning: {wrong}")
        if self.standings[kernel.slug].turn(status.name.lower().replace("_", " ")):
            self._clocks.forget(kernel.slug, "overrun")
        patience = self.pace.queue_patience if status.name != "RUNNING" else push.limit + self.pace.overrun
        since = self._clocks.waited(kernel.slug, f"active {status.name}")
        if status.name == "RUNNING":
            since = min(since, self._moments.age(push.pushed_at))
        if since > patience:
            self._fail(
                kernel,
                f"has been {status.name} for {words(since)}, its time limit was {words(push.limit)}: Kaggle does not end it. "
                f"Look at {push.url}, end it there, and run the same command again",
            )

    def _prove(self, kernel: Kernel, entry: KernelEntry, push: Push) -> None:
        """Whether a push happened whose answer never came: the source that Kaggle holds carries its push id, or does not."""
        try:
            pulled = self.kaggle.pull(kernel.slug)
        except NoAnswerError:
            if entry.ever_had_a_version:
                raise
            pulled = None  # the pull of a ghost ends in an internal error
        if pulled is not None and push.push_id in pulled.source:
            self._was_pushed(kernel, push, version=pulled.version)
            return
        self.standings[kernel.slug].turn("was it pushed?")
        if self._clocks.waited(kernel.slug, "proof") < self.pace.settle:
            return  # what Kaggle shows lags behind
        status = self.kaggle.status(kernel.slug)
        if status.name in ACTIVE and self._is_foreign(kernel, status):
            return
        self._clocks.forget(kernel.slug, "proof")
        self.say(f"{kernel.slug}: the push did not happen, sending it")
        self._send(kernel, entry, push)

    def _collect(self, kernel: Kernel, entry: KernelEntry, push: Push, *, fresh: bool) -> None:
        """A run is shown as complete: fetch its output if it is the output of this push."""
        if push.state == DROPPED:
            if not fresh:
                self._end(kernel, push, UNFINISHED, push.note)
            return
        self.standings[kernel.slug].turn("fetching")
        try:
            listing = self.kaggle.output(kernel.slug)
            content = peek_record(self.kaggle, kernel.slug, listing, folder=self._outputs())
        except NoRecordError as error:
            if fresh or push.push_id not in listing.log and self._clocks.waited(kernel.slug, "short") < self.pace.settle:
                return
            keep_log(self.folder, kernel.slug, listing)
            self._end(kernel, push, UNFINISHED, f"{error}, though Kaggle calls it complete")
            return
        except (NoAnswerError, StrangeAnswerError) as error:
            self._not_yet(kernel, push, str(error))
            return
        if content.get("push_id") != push.push_id:
            self._not_yet(kernel, push, "Kaggle shows the output of an earlier push")
            return
        try:
            record = fetch_output(self.kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self._outputs())
        except NoAnswerError as error:
            self._not_yet(kernel, push, str(error))
            return
        except StrangeAnswerError as error:
            self._end(kernel, push, FAILED, str(error))
            self._fail(kernel, str(error))
            return
        keep_log(self.folder, kernel.slug, listing)
        self._is_finished(kernel, entry, record, identity=push.identity, version=push.version)
        push.state, push.ended_at = DONE, self._moments.stamp()
        self.ledger.save()
        self.say(f"{kernel.slug}: done{_facts(record)}")

    def _not_yet(self, kernel: Kernel, push: Push, why: str) -> None:
        """What is listed is not what the run left: listings lag, links expire. Nothing is lost by looking again."""
        self._clocks.once(kernel.slug, "stale", f"{kernel.slug}: {why}; looking again")
        if self._clocks.waited(kernel.slug, "stale") > self.pace.stale_patience:
            self._fail(
                kernel,
                f"{why}, for {words(self.pace.stale_patience)}. It is complete on Kaggle ({push.url}); the same "
                "command fetches it",
            )

    def _is_finished(self, kernel: Kernel, entry: KernelEntry, record: RunRecord, *, identity: str, version: int | None) -> None:
        fold = record.scores.get("fold") or record.scores.get("search")
        entry.output = Output(
            push_id=record.push_id,
            bundle_id=record.bundle_id,
            identity=identity,
            key=output_key(record),
            seconds=float(record.seconds.get("total", 0.0)),
            auc=float(fold["auc"]) if isinstance(fold, dict) and "auc" in fold else None,
            version=version,
            fetched_at=self._moments.stamp(),
        )
        self.standings[kernel.slug].turn("done", auc=entry.output.auc, version=version)

    def _has_ended(self, kernel: Kernel, push: Push, status: RunStatus, *, fresh: bool) -> None:
        """ERROR or cancelled: what it says of itself decides whether another push could do better."""
        try:
            listing = self.kaggle.output(kernel.slug)
        except RefusedError:  # a run that was deleted or never began has no output to list
            listing = Listing({}, "")
        if fresh and push.push_id not in listing.log:
            return  # this may still be the run before
        path = keep_log(self.folder, kernel.slug, listing)
        if push.state == DROPPED:
            self._end(kernel, push, UNFINISHED, push.note)
            return
        ran = self._moments.age(push.pushed_at)
        if status.name == CANCELLED:
            limited = ran >= 0.9 * push.limit
            if limited and push.limit >= LONGEST:
                self._end(kernel, push, FAILED, _LIMIT_NOTE)
                self._fail(kernel, f"did not finish within {words(push.limit)}, the longest session there is: make it shorter")
            else:
                self._end(kernel, push, UNFINISHED, _LIMIT_NOTE if limited else "the run was cancelled")
            return
        said = listing.log.strip().splitlines()
        if any(MISSING_INPUTS in line for line in said):
            self._end(kernel, push, UNFINISHED, "Kaggle had not mounted the outputs it reads yet, or had mounted earlier ones")
            return
        if any(line.startswith(("error: ", "Traceback")) or _TRACEBACK in line for line in said):
            shown = "\n".join(f"      {line}" for line in said[-_LOG_LINES:])
            self._end(kernel, push, FAILED, said[-1])
            message = f" ({status.message})" if status.message else ""
            self._fail(kernel, f"ended with an error{message}; the end of its log ({path}):\n{shown}")
            return
        self._end(kernel, push, UNFINISHED, f"Kaggle says {status.name}: {status.message or 'nothing more'}")

    def _end(self, kernel: Kernel, push: Push, state: str, note: str) -> None:
        push.state, push.note, push.ended_at = state, note, self._moments.stamp()
        self.ledger.save()
        self.standings[kernel.slug].turn(state)
        if state == UNFINISHED:
            self.say(f"{kernel.slug}: did not finish ({note})")

    def _take_over(self, kernel: Kernel, entry: KernelEntry) -> bool:
        """Use the finished output of another campaign, if it is what this one would compute: quota is not spent twice."""
        try:
            listing = self.kaggle.output(kernel.slug)
            content = peek_record(self.kaggle, kernel.slug, listing, folder=self._outputs())
        except (NoRecordError, ClientError):
            return False
        if not self._is_wanted(kernel, content):
            return False
        if content.get("bundle_id") != self.source.bundle and not self.reuse:
            self.say(
                f"{kernel.slug}: Kaggle holds a finished output that other code made "
                f"(bundle {str(content.get('bundle_id'))[:12]}); it is made again. --reuse takes such outputs over"
            )
            return False
        try:
            record = fetch_output(self.kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self._outputs())
        except ClientError as error:
            self.say(f"{kernel.slug}: {error}; it is made again")
            return False
        self._is_finished(kernel, entry, record, identity=self.identity(kernel), version=None)
        self.ledger.save()
        self.say(f"{kernel.slug}: taken over from an earlier campaign (push {record.push_id}){_facts(record)}")
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
            prepared = next(self.ledger.kernels[slug].output for slug in kernel.sources if self._kind(slug) == "prepare")
            right = content.get("experiment") == kernel.experiments[0] and content.get("fold") == kernel.fold
            return right and prepared is not None and content.get("data_id") == prepared.key
        return True

    def _kind(self, slug: str) -> str:
        return self.ledger.kernels[slug].kind

    # --- small things ------------------------------------------------------------------------------------------------

    def _wrong_machine(self, kernel: Kernel) -> str:
        """What is wrong with the machine a kernel was given, as the service shows it; empty when nothing is."""
        pulled = self.kaggle.pull(kernel.slug) if kernel.needs_gpu else None
        if pulled is None or pulled.machine_shape == MACHINE_SHAPE:
            return ""
        return f"{kernel.slug} was given the machine {pulled.machine_shape or 'None'!r}, not {MACHINE_SHAPE}"

    def _outputs(self) -> Path:
        return self.folder / OUTPUTS

    def _fail(self, kernel: Kernel, text: str) -> None:
        self.failures[kernel.slug] = text
        self.standings[kernel.slug].turn("failed")
        self.say(f"{kernel.slug}: failed; {text.splitlines()[0]}")


_WAITS = ("hold", "capacity", "spent", "no quota")  # of a machine, over when a push to it was accepted
_LIMIT_NOTE = "it came to its time limit"


def _machine(kernel: Kernel) -> str:
    return "GPU" if kernel.needs_gpu else "CPU"


def _facts(record: RunRecord) -> str:
    seconds = float(record.seconds.get("total", 0.0))
    fold = record.scores.get("fold") or record.scores.get("search")
    auc = f", AUC {fold['auc']:.4f}" if isinstance(fold, dict) and "auc" in fold else ""
    return f" in {words(seconds)}{auc}"
