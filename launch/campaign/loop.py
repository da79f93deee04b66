"""Which kernel runs when: weights and prepare, folds, inference, the report; resumable, and never the same push twice.

The campaign looks at what is open, fetches what has ended, starts what is ready, and waits; the ledger knows what was
asked. Three rules hold everywhere. An answer is believed only about the push it can be tied to (the push id in source,
log or run.json). A request that changes something is repeated only once it is proved that it did not happen. Every wait
ends, in a result or in a sentence that says what was waited for.
"""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from launch.campaign.ledger import DONE, FAILED, INTENDED, PUSHED, UNFINISHED, Ledger
from launch.campaign.library_dataset import Publisher
from launch.campaign.monitor import RunMonitor
from launch.campaign.outputs import OUTPUTS
from launch.campaign.progress import Progress
from launch.campaign.push import KernelPusher
from launch.campaign.quota import Capacity
from launch.campaign.standings import KernelStatus, plan_standings
from launch.campaign.state import CampaignState, CampaignStoppedError
from launch.campaign.takeover import OutputReuse
from launch.campaign.waits import Timeouts, words
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, NoResponseError, RefusedError
from launch.kaggle_api.types import Quota
from launch.packaging.builder import Checkout
from launch.plan import Kernel
from lib.runtime.run_record import RECORD_NAME


