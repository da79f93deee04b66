"""Tuning of a part of a network: its last blocks, or low-rank adapters (LoRA) of its linear layers."""

import math
from typing import Any, cast

import torch
from timm.models import group_parameters
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lib.config import Config
from lib.model.network import Classifier, NetworkError

# alpha / rank of Hu et al. 2021 (arXiv 2106.09685), with the common choice alpha = 2 * rank.
_ADAPTER_SCALE = 2.0
_DOWN, _UP = "adapter_down", "adapter_up"


class AdaptedLinear(nn.Linear):
    """A linear layer with a low-rank adapter: W x + b + 2 B (A x), of which only A and B learn.

    B starts at zero, so that the first outputs are those without adapters (Hu et al. 2021, section 4.1).

    Attributes:
        adapter_down: A, (rank, in_features).
        adapter_up: B, (out_features, rank).
    """

    def __init__(self, layer: nn.Linear, *, rank: int) -> None:
        super().__init__(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device=torch.device("meta")
        )
        self.weight, self.bias = layer.weight, layer.bias
        rank = min(rank, layer.in_features, layer.out_features)
        self.adapter_down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.adapter_up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5))  # as torch draws a linear layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name is torch's
        """Vectors (..., in_features) to (..., out_features)."""
        change = functional.linear(functional.linear(input, self.adapter_down), self.adapter_up)
        return super().forward(input) + _ADAPTER_SCALE * change

    def merged_weight(self) -> torch.Tensor:
        """W + 2 B A, (out_features, in_features) float32."""
        return self.weight.detach() + _ADAPTER_SCALE * (self.adapter_up.detach() @ self.adapter_down.detach())


def prepare_tuning(network: Classifier, config: Config) -> None:
    """Insert the adapters that `train_mode` asks for, and let only its part of the network learn; in place.

    Args:
        network: of `build_network`, on the CPU, with its first weights.
        config: train_mode, train_blocks, lora_rank, input_size.

    Raises:
        NetworkError: the backbone has no such part, or does not name its head.
    """
    if config.train_mode == "lora":
        _insert_adapters(network, config)
    choose_trained(network, config)


def choose_trained(network: Classifier, config: Config) -> None:
    """Let only the part of a prepared network learn that `train_mode` names; nothing else has a gradient.

    Raises:
        NetworkError: the backbone has fewer blocks, or does not name its head.
    """
    names = _trained_names(network, config)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(names is None or name in names)


def keep_frozen_statistics(network: nn.Module) -> None:
    """Keep the running statistics of batch norms that do not learn; call it after `network.train()`."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def merged_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network with its adapters merged into the weights: the names of one without adapters."""
    state: dict[str, torch.Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLinear):
            state[f"{name}.weight"] = module.merged_weight()
            del state[f"{name}.{_DOWN}"], state[f"{name}.{_UP}"]
    return state


def timm_network(network: nn.Module) -> tuple[nn.Module, str]:
    """The timm network inside ours, and the prefix of its parameters' names."""
    prefix = ""
    while isinstance(inner := getattr(network, "backbone", None), nn.Module):
        network, prefix = inner, f"{prefix}backbone."
    return network, prefix


def _insert_adapters(network: Classifier, config: Config) -> None:
    """Give every linear layer of the backbone but its classifier an adapter."""
    backbone, prefix = timm_network(network)
    head = network.head_names()
    adapted = []
    for name, module in list(backbone.named_modules()):
        if type(module) is nn.Linear and not f"{prefix}{name}.".startswith(head or ("",)):
            owner, _, last = name.rpartition(".")
            setattr(backbone.get_submodule(owner), last, AdaptedLinear(module, rank=config.lora_rank))
            adapted.append(name)
    if not adapted:
        raise NetworkError(
            f"train_mode = lora: {config.backbone!r} has no linear layers. Use train_mode = last_blocks"
        )
    if unused := set(adapted) - _called_layers(network, backbone, config):
        raise NetworkError(
            f"train_mode = lora: {config.backbone!r} uses the weights of {len(unused)} linear layers without "
            f"calling them, such as {min(unused)}, so that an adapter has no effect. Use train_mode = "
            "last_blocks"
        )


def _called_layers(network: Classifier, backbone: nn.Module, config: Config) -> set[str]:
    """The names of the adapted layers that a forward pass calls."""
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in backbone.named_modules()
        if isinstance(module, AdaptedLinear)
    ]
    was_training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, config.input_size, config.input_size))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return called


def _trained_names(network: Classifier, config: Config) -> set[str] | None:
    """The names of the parameters that learn; None for all of them."""
    if config.train_mode not in ("lora", "last_blocks"):
        return None
    head = network.head_names()
    if not head:
        raise NetworkError(
            f"train_mode = {config.train_mode}: {config.backbone!r} does not name its head; use "
            "--set pooling=avg"
        )
    names = [name for name, _ in network.named_parameters()]
    trained = {name for name in names if name.startswith(head)}
    if config.train_mode == "lora":
        return trained | {name for name in names if name.endswith((f".{_DOWN}", f".{_UP}"))}
    return trained | _last_blocks(network, config, head)


def _last_blocks(network: Classifier, config: Config, head: tuple[str, ...]) -> set[str]:
    """The parameters of the last blocks, in timm's order of the layers, and of the norms behind them."""
    backbone, prefix = timm_network(network)
    matcher = cast(Any, backbone).group_matcher(coarse=False)
    layers: dict[int, list[str]] = group_parameters(backbone, matcher)
    sizes = {prefix + name: parameter.ndim for name, parameter in backbone.named_parameters()}
    trained: set[str] = set()
    blocks = 0
    for number in sorted(layers, reverse=True):
        names = [
            prefix + name
            for name in layers[number]
            if prefix + name in sizes and not f"{prefix}{name}".startswith(head)
        ]
        trained.update(names)
        blocks += any(sizes[name] > 1 for name in names)  # a norm alone is no block
        if blocks == config.train_blocks:
            return trained
    raise NetworkError(
        f"train_mode = last_blocks: {config.backbone!r} has {blocks} blocks, fewer than train_blocks = "
        f"{config.train_blocks}"
    )
