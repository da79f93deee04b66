"""Session of a kernel: its parameters, folders, timed stages, time limit, log and outputs."""

import errno
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.config import Config, ConfigError, config_from_dict
from lib.errors import KernelError
from lib.runtime.hardware import installed_versions
from lib.runtime.inputs import require_inputs
from lib.runtime.run_record import (
    RECORD_NAME,
    RunRecord,
    describe_files,
    write_run_record,
)
from lib.search_space import SearchSpace, search_from_dict

logger = logging.getLogger(__name__)

# Of the time limit, what passes before our first and after our last second: seconds, and at most this share.
_OVERHEAD_SECONDS, _OVERHEAD_SHARE = 180.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters that the builder writes into a kernel script."""

    kind: str
    slug: str
    experiments: tuple[str, ...]
    configs: tuple[Config, ...]
    owner: str
    fold: int = -1
    folds: tuple[tuple[int, ...], ...] = ()  # inference: which folds of each experiment are averaged
    encoders: tuple[str, ...] = ()
    average: str = "mean"  # inference: mean, logit or rank
    facts: Mapping[str, Any] = field(default_factory=dict)  # report: what no kernel knows, such as the score
    search: SearchSpace | None = None  # search: the space
    finished: tuple[Mapping[str, Any], ...] = ()  # search: records of trials that an earlier push finished
    needs_gpu: bool = False
    internet: bool = False
    strict_bundle: bool = False
    push_id: str = ""
    limit: float = 0.0  # seconds after which Kaggle ends the session; 0: unknown
    inputs: Mapping[str, str] = field(default_factory=dict)  # push id of each output to read, by its slug
    bundle_id: str = ""
    git_commit: str = ""

    @property
    def config(self) -> Config:
        """The config of the first experiment; the builder checks that all agree in the shared options."""
        return self.configs[0]

    @property
    def experiment(self) -> str:
        """The names of the experiments, joined by a plus; empty for weights and prepare."""
        return "+".join(self.experiments)


def read_parameters(values: Mapping[str, Any]) -> Parameters:
    """Convert the plain values that the builder wrote, configs as dictionaries, to Parameters.

    Raises:
        ConfigError: a config was edited by hand and is not valid.
    """
    plain = dict(values)
    plain["configs"] = tuple(config_from_dict(config) for config in plain["configs"])
    plain["experiments"] = tuple(plain["experiments"])
    plain["folds"] = tuple(tuple(folds) for folds in plain.get("folds", ()))
    plain["encoders"] = tuple(plain.get("encoders", ()))
    if plain.get("search") is not None:
        plain["search"] = search_from_dict(plain["search"]["values"], name=plain["search"]["name"])
    plain["finished"] = tuple(plain.get("finished", ()))
    return Parameters(**plain)


@dataclass
class Session:
    """One run of one kernel."""

    parameters: Parameters
    input: Path
    working: Path
    place: str  # kaggle, rehearsal (smoke) or local
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def on_kaggle(self) -> bool:
        """True on Kaggle itself, where the full data are required, and a GPU if the kernel needs one."""
        return self.place == "kaggle"

    @contextmanager
    def stage(self, name: str, *, note: str = "") -> Iterator[None]:
        """Measure the time of a stage for run.json and log its start and its end."""
        logger.info("%s ...%s", name, f" ({note})" if note else "")
        before = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - before, 3)
        logger.info("%s took %.1f s", name, self.seconds[name])

    @property
    def deadline(self) -> float:
        """Time on the monotonic clock at which the run must have ended; infinite where no limit is known."""
        limit = self.parameters.limit
        if not limit:
            return math.inf
        return self.started + limit - min(_OVERHEAD_SECONDS, _OVERHEAD_SHARE * limit)

    def invalidate_record(self) -> None:
        """Delete the record of an earlier run, just before the first of its files is replaced."""
        (self.working / RECORD_NAME).unlink(missing_ok=True)

    def write_outputs(
        self, names: Mapping[str, bool], *, hashes: Mapping[str, str] | None = None, **fields: Any
    ) -> RunRecord:
        """Write run.json for the named files of the working folder.

        Args:
            names: the files; the value is true if the file is fetched to the user's machine.
            hashes: SHA-256 of files that were hashed while they were written; the others are hashed here.
            fields: further fields of the record.
        """
        parameters = self.parameters
        record = RunRecord(
            kind=parameters.kind,
            experiment=parameters.experiment,
            config=parameters.config.to_dict(),
            push_id=parameters.push_id,
            bundle_id=parameters.bundle_id,
            git_commit=parameters.git_commit,
            fold=parameters.fold,
            versions=installed_versions(),
            seconds={**self.seconds, "total": round(time.monotonic() - self.started, 3)},
            files=describe_files(self.working, names, hashes=hashes),
            complete=True,
            **fields,
        )
        write_run_record(self.working, record)
        logger.info("%s written: %d files", RECORD_NAME, len(record.files))
        return record


class _StdoutHandler(logging.Handler):
    """Prints `[   12.3 s] message` on standard output: seconds since the session's start, warnings marked."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self.started = started

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        seconds = time.monotonic() - self.started
        print(f"[{seconds:7.1f} s] {prefix}{record.getMessage()}", flush=True)


