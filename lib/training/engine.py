"""One epoch: order, batches, augmentation, loss, step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from lib.config import Config
from lib.data.batches import load_batches
from lib.errors import KernelError
from lib.image.augment import Draws, augment
from lib.model.network import Classifier, autocast
from lib.training.optimizer import OptimizerStep

_LOOK_EVERY = 50  # steps between looks at the loss: each look waits for the GPU


class TrainingError(KernelError):
    """Training went wrong in a way that more training does not mend; the message says where and what to try."""


@dataclass(frozen=True, kw_only=True)
class Part:
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


def epoch_order(part: Part, *, epoch: int, balance: str) -> tuple[np.ndarray, np.ndarray]:
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


def positive_weight(part: Part, balance: str) -> float:
    """The weight of a positive in the loss: negatives per positive for `balance = "loss"`, otherwise 1."""
    if balance != "loss":
        return 1.0
    labels = part.labels[part.rows]
    return float((labels == 0).sum() / (labels == 1).sum())


def train_one_epoch(
    network: Classifier,
    part: Part,
    step: OptimizerStep,
    *,
    epoch: int,
    config: Config,
    device: torch.device,
    precision: torch.dtype,
    look: Callable[[], None] | None = None,
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

    Returns:
        The mean loss of the epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    network.train()
    # Dropout and stochastic depth draw from torch's own generator. Seeded for each epoch, not once, so that a member
    # that goes on after an interruption draws what it would have drawn.
    torch.manual_seed(int(np.random.SeedSequence([*part.entropy, 2, epoch]).generate_state(1)[0]))
    order, occurrence = epoch_order(part, epoch=epoch, balance=config.balance)
    draws = Draws(entropy=[*part.entropy, 3, epoch], rows=len(part.tiles))
    weight = torch.tensor(positive_weight(part, config.balance), device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    at = trained = 0
    for number, (images, rows) in enumerate(load_batches(part.tiles, order, batch_size=config.batch_size, device=device)):
        drawn = draws.take(rows, occurrence[at : at + len(rows)]).to(device, non_blocking=True)
        at += len(rows)
        labels = torch.from_numpy(part.labels[rows]).to(device, non_blocking=True)  # (B,)
        # BatchNorm cannot learn from one value: a lone last tile waits for the next epoch.
        if len(rows) == 1 < config.batch_size and number:
            continue
        with torch.no_grad():
            if network.input_size < images.shape[-1]:
                images = network.resize(images)  # first, because fewer pixels are cheaper to augment
            images = augment(images, drawn, config)
        with autocast(device, precision):
            logits = network(images)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), labels, pos_weight=weight)
        step(loss)
        total += loss.detach() * len(rows)
        trained += len(rows)
        if number % _LOOK_EVERY == 0:
            _demand_finite(total, epoch=epoch, number=number, step=step)
            if look is not None:
                look()
        if step.left <= 0:
            break
    _demand_finite(total, epoch=epoch, number=number, step=step)
    return float(total) / trained


def _demand_finite(total: torch.Tensor, *, epoch: int, number: int, step: OptimizerStep) -> None:
    if torch.isfinite(total):
        return
    raise TrainingError(
        f"the loss is not a number any more (epoch {epoch + 1}, by step {number + 1}, learning rate {step.learning_rate:.2g}).\n"
        "Lower the learning rate (--set learning_rate=...), warm up (--set warmup_epochs=1), clip (--set clip_gradient=1), "
        "or compute in float32 (--set precision=float32)."
    )
