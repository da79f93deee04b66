"""Augmented batches on the CPU: ours against casting alone and against what other libraries offer for it.

    python benchmarks/batches.py DIR        a folder in competition layout; the peers are those of benchmarks/requirements.txt

From uint8 tiles in memory to normalised float32 batches of 128, in an order drawn anew each round: flips, right angles,
jitter of stains (HED), brightness, contrast, saturation and hue. Every peer does the nearest it offers, and its row says what
it lacks; ours is therefore timed without the stains, too. In one process each has as many threads as it takes by default; a
worker has one, and workers are kept from round to round. Contenders take turns; ratios are taken within a round.
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
LIMIT, IN_PLACE = "limit: cast and normalise", "cast and normalise, in place"
WANTED_OF_LIMIT, WANTED_OF_PEERS = 0.35, 4.0


def our_batches(tiles: np.ndarray, labels: np.ndarray, config: Config) -> Callable[[], int]:
    """An epoch of our batches at each call, draws and order included."""
    network = Classifier(torch.nn.Identity(), input_size=tiles.shape[1], mean=peers.MEAN, std=peers.STD)
    training_set = TrainingSet(tiles=tiles, labels=labels, rows=np.arange(len(tiles)), entropy=(0, 0, 0))
    epochs = iter(range(1_000_000))

    @torch.no_grad()
    def work() -> int:
        plan = plan_epoch(training_set, config, epoch=next(epochs))
        sizes = [size for each in plan.micro_batches for size in each]
        batches = load_batches(
            tiles, plan.rows, batch_size=sizes, device=CPU, columns=(plan.labels, plan.draws)
        )
        return sum(len(network.normalise(augment(images, drawn, config))) for images, (_, drawn) in batches)

    return work


def cast(tiles: torch.Tensor) -> torch.Tensor:
    """(B, 96, 96, 3) uint8 to normalised (B, 3, 96, 96) float32, one line as tutorials have it."""
    mean, std = torch.tensor(peers.MEAN).view(3, 1, 1), torch.tensor(peers.STD).view(3, 1, 1)
    return (tiles.permute(0, 3, 1, 2).float().div_(255) - mean) / std


def cast_in_place(tiles: torch.Tensor) -> torch.Tensor:
    """The same in the fewest passes: the fastest of seven ways of writing it (2026-11-24)."""
    std = torch.tensor(peers.STD).view(3, 1, 1)
    images = tiles.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.mul_(1 / (255 * std)).sub_(torch.tensor(peers.MEAN).view(3, 1, 1) / std)


def batch_by_batch(tiles: np.ndarray, transform: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], int]:
    """An epoch of gathered batches, each through `transform`, at each call."""
    source = torch.from_numpy(tiles)

    @torch.no_grad()
    def work() -> int:
        whole = len(tiles) // BATCH * BATCH
        return sum(len(transform(source[rows])) for rows in torch.randperm(len(tiles))[:whole].split(BATCH))

    return work


def contenders(
    tiles: np.ndarray, labels: np.ndarray, config: Config, workers: int
) -> dict[str, Callable[[], int]]:
    """All there are, by the names their rows carry."""
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
        "torchvision v2, batches (1 draw, no HED)": batch_by_batch(tiles, peers.torchvision_batches(config)),
        f"torchvision v2 (no HED), {workers} workers": loaded(peers.torchvision_loader, workers),
        f"timm (no HED, no turns), {workers} workers": loaded(peers.timm_loader, workers),
        "fastai, batch transforms (no HED)": batch_by_batch(tiles, peers.fastai_batches(config)),
        f"fastai, DataLoaders (no HED), {workers} workers": loaded(fastai, workers),
        "fastai, DataLoaders (no HED), 0 workers": loaded(fastai, 0),
    }


def verdicts(rates: dict[str, list[float]]) -> dict[str, str]:
    """What was wanted and what came out: median of the rounds' ratios and their range."""

    def ratio(ours: str, other: str) -> str:
        each = np.array(rates[ours]) / np.array(rates[other])
        return f"{np.median(each):.2f} ({each.min():.2f} to {each.max():.2f})"

    def best(names: list[str]) -> str:
        return max(names, key=lambda name: float(np.median(rates[name])))

    rivals = [name for name in rates if name not in (OURS, OURS_PLAIN, LIMIT, IN_PLACE)]
    stains, rest = [n for n in rivals if "H&E" in n], [n for n in rivals if "H&E" not in n]
    out = {
        f"ours / limit (wanted {WANTED_OF_LIMIT})": ratio(OURS, LIMIT),
        "ours / in place": ratio(OURS, IN_PLACE),
    }
    if stains:
        out[f"ours / best that jitters stains (wanted {WANTED_OF_PEERS:g}), {best(stains)}"] = ratio(
            OURS, best(stains)
        )
    if rest:
        out[f"ours without HED / best without, {best(rest)}"] = ratio(OURS_PLAIN, best(rest))
        out[f"ours with HED / best without, {best(rest)}"] = ratio(OURS, best(rest))
    return out


def main() -> None:
    """Time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int, default=TILES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="of the peers' loaders"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # of the peers, on what they will change
    tiles, labels = read_tiles(arguments.data, limit=arguments.tiles)
    if len(tiles) < BATCH:
        sys.exit(f"{arguments.data} holds {len(tiles)} labelled tiles, fewer than a batch of {BATCH}")
    config = Config(hed_jitter=0.05, batch_size=BATCH)
    works = contenders(tiles, labels, config, arguments.workers)
    rates = interleave(works, rounds=arguments.rounds)
    facts = {"tiles": len(tiles), "batch": BATCH, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    outcome = verdicts(rates)
    report("batches", rates, ours=OURS, facts=facts)
    for wanted, came in outcome.items():
        print(f"  {wanted}: {came}")


if __name__ == "__main__":
    main()
