"""Self-supervised pretraining on the competition's own tiles: Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230).

Two augmented views of each tile go through the backbone and a projector; the correlation of their numbers over the batch is
driven to the identity: a number agrees between the views, and says nothing that another one says. No label is seen. On two
cards each takes half of the tiles of a step (`torch.nn.DataParallel`), and the correlation is that of the whole step, computed
on the first; batch norms see the half that their card has.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lib.config import Config
from lib.data.batches import load_batches
from lib.files import write_atomic
from lib.image.augment import AugmentationDraws, augment
from lib.model.network import Classifier, autocast, build_network, choose_precision
from lib.model.pooling import PooledBackbone
from lib.runtime.inputs import encoder_folder
from lib.training.epoch import TrainingError
from lib.training.optimizer import OptimizerStep, build_optimizer
from lib.training.resume import load_state, save_state
from lib.training.time_budget import Budget

HISTORY = "history-pretrain.jsonl"
UNFINISHED = ".unfinished-pretrain.safetensors"
_OFF_DIAGONAL = 0.0051  # lambda: the paper's
_SMALLEST_CROP = 0.4  # share of the tile's area
_LEAST_SPREAD = (
    0.05  # of an embedding, where 1 is that of numbers without a relation: below, all tiles look the same
)
_WARMUP = 0.1  # share of the steps
_WEIGHT_DECAY = 1e-4
_OF_OTHER_WEIGHTS = ("url", "hf_hub_id", "license", "origin_url", "paper_ids", "paper_name", "notes")
_STREAM = 4  # of the seeds: 0 to 3 are those of a fold's member


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """What is learnt from.

    Attributes:
        config: backbone, input_size, pooling, stem and the knobs that begin with pretrain_.
        tiles: (N, 96, 96, 3) uint8.
        data_id: of the prepared data.
        bundle_id: of the code.
        until: when to be done, on the monotonic clock; infinite where no clock binds.
    """

    config: Config
    tiles: np.ndarray
    data_id: str
    bundle_id: str
    until: float = math.inf

    def plan(self, cards: int) -> str:
        """The hash of all that decides the result."""
        facts = {
            **asdict(self.config),
            "data": self.data_id,
            "bundle": self.bundle_id,
            "tiles": len(self.tiles),
            "cards": cards,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class BarlowTwins(nn.Module):
    """Backbone, its pool, and the projector: three layers, batch norm and ReLU between them, as in the paper."""

    def __init__(self, network: Classifier, *, width: int, precision: torch.dtype) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        size = network.input_size
        with torch.no_grad():
            network.eval()
            channels = self.embed(torch.zeros(1, 3, size, size)).shape[1]
            network.train()
        layers: list[nn.Module] = []
        for inputs in (channels, width):
            layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.projector = nn.Sequential(*layers, nn.Linear(width, width, bias=False))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C) of images (B, 3, H, W) in [0, 1], by the pool that the head will use."""
        return self.network.embed(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, width) projections."""
        with autocast(images.device, self.precision):
            projected: torch.Tensor = self.projector(self.embed(images))
        return projected


def barlow_twins(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The loss of two views' projections (B, D): sum of (1 - c_ii)^2, and 0.0051 times the sum of c_ij^2 elsewhere.

    c is the correlation over the batch of number i of one view with number j of the other; in float32 or better.
    """
    kind = torch.promote_types(first.dtype, torch.float32)
    one, two = (_standardise(projected.to(kind)) for projected in (first, second))
    correlation = one.T @ two / len(one)  # (D, D)
    diagonal = correlation.diagonal()
    return (1 - diagonal).pow(2).sum() + _OFF_DIAGONAL * (correlation.pow(2).sum() - diagonal.pow(2).sum())


def _standardise(projected: torch.Tensor) -> torch.Tensor:
    centred = projected - projected.mean(dim=0)
    return centred / (centred.pow(2).mean(dim=0) + 1e-6).sqrt()


def spread(embedded: torch.Tensor) -> float:
    """How far embeddings (B, C) of different tiles lie apart: about 1 for unrelated numbers, 0 when all are the same.

    The mean standard deviation of the numbers of embeddings of length 1, times the root of C (Chen and He 2021, SimSiam).
    """
    length = functional.normalize(embedded.float(), dim=1)
    return float(length.std(dim=0).mean() * math.sqrt(embedded.shape[1]))


