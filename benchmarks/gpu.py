"""Training on a GPU: tiles per second, share of pure computation, compilation, memory and start-up time.

    python benchmarks/gpu.py                                        every network, half an hour or so
    python benchmarks/gpu.py --networks resnet34:96 --steps 100     NAME:SIDE, in pixels

Tiles are noise and weights are random, because only time is measured. For each network, these methods run
in turn: `train_one_epoch` unchanged; with one fixed batch on the device (pure computation: augmentation,
forward, loss, backward, step); with all tiles in device memory (`tiles_on = device`); without prefetch;
compiled; and, for comparison, the loop of most notebooks, timm's prefetching loader and fastai. The names of
their rows state what they lack of our augmentation. All use the number format of `--precision`: auto, or
float16 as on a T4.

One epoch runs under torch.cuda.set_sync_debug_mode("error"). It passes when the loop waits for the device
only to check the loss.

Then two processes train the first network together on one GPU, which exchange gradients by gloo: the code of
`ddp` where there is no second GPU. One process trains alone in the same rounds. One optimiser step takes a
batch of the same size in both cases.

Finally, the benchmark measures the start: seconds from the start of a process to its first step, and the
peak memory of that process. The training set has full size and is in a scratch folder. It is read from the
page cache, because it was just written.

All results are also written to one file, runs/benchmarks/gpu-report.json, with the name of the card and the
versions. It holds no path and no name of the machine: attach it to an issue of the repository.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import rounds  # noqa: E402
from benchmarks.rounds import interleave, report, write_result  # noqa: E402
from benchmarks.training import (  # noqa: E402
    FIXED,
    NO_PREFETCH,
    REAL,
    FixedLoader,
    OurTraining,
    backbone_of,
    load_without_prefetch,
    other_loops,
)
from lib.config import Config  # noqa: E402
from lib.data.batches import Batch, load_batches  # noqa: E402
from lib.data.device_memory import DeviceTiles  # noqa: E402
from lib.data.tile_store import read_array  # noqa: E402
from lib.training import epoch, workers  # noqa: E402
from lib.training.distributed import DistributedContext  # noqa: E402

NETWORKS = (
    "resnet18:96",
    "resnet34:96",
    "seresnext50_32x4d:96",
    "convnext_tiny:96",
    "vit_small_patch16_224:96",
    "convnext_tiny:224",
    "vit_small_patch16_224:224",
)
FULL_SIZE = 220_025  # tiles of the competition's training set: 5.67 GiB
COMPILED, ON_DEVICE = "ours, compiled", "ours, tiles in device memory"
ALONE, TOGETHER = "ours, one process", "ours, two processes on one GPU, gloo"
REPORT = "gpu-report"
LIMIT = 1800  # seconds for one measurement in processes of its own
TARGET_OF_COMPUTE = 0.95


def noise(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tiles (N, 96, 96, 3) uint8, and (N,) float32 labels of both classes."""
    generator = np.random.default_rng(0)
    tiles = np.frombuffer(generator.bytes(count * 96 * 96 * 3), dtype=np.uint8).reshape(count, 96, 96, 3)
    return tiles.copy(), (np.arange(count) % 5 < 2).astype(np.float32)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process in GiB, on the host and (by torch's allocator) on the device."""
    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage(2)
    peaks = {"host GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["device GiB"] = torch.cuda.max_memory_allocated(device)
    return {name: round(size / 2**30, 2) for name, size in peaks.items()}


def waits_only_for_loss_checks(ours: OurTraining) -> str:
    """Train one epoch during which torch refuses to wait for the device, except for checks of the loss.

    Returns:
        "yes" with the counts, or "no" with torch's error.
    """
    if ours.device.type != "cuda":
        return "not tried: no GPU"
    last = epoch.steps_per_epoch(ours.training_set, ours.config) - 1
    check_loss, checks = epoch._require_finite, 0

    def check_and_count(network: torch.nn.Module, *, number: int, **rest: object) -> None:
        nonlocal checks
        torch.cuda.set_sync_debug_mode("default")
        check_loss(network, number=number, **rest)  # type: ignore[arg-type]
        checks += 1
        if number < last:  # after the last step the epoch reads its loss
            torch.cuda.set_sync_debug_mode("error")

    ours.train()  # the first epoch allocates memory and selects algorithms
    epoch._require_finite = check_and_count
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.train()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"no: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        epoch._require_finite = check_loss
    return f"yes: {last + 1} steps, {checks} loss checks"


def measure(name: str, size: int, arguments: argparse.Namespace, device: torch.device) -> None:
    """Time all methods on one network."""
    config = Config(hed_jitter=0.05, batch_size=arguments.batch, input_size=size)
    tiles, labels = noise(arguments.tiles or arguments.steps * arguments.batch)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ours = OurTraining(
        backbone_of(name, size=size), tiles, labels, config, device=device, precision=arguments.precision
    )
    ours.train()
    memory = peak_memory(device)
    waits = waits_only_for_loss_checks(ours)
    fixed = FixedLoader()
    works: dict[str, Callable[[], int]] = {
        REAL: ours.train,
        FIXED: lambda: ours.train(fixed),
        NO_PREFETCH: lambda: ours.train(load_without_prefetch),
    }
    placed = DeviceTiles(tiles)
    placed.place(device, tiles_on="device", reserve=0, name=name)
    if placed.resident is not None:

        def load_from_device(_: np.ndarray, rows: np.ndarray, **rest: Any) -> Iterator[Batch]:
            return load_batches(placed, rows, **rest)

        works[ON_DEVICE] = lambda: ours.train(load_from_device)
    first_epoch = 0.0  # seconds, compilation included
    if not arguments.no_compile:
        compiled = OurTraining(
            backbone_of(name, size=size),
            tiles,
            labels,
            config,
            device=device,
            compiled=True,
            precision=arguments.precision,
        )
        started = time.perf_counter()
        compiled.train()
        wait_for(device)
        first_epoch = time.perf_counter() - started
        works[COMPILED] = compiled.train
    if not arguments.no_peers:
        works |= other_loops(
            name,
            tiles,
            labels,
            config,
            device=device,
            workers=arguments.workers,
            size=size,
            precision=arguments.precision,
        )

    def completed(work: Callable[[], int]) -> Callable[[], int]:
        def work_and_wait() -> int:
            trained = work()
            wait_for(device)
            return trained

        return work_and_wait

    rates = interleave({method: completed(work) for method, work in works.items()}, rounds=arguments.rounds)
    shares = np.array(rates[REAL]) / np.array(rates[FIXED])
    share = f"{np.median(shares):.3f} ({shares.min():.3f} to {shares.max():.3f})"
    conditions: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "network": name,
        "pixels": size,
        "batch": config.batch_size,
        "steps a round": len(tiles) // config.batch_size,
        "precision": str(ours.precision).removeprefix("torch."),
        f"share of pure computation (target {TARGET_OF_COMPUTE})": share,
        "waits only for loss checks": waits,
        **{f"peak {where}": peak for where, peak in memory.items()},
    }
    if COMPILED in works:
        conditions |= compiling(
            first_epoch,
            plain=float(np.median(rates[REAL])),
            fast=float(np.median(rates[COMPILED])),
            tiles=len(tiles),
            config=config,
        )
    report(f"gpu-{name}-{size}-{conditions['precision']}", rates, ours=REAL, conditions=conditions)


def compiling(first: float, *, plain: float, fast: float, tiles: int, config: Config) -> dict[str, object]:
    """Cost and gain of compilation.

    Args:
        first: seconds of the first epoch, which includes compilation.
        plain: tiles per second without compilation.
        fast: tiles per second with compilation.
        tiles: tiles of an epoch.
        config: only its batch_size is used.
    """
    seconds = max(0.0, first - tiles // config.batch_size * config.batch_size / fast)
    saved = config.batch_size / plain - config.batch_size / fast  # seconds a step
    even = f"{seconds / saved:,.0f}" if saved > 0 else "never"
    return {
        "compiling, s": round(seconds, 1),
        "compiled / not": round(fast / plain, 3),
        "steps to break even": even,
    }


class MeasurementError(Exception):
    """A measurement in other processes failed; the message says why."""


def run_processes(*commands: Sequence[str], limit: float = LIMIT) -> list[dict[str, Any]]:
    """Run commands at the same time, each of which prints its result as a last line of JSON.

    Returns:
        The results, in the order of the commands.

    Raises:
        MeasurementError: a command failed or did not end in time; the others are ended.
    """
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for command in commands
    ]
    end = time.monotonic() + limit
    try:
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            if time.monotonic() > end:
                raise MeasurementError(f"it did not end within {limit:.0f} s")
            time.sleep(0.05)
        if any(codes):
            time.sleep(0.5)  # for the others to fail, too: the cause may be in any of them
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
    results, reasons = [], []
    for code, process in zip(codes, processes, strict=True):
        lines = process.communicate()[0].splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        results.append(result)
        if code:
            ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            reasons.append(result.get("error", ended))
    if reasons:
        raise MeasurementError("; ".join(dict.fromkeys(reasons)))
    return results


def this_program(name: str, arguments: argparse.Namespace, device: torch.device, *rest: str) -> list[str]:
    """The command that measures one network in a process of its own."""
    options = {"device": device.type, "batch": arguments.batch, "networks": name}
    options |= {"steps": arguments.steps, "rounds": arguments.rounds, "precision": arguments.precision}
    pairs = [(f"--{option}", str(value)) for option, value in options.items()]
    return [sys.executable, __file__, *(text for pair in pairs for text in pair), *rest]


def train_as_one_of_two(rank: int, store: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Train alone and with the other process in turn, and print the rates, in a process of `measure_pair`."""
    name, _, size = arguments.networks[0].partition(":")
    config = Config(hed_jitter=0.05, batch_size=arguments.batch, input_size=int(size or 96))
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    tiles, labels = noise(arguments.steps * arguments.batch)
    context = DistributedContext(rank, 2, device)
    workers.init_process_group(context, f"file://{store}", share_gpu=True)
    ours = {}
    for method, members in ((TOGETHER, context), (ALONE, DistributedContext(device=device))):
        torch.manual_seed(0)
        ours[method] = OurTraining(
            backbone_of(name, size=config.input_size),
            tiles,
            labels,
            config,
            device=device,
            precision=arguments.precision,
            context=members,
        )
        if method == TOGETHER:
            ours[method].train()
            peaks = peak_memory(device)  # of this process, before there is a second network

    def work(method: str) -> int:
        trained = ours[method].train() if rank == 0 or method == TOGETHER else 0
        wait_for(device)
        dist.barrier()
        return trained

    rates = interleave({method: lambda m=method: work(m) for method in ours}, rounds=arguments.rounds)
    everyone: list[dict[str, float]] = [{}, {}]
    dist.all_gather_object(everyone, peaks)
    backend = dist.get_backend()
    dist.barrier()
    dist.destroy_process_group()
    kind = str(ours[TOGETHER].precision).removeprefix("torch.")
    print(json.dumps({"rates": rates, "peaks": everyone, "precision": kind, "backend": backend}))


def measure_pair(arguments: argparse.Namespace, device: torch.device) -> None:
    """Time two processes that train one network on one GPU, and one process alone.

    Raises:
        MeasurementError: it could not be measured.
    """
    name, _, size = arguments.networks[0].partition(":")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        command = this_program(arguments.networks[0], arguments, device)
        store = str(Path(folder) / "store")
        result, _ = run_processes(*([*command, "--pair", str(rank), store] for rank in range(2)))
    memory = {
        f"peak {where}, rank {rank}": peak
        for rank, peaks in enumerate(result["peaks"])
        for where, peak in peaks.items()
    }
    conditions = {
        "network": name,
        "pixels": int(size or 96),
        "batch of both": arguments.batch,
        "precision": result["precision"],
        "backend": result["backend"],
        **memory,
    }
    report("gpu-two-processes", result["rates"], ours=TOGETHER, conditions=conditions)


def without_folders(text: str) -> str:
    """A message without the folders of this machine: names of files are kept."""
    for folder in (ROOT, Path.home(), Path(sys.prefix), Path(tempfile.gettempdir())):
        if len(folder.parts) > 1:
            text = text.replace(str(folder), "")
    return re.sub(r"(?:\b[A-Za-z]:)?[\\/](?:[^\s\\/'\":]+[\\/])+", "", text)


def write_report(written: Sequence[Path], device: torch.device, failed: Sequence[str]) -> Path:
    """Collect the results of this run in one file, and say where to send it.

    Args:
        written: files of results.
        device: that was measured.
        failed: what could not be measured, and why.

    Returns:
        The file.
    """
    driver = ""
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        command = [
            "nvidia-smi",
            "--query-gpu=driver_version,memory.total,power.limit",
            "--format=csv,noheader",
        ]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    content = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": torch.cuda.device_count() if device.type == "cuda" else 0,
        "driver, memory, power": driver,
        "cores": os.cpu_count(),
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
            "timm": version("timm"),
        },
        "not measured": [without_folders(reason) for reason in failed],
        "results": [json.loads(path.read_text()) for path in written],
    }
    path = write_result(REPORT, content)
    print(f"\nAttach {path} to an issue of the repository: it holds no path and no name of this machine.")
    return path


def write_store(path: Path, count: int) -> str:
    """Write a tile array of noise, a random block repeated a hundred times; returns its SHA-256."""
    digest = hashlib.sha256()
    block = noise(max(1, count // 100))[0]
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (count, 96, 96, 3)}
        )
        for start in range(0, count, len(block)):
            stream.write(block[: count - start].data)
    with path.open("rb") as stream:
        while chunk := stream.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()


def first_step(path: Path, sha256: str, name: str, batch: int, device: torch.device, started: float) -> None:
    """Read the whole store, build a network and take one step, in the process that `measure_start` starts."""
    tiles = read_array(path, sha256=sha256)
    tiles_read = time.time()
    labels = (np.arange(len(tiles)) % 5 < 2).astype(np.float32)
    config = Config(hed_jitter=0.05, batch_size=batch)
    ours = OurTraining(backbone_of(name), tiles, labels, config, device=device)
    ours.step.total = 1  # the plan ends after one step
    ours.train()
    wait_for(device)
    seconds = {
        "first step, s": round(time.time() - started, 2),
        "until the tiles were read, s": round(tiles_read - started, 2),
    }
    print(
        json.dumps(
            {"tiles": len(tiles), "GiB": round(tiles.nbytes / 2**30, 2), **seconds, **peak_memory(device)}
        )
    )


def measure_start(arguments: argparse.Namespace, device: torch.device) -> None:
    """Measure the seconds from a process's start to the end of its first step, with a store of full size."""
    name = arguments.networks[0].split(":")[0]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = Path(folder) / "tiles-train.npy"
        sha256 = write_store(path, arguments.store_tiles)
        command = this_program(name, arguments, device, "--first-step", str(path), sha256)
        processes = [run_processes([*command, str(time.time())])[0] for _ in range(arguments.rounds)]
    first = processes[0]
    print(f"\nstart: {name}, {first['tiles']:,} tiles, {first['GiB']} GiB; {len(processes)} processes")
    for key in [key for key in first if key not in ("tiles", "GiB")]:
        values = [process[key] for process in processes]
        print(f"  {key}: {np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    write_result("gpu-start", {"network": name, "processes": processes})


def main() -> None:
    """Measure each network, then the start of a process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME:SIDE")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="worker processes of the other loaders"
    )
    parser.add_argument("--no-peers", action="store_true", help="without the other libraries")
    parser.add_argument("--no-compile", action="store_true", help="without compilation")
    parser.add_argument(
        "--store-tiles",
        type=int,
        default=FULL_SIZE,
        help="tiles of the training set for the start; 0: skip it",
    )
    parser.add_argument("--scratch", type=Path, help="folder for that training set; default: the system's")
    # To test the benchmark without a GPU: --device cpu --tiles 256 --networks resnet18 --steps 2.
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiles", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first-step", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--pair", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} sees no CUDA device here: "
            "run `make bench-gpu` on a machine with an NVIDIA GPU"
        )
    device = torch.device(arguments.device)
    warnings.filterwarnings("ignore", category=UserWarning)  # deprecation notices of the other libraries
    if arguments.first_step or arguments.pair:
        try:
            if arguments.pair:
                train_as_one_of_two(int(arguments.pair[0]), arguments.pair[1], arguments, device)
            else:
                path, sha256, started = arguments.first_step
                first_step(Path(path), sha256, arguments.networks[0], arguments.batch, device, float(started))
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            raise
        return
    if arguments.tiles:
        arguments.batch = arguments.tiles // arguments.steps
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {os.cpu_count()} cores")
    failed: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in rounds.RESULTS.glob("gpu-*.json")}
    for network in arguments.networks:
        name, _, size = network.partition(":")
        try:
            measure(name, int(size or 96), arguments, device)
        except (RuntimeError, ImportError) as error:  # too little memory for one network: measure the others
            failed.append(f"{network}: {error}")
            print(failed[-1], file=sys.stderr)
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    measurements = {"two processes": measure_pair} | (
        {"start": measure_start} if arguments.store_tiles else {}
    )
    for name, measure_in_processes in measurements.items():
        try:
            measure_in_processes(arguments, device)
        except (OSError, MeasurementError) as error:  # the disk is full, or a process failed
            failed.append(f"{name}: {error}")
            print(failed[-1], file=sys.stderr)
    now = sorted(path for path in rounds.RESULTS.glob("gpu-*.json") if path.stem != REPORT)
    write_report([path for path in now if path.stat().st_mtime_ns != before.get(path)], device, failed)
    if failed:
        sys.exit("not measured:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
