"""Measurements of the machine that a kernel runs on: paths, mounts, packages, GPUs, network, reading speed.

Nothing is compared here: `launch.doctor.environment_check` compares the measurements with what the code
assumes. Each has a time limit. Of environment variables only the names are recorded, because some values
are tokens.
"""

import http.client
import importlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.errors import KernelError
from lib.runtime.hardware import free_memory
from lib.runtime.inputs import find_competition, list_mounts
from lib.runtime.run_record import RECORD_NAME, peek_kind, read_run_record

SAMPLE = "environment-check/sample.bin"  # in a folder, as the outputs of the weights kernel are
SAMPLE_BYTES = bytes(range(256)) * 4096  # 1 MiB
_RUN_TYPES = ("Batch", "Interactive")
_OTHER_PACKAGES = (
    "opencv-python-headless",
    "opencv-python",
    "scipy",
    "matplotlib",
    "kaggle",
    "albumentations",
)
_MAX_LISTED = 40  # mounts, or files added to one
_READERS = 8  # threads, as many as prepare reads with
_ALONE = 500  # tiles read one after another, for the time that one takes
_VALUES = 1 << 24  # float32 values summed over the GPUs: 64 MiB
_REPETITIONS = 10  # of the all-reduce that is timed
_LOG_TAIL = 600  # characters of the log of a failed process


def measure(name: str, measurement: Callable[[], Any]) -> Any:
    """The result of a measurement, or `{"error": ...}`, so that the others are still made."""
    try:
        return measurement()
    except Exception as error:
        return {"error": f"{name}: {type(error).__name__}: {str(error)[:300]}"}


# --- the machine --------------------------------------------------------------------------------------------


def describe_paths(working: Path, inputs: Path) -> dict[str, Any]:
    """Folders of the kernel, whether its script's folder is writable, and free bytes."""
    script = Path(sys.modules["__main__"].__file__ or "").resolve()
    temporary = Path(tempfile.gettempdir())
    return {
        "working": str(working),
        "input": str(inputs),
        "script": str(script),
        "script_folder_writable": _is_writable(script.parent),
        "temporary": str(temporary),
        "free": {"working": shutil.disk_usage(working).free, "temporary": shutil.disk_usage(temporary).free},
    }


def _is_writable(folder: Path) -> bool:
    """Whether a file can be created. Permissions do not tell: root has them on a read-only mount, too."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def describe_machine() -> dict[str, Any]:
    """Cores that this process may use, and memory in bytes: total (or the container's limit) and free."""
    total = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        total = limit if total is None else min(limit, total)
    except (OSError, ValueError):  # absent, or "max"
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "memory": total, "memory_free": free_memory()}


def describe_environment() -> dict[str, Any]:
    """Names of the KAGGLE_* variables, and the run type, which is recorded only if it is a known word."""
    run_type = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    if run_type is not None and run_type not in _RUN_TYPES:
        run_type = "another word"
    return {"names": sorted(name for name in os.environ if name.startswith("KAGGLE_")), "run_type": run_type}


def package_versions() -> dict[str, str]:
    """Versions of packages that run.json does not list."""
    versions = {}
    for name in _OTHER_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def try_imports(modules: Iterable[str]) -> dict[str, str]:
    """Result of importing each module: "ok in 3.2 s", or the error."""
    results = {}
    for name in modules:
        before = time.monotonic()
        try:
            importlib.import_module(name)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            results[name] = f"ok in {time.monotonic() - before:.1f} s"
    return results


# --- the inputs ---------------------------------------------------------------------------------------------


def describe_mounts(root: Path) -> list[dict[str, str]]:
    """Each mounted folder, relative to the input root, and the kind of kernel that wrote it."""
    return [
        {"place": mount.relative_to(root).as_posix(), "kind": peek_kind(mount)}
        for mount in list_mounts(root)[:_MAX_LISTED]
    ]


