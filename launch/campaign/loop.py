"""The loop of a campaign: observe every kernel, decide, save the ledger, act; until the goal is reached.

It is resumable and never repeats a push without proof. Three rules hold everywhere. An observation is
believed only about the push it can be tied to, by the push id in source, log or run.json. A request that
changes something is repeated only once it is proved that it did not happen. Every wait ends, in a result or
in a message that says what was waited for.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from launch.campaign.decide import (
    FOREIGN_END,
    FOREIGN_RUN,
    PROOF,
    STALL,
    STATUS,
    ConfirmPush,
    Decision,
    DeleteEmptyKernel,
    End,
    Fail,
    Fetch,
    Finish,
    NoteDropped,
    NoteRefusal,
    Observation,
    Observe,
    RedoInput,
    ReuseOutput,
    SendPush,
    TakeOver,
    Wait,
    decide,
)
from launch.campaign.ledger import (
    DONE,
    FAILED,
    INTENDED,
    PUSHED,
    REPLACED,
    UNFINISHED,
    KernelEntry,
    Ledger,
    Push,
)
from launch.campaign.library_dataset import Publisher
from launch.campaign.monitor import RunMonitor
from launch.campaign.outputs import OUTPUTS, keep_log
from launch.campaign.push import KernelPusher, OutputReuse
from launch.campaign.quota import Capacity, expected_seconds
from launch.campaign.state import CampaignState, CampaignStoppedError, KernelStatus
from launch.campaign.waits import Timeouts, describe_seconds
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import (
    CapacityError,
    ClientError,
    NoResponseError,
    RefusedError,
    UnexpectedResponseError,
)
from launch.kaggle_api.types import Quota
from launch.packaging.builder import Checkout
from launch.plan import Kernel
from lib.runtime.run_record import RECORD_NAME

logger = logging.getLogger(__name__)


class Campaign:
    """A campaign that runs.

    Attributes:
        state: ledger, progress, statuses, failures. The goal of its progress may change between two calls of
            `run`.
        source: what kernels are rendered from.
        publisher: of the library dataset.
    """

    def __init__(
        self,
        *,
        kaggle: Kaggle,
        source: Checkout,
        kernels: Sequence[Kernel],
        ledger: Ledger,
        folder: Path,
        dataset: Path | None,
        timeouts: Timeouts,
        show: Callable[[Sequence[KernelStatus], Quota | None], None] = lambda statuses, quota: None,
        reuse: bool = False,
        reserve: float = 0.0,
        goal: Collection[str] | None = None,
    ) -> None:
        """Start from the state that the ledger holds.

        Args:
            kaggle: the account.
            source: what kernels are rendered from.
            kernels: the plan, in an order in which it can run.
            ledger: what happened so far.
            folder: of the campaign: outputs/, pushes/, logs/.
            dataset: the folder of the library dataset; None publishes nothing.
            timeouts: limits of all waits.
            show: receives the statuses after every poll.
            reuse: reuse finished outputs of other campaigns even if other code made them.
            reserve: hours of the weekly GPU quota to leave to other work.
            goal: slugs of the kernels that `run` brings to their ends; None for all. Open pushes of the
                others are followed too.
        """
        self.source = source
        self.state = CampaignState(kernels, ledger, goal=goal)
        self._kaggle, self._folder, self._timeouts, self._show = kaggle, folder, timeouts, show
        self._restart()
        self._capacity = Capacity(kaggle, self.state, timeouts, reserve=reserve)
        self.publisher = Publisher(kaggle, ledger, dataset, source.bundle, timeouts)
        self._reuse = OutputReuse(kaggle, source, self.state, folder, reuse=reuse)
        self._pusher = KernelPusher(kaggle, source, self.state, folder, least_limit=timeouts.least_limit)
        self._monitor = RunMonitor(kaggle, folder)
        self._deletions: dict[str, int] = {}  # of empty kernels, by slug
        self._followed: set[str] = set()  # slugs whose open push this process sent, or saw queued or running

    def _restart(self) -> None:
        """Update the ledger for a new run of the command: a person has seen the failures and continues."""
        for kernel in self.state.progress.kernels:
            entry = self.state.progress.entry(kernel)
            last = entry.last
            is_repeated = last is not None and last.state in (UNFINISHED, REPLACED)
            spent = is_repeated and (
                entry.attempts >= self._timeouts.pushes or entry.replaced >= self._timeouts.replacements
            )
            if spent or (last is not None and last.state == FAILED):
                entry.series = len(entry.pushes)
            if (
                entry.output is not None
                and not (self._folder / OUTPUTS / kernel.slug / RECORD_NAME).is_file()
            ):
                # Somebody removed it here. Kaggle still holds it, and it is fetched again.
                if last is not None and last.state == DONE and last.push_id == entry.output.push_id:
                    last.state = PUSHED
                entry.output = None

    # --- the whole plan -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Bring every kernel of the goal to a verified output.

        Raises:
            CampaignStoppedError: something failed that waiting does not fix; everything else was brought to
                its end.
            CredentialsError: the service does not accept the credentials any more.
        """
        self._capacity.announce()
        progress = self.state.progress
        while True:
            self.publisher.step()
            self._poll()
            self._show(list(self.state.statuses.values()), self._capacity.quota)
            if all(progress.is_done(kernel) for kernel in progress.wanted) and self.publisher.is_settled:
                break
            if not self._can_continue():
                raise CampaignStoppedError(self._reasons())
            time.sleep(self._timeouts.poll)
        for problem in self.publisher.problems:
            logger.warning(
                "%s; the kernels carry the library themselves, so nothing else depends on it", problem
            )

    def _poll(self) -> None:
        """Poll all open pushes, and start all kernels that are ready.

        Raises:
            CampaignStoppedError: the service has been unreachable for too long.
            CredentialsError: it does not accept the credentials any more.
        """
        outage: ClientError | None = None
        for is_open in (True, False):  # a run that has ended frees a session for a kernel that is ready
            for kernel in self.state.progress.kernels:
                entry = self.state.progress.entry(kernel)
                if is_open:
                    is_next = entry.open is not None and kernel.slug not in self.state.failures
                else:
                    is_next = self._is_ready(kernel)
                try:
                    if is_next:
                        self._step(kernel)
                except (NoResponseError, RefusedError, UnexpectedResponseError) as error:
                    outage = error  # the other kernels are polled all the same
        self._tolerate_outage(outage)

    def _tolerate_outage(self, error: ClientError | None) -> None:
        """Continue without the service for as long as the time-out allows.

        Raises:
            CampaignStoppedError: it has been unreachable for longer.
        """
        timers, limit = self.state.timers, self._timeouts.outage_timeout
        if error is None:
            timers.stop("", "outage")
            return
        timers.log_once("", "outage", f"{error}; trying again for up to {describe_seconds(limit)}")
        if (waited := timers.waited("", "outage")) > limit:
            raise CampaignStoppedError(
                f"Kaggle has not answered for {describe_seconds(waited)}: {error}\n"
                "Kernels that run there continue. Rerun the command when Kaggle answers: it continues from "
                "here."
            ) from error

    def _can_continue(self) -> bool:
        """Whether anything is open, can still start, or is being uploaded."""
        for kernel in self.state.progress.kernels:
            entry = self.state.progress.entry(kernel)
            if entry.open is not None and kernel.slug not in self.state.failures:
                return True
            if self._is_ready(kernel) and not self._capacity.is_blocked(kernel):
                return True
        return not self.publisher.is_settled

    def _reasons(self) -> str:
        progress = self.state.progress
        lines = [f"{slug}: {message}" for slug, message in self.state.failures.items()]
        if self.source.thin and self.publisher.failed:
            lines += self.publisher.problems
        ready = [kernel for kernel in progress.kernels if self._is_ready(kernel)]
        lines += [f"{kernel.slug}: {why}" for kernel in ready if (why := self._capacity.is_blocked(kernel))]
        done = [kernel.slug for kernel in progress.wanted if progress.is_done(kernel)]
        kept = f"\nDone and kept: {', '.join(done)}." if done else ""
        reasons = "\n  - ".join(lines)
        return f"the campaign stopped:\n  - {reasons}{kept}\nFix the cause and rerun the command."

    def _is_ready(self, kernel: Kernel) -> bool:
        """Whether a kernel may start, sessions and quota aside."""
        if kernel.slug in self.state.failures or (self.source.thin and not self.publisher.is_ready):
            return False
        return self.state.progress.is_due(kernel)

    # --- single kernels -------------------------------------------------------------------------------------

    def push_only(self, kernels: Sequence[Kernel]) -> None:
        """Push these kernels and return when Kaggle has accepted them, without waiting for their ends.

        Raises:
            CampaignStoppedError: an input is missing, or a push was refused.
        """
        problems = []
        for kernel in kernels:
            if missing := self.state.progress.missing_inputs(kernel):
                problems.append(f"{kernel.slug} reads {', '.join(missing)}, not done yet: run them first")
            entry = self.state.progress.entry(kernel)
            if kernel.search is not None and entry.open is not None:
                # The next push of a search continues from the output of this one, if it has ended.
                self._step(kernel)
                self.state.failures.pop(kernel.slug, None)
            # An intended push is confirmed first, and sent if it did not happen.
            if entry.open is not None and entry.open.state != INTENDED:
                problems.append(f"{kernel.slug} was pushed and has not ended: see build_kernel.py status")
        if problems:
            raise CampaignStoppedError("nothing was pushed:\n  - " + "\n  - ".join(problems))
        for kernel in kernels:
            self._push(kernel)
        if self.state.failures:
            raise CampaignStoppedError(self._reasons())

    def _push(self, kernel: Kernel) -> None:
        """Push a kernel whatever its earlier pushes left, until Kaggle has accepted the push or it failed."""
        entry = self.state.progress.entry(kernel)
        entry.series, entry.output = len(entry.pushes), None
        self._reuse.excluded.add(kernel.slug)  # a kernel that is named is pushed, not reused
        while kernel.slug not in self.state.failures:
            outage: ClientError | None = None
            if missing := self.state.progress.missing_inputs(kernel):
                names = ", ".join(missing)
                self.state.fail(
                    kernel, f"reads {names}, to be made again: build_kernel.py run, or push it first"
                )
                break
            try:
                if entry.open is None and not self._capacity.has_session(kernel):
                    self._poll_others(kernel)
                if kernel.slug not in self.state.failures:
                    self._step(kernel)
            except (NoResponseError, UnexpectedResponseError) as error:
                outage = error
            self._tolerate_outage(outage)
            if entry.open is not None and entry.open.state != INTENDED:
                break
            time.sleep(self._timeouts.poll)

    def _poll_others(self, kernel: Kernel) -> None:
        """Poll the kernels that hold the sessions of a kernel's machine: they may have ended."""
        message = f"{kernel.slug}: waiting for a session of this campaign to end"
        self.state.timers.log_once(kernel.slug, "slot", message)
        for other in self._capacity.holding(kernel):
            if other.slug not in self.state.failures:
                self._step(other)
        if why := self._capacity.is_blocked(kernel):
            self.state.fail(kernel, why)

    # --- one kernel: observe, decide, save, act -------------------------------------------------------------

    def _step(self, kernel: Kernel) -> None:
        """Observe a kernel, decide and act, until nothing is left to do before the next poll."""
        entry = self.state.progress.entry(kernel)
        self.state.timers.waited(kernel.slug, STALL)  # begins it, unless it runs
        observation: Observation | None = Observation(
            deletions=self._deletions.get(kernel.slug, 0),
            may_reuse=self._reuse.is_possible(kernel, entry),
            was_rerun=kernel.slug not in self._followed,
            inputs=None if kernel.sources else (),
        )
        while observation is not None:
            decision = decide(entry, observation, self.state.elapsed(kernel), self._timeouts)
            observation = self._act(kernel, entry, observation, decision)

    def _act(
        self, kernel: Kernel, entry: KernelEntry, observation: Observation, decision: Decision
    ) -> Observation | None:
        """Save and carry out a decision. Returns the next observation, or None to wait for the next poll."""
        slug, state, push = kernel.slug, self.state, entry.open
        if not isinstance(decision, Observe | Wait | Fetch) or observation.has_resources is False:
            state.timers.stop(slug, STALL)
        match decision:
            case Observe(part):
                return self._observe(kernel, entry, observation, part)
            case Wait():
                self._wait(kernel, entry, decision)
            case SendPush() if state.progress.missing_inputs(kernel):
                pass  # an input of the push that did not happen is made again first
            case SendPush(message=message):
                if message:
                    state.timers.stop(slug, PROOF)
                    logger.info("%s: %s", slug, message)
                self._followed.add(slug)
                if push is None:
                    push = self._pusher.intend(kernel, entry)
                else:
                    state.send_again(push)
                return replace(observation, reply=self._pusher.send(kernel, push))
            case ConfirmPush() if push is not None:
                decision = replace(decision, url=decision.url or self._pusher.url_of(kernel))
                state.record(push, decision)
                state.timers.stop_all(slug)
                self._capacity.note_accepted(kernel)
                limit = describe_seconds(push.limit)
                logger.info("%s: pushed, version %s, at most %s", slug, decision.version or "unknown", limit)
                state.statuses[slug].update(
                    "pushed",
                    version=decision.version,
                    url=push.url,
                    expected=expected_seconds(kernel, state.ledger),
                )
            case NoteRefusal() if push is not None:
                state.record(push, decision)
                state.statuses[slug].update("refused, waiting")
                if decision.error is not None:
                    raise decision.error
                if isinstance(observation.reply and observation.reply.error, CapacityError):
                    self._deletions.pop(slug, None)  # such a refusal explains an empty kernel that it leaves
                self._capacity.note_refusal(kernel, decision)
                if decision.failure:
                    state.fail(kernel, decision.failure)
            case NoteDropped() if push is not None:
                state.record(push, decision)
                logger.info("%s: %s", slug, decision.message)
                state.statuses[slug].update("pushed without inputs", version=decision.version)
            case DeleteEmptyKernel() if push is not None:
                self._deletions[slug] = self._deletions.get(slug, 0) + 1
                logger.info("%s: %s", slug, decision.message)
                self._kaggle.delete(slug)
                state.record(push, NoteRefusal(note="deleted: it had no version"))
                state.statuses[slug].update("refused, waiting")
            case ReuseOutput():
                if not self._reuse.succeeds(kernel):
                    return replace(observation, may_reuse=False)
                state.timers.stop_all(slug)
                self._capacity.note_finished(kernel)
            case TakeOver(slug=source, message=message) | RedoInput(slug=source, message=message):
                logger.info("%s: %s", source, message)
                state.timers.stop_all(slug)
                if isinstance(decision, RedoInput) or not self._reuse.take_over(source):
                    self._reuse.discard(source)
            case Fetch() if push is not None:
                return replace(observation, fetched=self._monitor.fetch(kernel, observation))
            case Finish() if push is not None:
                self._finish(kernel, push, observation)
            case End() if push is not None:
                if decision.state == REPLACED:
                    self._reuse.checked.discard(slug)
                elif observation.output is not None:
                    keep_log(self._folder, slug, observation.output.listing)
                state.record(push, decision)
                state.statuses[slug].update(decision.state)
                if decision.failure:
                    state.fail(kernel, decision.failure)
                else:
                    logger.info("%s: %s", slug, decision.message)
            case Fail(message=message):
                state.fail(kernel, message)
            case _:
                raise AssertionError(f"{decision} does not fit the ledger's entry of {slug}")
        return None

    def _finish(self, kernel: Kernel, push: Push, observation: Observation) -> None:
        output, fetched = observation.output, observation.fetched
        assert output is not None and fetched is not None and fetched.record is not None, "it was fetched"
        keep_log(self._folder, kernel.slug, output.listing)
        push.state, push.ended_at = DONE, self.state.clock.stamp()
        self.state.finish(kernel, fetched.record, identity=push.identity, version=push.version, how="done")
        self._capacity.note_finished(kernel)

    def _observe(
        self, kernel: Kernel, entry: KernelEntry, observation: Observation, part: str
    ) -> Observation:
        """Call the service for one part of an observation."""
        match part:
            case "has_resources":
                return replace(observation, has_resources=self._capacity.has_resources(kernel))
            case "status":
                status, problem = self._monitor.status(kernel)
                if status is not None:
                    self.state.timers.stop(kernel.slug, STATUS)
                return replace(observation, status=status, status_problem=problem)
            case "source":
                return replace(observation, source=self._pusher.held_source(kernel, entry))
            case "inputs":
                return replace(observation, inputs=self._reuse.held_inputs(kernel))
            case "datasets":
                return replace(observation, datasets=self._monitor.datasets(kernel))
            case "is_empty":
                return replace(observation, is_empty=self._pusher.is_empty(kernel))
            case "log":
                return replace(observation, output=self._monitor.log(kernel))
            case "output":
                self.state.statuses[kernel.slug].update("fetching")
                return replace(observation, output=self._monitor.output(kernel))
        raise AssertionError(f"{part!r} cannot be observed of {kernel.slug}")

    def _wait(self, kernel: Kernel, entry: KernelEntry, decision: Wait) -> None:
        slug, timers, push = kernel.slug, self.state.timers, entry.open
        if decision.active:
            self._followed.add(slug)
        if decision.subject == FOREIGN_RUN:
            self._reuse.checked.discard(slug)  # its output is another one than the one before it
            timers.stop(slug, FOREIGN_END)
        if decision.note and push is not None:
            push.note = decision.note
        if decision.active and push is not None and not push.active:
            push.active = True
            self.state.ledger.save()
            self._monitor.warn_of_wrong_machine(kernel)
        if decision.status:
            self.state.statuses[slug].update(decision.status)
        if decision.subject:
            timers.waited(slug, decision.subject)  # begins the wait, unless it runs
            if decision.message:
                timers.log_once(slug, decision.subject, f"{slug}: {decision.message}")
        elif decision.message:
            logger.info("%s: %s", slug, decision.message)
