"""Push kernels, confirm pushes, and use outputs of other campaigns."""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.campaign.decide import HeldInput, PushReply, Source
from launch.campaign.ledger import (
    REFUSED,
    REPLACED,
    KernelEntry,
    Output,
    Push,
    campaign_names,
)
from launch.campaign.outputs import (
    OUTPUTS,
    NoRecordError,
    data_id_of,
    fetch_output,
    peek_record,
    peeked_key,
)
from launch.campaign.quota import time_limit
from launch.campaign.state import CampaignState
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, NoResponseError, UnexpectedResponseError
from launch.kaggle_api.types import ABSENT, Listing
from launch.packaging.builder import Checkout
from launch.packaging.bundle import carries_push_id, push_id_in
from launch.plan import Kernel
from lib.config import without_neutral
from lib.search_space import RECORDS, reusable_trials

logger = logging.getLogger(__name__)

PUSHES = "pushes"  # in the folder of a campaign
# Kernels that are always pushed: they cost little, or check the present state of Kaggle.
_NEVER_REUSED = ("inference", "report", "environment_check")
_SAME_BY_KEY = ("prepare", "weights")  # kinds whose key names the content of their files
_RECORD_DATA_ID = ("pretrain", "embed", "train", "search")  # kinds whose record names the data they read