def check_mounted_outputs(root: Path, *, kind: str) -> list[dict[str, Any]]:
    """The mounted outputs of kernels of a kind: damage, files that were added, and age in seconds."""
    outputs = []
    for mount in list_mounts(root):
        if peek_kind(mount) != kind:
            continue
        output: dict[str, Any] = {"place": mount.relative_to(root).as_posix()}
        try:
            record = read_run_record(mount, kind=kind)
        except KernelError as error:
            output["problem"] = str(error)
        else:
            names = {path.relative_to(mount).as_posix() for path in mount.rglob("*") if path.is_file()}
            ended = record.scores.get("ended_at")
            output |= {
                "push_id": record.push_id,
                "added": sorted(names - set(record.files) - {RECORD_NAME})[:_MAX_LISTED],
            }
            if isinstance(ended, str):
                age = datetime.now(UTC) - datetime.fromisoformat(ended)
                output["seconds_since_it_ended"] = age.total_seconds()
        outputs.append(output)
    return outputs


def measure_reading(root: Path, *, number: int = 2000, seconds: float = 60.0) -> dict[str, Any]:
    """Speed of listing and of reading the competition's tiles.

    Args:
        root: of the inputs.
        number: of tiles to read, drawn at random: some one after another, the others by eight threads.
        seconds: time limit of each of the three parts.
    """
    try:
        folder = find_competition(root)
    except KernelError as error:
        return {"absent": str(error)}
    result: dict[str, Any] = {"place": folder.relative_to(root).as_posix()}
    before, listed = time.monotonic(), 0
    with os.scandir(folder / "train") as entries:
        for listed, _ in enumerate(entries, start=1):  # noqa: B007  counted
            if time.monotonic() - before > seconds:
                break
    result["listing"] = {"entries": listed, "seconds": round(time.monotonic() - before, 3)}
    with (folder / "train_labels.csv").open(encoding="utf-8") as stream:
        ids = [line.partition(",")[0] for line in stream][1:]
    chosen = random.Random(2018).sample(ids, min(number, len(ids)))
    alone = min(_ALONE, len(chosen) // 4)
    result["alone"] = _read_tiles(folder, chosen[:alone], readers=1, seconds=seconds)
    result["together"] = _read_tiles(folder, chosen[alone:], readers=_READERS, seconds=seconds)
    return result


def _read_tiles(folder: Path, ids: list[str], *, readers: int, seconds: float) -> dict[str, Any]:
    """Read tiles by threads; those whose turn comes after the time limit are skipped."""
    deadline = time.monotonic() + seconds

    def read(name: str) -> float | None:
        before = time.monotonic()
        if before > deadline:
            return None
        (folder / "train" / f"{name}.tif").read_bytes()
        return time.monotonic() - before

    before = time.monotonic()
    with ThreadPoolExecutor(max_workers=readers) as pool:
        times = sorted(taken for taken in pool.map(read, ids) if taken is not None)
    total = time.monotonic() - before
    if not times:
        return {"tiles": 0}
    return {
        "tiles": len(times),
        "readers": readers,
        "tiles_per_second": round(len(times) / max(total, 1e-9), 1),
        "median_milliseconds": round(1000 * statistics.median(times), 3),
        "slowest_milliseconds": round(1000 * times[-1], 3),
    }


# --- the network --------------------------------------------------------------------------------------------


def try_internet(*, seconds: float = 10.0) -> dict[str, str]:
    """Result of connecting to an address without a name, and to the hosts of weights and packages."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    attempts: dict[str, Callable[[], str]] = {
        "address": lambda: _connect("1.1.1.1", 443, seconds=seconds),
        "huggingface": lambda: _head(endpoint, seconds=seconds),
        "pypi": lambda: _head("https://pypi.org/simple/six/", seconds=seconds),
    }
    results: dict[str, str] = {}

    def attempt(name: str) -> None:
        results[name] = attempts[name]()

    # Resolving a name has no timeout of its own: a thread that does not return is left behind.
    threads = [threading.Thread(target=attempt, args=(name,), daemon=True) for name in attempts]
    deadline = time.monotonic() + 2 * seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: results.get(name, f"no response within {2 * seconds:.0f} s") for name in attempts}


def _connect(host: str, port: int, *, seconds: float) -> str:
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return type(error).__name__
    return "reached"


def _head(address: str, *, seconds: float) -> str:
    """Request only the header of an address. Any response but a server error counts as reached.

    An error is recorded by its type alone, because its text may hold the password of a proxy.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
            return "reached"
    except urllib.error.HTTPError as error:
        return "reached" if error.code < 500 else f"HTTP {error.code}"
    except urllib.error.URLError as error:
        reason = error.reason
        return type(reason if isinstance(reason, BaseException) else error).__name__
    except (OSError, ValueError, http.client.HTTPException) as error:
        return type(error).__name__


# --- the GPUs -----------------------------------------------------------------------------------------------


def describe_gpus() -> list[dict[str, Any]]:
    """Each GPU: name, capability, memory in bytes, bfloat16 in hardware, speed of float16 matrix products."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        {
            "name": torch.cuda.get_device_name(number),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(number)),
            "memory": torch.cuda.get_device_properties(number).total_memory,
            "bfloat16": _has_bfloat16(number),
            "float16": measure("float16", lambda number=number: _multiply(number)),  # type: ignore[misc]
        }
        for number in range(torch.cuda.device_count())
    ]


def _has_bfloat16(number: int) -> bool:
    import torch

    with torch.cuda.device(number):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _multiply(number: int, *, side: int = 4096, times: int = 20) -> dict[str, Any]:
    """TFLOP/s of float16 matrix products, and whether a product of known result is correct."""
    import torch

    ones = torch.ones(side, side, dtype=torch.float16, device=f"cuda:{number}")  # (side, side), 32 MiB
    correct = bool((ones @ ones == side).all().item())  # 4096 is exact in float16
    torch.cuda.synchronize(number)
    before = time.monotonic()
    for _ in range(times):
        ones @ ones
    torch.cuda.synchronize(number)
    taken = time.monotonic() - before
    return {"correct": correct, "tflops": round(times * 2 * side**3 / taken / 1e12, 2)}


def try_all_reduce(*, processes: int = 2, backend: str = "nccl", seconds: float = 120.0) -> dict[str, Any]:
    """Sum values over child processes, as distributed training does.

    Args:
        processes: one for each GPU.
        backend: nccl, or gloo without GPUs.
        seconds: until the processes are ended: NCCL without a connection between them waits without end.
    """
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "lib.runtime.environment_check",
            backend,
            str(processes),
            folder,
            str(seconds),
        ]
        workers, logs = [], []
        before = time.monotonic()
        for rank in range(processes):
            logs.append(Path(folder) / f"log-{rank}")
            with logs[-1].open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        [*command, str(rank)],
                        cwd=root,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            while any(worker.poll() is None for worker in workers):
                failed = any(worker.poll() not in (None, 0) for worker in workers)
                if failed or time.monotonic() - before > seconds:
                    break
                time.sleep(0.1)
            codes = [worker.poll() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        result: dict[str, Any] = {
            "backend": backend,
            "processes": processes,
            "seconds": round(time.monotonic() - before, 1),
        }
        if any(code != 0 for code in codes):
            failed_rank = next((rank for rank, code in enumerate(codes) if code), None)
            cause = f"no end within {seconds:.0f} s"
            if failed_rank is not None:
                cause = f"process {failed_rank} ended with exit code {codes[failed_rank]}"
            log_text = logs[failed_rank or 0].read_text(encoding="utf-8", errors="replace").strip()
            return {**result, "error": f"{cause}: {log_text[-_LOG_TAIL:]}"}
        return {**result, **json.loads((Path(folder) / "result-0").read_text())}


def _all_reduce_in_process(backend: str, processes: int, folder: Path, seconds: float, rank: int) -> None:
    """Work of one child process. The processes find each other through a file, so no free port is needed."""
    from datetime import timedelta

    import torch
    from torch import distributed

    device = torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=seconds),
    )
    values = torch.full((_VALUES,), float(rank + 1), device=device)
    distributed.all_reduce(values)
    expected = processes * (processes + 1) / 2  # 1 + 2 + ... + processes
    correct = bool((values == expected).all().item())
    before = time.monotonic()
    for _ in range(_REPETITIONS):
        distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    values[0].item()  # waits for the GPU
    taken = (time.monotonic() - before) / _REPETITIONS
    result = {"correct": correct, "gigabytes_per_second": round(4 * _VALUES / taken / 1e9, 2)}
    (folder / f"result-{rank}").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    _backend, _processes, _folder, _seconds, _rank = sys.argv[1:]
    _all_reduce_in_process(_backend, int(_processes), Path(_folder), float(_seconds), int(_rank))
