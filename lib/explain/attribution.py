"""Attribution maps of networks and of hard tiles: Grad-CAM, or attention rollout for transformers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from lib.data.batches import as_images, load_batches
from lib.errors import KernelError
from lib.explain.hard_tiles import (
    ATTRIBUTION_SAMPLE,
    CENTRE_SHARE,
    HARD_TILE_KINDS,
    ExplainedTiles,
    choose_hard_tiles,
)
from lib.model.checkpoint import load_checkpoint
from lib.model.network import Classifier
from lib.model.pooling import PooledBackbone, feature_map

logger = logging.getLogger(__name__)

CENTRE = slice(32, 64)  # of 96: the pixels that decide the label
# Cells a side below which the share in the centre says nothing: enlarged, each of 2 x 2 cells has the same
# share of the centre as of the tile, so every map has a ninth there.
MIN_CELLS = 3
GRAD_CAM, ROLLOUT = "Grad-CAM", "attention rollout"
_BATCH = 32  # tiles; needs less memory than a training step did
_MAX_ERROR = 500  # characters of an error message in run.json


class ExplainError(KernelError):
    """There is no map for this network; the message says why."""


def method_of(network: Classifier) -> str:
    """The method that `attribute` uses for this network: `Grad-CAM` or `attention rollout`."""
    inner = _inner(network)
    return ROLLOUT if hasattr(inner, "blocks") and _attentions(inner) else GRAD_CAM


def _inner(network: Classifier) -> Any:
    """The network as timm built it, without our pooling layer."""
    body = network.backbone
    return body.backbone if isinstance(body, PooledBackbone) else body


def attribute(network: Classifier, tiles: torch.Tensor) -> torch.Tensor:
    """The contribution of each pixel to the logit of tumour.

    Convolutional networks: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the last feature map: the
    channels weighted by their mean gradient, negative values set to zero. Transformers: attention rollout
    (Abnar and Zuidema 2020, arXiv 2005.00928) to the class token, or to the mean of all tokens where there is
    none; it does not depend on the class.

    Args:
        network: in evaluation mode afterwards.
        tiles: (B, 3, H, W) float32 in [0, 1], on the network's device.

    Returns:
        (B, H, W) float32, at least 0, each with a sum of 1; all zeros where nothing is evidence for tumour.

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
    """Height and width, in cells, of the map that `attribute` enlarges; uses the first of the tiles."""
    height, width = _coarse(network, tiles[:1]).shape[1:]
    return height, width


def _coarse(network: Classifier, tiles: torch.Tensor) -> torch.Tensor:
    """(B, h, w) at least 0, one value a cell of the last feature map."""
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
            with torch.no_grad():  # the gradient is needed at the last feature map only
                features = inner.forward_features(images).detach()
            features.requires_grad_(True)
            if isinstance(body, PooledBackbone):
                logits = body.head(body.pool_features(feature_map(inner, features)))
            else:
                logits = inner.forward_head(features)
            (gradient,) = torch.autograd.grad(logits.sum(), features)
            channels, weights = feature_map(inner, features.detach()), feature_map(inner, gradient)
        except (AttributeError, ValueError) as error:
            raise ExplainError(f"{type(inner).__name__} has no feature map to explain: {error}") from error
    return (weights.mean(dim=(2, 3), keepdim=True) * channels).sum(dim=1).clamp(min=0)


def _attentions(inner: nn.Module) -> list[nn.Module]:
    """The attention layers whose softmax output passes through a dropout module, where a hook can read it."""
    return [
        module
        for module in inner.modules()
        if all(hasattr(module, name) for name in ("attn_drop", "fused_attn", "qkv"))
    ]