def log_to_stdout(started: float) -> None:
    """Print the messages of lib and kernels on standard output; a second call replaces the first.

    Args:
        started: the session's start on the monotonic clock, from which the seconds of a message are counted.
    """
    handler = _StdoutHandler(started)
    for name in ("lib", "kernels"):
        top = logging.getLogger(name)
        for old in [old for old in top.handlers if isinstance(old, _StdoutHandler)]:
            top.removeHandler(old)
        top.addHandler(handler)
        top.setLevel(logging.INFO)


def open_session(parameters: Parameters) -> Session:
    """Find the input and working folders: /kaggle on Kaggle, HCD_INPUT and the current folder elsewhere."""
    place = os.environ.get("HCD_PLACE") or ("kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "local")
    session = Session(
        parameters=parameters,
        input=_input_root(),
        working=Path.cwd(),
        place=place,
    )
    for leftover in session.working.glob(".*.part"):  # of a killed lib.files.write_atomic
        if leftover.is_file():
            leftover.unlink()
    log_to_stdout(session.started)
    logger.info(
        "%s: bundle %s, push %s, Python %s, on %s",
        parameters.slug,
        parameters.bundle_id[:12],
        parameters.push_id or "none",
        platform.python_version(),
        place,
    )
    return session


def _input_root() -> Path:
    """The folder of the mounts; in a downloaded campaign the folder of its outputs."""
    if "HCD_INPUT" in os.environ:
        return Path(os.environ["HCD_INPUT"])
    mounted = Path("/kaggle/input")
    working = Path.cwd()
    fetched = [folder / "outputs" for folder in (working, *working.parents) if (folder / "outputs").is_dir()]
    return fetched[0] if fetched and not mounted.is_dir() else mounted


def open_notebook(values: Mapping[str, Any]) -> Session:
    """Open the session of a kernel that is a notebook, as `run_kernel` does for a recipe.

    Raises:
        ConfigError: a config was edited by hand and is not valid.
        PreflightError: an output that the notebook must read is not mounted.
    """
    session = open_session(read_parameters(values))
    require_inputs(session.input, session.parameters.inputs)
    return session


def run_kernel(recipe: Callable[[Session], None], values: Mapping[str, Any]) -> int:
    """Run a kernel's recipe on its session and return the exit code.

    The code is 1, with one message, after a KernelError, a ConfigError or a full disk. Any other error keeps
    its traceback, which names `lib/<file>.py` and the line of the repository.
    """
    try:
        session = open_session(read_parameters(values))
        require_inputs(session.input, session.parameters.inputs)
        recipe(session)
    except (KernelError, ConfigError) as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"the disk is full ({error}). Free some space and run the same command again."
    else:
        return 0
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1
