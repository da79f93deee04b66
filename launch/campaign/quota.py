"""Check sessions and GPU quota before a push, and plan the hours of a campaign over the weeks.

Hours are estimates until a fold of the campaign has run; then they are the measured time. An unknown quota
stops nothing: the service refuses a push that it has no quota for.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from launch import hours as estimates
from launch.campaign.decide import CANCELLED_NOTE, QUOTA, SESSION, NoteRefusal
from launch.campaign.ledger import DONE, INTENDED, LIMIT_NOTE, REFUSED, Ledger
from launch.campaign.outputs import OUTPUTS
from launch.campaign.spec import uses_emulator
from launch.campaign.state import CampaignState, CampaignStoppedError, machine_of
from launch.campaign.waits import LONGEST_SESSION, Timeouts, describe_seconds
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError
from launch.kaggle_api.types import Quota
from launch.plan import CPU_SESSIONS, GPU_SESSIONS, Kernel
from lib.config import Config
from lib.search_space import GPUS, expected_folds
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

# Hours on Kaggle, until one has run: estimates, not measurements.
PREPARE_HOURS = 1.0
ENVIRONMENT_CHECK_HOURS = 0.1  # of quota: the most that the check on GPUs is expected to cost
ENVIRONMENT_CHECK_LIMIT = 900.0  # seconds
_PROBE_FOLD_HOURS = 0.5  # on a CPU, for a fold of a linear probe
_EXPECTED_HOURS = {
    "weights": 0.1,
    "prepare": PREPARE_HOURS,
    "report": 0.1,
    "environment_check": ENVIRONMENT_CHECK_HOURS,
}
# The time limit of a push. A fold that may exceed it shortens its plan, so an estimate gets more room than a
# measured time; but a session that hangs costs quota until its limit.
_ROOM_FOR_ESTIMATE, _MOST_ROOM = 3.0, 3 * 3600.0  # a factor, and at most so many seconds beyond the estimate
_ROOM_FOR_MEASURED = 2.0
_START_UP = 600.0  # seconds of every limit: images that are pulled, mounts, slow starts
_CPU_LIMIT = 3600.0  # the least of a kernel that costs no quota
_LIMIT_GROWTH = 2.0  # after a push that reached its limit
_ROUNDING = 1e-9  # hours
_RESET_WEEKDAY = 5  # Saturday 00:00 UTC, where the service does not say

# Waits of a machine, which end when a push to it was accepted. HOLD: until the next push after one that was
# refused for sessions; SPENT: the same after one that was refused for quota; SHORT: less is left than a
# kernel is expected to take; HELD: for the message about cancelled runs that may hold sessions.
_HOLD, _SPENT, _SHORT, _HELD = "hold", "spent", "short of quota", "held"
_QUOTA_READ, _QUOTA_MESSAGE = "quota read", "quota message"


class Capacity:
    """Sessions and quota of the account.

    Attributes:
        state: of the campaign.
        quota: as it was read last; None where the service does not say.
    """

    def __init__(
        self, kaggle: Kaggle, state: CampaignState, timeouts: Timeouts, *, reserve: float = 0.0
    ) -> None:
        """Nothing is requested yet.

        Args:
            kaggle: the account.
            state: of the campaign.
            timeouts: limits of all waits.
            reserve: hours of the weekly quota that the campaign leaves to other work.
        """
        self._kaggle = kaggle
        self.state = state
        self._timeouts = timeouts
        self._reserve = reserve
        self.quota: Quota | None = None

    def announce(self) -> None:
        """Log what the campaign is expected to cost, what is left, and which kernel runs in which week.

        Raises:
            CampaignStoppedError: a kernel costs more than a week has.
            CredentialsError: the service does not accept the credentials.
        """
        self.read_quota()
        hours = self._hours_to_spend()
        if not hours:
            return
        cost = sum(hours.values())
        basis = "measured" if self._is_measured() else "estimated, not measured"
        if self.quota is None:
            reserved = f", so {self._reserve:g} h cannot be reserved" if self._reserve else ""
            logger.info(
                "about %.1f h of GPU quota to spend (%s); Kaggle does not say what is left%s",
                cost,
                basis,
                reserved,
            )
            return
        logger.info(
            "about %.1f h of GPU quota to spend (%s); %.1f of %.1f h are left%s, full again %s",
            cost,
            basis,
            self.quota.left,
            self.quota.allowed,
            f" ({self._reserve:g} h of them reserved for other work)" if self._reserve else "",
            _at(next_reset(self.quota)),
        )
        ours = self._ours(self.quota)
        if never := [self._never(slug, needed) for slug, needed in hours.items() if needed > ours.allowed]:
            raise CampaignStoppedError("\n".join(never))
        if cost > ours.left:
            for line in plan_over_weeks(hours, ours, after=read_before(self.state.progress.kernels)):
                logger.info("  %s", line)

    def has_resources(self, kernel: Kernel) -> bool:
        """Whether a kernel may start: a session of its machine and enough quota are free."""
        return self.has_session(kernel) and self.has_quota(kernel)

    def has_session(self, kernel: Kernel) -> bool:
        """Whether this campaign leaves a session of its machine free, and none was refused a moment ago."""
        if len(self.holding(kernel)) >= _sessions(kernel):
            return False
        return self.state.timers.is_over(machine_of(kernel), _HOLD, self._timeouts.session_retry)

    def holding(self, kernel: Kernel) -> list[Kernel]:
        """The kernels of the plan that hold a session of its machine."""
        progress = self.state.progress
        return [
            other
            for other in progress.kernels
            if other.needs_gpu == kernel.needs_gpu and progress.entry(other).open is not None
        ]

    def is_blocked(self, kernel: Kernel) -> str:
        """The reason why no session becomes free: failed kernels hold them all. Empty where one may."""
        holding = [other.slug for other in self.holding(kernel)]
        if len(holding) < _sessions(kernel) or not self.state.failures.keys() >= set(holding):
            return ""
        return (
            f"no session is free for it: {', '.join(holding)} failed here and may still run there. "
            "End them in the browser and rerun the command"
        )

    def has_quota(self, kernel: Kernel) -> bool:
        """Whether the quota suffices for a kernel beside those that run. If not, log the next reset."""
        if not kernel.needs_gpu:
            return True
        state, timers, refresh = self.state, self.state.timers, self._timeouts.quota_refresh
        if timers.is_over("GPU", _QUOTA_READ, refresh):
            self.read_quota()
        was_refused = not timers.is_over("GPU", _SPENT, refresh)
        if self.quota is None:
            return not was_refused
        needed, ours = expected_hours(kernel, state.ledger), self._ours(self.quota)
        if needed > ours.allowed:
            state.fail(kernel, self._never(kernel.slug, needed))
            return False
        if needed <= ours.left + _ROUNDING:
            if was_refused:
                return False  # a moment ago, whatever the figures say
            for subject in (_SPENT, _SHORT, _QUOTA_MESSAGE):
                timers.stop("GPU", subject)
            return True
        reason = f"{kernel.slug} needs about {needed:.1f} h, {ours.left:.1f} h are left"
        if self._reserve:
            reason += f" beside the {self._reserve:g} h reserved for other work"
        if (waited := timers.waited("GPU", _SHORT)) > self._timeouts.quota_timeout:
            state.fail(
                kernel,
                f"{reason}, for {describe_seconds(waited)}. Free some quota, or correct its expected hours "
                "(--set expected_hours=...), and rerun the command",
            )
            return False
        state.statuses[kernel.slug].update("waiting for quota")
        self._log_next_reset(reason)
        return False

    def note_finished(self, kernel: Kernel) -> None:
        """A fold is done: log what it took and what follows for the rest, and a plan that was shortened."""
        ledger, config = self.state.ledger, kernel.configs[0]
        output = self.state.progress.entry(kernel).output
        if kernel.kind != "train" or not kernel.needs_gpu or output is None:
            return
        if len(_measured_seconds(kernel, ledger)) == 1:
            rest = sum(self._hours_to_spend().values())
            logger.info(
                "%s took %s (expected: %s). The rest is planned with the measured time: about %.1f h of GPU "
                "quota, and at most %s for each of its folds",
                kernel.slug,
                describe_seconds(output.seconds),
                describe_seconds(_fold_hours(config) * 3600),
                rest,
                describe_seconds(time_limit(kernel, ledger, least=self._timeouts.least_limit)),
            )
            cost = sum(expected_hours(each, ledger) for each in self.state.progress.wanted if each.needs_gpu)
            if ledger.spec.hours is not None and cost > ledger.spec.hours:
                logger.warning(
                    "the campaign is expected to take %.1f h, more than its --hours %g. It continues; Ctrl-C "
                    "stops it, and `run --hours` with a smaller number makes a smaller campaign",
                    cost,
                    ledger.spec.hours,
                )
        if steps := shortened_steps(ledger, kernel):
            logger.warning(
                "%s: its plan was shortened to %s steps to end within its time limit. "
                "`push fold-%d` trains it again with a longer one",
                kernel.slug,
                f"{steps:,}",
                kernel.fold,
            )

    def read_quota(self) -> None:
        """Request the quota; the response is used for a while.

        Raises:
            CredentialsError: the service does not accept the credentials.
        """
        try:
            self.quota = self._kaggle.quota()
        except CredentialsError:
            raise
        except ClientError as error:
            self.state.timers.log_once("", "quota", f"{error}: continuing with an unknown quota")
            self.quota = None
        self.state.timers.restart("GPU", _QUOTA_READ)

    def note_refusal(self, kernel: Kernel, decision: NoteRefusal) -> None:
        """A push was refused for sessions or quota: hold the next pushes for a while, and log why."""
        machine, timers = machine_of(kernel), self.state.timers
        if decision.lacks == SESSION:
            timers.restart(machine, _HOLD)
            timers.waited(machine, SESSION)
            if not decision.failure:
                message = (
                    f"{decision.note} Waiting until another session of your account ends. A cancelled run "
                    "can hold its session until its kernel is deleted (kaggle kernels delete OWNER/SLUG)"
                )
                timers.log_once(machine, SESSION, message)
                if commands := self._deletions():  # they may be known later than the refusal
                    message = "Cancelled runs of this campaign may hold sessions. To free them:"
                    timers.log_once(machine, _HELD, "\n  ".join([message, *commands]))
        elif decision.lacks == QUOTA:
            self.read_quota()
            timers.restart("GPU", _SPENT)
            timers.waited("GPU", QUOTA)
            if not decision.failure:
                self._log_next_reset(decision.note)

    def _deletions(self) -> list[str]:
        """The commands that delete kernels without output whose last run was cancelled."""
        commands = []
        for slug, entry in self.state.ledger.kernels.items():
            ran = [push for push in entry.pushes if push.state not in (INTENDED, REFUSED)]
            if entry.output is None and ran and ran[-1].note in (CANCELLED_NOTE, LIMIT_NOTE):
                commands.append(f"kaggle kernels delete {self.state.ledger.owner}/{slug}")
        return commands

    def note_accepted(self, kernel: Kernel) -> None:
        """A push was accepted: the waits for its machine are over."""
        for subject in (_HOLD, _HELD, SESSION, _SPENT, _SHORT, QUOTA):
            self.state.timers.stop(machine_of(kernel), subject)

    def _log_next_reset(self, reason: str) -> None:
        log_once = self.state.timers.log_once
        if self.quota is None:
            log_once("GPU", _QUOTA_MESSAGE, f"{reason}. Trying again until there is quota")
            return
        text = (
            f"{reason}. What fits starts now; the rest waits until {_at(next_reset(self.quota))}, then the "
            "campaign continues by itself"
        )
        progress = self.state.progress
        is_open = {kernel.slug for kernel in progress.kernels if progress.entry(kernel).open is not None}
        waiting = {slug: hours for slug, hours in self._hours_to_spend().items() if slug not in is_open}
        weeks = plan_over_weeks(waiting, self._ours(self.quota), after=read_before(progress.kernels))
        lines = [f"  {line}" for line in weeks]
        log_once("GPU", _QUOTA_MESSAGE, "\n".join([text, *lines]))

    def _hours_to_spend(self) -> dict[str, float]:
        """Hours of the GPU kernels of the goal that are not done, by slug, in their order."""
        progress = self.state.progress
        return {
            kernel.slug: expected_hours(kernel, self.state.ledger)
            for kernel in progress.wanted
            if kernel.needs_gpu and not progress.is_done(kernel)
        }

    def _ours(self, quota: Quota) -> Quota:
        """What this campaign may still start: without the reserve, and without what its open pushes need.

        Kaggle counts a session when it has ended: the hours that running kernels still need are not free.
        """
        state = self.state
        running = sum(
            max(0.0, expected_hours(other, state.ledger) - state.clock.age(push.pushed_at) / 3600)
            for other in state.progress.kernels
            if other.needs_gpu and (push := state.progress.entry(other).open) is not None
        )
        allowed = max(0.0, quota.allowed - self._reserve)
        left = min(allowed, max(0.0, quota.left - self._reserve - running))
        return Quota(allowed - left, allowed, quota.refresh)

    def _never(self, slug: str, needed: float) -> str:
        """Why a kernel that costs more than a week's quota can never run, and what to do."""
        assert self.quota is not None
        reserved = f", of which {self._reserve:g} h are reserved (--reserve-hours)" if self._reserve else ""
        return (
            f"{slug} is expected to take {needed:.1f} h, the weekly quota is {self.quota.allowed:.1f} h"
            f"{reserved}: it can never run. Make it cheaper, or correct its expected hours "
            "(--set expected_hours=...)"
        )

    def _is_measured(self) -> bool:
        """Whether a fold of every experiment of the campaign has run."""
        folds = [kernel for kernel in self.state.progress.wanted if kernel.kind == "train"]
        return bool(folds) and all(_measured_seconds(kernel, self.state.ledger) for kernel in folds)


