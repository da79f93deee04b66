"""What feeding costs a training step on the CPU, and our epoch beside other libraries' on the same network and tiles.

    python benchmarks/training.py DIR       a folder in competition layout; the peers are those of benchmarks/requirements.txt

Two networks so small that feeding matters: two convolutions, and timm's test_resnet, at 96 pixels, batches of 128. Our
`train_one_epoch` runs as it is, then with one batch that stays where it is in place of the loader (so: augmentation, forward,
loss, backward, step, and no feeding), then with a loader that fetches a batch only when it is asked for. Contenders take
turns; ratios are taken within a round. A peer's row says what it lacks of our augmentation; its workers stay between epochs.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import peers  # noqa: E402
from benchmarks.rounds import interleave, report  # noqa: E402
from benchmarks.tiles import read_tiles  # noqa: E402
from lib.config import Config  # noqa: E402
from lib.data.batches import Batch, load_batches  # noqa: E402
from lib.model.network import Classifier, choose_precision  # noqa: E402
from lib.training import epoch  # noqa: E402
from lib.training.epoch import TrainingSet, train_one_epoch  # noqa: E402
from lib.training.optimizer import OptimizerStep, build_optimizer  # noqa: E402

BATCH, ROUNDS, TILES = 128, 5, 2000
TWO_LAYERS, NETWORKS = "two convolutions", ("two convolutions", "test_resnet.r160_in1k")
REAL, FIXED, LATE = (
    "ours",
    "ours, one batch that stays: no feeding",
    "ours, each batch fetched when asked for",
)
Feed = Callable[..., Iterator[Batch]]


def backbone_of(name: str, *, size: int = 96) -> nn.Module:
    """A network with one logit and random weights."""
    if name == TWO_LAYERS:
        convolutions = [nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))
    fixed_size = {"img_size": size} if name.startswith(("vit", "deit")) else {}
    return timm.create_model(name, pretrained=False, num_classes=1, **fixed_size)


class TimedFeed:
    """A feed that counts the seconds for which its caller had to wait.

    Attributes:
        first: seconds until the first batch of each epoch, which nothing can hide.
        waited: seconds for all the others.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed, self.first, self.waited = feed, 0.0, 0.0

    def __call__(self, *parts: object, **rest: object) -> Iterator[Batch]:
        """As `load_batches`."""
        batches, began = self.feed(*parts, **rest), time.perf_counter()
        for number, batch in enumerate(batches):
            seconds = time.perf_counter() - began
            self.first, self.waited = (
                (self.first, self.waited + seconds) if number else (self.first + seconds, self.waited)
            )
            yield batch
            began = time.perf_counter()


class FixedFeed:
    """A feed that hands out the first batch it ever had, on the device, again and again."""

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def __call__(
        self,
        tiles: np.ndarray,
        rows: np.ndarray,
        *,
        batch_size: Sequence[int],
        device: torch.device,
        columns: Sequence[torch.Tensor],
    ) -> Iterator[Batch]:
        """As `load_batches`, for batches of one size."""
        if self.batch is None:
            self.batch = next(
                load_batches(tiles, rows, batch_size=batch_size, device=device, columns=columns)
            )
        for _ in batch_size:
            yield self.batch


def fetch_when_asked(
    tiles: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: Sequence[int],
    device: torch.device,
    columns: Sequence[torch.Tensor],
) -> Iterator[Batch]:
    """As `load_batches`, without doing anything ahead."""
    source, order, begin = torch.from_numpy(tiles), torch.from_numpy(rows), 0
    for size in batch_size:
        cut = slice(begin, begin + size)
        images = source.index_select(0, order[cut]).to(device).permute(0, 3, 1, 2)
        yield images, tuple(column[cut].to(device) for column in columns)
        begin += size


@contextmanager
def fed_by(feed: Feed) -> Iterator[None]:
    """Let `train_one_epoch` take its batches from there."""
    own = epoch.load_batches
    epoch.load_batches = feed  # type: ignore[assignment]
    try:
        yield
    finally:
        epoch.load_batches = own


