"""Exponential moving average (EMA) of the weights, which predicts (Polyak and Juditsky 1992)."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from lib.training.optimizer import OptimizerStep


class WeightAverage(ModelEmaV3):  # type: ignore[misc]
    """timm's ModelEmaV3, except that a step that was skipped for an overflow does not change it.

    The decay after n steps is min(decay, (1 + n) / (10 + n)), so that the first weights soon lose their
    influence. It is computed on the device, which knows whether a step was skipped before the host does.
    Running statistics of batch norms are averaged like weights; integer buffers are copied.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__(network, decay=decay)
        self._last = torch.zeros(
            (), device=next(network.parameters()).device
        )  # applied steps at the last update

    @torch.no_grad()
    def update_after(self, network: nn.Module, step: OptimizerStep) -> None:
        """Add the weights of the network to the average, after an optimiser step."""
        applied = step.applied_on_device  # () float32
        was_applied = (applied > self._last).float()  # 0 or 1; no transfer to the host
        weight = was_applied * (1 - torch.clamp((1 + applied) / (10 + applied), max=self.decay))
        self._last = applied
        pairs = list(zip(self.module.state_dict().values(), network.state_dict().values(), strict=True))
        averages, values = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        # average += weight * (value - average), in a few launches: foreach has a fast path for
        # a weight on the device in `mul`, but not in `lerp`. The changes take as much memory as the weights.
        changes = torch._foreach_sub(values, averages)
        torch._foreach_mul_(changes, weight)
        torch._foreach_add_(averages, changes)
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            targets, sources = zip(*counts, strict=True)
            torch._foreach_copy_(targets, sources)

    def resume(self, step: OptimizerStep) -> None:
        """Continue after an interruption: the loaded average already holds all steps that `step` counts."""
        self._last = step.applied_on_device