@contextmanager
def _recorded_attention(layers: list[Any]) -> Iterator[list[torch.Tensor]]:
    """Record the attention (B, N, N) of each layer, the mean of its heads, during a forward pass.

    Fused attention is off meanwhile, because it never materialises the attention matrix.
    """
    attentions: list[torch.Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    hooks = []
    for layer in layers:
        layer.fused_attn = False
        hooks.append(
            layer.attn_drop.register_forward_hook(
                lambda module, inputs, output: attentions.append(output.detach().float().mean(dim=1))
            )
        )
    try:
        yield attentions
    finally:
        for hook in hooks:
            hook.remove()
        for layer, was_fused in zip(layers, fused, strict=True):
            layer.fused_attn = was_fused


def _rollout(inner: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, h, w) at least 0."""
    with torch.no_grad(), _recorded_attention(_attentions(inner)) as attentions:
        inner.forward_features(images)
    if not attentions or len({attention.shape for attention in attentions}) != 1:
        raise ExplainError(
            f"the attention of {type(inner).__name__} is not over the same tokens in every layer"
        )
    identity = torch.eye(attentions[0].shape[-1], device=images.device)
    rollout = identity
    for attention in attentions:
        # Half of a layer's output comes through the residual connection, past its attention.
        mixed = 0.5 * attention + 0.5 * identity
        rollout = (mixed / mixed.sum(dim=2, keepdim=True)) @ rollout
    prefix = int(getattr(inner, "num_prefix_tokens", 0))
    tokens = rollout[:, 0] if prefix else rollout.mean(dim=1)  # (B, N)
    try:
        return feature_map(inner, tokens.unsqueeze(2)).squeeze(1)
    except ValueError as error:
        raise ExplainError(f"the tokens of {type(inner).__name__} form no map: {error}") from error


def explain_hard_tiles(
    checkpoint: Path,
    tiles: np.ndarray,
    *,
    index: pd.DataFrame,
    probabilities: np.ndarray,
    device: torch.device,
    entropy: tuple[int, ...],
) -> ExplainedTiles:
    """Compute the attribution of a fold's hard tiles and of a sample of its tumour tiles with one member.

    The network runs in float32 whatever it was trained in, on the tiles without test-time augmentation.

    Args:
        checkpoint: of the member.
        tiles: (N, 96, 96, 3) uint8.
        index: row in `tiles`, id and label of the tiles of the fold.
        probabilities: (n,) their out-of-fold probabilities, the mean over members.
        device: to compute on.
        entropy: the seeds of the sample.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the network it names. This is not caught:
            inference could not use such a file either.
    """
    labels, rows = index["label"].to_numpy(), index["row"].to_numpy()
    chosen = choose_hard_tiles(labels, probabilities)
    hard = np.array([row for row, _ in chosen], dtype=np.int64)
    tumour = np.flatnonzero(labels == 1)
    generator = np.random.default_rng(np.random.SeedSequence(list(entropy)))
    sample = np.sort(generator.choice(tumour, size=min(ATTRIBUTION_SAMPLE, len(tumour)), replace=False))
    network = load_checkpoint(checkpoint)[0].to(device)
    maps: np.ndarray | None = None
    shares, summary = np.full(len(hard), np.nan), {}
    try:
        all_maps, cells = _explain(network, tiles, rows[np.concatenate([hard, sample])], device=device)
    except ExplainError as error:
        summary = {"missing": str(error)}
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        # Code of timm may raise any of these, out of memory included. Hours of training must not be lost over
        # it.
        summary = {"missing": f"{type(error).__name__}: {error}"[:_MAX_ERROR]}
    else:
        if min(cells) < MIN_CELLS:  # the maps mean nothing, so none are kept
            grid = f"{cells[0]} x {cells[1]} cells"
            summary = {"missing": f"{method_of(network)} on {grid}: any such map has a ninth in the centre"}
        else:
            maps, all_shares = all_maps[: len(hard)].numpy(), share_in_centre(all_maps).double().numpy()
            shares = all_shares[: len(hard)]
            summary = _summarise_shares(all_shares[len(hard) :], method_of(network))
    table = index.iloc[hard][["id", "label"]].assign(
        probability=probabilities[hard], kind=[kind for _, kind in chosen], share_in_centre=shares
    )
    _log_summary([kind for _, kind in chosen], summary)
    return ExplainedTiles(table.reset_index(drop=True), tiles[rows[hard]], maps, summary)


def _log_summary(kinds: Sequence[str], summary: Mapping[str, Any]) -> None:
    counts = [f"{kinds.count(kind)} {words}" for kind, words in HARD_TILE_KINDS.items()]
    logger.info("%s: kept for the report", ", ".join(counts))
    if "missing" in summary:
        logger.warning("no attribution: %s", summary["missing"])
        return
    logger.info(
        "%s: median share of the evidence for tumour inside the centre %.1f%% (%s tumour tiles; %.1f%% for a "
        "uniform map)",
        summary["method"],
        100 * summary["share_in_centre"]["median"],
        f"{summary['tiles']:,}",
        100 * CENTRE_SHARE,
    )


def _explain(
    network: Classifier, tiles: np.ndarray, rows: np.ndarray, *, device: torch.device
) -> tuple[torch.Tensor, tuple[int, int]]:
    """(n, 96, 96) float32 maps on the CPU, and height and width in cells of the maps before enlarging."""
    # TensorFloat-32 keeps 10 bits of the mantissa, and benchmarking may choose another algorithm on each run.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        parts: list[torch.Tensor] = []
        cells = (0, 0)
        for batch, _ in load_batches(tiles, rows, batch_size=_BATCH, device=device):
            images = as_images(batch)
            cells = cells if parts else cells_of(network, images)
            parts.append(attribute(network, images).cpu())
        return torch.cat(parts), cells


def _summarise_shares(shares: np.ndarray, method: str) -> dict[str, Any]:
    """The entry of run.json for the sample's shares (n,), NaN where nothing is evidence for tumour."""
    if not len(shares):
        return {"missing": "the fold has no tumour tile"}
    defined = shares[np.isfinite(shares)]
    if not len(defined):
        return {"missing": f"{method} finds no evidence for tumour in any of {len(shares):,} tumour tiles"}
    low, median, high = np.quantile(defined, (0.25, 0.5, 0.75))
    return {
        "method": method,
        "tiles": len(defined),
        "tiles_without_a_map": len(shares) - len(defined),
        "share_in_centre": {
            "mean": float(defined.mean()),
            "q25": float(low),
            "median": float(median),
            "q75": float(high),
        },
        "uniform_share": CENTRE_SHARE,
    }