class OurTraining:
    """A network of ours, trained epoch after epoch.

    Attributes:
        seconds: of all epochs so far, by feed.
        epochs: their count, by feed.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tiles: np.ndarray,
        labels: np.ndarray,
        config: Config,
        *,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.config, self.device = config, device
        self.precision = choose_precision("auto", device)
        network = Classifier(backbone, input_size=config.input_size, mean=peers.MEAN, std=peers.STD)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = torch.compile(self.network) if compiled else None
        self.training_set = TrainingSet(tiles=tiles, labels=labels, rows=np.arange(len(tiles)), entropy=(0, 0, 0))
        scaled = self.precision == torch.float16
        optimizer = build_optimizer(self.network, config)
        self.step = OptimizerStep(optimizer, peak=1e-4, total=100_000, warmup=0, clip=0.0, scaled=scaled)
        self.epoch = 0

    def train(self, feed: Feed = load_batches) -> int:
        """One epoch from this feed; how many tiles it took."""
        with fed_by(feed):
            train_one_epoch(
                self.network,
                self.training_set,
                self.step,
                epoch=self.epoch,
                config=self.config,
                device=self.device,
                precision=self.precision,
                forward=self.forward,
            )
        self.epoch += 1
        return epoch.steps_per_epoch(self.training_set, self.config) * epoch.tiles_per_step(self.training_set, self.config)


def peers_loops(
    name: str,
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    device: torch.device,
    workers: int,
    size: int = 96,
) -> dict[str, Callable[[], int]]:
    """One epoch of each peer's own loop, on a network of its own with this name."""
    precision = choose_precision("auto", device)
    rest = {"batch_size": config.batch_size, "workers": workers, "device": device, "size": size}

    def network() -> nn.Module:
        return peers.OneLogit(backbone_of(name, size=size)).to(device)

    notebook = peers.albumentations_loader(tiles, labels, config, **rest)
    prefetched = peers.timm_loader(tiles, labels, config, **rest)
    fastai = peers.fastai_loaders(
        tiles, labels, config, **rest | {"size": size if size != tiles.shape[1] else None}
    )
    return {
        f"notebook loop, {workers} workers (no HED)": peers.Notebook(
            network(), notebook, device=device, precision=precision
        ).train,
        f"timm's loader, {workers} workers (no HED, turns)": peers.Notebook(
            network(), prefetched, device=device, precision=precision
        ).train,
        f"fastai fit_one_cycle, {workers} workers (no HED)": peers.Fastai(
            network(), fastai, precision=precision
        ).train,
    }


def percent(shares: np.ndarray) -> str:
    """Median and range of shares, in percent."""
    low, middle, high = 100 * shares.min(), 100 * np.median(shares), 100 * shares.max()
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def measure(name: str, tiles: np.ndarray, labels: np.ndarray, *, rounds: int, workers: int) -> None:
    """All contenders on one network, and what feeding costs ours."""
    device = torch.device("cpu")
    config = Config(hed_jitter=0.05, batch_size=BATCH)
    timed, late, fixed = TimedFeed(load_batches), TimedFeed(fetch_when_asked), FixedFeed()
    ours = OurTraining(backbone_of(name), tiles, labels, config, device=device)
    shares: dict[str, list[float]] = {"first": [], "prefetched": [], "late": []}

    def epoch(feed: TimedFeed) -> int:
        feed.first = feed.waited = 0.0
        began = time.perf_counter()
        trained = ours.train(feed)
        seconds = time.perf_counter() - began
        steps = trained // BATCH
        shares["prefetched" if feed is timed else "late"].append(
            feed.waited / (steps - 1) / (seconds / steps)
        )
        if feed is timed:
            shares["first"].append(feed.first)
        return trained

    works = {REAL: lambda: epoch(timed), FIXED: lambda: ours.train(fixed), LATE: lambda: epoch(late)}
    works |= peers_loops(name, tiles, labels, config, device=device, workers=workers)
    rates = interleave(works, rounds=rounds)
    facts = {
        "network": name,
        "tiles": len(tiles),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "waiting for batches, share of a step": percent(np.array(shares["prefetched"][1:])),
        "without prefetch": percent(np.array(shares["late"][1:])),
        "(real - fixed) / real": percent(1 - np.array(rates[REAL]) / np.array(rates[FIXED])),
        "first batch of an epoch, ms": round(1000 * float(np.median(shares["first"][1:])), 1),
    }
    report(f"training-{name.split('.')[0].replace(' ', '-')}", rates, ours=REAL, facts=facts)


def main() -> None:
    """Time them in turn, network by network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int, default=TILES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1), help="of the peers' loaders"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # of the peers, on what they will change
    tiles, labels = read_tiles(arguments.data, limit=arguments.tiles)
    if len(tiles) < 2 * BATCH:
        sys.exit(f"{arguments.data} holds {len(tiles)} labelled tiles, fewer than two batches of {BATCH}")
    for name in arguments.networks:
        measure(name, tiles, labels, rounds=arguments.rounds, workers=arguments.workers)


if __name__ == "__main__":
    main()
