"""Self-supervised pretraining on the competition's own tiles by Barlow Twins.

Source: Zbontar et al. 2021, arXiv 2103.03230.

Two augmented views of each tile pass through the backbone and a projector. The loss drives the
cross-correlation matrix of the two projections over the batch to the identity: each dimension agrees between
the views and is independent of the others. No label is used. On two GPUs a process for each computes half of
the tiles of a step (lib.training.pretrain_workers). The correlation is that of the whole step; batch norms
use the statistics of their GPU's half.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from lib.config import Config
from lib.data.batches import load_batches
from lib.data.device_memory import DeviceTiles, TilesInTheWay, is_out_of_memory
from lib.files import sha256_of, write_atomic
from lib.image.augment import AugmentationDraws, augment
from lib.model.network import Classifier, autocast, build_network, choose_precision
from lib.model.pooling import PooledBackbone
from lib.model.weights import WEIGHTS_NAME, current_arguments
from lib.progress import Progress, describe_rate
from lib.runtime.inputs import encoder_folder
from lib.training.algorithms import select_algorithms
from lib.training.distributed import DistributedContext
from lib.training.epoch import (
    FiniteBuffers,
    RunningLoss,
    TrainingError,
    are_finite,
    memory_for_training,
)
from lib.training.optimizer import OptimizerStep, build_optimizer
from lib.training.resume import load_state, save_state
from lib.training.time_budget import Budget

logger = logging.getLogger(__name__)

HISTORY = "history-pretrain.jsonl"
UNFINISHED = ".unfinished-pretrain.safetensors"
_OFF_DIAGONAL = 0.0051  # lambda of the paper
_SMALLEST_CROP = 0.4  # share of the tile's area
_LEAST_SPREAD = (
    0.05  # of embeddings; 1 is that of random ones. Below, the network maps all tiles to one point
)
_WARMUP = 0.1  # share of the steps
_WEIGHT_DECAY = 1e-4
_IMAGENET_KEYS = ("url", "hf_hub_id", "license", "origin_url", "paper_ids", "paper_name", "notes")
USE_SMALLER_BATCHES = "use a smaller batch (--set pretrain_batch_size=...)"
_STREAM = 4  # of the seeds; 0 to 3 are those of a fold's member


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """Everything that decides the pretrained encoder.

    Attributes:
        config: backbone, mean, std, input_size, pooling, stem and the options that begin with pretrain_.
        weights: the first weights, as `folder` or `file` for `build_network`; empty for random ones.
        tiles: (N, 96, 96, 3) uint8; 8 GB for all labelled and test tiles.
        data_id: of the prepared data.
        bundle_id: of the code.
        deadline: when to be done, on the monotonic clock; infinite for no time limit.
    """

    config: Config
    tiles: np.ndarray
    data_id: str
    bundle_id: str
    weights: dict[str, Path] = field(default_factory=dict)
    deadline: float = math.inf

    def plan(self, gpus: int) -> str:
        """The hash of all that decides the result."""
        causes = {
            **asdict(self.config),
            "data": self.data_id,
            "bundle": self.bundle_id,
            "tiles": len(self.tiles),
            "weights": {name: _content(path) for name, path in self.weights.items()},
            "gpus": gpus,
        }
        return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    """The SHA-256 of a file of weights, or of the one in an encoder's folder."""
    return sha256_of(path / WEIGHTS_NAME if path.is_dir() else path)


class BarlowTwins(nn.Module):
    """Backbone, pooling and the paper's projector: three linear layers, batch norm and ReLU between."""

    def __init__(self, network: Classifier, *, projector_dim: int, precision: torch.dtype) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        # The classifier has no part in this, and all-reduce would wait for its gradient. The pool is trained.
        classifiers = tuple(name for name in network.head_names() if name != "backbone.pool.")
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not (classifiers and name.startswith(classifiers)))
        size = network.input_size
        with torch.no_grad():
            network.eval()
            channels = self.embed(torch.zeros(1, 3, size, size)).shape[1]
            network.train()
        layers: list[nn.Module] = []
        for inputs in (channels, projector_dim):
            layers += [
                nn.Linear(inputs, projector_dim, bias=False),
                nn.BatchNorm1d(projector_dim),
                nn.ReLU(inplace=True),
            ]
        self.projector = nn.Sequential(*layers, nn.Linear(projector_dim, projector_dim, bias=False))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C) embeddings of images (B, 3, H, W) in [0, 1], by the pooling that the head will use."""
        return self.network.embed(images)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) projections of each of two views (B, 3, H, W)."""
        with autocast(first.device, self.precision):
            return self.projector(self.embed(first)), self.projector(self.embed(second))


