"""One training epoch: the order of the tiles, their augmentation, the loss and the optimiser steps."""

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
from lib.data.device_memory import DeviceTiles, is_out_of_memory
from lib.errors import KernelError
from lib.image.augment import AugmentationDraws, augment, symmetries
from lib.model.network import Classifier, autocast
from lib.model.tuning import keep_frozen_statistics
from lib.training.distributed import SINGLE_PROCESS, DistributedContext
from lib.training.ema import WeightAverage
from lib.training.mixup import build_mix, smooth
from lib.training.optimizer import OptimizerStep, build_optimizer

_CHECK_EVERY = 50  # steps between checks of the weights and the time budget: each check waits for the GPU
# Skipped steps in a row that end a training. The scale of the losses starts at 65,536 and is halved by each:
# a network that overflows below 1/16 does not recover.
_SKIPS_IN_A_ROW = 20


class TrainingError(KernelError):
    """Training failed, and would fail again; the message says where and what to change."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The tiles and labels a member learns from.

    Attributes:
        tiles: (N, 96, 96, 3) uint8, all tiles: 6 GB for the competition's 220,025. In host memory, shared by
            all processes, and where it has room also in that of the device.
        labels: (N,) float32, 0 or 1.
        rows: (M,) int64, the tiles outside the fold.
        entropy: the root of the member's seeds: (seed, fold, member).
    """

    tiles: np.ndarray | DeviceTiles
    labels: np.ndarray
    rows: np.ndarray
    entropy: tuple[int, ...]


def epoch_order(
    training_set: TrainingSet, *, epoch: int, class_balance: str
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one epoch in their order, and how often each came before in this epoch; both (M,) int64.

    `sampler` draws both classes equally often, with repeats; otherwise every row comes once.
    """
    generator = np.random.default_rng(np.random.SeedSequence([*training_set.entropy, 1, epoch]))
    if class_balance != "sampler":
        return generator.permutation(training_set.rows), np.zeros(len(training_set.rows), dtype=np.int64)
    labels = training_set.labels[training_set.rows]
    share = labels.mean()
    weight = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) / len(labels)
    order = generator.choice(training_set.rows, size=len(training_set.rows), p=weight / weight.sum())
    # Number the repeats of each row without a loop: in a stable sort by row they follow each other in the
    # order of the epoch.
    by_row = np.argsort(order, kind="stable")
    ordered = order[by_row]
    first = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    lengths = np.diff(np.concatenate([first, [len(ordered)]]))
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[by_row] = np.arange(len(ordered)) - np.repeat(first, lengths)
    return order, occurrence


def positive_weight(training_set: TrainingSet, class_balance: str) -> float:
    """The weight of a positive in the loss: negatives per positive if `class_balance` is `loss`, else 1."""
    if class_balance != "loss":
        return 1.0
    labels = training_set.labels[training_set.rows]
    return float((labels == 0).sum() / (labels == 1).sum())


@dataclass(frozen=True)
class Shard:
    """One process's part of every step's tiles, and the number of forward passes it is cut into."""

    rank: int = 0
    size: int = 1
    grad_accum_steps: int = 1


def tiles_per_step(training_set: TrainingSet, config: Config) -> int:
    """Tiles of one optimiser step, of all processes: the batch size, or all tiles when they are fewer."""
    return min(config.batch_size, len(training_set.rows))


def steps_per_epoch(training_set: TrainingSet, config: Config) -> int:
    """Optimiser steps of one epoch; tiles that do not fill a step are left out, other ones in each epoch."""
    return len(training_set.rows) // tiles_per_step(training_set, config)


@dataclass(frozen=True)
class EpochPlan:
    """The tiles a process works on in one epoch, in their order.

    Attributes:
        rows: (M,) int64, its share of the tiles, step after step.
        labels: (M,) float32.
        draws: (M, DRAWS) float32, random numbers of the augmentation.
        micro_batches: per step, the number of tiles of each forward pass.
    """

    rows: np.ndarray
    labels: torch.Tensor
    draws: torch.Tensor
    micro_batches: list[list[int]]


def plan_epoch(
    training_set: TrainingSet,
    config: Config,
    *,
    epoch: int,
    shard: Shard = Shard(),  # noqa: B008
) -> EpochPlan:
    """The order of an epoch's tiles and their draws, which do not depend on the number of processes.

    Every step's tiles are cut into one piece for each process and forward pass. Within a piece the tiles are
    sorted by their flip and rotation, because a CPU augments them more than twice as fast so
    (lib.image.augment). The sum over the piece does not change.
    """
    order, occurrence = epoch_order(training_set, epoch=epoch, class_balance=config.class_balance)
    per_step = tiles_per_step(training_set, config)
    steps = len(order) // per_step
    source = AugmentationDraws(entropy=[*training_set.entropy, 3, epoch], rows=len(training_set.labels))
    draws = source.take(order, occurrence)
    elements = symmetries(draws, config).numpy()  # (M,) the element of D4 of each tile
    # np.array_split's rule: sizes differ by at most one.
    bounds = np.linspace(0, per_step, shard.size + 1).round().astype(int)
    begin, end = int(bounds[shard.rank]), int(bounds[shard.rank + 1])
    pieces = np.array_split(np.arange(end - begin), shard.grad_accum_steps)
    sizes = [len(piece) for piece in pieces if len(piece)]
    sorted_pieces = []
    for step in range(steps):
        start = step * per_step + begin
        for size in sizes:
            sorted_pieces.append(start + np.argsort(elements[start : start + size], kind="stable"))
            start += size
    positions = np.concatenate(sorted_pieces) if sorted_pieces else np.empty(0, dtype=np.int64)
    rows = order[positions]
    labels = torch.from_numpy(training_set.labels[rows])
    return EpochPlan(rows, labels, draws[torch.from_numpy(positions)], [sizes] * steps)


class RunningLoss:
    """Sum of the finite losses of an epoch and the number of their tiles, on the device: adding never waits.

    A loss in float16 may overflow now and then. Its step is skipped, and the mean is that of the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._total, self._tiles = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))

    def add(self, loss: torch.Tensor, tiles: int) -> None:
        """Add a loss, () summed over its tiles."""
        finite = torch.isfinite(loss)
        self._total.add_(torch.where(finite, loss, 0.0))
        self._tiles.add_(finite * float(tiles))

    def sums(self) -> tuple[float, float]:
        """The sum of the losses, and the number of tiles in it; waits for the device."""
        return float(self._total), float(self._tiles)


