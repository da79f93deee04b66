"""What a canary sees of the machine it runs on: paths, mounts, packages, cards, network, speed of the tiles.

Nothing here judges, and nothing found is an error: whoever pushed the canary compares its facts with what the code takes
for granted. Every look is bounded in time. Of environment variables only names are taken, never values: some are tokens.
"""

import http.client
import importlib
import json
import os
import random
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

SAMPLE = "environment-check/sample.bin"  # in a folder, because the weights kernel leaves its files in one
SAMPLE_BYTES = bytes(range(256)) * 4096  # 1 MiB
_RUN_TYPES = ("Batch", "Interactive")
_ALSO = ("opencv-python-headless", "opencv-python", "scipy", "matplotlib", "kaggle", "albumentations")
_MOUNTS_SHOWN = 40
_READERS = 8  # threads, as many as prepare reads with
_ALONE = 500  # tiles read one after another, to see how long one takes
_NUMBERS = 1 << 24  # float32 values summed over the cards: 64 MiB
_SUMS = 10
_LOG_TAIL = 600  # characters of a failed worker


def look(name: str, question: Callable[[], Any]) -> Any:
    """The answer to a question, or `{"error": ...}`: a canary that falls silent at the first surprise is of no use."""
    try:
        return question()
    except Exception as error:
        return {"error": f"{name}: {type(error).__name__}: {str(error)[:300]}"}


# --- the machine -----------------------------------------------------------------------------------------------------


def paths(working: Path, inputs: Path) -> dict[str, Any]:
    """Where the kernel finds itself, what it may write to, and how many bytes are free there."""
    import shutil

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
    """Tried, not asked: root may write by its rights where the mount is read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def machine() -> dict[str, Any]:
    """Cores this process may use, bytes of memory of the machine and still free."""
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


def environment() -> dict[str, Any]:
    """Names of the KAGGLE_* variables, and whether this is a batch run; the only value read is one of two known words."""
    run_type = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    known = run_type if run_type in _RUN_TYPES else "another word"
    names = sorted(name for name in os.environ if name.startswith("KAGGLE_"))
    return {"names": names, "run_type": None if run_type is None else known}


def packages() -> dict[str, str]:
    """Versions of packages the record of a run does not list by itself."""
    found = {}
    for name in _ALSO:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def importable(modules: Iterable[str]) -> dict[str, str]:
    """What became of importing each module: "ok in 3.2 s", or the error."""
    outcome = {}
    for name in modules:
        before = time.monotonic()
        try:
            importlib.import_module(name)
        except Exception as error:
            outcome[name] = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            outcome[name] = f"ok in {time.monotonic() - before:.1f} s"
    return outcome


# --- the inputs ------------------------------------------------------------------------------------------------------


def mounts(root: Path) -> list[dict[str, str]]:
    """Every mounted folder, relative to the input root, and the kind of kernel that left it."""
    return [
        {"place": mount.relative_to(root).as_posix(), "kind": peek_kind(mount)}
        for mount in list_mounts(root)[:_MOUNTS_SHOWN]
    ]


def mounted_outputs(root: Path, *, kind: str) -> list[dict[str, Any]]:
    """The mounted outputs of kernels of a kind: are they whole, what was added to them, and how old are they."""
    found = []
    for mount in list_mounts(root):
        if peek_kind(mount) != kind:
            continue
        facts: dict[str, Any] = {"place": mount.relative_to(root).as_posix()}
        try:
            record = read_run_record(mount, kind=kind)
        except KernelError as error:
            facts["problem"] = str(error)
        else:
            here = {path.relative_to(mount).as_posix() for path in mount.rglob("*") if path.is_file()}
            ended = record.scores.get("ended_at")
            facts |= {
                "push_id": record.push_id,
                "added": sorted(here - set(record.files) - {RECORD_NAME})[:_MOUNTS_SHOWN],
            }
            if isinstance(ended, str):
                facts["seconds_since_it_ended"] = (
                    datetime.now(UTC) - datetime.fromisoformat(ended)
                ).total_seconds()
        found.append(facts)
    return found


def tiles(root: Path, *, number: int = 2000, seconds: float = 60.0) -> dict[str, Any]:
    """How fast the competition's tiles can be listed and read; each part ends after so many seconds.

    Args:
        root: of the inputs.
        number: of tiles to read, drawn evenly; some alone, to see how long one takes, the others by eight threads.
        seconds: for listing, for reading alone, and for reading by threads.
    """
    try:
        folder = find_competition(root)
    except KernelError as error:
        return {"absent": str(error)}
    facts: dict[str, Any] = {"place": folder.relative_to(root).as_posix()}
    before, listed = time.monotonic(), 0
    with os.scandir(folder / "train") as entries:
        for listed, _ in enumerate(entries, start=1):  # noqa: B007  counted
            if time.monotonic() - before > seconds:
                break
    facts["listing"] = {"entries": listed, "seconds": round(time.monotonic() - before, 3)}
    with (folder / "train_labels.csv").open(encoding="utf-8") as stream:
        ids = [line.partition(",")[0] for line in stream][1:]
    chosen = random.Random(2018).sample(ids, min(number, len(ids)))
    alone = min(_ALONE, len(chosen) // 4)
    facts["alone"] = _read(folder, chosen[:alone], readers=1, seconds=seconds)
    facts["together"] = _read(folder, chosen[alone:], readers=_READERS, seconds=seconds)
    return facts


def _read(folder: Path, ids: list[str], *, readers: int, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds

    def read(name: str) -> float | None:
        before = time.monotonic()
        if before > until:
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


# --- the network -----------------------------------------------------------------------------------------------------


def internet(*, seconds: float = 10.0) -> dict[str, str]:
    """What can be reached from here: an address without a name, and the hosts that weights and packages come from."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    questions: dict[str, Callable[[], str]] = {
        "address": lambda: _connect("1.1.1.1", 443, seconds=seconds),
        "huggingface": lambda: _head(endpoint, seconds=seconds),
        "pypi": lambda: _head("https://pypi.org/simple/six/", seconds=seconds),
    }
    answers: dict[str, str] = {}

    def ask(name: str) -> None:
        answers[name] = questions[name]()

    # Name look-ups have no timeout of their own: a thread that does not come back is left behind.
    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in questions]
    until = time.monotonic() + 2 * seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return {name: answers.get(name, f"no answer within {2 * seconds:.0f} s") for name in questions}


