"""Finished outputs of other campaigns, used where they are what this one would compute: quota is not spent twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.campaign.ledger import KernelEntry
from launch.campaign.outputs import NoRecordError, fetch_output, peek_record
from launch.campaign.progress import Progress
from launch.campaign.state import CampaignState
from launch.kaggle_api.errors import ClientError
from launch.plan import Kernel
from lib.config import EXPECTATIONS

_NEVER = ("inference", "report", "environment_check")  # cost little, or say what holds now
_OF_THE_DATA = ("pretrain", "embed", "train", "search")  # kinds whose record names the data they read


@dataclass
class OutputReuse:
    """Looks once for the output that Kaggle holds of a kernel, before this campaign pushes it for the first time.

    Attributes:
        desk: what the parts of the campaign share.
        progress: of its plan.
        reuse: take over outputs even if other code made them.
        looked_for: slugs that are not looked for (any more).
    """

    desk: CampaignState
    progress: Progress
    reuse: bool
    looked_for: set[str] = field(default_factory=set)

    def succeeds(self, kernel: Kernel, entry: KernelEntry) -> bool:
        """Whether a kernel that is shown as complete needs no push, because its output was taken over."""
        if entry.pushes or kernel.slug in self.looked_for or kernel.kind in _NEVER:
            return False
        self.looked_for.add(kernel.slug)
        try:
            listing = self.desk.kaggle.output(kernel.slug)
            content = peek_record(self.desk.kaggle, kernel.slug, listing, folder=self.desk.outputs)
        except (NoRecordError, ClientError):
            return False
        if not self._is_the_same(kernel, content):
            return False
        if content.get("bundle_id") != self.desk.source.bundle and not self.reuse:
            self.desk.say(
                f"{kernel.slug}: Kaggle holds a finished output that other code made "
                f"(bundle {str(content.get('bundle_id'))[:12]}); it is made again. --reuse takes such outputs over"
            )
            return False
        try:
            record = fetch_output(
                self.desk.kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self.desk.outputs
            )
        except ClientError as error:
            self.desk.say(f"{kernel.slug}: {error}; it is made again")
            return False
        how = f"taken over from an earlier campaign (push {record.push_id})"
        self.desk.finish(
            kernel, entry, record, identity=self.progress.identity(kernel), version=None, how=how
        )
        return True

    def _is_the_same(self, kernel: Kernel, content: Mapping[str, Any]) -> bool:
        """Whether a record is of the kernel, its config and its inputs, code aside."""
        config, theirs = kernel.configs[0].to_dict(), content.get("config")
        causes = {knob: value for knob, value in config.items() if knob not in EXPECTATIONS}
        same = (
            isinstance(theirs, dict) and {k: v for k, v in theirs.items() if k not in EXPECTATIONS} == causes
        )
        if (
            content.get("kind") != kernel.kind
            or content.get("complete") is not True
            or not content.get("push_id")
        ):
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
        if kernel.kind in _OF_THE_DATA:
            sources = [self.desk.ledger.kernels[slug] for slug in kernel.sources]
            prepared = next(source.output for source in sources if source.kind == "prepare")
            right = content.get("experiment") == kernel.experiments[0] and content.get("fold") == kernel.fold
            return right and prepared is not None and content.get("data_id") == prepared.key
        return True
