"""The schedule, the exemptions from decay, and the order of one step."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from lib.config import Config
from lib.model.network import build_network
from lib.training.optimizer import OptimizerStep, build_optimizer, learning_rate_at, warmup_steps


@settings(max_examples=60, deadline=None)
@given(total=st.integers(2, 400), share=st.floats(0, 0.9), peak=st.floats(1e-6, 1.0))
def test_the_rate_climbs_in_a_line_and_falls_along_a_cosine_to_nothing(
    total: int, share: float, peak: float
) -> None:
    warmup = int(total * share)
    rates = [learning_rate_at(step, total=total, warmup=warmup, peak=peak) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    for step in range(warmup):
        assert rates[step] == pytest.approx(peak * (step + 1) / warmup)
    assert rates[warmup] == pytest.approx(peak)
    falling = rates[warmup:]
    assert all(later < earlier for earlier, later in zip(falling, falling[1:], strict=False))
    steps = total - warmup
    assert falling[-1] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps)))
    assert falling[steps // 2] == pytest.approx(peak / 2, rel=0.01) if steps % 2 == 0 else True
    assert learning_rate_at(total, total=total, warmup=warmup, peak=peak) == pytest.approx(0, abs=1e-12)
    assert learning_rate_at(total + 5, total=total, warmup=warmup, peak=peak) == pytest.approx(0, abs=1e-12)


def _plain() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)


@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (137, 20), (400, 399)])
def test_the_cosine_is_that_of_torch_and_of_timm(total: int, warmup: int) -> None:
    """torch's schedulers are recursions, ours is closed: they agree but for the order of additions."""
    optimizer, other = _plain(), _plain()
    fall: Any = CosineAnnealingLR(optimizer, T_max=total - warmup)
    if warmup:
        climb = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(warmup - 1, 1))
        fall = SequentialLR(
            optimizer, [climb, CosineAnnealingLR(optimizer, T_max=total - warmup)], milestones=[warmup]
        )
    by_timm = CosineLRScheduler(
        other, t_initial=total - warmup, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(total):
        rate = learning_rate_at(step, total=total, warmup=warmup, peak=0.3)
        assert rate == pytest.approx(fall.get_last_lr()[0], abs=1e-12)
        if step >= warmup:
            by_timm.step_update(step)
            assert rate == pytest.approx(other.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        fall.step()


def test_a_long_plan_ends_near_zero() -> None:
    assert learning_rate_at(999, total=1000, warmup=100, peak=1.0) < 1e-5


def test_biases_and_norms_do_not_decay_and_every_parameter_is_in_one_group() -> None:
    network = build_network(Config(backbone="test_resnet", input_size=32))
    first = next(network.parameters())
    first.requires_grad_(False)
    groups = build_optimizer(network, Config(weight_decay=0.3, learning_rate=0.01)).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decaying, exempt = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.3, 0.0)
    assert decaying | exempt == {
        name for name, parameter in network.named_parameters() if parameter is not first
    }
    assert not decaying & exempt
    assert all(name.endswith("weight") for name in decaying) and {"backbone.fc.weight"} <= decaying
    norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert exempt == norms | {name for name in names.values() if name.endswith("bias")}


def test_one_cycle_climbs_for_three_tenths_and_falls_to_nothing() -> None:
    config = Config(schedule="one_cycle", epochs=10)
    warmup = warmup_steps(config, steps=20)
    assert warmup == 60
    rates = [
        learning_rate_at(step, total=200, warmup=warmup, peak=1.0, schedule="one_cycle")
        for step in range(201)
    ]
    assert (
        rates[0] == pytest.approx(1 / 25)
        and rates[30] == pytest.approx((1 + 1 / 25) / 2)
        and rates[60] == 1.0
    )
    assert all(later > earlier for earlier, later in zip(rates[:60], rates[1:61], strict=True))
    assert all(later < earlier for earlier, later in zip(rates[60:200], rates[61:], strict=True))
    assert rates[200] == pytest.approx(0, abs=1e-12)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
        max_lr=1.0,
        total_steps=201,
        pct_start=61 / 201,
    )
    for rate in rates[:200]:
        assert theirs.get_last_lr()[0] == pytest.approx(rate, abs=1e-4)
        theirs.optimizer.step()
        theirs.step()


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("pooling", ["native", "gem"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_with_layer_decay_each_layer_has_its_share_of_the_rate(
    backbone: str, pooling: str, layer_decay: float
) -> None:
    config = Config(
        backbone=backbone,
        input_size=64,
        weights="none",
        pooling=pooling,
        layer_decay=layer_decay,
        weight_decay=0.1,
    )
    network = build_network(config)
    optimizer = build_optimizer(network, config)
    scale, decay = {}, {}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in scale  # nobody is in two groups
            scale[names[id(parameter)]] = group.get("lr_scale", 1.0)
            decay[names[id(parameter)]] = group["weight_decay"]
    assert set(scale) == set(names.values())
    plain = [name for name, parameter in network.named_parameters() if parameter.ndim <= 1]
    exempt = [name for name in names.values() if name.rsplit(".", 1)[-1] in ("pos_embed", "cls_token")]
    assert all((decay[name] == 0) == (name in plain or name in exempt) for name in names.values())
    head = (
        "backbone.head."
        if pooling != "native"
        else {"test_vit": "backbone.head.", "test_resnet": "backbone.fc."}[backbone]
    )
    first = next(name for name in names.values() if "conv1" in name or "patch_embed.proj.weight" in name)
    assert all(value == 1.0 for name, value in scale.items() if name.startswith(head))
    assert (scale[first] < 0.5) == (layer_decay < 1)
    step = OptimizerStep(optimizer, peak=0.01, total=10, warmup=0, clip=0.0, scaled=False)
    step([network(torch.rand(4, 3, 96, 96)).sum()])
    for group in optimizer.param_groups:
        assert float(group["lr"]) == pytest.approx(0.01 * group.get("lr_scale", 1.0))


# --- one step -----------------------------------------------------------------------------------------------


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
        self.bias = torch.nn.Parameter(torch.tensor([0.5]))

    def loss(self, factor: float = 1.0) -> torch.Tensor:
        return factor * ((self.weight * torch.tensor([[3.0, 4.0]])).sum() + 2 * self.bias.sum())


def _step(network: torch.nn.Module, *, scale: float = 0.0, **changes: Any) -> OptimizerStep:
    settings: dict[str, Any] = {"peak": 0.1, "total": 10, "warmup": 0, "clip": 0.0, **changes}
    step = OptimizerStep(build_optimizer(network, Config(weight_decay=0.0)), scaled=False, **settings)
    if scale:  # float16 needs a GPU, its scaler does not
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    return step


def _values(network: torch.nn.Module) -> list[float]:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).tolist()


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_scaled_step_is_the_unscaled_one(clip: float) -> None:
    """Clipping a gradient that still carries its scale would shrink it by that scale."""
    plain, scaled = _Line(), _Line()
    steps = _step(plain, clip=clip), _step(scaled, clip=clip, scale=2.0**16)
    # AdamW's first step forgets the length of a gradient; its moments remember it.
    for network, step in zip((plain, scaled), steps, strict=True):
        step([network.loss()])
        step([network.loss(1e-3)])
        assert step.applied == 2
    assert _values(plain) == pytest.approx(_values(scaled), rel=1e-6)
    moments = [
        torch.cat([state["exp_avg"].flatten() for state in step.optimizer.state.values()]).tolist()
        for step in steps
    ]
    assert moments[0] == pytest.approx(moments[1], rel=1e-5)


def test_clipping_limits_the_norm_over_all_parameters() -> None:
    network = _Line()
    step = _step(network, clip=0.5)
    seen: list[torch.Tensor] = []
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    )
    step([network.loss()])
    assert seen[0].norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(
        seen[0] / seen[0].norm(), torch.tensor([3.0, 4.0, 2.0]) / math.sqrt(29), rtol=0, atol=1e-5
    )


