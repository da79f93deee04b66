"""Where a kernel finds itself: its inputs, its working folder, its device, and whether that is enough for the run."""

import ctypes
import errno
import logging
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import Config, ConfigError, config_from_dict
from lib.errors import KernelError, listed
from lib.runtime.run_record import (
    RECORD_NAME,
    RunRecord,
    describe_files,
    peek_kind,
    peek_push,
    write_run_record,
)
from lib.search_space import SearchSpace, search_from_dict

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

COMPETITION = "histopathologic-cancer-detection"
MISSING_INPUTS = (
    "outputs this kernel was pushed to read are not among the inputs"  # the launcher knows these words
)

# /kaggle/input/{competitions/<slug>, datasets/<owner>/<slug>, datasets/organizations/<owner>/<slug>,
# notebooks/<owner>/<slug>} since 2026, /kaggle/input/<slug> before, and a folder inside a dataset.
_MOUNT_DEPTH = 5
_ENTRIES_LOOKED_AT = 1000  # per folder: a folder of 220,000 tiles must not cost minutes

# What the code was run with. Older packages are reported, not refused.
TRIED_WITH = {"torch": "2.10", "timm": "1.0.26", "numpy": "2.0", "pandas": "2.2", "scikit-learn": "1.6"}
# Of a session's time limit, what passes before our first second and after our last: seconds, and at most this share of it.
_AROUND, _AROUND_SHARE = 180.0, 0.05
_RECORDED = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "pillow", "safetensors")


class PreflightError(KernelError):
    """The run cannot succeed here; the message lists every reason."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What the builder writes into a kernel script."""

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
    search: SearchSpace | None = None  # search: what is tried
    finished: tuple[
        Mapping[str, Any], ...
    ] = ()  # search: records of trials that an earlier push came to an end with
    needs_gpu: bool = False
    internet: bool = False
    strict_bundle: bool = False
    push_id: str = ""
    limit: float = 0.0  # seconds after which the service ends the session; 0: not told
    inputs: Mapping[str, str] = field(
        default_factory=dict
    )  # slug to push id of the outputs that must be mounted
    bundle_id: str = ""
    git_commit: str = ""

    @property
    def config(self) -> Config:
        """The config of a kernel that serves one experiment (of several, the first: what they share is checked)."""
        return self.configs[0]

    @property
    def experiment(self) -> str:
        """The experiment's name, or the names of several with a plus between them; empty for weights and prepare."""
        return "+".join(self.experiments)


def read_parameters(values: Mapping[str, Any]) -> Parameters:
    """The parameters as the builder wrote them: plain values, configs as dictionaries.

    Raises:
        ConfigError: a config was edited by hand into something that cannot be used.
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
        """On Kaggle itself the full data are demanded, and a GPU where the kernel asked for one."""
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
    def until(self) -> float:
        """When the session must be done, on the monotonic clock; infinite where no limit is known."""
        limit = self.parameters.limit
        return self.started + limit - min(_AROUND, _AROUND_SHARE * limit) if limit else math.inf

    def invalidate_record(self) -> None:
        """Take back the record of an earlier run, right before the first of its files is replaced."""
        (self.working / RECORD_NAME).unlink(missing_ok=True)

    def write_outputs(
        self, names: Mapping[str, bool], *, hashes: Mapping[str, str] | None = None, **facts: Any
    ) -> RunRecord:
        """Write run.json over the named files of the working folder.

        Args:
            names: the files, each with whether it is worth fetching.
            hashes: SHA-256 of files that were hashed while they were written, so that they are not read once more.
            facts: further fields of the record.
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
            **facts,
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
    for rest in session.working.glob(".*.part"):  # lib.files.write_atomic, killed
        if rest.is_file():
            rest.unlink()
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
    """Where inputs are mounted; for a notebook opened beside a downloaded campaign, its outputs."""
    if "HCD_INPUT" in os.environ:
        return Path(os.environ["HCD_INPUT"])
    mounted = Path("/kaggle/input")
    here = Path.cwd()
    fetched = [folder / "outputs" for folder in (here, *here.parents) if (folder / "outputs").is_dir()]
    return fetched[0] if fetched and not mounted.is_dir() else mounted


def open_notebook(values: Mapping[str, Any]) -> Session:
    """The session of a kernel that is a notebook: what `run_kernel` does before it calls a recipe.

    Raises:
        ConfigError: a config was edited by hand into something that cannot be used.
        PreflightError: outputs that must be mounted are not.
    """
    session = open_session(read_parameters(values))
    require_inputs(session)
    return session


# --- inputs ----------------------------------------------------------------------------------------------------------


