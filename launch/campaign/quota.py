"""What there is to run on, sessions and the week's GPU quota: whether a kernel may start, and what is said while it may not.

Not knowing is no reason to stop: what the service refuses is what counts.
"""

from dataclasses import dataclass

from launch.campaign.progress import Progress
from launch.campaign.schedule import expected_hours, next_reset, plan_over_weeks
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.waits import words
from launch.kaggle_api.errors import CapacityError, ClientError, CredentialsError, QuotaError
from launch.kaggle_api.types import Quota
from launch.plan import CPU_SESSIONS, GPU_SESSIONS, Kernel

_WAITS = ("hold", "capacity", "spent", "no quota")  # of a machine, over when a push to it was accepted


@dataclass
class Capacity:
    """Sessions and quota of the account.

    Attributes:
        desk: what the parts of the campaign share.
        progress: of its plan.
        quota: as it was read last; None where the service does not say.
    """

    desk: CampaignState
    progress: Progress
    quota: Quota | None = None

    def announce(self) -> None:
        """Say what the campaign is expected to cost, what is left, and which kernel runs in which week.

        Raises:
            CampaignStoppedError: a kernel costs more than a week has.
            CredentialsError: the service does not know us.
        """
        self.read_quota()
        hours = self._hours_to_spend()
        if not hours:
            return
        cost = sum(hours.values())
        if self.quota is None:
            self.desk.say(f"about {cost:.1f} h of GPU quota to spend; Kaggle does not say what is left")
            return
        self.desk.say(
            f"about {cost:.1f} h of GPU quota to spend; {self.quota.left:.1f} of {self.quota.allowed:.1f} h are left, "
            f"full again {next_reset(self.quota):%a %d %b %H:%M} UTC"
        )
        for slug, needed in hours.items():
            if needed > self.quota.allowed:
                raise CampaignStoppedError(
                    f"{slug} is expected to take {needed:.1f} h, the weekly quota is {self.quota.allowed:.1f} h: it can never "
                    "run. Make it cheaper, or correct its `expected_hours`."
                )
        if cost > self.quota.left:
            for line in plan_over_weeks(hours, self.quota):
                self.desk.say(f"  {line}")

    def has_session(self, kernel: Kernel) -> bool:
        """Whether a session of its machine is free, as far as this campaign takes them and the service told."""
        if len(self.holding(kernel)) >= _sessions(kernel):
            return False
        return self.desk.clocks.is_over(_machine(kernel), "hold", self.desk.pace.capacity)

    def holding(self, kernel: Kernel) -> list[Kernel]:
        """The kernels of the plan that have a session of its machine."""
        return [
            each
            for each in self.progress.kernels
            if each.needs_gpu == kernel.needs_gpu and self._is_at_work(each)
        ]

    def is_blocked(self, kernel: Kernel) -> str:
        """Why no session of its machine will be given back: what failed holds them all. Empty where one may become free."""
        holding = [each.slug for each in self.holding(kernel)]
        if len(holding) < _sessions(kernel) or not self.desk.failures.keys() >= set(holding):
            return ""
        return f"no session is free for it: {', '.join(holding)} failed here and may still run there"

    def has_quota(self, kernel: Kernel) -> bool:
        """Whether the quota suffices for a kernel beside what runs; says when it is back where it does not."""
        if not kernel.needs_gpu:
            return True
        clocks, every = self.desk.clocks, self.desk.pace.quota_every
        if clocks.is_over("GPU", "quota read", every):
            self.read_quota()
        refused = not clocks.is_over("GPU", "spent", every)
        if self.quota is None:
            return not refused
        running = sum(
            max(0.0, expected_hours(other, self.desk.ledger) - self.desk.moments.age(push.pushed_at) / 3600)
            for other in self.progress.kernels
            if other.needs_gpu and (push := self.progress.entry(other).open) is not None
        )
        need = expected_hours(kernel, self.desk.ledger)
        if self.quota.left - running >= need:
            if refused:
                return False  # a moment ago, whatever the figures say
            clocks.forget("GPU", "spent")
            clocks.forget("GPU", "quota")
            return True
        self.desk.standings[kernel.slug].turn("waiting for quota")
        self._say_when_it_is_back(
            f"{kernel.slug} needs about {need:.1f} h, {max(0.0, self.quota.left - running):.1f} h are left"
        )
        return False

    def read_quota(self) -> None:
        """Ask for the quota; the answer is kept for a while.

        Raises:
            CredentialsError: the service does not know us.
        """
        try:
            self.quota = self.desk.kaggle.quota()
        except CredentialsError:
            raise
        except ClientError as error:
            self.desk.clocks.once("", "quota", f"{error}: going on without knowing the quota")
            self.quota = None
        self.desk.clocks.start("GPU", "quota read")

    def sessions_were_taken(self, kernel: Kernel, error: CapacityError) -> None:
        """A push was refused because all sessions are at work: the next one waits, or the kernel fails."""
        machine, clocks, patience = _machine(kernel), self.desk.clocks, self.desk.pace.capacity_patience
        clocks.start(machine, "hold")
        if clocks.waited(machine, "capacity") > patience:
            self.desk.fail(kernel, f"{error}, for {words(patience)}: end the other sessions of your account")
        else:
            clocks.once(machine, "capacity", f"{error} Waiting for a free one: other sessions of yours run")

    def quota_was_spent(self, kernel: Kernel, error: QuotaError) -> None:
        """A push was refused because no quota is left: the next one waits, or the kernel fails."""
        self.read_quota()
        self.desk.clocks.start("GPU", "spent")
        if self.desk.clocks.waited("GPU", "no quota") >= self.desk.pace.quota_patience:
            self.desk.fail(kernel, f"{error}, for {words(self.desk.pace.quota_patience)}")
        else:
            self._say_when_it_is_back(str(error))

    def was_granted(self, kernel: Kernel) -> None:
        """A push was accepted: what was waited for on its machine is there."""
        for what in _WAITS:
            self.desk.clocks.forget(_machine(kernel), what)

    def _say_when_it_is_back(self, why: str) -> None:
        if self.quota is None:
            self.desk.clocks.once("GPU", "quota", f"{why}. Asking again until there is quota")
            return
        text = f"{why}. Waiting until {next_reset(self.quota):%a %d %b %H:%M} UTC, then going on by itself"
        at_work = {kernel.slug for kernel in self.progress.kernels if self._is_at_work(kernel)}
        waiting = {slug: hours for slug, hours in self._hours_to_spend().items() if slug not in at_work}
        lines = [f"  {line}" for line in plan_over_weeks(waiting, self.quota)]
        self.desk.clocks.once("GPU", "quota", "\n".join([text, *lines]))

    def _hours_to_spend(self) -> dict[str, float]:
        """Hours of the GPU kernels of the goal that are not done, by slug, in their order."""
        left = [
            kernel
            for kernel in self.progress.wanted
            if kernel.needs_gpu and not self.progress.is_done(kernel)
        ]
        return {kernel.slug: expected_hours(kernel, self.desk.ledger) for kernel in left}

    def _is_at_work(self, kernel: Kernel) -> bool:
        return self.progress.entry(kernel).open is not None


def _sessions(kernel: Kernel) -> int:
    return GPU_SESSIONS if kernel.needs_gpu else CPU_SESSIONS


def _machine(kernel: Kernel) -> str:
    return "GPU" if kernel.needs_gpu else "CPU"
