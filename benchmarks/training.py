"""Training on the CPU: the cost of loading batches, and one epoch of this project against other libraries.

    python benchmarks/training.py DIR       a folder in competition layout

The other libraries are those of benchmarks/requirements.txt. Two networks are so small that loading matters:
two convolutions, and timm's test_resnet. The third, EfficientNet-Lite0, is the smallest that people use. All
are at 96 pixels, in batches of 128, with random weights: only speed counts here. `train_one_epoch` runs in
three ways: unchanged; with one fixed batch instead of the loader (augmentation, forward, loss, backward and
step, without loading); and with a loader without prefetch. The methods run in turn; ratios are taken within
a round. The name of a library's row states what it lacks of our augmentation. Its workers stay between
epochs.
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
from lib.training.distributed import SINGLE_PROCESS, DistributedContext  # noqa: E402
from lib.training.epoch import TrainingSet, train_one_epoch  # noqa: E402
from lib.training.optimizer import OptimizerStep, build_optimizer  # noqa: E402

BATCH, ROUNDS, TILES = 128, 5, 2000
TWO_LAYERS = "two convolutions"
NETWORKS = (TWO_LAYERS, "test_resnet.r160_in1k", "tf_efficientnet_lite0.in1k")
REAL, FIXED, NO_PREFETCH = (
    "ours",
    "ours, one fixed batch: no loading",
    "ours, without prefetch",
)
Loader = Callable[..., Iterator[Batch]]


def backbone_of(name: str, *, size: int = 96) -> nn.Module:
    """Build a network with one logit and random weights."""
    if name == TWO_LAYERS:
        convolutions = [nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))
    fixed_size = {"img_size": size} if name.startswith(("vit", "deit")) else {}
    return timm.create_model(name, pretrained=False, num_classes=1, **fixed_size)


class TimedLoader:
    """A loader that measures for how long its caller waits.

    Attributes:
        first: seconds until the first batch of each epoch, which prefetch cannot hide.
        waited: seconds of waiting for all other batches.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader, self.first, self.waited = loader, 0.0, 0.0

    def __call__(self, *parts: object, **rest: object) -> Iterator[Batch]:
        """Load the batches of an epoch; arguments as for `load_batches`."""
        batches, started = self.loader(*parts, **rest), time.perf_counter()
        for number, batch in enumerate(batches):
            seconds = time.perf_counter() - started
            if number == 0:
                self.first += seconds
            else:
                self.waited += seconds
            yield batch
            started = time.perf_counter()


class FixedLoader:
    """A loader that loads one batch and returns it at every step, from the device's memory."""

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
        """Return the fixed batch at every step; arguments as for `load_batches`, with one batch size."""
        if self.batch is None:
            self.batch = next(
                load_batches(tiles, rows, batch_size=batch_size, device=device, columns=columns)
            )
        for _ in batch_size:
            yield self.batch


def load_without_prefetch(
    tiles: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: Sequence[int],
    device: torch.device,
    columns: Sequence[torch.Tensor],
) -> Iterator[Batch]:
    """Load each batch when the caller needs it; arguments as for `load_batches`."""
    source, order, start = torch.from_numpy(tiles), torch.from_numpy(rows), 0
    for size in batch_size:
        batch = slice(start, start + size)
        images = source.index_select(0, order[batch]).to(device).permute(0, 3, 1, 2)
        yield images, tuple(column[batch].to(device) for column in columns)
        start += size


@contextmanager
def use_loader(loader: Loader) -> Iterator[None]:
    """Replace `load_batches` in `train_one_epoch` by another loader."""
    original = epoch.load_batches
    epoch.load_batches = loader  # type: ignore[assignment]
    try:
        yield
    finally:
        epoch.load_batches = original


