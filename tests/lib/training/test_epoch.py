"""What an epoch shows to the network, in which order, and what it does when the loss is lost."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from lib.config import Config
from lib.image.augment import symmetries
from lib.image.stain import normalise_stains
from lib.model.network import Classifier, build_network
from lib.training import epoch as engine
from lib.training.ema import WeightAverage
from lib.training.epoch import (
    Shard,
    TrainingError,
    TrainingSet,
    epoch_order,
    plan_epoch,
    positive_weight,
    steps_per_epoch,
    tiles_per_step,
    train_one_epoch,
)
from lib.training.optimizer import OptimizerStep, build_optimizer

CPU = torch.device("cpu")
NO_TILES = np.empty((0, 96, 96, 3), np.uint8)


@st.composite
def training_sets(draw: st.DrawFn) -> TrainingSet:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(6, 200))
    labels = (generator.random(count) < draw(st.floats(0.1, 0.9))).astype(np.float32)
    rows = np.flatnonzero(generator.random(count) < 0.8)
    labels[rows[:2]] = [0, 1] if len(rows) > 1 else labels[rows[:2]]
    return TrainingSet(tiles=NO_TILES, labels=labels, rows=rows, entropy=(draw(st.integers(0, 99)), 0, 0))


@settings(max_examples=40, deadline=None)
@given(training_set=training_sets(), epoch=st.integers(0, 50), balance=st.sampled_from(["none", "loss"]))
def test_without_a_sampler_every_training_row_comes_once(
    training_set: TrainingSet, epoch: int, balance: str
) -> None:
    order, occurrence = epoch_order(training_set, epoch=epoch, class_balance=balance)
    assert sorted(order) == training_set.rows.tolist()
    assert occurrence.tolist() == [0] * len(order)


@settings(max_examples=40, deadline=None)
@given(training_set=training_sets(), epoch=st.integers(0, 50))
def test_the_sampler_counts_repeats_and_never_shows_a_validation_row(
    training_set: TrainingSet, epoch: int
) -> None:
    if len(training_set.rows) < 2:
        return
    order, occurrence = epoch_order(training_set, epoch=epoch, class_balance="sampler")
    assert len(order) == len(training_set.rows) and set(order) <= set(training_set.rows)
    seen: Counter[int] = Counter()
    for row, number in zip(order.tolist(), occurrence.tolist(), strict=True):
        assert number == seen[row]
        seen[row] += 1


def _training_set(rows: int = 4000, share: float = 0.2, entropy: tuple[int, ...] = (1, 2, 3)) -> TrainingSet:
    labels = (np.arange(rows) < share * rows).astype(np.float32)
    return TrainingSet(tiles=NO_TILES, labels=labels, rows=np.arange(rows), entropy=entropy)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_the_sampler_draws_both_classes_equally_often_and_all_tiles_of_a_class_alike(share: float) -> None:
    training_set = _training_set(share=share)
    order = np.concatenate(
        [epoch_order(training_set, epoch=epoch, class_balance="sampler")[0] for epoch in range(5)]
    )
    assert training_set.labels[order].mean() == pytest.approx(0.5, abs=0.02)
    counts = np.bincount(order, minlength=4000)
    for label in (0, 1):
        halves = np.array_split(counts[training_set.labels == label], 2)
        assert halves[0].sum() == pytest.approx(halves[1].sum(), rel=0.1)


@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_the_order_is_that_of_the_epoch_and_the_member(balance: str) -> None:
    def order(epoch: int, entropy: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            epoch_order(_training_set(100, entropy=entropy), epoch=epoch, class_balance=balance)[0].tolist()
        )

    drawn = [
        order(epoch, entropy) for epoch in (0, 1) for entropy in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))
    ]
    assert len(set(drawn)) == len(drawn)
    assert order(1, (1, 0, 1)) == drawn[5]


def test_the_loss_weighs_positives_only_when_it_is_asked_to() -> None:
    training_set = TrainingSet(
        tiles=NO_TILES, labels=np.array([0, 1, 0, 0, 1, 1, 1], np.float32), rows=np.arange(5), entropy=(1,)
    )
    assert positive_weight(training_set, "loss") == 1.5  # of the training rows: 3 to 2
    assert positive_weight(training_set, "none") == positive_weight(training_set, "sampler") == 1.0


def test_the_weight_of_a_positive_is_that_of_scikit_learns_balanced_classes() -> None:
    labels = (np.random.default_rng(0).random(500) < 0.3).astype(np.float32)
    training_set = TrainingSet(tiles=NO_TILES, labels=labels, rows=np.arange(0, 500, 2), entropy=(1,))
    negative, positive = compute_class_weight(
        "balanced", classes=np.array([0, 1]), y=labels[training_set.rows]
    )
    assert positive_weight(training_set, "loss") == pytest.approx(positive / negative)


def test_a_tile_is_augmented_otherwise_in_every_epoch_and_by_every_member() -> None:
    """With the same draws in every epoch the network would see only one version of each tile."""
    config, drawn = Config(batch_size=40), {}
    for entropy in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)):
        for epoch in range(3):
            plan = plan_epoch(_training_set(40, entropy=entropy), config, epoch=epoch)
            drawn[entropy, epoch] = plan.draws[torch.from_numpy(np.argsort(plan.rows))]  # by row
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not (one == other).all(dim=1).any()  # no row draws the same twice


# --- a whole epoch ------------------------------------------------------------------------------------------


def _epoch(
    learnable: tuple[np.ndarray, pd.DataFrame],
    *,
    rows: np.ndarray | None = None,
    passes: int = 1,
    **options: Any,
) -> tuple[float, Classifier, OptimizerStep]:
    tiles, index = learnable
    config = Config(input_size=32, **{"backbone": "test_resnet", "batch_size": 8, **options})
    training_set = TrainingSet(
        tiles=tiles,
        labels=index["label"].to_numpy(np.float32),
        rows=np.arange(len(tiles)) if rows is None else rows,
        entropy=(1, 0, 0),
    )
    torch.manual_seed(0)
    network = build_network(config)
    step = OptimizerStep(
        build_optimizer(network, config),
        peak=config.learning_rate,
        total=20,
        warmup=0,
        clip=0.0,
        scaled=False,
    )
    loss = train_one_epoch(
        network,
        training_set,
        step,
        epoch=0,
        config=config,
        device=CPU,
        precision=torch.float32,
        grad_accum_steps=passes,
    )
    return loss, network, step


def _weights(network: Classifier) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


def test_an_epoch_is_the_same_whatever_the_generator_held_before(
    learnable: tuple[np.ndarray, pd.DataFrame],
) -> None:
    one = _epoch(learnable, drop_rate=0.5, class_balance="sampler")
    other = _epoch(learnable, drop_rate=0.5, class_balance="sampler")
    assert one[0] == other[0] and torch.equal(_weights(one[1]), _weights(other[1]))


def test_only_training_rows_reach_the_network(learnable: tuple[np.ndarray, pd.DataFrame]) -> None:
    tiles, index = learnable
    rows = np.arange(0, 36, 2)
    spoiled = tiles.copy()
    spoiled[1::2] = 255 - spoiled[1::2]
    relabelled = index.assign(label=np.where(np.arange(36) % 2 == 1, 1 - index["label"], index["label"]))
    one, other = _epoch((tiles, index), rows=rows), _epoch((spoiled, relabelled), rows=rows)
    assert one[0] == other[0] and torch.equal(_weights(one[1]), _weights(other[1]))


PLAIN: dict[str, Any] = {
    "flip": False,
    "rotate": "none",
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}


def test_epochs_are_those_of_a_loop_of_plain_torch(learnable: tuple[np.ndarray, pd.DataFrame]) -> None:
    """Weighted loss, clipping, warm-up, cosine and decay are those of torch's own parts, in float64."""
    tiles, index = learnable
    labels = index["label"].to_numpy(np.float32)
    options = {
        "backbone": "test_vit",
        "batch_size": 8,
        "class_balance": "loss",
        "weight_decay": 0.1,
        "clip_grad_norm": 0.5,
        **PLAIN,
    }
    config = Config(input_size=96, **options)
    training_set = TrainingSet(tiles=tiles, labels=labels, rows=np.arange(36), entropy=(1, 0, 0))
    torch.manual_seed(0)
    ours = build_network(config).double()
    theirs = copy.deepcopy(ours)
    step = OptimizerStep(build_optimizer(ours, config), peak=3e-3, total=12, warmup=3, clip=0.5, scaled=False)
    ours_losses = [
        train_one_epoch(
            ours, training_set, step, epoch=epoch, config=config, device=CPU, precision=torch.float32
        )
        for epoch in range(3)
    ]
    exempt = ("pos_embed", "cls_token")
    named = dict(theirs.named_parameters())
    plain = {name for name, tensor in named.items() if tensor.ndim <= 1 or name.endswith(exempt)}
    groups = [
        {"params": [tensor for name, tensor in named.items() if name not in plain], "weight_decay": 0.1},
        {"params": [named[name] for name in named if name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    climb, fall = (
        LinearLR(optimizer, start_factor=1 / 3, total_iters=2),
        CosineAnnealingLR(optimizer, T_max=9),
    )
    schedule = SequentialLR(optimizer, [climb, fall], milestones=[3])
    criterion = torch.nn.BCEWithLogitsLoss(
        pos_weight=torch.tensor(float((labels == 0).sum() / (labels == 1).sum()))
    )
    theirs_losses = []
    for epoch in range(3):
        theirs.train()
        order = np.split(plan_epoch(training_set, config, epoch=epoch).rows, 4)
        values = []
        for rows in order:
            images = torch.from_numpy(tiles[rows]).permute(0, 3, 1, 2).float() / 255
            optimizer.zero_grad()
            loss = criterion(theirs(images), torch.from_numpy(labels[rows]).double())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            values.append(float(loss.detach()))
        theirs_losses.append(np.mean(values))
    np.testing.assert_allclose(ours_losses, theirs_losses, rtol=1e-6)  # the rate is float32 with us
    torch.testing.assert_close(_weights(ours), _weights(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("balance", "stains"), [("none", "none"), ("loss", "none"), ("none", "reinhard")])
def test_the_loss_is_scikit_learns_log_loss(
    learnable: tuple[np.ndarray, pd.DataFrame], balance: str, stains: str
) -> None:
    tiles, index = learnable
    truth = index["label"].to_numpy()
    config = Config(
        backbone="test_vit",
        input_size=32,
        batch_size=36,
        class_balance=balance,
        stain_normalisation=stains,
        **PLAIN,
    )
    training_set = TrainingSet(
        tiles=tiles, labels=truth.astype(np.float32), rows=np.arange(36), entropy=(1, 0, 0)
    )
    torch.manual_seed(0)
    network = build_network(config)
    with torch.no_grad():
        images = normalise_stains(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255, stains)
        probabilities = torch.sigmoid(network.train()(images).double()).numpy()
    step = OptimizerStep(
        build_optimizer(network, config), peak=1e-3, total=1, warmup=0, clip=0.0, scaled=False
    )
    found = train_one_epoch(
        network, training_set, step, epoch=0, config=config, device=CPU, precision=torch.float32
    )
    weight = np.where(
        truth == 1, 2.0 if balance == "loss" else 1.0, 1.0
    )  # a third of these tiles is positive
    assert found == pytest.approx(
        log_loss(truth, probabilities, sample_weight=weight) * weight.mean(), rel=1e-5
    )


def test_tiles_that_do_not_fill_a_step_are_left_for_another_epoch(
    learnable: tuple[np.ndarray, pd.DataFrame],
) -> None:
    _, _, step = _epoch(learnable, rows=np.arange(33))
    assert step.applied == 4  # of 8, 8, 8, 8 and 1
    _, _, step = _epoch(learnable, rows=np.arange(5))
    assert step.applied == 1  # fewer than a batch are one


@settings(max_examples=60, deadline=None)
@given(
    training_set=training_sets(),
    size=st.integers(1, 4),
    passes=st.integers(1, 5),
    batch=st.integers(4, 40),
    epoch=st.integers(0, 3),
)
def test_every_tile_of_a_step_goes_to_one_process_and_pass(
    training_set: TrainingSet, size: int, passes: int, batch: int, epoch: int
) -> None:
    if len(training_set.rows) < 4:
        return
    config = Config(batch_size=batch, hed_jitter=0.1)
    alone = plan_epoch(training_set, config, epoch=epoch)
    shares = [
        plan_epoch(training_set, config, epoch=epoch, shard=Shard(rank, size, passes)) for rank in range(size)
    ]
    each, steps = tiles_per_step(training_set, config), steps_per_epoch(training_set, config)
    assert len(alone.rows) == steps * each == sum(len(share.rows) for share in shares)
    ends = [0] * size
    for step in range(steps):
        begins = list(ends)
        ends = [begin + sum(share.micro_batches[step]) for begin, share in zip(begins, shares, strict=True)]
        mine = np.concatenate(
            [share.rows[begin:end] for share, begin, end in zip(shares, begins, ends, strict=True)]
        )
        assert sorted(mine) == sorted(alone.rows[step * each : (step + 1) * each])
    for share in shares:
        np.testing.assert_array_equal(share.labels.numpy(), training_set.labels[share.rows])
        assert all(len(sizes) <= passes for sizes in share.micro_batches)
    drawn = {row: tuple(draw.tolist()) for row, draw in zip(alone.rows.tolist(), alone.draws, strict=True)}
    for share in shares:
        assert all(
            drawn[row] == tuple(draw.tolist())
            for row, draw in zip(share.rows.tolist(), share.draws, strict=True)
        )


def test_within_a_pass_tiles_with_the_same_symmetry_lie_together() -> None:
    training_set, config = _training_set(rows=400), Config(batch_size=100)
    plan = plan_epoch(training_set, config, epoch=1)
    for at in range(0, 400, 100):
        elements = symmetries(plan.draws[at : at + 100], config)
        assert torch.equal(elements, elements.sort().values) and len(elements.unique()) == 8


@pytest.mark.parametrize("passes", [2, 3, 8])
def test_passes_do_not_change_the_step(learnable: tuple[np.ndarray, pd.DataFrame], passes: int) -> None:
    """Of a network without batch statistics, but for the order of additions."""
    options = {"backbone": "test_vit", "batch_size": 16, "learning_rate": 1e-3}
    whole, pieces = _epoch(learnable, **options), _epoch(learnable, passes=passes, **options)
    assert whole[0] == pytest.approx(pieces[0], rel=1e-5)
    torch.testing.assert_close(_weights(whole[1]), _weights(pieces[1]), rtol=0, atol=2e-5)


def test_batches_of_one_train_on_every_tile(learnable: tuple[np.ndarray, pd.DataFrame]) -> None:
    tiles, index = learnable
    # A vision transformer has no BatchNorm: it can learn from one tile at a time.
    config = Config(backbone="test_vit", input_size=32, batch_size=1)
    training_set = TrainingSet(
        tiles=tiles, labels=index["label"].to_numpy(np.float32), rows=np.arange(12), entropy=(1, 0, 0)
    )
    network = build_network(config)
    step = OptimizerStep(
        build_optimizer(network, config), peak=1e-3, total=12, warmup=0, clip=0.0, scaled=False
    )
    train_one_epoch(network, training_set, step, epoch=0, config=config, device=CPU, precision=torch.float32)
    assert step.applied == 12


def test_the_loss_is_the_mean_over_tiles_not_over_passes(
    learnable: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[tuple[float, int]] = []
    real = torch.nn.functional.binary_cross_entropy_with_logits

    def noted(logits: torch.Tensor, labels: torch.Tensor, **rest: Any) -> torch.Tensor:
        value = real(logits, labels, **rest)
        losses.append((float(value.detach()), len(labels)))
        return value

    monkeypatch.setattr(engine.functional, "binary_cross_entropy_with_logits", noted)
    loss, _, _ = _epoch(learnable, rows=np.arange(20), batch_size=10, passes=3)
    assert [count for _, count in losses] == [4, 3, 3, 4, 3, 3]
    assert loss == pytest.approx(sum(value for value, _ in losses) / 20, rel=1e-6)


def test_a_lost_loss_stops_with_what_to_try(
    learnable: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        engine.functional,
        "binary_cross_entropy_with_logits",
        lambda *args, **rest: real(*args, **rest) * float("nan"),
    )
    with pytest.raises(TrainingError) as refused:
        _epoch(learnable)
    for piece in ("epoch 1", "learning_rate", "warmup_epochs", "clip_grad_norm", "precision=float32"):
        assert piece in str(refused.value)


def _scaled_epoch(
    learnable: tuple[np.ndarray, pd.DataFrame],
    *,
    overflows: Callable[[int], bool],
    batch_size: int = 6,
    repeats: int = 1,
) -> tuple[float, Classifier, WeightAverage, OptimizerStep]:
    """One epoch in float16 with a gradient scaler; activations overflow in the forward passes asked for."""
    tiles, index = learnable
    config = Config(backbone="test_resnet", input_size=32, batch_size=batch_size)
    rows = np.tile(np.arange(36), repeats)
    training_set = TrainingSet(
        tiles=tiles, labels=index["label"].to_numpy(np.float32), rows=rows, entropy=(1, 0, 0)
    )
    torch.manual_seed(0)
    network = build_network(config)
    passes = itertools.count()
    network.backbone.register_forward_pre_hook(
        lambda module, images: (images[0] * 1e9,) if overflows(next(passes)) else None
    )
    step = OptimizerStep(
        build_optimizer(network, config), peak=1e-3, total=100, warmup=0, clip=0.0, scaled=True
    )
    step.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    average = WeightAverage(network, decay=0.9)
    loss = train_one_epoch(
        network,
        training_set,
        step,
        epoch=0,
        config=config,
        device=CPU,
        precision=torch.float16,
        average=average,
    )
    return loss, network, average, step


def test_an_overflow_of_one_forward_pass_costs_one_step(learnable: tuple[np.ndarray, pd.DataFrame]) -> None:
    loss, network, average, step = _scaled_epoch(learnable, overflows=lambda number: number == 2)
    assert (step.applied, step.skipped, step.skips_in_a_row) == (5, 1, 0)
    assert 0 < loss < 2
    for module in (network, average.module):  # the running statistics of batch norms, too
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


def test_overflow_after_overflow_stops_with_what_to_try(learnable: tuple[np.ndarray, pd.DataFrame]) -> None:
    with pytest.raises(TrainingError, match=r"the last 30 steps were skipped(.|\n)*precision=float32"):
        _scaled_epoch(learnable, overflows=lambda number: number >= 6, batch_size=2, repeats=2)


def test_repeated_rows_are_augmented_differently(
    learnable: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[np.ndarray, torch.Tensor]] = []
    real = engine.AugmentationDraws.take

    def noted(self: engine.AugmentationDraws, rows: np.ndarray, occurrence: np.ndarray) -> torch.Tensor:
        drawn = real(self, rows, occurrence)
        taken.append((rows, drawn))
        return drawn

    monkeypatch.setattr(engine.AugmentationDraws, "take", noted)
    _epoch(learnable, class_balance="sampler")
    rows, drawn = np.concatenate([rows for rows, _ in taken]), torch.cat([drawn for _, drawn in taken])
    assert len(set(rows)) < len(rows)  # some came again
    assert len({tuple(draw.tolist()) for draw in drawn}) == len(rows)


def test_one_tile_for_a_batch_norm_is_refused_with_a_sentence(
    learnable: tuple[np.ndarray, pd.DataFrame],
) -> None:
    """Over a map of 1 x 1 the norm has one value per channel."""
    options = {"backbone": "resnet18", "batch_size": 4}
    with pytest.raises(TrainingError, match=r"two tiles in a forward pass.*grad_accum_steps"):
        _epoch(learnable, passes=4, **options)
