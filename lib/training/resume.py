"""The state of a training after a whole epoch, on disk: what a session that was cut off goes on from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from lib.errors import KernelError
from lib.files import write_atomic
from lib.training.optimizer import OptimizerStep
from lib.validation import UNREADABLE

_OPTIMIZER = "optimizer"


class StateError(KernelError):
    """The state of an interrupted training is not what it says."""


def save_state(
    path: Path,
    *,
    plan: str,
    modules: Mapping[str, nn.Module],
    step: OptimizerStep,
    history: list[dict[str, Any]],
) -> None:
    """Weights, moments, scaler, schedule. Draws need nothing: they are keyed by the epoch.

    Args:
        path: of one safetensors file, written whole.
        plan: the hash of all that decides the result.
        modules: by a name that holds no dot.
        step: the optimiser with its schedule.
        history: plain values, a line an epoch.
    """
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for number, moments in step.optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}.{number}.{name}": tensor for name, tensor in moments.items()}
    facts = {"plan": plan, "history": history, "step": step.state()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(tensors, metadata={"state": json.dumps(facts)}))


def load_state(
    path: Path, *, plan: str, modules: Mapping[str, nn.Module], step: OptimizerStep
) -> list[dict[str, Any]]:
    """Load what an interrupted run left, if it is whole and of the same plan.

    Returns:
        The history so far; empty when there is nothing to go on from.

    Raises:
        StateError: it is of this plan, but does not fit.
    """
    try:
        with safe_open(path, framework="pt") as content:
            facts = json.loads((content.metadata() or {})["state"])
        if facts["plan"] != plan:
            return []
        tensors = load(path.read_bytes())
    except (KeyError, TypeError, SafetensorError, *UNREADABLE):
        return []
    try:
        return _restore(facts, tensors, modules, step)
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise StateError(
            f"{path} says it is of this very training, and is not: {error}. Remove it and run again"
        ) from error


def _restore(
    facts: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
    step: OptimizerStep,
) -> list[dict[str, Any]]:
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict(
            {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        )
    parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{_OPTIMIZER}."):
            _, number, name = key.split(".", 2)
            # In the order of the parameter's own memory, channels last perhaps: a fused optimiser pairs them as they lie there.
            like = parameters[int(number)]
            tensor = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            moments.setdefault(int(number), {})[name] = tensor
    groups = step.optimizer.state_dict()["param_groups"]
    step.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    step.load_state(facts["step"])
    history: list[dict[str, Any]] = facts["history"]
    return history
