"""What the parts of a campaign share, and the one way each end is noted in the ledger and told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launch.campaign.clock import Clock
from launch.campaign.ledger import UNFINISHED, KernelEntry, Ledger, Output, Push
from launch.campaign.outputs import OUTPUTS, output_key
from launch.campaign.standings import KernelStatus
from launch.campaign.waits import Timeouts, WaitTimers, words
from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.packaging.builder import Checkout
from launch.plan import Kernel
from lib.runtime.run_record import RunRecord


class CampaignStoppedError(LaunchError):
    """The campaign cannot go on; the message lists every reason. What was done stands in the ledger."""


@dataclass(kw_only=True)
class CampaignState:
    """What the parts of a campaign share.

    Attributes:
        kaggle: the account.
        source: what kernels are rendered from.
        ledger: what happened so far.
        folder: of the campaign: outputs/, pushes/, logs/.
        pace: waits.
        say: takes a line that stays.
        standings: how each kernel stands, by slug.
        failures: why a kernel is not gone on with, by slug.
        moments: of this process.
        clocks: of its waits.
    """

    kaggle: Kaggle
    source: Checkout
    ledger: Ledger
    folder: Path
    pace: Timeouts
    say: Callable[[str], None]
    standings: dict[str, KernelStatus]
    failures: dict[str, str] = field(default_factory=dict)
    moments: Clock = field(default_factory=Clock)
    clocks: WaitTimers = field(init=False)

    def __post_init__(self) -> None:
        self.clocks = WaitTimers(self.say)

    @property
    def outputs(self) -> Path:
        """The folder of all outputs."""
        return self.folder / OUTPUTS

    def end(self, kernel: Kernel, push: Push, state: str, note: str) -> None:
        """A push ended without its output."""
        push.state, push.note, push.ended_at = state, note, self.moments.stamp()
        self.ledger.save()
        self.standings[kernel.slug].turn(state)
        if state == UNFINISHED:
            self.say(f"{kernel.slug}: did not finish ({note})")

    def fail(self, kernel: Kernel, text: str) -> None:
        """A kernel came to something that waiting does not mend: this run of the campaign does not go on with it."""
        self.failures[kernel.slug] = text
        self.standings[kernel.slug].turn("failed")
        self.say(f"{kernel.slug}: failed; {text.splitlines()[0]}")

    def finish(
        self,
        kernel: Kernel,
        entry: KernelEntry,
        record: RunRecord,
        *,
        identity: str,
        version: int | None,
        how: str,
    ) -> None:
        """A kernel's output is here, verified: it is what its readers read from now on."""
        seconds = float(record.seconds.get("total", 0.0))
        fold = record.scores.get("fold") or record.scores.get("search")
        auc = float(fold["auc"]) if isinstance(fold, dict) and "auc" in fold else None
        entry.output = Output(
            push_id=record.push_id,
            bundle_id=record.bundle_id,
            identity=identity,
            key=output_key(record),
            seconds=seconds,
            auc=auc,
            version=version,
            fetched_at=self.moments.stamp(),
        )
        self.ledger.save()
        self.standings[kernel.slug].turn("done", auc=auc, version=version)
        self.say(
            f"{kernel.slug}: {how} in {words(seconds)}" + (f", AUC {auc:.4f}" if auc is not None else "")
        )