class KernelPusher:
    """The one place that pushes kernels."""

    def __init__(
        self,
        kaggle: Kaggle,
        source: Checkout,
        state: CampaignState,
        folder: Path,
        *,
        least_limit: float,
    ) -> None:
        self._kaggle = kaggle
        self._source = source
        self._state = state
        self._folder = folder
        self._least_limit = least_limit

    def intend(self, kernel: Kernel, entry: KernelEntry) -> Push:
        """Record the intention of a push. A push that reached its limit is followed by a longer one."""
        limit = time_limit(kernel, self._state.ledger, least=self._least_limit)
        return self._state.intend(kernel, bundle=self._source.bundle, limit=limit)

    def send(self, kernel: Kernel, push: Push) -> PushReply:
        """Send a push whose intention is in the ledger."""
        folder = self._folder / PUSHES / kernel.slug
        outputs = {slug: self._state.ledger.kernels[slug].output for slug in kernel.sources}
        inputs = {slug: output.push_id for slug, output in outputs.items() if output is not None}
        self._source.write_kernel(
            kernel,
            folder,
            push_id=push.push_id,
            limit=push.limit,
            inputs=inputs,
            finished=self._finished_trials(kernel),
        )
        push.bundle_id = self._source.bundle
        try:
            pushed = self._kaggle.push(folder, limit=push.limit)
        except ClientError as error:
            return PushReply(error=error)
        return PushReply(version=pushed.version, url=pushed.url)

    def url_of(self, kernel: Kernel) -> str:
        """The page of a kernel on Kaggle."""
        return f"https://www.kaggle.com/code/{self._source.owner}/{kernel.slug}"

    def held_source(self, kernel: Kernel, entry: KernelEntry) -> Source:
        """The source that Kaggle holds of a kernel: whether it is the open push's, else who pushed it."""
        try:
            pulled = self._kaggle.pull(kernel.slug)
        except NoResponseError:
            if entry.ever_had_a_version:
                raise
            pulled = None  # Kaggle answers the pull of an empty kernel with an internal error
        if pulled is None:
            return Source(carries_push_id=False)
        if entry.open is not None and carries_push_id(pulled.source, entry.open.push_id):
            return Source(carries_push_id=True, version=pulled.version)
        pushed_by = self._describe_owner(entry, push_id_in(pulled.source, kernel.slug))
        return Source(carries_push_id=False, version=pulled.version, pushed_by=pushed_by)

    def _describe_owner(self, entry: KernelEntry, push_id: str) -> str:
        """Who made the push of an id, in words. The id begins with that of a campaign."""
        if not push_id:
            return "hand (its source carries no push id: the plain client, or Kaggle's site)"
        campaign = push_id.partition(".")[0]
        if push_id in [push.push_id for push in entry.pushes]:
            return f"this campaign (the earlier push {push_id})"
        if campaign == self._state.ledger.id:
            return f"a copy of this campaign's folder, or before its ledger was restored (push {push_id})"
        if name := campaign_names(self._folder.parent).get(campaign):
            return f"the campaign {name} of this checkout (push {push_id})"
        return f"the campaign {campaign} of another checkout (push {push_id})"

    def is_empty(self, kernel: Kernel) -> bool:
        """Whether Kaggle shows neither a run nor a source of a kernel."""
        try:
            if self._kaggle.status(kernel.slug).name != ABSENT:
                return False
        except UnexpectedResponseError:
            return False  # a run has a state, even one that this code does not know
        try:
            return self._kaggle.pull(kernel.slug) is None
        except NoResponseError:
            return True  # Kaggle answers the pull of an empty kernel with an internal error

    def _finished_trials(self, kernel: Kernel) -> list[dict[str, Any]]:
        """Finished trials of a search's last output. They travel in the script and are not run again."""
        if kernel.search is None:
            return []
        path = self._folder / OUTPUTS / kernel.slug / RECORDS
        try:
            records = reusable_trials(json.loads(path.read_bytes())["trials"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        if records:
            logger.info("%s: %d trials of its last output are not run again", kernel.slug, len(records))
        return records


class OutputReuse:
    """Finished outputs of other pushes, used where they are what this campaign would compute.

    Campaigns share slugs: what Kaggle holds under a slug may come from another one. It is reused before the
    first push of a kernel, and taken over where it replaced an output that a kernel reads.

    Attributes:
        reuse: use outputs even if other code made them.
        checked: slugs whose present output on Kaggle was checked already.
        excluded: slugs that are pushed in any case.
        redone: how often this process replaced the output of a kernel that others read, by slug.
    """

    def __init__(
        self, kaggle: Kaggle, source: Checkout, state: CampaignState, folder: Path, *, reuse: bool
    ) -> None:
        self._kaggle = kaggle
        self._source = source
        self._state = state
        self._outputs = folder / OUTPUTS
        self.reuse = reuse
        self.checked: set[str] = set()
        self.excluded: set[str] = set()
        self.redone: Counter[str] = Counter()

    def is_possible(self, kernel: Kernel, entry: KernelEntry) -> bool:
        """Whether an output should be checked before this campaign pushes the kernel: none of its pushes ran.

        A push that another version replaced leaves the output of that version.
        """
        none_ran = entry.last is None or entry.last.state in (REFUSED, REPLACED)
        is_known = kernel.slug in self.checked | self.excluded
        return none_ran and not is_known and kernel.kind not in _NEVER_REUSED

    def succeeds(self, kernel: Kernel) -> bool:
        """Fetch the output that Kaggle holds of a kernel if it can be reused. Returns whether it was."""
        self.checked.add(kernel.slug)
        slug, kaggle = kernel.slug, self._kaggle
        try:
            listing = kaggle.output(slug)
            content = peek_record(kaggle, slug, listing, folder=self._outputs)
        except (NoRecordError, ClientError):
            return False
        if not self._is_same(kernel, content):
            return False
        if content.get("bundle_id") != self._source.bundle and not self.reuse:
            logger.info(
                "%s: Kaggle holds a finished output that other code made (bundle %s); it is made again. "
                "--reuse uses such outputs",
                slug,
                str(content.get("bundle_id"))[:12],
            )
            return False
        try:
            self._take(kernel, listing, content, how="reused from an earlier campaign")
        except ClientError as error:
            logger.info("%s: %s; it is made again", slug, error)
            return False
        return True

    def held_inputs(self, kernel: Kernel) -> tuple[HeldInput, ...]:
        """What Kaggle holds of the outputs that a kernel reads, which must be done."""
        kernels = {other.slug: other for other in self._state.progress.kernels}
        return tuple(self._held(kernels[slug]) for slug in kernel.sources)

    def _held(self, kernel: Kernel) -> HeldInput:
        slug, output = kernel.slug, self._state.progress.entry(kernel).output
        assert output is not None, "the kernel that reads it is due"
        held = HeldInput(slug=slug, wanted=output.push_id, redone=self.redone[slug])
        content: dict[str, Any] = {}
        try:
            with tempfile.TemporaryDirectory() as folder:
                content = peek_record(self._kaggle, slug, self._kaggle.output(slug), folder=Path(folder))
        except (NoRecordError, ClientError):
            pass  # the status says why
        held = replace(held, push_id=str(content.get("push_id", "")))
        if held.push_id == held.wanted:
            return held
        try:
            status, pulled = self._kaggle.status(slug), self._kaggle.pull(slug)
        except ClientError:
            return held  # the kernel that reads it checks it by itself
        held = replace(held, status=status.name)
        if pulled is not None:
            versions = (pulled.version, output.version)
            # The version that Kaggle shows may lag behind, too: it is not later than one with a lower number.
            lags = versions[0] is not None and versions[1] is not None and versions[0] <= versions[1]
            held = replace(held, is_latest=lags or carries_push_id(pulled.source, held.wanted))
        return replace(held, misfit=self._misfit(kernel, output, content))

    def _misfit(self, kernel: Kernel, output: Output, content: Mapping[str, Any]) -> str:
        """Why an output cannot replace the one that the ledger holds; empty where it can."""
        if content.get("kind") != kernel.kind or content.get("complete") is not True:
            return f"it is not the complete output of a {kernel.kind} kernel"
        if kernel.kind in _SAME_BY_KEY:
            return "" if peeked_key(content) == output.key else "its data are others"
        if kernel.kind in _NEVER_REUSED or not self._is_same(kernel, content):
            return "it may have other options, data or datasets"
        if content.get("bundle_id") not in (self._source.bundle, output.bundle_id) and not self.reuse:
            return f"other code made it (bundle {str(content.get('bundle_id'))[:12]})"
        return ""

    def take_over(self, slug: str) -> bool:
        """Replace an output of the ledger by the one that Kaggle holds. Returns whether it was possible.

        Raises:
            NoResponseError: the service did not answer; observe the input again.
        """
        kernel = next(other for other in self._state.progress.kernels if other.slug == slug)
        output = self._state.progress.entry(kernel).output
        assert output is not None, "the kernel that reads it is due"
        try:
            listing = self._kaggle.output(slug)
            content = peek_record(self._kaggle, slug, listing, folder=self._outputs)
            if self._misfit(kernel, output, content):
                return False  # replaced once more since it was observed
            self._take(kernel, listing, content, how="taken over")
        except NoResponseError:
            raise
        except (NoRecordError, ClientError) as error:
            logger.info("%s: %s; it is made again", slug, error)
            return False
        self.redone[slug] += 1
        return True

    def discard(self, slug: str) -> None:
        """Have the output of a kernel made again."""
        self.redone[slug] += 1
        self.checked.add(slug)  # what Kaggle holds of it was found not to fit
        self._state.discard(next(other for other in self._state.progress.kernels if other.slug == slug))

    def _take(self, kernel: Kernel, listing: Listing, content: dict[str, Any], *, how: str) -> None:
        """Fetch an output and record it as that of a kernel, made by another campaign.

        Raises:
            ClientError: it cannot be fetched or used.
        """
        record = fetch_output(
            self._kaggle, kernel.slug, listing, content, kind=kernel.kind, folder=self._outputs
        )
        identity, how = self._state.progress.identity(kernel), f"{how} (push {record.push_id})"
        self._state.finish(kernel, record, identity=identity, version=None, how=how)

    def _is_same(self, kernel: Kernel, content: Mapping[str, Any]) -> bool:
        """Whether a record belongs to the kernel, its config and its inputs, whichever code made it."""
        is_complete = content.get("complete") is True and content.get("push_id")
        if content.get("kind") != kernel.kind or not is_complete:
            return False
        scores = content.get("scores")
        if kernel.kind == "weights":
            encoders = scores.get("encoders", {}) if isinstance(scores, dict) else {}
            # A record does not name the attached datasets whose files were tried.
            return bool(kernel.encoders) and set(kernel.encoders) <= set(encoders)
        config = content.get("config")
        same_config = (
            isinstance(config, dict) and without_neutral(config) == kernel.configs[0].result_options()
        )
        if not same_config or kernel.datasets:  # a record does not name the datasets that were attached
            return False
        if kernel.search is not None:
            searched = scores.get("search", {}).get("space") if isinstance(scores, dict) else None
            if searched != kernel.search.to_dict():
                return False
        if kernel.kind in _RECORD_DATA_ID:
            sources = [self._state.ledger.kernels[slug] for slug in kernel.sources]
            prepared = next(source.output for source in sources if source.kind == "prepare")
            same_part = (
                content.get("experiment") == kernel.experiments[0] and content.get("fold") == kernel.fold
            )
            return same_part and prepared is not None and content.get("data_id") == data_id_of(prepared.key)
        return True
