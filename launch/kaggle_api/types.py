"""Values that the Kaggle client returns."""

from dataclasses import dataclass
from datetime import datetime

# States of a run, as kagglesdk's KernelWorkerStatus names them. ABSENT is ours: Kaggle shows no run.
QUEUED, RUNNING, COMPLETE, ERROR = "QUEUED", "RUNNING", "COMPLETE", "ERROR"
CANCEL_REQUESTED, CANCELLED, NEW, ABSENT = "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED", "NEW_SCRIPT", "ABSENT"
# States that occupy a session of the account. NEW does not: the kernel was saved and has not run.
ACTIVE = (QUEUED, RUNNING, CANCEL_REQUESTED)
ENDED = (COMPLETE, ERROR, CANCELLED)


@dataclass(frozen=True)
class RunStatus:
    """State of the latest run of a kernel.

    Attributes:
        name: one of the states above.
        message: why the run failed, if Kaggle says so.
    """

    name: str
    message: str = ""


@dataclass(frozen=True)
class PulledKernel:
    """The latest version of a kernel: its source, and the session it runs in."""

    source: str
    version: int | None
    machine_shape: str
    internet: bool


@dataclass(frozen=True)
class Pushed:
    """An accepted push."""

    version: int | None
    url: str


@dataclass(frozen=True)
class Listing:
    """Output of a kernel's run: the download address of each file, and the log as text."""

    files: dict[str, str]
    log: str


@dataclass(frozen=True)
class Quota:
    """GPU hours of the week; `refresh` is when the next week begins, if Kaggle says so."""

    used: float
    allowed: float
    refresh: datetime | None

    @property
    def left(self) -> float:
        """Hours that may still be used."""
        return max(0.0, self.allowed - self.used)


@dataclass(frozen=True)
class DatasetState:
    """State of a dataset: `status` in lower case (ready, failed, ...), and the current version's number."""

    status: str
    version: int


@dataclass(frozen=True)
class Submission:
    """One submission in Kaggle's list; a score is None until there is one."""

    ref: int
    message: str
    status: str
    public: float | None
    private: float | None
    error: str
    date: str
