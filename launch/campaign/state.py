"""The state of a campaign: plan and ledger, the status of every kernel, and recorded decisions."""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launch.campaign.decide import ConfirmPush, Elapsed, End, NoteDropped, NoteRefusal
from launch.campaign.ledger import DROPPED, INTENDED, PUSHED, REFUSED, KernelEntry, Ledger, Output, Push
from launch.campaign.outputs import output_key
from launch.campaign.waits import Clock, WaitTimers, describe_seconds, seconds_since, steady
from launch.errors import LaunchError
from launch.plan import Kernel
from lib.runtime.run_record import RunRecord

logger = logging.getLogger(__name__)


class CampaignStoppedError(LaunchError):
    """The campaign cannot continue; the message lists every reason. The ledger holds what was done."""


# --- the status of kernels, for people ----------------------------------------------------------------------


@dataclass
class KernelStatus:
    """What the table shows of a kernel."""

    slug: str
    state: str = "waiting"
    since: float = field(default_factory=steady)  # NaN where it is not known
    version: int | None = None
    expected: float | None = None  # seconds it is expected to take, from `since`
    auc: float | None = None
    url: str = ""
    progress: str = ""  # of a run whose log is at hand, such as `epoch 2 of 5`

    def update(
        self,
        state: str,
        *,
        version: int | None = None,
        url: str = "",
        auc: float | None = None,
        expected: float | None = None,
    ) -> bool:
        """Set the state and what is known with it. Returns whether the state is a new one."""
        self.version = version if version is not None else self.version
        self.url = url or self.url
        self.auc = auc if auc is not None else self.auc
        self.expected = expected if expected is not None else self.expected
        if state == self.state:
            return False
        self.state, self.since = state, steady()
        return True


def plan_statuses(kernels: Iterable[Kernel], ledger: Ledger) -> dict[str, KernelStatus]:
    """The status of each kernel when a campaign starts, by slug."""
    statuses = {}
    for kernel in kernels:
        status = statuses[kernel.slug] = KernelStatus(kernel.slug)
        entry = ledger.entry(kernel.slug, kernel.kind)
        if entry.open is not None:
            status.update(entry.open.state, version=entry.open.version, url=entry.open.url)
            status.since = _when_sent(entry.open)
        if entry.output is not None:
            status.update("done", auc=entry.output.auc, version=entry.output.version)
    return statuses


def ledger_statuses(ledger: Ledger) -> list[KernelStatus]:
    """The status of each kernel in a ledger, without calling the service."""
    statuses = []
    for slug, entry in ledger.kernels.items():
        status = KernelStatus(slug)
        if entry.last is not None:
            push = entry.last
            status.version, status.url, status.state = push.version, push.url, push.state
            status.since = _when_sent(push)
        if entry.output is not None and entry.open is None:
            status.state, status.auc, status.version = "done", entry.output.auc, entry.output.version
        statuses.append(status)
    return statuses


def _when_sent(push: Push) -> float:
    """When a push was accepted, or sent, by `steady`."""
    return steady() - seconds_since(push.pushed_at or push.intended_at)


# --- the progress of the plan -------------------------------------------------------------------------------


@dataclass
class Progress:
    """A plan, and what the ledger knows of it.

    Attributes:
        kernels: the plan, in an order in which it can run.
        ledger: of the campaign.
        goal: slugs of the kernels to bring to their ends; None for all. Open pushes of the others are
            followed too.
    """

    kernels: Sequence[Kernel]
    ledger: Ledger
    goal: Collection[str] | None = None

    @property
    def wanted(self) -> list[Kernel]:
        """The kernels of the goal."""
        return [kernel for kernel in self.kernels if self.goal is None or kernel.slug in self.goal]

    def entry(self, kernel: Kernel) -> KernelEntry:
        """The ledger's entry of a kernel."""
        return self.ledger.entry(kernel.slug, kernel.kind)

    def is_done(self, kernel: Kernel) -> bool:
        """Whether its output was fetched, verified, and belongs to its present config and inputs."""
        entry = self.entry(kernel)
        if entry.output is None or entry.open is not None or self.missing_inputs(kernel):
            return False
        return entry.output.identity == self.identity(kernel)

    def is_due(self, kernel: Kernel) -> bool:
        """Whether a kernel may start: wanted, neither done nor open, and all its inputs are there."""
        wanted = self.goal is None or kernel.slug in self.goal
        return (
            wanted
            and self.entry(kernel).open is None
            and not self.is_done(kernel)
            and not self.missing_inputs(kernel)
            and not self._lacks_datasets(kernel)
        )

    def _lacks_datasets(self, kernel: Kernel) -> bool:
        """Whether an open push of another kernel with one of its datasets happened without some inputs."""
        open_pushes = [
            self.entry(other).open for other in self.kernels if set(other.datasets) & set(kernel.datasets)
        ]
        return any(push is not None and push.state == DROPPED for push in open_pushes)

    def missing_inputs(self, kernel: Kernel) -> list[str]:
        """Slugs of the kernels that it reads and that are not done."""
        by_slug = {other.slug: other for other in self.kernels}
        return [slug for slug in kernel.sources if slug not in by_slug or not self.is_done(by_slug[slug])]

    def identity(self, kernel: Kernel) -> str:
        """A hash of a kernel's configs and inputs, which must be done. They decide its output."""
        configs = [config.result_options() for config in kernel.configs]
        inputs: dict[str, str] = {}
        for slug in kernel.sources:
            output = self.ledger.kernels[slug].output
            assert output is not None, "the identity of a kernel needs its inputs"
            inputs[slug] = output.key
        parts = [
            kernel.kind,
            kernel.fold,
            kernel.folds,
            kernel.encoders,
            kernel.datasets,
            kernel.experiments,
            configs,
            inputs,
        ]
        parts += [kernel.average] if kernel.average != "mean" else []
        parts += [dict(kernel.facts)] if kernel.facts else []
        parts += [kernel.search.to_dict()] if kernel.search is not None else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def set_report_facts(self, slug: str, facts: Mapping[str, Any]) -> None:
        """Give the report its facts, and the search if one is done: both decide its output."""
        searches = tuple(
            kernel.slug for kernel in self.kernels if kernel.kind == "search" and self.is_done(kernel)
        )

        def with_facts(kernel: Kernel) -> Kernel:
            sources = tuple(source for source in kernel.sources if source not in searches)
            return replace(kernel, facts=facts, sources=(*sources, *searches))

        self.kernels = [with_facts(kernel) if kernel.slug == slug else kernel for kernel in self.kernels]


