"""Save and load the state of a training after a whole epoch, so that an interrupted run resumes there."""

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

_FORMAT = 2  # of the state
_OPTIMIZER = "optimizer"  # prefix of the optimiser's tensors


class StateError(KernelError):
    """The saved state does not fit the training that its metadata name."""


def save_state(
    path: Path,
    *,
    plan: str,
    modules: Mapping[str, nn.Module],
    step: OptimizerStep,
    history: list[dict[str, Any]],
) -> None:
    """Save weights, optimiser moments, gradient scaler and schedule.

    Random draws need no state: they are keyed by the epoch.

    Args:
        path: of one safetensors file, written atomically.
        plan: the hash of all that decides the result.
        modules: by a name without a dot.
        step: the optimiser with its schedule.
        history: plain values, one dictionary per epoch.
    """
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for number, moments in step.optimizer.state_dict()[
        "state"
    ].items():  # AdamW: twice the size of the weights
        tensors |= {f"{_OPTIMIZER}.{number}.{name}": tensor for name, tensor in moments.items()}
    state = {"format": _FORMAT, "plan": plan, "history": history, "step": step.state()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(tensors, metadata={"state": json.dumps(state)}))


def load_state(
    path: Path, *, plan: str, modules: Mapping[str, nn.Module], step: OptimizerStep
) -> list[dict[str, Any]]:
    """Load the state of an interrupted run, if the file is whole and of the same plan.

    Returns:
        The history so far; empty when there is no state to resume from.

    Raises:
        StateError: the file names this plan, but does not fit it.
    """
    try:
        with safe_open(path, framework="pt") as content:
            state = json.loads((content.metadata() or {})["state"])
        if (state["format"], state["plan"]) != (_FORMAT, plan):
            return []
        tensors = load(path.read_bytes())
    except (KeyError, TypeError, SafetensorError, *UNREADABLE):
        return []
    try:
        return _restore(state, tensors, modules, step)
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
            f"{path} names this training in its metadata, but does not fit it: {error}. "
            "Remove the file and run again"
        ) from error


def _restore(
    state: dict[str, Any],
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
            # With the strides of its parameter (perhaps channels last): the fused optimiser pairs both by
            # memory order.
            parameter = parameters[int(number)]
            same_shape = tensor.shape == parameter.shape
            tensor = torch.empty_like(parameter).copy_(tensor) if same_shape else tensor
            moments.setdefault(int(number), {})[name] = tensor
    groups = step.optimizer.state_dict()["param_groups"]
    step.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    step.load_state(state["step"])
    history: list[dict[str, Any]] = state["history"]
    return history