class FiniteBuffers:
    """The running statistics of the batch norms of a network, without the values of an overflow.

    A skipped step changes no weight, but its forward pass has changed these statistics already. Without this,
    one overflow would spoil every prediction.
    """

    def __init__(self, network: nn.Module) -> None:
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._last = self._flat()

    def _flat(self) -> torch.Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else torch.empty(0)

    @torch.no_grad()
    def restore(self) -> None:
        """Replace each value that is not finite by the last finite one; does not wait for the device."""
        if not self._buffers:
            return
        values = self._flat()
        self._last = torch.where(torch.isfinite(values), values, self._last)
        parts = self._last.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(
            self._buffers, [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)]
        )


def train_one_epoch(
    network: Classifier,
    training_set: TrainingSet,
    step: OptimizerStep,
    *,
    epoch: int,
    config: Config,
    device: torch.device,
    precision: torch.dtype,
    check_budget: Callable[[], None] | None = None,
    report: Callable[[int], None] | None = None,
    context: DistributedContext = SINGLE_PROCESS,
    grad_accum_steps: int = 1,
    forward: nn.Module | None = None,
    average: WeightAverage | None = None,
) -> float:
    """Train one epoch, or until the plan of `step` is done.

    Args:
        network: on the device.
        training_set: the tiles and labels.
        step: the optimiser with its schedule.
        epoch: from 0; with the entropy of the training set it decides every random draw.
        config: the options.
        device: of the network.
        precision: of the forward pass.
        check_budget: called every few steps, when the device has caught up; may shorten the plan.
        report: called after every step with the tiles of the epoch so far, of all processes; the device may
            be a few steps behind.
        context: the processes that train this network together.
        grad_accum_steps: forward passes per step and process (gradient accumulation).
        forward: the network as it is called: itself, compiled, or wrapped for all-reduce.
        average: of the weights; updated after every step.

    Returns:
        The mean loss of the epoch, over all processes.

    Raises:
        TrainingError: the weights are not finite, no loss is, or too many steps in a row were skipped.
    """
    network.train()
    keep_frozen_statistics(network)
    if is_frozen(epoch, config):
        freeze_backbone(network)
    forward = network if forward is None else forward
    # Dropout and stochastic depth use torch's global generator. It is seeded for each epoch, so that a
    # resumed member draws the same numbers; each process has its own seed.
    entropy = [*training_set.entropy, 2, epoch, *([context.rank] if context.rank else [])]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    mix = build_mix(config, seed=seed)
    shard = Shard(context.rank, context.size, grad_accum_steps)
    plan = plan_epoch(training_set, config, epoch=epoch, shard=shard)
    pos_weight = torch.full((), positive_weight(training_set, config.class_balance), device=device)
    running_loss = RunningLoss(device)
    buffers = FiniteBuffers(network) if step.scaler.is_enabled() else None
    downscale = network.resize if network.input_size < training_set.tiles.shape[1] else None
    # The loss of a pass is a sum over its tiles. This factor makes the gradient that of the mean over all
    # tiles of the step: all-reduce divides by the number of processes.
    scale = context.size / tiles_per_step(training_set, config)
    sizes = [size for sizes_of_step in plan.micro_batches for size in sizes_of_step]
    # The loader copies the uint8 tiles of the next pass to the device while this one computes: 256 tiles are
    # 7 MB, as float32 they would be 28 MB.
    batches = load_batches(
        training_set.tiles, plan.rows, batch_size=sizes, device=device, columns=(plan.labels, plan.draws)
    )

    def losses(passes: int) -> Iterator[torch.Tensor]:
        """The scaled loss of each forward pass of one step, () float32."""
        for passes_left, (images, (labels, draws)) in zip(range(passes - 1, -1, -1), batches, strict=False):
            # images: (B, 3, 96, 96) uint8, channels last; labels: (B,) float32; draws: (B, DRAWS) float32
            with torch.no_grad():
                if network.stain_normalisation != "none":
                    images = network.normalise_stain(as_images(images))  # (B, 3, 96, 96) float32
                # (B, 3, H, W) float32 in [0, 1]: four times the bytes of the tiles. Where the network's input
                # is smaller than a tile, it is downscaled first: fewer pixels to augment.
                images = augment(images, draws, config, shrink=downscale)
                if mix is not None:
                    images, labels = mix(images, labels)
                labels = smooth(labels, config.label_smoothing)
            # All-reduce only in the backward of the last pass: the gradients of the others accumulate in this
            # process.
            with context.no_sync(forward) if passes_left else nullcontext():
                with autocast(device, precision):
                    logits = _forward(forward, images)  # (B,)
                logits = logits.to(
                    torch.promote_types(logits.dtype, torch.float32)
                )  # loss in float32 or better
                loss = functional.binary_cross_entropy_with_logits(
                    logits, labels.to(logits.dtype), pos_weight=pos_weight.to(logits.dtype), reduction="sum"
                )
                running_loss.add(loss.detach(), len(labels))
                yield loss * scale  # its backward runs before the next pass, and frees the activations

    for number, sizes_of_step in enumerate(plan.micro_batches):
        step(losses(len(sizes_of_step)))
        if buffers is not None:
            buffers.restore()
        if average is not None:
            average.update_after(network, step)
        if report is not None:
            report((number + 1) * tiles_per_step(training_set, config))
        if number % _CHECK_EVERY == 0:
            _require_finite(network, epoch=epoch, number=number, step=step)
            if check_budget is not None:
                check_budget()
        if step.done:
            break
    batches.close()
    _require_finite(network, epoch=epoch, number=number, step=step)
    loss, tiles = context.sum(*running_loss.sums())
    if not tiles:
        raise _divergence("the loss is not finite", epoch=epoch, number=number, step=step)
    return loss / tiles