def _sessions(kernel: Kernel) -> int:
    return GPU_SESSIONS if kernel.needs_gpu else CPU_SESSIONS


# --- what kernels cost --------------------------------------------------------------------------------------


def expected_hours(kernel: Kernel, ledger: Ledger | None = None) -> float:
    """Expected hours of a kernel: what folds took in this campaign, else what its config says or an estimate.

    Args:
        kernel: of the plan.
        ledger: of the campaign; None: nothing was measured.
    """
    if kernel.kind == "train" and (seconds := _measured_seconds(kernel, ledger)):
        return max(seconds) / 3600
    return _planned(kernel, ledger)


def expected_seconds(kernel: Kernel, ledger: Ledger) -> float | None:
    """Seconds that a kernel is expected to take, for the table.

    A rehearsal has only its own times: the longest of this kind of kernel, None where none has run. The
    estimates are of Kaggle's machines.
    """
    if not uses_emulator():
        return expected_hours(kernel, ledger) * 3600
    outputs = [entry.output for entry in ledger.kernels.values() if entry.kind == kernel.kind]
    return max(
        (output.seconds for output in outputs if output is not None and output.seconds > 0), default=None
    )


def _measured_seconds(kernel: Kernel, ledger: Ledger | None, *, experiment: str = "") -> list[float]:
    """Seconds that folds took in this campaign, of the kernel's experiment or of the named one."""
    folds = f"hcd-{experiment or kernel.experiments[0]}-fold-"
    return [
        entry.output.seconds
        for slug, entry in (ledger.kernels.items() if ledger else ())
        if slug.startswith(folds) and entry.output is not None and entry.output.seconds > 0
    ]


