"""A running average of the weights, which predicts in place of the last ones (EMA, Polyak and Juditsky 1992)."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from lib.training.optimizer import OptimizerStep


class WeightAverage(ModelEmaV3):  # type: ignore[misc]
    """timm's average, except that it counts steps that were applied: one skipped for an overflow leaves it alone.

    The decay begins low, (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten. Which decay holds is
    worked out on the device, where it is known first whether a step was skipped. Running statistics of batch norms are averaged
    as the weights are; whole numbers are copied.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__(network, decay=decay)
        self._last = torch.zeros((), device=next(network.parameters()).device)

    @torch.no_grad()
    def follow(self, network: nn.Module, step: OptimizerStep) -> None:
        """Take in the network after a step."""
        applied = step.applied_there
        moved = (applied > self._last).float()
        weight = moved * (1 - torch.clamp((1 + applied) / (10 + applied), max=self.decay))
        self._last = applied
        ours, theirs = [], []
        for own, other in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            if own.is_floating_point():
                ours.append(own)
                theirs.append(other)
            else:
                own.copy_(other)
        torch._foreach_lerp_(ours, theirs, [weight.to(own.dtype) for own in ours])

    def catch_up(self, step: OptimizerStep) -> None:
        """After an interruption: the steps so far are in the average that was loaded."""
        self._last = step.applied_there
