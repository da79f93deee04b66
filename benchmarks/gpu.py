"""Training on a GPU: tiles per second, the share of pure computation, compiling, memory, start; beside other libraries.

    python benchmarks/gpu.py                                        every network, half an hour or so
    python benchmarks/gpu.py --networks resnet34:96 --steps 100     NAME:SIDE, in pixels

Tiles are noise and weights random, because only time is asked for. Per network, in turn: `train_one_epoch` as it is; with one
batch that stays on the device (pure computation: augmentation, forward, loss, backward, step); with each batch fetched only
when asked for; compiled; and the usual notebook's loop, timm's prefetching loader and fastai, whose rows say what they lack of
our augmentation. All in the number format `precision = auto` takes. Then: seconds from a process's start to its first step
with a training set of full size in a scratch folder (read from the page cache, because it was just written), and peak memory
of that process; and an epoch under torch.cuda.set_sync_debug_mode("error"), which passes when the loop waits for the device
only where it looks at the loss.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.rounds import interleave, report, write  # noqa: E402
from benchmarks.training import (
    FIXED,
    LATE,
    REAL,
    FixedFeed,
    OurTraining,
    backbone_of,
    fetch_when_asked,
    peers_loops,
)  # noqa: E402
from lib.config import Config  # noqa: E402
from lib.data.tile_store import read_array  # noqa: E402
from lib.training import epoch  # noqa: E402

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
COMPILED = "ours, compiled"
WANTED_OF_COMPUTE = 0.95


def noise(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 96, 96, 3) uint8 and (N,) float32 labels of both kinds."""
    generator = np.random.default_rng(0)
    tiles = np.frombuffer(generator.bytes(count * 96 * 96 * 3), dtype=np.uint8).reshape(count, 96, 96, 3)
    return tiles.copy(), (np.arange(count) % 5 < 2).astype(np.float32)


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB this process had at most, on the host and (by torch's allocator) on the device."""
    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage(2)
    peaks = {"host GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["device GiB"] = torch.cuda.max_memory_allocated(device)
    return {name: round(size / 2**30, 2) for name, size in peaks.items()}


def waits_only_where_it_looks(ours: OurTraining) -> str:
    """Train an epoch during which torch refuses to wait for the device, but for the looks at the loss.

    Returns:
        "yes", or what it waited for.
    """
    if ours.device.type != "cuda":
        return "not tried: no GPU"
    last = epoch.steps_per_epoch(ours.training_set, ours.config) - 1
    look, looks = epoch._require_finite, 0

    def looking(total: torch.Tensor, *, number: int, **rest: object) -> None:
        nonlocal looks
        torch.cuda.set_sync_debug_mode("default")
        look(total, number=number, **rest)  # type: ignore[arg-type]
        looks += 1
        if number < last:  # the epoch's end reads the loss
            torch.cuda.set_sync_debug_mode("error")

    ours.train()  # allocates, chooses algorithms
    epoch._require_finite = looking
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.train()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"no: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        epoch._require_finite = look
    return f"yes: {last + 1} steps, {looks} looks"


def measure(name: str, size: int, arguments: argparse.Namespace, device: torch.device) -> None:
    """All contenders on one network."""
    config = Config(hed_jitter=0.05, batch_size=arguments.batch, input_size=size)
    tiles, labels = noise(arguments.tiles or arguments.steps * arguments.batch)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ours = OurTraining(backbone_of(name, size=size), tiles, labels, config, device=device)
    ours.train()
    memory = peak_memory(device)
    waits = waits_only_where_it_looks(ours)
    fixed = FixedFeed()
    works: dict[str, Callable[[], int]] = {
        REAL: ours.train,
        FIXED: lambda: ours.train(fixed),
        LATE: lambda: ours.train(fetch_when_asked),
    }
    begun = 0.0
    if not arguments.no_compile:
        compiled = OurTraining(
            backbone_of(name, size=size), tiles, labels, config, device=device, compiled=True
        )
        began = time.perf_counter()
        compiled.train()
        wait_for(device)
        begun = time.perf_counter() - began
        works[COMPILED] = compiled.train
    if not arguments.no_peers:
        works |= peers_loops(name, tiles, labels, config, device=device, workers=arguments.workers, size=size)

    def waiting(work: Callable[[], int]) -> Callable[[], int]:
        def whole() -> int:
            trained = work()
            wait_for(device)
            return trained

        return whole

    rates = interleave({each: waiting(work) for each, work in works.items()}, rounds=arguments.rounds)
    shares = np.array(rates[REAL]) / np.array(rates[FIXED])
    share = f"{np.median(shares):.3f} ({shares.min():.3f} to {shares.max():.3f})"
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "network": name,
        "pixels": size,
        "batch": config.batch_size,
        "steps a round": len(tiles) // config.batch_size,
        "precision": str(ours.precision).removeprefix("torch."),
        f"share of pure computation (wanted {WANTED_OF_COMPUTE})": share,
        "waits only where it looks": waits,
        **{f"peak {where}": peak for where, peak in memory.items()},
    }
    if COMPILED in works:
        facts |= compiling(
            begun,
            plain=float(np.median(rates[REAL])),
            fast=float(np.median(rates[COMPILED])),
            tiles=len(tiles),
            config=config,
        )
    report(f"gpu-{name}-{size}", rates, ours=REAL, facts=facts)


def compiling(first: float, *, plain: float, fast: float, tiles: int, config: Config) -> dict[str, object]:
    """What compiling costs and gains.

    Args:
        first: seconds of the first epoch, which compiles.
        plain: tiles per second without.
        fast: tiles per second with.
        tiles: of an epoch.
        config: batch_size.
    """
    seconds = max(0.0, first - tiles // config.batch_size * config.batch_size / fast)
    each = config.batch_size / plain - config.batch_size / fast  # seconds a step saves
    even = f"{seconds / each:,.0f}" if each > 0 else "never"
    return {
        "compiling, s": round(seconds, 1),
        "compiled / not": round(fast / plain, 3),
        "steps to break even": even,
    }


def write_store(path: Path, count: int) -> str:
    """Write a tile array of noise; its SHA-256. A hundredth of it is drawn, and repeated."""
    digest = hashlib.sha256()
    block = noise(max(1, count // 100))[0]
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (count, 96, 96, 3)}
        )
        for at in range(0, count, len(block)):
            stream.write(block[: count - at].data)
    with path.open("rb") as stream:
        while piece := stream.read(2**24):
            digest.update(piece)
    return digest.hexdigest()


def first_step(path: Path, sha256: str, name: str, batch: int, device: torch.device, started: float) -> None:
    """Read the whole store, build a network, take one step: the other process of `measure_start`."""
    tiles = read_array(path, sha256=sha256)
    read = time.time()
    labels = (np.arange(len(tiles)) % 5 < 2).astype(np.float32)
    config = Config(hed_jitter=0.05, batch_size=batch)
    ours = OurTraining(backbone_of(name), tiles, labels, config, device=device)
    ours.step.total = 1  # the plan ends there
    ours.train()
    wait_for(device)
    seconds = {
        "first step, s": round(time.time() - started, 2),
        "of it until the tiles were read": round(read - started, 2),
    }
    print(
        json.dumps(
            {"tiles": len(tiles), "GiB": round(tiles.nbytes / 2**30, 2), **seconds, **peak_memory(device)}
        )
    )


def measure_start(arguments: argparse.Namespace, device: torch.device) -> None:
    """Seconds from a process's start to the end of its first step, with a store of full size."""
    name = arguments.networks[0].split(":")[0]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = Path(folder) / "tiles-train.npy"
        sha256 = write_store(path, arguments.store_tiles)
        command = [
            sys.executable,
            __file__,
            "--device",
            device.type,
            "--batch",
            str(arguments.batch),
            "--networks",
            name,
        ]
        seen = []
        for _ in range(arguments.rounds):
            done = subprocess.run(
                [*command, "--first-step", str(path), sha256, str(time.time())],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=ROOT,
            )
            seen.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\nstart: {name}, {seen[0]['tiles']:,} tiles, {seen[0]['GiB']} GiB; {len(seen)} processes")
    for key in [key for key in seen[0] if key not in ("tiles", "GiB")]:
        values = [each[key] for each in seen]
        print(f"  {key}: {np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    write("gpu-start", {"network": name, "processes": seen})


def main() -> None:
    """Network by network, then the start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME:SIDE")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of the peers' loaders")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--store-tiles", type=int, default=FULL_SIZE, help="of the store that is started from; 0: none"
    )
    parser.add_argument("--scratch", type=Path, help="folder for that store; the system's by default")
    # To try the benchmark itself where there is no GPU: --device cpu --tiles 256 --networks resnet18 --steps 2.
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiles", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first-step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} sees no CUDA device here: run `make bench-gpu` on a machine with an NVIDIA GPU"
        )
    device = torch.device(arguments.device)
    warnings.filterwarnings("ignore", category=UserWarning)  # of the peers, on what they will change
    if arguments.first_step:
        path, sha256, started = arguments.first_step
        first_step(Path(path), sha256, arguments.networks[0], arguments.batch, device, float(started))
        return
    if arguments.tiles:
        arguments.batch = arguments.tiles // arguments.steps
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {os.cpu_count()} cores")
    failed = []
    for network in arguments.networks:
        name, _, size = network.partition(":")
        try:
            measure(name, int(size or 96), arguments, device)
        except (
            RuntimeError,
            ImportError,
        ) as error:  # memory that does not suffice for one network leaves the others
            failed.append(f"{network}: {error}")
            print(failed[-1], file=sys.stderr)
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if arguments.store_tiles:
        measure_start(arguments, device)
    if failed:
        sys.exit("not measured:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