def _fold_hours(config: Config) -> float:
    """Hours of a fold as its config says, else estimated."""
    return config.expected_hours or estimates.fold_hours(config)


def _planned(kernel: Kernel, ledger: Ledger | None = None) -> float:
    """Hours of a kernel of which none has run, 12 at most."""
    config = kernel.configs[0]
    if kernel.kind in _EXPECTED_HOURS:
        return _EXPECTED_HOURS[kernel.kind]
    if kernel.search is not None:
        trial = config.expected_hours or estimates.trial_hours(config)
        hours = max(0.1, expected_folds(kernel.search, config) * trial / GPUS)
    elif kernel.kind == "train":
        hours = _PROBE_FOLD_HOURS if config.train_mode == "linear_probe" else _fold_hours(config)
    elif kernel.kind == "embed":
        hours = config.expected_hours or estimates.embedding_hours(config)
    elif kernel.kind == "pretrain":
        hours = config.pretrain_hours or estimates.pretraining_hours(config)
    else:
        assert kernel.kind == "inference", f"{kernel.kind} has no expected hours"
        hours = _inference_hours(kernel, ledger)
    return min(LONGEST_SESSION / 3600, hours)


def _inference_hours(kernel: Kernel, ledger: Ledger | None) -> float:
    """The estimate, corrected by how much slower or faster the folds are than theirs."""
    folds = [len(numbers) for numbers in kernel.folds]
    estimate = estimates.inference_hours(kernel.configs, folds)
    corrections = []
    for name, config in zip(kernel.experiments, kernel.configs, strict=True):
        if config.train_mode != "linear_probe":
            measured = _measured_seconds(kernel, ledger, experiment=name)
            known = max(measured) / 3600 if measured else _fold_hours(config)
            corrections.append(known / estimates.fold_hours(config))
    return estimate * max(corrections, default=1.0)


