"""AdamW, the cosine, and the one function that owns the optimiser step."""

import math

import torch
from torch import nn

from lib.config import Config


def build_optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW with decay on matrices and kernels only: biases and norms (one dimension) are exempt."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate_at(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine from `peak` to (nearly) zero at the last step.

    Args:
        step: applied steps so far, from 0.
        total: steps of the whole plan.
        warmup: steps of the warm-up, fewer than `total`.
        peak: the highest rate. Source of the cosine: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


class OptimizerStep:
    """Scale, backward, unscale, clip, step, update, zero: in that order, here and nowhere else."""

    def __init__(self, optimizer: torch.optim.AdamW, *, peak: float, total: int, warmup: int, clip: float, scaled: bool) -> None:
        self.optimizer = optimizer
        self.peak, self.total, self.warmup, self.clip = peak, total, warmup, clip
        self.scaler = torch.amp.GradScaler(enabled=scaled)
        self.applied = 0  # the schedule counts applied steps: one skipped for an overflow does not advance it
        self.skipped = 0
        self._knee = (warmup, 0.0, 1.0)  # where the present fall began: step, share of the cosine, share of the peak
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        begin, share, height = self._knee
        if begin == self.warmup and share == 0.0 and height == 1.0:
            return learning_rate_at(self.applied, total=self.total, warmup=self.warmup, peak=self.peak)
        way = min((self.applied - begin) / max(self.total - begin, 1), 1.0)
        return self.peak * height * 0.5 * (1 + math.cos(math.pi * (share + (1 - share) * way)))

    @property
    def left(self) -> int:
        """Applied steps until the plan's end."""
        return self.total - self.applied

    def shorten(self, left: int) -> None:
        """Let the plan end after `left` more steps; the rate falls from where it is, faster, to the same zero."""
        if not 1 <= left < self.left:
            raise ValueError(f"{left} steps are not fewer than the {self.left} that are left")
        rate = self.learning_rate
        begin, share, height = self._knee
        if self.applied < self.warmup:  # the climb ends here
            self._knee = (self.applied, 0.0, rate / self.peak)
        else:
            way = (self.applied - begin) / max(self.total - begin, 1)
            self._knee = (self.applied, share + (1 - share) * way, height)
        self.total = self.applied + left

    def schedule_state(self) -> list[float]:
        """The plan as it stands, for `load_schedule`."""
        return [self.total, *self._knee]

    def load_schedule(self, state: list[float]) -> None:
        """Take up a plan that was perhaps shortened."""
        total, begin, share, height = state
        self.total, self._knee = int(total), (int(begin), float(share), float(height))

    def __call__(self, loss: torch.Tensor) -> bool:
        """Take one step on this loss; False when the scaler skipped it because a gradient overflowed."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        applied = self.scaler.get_scale() >= before  # the scale drops exactly when a step was skipped
        self.applied += applied
        self.skipped += not applied
        return applied
