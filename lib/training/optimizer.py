"""AdamW, its learning rate schedule, and the optimiser step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lib.config import Config
from lib.model.tuning import timm_network

_ONE_CYCLE_WARMUP = 0.3  # share of the steps in which the one-cycle rate rises
_ONE_CYCLE_START = 25.0  # the rate starts at the peak divided by this


def build_optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolution kernels only.

    Biases, norms and the parameters that the backbone's `no_weight_decay` names have no decay. With
    `layer_decay` below 1 each layer's learning rate is that factor of the rate of the next layer towards the
    logit (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT). timm makes these groups; a group's `lr_scale`
    is its factor.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    backbone, prefix = timm_network(network)
    exempt = {prefix + name for name in getattr(backbone, "no_weight_decay", set)()}
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            backbone,
            weight_decay=config.weight_decay,
            no_weight_decay_list=[name.removeprefix(prefix) for name in exempt],
            layer_decay=config.layer_decay,
        )
        rest = {name: parameter for name, parameter in trained.items() if not name.startswith(prefix)}
    else:
        groups, rest = [], trained
    decayed = [parameter for name, parameter in rest.items() if parameter.ndim > 1 and name not in exempt]
    plain = [parameter for name, parameter in rest.items() if parameter.ndim <= 1 or name in exempt]
    groups += [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one kernel for all parameters, which also skips an overflowed step on the device, without waiting
    # for the host. The rate is a tensor for the same reason: it changes on the device.
    device = next(iter(trained.values())).device
    return torch.optim.AdamW(groups, lr=torch.tensor(config.learning_rate, device=device), fused=True)


def warmup_steps(config: Config, *, steps: int) -> int:
    """Optimiser steps in which the learning rate rises, of a plan with `steps` steps per epoch."""
    if config.schedule == "one_cycle":
        return round(_ONE_CYCLE_WARMUP * steps * config.epochs)
    return round(steps * config.warmup_epochs)


def learning_rate_at(step: int, *, total: int, warmup: int, peak: float, schedule: str = "cosine") -> float:
    """Linear warm-up, then half a cosine from `peak` to (nearly) zero at the last step.

    Source: SGDR without restarts (Loshchilov and Hutter 2017).
    `one_cycle` also rises along half a cosine, from a 25th of the peak (Smith and Topin 2018, arXiv
    1708.07120, in fastai's shape). AdamW's betas stay constant.

    Args:
        step: applied steps so far, from 0.
        total: steps of the whole plan.
        warmup: steps of the warm-up, fewer than `total`.
        peak: the highest rate.
        schedule: cosine or one_cycle.
    """
    if step < warmup and schedule == "one_cycle":
        return peak * (
            1 / _ONE_CYCLE_START + (1 - 1 / _ONE_CYCLE_START) * 0.5 * (1 - math.cos(math.pi * step / warmup))
        )
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


class OptimizerStep:
    """The optimiser step: scale, backward, unscale, clip, step, update, zero, in that order and only here.

    Only the properties whose docstrings say so wait for the device. With a gradient scaler, the number of
    skipped steps and the index of the next learning rate stay on the device, so that the host can prepare the
    next batch meanwhile.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        *,
        peak: float,
        total: int,
        warmup: int,
        clip: float,
        scaled: bool,
        schedule: str = "cosine",
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.peak, self.total, self.warmup, self.clip = peak, total, warmup, clip
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        device = self._parameters[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.attempts = 0  # steps taken or skipped
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)  # skipped steps since the last applied one
        self._skips_seen = 0  # skipped steps when they were last read from the device
        # Start of the present cosine: step, share of the cosine already passed, height as a share of the
        # peak. It moves when the plan is shortened.
        self._cosine_start = (warmup, 0.0, 1.0)
        self._rate = torch.zeros((), device=device)
        self._tabulate()

    def _tabulate(self) -> None:
        """Put the rate of every step of the plan on the device, (total + 1,) float32."""
        rates = [self._rate_at(step) for step in range(self.total + 1)]
        self._rates = torch.tensor(rates, dtype=torch.float32, device=self._rate.device)

    def _rate_at(self, applied: int) -> float:
        begin, share, height = self._cosine_start
        if begin == self.warmup and share == 0.0 and height == 1.0:
            return learning_rate_at(
                applied, total=self.total, warmup=self.warmup, peak=self.peak, schedule=self.schedule
            )
        progress = min(max(applied - begin, 0) / max(self.total - begin, 1), 1.0)
        return self.peak * height * 0.5 * (1 + math.cos(math.pi * (share + (1 - share) * progress)))

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient overflowed. Waits for the device if scaled."""
        if self.scaler.is_enabled():
            self._skips_seen = int(self._skipped)
        return self._skips_seen

    @property
    def skips_in_a_row(self) -> int:
        """Steps skipped since the last one that was applied. Waits for the device if scaled."""
        return int(self._in_a_row) if self.scaler.is_enabled() else 0

    @property
    def applied(self) -> int:
        """Steps that changed the network; the schedule counts them. Waits for the device if scaled."""
        return self.attempts - self.skipped

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step; waits like `applied`."""
        return self._rate_at(self.applied)

    @property
    def left(self) -> int:
        """Applied steps until the end of the plan; waits like `applied`."""
        return self.total - self.applied

    @property
    def done(self) -> bool:
        """Whether the plan is at its end; waits for the device only when that is possible."""
        return self.attempts - self._skips_seen >= self.total and self.left <= 0

    @property
    def applied_on_device(self) -> torch.Tensor:
        """`applied` as a () float32 tensor on the device; does not wait."""
        return (self.attempts - self._skipped).float()

    def shorten(self, left: int) -> None:
        """End the plan after `left` more steps: the learning rate falls from its present value to zero."""
        applied = self.applied
        if not 1 <= left < self.total - applied:
            raise ValueError(f"cannot shorten to {left} steps: {self.total - applied} are left")
        rate = self._rate_at(applied)
        begin, share, height = self._cosine_start
        if applied < self.warmup:  # the warm-up ends here, below the peak
            self._cosine_start = (applied, 0.0, rate / self.peak)
        else:
            progress = (applied - begin) / max(self.total - begin, 1)
            self._cosine_start = (applied, share + (1 - share) * progress, height)
        self.total = applied + left
        self._tabulate()

    def state(self) -> dict[str, Any]:
        """Counters, plan and scaler as plain values, for `load_state`; waits for the device."""
        applied = self.applied
        schedule = [self.total, *self._cosine_start]
        return {
            "applied": applied,
            "skipped": self._skips_seen,
            "schedule": schedule,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore counters, plan (perhaps shortened) and scaler.

        Raises:
            ValueError: no training by this plan can reach such a state.
        """
        total, begin, share, height = state["schedule"]
        applied, skipped = state["applied"], state["skipped"]
        possible = 0 <= applied <= total <= self.total and 0 <= begin <= self.total and skipped >= 0
        if not (possible and 0 <= share <= 1.001 and 0 <= height <= 1.001):  # both at most 1, within rounding
            raise ValueError(
                f"{applied} steps and schedule {state['schedule']} "
                f"do not belong to a plan of {self.total} steps"
            )
        self.total, self._cosine_start = int(total), (int(begin), float(share), float(height))
        self._skips_seen = int(skipped)
        self.attempts = int(applied) + self._skips_seen
        self._skipped.fill_(self._skips_seen)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._tabulate()

    def __call__(self, losses: Iterable[torch.Tensor]) -> None:
        """Take one step on the sum of the losses.

        Args:
            losses: () float32 each, one per forward pass. Computed lazily: a pass's activations, the largest
                tensors of the training, are freed by its backward before the next pass begins.
        """
        for loss in losses:
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        scaled = self.scaler.is_enabled()
        norm = torch.zeros(())  # of all gradients; inf or nan on the device means overflow
        if self.clip or scaled:
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            )
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        if scaled:
            applied = (self.attempts - self._skipped).clamp_(max=self.total)  # () int64 on the device
            self._rate.copy_(self._rates.index_select(0, applied.view(1)).squeeze(0))
        else:
            self._rate.fill_(self._rate_at(self.attempts))
        for group in self.optimizer.param_groups:
            scale = group.get("lr_scale", 1.0)
            group["lr"] = self._rate if scale == 1.0 else self._rate * scale
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.attempts += 1
        if scaled:
            overflow = ~torch.isfinite(norm)
            self._skipped += overflow
            self._in_a_row = (self._in_a_row + 1) * overflow