def time_limit(kernel: Kernel, ledger: Ledger | None = None, *, least: float = 0.0) -> float:
    """Seconds after which Kaggle ends a session, 12 hours at most.

    Three times the estimate, but at most three hours more; twice the measured time once a fold of the
    experiment has run; ten minutes of start-up each. After a push that was cut off, or that shortened its
    plan, it is twice that push's limit, even when the command was rerun meanwhile.

    Args:
        kernel: to be pushed.
        ledger: of the campaign; None: nothing was measured or pushed.
        least: seconds, on a machine that the estimates are not about.
    """
    if kernel.kind == "environment_check":
        return ENVIRONMENT_CHECK_LIMIT
    seconds = expected_hours(kernel, ledger) * 3600
    if kernel.kind == "train" and _measured_seconds(kernel, ledger):
        limit = _ROOM_FOR_MEASURED * seconds
    else:
        limit = min(_ROOM_FOR_ESTIMATE * seconds, seconds + _MOST_ROOM)
    limit = max(limit + _START_UP, least, 0.0 if kernel.needs_gpu else _CPU_LIMIT)
    return float(min(max(limit, _LIMIT_GROWTH * _reached_limit(kernel, ledger)), LONGEST_SESSION))


def _reached_limit(kernel: Kernel, ledger: Ledger | None) -> float:
    """The longest limit that did not suffice for a kernel: it was cut off, or shortened its plan; else 0."""
    entry = ledger.kernels.get(kernel.slug) if ledger else None
    if ledger is None or entry is None:
        return 0.0
    reached = 0.0
    for push in entry.pushes:
        if push.state == DONE:
            reached = push.limit if shortened_steps(ledger, kernel) else 0.0
        elif push.note == LIMIT_NOTE:
            reached = max(reached, push.limit)
    return reached