def crop_each(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A random square of each image, enlarged to the whole.

    Args:
        images: (B, 3, H, W) float32.
        draws: (B, 3) uniform in [0, 1): area (from 40 % on), and where.
    """
    side = (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * draws[:, 0]).sqrt()
    across, down = ((1 - side) * (2 * draws[:, at] - 1) for at in (1, 2))
    zero = torch.zeros_like(side)
    matrix = torch.stack([side, zero, across, zero, side, down], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def stronger(config: Config) -> Config:
    """The augmentation of a view: every symmetry, strong stain and colour jitter, whatever the folds will use."""
    return replace(
        config,
        flip=True,
        rotate="quarter",
        hed_jitter=0.08,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.06,
    )


def pretrain(
    task: PretrainTask,
    *,
    folder: Path,
    devices: Sequence[torch.device],
    say: Callable[[str], None],
    replace_outputs: Callable[[], None],
) -> tuple[list[str], dict[str, Any]]:
    """Pretrain, from where an interrupted run stopped, and leave the backbone as an encoder folder.

    Args:
        task: what from.
        folder: takes the files.
        devices: of one kind; a CPU that stands in for several cards is one.
        say: takes a line of progress.
        replace_outputs: called before the first file that readers trust is written.

    Returns:
        The names of the files, and the facts for run.json.

    Raises:
        TrainingError: the loss is not a number, or all tiles have come to look the same to the network.
    """
    config, cards = task.config, list(dict.fromkeys(devices))
    device, plan = cards[0], task.plan(len(cards))
    precision = choose_precision(config.precision, device)
    torch.manual_seed(_seed(config, 0))
    network = build_network(config)
    twin = BarlowTwins(network, width=config.projector_dim, precision=precision).to(device)
    steps = len(task.tiles) // config.pretrain_batch_size
    if not steps:
        raise TrainingError(
            f"pretrain_batch_size = {config.pretrain_batch_size}: there are only {len(task.tiles):,} tiles"
        )
    planned = steps * config.pretrain_epochs
    step = OptimizerStep(
        build_optimizer(
            twin,
            replace(
                config,
                learning_rate=config.pretrain_learning_rate,
                weight_decay=_WEIGHT_DECAY,
                layer_decay=1.0,
            ),
        ),
        peak=config.pretrain_learning_rate,
        total=planned,
        warmup=round(_WARMUP * planned),
        clip=1.0,
        scaled=precision == torch.float16,
    )
    history = load_state(folder / UNFINISHED, plan=plan, modules={"twin": twin}, step=step)
    forward: nn.Module = nn.DataParallel(twin, device_ids=cards) if len(cards) > 1 else twin
    kind = str(precision).removeprefix("torch.")
    say(
        f"{len(task.tiles):,} tiles, {config.pretrain_epochs} epochs of {steps} steps, {kind} on {', '.join(map(str, cards))}"
        + (f"; going on after epoch {len(history)}" if history else "")
    )
    budget = None
    if not math.isinf(task.until):
        budget = Budget(deadline=task.until, deterministic=config.fixed_schedule, say=say)
        budget.begin(step)
    for epoch in range(len(history), config.pretrain_epochs):
        if step.done:  # a shortened plan that was interrupted at its end
            break
        try:
            loss, apart = _epoch(forward, twin, task, step, epoch=epoch, device=device)
        except torch.OutOfMemoryError as error:
            half = config.pretrain_batch_size // 2
            text = f"the device's memory does not suffice for pretrain_batch_size = {config.pretrain_batch_size}: --set pretrain_batch_size={half}"
            raise TrainingError(text) from error
        if budget is not None:
            budget.look(step, prediction_batches=0)
        history.append({"epoch": epoch + 1, "loss": loss, "spread": apart, "steps": step.total})
        say(f"epoch {epoch + 1} of {config.pretrain_epochs}, loss {loss:.4f}, spread {apart:.3f}")
        save_state(folder / UNFINISHED, plan=plan, modules={"twin": twin}, step=step, history=history)
    if history[-1]["spread"] < _LEAST_SPREAD:
        raise TrainingError(
            f"the pretraining collapsed: all tiles look the same to the network (spread {history[-1]['spread']:.3f}).\n"
            "Lower the learning rate (--set pretrain_learning_rate=...) or enlarge the batch (--set pretrain_batch_size=...)."
        )
    replace_outputs()
    names = _leave(network, config, folder, history)
    facts = {
        "loss": history[-1]["loss"],
        "spread": history[-1]["spread"],
        "epochs": len(history),
        "tiles": len(task.tiles),
    }
    return names, {**facts, "transductive": True, "tiles_seen": config.pretrain_tiles}


def _seed(config: Config, *more: int) -> int:
    return int(np.random.SeedSequence([config.seed, _STREAM, *more]).generate_state(1)[0])


def draw_epoch(
    config: Config, rows: int, epoch: int
) -> tuple[np.ndarray, list[torch.Tensor], list[torch.Tensor]]:
    """The order of an epoch's tiles (M,), and for each of two views what is drawn for augmentation and crop, in that order."""
    root = [config.seed, _STREAM, 1 + epoch]
    order = np.random.default_rng(np.random.SeedSequence(root)).permutation(rows)
    order = order[: rows // config.pretrain_batch_size * config.pretrain_batch_size]
    looks, crops = [], []
    for view in range(2):
        looks.append(
            AugmentationDraws(entropy=[*root, view], rows=rows).take(
                order, np.zeros(len(order), dtype=np.int64)
            )
        )
        table = np.random.default_rng(np.random.SeedSequence([*root, view, 1, 1])).random(
            (rows, 3), dtype=np.float32
        )
        crops.append(torch.from_numpy(table[order]))
    return order, looks, crops


def _epoch(
    forward: nn.Module,
    twin: BarlowTwins,
    task: PretrainTask,
    step: OptimizerStep,
    *,
    epoch: int,
    device: torch.device,
) -> tuple[float, float]:
    """The mean loss, and the spread of the last step's embeddings."""
    config, network = task.config, twin.network
    torch.manual_seed(_seed(config, 1, epoch))
    forward.train()
    order, looks, crops = draw_epoch(config, len(task.tiles), epoch)
    strong = stronger(config)
    shrink = network.resize if network.input_size < task.tiles.shape[1] else None
    total = torch.zeros((), dtype=torch.float64, device=device)
    number = 0
    batches = load_batches(
        task.tiles, order, batch_size=config.pretrain_batch_size, device=device, columns=(*looks, *crops)
    )
    for images, (look_one, look_two, crop_one, crop_two) in batches:
        with torch.no_grad():
            views = [
                crop_each(augment(images, look, strong, shrink=shrink), crop)
                for look, crop in ((look_one, crop_one), (look_two, crop_two))
            ]
        loss = barlow_twins(forward(views[0]), forward(views[1]))
        total += loss.detach()
        step([loss])
        number += 1
        if step.done:
            break
    batches.close()
    mean = float(total) / max(number, 1)
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss of the pretraining is not a number any more (epoch {epoch + 1}). Lower the learning rate: "
            "--set pretrain_learning_rate=..., or compute in float32: --set precision=float32."
        )
    with torch.no_grad(), autocast(device, twin.precision):
        twin.eval()
        embedded = twin.embed(views[0])
    return mean, spread(embedded)


def _leave(network: Classifier, config: Config, folder: Path, history: list[dict[str, Any]]) -> list[str]:
    """Write the backbone as the weights kernel does: config.json and model.safetensors for timm's `local-dir:`."""
    from timm.models import save_for_hf

    body: Any = network.backbone
    inner: Any = body.backbone if isinstance(body, PooledBackbone) else body
    # What it knew of ImageNet's weights, their licence above all, is not true of these.
    kept = {key: value for key, value in inner.pretrained_cfg.items() if key not in _OF_OTHER_WEIGHTS}
    inner.pretrained_cfg = {**kept, "tag": "pretrained_here"}
    place = folder / encoder_folder(config.backbone)
    inner = inner.cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(inner, str(place), safe_serialization=True)
    write_atomic(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in history))
    return [HISTORY, *(f"{place.name}/{path.name}" for path in sorted(place.iterdir()))]