class OurTraining:
    """A network of this project that trains one epoch at a time."""

    def __init__(
        self,
        backbone: nn.Module,
        tiles: np.ndarray,
        labels: np.ndarray,
        config: Config,
        *,
        device: torch.device,
        compiled: bool = False,
        precision: str = "auto",
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self.config, self.device = config, device
        self.precision = choose_precision(precision, device)
        network = Classifier(backbone, input_size=config.input_size, mean=peers.MEAN, std=peers.STD)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.context = context
        called = torch.compile(self.network) if compiled else self.network
        self.forward = context.wrap(called, sync_batchnorm=config.sync_batchnorm)  # type: ignore[arg-type]
        rows = np.arange(len(tiles))
        self.training_set = TrainingSet(tiles=tiles, labels=labels, rows=rows, entropy=(0, 0, 0))
        scaled = self.precision == torch.float16
        optimizer = build_optimizer(self.network, config)
        self.step = OptimizerStep(optimizer, peak=1e-4, total=100_000, warmup=0, clip=0.0, scaled=scaled)
        self.epoch = 0

    def train(self, loader: Loader = load_batches) -> int:
        """Train one epoch with batches of this loader; returns the number of tiles."""
        with use_loader(loader):
            train_one_epoch(
                self.network,
                self.training_set,
                self.step,
                epoch=self.epoch,
                config=self.config,
                device=self.device,
                precision=self.precision,
                forward=self.forward,
                context=self.context,
            )
        self.epoch += 1
        steps = epoch.steps_per_epoch(self.training_set, self.config)
        return steps * epoch.tiles_per_step(self.training_set, self.config)


def other_loops(
    name: str,
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    device: torch.device,
    workers: int,
    size: int = 96,
    precision: str = "auto",
) -> dict[str, Callable[[], int]]:
    """By name, a function that trains one epoch in a library's own loop; each loop has its own network."""
    kind = choose_precision(precision, device)
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
            network(), notebook, device=device, precision=kind
        ).train,
        f"timm's loader, {workers} workers (no HED, no rotation)": peers.Notebook(
            network(), prefetched, device=device, precision=kind
        ).train,
        f"fastai fit_one_cycle, {workers} workers (no HED)": peers.Fastai(
            network(), fastai, precision=kind
        ).train,
    }


def percent(shares: np.ndarray) -> str:
    """Median and range of shares, in percent, as text."""
    low, middle, high = 100 * shares.min(), 100 * np.median(shares), 100 * shares.max()
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def measure(name: str, tiles: np.ndarray, labels: np.ndarray, *, rounds: int, workers: int) -> None:
    """Time all methods on one network and compute the cost of loading for ours."""
    device = torch.device("cpu")
    config = Config(hed_jitter=0.05, batch_size=BATCH)
    timed, late, fixed = TimedLoader(load_batches), TimedLoader(load_without_prefetch), FixedLoader()
    ours = OurTraining(backbone_of(name), tiles, labels, config, device=device)
    first_waits: list[float] = []  # seconds until the first batch of each epoch
    waiting: dict[TimedLoader, list[float]] = {timed: [], late: []}  # waiting, as a share of a step

    def train_timed(loader: TimedLoader) -> int:
        loader.first = loader.waited = 0.0
        started = time.perf_counter()
        trained = ours.train(loader)
        seconds = time.perf_counter() - started
        steps = trained // BATCH
        waiting[loader].append(loader.waited / (steps - 1) / (seconds / steps))
        if loader is timed:
            first_waits.append(loader.first)
        return trained

    works = {
        REAL: lambda: train_timed(timed),
        FIXED: lambda: ours.train(fixed),
        NO_PREFETCH: lambda: train_timed(late),
    }
    works |= other_loops(name, tiles, labels, config, device=device, workers=workers)
    rates = interleave(works, rounds=rounds)
    conditions = {
        "network": name,
        "tiles": len(tiles),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "waiting for batches, share of a step": percent(np.array(waiting[timed][1:])),
        "the same without prefetch": percent(np.array(waiting[late][1:])),
        "loading, share of an epoch": percent(1 - np.array(rates[REAL]) / np.array(rates[FIXED])),
        "first batch of an epoch, ms": round(1000 * float(np.median(first_waits[1:])), 1),
    }
    report(f"training-{name.split('.')[0].replace(' ', '-')}", rates, ours=REAL, conditions=conditions)


def main() -> None:
    """Time all methods in turn, one network after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder in competition layout")
    parser.add_argument("--tiles", type=int, default=TILES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="worker processes of the other loaders",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # deprecation notices of the other libraries
    tiles, labels = read_tiles(arguments.data, limit=arguments.tiles)
    if len(tiles) < 2 * BATCH:
        sys.exit(
            f"{arguments.data} holds {len(tiles)} labelled tiles, fewer than two batches of {BATCH}: use more"
        )
    for name in arguments.networks:
        measure(name, tiles, labels, rounds=arguments.rounds, workers=arguments.workers)


if __name__ == "__main__":
    main()
