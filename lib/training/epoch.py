"""One epoch: order, batches, augmentation, loss, step."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lib.config import Config
from lib.data.batches import as_images, load_batches
from lib.errors import KernelError
from lib.image.augment import AugmentationDraws, augment, symmetries
from lib.model.network import Classifier, autocast
from lib.training.distributed import ALONE, DistributedContext
from lib.training.ema import WeightAverage
from lib.training.mixup import build_mix, smooth
from lib.training.optimizer import OptimizerStep, build_optimizer

_LOOK_EVERY = 50  # steps between looks at the loss: each look waits for the GPU


class TrainingError(KernelError):
    """Training went wrong in a way that more training does not mend; the message says where and what to try."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a member learns from.

    Attributes:
        tiles: (N, 96, 96, 3) uint8, all tiles.
        labels: (N,) float32, 0 or 1.
        rows: (M,) int64, the tiles outside the fold.
        entropy: the root of the member's seeds: (seed, fold, member).
    """

    tiles: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    entropy: tuple[int, ...]


def epoch_order(part: TrainingSet, *, epoch: int, balance: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one epoch in their order, and how often each came before in it.

    `sampler` draws both classes equally often, with repeats; otherwise every row comes once.
    """
    generator = np.random.default_rng(np.random.SeedSequence([*part.entropy, 1, epoch]))
    if balance != "sampler":
        return generator.permutation(part.rows), np.zeros(len(part.rows), dtype=np.int64)
    labels = part.labels[part.rows]
    share = labels.mean()
    weight = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) / len(labels)
    order = generator.choice(part.rows, size=len(part.rows), p=weight / weight.sum())
    by_row = np.argsort(order, kind="stable")
    ordered = order[by_row]
    first = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    lengths = np.diff(np.concatenate([first, [len(ordered)]]))
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[by_row] = np.arange(len(ordered)) - np.repeat(first, lengths)
    return order, occurrence


def positive_weight(part: TrainingSet, balance: str) -> float:
    """The weight of a positive in the loss: negatives per positive for `class_balance = "loss"`, otherwise 1."""
    if balance != "loss":
        return 1.0
    labels = part.labels[part.rows]
    return float((labels == 0).sum() / (labels == 1).sum())


@dataclass(frozen=True)
class Shard:
    """Which part of every step's tiles a process works on, and in how many passes."""

    rank: int = 0
    size: int = 1
    passes: int = 1


def tiles_a_step(part: TrainingSet, config: Config) -> int:
    """Tiles of one optimiser step, all processes together: the batch size, or all there are when they are fewer."""
    return min(config.batch_size, len(part.rows))


def steps_an_epoch(part: TrainingSet, config: Config) -> int:
    """Optimiser steps of one epoch; the tiles that do not fill a step wait for another epoch, whose order is another."""
    return len(part.rows) // tiles_a_step(part, config)


@dataclass(frozen=True)
class EpochPlan:
    """What a process works on in one epoch, in its order.

    Attributes:
        rows: (M,) int64, its share of the tiles, step after step.
        labels: (M,) float32.
        draws: (M, DRAWS) float32, of the augmentation.
        passes: how many tiles each forward pass takes, step after step.
    """

    rows: np.ndarray
    labels: torch.Tensor
    draws: torch.Tensor
    passes: list[list[int]]


def plan_epoch(part: TrainingSet, config: Config, *, epoch: int, slice: Shard = Shard()) -> EpochPlan:  # noqa: B008
    """Which tiles come when, and what is drawn for them; the same whoever works on them.

    Every step's tiles are cut into one piece for each process and pass. Within a piece tiles with the same symmetry lie
    together, which a CPU augments more than twice as fast (lib.image.augment); the sum over the piece does not change.
    """
    order, occurrence = epoch_order(part, epoch=epoch, balance=config.class_balance)
    each = tiles_a_step(part, config)
    steps = len(order) // each
    draws = AugmentationDraws(entropy=[*part.entropy, 3, epoch], rows=len(part.labels)).take(
        order, occurrence
    )
    elements = symmetries(draws, config).numpy()
    # np.array_split's rule: sizes that differ by one at most.
    bounds = np.linspace(0, each, slice.size + 1).round().astype(int)
    begin, end = int(bounds[slice.rank]), int(bounds[slice.rank + 1])
    sizes = [len(piece) for piece in np.array_split(np.arange(end - begin), slice.passes) if len(piece)]
    chosen = []
    for step in range(steps):
        at = step * each + begin
        for size in sizes:
            chosen.append(at + np.argsort(elements[at : at + size], kind="stable"))
            at += size
    picked = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
    rows = order[picked]
    return EpochPlan(
        rows, torch.from_numpy(part.labels[rows]), draws[torch.from_numpy(picked)], [sizes] * steps
    )


