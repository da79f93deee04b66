"""Augmented batches on the CPU: this project against albumentations, kornia, torchvision, timm and fastai.

    python benchmarks/batches.py DIR        a folder in competition layout

The other libraries are those of benchmarks/requirements.txt. The work: uint8 tiles in memory become
normalised float32 batches of 128, in a new order each round, with flips, right-angle rotations, HED stain
jitter, and jitter of brightness, contrast, saturation and hue. Each library does the nearest it offers, and
its row names the missing part. Ours is therefore also timed without stain jitter. A lower bound is the
conversion to float32 alone.

Within one process each library uses its default number of threads. A worker process has one thread, and
workers live from round to round. The methods run in turn; ratios are taken within a round.
"""

import argparse
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import peers  # noqa: E402
from benchmarks.rounds import interleave, report  # noqa: E402
from benchmarks.tiles import read_tiles  # noqa: E402
from lib.config import Config  # noqa: E402
from lib.data.batches import load_batches  # noqa: E402
from lib.image.augment import augment  # noqa: E402
from lib.model.network import Classifier  # noqa: E402
from lib.training.epoch import TrainingSet, plan_epoch  # noqa: E402

BATCH, ROUNDS, TILES = 128, 7, 2000
CPU = torch.device("cpu")
OURS, OURS_PLAIN = "ours", "ours, without HED"
LIMIT, IN_PLACE = "limit: cast and normalise", "limit: cast and normalise in place"
TARGET_OF_LIMIT, TARGET_OF_PEERS = 0.35, 4.0


def our_batches(tiles: np.ndarray, labels: np.ndarray, config: Config) -> Callable[[], int]:
    """A function that loads and augments one epoch of batches; it includes the order and the random draws."""
    network = Classifier(torch.nn.Identity(), input_size=tiles.shape[1], mean=peers.MEAN, std=peers.STD)
    training_set = TrainingSet(tiles=tiles, labels=labels, rows=np.arange(len(tiles)), entropy=(0, 0, 0))
    epochs = iter(range(1_000_000))

    @torch.no_grad()
    def work() -> int:
        plan = plan_epoch(training_set, config, epoch=next(epochs))
        sizes = [size for step in plan.micro_batches for size in step]
        batches = load_batches(
            tiles, plan.rows, batch_size=sizes, device=CPU, columns=(plan.labels, plan.draws)
        )
        return sum(len(network.normalise(augment(images, draws, config))) for images, (_, draws) in batches)

    return work


def cast(tiles: torch.Tensor) -> torch.Tensor:
    """Convert (B, 96, 96, 3) uint8 to normalised (B, 3, 96, 96) float32 in one line, as in tutorials."""
    mean, std = torch.tensor(peers.MEAN).view(3, 1, 1), torch.tensor(peers.STD).view(3, 1, 1)
    return (tiles.permute(0, 3, 1, 2).float().div_(255) - mean) / std


def cast_in_place(tiles: torch.Tensor) -> torch.Tensor:
    """Convert in the fewest passes over memory: the fastest of seven variants (2026-11-24)."""
    std = torch.tensor(peers.STD).view(3, 1, 1)
    images = tiles.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.mul_(1 / (255 * std)).sub_(torch.tensor(peers.MEAN).view(3, 1, 1) / std)


def batch_by_batch(tiles: np.ndarray, transform: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], int]:
    """A function that gathers the batches of one epoch and applies `transform` to each."""
    source = torch.from_numpy(tiles)

    @torch.no_grad()
    def work() -> int:
        whole = len(tiles) // BATCH * BATCH
        return sum(len(transform(source[rows])) for rows in torch.randperm(len(tiles))[:whole].split(BATCH))

    return work


