"""AdamW, the cosine, and the one function that owns the optimiser step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lib.config import Config

_CLIMB, _FROM = (
    0.3,
    25.0,
)  # one-cycle: share of the steps that climb, and the peak's factor of where they begin


def build_optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW with decay on matrices and kernels only: biases, norms and what the backbone names itself are exempt.

    With `layer_decay` below 1 each layer's rate is that factor of the next one's towards the logit, in groups made by timm
    (Clark et al. 2020, ELECTRA; Bao et al. 2021, BEiT): a group's `lr_scale` says by how much.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    backbone, prefix = _timm_network(network)
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
    decayed = [p for name, p in rest.items() if p.ndim > 1 and name not in exempt]
    plain = [p for name, p in rest.items() if p.ndim <= 1 or name in exempt]
    groups += [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: one kernel for all parameters, and a step that overflowed is skipped on the device without asking the host.
    # A rate in a tensor can change without asking it, either.
    device = next(iter(trained.values())).device
    return torch.optim.AdamW(groups, lr=torch.tensor(config.learning_rate, device=device), fused=True)


def _timm_network(network: nn.Module) -> tuple[nn.Module, str]:
    """Timm's own network inside ours, and what its parameters' names begin with."""
    prefix = ""
    while isinstance(inner := getattr(network, "backbone", None), nn.Module):
        network, prefix = inner, f"{prefix}backbone."
    return network, prefix


def warmup_steps(config: Config, *, steps: int) -> int:
    """Optimiser steps in which the rate climbs, of a plan with this many steps an epoch."""
    if config.schedule == "one_cycle":
        return round(_CLIMB * steps * config.epochs)
    return round(steps * config.warmup_epochs)


def learning_rate_at(step: int, *, total: int, warmup: int, peak: float, schedule: str = "cosine") -> float:
    """Linear warm-up, then half a cosine from `peak` to (nearly) zero at the last step.

    `one_cycle` climbs along half a cosine, too, from a 25th of the peak (Smith and Topin 2018, arXiv 1708.07120, in the shape
    fastai gave it); the moments of AdamW stay as they are.

    Args:
        step: applied steps so far, from 0.
        total: steps of the whole plan.
        warmup: steps of the warm-up, fewer than `total`.
        peak: the highest rate. Source of the cosine: Loshchilov and Hutter 2017 (SGDR), without restarts.
        schedule: cosine or one_cycle.
    """
    if step < warmup and schedule == "one_cycle":
        return peak * (1 / _FROM + (1 - 1 / _FROM) * 0.5 * (1 - math.cos(math.pi * step / warmup)))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


class OptimizerStep:
    """Scale, backward, unscale, clip, step, update, zero: in that order, here and nowhere else.

    Nothing here waits for the device but the properties that say so: whether a step was skipped for an overflow stays on the
    device, and so does the number that picks the next rate.
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
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._parameters[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.attempts = 0  # steps taken or skipped
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._skips_seen = 0  # when somebody last looked
        self._knee = (
            warmup,
            0.0,
            1.0,
        )  # where the present fall began: step, share of the cosine, share of the peak
        self._rate = torch.zeros((), device=device)
        self._tabulate()

    def _tabulate(self) -> None:
        """The rates of the plan on the device, which knows first how many steps were applied."""
        rates = [self._rate_at(step) for step in range(self.total + 1)]
        self._rates = torch.tensor(rates, dtype=torch.float32, device=self._rate.device)

    def _rate_at(self, applied: int) -> float:
        begin, share, height = self._knee
        if begin == self.warmup and share == 0.0 and height == 1.0:
            return learning_rate_at(
                applied, total=self.total, warmup=self.warmup, peak=self.peak, schedule=self.schedule
            )
        way = min(max(applied - begin, 0) / max(self.total - begin, 1), 1.0)
        return self.peak * height * 0.5 * (1 + math.cos(math.pi * (share + (1 - share) * way)))

    @property
    def skipped(self) -> int:
        """Steps that were skipped because a gradient overflowed; waits for the device when there is a scaler."""
        if self.scaler.is_enabled():
            self._skips_seen = int(self._skipped)
        return self._skips_seen

    @property
    def applied(self) -> int:
        """Steps that changed the network: what the schedule counts; waits for the device when there is a scaler."""
        return self.attempts - self.skipped

    @property
    def learning_rate(self) -> float:
        """The rate of the next step; waits as `applied` does."""
        return self._rate_at(self.applied)

    @property
    def left(self) -> int:
        """Applied steps until the plan's end; waits as `applied` does."""
        return self.total - self.applied

    @property
    def done(self) -> bool:
        """Whether the plan is at its end; waits only when it may be."""
        return self.attempts - self._skips_seen >= self.total and self.left <= 0

    @property
    def applied_there(self) -> torch.Tensor:
        """() float32, `applied` on the device: nobody waits."""
        return (self.attempts - self._skipped).float()

    def shorten(self, left: int) -> None:
        """Let the plan end after `left` more steps; the rate falls from where it is, faster, to the same zero."""
        applied = self.applied
        if not 1 <= left < self.total - applied:
            raise ValueError(f"{left} steps are not fewer than the {self.total - applied} that are left")
        rate = self._rate_at(applied)
        begin, share, height = self._knee
        if applied < self.warmup:  # the climb ends here
            self._knee = (applied, 0.0, rate / self.peak)
        else:
            way = (applied - begin) / max(self.total - begin, 1)
            self._knee = (applied, share + (1 - share) * way, height)
        self.total = applied + left
        self._tabulate()

    def state(self) -> dict[str, Any]:
        """Counters, plan and scaler as plain values, for `load_state`; waits for the device."""
        applied = self.applied
        schedule = [self.total, *self._knee]
        return {
            "applied": applied,
            "skipped": self._skips_seen,
            "schedule": schedule,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a plan where it was left, perhaps shortened.

        Raises:
            ValueError: no training by this plan can have come to such a state.
        """
        total, begin, share, height = state["schedule"]
        applied, skipped = state["applied"], state["skipped"]
        within = 0 <= applied <= total <= self.total and 0 <= begin <= self.total and skipped >= 0
        if not (within and 0 <= share <= 1.001 and 0 <= height <= 1.001):  # both at most 1, within rounding
            raise ValueError(
                f"{applied} steps and schedule {state['schedule']} are not of a plan of {self.total} steps"
            )
        self.total, self._knee = int(total), (int(begin), float(share), float(height))
        self._skips_seen = int(skipped)
        self.attempts = int(applied) + self._skips_seen
        self._skipped.fill_(self._skips_seen)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._tabulate()

    def __call__(self, losses: Iterable[torch.Tensor]) -> None:
        """Take one step on the sum of these losses, each made when the gradient of the one before is taken."""
        for loss in losses:
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        scaled = self.scaler.is_enabled()
        norm = torch.zeros(())
        if self.clip or scaled:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip, norm)
        if scaled:
            number = (self.attempts - self._skipped).clamp_(max=self.total)
            self._rate.copy_(self._rates.index_select(0, number.view(1)).squeeze(0))
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
            self._skipped += ~torch.isfinite(norm)