def _connect(host: str, port: int, *, seconds: float) -> str:
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return type(error).__name__
    return "reached"


def _head(address: str, *, seconds: float) -> str:
    """Any answer but a failure of the server counts; an error is named by its type, its text may hold a proxy's password."""
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


# --- the cards -------------------------------------------------------------------------------------------------------


def cards() -> list[dict[str, Any]]:
    """Every GPU: name, capability, bytes of memory, whether it has bfloat16, and how fast it multiplies float16 matrices."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        {
            "name": torch.cuda.get_device_name(number),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(number)),
            "memory": torch.cuda.get_device_properties(number).total_memory,
            "bfloat16": _has_bfloat16(number),
            "float16": look("float16", lambda number=number: _multiply(number)),  # type: ignore[misc]
        }
        for number in range(torch.cuda.device_count())
    ]


def _has_bfloat16(number: int) -> bool:
    import torch

    with torch.cuda.device(number):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _multiply(number: int, *, side: int = 4096, times: int = 20) -> dict[str, Any]:
    """TFLOP/s of a float16 matrix product, proved by one whose result is known."""
    import torch

    one = torch.ones(side, side, dtype=torch.float16, device=f"cuda:{number}")
    right = bool((one @ one == side).all().item())  # 4096 is exact in float16
    torch.cuda.synchronize(number)
    before = time.monotonic()
    for _ in range(times):
        one @ one
    torch.cuda.synchronize(number)
    return {"right": right, "tflops": round(times * 2 * side**3 / (time.monotonic() - before) / 1e12, 2)}


def all_reduce(*, processes: int = 2, backend: str = "nccl", seconds: float = 120.0) -> dict[str, Any]:
    """Sum numbers over processes as distributed training does, in processes of their own that are ended after a time.

    Args:
        processes: one a card.
        backend: nccl, or gloo without a card.
        seconds: until the processes are ended: a NCCL that does not get through waits for ever.
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
        facts: dict[str, Any] = {
            "backend": backend,
            "processes": processes,
            "seconds": round(time.monotonic() - before, 1),
        }
        if any(code != 0 for code in codes):
            wrong = (
                next(rank for rank, code in enumerate(codes) if code not in (None, 0)) if any(codes) else 0
            )
            said = logs[wrong].read_text(encoding="utf-8", errors="replace").strip()
            why = (
                f"process {wrong} ended with {codes[wrong]}"
                if any(codes)
                else f"no end within {seconds:.0f} s"
            )
            return {**facts, "error": f"{why}: {said[-_LOG_TAIL:]}"}
        return {**facts, **json.loads((Path(folder) / "result-0").read_text())}


def _sum_over_processes(backend: str, processes: int, folder: Path, seconds: float, rank: int) -> None:
    """One of the processes: it meets the others through a file, so that no port need be free."""
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
    numbers = torch.full((_NUMBERS,), float(rank + 1), device=device)
    distributed.all_reduce(numbers)
    expected = processes * (processes + 1) / 2
    right = bool((numbers == expected).all().item())
    before = time.monotonic()
    for _ in range(_SUMS):
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
    numbers[0].item()  # waits for the card
    taken = (time.monotonic() - before) / _SUMS
    facts = {"right": right, "gigabytes_per_second": round(4 * _NUMBERS / taken / 1e9, 2)}
    (folder / f"result-{rank}").write_text(json.dumps(facts))
    distributed.destroy_process_group()


if __name__ == "__main__":
    _backend, _processes, _folder, _seconds, _rank = sys.argv[1:]
    _sum_over_processes(_backend, int(_processes), Path(_folder), float(_seconds), int(_rank))