def barlow_twins_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The loss of two views' projections (B, D).

    It is the sum of (1 - c_ii)^2, plus 0.0051 times the sum of c_ij^2 off the diagonal. c_ij is the
    correlation over the batch of dimension i of one view with dimension j of the other.

    Returns:
        () float32, or float64 for float64 projections.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    first, second = (_standardise(projections.to(dtype)) for projections in (first, second))
    correlation = first.T @ second / len(first)  # (D, D): 4 MB for D = 1024, and once more for its gradient
    diagonal = correlation.diagonal()
    return (1 - diagonal).pow(2).sum() + _OFF_DIAGONAL * (correlation.pow(2).sum() - diagonal.pow(2).sum())


def _standardise(projections: torch.Tensor) -> torch.Tensor:
    centred = projections - projections.mean(dim=0)
    return centred / (centred.pow(2).mean(dim=0) + 1e-6).sqrt()


def gather_with_gradient(own: torch.Tensor, context: DistributedContext) -> torch.Tensor:
    """The projections of all processes, (size * B, D) float32 or float64; those of this one with a gradient.

    Args:
        own: (B, D), of this process.
        context: the processes.
    """
    if context.size == 1:
        return own
    own = own.to(torch.promote_types(own.dtype, torch.float32))
    parts = [torch.empty_like(own) for _ in range(context.size)]
    dist.all_gather(parts, own.detach().contiguous())
    parts[context.rank] = own
    return torch.cat(parts)


def embedding_spread(embeddings: torch.Tensor) -> float:
    """The spread of the embeddings (B, C) of different tiles: 1 for random ones, 0 when all are the same.

    It is the mean standard deviation per dimension of the embeddings scaled to length 1, times the root of C
    (Chen and He 2021, SimSiam).
    """
    normalised = functional.normalize(embeddings.float(), dim=1)
    return float(normalised.std(dim=0).mean() * math.sqrt(embeddings.shape[1]))