# --- the state ----------------------------------------------------------------------------------------------


class CampaignState:
    """What the loop of a campaign owns.

    Attributes:
        ledger: saved at every change.
        progress: of the plan.
        statuses: what the table shows, by slug.
        failures: why this run of the campaign gave kernels up, by slug.
        clock: the ages of time stamps.
        timers: of running waits.
    """

    def __init__(
        self, kernels: Sequence[Kernel], ledger: Ledger, *, goal: Collection[str] | None = None
    ) -> None:
        self.ledger = ledger
        self.progress = Progress(kernels, ledger, goal)
        self.statuses = plan_statuses(kernels, ledger)
        self.failures: dict[str, str] = {}
        self.clock = Clock()
        self.timers = WaitTimers()

    def elapsed(self, kernel: Kernel) -> Elapsed:
        """The seconds that a decision on a kernel depends on."""
        last = self.progress.entry(kernel).last
        waited = {**self.timers.of(machine_of(kernel)), **self.timers.of(kernel.slug)}
        if last is None:
            return Elapsed(waited=waited)
        clock = self.clock
        return Elapsed(
            since_push=clock.age(last.pushed_at), since_end=clock.age(last.ended_at), waited=waited
        )

    def intend(self, kernel: Kernel, *, bundle: str, limit: float) -> Push:
        """Record the intention of a push, before the request: a refused push again, or a new attempt."""
        entry = self.progress.entry(kernel)
        identity, now, last = self.progress.identity(kernel), self.clock.stamp(), entry.last
        if last is not None and last.state == REFUSED:
            push = last
            push.state, push.note, push.intended_at = INTENDED, "", now
            push.bundle_id, push.identity, push.limit = bundle, identity, limit
        else:
            push_id = f"{self.ledger.id}.{kernel.slug}.{len(entry.pushes) + 1}"
            push = Push(push_id=push_id, bundle_id=bundle, identity=identity, limit=limit, intended_at=now)
            entry.pushes.append(push)
        push.sends += 1
        self.ledger.save()
        return push

    def send_again(self, push: Push) -> None:
        """Count a repeated request of a push, before it is sent."""
        push.sends += 1
        self.ledger.save()

    def record(self, push: Push, decision: ConfirmPush | NoteRefusal | NoteDropped | End) -> None:
        """Change a push by a decision, and save the ledger."""
        apply(push, decision, stamp=self.clock.stamp())
        self.ledger.save()

    def discard(self, kernel: Kernel) -> None:
        """Forget the output of a kernel that Kaggle holds no more: the kernel is due again."""
        entry = self.progress.entry(kernel)
        entry.output, entry.series = None, len(entry.pushes)
        self.ledger.save()
        self.statuses[kernel.slug].update("waiting")

    def fail(self, kernel: Kernel, message: str) -> None:
        """Give a kernel up in this run of the campaign."""
        self.failures[kernel.slug] = message
        self.statuses[kernel.slug].update("failed")
        logger.info("%s: failed; %s", kernel.slug, message.splitlines()[0])

    def finish(
        self, kernel: Kernel, record: RunRecord, *, identity: str, version: int | None, how: str
    ) -> None:
        """Record an output that was fetched and verified: kernels that read it may start."""
        seconds = float(record.seconds.get("total", 0.0))
        scores = record.scores.get("fold") or record.scores.get("search")
        auc = float(scores["auc"]) if isinstance(scores, dict) and "auc" in scores else None
        self.progress.entry(kernel).output = Output(
            push_id=record.push_id,
            bundle_id=record.bundle_id,
            identity=identity,
            key=output_key(record),
            seconds=seconds,
            auc=auc,
            version=version,
            fetched_at=self.clock.stamp(),
        )
        self.ledger.save()
        self.statuses[kernel.slug].update("done", auc=auc, version=version)
        score = f", AUC {auc:.4f}" if auc is not None else ""
        logger.info("%s: %s in %s%s", kernel.slug, how, describe_seconds(seconds), score)


def apply(push: Push, decision: ConfirmPush | NoteRefusal | NoteDropped | End, *, stamp: str) -> None:
    """Change a push by a decision."""
    match decision:
        case ConfirmPush():
            push.state, push.version, push.pushed_at, push.url = (
                PUSHED,
                decision.version,
                stamp,
                decision.url,
            )
        case NoteRefusal():
            push.state, push.note = REFUSED, decision.note
            push.sends = max(0, push.sends - 1)  # that request was answered
        case NoteDropped():
            push.state, push.note, push.version, push.pushed_at = (
                DROPPED,
                decision.note,
                decision.version,
                stamp,
            )
        case End():
            push.state, push.note, push.ended_at = decision.state, decision.note, stamp
            push.mounted = dict(decision.mounted)


def machine_of(kernel: Kernel) -> str:
    """The machine that a kernel runs on: kernels of one machine share its sessions."""
    return "GPU" if kernel.needs_gpu else "CPU"