def is_frozen(epoch: int, config: Config) -> bool:
    """True if only the head learns in this epoch, counted from 0."""
    return epoch < config.freeze_epochs


def freeze_backbone(network: Classifier) -> None:
    """Let only the head learn: nothing else has a gradient, and batch norms keep their running statistics.

    Raises:
        TrainingError: the backbone does not name its head.
    """
    head = network.head_names()
    if not head:
        raise TrainingError("freeze_epochs: this backbone does not name its head; use --set pooling=avg")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    for name, module in network.named_modules():
        if not f"{name}.".startswith(head):
            module.training = False


def _forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B,) of a forward pass of the training; its activations are the largest tensors there are."""
    try:
        logits: torch.Tensor = network(images)
    except ValueError as error:
        if len(images) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "a batch norm over a map of 1 x 1 needs two tiles in a forward pass, and there is one. Use a "
            "larger batch (--set batch_size=...), fewer passes per step (--set grad_accum_steps=...) or a "
            "larger input (--set input_size=...)."
        ) from error
    return logits


def memory_for_training(config: Config, *, tiles: int) -> int:
    """Bytes of device memory to keep free for a training and its predictions, beside the tiles.

    6 GiB for a pass of 256 tiles at 96 px, in proportion to the pixels of the first feature map; at least 2.
    SE-ResNeXt50 needs 3.4 GiB for such a pass by torch's allocator (benchmarks/gpu_counts.py); the rest is
    for the workspaces of cuDNN. When the reserve is too small, the tiles are freed.

    Args:
        config: input_size, stem and eval_batch_size. A prediction keeps no activations for a backward pass:
            it needs about a sixth for the same number of tiles.
        tiles: of a forward pass of the training, in one process.
    """
    passes = max(tiles, config.eval_batch_size / 6) / 256
    stem = {"keep": 1, "no_pool": 4, "no_stride": 16}[config.stem]
    return int(max(2.0, 6.0 * passes * stem * (config.input_size / 96) ** 2) * 2**30)


def find_grad_accum_steps(
    network: Classifier, config: Config, *, tiles: int, device: torch.device, precision: torch.dtype
) -> int:
    """The fewest forward passes in which a step's tiles fit the device's memory, by trial.

    The trial trains a copy of the network for two steps, with the optimiser's moments in memory.

    Args:
        network: on the device; not changed.
        config: the options.
        tiles: per step and process.
        device: a CPU needs no trial: its memory is that of the machine.
        precision: of the forward pass.

    Returns:
        1, 2, 4, ...; at most so many that two tiles are left per pass.
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
        for _ in range(
            2
        ):  # AdamW allocates its moments in the first step: the second one needs the most memory
            with autocast(device, precision):
                logits = copy(images)
            step([logits.float().mean()])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def are_finite(network: nn.Module) -> bool:
    """Whether all weights and running statistics are finite; waits for the device."""
    tensors = [*network.parameters(), *(tensor for tensor in network.buffers() if tensor.is_floating_point())]
    with torch.no_grad():
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(tensors)))


def _require_finite(network: nn.Module, *, epoch: int, number: int, step: OptimizerStep) -> None:
    """Raise if the weights are not finite, or if step after step is skipped; waits for the device."""
    if not are_finite(network):
        raise _divergence("the loss is not finite", epoch=epoch, number=number, step=step)
    if (skips := step.skips_in_a_row) >= _SKIPS_IN_A_ROW:
        problem = f"the last {skips} steps were skipped, because their gradients are not finite in float16"
        raise _divergence(problem, epoch=epoch, number=number, step=step)


def _divergence(problem: str, *, epoch: int, number: int, step: OptimizerStep) -> TrainingError:
    return TrainingError(
        f"{problem} (epoch {epoch + 1}, by step {number + 1}, learning rate {step.learning_rate:.2g}).\n"
        "Lower the learning rate (--set learning_rate=...), warm up (--set warmup_epochs=1), "
        "clip (--set clip_grad_norm=1), or compute in float32 (--set precision=float32)."
    )