def random_crop(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A random square of each image, enlarged to the size of the image.

    Args:
        images: (B, 3, H, W) float32.
        draws: (B, 3) uniform in [0, 1): area (at least 40 %), horizontal and vertical position.
    """
    side = (
        _SMALLEST_CROP + (1 - _SMALLEST_CROP) * draws[:, 0]
    ).sqrt()  # (B,), as a share of the image's side
    across, down = ((1 - side) * (2 * draws[:, column] - 1) for column in (1, 2))
    zero = torch.zeros_like(side)
    matrix = torch.stack([side, zero, across, zero, side, down], dim=1).view(-1, 2, 3)  # (B, 2, 3) affine
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def strong_augmentation(config: Config) -> Config:
    """The augmentation of a view: flips, quarter turns, strong jitter, whatever the folds use."""
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
    context: DistributedContext,
    invalidate_record: Callable[[], None],
) -> tuple[list[str], dict[str, Any]]:
    """Pretrain the backbone and write it as an encoder folder; an interrupted run resumes.

    Args:
        task: tiles and options.
        folder: for the files.
        context: the processes that pretrain it together; rank 0 writes and logs.
        invalidate_record: called before the first file that readers trust is written.

    Returns:
        The names of the files, and the scores for run.json; both empty in other processes than rank 0.

    Raises:
        TrainingError: the loss is not finite, or the network maps all tiles to the same embedding.
        TilesInTheWay: out of memory on one of several processes; all must start again with the tiles in host
            memory.
    """
    tiles = DeviceTiles(task.tiles)
    with select_algorithms(context.device, deterministic=task.config.deterministic):
        while True:
            try:
                return _pretrain(
                    task, tiles=tiles, folder=folder, context=context, invalidate_record=invalidate_record
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or tiles.resident is None:
                    raise
                if context.size > 1:
                    raise TilesInTheWay from error
            # Outside the except block: the error and the tensors of its frames are freed here.
            tiles.release()


def _pretrain(
    task: PretrainTask,
    *,
    tiles: DeviceTiles,
    folder: Path,
    context: DistributedContext,
    invalidate_record: Callable[[], None],
) -> tuple[list[str], dict[str, Any]]:
    config, device, plan = task.config, context.device, task.plan(context.size)
    log = logger.info if context.rank == 0 else logger.debug
    if config.pretrain_batch_size % context.size:
        raise TrainingError(
            f"pretrain_batch_size = {config.pretrain_batch_size} cannot be shared equally by {context.size} "
            f"GPUs: use a multiple of {context.size}"
        )
    precision = choose_precision(config.precision, device)
    torch.manual_seed(_seed(config, 0))
    network = build_network(config, folder=task.weights.get("folder"), file=task.weights.get("file"))
    model = BarlowTwins(network, projector_dim=config.projector_dim, precision=precision).to(device)
    steps = len(task.tiles) // config.pretrain_batch_size
    if not steps:
        raise TrainingError(
            f"pretrain_batch_size = {config.pretrain_batch_size} is too large: "
            f"there are only {len(task.tiles):,} tiles"
        )
    planned = steps * config.pretrain_epochs
    step = OptimizerStep(
        build_optimizer(
            model,
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
    history = load_state(folder / UNFINISHED, plan=plan, modules={"model": model}, step=step)
    forward = context.wrap(model, sync_batchnorm=False)
    log(
        "%s tiles, %d epochs of %d steps, %s on %s%s%s",
        f"{len(task.tiles):,}",
        config.pretrain_epochs,
        steps,
        str(precision).removeprefix("torch."),
        device,
        f", {context.size} processes" if context.size > 1 else "",
        f"; resuming after epoch {len(history)}" if history else "",
    )
    pass_tiles = 2 * config.pretrain_batch_size // context.size  # each tile is used in two views
    reserve = memory_for_training(config, tiles=pass_tiles)
    tiles.place(device, tiles_on=config.tiles_on, reserve=reserve, name="pretraining")
    budget = None
    if not math.isinf(task.deadline):
        budget = Budget(deadline=task.deadline, fixed_schedule=config.fixed_schedule)
        budget.begin(step)
    for epoch in range(len(history), config.pretrain_epochs):
        if step.done:  # a shortened plan that was interrupted at its end
            break
        progress = Progress(total=steps * config.pretrain_batch_size)
        try:
            loss, spread = _train_one_epoch(
                forward, model, task, tiles, step, epoch=epoch, context=context, progress=progress
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or tiles.resident is not None:
                raise
            half = config.pretrain_batch_size // 2
            raise TrainingError(
                "the device's memory does not suffice for pretrain_batch_size = "
                f"{config.pretrain_batch_size}: use --set pretrain_batch_size={half}"
            ) from error
        if budget is not None:
            if context.rank == 0:
                budget.check(step, prediction_batches=0)
            # All processes must shorten to the same plan, or all-reduce waits forever.
            if (total := context.broadcast_int(step.total)) < step.total:
                step.shorten(total - step.applied)
        history.append({"epoch": epoch + 1, "loss": loss, "spread": spread, "steps": step.total})
        speed = f", {text}" if (text := describe_rate(progress.rate)) else ""
        log(
            "epoch %d of %d, loss %.4f, spread %.3f%s", epoch + 1, config.pretrain_epochs, loss, spread, speed
        )
        context.broadcast_buffers(model)  # each process kept its own running statistics of batch norms
        if context.rank == 0:
            save_state(folder / UNFINISHED, plan=plan, modules={"model": model}, step=step, history=history)
    if context.rank:
        return [], {}
    if history[-1]["spread"] < _LEAST_SPREAD:
        raise TrainingError(
            "the pretraining collapsed: the network maps all tiles to nearly the same embedding "
            f"(spread {history[-1]['spread']:.3f}).\n"
            "Lower the learning rate (--set pretrain_learning_rate=...) or enlarge the batch "
            "(--set pretrain_batch_size=...)."
        )
    invalidate_record()
    names = _write_encoder(network, config, folder, history)
    if task.weights:
        log("it continued from %s weights, whose licence applies to the encoder", config.pretrain_weights)
    scores = {
        "loss": history[-1]["loss"],
        "spread": history[-1]["spread"],
        "epochs": len(history),
        "tiles": len(task.tiles),
    }
    return names, {**scores, "transductive": True, "tiles_seen": config.pretrain_tiles}


def _seed(config: Config, *key: int) -> int:
    return int(np.random.SeedSequence([config.seed, _STREAM, *key]).generate_state(1)[0])


def draw_epoch(
    config: Config, rows: int, epoch: int
) -> tuple[np.ndarray, list[torch.Tensor], list[torch.Tensor]]:
    """The random draws of one epoch.

    Returns:
        The order of the tiles, (M,) int64; for each of the two views the draws of the augmentation, (M,
        DRAWS) float32; for each view those of the crop, (M, 3) float32. Both in the order of the tiles.
    """
    root = [config.seed, _STREAM, 1 + epoch]
    order = np.random.default_rng(np.random.SeedSequence(root)).permutation(rows)
    order = order[: rows // config.pretrain_batch_size * config.pretrain_batch_size]
    augmentations, crops = [], []
    for view in range(2):
        augmentations.append(
            AugmentationDraws(entropy=[*root, view], rows=rows).take(
                order, np.zeros(len(order), dtype=np.int64)
            )
        )
        table = np.random.default_rng(np.random.SeedSequence([*root, view, 1, 1])).random(
            (rows, 3), dtype=np.float32
        )
        crops.append(torch.from_numpy(table[order]))
    return order, augmentations, crops


def _train_one_epoch(
    forward: nn.Module,
    model: BarlowTwins,
    task: PretrainTask,
    tiles: DeviceTiles,
    step: OptimizerStep,
    *,
    epoch: int,
    context: DistributedContext,
    progress: Progress,
) -> tuple[float, float]:
    """Train one epoch; return its mean loss and the spread of the last step's embeddings."""
    log = logger.info if context.rank == 0 else logger.debug
    config, network, device = task.config, model.network, context.device
    torch.manual_seed(_seed(config, 1, epoch, *([context.rank] if context.rank else [])))
    forward.train()
    order, augmentations, crops = draw_epoch(config, len(task.tiles), epoch)
    own = np.arange(len(order)).reshape(-1, context.size, config.pretrain_batch_size // context.size)
    own = own[:, context.rank].flatten()  # of each step its share of the tiles, (M / size,)
    strong = strong_augmentation(config)
    downscale = network.resize if network.input_size < task.tiles.shape[1] else None
    running_loss = RunningLoss(device)
    buffers = FiniteBuffers(model) if step.scaler.is_enabled() else None
    batches = load_batches(
        tiles,
        order[own],
        batch_size=config.pretrain_batch_size // context.size,
        device=device,
        columns=tuple(column[own] for column in (*augmentations, *crops)),
    )
    done = 0
    for images, (augmentation_1, augmentation_2, crop_1, crop_2) in batches:  # images: (B, 3, 96, 96) uint8
        with torch.no_grad():
            views = [  # two of (B, 3, H, W) float32
                random_crop(augment(images, draws, strong, shrink=downscale), crop)
                for draws, crop in ((augmentation_1, crop_1), (augmentation_2, crop_2))
            ]
        # The activations of both views are in memory until the backward: twice those of a fold's step.
        projections = (gather_with_gradient(part, context) for part in forward(*views))
        loss = barlow_twins_loss(*projections)  # of the whole step, in every process
        running_loss.add(loss.detach(), 1)
        # A process has the gradient of its own tiles only, and all-reduce takes the mean over processes.
        step([loss * context.size])
        if buffers is not None:
            buffers.restore()
        done += config.pretrain_batch_size
        if text := progress.update(done):
            log("epoch %d of %d: %s in this epoch", epoch + 1, config.pretrain_epochs, text)
        if step.done:
            break
    batches.close()
    total, finite = running_loss.sums()
    if not finite or not are_finite(model):
        raise TrainingError(
            f"the loss of the pretraining is not finite (epoch {epoch + 1}). Lower the learning rate "
            "(--set pretrain_learning_rate=...) or compute in float32 (--set precision=float32)."
        )
    with torch.no_grad(), autocast(device, model.precision):
        model.eval()
        embeddings = model.embed(views[0])  # (B, C)
    return total / finite, embedding_spread(embeddings)


def _write_encoder(
    network: Classifier, config: Config, folder: Path, history: list[dict[str, Any]]
) -> list[str]:
    """Write config.json and model.safetensors for timm's `local-dir:`, like the weights kernel."""
    from timm.models import save_for_hf

    backbone: Any = network.backbone
    encoder: Any = backbone.backbone if isinstance(backbone, PooledBackbone) else backbone
    # ImageNet's weights are not the source of these; their licence applies where the pretraining began there.
    foreign = set(_IMAGENET_KEYS) - ({"license"} if config.pretrain_weights == "timm" else set())
    kept = {key: value for key, value in encoder.pretrained_cfg.items() if key not in foreign}
    mean, std = (values.flatten().tolist() for values in (network.mean, network.std))
    encoder.pretrained_cfg = {**kept, "tag": "pretrained_here", "mean": mean, "std": std}
    target = folder / encoder_folder(config.backbone)
    encoder = encoder.cpu().to(memory_format=torch.contiguous_format)
    arguments = json.loads(network.encoder).get("model_args") if network.encoder else None
    if arguments:
        arguments = current_arguments(encoder, arguments)
    save_for_hf(encoder, str(target), safe_serialization=True, model_args=arguments)
    write_atomic(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in history))
    return [HISTORY, *(f"{target.name}/{path.name}" for path in sorted(target.iterdir()))]
