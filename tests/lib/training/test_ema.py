"""The average of the weights: timm's, with a decay that begins low, without skipped steps."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.config import Config
from lib.training.ema import WeightAverage
from lib.training.optimizer import OptimizerStep, build_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def step_of(learner: nn.Module, total: int = 400) -> OptimizerStep:
    config = Config(learning_rate=0.01)
    return OptimizerStep(
        build_optimizer(learner, config), peak=0.01, total=total, warmup=0, clip=0.0, scaled=False
    )


def losses(learner: nn.Module, seed: int) -> Iterator[torch.Tensor]:
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    yield (learner(images).squeeze(1) - images.sum(dim=1)).pow(2).mean()


def test_with_the_decay_of_each_step_it_is_the_average_of_timm() -> None:
    learner = network()
    step, ours = step_of(learner), WeightAverage(learner, decay=0.9)
    theirs = ModelEmaV3(learner, decay=0.9)
    for number in range(1, 200):
        step(losses(learner, number))
        ours.update_after(learner, step)
        theirs.decay = min(0.9, (1 + number) / (10 + number))
        theirs.update(learner)
    for own, other in zip(
        ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True
    ):
        assert torch.allclose(own.double(), other.double(), atol=1e-6)
    assert int(ours.module[1].num_batches_tracked) == 199  # counted, not averaged


def test_once_the_decay_has_grown_it_is_the_average_of_torch() -> None:
    """After 80 steps (1 + n) / (10 + n) is above 0.9, the decay of the option; torch begins with it."""
    learner = network()
    step, ours = step_of(learner), WeightAverage(learner, decay=0.9)
    for number in range(81):
        step(losses(learner, number))
        ours.update_after(learner, step)
    theirs = AveragedModel(ours.module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(ours.module)  # its first is a copy
    for number in range(81, 120):
        step(losses(learner, number))
        ours.update_after(learner, step)
        theirs.update_parameters(learner)
    for own, other in zip(
        ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True
    ):
        assert not own.is_floating_point() or torch.allclose(
            own, other, atol=1e-6
        )  # whole numbers torch averages, too
    assert (ours.module[0].weight - learner[0].weight).abs().max() > 1e-3  # type: ignore[operator]


def test_a_step_that_was_skipped_leaves_it_alone() -> None:
    learner = network()
    step, average = step_of(learner), WeightAverage(learner, decay=0.9)
    step(losses(learner, 1))
    average.update_after(learner, step)
    before = copy.deepcopy(average.module[0].weight)
    with torch.no_grad():
        learner[0].weight.add_(1.0)  # would show, were it averaged  # type: ignore[operator]
    step.attempts += 1
    step._skipped += 1  # as an overflow counts
    average.update_after(learner, step)
    assert torch.equal(average.module[0].weight, before)
    step(losses(learner, 2))
    average.update_after(learner, step)
    assert not torch.equal(average.module[0].weight, before)


def test_the_first_weights_are_soon_forgotten() -> None:
    learner = network()
    step, average = step_of(learner), WeightAverage(learner, decay=0.9999)
    with torch.no_grad():
        average.module[0].weight.fill_(100.0)  # type: ignore[operator]
    for number in range(60):
        step(losses(learner, number))
        average.update_after(learner, step)
    assert (average.module[0].weight - learner[0].weight).abs().max() < 1.0  # type: ignore[operator]


class _Calls(TorchDispatchMode):
    """The names of the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_deeper_network_needs_no_more_operations() -> None:
    """On a GPU each is a launch; `lerp` with a weight on the device has one for each tensor."""
    counts = []
    for depth in (1, 5):
        layers = [layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
        learner = nn.Sequential(*layers, nn.Linear(4, 1))
        step, average = step_of(learner), WeightAverage(learner, decay=0.9)
        step(losses(learner, 1))
        with _Calls() as calls:
            average.update_after(learner, step)
        work = [name for name in calls.names if "detach" not in name]  # a view, by state_dict()
        assert not any("lerp" in name for name in work)
        counts.append(len(work))
    assert counts[0] == counts[1] < 25