class Campaign:
    """A campaign at work.

    Attributes:
        progress: what its plan has come to; its goal can be set anew before every `run`.
        desk: what its parts share: account, ledger, failures.
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
        pace: Timeouts,
        say: Callable[[str], None],
        show: Callable[[Sequence[KernelStatus], Quota | None], None] = lambda standings, quota: None,
        reuse: bool = False,
        goal: Collection[str] | None = None,
    ) -> None:
        """Take it up where its ledger stands.

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
        self.desk = CampaignState(
            kaggle=kaggle,
            source=source,
            ledger=ledger,
            folder=folder,
            pace=pace,
            say=say,
            standings=plan_standings(kernels, ledger),
        )
        self._capacity = Capacity(self.desk, self.progress)
        self.publisher = Publisher(kaggle, ledger, dataset, source.bundle, settle=pace.settle, say=say)
        self._takeover = OutputReuse(self.desk, self.progress, reuse)
        self._pusher = KernelPusher(self.desk, self.progress, self._capacity, self._takeover)
        self._follower = RunMonitor(self.desk, self._pusher)
        self._show = show

    def _take_up(self, outputs: Path, *, pushes: int) -> None:
        """What the ledger says that is no longer so, now that a person runs the command again."""
        for kernel in self.progress.kernels:
            entry = self.progress.entry(kernel)
            spent = entry.last is not None and entry.last.state == UNFINISHED and entry.attempts >= pushes
            if spent or (entry.last is not None and entry.last.state == FAILED):
                entry.series = len(entry.pushes)  # a person has looked, and runs the command again
            if entry.output is not None and not (outputs / kernel.slug / RECORD_NAME).is_file():
                entry.output = (
                    None  # somebody removed it here: Kaggle still holds it, and it is fetched again
                )
                if entry.last is not None and entry.last.state == DONE:
                    entry.last.state = PUSHED

    def run(self) -> None:
        """Bring every kernel of the plan to a verified output.

        Raises:
            CampaignStoppedError: something failed that waiting does not mend; the rest was brought to its end.
            CredentialsError: the service does not know us any more.
        """
        self._capacity.announce()
        while True:
            self.publisher.step()
            self._tick()
            self._show(list(self.desk.standings.values()), self._capacity.quota)
            if all(self.progress.is_done(kernel) for kernel in self.progress.wanted) and self.publisher.rests:
                break
            if not self._can_go_on():
                raise CampaignStoppedError(self._reasons())
            time.sleep(self.desk.pace.poll)
        for problem in self.publisher.problems:
            self.desk.say(
                f"warning: {problem}; the kernels carry the library themselves, so nothing else depends on it"
            )

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
                # What it came to, if it has ended, is where the next push goes on.
                self._follower.follow(kernel, entry, entry.open)
                self.desk.failures.pop(kernel.slug, None)
            if (
                entry.open is not None and entry.open.state != INTENDED
            ):  # whether that one happened is proved first
                problems.append(f"{kernel.slug} was pushed and has not ended: see build_kernel.py status")
        if problems:
            raise CampaignStoppedError("nothing was pushed:\n  - " + "\n  - ".join(problems))
        for kernel in kernels:
            self._push(kernel)
        if self.desk.failures:
            raise CampaignStoppedError(self._reasons())

    def _push(self, kernel: Kernel) -> None:
        """Push a kernel anew, whatever its earlier pushes left, and look until Kaggle has it or it failed."""
        entry = self.progress.entry(kernel)
        entry.series, entry.output = len(entry.pushes), None
        self._takeover.looked_for.add(kernel.slug)  # asked for by name: nothing is taken over
        while kernel.slug not in self.desk.failures:
            trouble: ClientError | None = None
            try:
                if entry.open is None and not self._capacity.has_session(kernel):
                    self._follow_others(kernel)
                if entry.open is None and kernel.slug not in self.desk.failures:
                    self._pusher.start(kernel, entry)
                elif entry.open is not None and entry.open.state == INTENDED:
                    self._pusher.prove(kernel, entry, entry.open)
            except NoResponseError as error:
                trouble = error
            self._bear(trouble)
            if entry.open is not None and entry.open.state != INTENDED:
                break
            time.sleep(self.desk.pace.poll)

    def _follow_others(self, kernel: Kernel) -> None:
        """Look at what holds the sessions of a kernel's machine: it may have ended since."""
        self.desk.clocks.once(
            kernel.slug, "slot", f"{kernel.slug}: waiting for a session of this campaign to end"
        )
        for other in self._capacity.holding(kernel):
            entry = self.progress.entry(other)
            if entry.open is not None and other.slug not in self.desk.failures:
                self._follower.follow(other, entry, entry.open)
        if why := self._capacity.is_blocked(kernel):
            self.desk.fail(kernel, why)

    def _tick(self) -> None:
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
                        self._follower.follow(kernel, entry, entry.open)
                    elif not follow and self._is_ready(kernel):
                        self._pusher.start(kernel, entry)
                except (NoResponseError, RefusedError) as error:
                    trouble = error  # the other kernels are looked at all the same
        self._bear(trouble)

    def _bear(self, trouble: ClientError | None) -> None:
        """Go on though the service did not answer, for as long as the pace allows.

        Raises:
            CampaignStoppedError: it has not answered for longer.
        """
        if trouble is None:
            self.desk.clocks.forget("", "outage")
            return
        self.desk.clocks.once(
            "", "outage", f"{trouble}; trying again for up to {words(self.desk.pace.outage)}"
        )
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
            if self._is_ready(kernel) and not self._capacity.is_blocked(kernel):
                return True
        return not self.publisher.rests

    def _reasons(self) -> str:
        lines = [f"{slug}: {text}" for slug, text in self.desk.failures.items()]
        if self.desk.source.thin and self.publisher.failed:
            lines += self.publisher.problems
        ready = [kernel for kernel in self.progress.kernels if self._is_ready(kernel)]
        lines += [f"{kernel.slug}: {why}" for kernel in ready if (why := self._capacity.is_blocked(kernel))]
        done = [kernel.slug for kernel in self.progress.wanted if self.progress.is_done(kernel)]
        kept = f"\nDone and kept: {', '.join(done)}." if done else ""
        return (
            "the campaign stopped:\n  - "
            + "\n  - ".join(lines)
            + f"{kept}\nMend the cause and run the same command again."
        )

    def _is_ready(self, kernel: Kernel) -> bool:
        """Whether it may be started as far as this campaign goes; whether there is something to run on is asked then."""
        if kernel.slug in self.desk.failures or (self.desk.source.thin and not self.publisher.is_ready):
            return False
        return self.progress.is_due(kernel)