def train_one_epoch(
    network: Classifier,
    part: TrainingSet,
    step: OptimizerStep,
    *,
    epoch: int,
    config: Config,
    device: torch.device,
    precision: torch.dtype,
    look: Callable[[], None] | None = None,
    world: DistributedContext = ALONE,
    passes: int = 1,
    forward: nn.Module | None = None,
    average: WeightAverage | None = None,
) -> float:
    """Pass once over the training rows, or as far as the plan goes.

    Args:
        network: learns.
        part: what from.
        step: how, and how many steps the plan has.
        epoch: counted from 0.
        config: the knobs.
        device: to compute on.
        precision: of the forward pass.
        look: called now and then, when the device has caught up; may shorten the plan.
        world: the processes that work on this network together.
        passes: forward passes a step's share of the tiles is cut into.
        forward: the network as it is called: itself, compiled, or wrapped to average gradients over the world.
        average: of the weights, which follows every step.

    Returns:
        The mean loss of the epoch, over all processes.

    Raises:
        TrainingError: the loss is not finite.
    """
    network.train()
    if is_frozen(epoch, config):
        freeze_backbone(network)
    forward = network if forward is None else forward
    # Dropout and stochastic depth draw from torch's own generator. Seeded for each epoch, not once, so that a member
    # that goes on after an interruption draws what it would have drawn; each process draws its own.
    entropy = [*part.entropy, 2, epoch, *([world.rank] if world.rank else [])]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    mix = build_mix(config, seed=seed)
    plan = plan_epoch(part, config, epoch=epoch, slice=Shard(world.rank, world.size, passes))
    weight = torch.full((), positive_weight(part, config.class_balance), device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    shrink = network.resize if network.input_size < part.tiles.shape[1] else None
    # The mean over the tiles of a step, of which this process sees a part; averaging over the world divides by its size.
    share = world.size / tiles_a_step(part, config)
    sizes = [size for each in plan.passes for size in each]
    batches = load_batches(
        part.tiles, plan.rows, batch_size=sizes, device=device, columns=(plan.labels, plan.draws)
    )

    def losses(number: int) -> Iterator[torch.Tensor]:
        for left, (images, (labels, drawn)) in zip(range(number - 1, -1, -1), batches, strict=False):
            with torch.no_grad():
                if network.stain_normalisation != "none":
                    images = network.normalise_stain(as_images(images))
                images = augment(images, drawn, config, shrink=shrink)
                if mix is not None:
                    images, labels = mix(images, labels)
                labels = smooth(labels, config.label_smoothing)
            with world.no_sync(forward) if left else nullcontext():
                with autocast(device, precision):
                    logits = forward(images)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = functional.binary_cross_entropy_with_logits(
                    logits, labels.to(logits.dtype), pos_weight=weight.to(logits.dtype), reduction="sum"
                )
                total.add_(loss.detach())
                yield loss * share

    trained = 0
    for number, sizes_of_step in enumerate(plan.passes):
        step(losses(len(sizes_of_step)))
        if average is not None:
            average.follow(network, step)
        trained += sum(sizes_of_step)
        if number % _LOOK_EVERY == 0:
            _demand_finite(total, epoch=epoch, number=number, step=step)
            if look is not None:
                look()
        if step.done:
            break
    batches.close()
    _demand_finite(total, epoch=epoch, number=number, step=step)
    loss, tiles = world.sum(float(total), float(trained))
    return loss / tiles


def is_frozen(epoch: int, config: Config) -> bool:
    """Whether only the head learns in this epoch, counted from 0."""
    return epoch < config.freeze_epochs


def freeze_backbone(network: Classifier) -> None:
    """Let only the head learn: nothing else has a gradient, and batch norms keep the statistics they came with.

    Raises:
        TrainingError: the backbone does not say which of its layers is the head.
    """
    head = network.head_names()
    if not head:
        raise TrainingError(
            "freeze_epochs: this backbone does not say which of its layers is the head; use --set pooling=avg"
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    for name, module in network.named_modules():
        if not f"{name}.".startswith(head):
            module.training = False


def thaw(network: Classifier) -> None:
    """Let everything learn."""
    network.requires_grad_(True)


def fewest_passes(
    network: Classifier, config: Config, *, tiles: int, device: torch.device, precision: torch.dtype
) -> int:
    """In how few passes a step's tiles fit the device, by trial on a copy of the network with the optimiser's moments.

    Args:
        network: on the device; untouched.
        config: the knobs.
        tiles: of a step and process.
        device: a CPU needs no trial: its memory is that of the machine.
        precision: of the forward pass.

    Returns:
        1, 2, 4, ...; the last one tried where two tiles a pass are left.
    """
    passes = 1
    while (
        device.type != "cpu"
        and tiles // (2 * passes) >= 2
        and not _fits(network, config, -(-tiles // passes), device, precision)
    ):
        torch.cuda.empty_cache()
        passes *= 2
    return passes


def _fits(
    network: Classifier, config: Config, tiles: int, device: torch.device, precision: torch.dtype
) -> bool:
    try:
        copy = deepcopy(network).train()
        step = OptimizerStep(
            build_optimizer(copy, config), peak=1e-9, total=2, warmup=0, clip=0.0, scaled=False
        )
        images = torch.rand(tiles, 3, config.input_size, config.input_size, device=device)
        for _ in range(2):  # the moments are there from the first step on
            with autocast(device, precision):
                logits = copy(images)
            step([logits.float().mean()])
    except torch.OutOfMemoryError:
        return False
    return True


def _demand_finite(total: torch.Tensor, *, epoch: int, number: int, step: OptimizerStep) -> None:
    if torch.isfinite(total):
        return
    raise TrainingError(
        f"the loss is not a number any more (epoch {epoch + 1}, by step {number + 1}, learning rate {step.learning_rate:.2g}).\n"
        "Lower the learning rate (--set learning_rate=...), warm up (--set warmup_epochs=1), clip (--set clip_grad_norm=1), "
        "or compute in float32 (--set precision=float32)."
    )
