"""Hardware of a run: package versions, compute devices, free disk and memory."""

import ctypes
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lib.config import Config
from lib.errors import PreflightError, listed

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_TEST_LIMIT = 300  # seconds for the test of all GPUs in a process of its own
# The oldest versions that the code was run with. Older packages are reported, not refused.
TESTED_WITH = {"torch": "2.10", "timm": "1.0.26", "numpy": "2.0", "pandas": "2.2", "scikit-learn": "1.6"}
_RECORDED = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "pillow", "safetensors")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on; a package that is absent is left out."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _untested_versions() -> list[str]:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())

    versions = installed_versions()
    return [
        f"{name} {versions.get(name, 'absent')} (tested with {tested} or newer)"
        for name, tested in TESTED_WITH.items()
        if name not in versions or numbers(versions[name]) < numbers(tested)
    ]


def choose_devices(config: Config, *, gpu_required: bool) -> "list[torch.device]":
    """The devices to compute on: every GPU, each tested by one convolution, or the CPU.

    HCD_WORKERS sets how often the CPU is listed, to rehearse several GPUs.

    Raises:
        PreflightError: a GPU is required (`device = "cuda"`, or a GPU kernel on Kaggle) and none works, or
            one of several does not work.
    """
    import torch

    if config.device == "cpu":
        return _cpu()
    problems = [] if torch.cuda.is_available() else [f"torch {torch.__version__} sees no GPU"]
    devices = []
    found = [torch.device("cuda", number) for number in range(0 if problems else torch.cuda.device_count())]
    for device, problem in zip(found, _gpu_problems(found), strict=True):
        if problem:
            problems.append(problem)
        else:
            devices.append(device)
    if devices and not problems:
        return devices
    if config.device == "cuda" or gpu_required or devices:
        raise PreflightError(
            listed(
                "a GPU is required and none works:" if not devices else "not all GPUs work:",
                problems,
                remedy="On Kaggle set machine_shape to NvidiaTeslaT4 and enable_gpu to true; on your own "
                "machine use --set device=cpu, or list the working GPUs in CUDA_VISIBLE_DEVICES.",
            )
        )
    return _cpu()


def _cpu() -> "list[torch.device]":
    import torch

    keep_freed_memory()
    return [torch.device("cpu")] * max(1, int(os.environ.get("HCD_WORKERS") or 1))


def _gpu_problems(devices: "Sequence[torch.device]") -> list[str]:
    """Why each GPU cannot be used, empty texts for those that can.

    Several GPUs are tested in a process of its own: this process starts one worker for each of them, and
    should not hold a CUDA context (some hundred MiB) on any meanwhile.
    """
    if len(devices) < 2:
        return [_gpu_problem(device) for device in devices]
    library = Path(__file__).resolve().parents[2]
    code = (
        "import json, sys, torch; from lib.runtime.hardware import _gpu_problem; "
        "print(json.dumps([_gpu_problem(torch.device(name)) for name in sys.argv[1:]]))"
    )
    path = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    try:
        test = subprocess.run(
            [sys.executable, "-c", code, *map(str, devices)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TEST_LIMIT,
            check=False,
        )
        problems: list[str] = json.loads(test.stdout.splitlines()[-1]) if test.returncode == 0 else []
    except subprocess.TimeoutExpired:
        return [f"{device}: no result of a convolution within {_TEST_LIMIT} s" for device in devices]
    except (ValueError, IndexError):
        problems = []
    if len(problems) != len(devices):
        cause = f"exit code {test.returncode}: {test.stderr.strip()[-600:]}"
        return [f"{device}: the test by a convolution failed ({cause})" for device in devices]
    return problems


def _gpu_problem(device: "torch.device") -> str:
    """Why a GPU cannot be used; an empty text when it computes a convolution correctly."""
    import torch

    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    try:
        total = _convolution_sum(device)
    except RuntimeError as error:
        version = ".".join(str(number) for number in capability)
        return f"{name} (compute capability {version}) cannot run torch {torch.__version__}: {error}"
    # B * C * H * W outputs, each a sum of 3 channels * 3 * 3 ones
    expected = 8 * 8 * 30 * 30 * 27
    return "" if total == expected else f"{name} computes a convolution as {total}, not {expected}"


def _convolution_sum(device: "torch.device") -> float:
    import torch

    half = torch.ones(8, 3, 32, 32, dtype=torch.float16, device=device)
    kernel = torch.ones(8, 3, 3, 3, dtype=torch.float16, device=device)
    return float(torch.nn.functional.conv2d(half, kernel).float().sum())


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory instead of returning it to the system.

    A network on a CPU frees and allocates the same hundreds of MiB at every step, and the system would map
    and zero the pages each time. With the memory kept, training a small ResNet is 1.3 times as fast (2 cores,
    glibc 2.36, n = 3, 2026-11-24). Does nothing where the C library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # Only blocks below the mmap threshold can be kept. glibc refuses a threshold over half its heap size.
    if mallopt(mmap_threshold, 1 << 28) or mallopt(mmap_threshold, 1 << 25):
        mallopt(trim_threshold, (1 << 31) - 1)


def describe_devices(devices: "Sequence[torch.device]") -> list[str]:
    """The devices of a run as text for run.json, one entry for each GPU."""
    import torch

    if devices[0].type == "cuda":
        return [torch.cuda.get_device_name(device) for device in devices]
    processes = f", {len(devices)} processes" if len(devices) > 1 else ""
    return [f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores{processes}"]


def free_memory() -> int | None:
    """Bytes of memory that this process can still allocate within its container's limit; None if unknown."""
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


def preflight(working: Path, *, disk: int, memory: int) -> None:
    """Check that free disk and memory suffice for the run, and log them.

    Args:
        working: the folder the run writes to.
        disk: bytes the run will write there, without those already written.
        memory: bytes it will hold at its peak.

    Raises:
        PreflightError: too little disk or memory; the message lists both.
    """
    gib = 1 << 30
    free_disk, available = shutil.disk_usage(working).free, free_memory()
    problems = []
    if free_disk < disk:
        problems.append(f"{working} has {free_disk / gib:.2f} GiB free, the run writes {disk / gib:.2f} GiB")
    if available is not None and available < memory:
        problems.append(
            f"{available / gib:.2f} GiB of memory are free, the run needs about {memory / gib:.2f} GiB"
        )
    if problems:
        remedy = "Free some disk or memory, or use another machine, and run the same command again."
        raise PreflightError(listed("this machine is too small for the run:", problems, remedy=remedy))
    room = "unknown" if available is None else f"{available / gib:.1f} GiB"
    logger.info(
        "preflight: disk %.1f GiB free (%.2f needed), memory %s free (%.2f needed)",
        free_disk / gib,
        disk / gib,
        room,
        memory / gib,
    )
    for warning in _untested_versions():
        logger.warning("%s", warning)