def shortened_steps(ledger: Ledger, kernel: Kernel) -> int:
    """The steps to which the time limit shortened the plan of a fold's fetched output; 0: it did not."""
    steps = []
    for path in sorted((ledger.folder / OUTPUTS / kernel.slug).glob("history-*.jsonl")):
        try:
            last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
            steps.append(int(last["shortened_to"]))
        except (IndexError, KeyError, TypeError, *UNREADABLE):
            continue
    return min(steps, default=0)


def next_reset(quota: Quota, moment: datetime | None = None) -> datetime:
    """The next reset of the quota: what the service says, else the next Saturday 00:00 UTC."""
    moment = moment or datetime.now(UTC)
    if quota.refresh is not None and quota.refresh > moment:
        return quota.refresh
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    days = (_RESET_WEEKDAY - midnight.weekday()) % 7 or 7
    return midnight + timedelta(days=days)


def read_before(kernels: Sequence[Kernel]) -> dict[str, set[str]]:
    """For each kernel the slugs of all that it reads, directly or indirectly."""
    before: dict[str, set[str]] = {}
    for kernel in kernels:  # in an order in which they can run
        before[kernel.slug] = set(kernel.sources).union(*(before.get(slug, ()) for slug in kernel.sources))
    return before


def plan_over_weeks(
    hours: Mapping[str, float],
    quota: Quota,
    *,
    after: Mapping[str, Collection[str]],
    moment: datetime | None = None,
) -> list[str]:
    """One line for each week of quota: the kernels that fit, in their order, and what they cost.

    A kernel that does not fit what is left of a week waits for the next one; smaller ones after it start.

    Args:
        hours: of the GPU kernels still to run, by slug, in their order.
        quota: of now.
        after: for each slug those that must run before it.
        moment: now.
    """
    never = [slug for slug, cost in hours.items() if cost > quota.allowed]
    waiting = [slug for slug in hours if slug not in never]
    lines, left, when, reset = [], quota.left, "now", next_reset(quota, moment)
    while waiting:
        week: list[str] = []
        for slug in waiting:
            postponed = set(waiting) - set(week)
            if hours[slug] <= left + _ROUNDING and not postponed & set(after.get(slug, ())):
                week.append(slug)
                left -= hours[slug]
        lines.append(_line(when, week, hours))
        waiting = [slug for slug in waiting if slug not in week]
        left, when = quota.allowed, f"from {_at(reset)}"
        reset += timedelta(days=7)
    if never:
        lines.append(f"never: {', '.join(never)}: more than the {quota.allowed:.1f} h of a week")
    return lines


def _line(when: str, slugs: Sequence[str], hours: Mapping[str, float]) -> str:
    if not slugs:
        return f"{when}: nothing fits what is left of the week's quota"
    return f"{when}: {', '.join(slugs)} (about {sum(hours[slug] for slug in slugs):.1f} h of GPU quota)"


def _at(moment: datetime) -> str:
    return f"{moment:%a %d %b %H:%M} UTC"