def all_methods(
    tiles: np.ndarray, labels: np.ndarray, config: Config, workers: int
) -> dict[str, Callable[[], int]]:
    """All methods, by the name of their row."""
    plain = dataclasses.replace(config, hed_jitter=0.0)

    def loaded(make: Callable[..., object], count: int, **rest: bool) -> Callable[[], int]:
        loader = make(tiles, labels, config, batch_size=BATCH, workers=count, device=CPU, **rest)
        return lambda: sum(len(images) for images, _ in loader)  # type: ignore[attr-defined]

    def fastai(*_: object, **rest: object) -> object:
        return peers.fastai_loaders(tiles, labels, config, **rest).train

    return {
        OURS: our_batches(tiles, labels, config),
        OURS_PLAIN: our_batches(tiles, labels, plain),
        LIMIT: batch_by_batch(tiles, cast),
        IN_PLACE: batch_by_batch(tiles, cast_in_place),
        f"albumentations (H&E only), {workers} workers": loaded(
            peers.albumentations_loader, workers, hed=True
        ),
        "albumentations (H&E only), 0 workers": loaded(peers.albumentations_loader, 0, hed=True),
        f"albumentations (no HED), {workers} workers": loaded(peers.albumentations_loader, workers),
        "albumentations (no HED), 0 workers": loaded(peers.albumentations_loader, 0),
        "kornia, batches (no HED)": batch_by_batch(tiles, peers.kornia_batches(config)),
        "torchvision v2, one draw a batch (no HED)": batch_by_batch(tiles, peers.torchvision_batches(config)),
        f"torchvision v2 (no HED), {workers} workers": loaded(peers.torchvision_loader, workers),
        f"timm (no HED, no rotation), {workers} workers": loaded(peers.timm_loader, workers),
        "fastai, batch transforms (no HED)": batch_by_batch(tiles, peers.fastai_batches(config)),
        f"fastai, DataLoaders (no HED), {workers} workers": loaded(fastai, workers),
        "fastai, DataLoaders (no HED), 0 workers": loaded(fastai, 0),
    }


def verdicts(rates: dict[str, list[float]]) -> dict[str, str]:
    """Ratios of ours to the limit and to the fastest library: median of the rounds and range."""

    def ratio(ours: str, other: str) -> str:
        ratios = np.array(rates[ours]) / np.array(rates[other])
        return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"

    def fastest(names: list[str]) -> str:
        return max(names, key=lambda name: float(np.median(rates[name])))

    libraries = [name for name in rates if name not in (OURS, OURS_PLAIN, LIMIT, IN_PLACE)]
    with_stains = [name for name in libraries if "H&E" in name]
    without = [name for name in libraries if "H&E" not in name]
    out = {
        f"ours / limit (target {TARGET_OF_LIMIT})": ratio(OURS, LIMIT),
        "ours / limit in place": ratio(OURS, IN_PLACE),
    }
    if with_stains:
        best = fastest(with_stains)
        out[f"ours / fastest with stain jitter (target {TARGET_OF_PEERS:g}), {best}"] = ratio(OURS, best)
    if without:
        best = fastest(without)
        out[f"ours without HED / fastest without, {best}"] = ratio(OURS_PLAIN, best)
        out[f"ours with HED / fastest without, {best}"] = ratio(OURS, best)
    return out


def main() -> None:
    """Time all methods in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder in competition layout")
    parser.add_argument("--tiles", type=int, default=TILES, help="tiles of an epoch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="worker processes of the libraries' loaders",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # deprecation notices of the other libraries
    tiles, labels = read_tiles(arguments.data, limit=arguments.tiles)
    if len(tiles) < BATCH:
        sys.exit(
            f"{arguments.data} holds {len(tiles)} labelled tiles, fewer than a batch of {BATCH}: use more"
        )
    config = Config(hed_jitter=0.05, batch_size=BATCH)
    works = all_methods(tiles, labels, config, arguments.workers)
    rates = interleave(works, rounds=arguments.rounds)
    threads, cores = torch.get_num_threads(), os.cpu_count()
    conditions = {"tiles": len(tiles), "batch": BATCH, "threads": threads, "cores": cores}
    report("batches", rates, ours=OURS, conditions=conditions)
    for name, ratio in verdicts(rates).items():
        print(f"  {name}: {ratio}")


if __name__ == "__main__":
    main()
