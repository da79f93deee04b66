"""Check sessions and GPU quota before a push, and plan the hours of a campaign over the weeks.

An unknown quota stops nothing: the service refuses a push that it has no quota for.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from launch.campaign.decide import QUOTA, SESSION, NoteRefusal
from launch.campaign.ledger import Ledger
from launch.campaign.spec import uses_emulator
from launch.campaign.state import CampaignState, CampaignStoppedError, machine_of
from launch.campaign.waits import LONGEST_SESSION, Timeouts
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError
from launch.kaggle_api.types import Quota
from launch.plan import CPU_SESSIONS, GPU_SESSIONS, Kernel
from lib.search_space import GPUS, expected_folds

logger = logging.getLogger(__name__)

# Hours on Kaggle, until one has run: estimates, not measurements.
PREPARE_HOURS = 1.0
ENVIRONMENT_CHECK_HOURS = 0.1  # of quota: the most that the check on GPUs is expected to cost
ENVIRONMENT_CHECK_LIMIT = 900.0  # seconds
_PROBE_FOLD_HOURS = 0.5  # on a CPU, for a fold of a linear probe
_EXPECTED_HOURS = {
    "weights": 0.1,
    "prepare": PREPARE_HOURS,
    "inference": 0.25,
    "report": 0.1,
    "environment_check": ENVIRONMENT_CHECK_HOURS,
}
_RESET_WEEKDAY = 5  # Saturday 00:00 UTC, where the service does not say

# Waits of a machine, which end when a push to it was accepted. HOLD: until the next push after one that was
# refused for sessions; SPENT: the same after one that was refused for quota.
_HOLD, _SPENT = "hold", "spent"
_QUOTA_READ, _QUOTA_MESSAGE = "quota read", "quota message"


class Capacity:
    """Sessions and quota of the account.

    Attributes:
        state: of the campaign.
        quota: as it was read last; None where the service does not say.
    """

    def __init__(self, kaggle: Kaggle, state: CampaignState, timeouts: Timeouts) -> None:
        self._kaggle = kaggle
        self.state = state
        self._timeouts = timeouts
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
        if self.quota is None:
            logger.info("about %.1f h of GPU quota to spend; Kaggle does not say what is left", cost)
            return
        logger.info(
            "about %.1f h of GPU quota to spend; %.1f of %.1f h are left, full again %s",
            cost,
            self.quota.left,
            self.quota.allowed,
            _at(next_reset(self.quota)),
        )
        for slug, needed in hours.items():
            if needed > self.quota.allowed:
                raise CampaignStoppedError(
                    f"{slug} is expected to take {needed:.1f} h, the weekly quota is "
                    f"{self.quota.allowed:.1f} h: "
                    "it can never run. Make it cheaper, or correct its `expected_hours`."
                )
        if cost > self.quota.left:
            for line in plan_over_weeks(hours, self.quota):
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
        # Kaggle counts a session when it has ended: the hours that running kernels still need are not free.
        running = sum(
            max(0.0, expected_hours(other, state.ledger) - state.clock.age(push.pushed_at) / 3600)
            for other in state.progress.kernels
            if other.needs_gpu and (push := state.progress.entry(other).open) is not None
        )
        needed = expected_hours(kernel, state.ledger)
        if self.quota.left - running >= needed:
            if was_refused:
                return False  # a moment ago, whatever the figures say
            timers.stop("GPU", _SPENT)
            timers.stop("GPU", _QUOTA_MESSAGE)
            return True
        state.statuses[kernel.slug].update("waiting for quota")
        self._log_next_reset(
            f"{kernel.slug} needs about {needed:.1f} h, {max(0.0, self.quota.left - running):.1f} h are left"
        )
        return False

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
        elif decision.lacks == QUOTA:
            self.read_quota()
            timers.restart("GPU", _SPENT)
            timers.waited("GPU", QUOTA)
            if not decision.failure:
                self._log_next_reset(decision.note)

    def note_accepted(self, kernel: Kernel) -> None:
        """A push was accepted: the waits for its machine are over."""
        for subject in (_HOLD, SESSION, _SPENT, QUOTA):
            self.state.timers.stop(machine_of(kernel), subject)

    def _log_next_reset(self, reason: str) -> None:
        log_once = self.state.timers.log_once
        if self.quota is None:
            log_once("GPU", _QUOTA_MESSAGE, f"{reason}. Trying again until there is quota")
            return
        text = f"{reason}. Waiting until {_at(next_reset(self.quota))}, then the campaign continues by itself"
        progress = self.state.progress
        is_open = {kernel.slug for kernel in progress.kernels if progress.entry(kernel).open is not None}
        waiting = {slug: hours for slug, hours in self._hours_to_spend().items() if slug not in is_open}
        lines = [f"  {line}" for line in plan_over_weeks(waiting, self.quota)]
        log_once("GPU", _QUOTA_MESSAGE, "\n".join([text, *lines]))

    def _hours_to_spend(self) -> dict[str, float]:
        """Hours of the GPU kernels of the goal that are not done, by slug, in their order."""
        progress = self.state.progress
        return {
            kernel.slug: expected_hours(kernel, self.state.ledger)
            for kernel in progress.wanted
            if kernel.needs_gpu and not progress.is_done(kernel)
        }


def _sessions(kernel: Kernel) -> int:
    return GPU_SESSIONS if kernel.needs_gpu else CPU_SESSIONS


# --- what kernels cost --------------------------------------------------------------------------------------


def expected_hours(kernel: Kernel, ledger: Ledger | None = None) -> float:
    """Expected hours of a kernel: what other folds took in this campaign, else what its config says."""
    if kernel.kind == "train":
        folds = f"hcd-{kernel.experiments[0]}-fold-"
        seconds = [
            entry.output.seconds
            for slug, entry in (ledger.kernels.items() if ledger else ())
            if slug.startswith(folds) and entry.output is not None and entry.output.seconds > 0
        ]
        return max(seconds) / 3600 if seconds else _planned(kernel)
    return _planned(kernel)


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


def _planned(kernel: Kernel) -> float:
    config = kernel.configs[0]
    fold = _PROBE_FOLD_HOURS if config.train_mode == "linear_probe" else config.expected_hours
    if kernel.search is not None:
        return min(
            LONGEST_SESSION / 3600,
            max(0.1, expected_folds(kernel.search, config) * config.expected_hours / GPUS),
        )
    return {
        **_EXPECTED_HOURS,
        "train": fold,
        "embed": config.expected_hours,
        "pretrain": config.pretrain_hours,
    }.get(kernel.kind, 0.25)


def time_limit(kernel: Kernel, *, ended_before: int = 0) -> float:
    """Seconds after which Kaggle ends a session: three times the expected time, between one and twelve hours.

    Args:
        kernel: to be pushed.
        ended_before: number of pushes that reached their limit; each doubles it.
    """
    if kernel.kind == "environment_check":
        return ENVIRONMENT_CHECK_LIMIT
    return float(min(max(3 * _planned(kernel) * 3600, 3600.0) * 2**ended_before, LONGEST_SESSION))


def next_reset(quota: Quota, moment: datetime | None = None) -> datetime:
    """The next reset of the quota: what the service says, else the next Saturday 00:00 UTC."""
    moment = moment or datetime.now(UTC)
    if quota.refresh is not None and quota.refresh > moment:
        return quota.refresh
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    days = (_RESET_WEEKDAY - midnight.weekday()) % 7 or 7
    return midnight + timedelta(days=days)


def plan_over_weeks(hours: Mapping[str, float], quota: Quota, *, moment: datetime | None = None) -> list[str]:
    """One line for each week of quota: the kernels that fit, in their order, and what they cost.

    Args:
        hours: of the GPU kernels still to run, by slug, in their order.
        quota: of now.
        moment: now.
    """
    lines, left, when = [], quota.left, "now"
    reset = next_reset(quota, moment)
    week: list[str] = []
    for slug, cost in hours.items():
        if cost > left and cost <= quota.allowed:
            if week or when == "now":
                lines.append(_line(when, week, hours))
            week, left, when = [], quota.allowed, f"from {_at(reset)}"
            reset += timedelta(days=7)
        week.append(slug)
        left -= cost
    if week:
        lines.append(_line(when, week, hours))
    return lines


def _line(when: str, slugs: Sequence[str], hours: Mapping[str, float]) -> str:
    if not slugs:
        return f"{when}: nothing fits what is left of the week's quota"
    return f"{when}: {', '.join(slugs)} (about {sum(hours[slug] for slug in slugs):.1f} h of GPU quota)"


def _at(moment: datetime) -> str:
    return f"{moment:%a %d %b %H:%M} UTC"