def list_mounts(root: Path) -> list[Path]:
    """The folders under the input root that hold at least one file, each physical folder once.

    Looks at most five levels deep and never below a folder that holds files, so that the competition's 277,000 tiles
    are not listed.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    level = [root]
    for _ in range(_MOUNT_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:  # one folder mounted under two layouts
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    some = [entry for entry, _ in zip(entries, range(_ENTRIES_LOOKED_AT), strict=False)]
            except OSError:
                continue
            if any(entry.is_file() for entry in some):
                found.append(folder)
            else:
                below += sorted(Path(entry.path) for entry in some if entry.is_dir())
        level = below
    return found


def _what_is_mounted(root: Path) -> str:
    mounts = list_mounts(root)
    if not root.is_dir():
        return f"The input folder {root} does not exist."
    if not mounts:
        return f"Nothing is mounted under {root}."
    lines = [f"Mounted under {root}:"]
    for mount in mounts[:40]:
        kind = peek_kind(mount)
        lines.append(f"  - {mount.relative_to(root)}" + (f" (output of a {kind} kernel)" if kind else ""))
    return "\n".join(lines)


def _only_one(found: list[Path], root: Path, *, what: str, remedy: str) -> Path:
    if not found:
        raise PreflightError(f"{what} is not among the inputs. {remedy}\n{_what_is_mounted(root)}")
    if len(found) > 1:
        places = [str(folder.relative_to(root)) for folder in found]
        raise PreflightError(
            listed(f"{what} is mounted more than once:", places, remedy="Detach all but one.")
        )
    return found[0]


def find_competition(root: Path) -> Path:
    """The folder of the competition's data, wherever it is mounted.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    found = [
        mount
        for mount in list_mounts(root)
        if (mount / "train_labels.csv").is_file() and not peek_kind(mount)
    ]
    remedy = f"Attach the competition {COMPETITION} (and accept its rules once in the browser)."
    return _only_one(found, root, what="the competition's data (train_labels.csv)", remedy=remedy)


def find_output(root: Path, kind: str) -> Path:
    """The folder with the output of the only kernel of this kind.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    found = find_outputs(root, kind)
    remedy = f"Run the {kind} kernel to its end and attach its output."
    return _only_one(found, root, what=f"the output of a {kind} kernel", remedy=remedy)


def find_outputs(root: Path, kind: str) -> list[Path]:
    """The folders with outputs of kernels of this kind, as their run.json says, in the order of their paths."""
    return sorted(mount for mount in list_mounts(root) if peek_kind(mount) == kind)


def find_file(root: Path, name: str, *, remedy: str) -> Path:
    """A file the user attached in a dataset, by its name, at the top of a mount or one folder below.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    found = []
    for mount in list_mounts(root):
        if peek_kind(mount):
            continue
        with os.scandir(mount) as entries:
            folders = [
                Path(entry.path)
                for entry, _ in zip(entries, range(_ENTRIES_LOOKED_AT), strict=False)
                if entry.is_dir()
            ]
        found += [folder / name for folder in (mount, *sorted(folders)) if (folder / name).is_file()]
    return _only_one(found, root, what=f"the file {name}", remedy=remedy)


def require_inputs(session: Session) -> None:
    """Hold the mounted outputs against the pushes this kernel was told to read.

    A platform mounts the last version it knows to be complete, which may be an earlier one, and says nothing.

    Raises:
        PreflightError: an output is missing, or is that of another push; all of them listed.
    """
    wanted = session.parameters.inputs
    if not wanted:
        return
    mounted = {push_id: mount for mount in list_mounts(session.input) if (push_id := peek_push(mount))}
    lacking = [
        f"{slug}, push {push_id}" for slug, push_id in wanted.items() if push_id and push_id not in mounted
    ]
    if lacking:
        seen = ", ".join(sorted(mounted)) or "none"
        remedy = f"Mounted are the outputs of these pushes: {seen}. Wait a little and push this kernel again."
        raise PreflightError(listed(f"{MISSING_INPUTS}:", lacking, remedy=remedy))


# --- device, versions, room ------------------------------------------------------------------------------------------


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on; a package that is absent is left out."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _older_than_tried() -> list[str]:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())

    versions = installed_versions()
    return [
        f"{name} {versions.get(name, 'absent')} (tried with {tried} or newer)"
        for name, tried in TRIED_WITH.items()
        if name not in versions or numbers(versions[name]) < numbers(tried)
    ]