def test_without_clipping_the_gradient_is_as_it_is() -> None:
    network = _Line()
    step = _step(network)
    seen: list[float] = []
    step.optimizer.register_step_pre_hook(lambda *_: seen.extend(network.weight.grad.flatten().tolist()))
    step([network.loss(100)])
    assert seen == [300.0, 400.0]


def test_gradients_do_not_pile_up() -> None:
    network = _Line()
    step = _step(network)
    for _ in range(3):
        step([network.loss()])
        assert all(parameter.grad is None for parameter in network.parameters())


def test_the_rate_of_a_step_is_the_one_the_schedule_names() -> None:
    network = _Line()
    step = _step(network, warmup=2)
    used: list[float] = []
    step.optimizer.register_step_pre_hook(lambda *_: used.append(float(step.optimizer.param_groups[1]["lr"])))
    announced = []
    for _ in range(10):
        announced.append(step.learning_rate)
        step([network.loss()])
    assert announced == [learning_rate_at(number, total=10, warmup=2, peak=0.1) for number in range(10)]
    assert used == pytest.approx(announced, rel=1e-6)  # the device has them as float32
    assert step.applied == 10 and step.learning_rate == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_skips_the_step_and_the_schedule_waits(bad: float) -> None:
    network = _Line()
    step = _step(network, scale=1024.0, clip=1.0)
    step([network.loss()])
    before, rate = _values(network), step.learning_rate
    step([network.loss(bad)])
    assert _values(network) == before and step.learning_rate == rate
    assert (step.applied, step.skipped) == (1, 1) and step.scaler.get_scale() == 512.0
    assert all(parameter.grad is None for parameter in network.parameters())
    step([network.loss()])
    assert (step.applied, step.skipped) == (2, 1) and _values(network) != before
    assert step.learning_rate < rate


def test_a_growing_scale_is_no_skipped_step() -> None:
    network = _Line()
    step = _step(network)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    for _ in range(3):
        step([network.loss()])
    assert (step.applied, step.skipped) == (3, 0) and step.scaler.get_scale() == 32.0


def test_a_step_may_come_in_passes() -> None:
    """The gradient of a sum is the sum of the gradients, each taken before the next loss is made."""
    whole, pieces = _Line(), _Line()
    step, other = _step(whole, clip=1.0), _step(pieces, clip=1.0)
    grads: list[bool] = []

    def losses() -> Iterator[torch.Tensor]:
        for factor in (0.25, 0.75):
            grads.append(pieces.weight.grad is not None)
            yield pieces.loss(factor)

    step([whole.loss()])
    other(losses())
    assert _values(whole) == pytest.approx(_values(pieces), rel=1e-6) and grads == [False, True]
    assert other.applied == 1


def test_skipped_steps_do_not_end_the_plan_early_and_nobody_waits_to_learn_of_them() -> None:
    network = _Line()
    step = _step(network, scale=1024.0, total=4)
    taken = []
    while not step.done:
        step([network.loss(math.inf if step.attempts == 1 else 1.0)])
        taken.append(float(step.optimizer.param_groups[0]["lr"]))
    assert (step.attempts, step.applied, step.skipped) == (5, 4, 1)
    wanted = [learning_rate_at(number, total=4, warmup=0, peak=0.1) for number in (0, 1, 1, 2, 3)]
    assert taken == pytest.approx(wanted, rel=1e-6)
