"""Observe the runs of pushed kernels: their status, log and output, and the machine that they were given."""

import logging
from pathlib import Path

from launch.campaign.decide import Datasets, FetchReply, Observation, RunOutput
from launch.campaign.outputs import OUTPUTS, NoRecordError, fetch_output, log_file, peek_record
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import NoResponseError, RefusedError, UnexpectedResponseError
from launch.kaggle_api.types import Listing, RunStatus
from launch.packaging.metadata import MACHINE_SHAPE
from launch.plan import Kernel

logger = logging.getLogger(__name__)


class RunMonitor:
    """Calls that observe the latest run of a kernel. They change nothing on Kaggle."""

    def __init__(self, kaggle: Kaggle, folder: Path) -> None:
        self._kaggle = kaggle
        self._folder = folder

    def status(self, kernel: Kernel) -> tuple[RunStatus | None, str]:
        """The status of the latest run, or why it could not be understood."""
        try:
            return self._kaggle.status(kernel.slug), ""
        except UnexpectedResponseError as error:
            return None, str(error)

    def datasets(self, kernel: Kernel) -> Datasets:
        """Those of a kernel's attached datasets that a push cannot have."""
        unusable, processing = [], []
        for name in kernel.datasets:
            owner, _, slug = name.partition("/")
            state = self._kaggle.dataset(slug, owner=owner)
            if state is None:
                unusable.append(f"the dataset {name}: it does not exist, or your account may not read it")
            elif state.status in ("failed", "deleted"):
                unusable.append(f"the dataset {name}: Kaggle calls it {state.status}")
            elif state.status != "ready":
                processing.append(name)
        return Datasets(unusable=unusable, processing=processing)

    def log(self, kernel: Kernel) -> RunOutput:
        """The log of the latest run."""
        try:
            listing = self._kaggle.output(kernel.slug)
        except RefusedError:  # a run that was deleted or never began has no output to list
            listing = Listing({}, "")
        return RunOutput(listing=listing, log_path=log_file(self._folder, kernel.slug))

    def output(self, kernel: Kernel) -> RunOutput:
        """The listing of the latest run, and its run.json."""
        slug, path = kernel.slug, log_file(self._folder, kernel.slug)
        listing = Listing({}, "")
        try:
            listing = self._kaggle.output(slug)
            record = peek_record(self._kaggle, slug, listing, folder=self._folder / OUTPUTS)
        except NoRecordError:
            return RunOutput(listing=listing, lacks_record=True, log_path=path)
        except (NoResponseError, UnexpectedResponseError) as error:
            return RunOutput(listing=listing, problem=str(error), log_path=path)
        return RunOutput(listing=listing, record=record, log_path=path)

    def fetch(self, kernel: Kernel, observation: Observation) -> FetchReply:
        """Fetch the observed output, verified against its run.json."""
        output = observation.output
        assert output is not None and output.record is not None, "there is an output to fetch"
        content, folder = dict(output.record), self._folder / OUTPUTS
        try:
            record = fetch_output(
                self._kaggle, kernel.slug, output.listing, content, kind=kernel.kind, folder=folder
            )
        except NoResponseError as error:
            return FetchReply(problem=str(error))
        except UnexpectedResponseError as error:
            return FetchReply(problem=str(error), final=True)
        return FetchReply(record=record)

    def warn_of_wrong_machine(self, kernel: Kernel) -> None:
        """Log a warning when Kaggle shows another machine than the one that was requested."""
        if not kernel.needs_gpu:
            return
        try:
            pulled = self._kaggle.pull(kernel.slug)
        except (NoResponseError, RefusedError):
            return  # a warning is not worth a stop
        if pulled is not None and pulled.machine_shape != MACHINE_SHAPE:
            shape = pulled.machine_shape or "None"
            logger.warning("%s was given the machine %r, not %s", kernel.slug, shape, MACHINE_SHAPE)