def choose_devices(config: Config, *, gpu_required: bool) -> "list[torch.device]":
    """The devices to compute on: every GPU, each proved by one real operation of the kind a network needs, or a CPU.

    HCD_WORKERS says how many processes a CPU stands in for as many cards, to rehearse two.

    Raises:
        PreflightError: a GPU is demanded (`device = "cuda"`, or a GPU kernel on Kaggle) and there is none that works.
    """
    import torch

    if config.device == "cpu":
        return _cpu()
    problems = [] if torch.cuda.is_available() else [f"torch {torch.__version__} sees no GPU"]
    devices = []
    for number in range(torch.cuda.device_count() if not problems else 0):
        device = torch.device("cuda", number)
        if problem := _prove(device):
            problems.append(problem)
        else:
            devices.append(device)
    if devices and not problems:
        return devices
    if config.device == "cuda" or gpu_required or devices:
        raise PreflightError(
            listed(
                "a GPU is required and there is none that works:" if not devices else "not all GPUs work:",
                problems,
                remedy="On Kaggle set machine_shape to NvidiaTeslaT4 and enable_gpu to true; on your own machine use "
                "--set device=cpu, or name those that work in CUDA_VISIBLE_DEVICES.",
            )
        )
    return _cpu()


def _cpu() -> "list[torch.device]":
    import torch

    keep_freed_memory()
    return [torch.device("cpu")] * max(1, int(os.environ.get("HCD_WORKERS") or 1))


def _prove(device: "torch.device") -> str:
    """What is wrong with a GPU; an empty text when it convolves as it should."""
    import torch

    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    try:
        half = torch.ones(8, 3, 32, 32, dtype=torch.float16, device=device)
        kernel = torch.ones(8, 3, 3, 3, dtype=torch.float16, device=device)
        total = torch.nn.functional.conv2d(half, kernel).float().sum().item()
    except RuntimeError as error:
        version = ".".join(str(number) for number in capability)
        return f"{name} (compute capability {version}) cannot run torch {torch.__version__}: {error}"
    # B * C * H * W outputs of 3 channels x 3 x 3 ones each
    return "" if total == 8 * 8 * 30 * 30 * 27 else f"{name} computes a convolution wrongly ({total})"


def keep_freed_memory() -> None:
    """Tell the allocator of the C library to keep what is freed instead of handing it back to the system.

    A network on a CPU frees and takes the same hundreds of MiB at every step, and the pages would be fetched, zeroed and
    mapped anew each time: kept, training a small ResNet is 1.3 times as fast (2 cores, glibc 2.36, n = 3, 2026-11-24). Does
    nothing where the C library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    if mallopt(mmap_threshold, 1 << 28) or mallopt(
        mmap_threshold, 1 << 25
    ):  # below it, freed memory can be kept at all
        mallopt(trim_threshold, (1 << 31) - 1)


def describe_devices(devices: "Sequence[torch.device]") -> list[str]:
    """The devices a run used, in words."""
    import torch

    if devices[0].type == "cuda":
        return [torch.cuda.get_device_name(device) for device in devices]
    several = f", {len(devices)} processes" if len(devices) > 1 else ""
    return [f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores{several}"]


def free_memory() -> int | None:
    """Bytes of memory this process may still take, within the limit of its container; None where it cannot be told."""
    available: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(available) if available else None


def preflight(session: Session, *, disk: int, memory: int) -> None:
    """Hold free disk and memory against what the run needs, and say what was found.

    Args:
        session: the run.
        disk: bytes the run will write to its working folder, those already there not counted.
        memory: bytes it will hold at its peak.

    Raises:
        PreflightError: not enough of something; the message lists all of it.
    """
    gib = 1 << 30
    free_disk, available = shutil.disk_usage(session.working).free, free_memory()
    problems = []
    if free_disk < disk:
        problems.append(
            f"{session.working} has {free_disk / gib:.2f} GiB free, the run writes {disk / gib:.2f} GiB"
        )
    if available is not None and available < memory:
        problems.append(
            f"{available / gib:.2f} GiB of memory are free, the run needs about {memory / gib:.2f} GiB"
        )
    if problems:
        remedy = "Free some, or use another machine, and run the same command again."
        raise PreflightError(listed("this machine is too small for the run:", problems, remedy=remedy))
    room = "unknown" if available is None else f"{available / gib:.1f} GiB"
    logger.info(
        "preflight: disk %.1f GiB free (%.2f needed), memory %s free (%.2f needed)",
        free_disk / gib,
        disk / gib,
        room,
        memory / gib,
    )
    for warning in _older_than_tried():
        logger.warning("%s", warning)


def run_kernel(recipe: Any, values: Mapping[str, Any]) -> int:
    """Run a kernel's recipe on its session; the exit code is 0, or 1 after an error whose message says all.

    An error that is not a KernelError keeps its traceback, which names `lib/<file>.py` and the repository's line.
    """
    try:
        session = open_session(read_parameters(values))
        require_inputs(session)
        recipe(session)
    except (KernelError, ConfigError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
        ):  # the rest keeps its traceback
            raise
        text = str(error)
        if isinstance(error, OSError):
            text = f"the disk is full ({error}). Free some space and run the same command again."
        print(f"error: {text}", file=sys.stderr, flush=True)
        return 1
    return 0
