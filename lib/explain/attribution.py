"""Where in a tile a network finds what speaks for tumour: Grad-CAM for convolutions, attention rollout for transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lib.errors import KernelError
from lib.model.network import Classifier
from lib.model.pooling import PooledBackbone, feature_map

CENTRE = slice(32, 64)  # of 96: the pixels the label is about
# Cells a side below which every map has that share, whatever it shows: enlarged, each of 2 x 2 cells has as much of the centre
# as of the tile.
FEWEST_CELLS = 3
GRAD_CAM, ROLLOUT = "grad-cam", "attention rollout"


class ExplainError(KernelError):
    """There is no map for this network; the message says why."""


def method_of(network: Classifier) -> str:
    """How `attribute` explains this network, if it can: `grad-cam` or `attention rollout`."""
    inner = _inner(network)
    return ROLLOUT if hasattr(inner, "blocks") and _attentions(inner) else GRAD_CAM


def _inner(network: Classifier) -> Any:
    """The network as timm made it, without a pool of ours."""
    body = network.backbone
    return body.backbone if isinstance(body, PooledBackbone) else body


def attribute(network: Classifier, tiles: torch.Tensor) -> torch.Tensor:
    """What each place contributes to the logit of tumour.

    Convolutional networks: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the last feature map: the map's channels,
    weighted by their mean gradient, what is left above zero. Transformers: attention rollout (Abnar and Zuidema 2020, arXiv
    2005.00928) to the class token, or to the mean of all tokens where there is none; it does not know the class.

    Args:
        network: in evaluation mode afterwards.
        tiles: (B, 3, H, W) float32 in [0, 1], on the network's device.

    Returns:
        (B, H, W) float32, at least 0, each with a sum of 1; all zeros where nothing speaks for tumour.

    Raises:
        ExplainError: the network gives neither a feature map nor attention.
    """
    coarse = _coarse(network, tiles)
    fine = functional.interpolate(
        coarse.unsqueeze(1).float(), size=tiles.shape[-2:], mode="bilinear", align_corners=False
    )
    fine = fine.squeeze(1).clamp(min=0)
    total = fine.sum(dim=(1, 2), keepdim=True)
    return torch.where(total > 0, fine / total.clamp(min=1e-30), torch.zeros_like(fine))


def cells_of(network: Classifier, tiles: torch.Tensor) -> tuple[int, int]:
    """Height and width of the map that `attribute` enlarges, asked with the first of the tiles (B, 3, H, W)."""
    height, width = _coarse(network, tiles[:1]).shape[1:]
    return height, width


def _coarse(network: Classifier, tiles: torch.Tensor) -> torch.Tensor:
    """(B, h, w) at least 0, in the network's own cells."""
    network.eval()
    with torch.no_grad():
        images = network.normalise(network.resize(network.normalise_stain(tiles)))
    inner = _inner(network)
    return (
        _rollout(inner, images)
        if method_of(network) == ROLLOUT
        else _grad_cam(network.backbone, inner, images)
    )


def share_in_centre(maps: torch.Tensor) -> torch.Tensor:
    """(B,) of maps (B, 96, 96) the share inside the 32 x 32 centre; not a number where a map is all zeros."""
    total = maps.sum(dim=(1, 2))
    inside = maps[:, CENTRE, CENTRE].sum(dim=(1, 2))
    return torch.where(total > 0, inside / total.clamp(min=1e-30), torch.full_like(total, torch.nan))


def _grad_cam(body: nn.Module, inner: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, h, w) at least 0."""
    with torch.enable_grad():
        try:
            with torch.no_grad():  # no gradient goes below the last feature map
                features = inner.forward_features(images).detach()
            features.requires_grad_(True)
            if isinstance(body, PooledBackbone):
                logits = body.head(body.pool(feature_map(inner, features)))
            else:
                logits = inner.forward_head(features)
            (gradient,) = torch.autograd.grad(logits.sum(), features)
            channels, weights = feature_map(inner, features.detach()), feature_map(inner, gradient)
        except (AttributeError, ValueError) as error:
            raise ExplainError(f"{type(inner).__name__} has no feature map to explain: {error}") from error
    return (weights.mean(dim=(2, 3), keepdim=True) * channels).sum(dim=1).clamp(min=0)


def _attentions(inner: nn.Module) -> list[nn.Module]:
    """The attention layers that can be watched: those with softmaxed scores that pass through a dropout."""
    return [
        m
        for m in inner.modules()
        if hasattr(m, "attn_drop") and hasattr(m, "fused_attn") and hasattr(m, "qkv")
    ]


@contextmanager
def _watched(layers: list[Any]) -> Iterator[list[torch.Tensor]]:
    """The attention (B, N, N) of each layer, the mean of its heads, as a forward pass comes by; not fused meanwhile."""
    seen: list[torch.Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    hooks = []
    for layer in layers:
        layer.fused_attn = False
        hooks.append(
            layer.attn_drop.register_forward_hook(
                lambda module, given, found: seen.append(found.detach().float().mean(dim=1))
            )
        )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for layer, before in zip(layers, fused, strict=True):
            layer.fused_attn = before


def _rollout(inner: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, h, w) at least 0."""
    with torch.no_grad(), _watched(_attentions(inner)) as seen:
        inner.forward_features(images)
    if not seen or len({each.shape for each in seen}) != 1:
        raise ExplainError(
            f"the attention of {type(inner).__name__} is not over the same tokens in every layer"
        )
    identity = torch.eye(seen[0].shape[-1], device=images.device)
    together = identity
    for attention in seen:
        # Half of what leaves a layer came past its attention.
        mixed = 0.5 * attention + 0.5 * identity
        together = (mixed / mixed.sum(dim=2, keepdim=True)) @ together
    prefix = int(getattr(inner, "num_prefix_tokens", 0))
    tokens = together[:, 0] if prefix else together.mean(dim=1)  # (B, N)
    try:
        return feature_map(inner, tokens.unsqueeze(2)).squeeze(1)
    except ValueError as error:
        raise ExplainError(f"the tokens of {type(inner).__name__} are no map: {error}") from error
