"""Logits of tiles, averaged over D4 views: the same for out-of-fold tiles and for the test set."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import torch

from lib.data.batches import as_images, load_batches
from lib.errors import KernelError
from lib.image.dihedral import transform
from lib.model.network import Classifier, autocast, choose_precision


class PredictionError(KernelError):
    """The network returned something that is not a number."""


def predict_logits(
    network: Classifier,
    tiles: np.ndarray,
    rows: np.ndarray,
    *,
    views: int,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> np.ndarray:
    """Mean logit over the views of each tile, from one network on its device; see `predict_members`. (M,) float32."""
    found = predict_members(
        [network], tiles, rows, views=views, batch_size=batch_size, device=device, precision=precision
    )
    logits: np.ndarray = found[:, 0]
    return logits


def predict_members(
    networks: Sequence[Classifier],
    tiles: np.ndarray,
    rows: np.ndarray,
    *,
    views: int,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
) -> np.ndarray:
    """Mean logit over the views of each tile, from every network, in one pass over the tiles.

    Args:
        networks: on the device, of one input size and stain normalisation; their modes are restored afterwards.
        tiles: (N, 96, 96, 3) uint8.
        rows: (M,) int64 into `tiles`.
        views: 1 (as it is), 4 (rotations) or 8 (rotations of the tile and of its mirror image).
        batch_size: tiles per forward pass.
        device: where the networks are.
        precision: of the forward pass; logits are averaged in float32.

    Returns:
        (M, K) float32, in the order of `rows` and of `networks`.

    Raises:
        PredictionError: a logit is not finite.
    """
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    parts = []  # on the device until the end: nothing waits
    with torch.inference_mode():
        for sent, _ in load_batches(tiles, rows, batch_size=batch_size, device=device):
            # Once, not for every view: symmetries of the square commute with both.
            images = networks[0].resize(networks[0].normalise_stain(as_images(sent)))
            total = torch.zeros(len(images), len(networks), dtype=torch.float32, device=device)  # (B, K)
            for view in range(views):
                turned = transform(images, view)
                for at, network in enumerate(networks):
                    with autocast(device, precision):
                        logits = network(turned)
                    total[:, at] += logits.float()
            parts.append(total / views)
        found = torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(networks)), dtype=np.float32)
    for network, mode in zip(networks, modes, strict=True):
        network.train(mode)
    if bad := int((~np.isfinite(found)).sum()):
        raise PredictionError(
            f"{bad:,} of {found.size:,} logits are not finite: the training diverged (lower the learning rate: "
            "--set learning_rate=..., or clip: --set clip_grad_norm=1), or float16 overflowed (--set precision=float32)"
        )
    return found


def predict_on_all(
    networks: Sequence[Classifier],
    tiles: np.ndarray,
    *,
    views: int,
    batch_size: int,
    devices: Sequence[torch.device],
    precision: str,
) -> np.ndarray:
    """`predict_members` for all tiles, each device with its share of them, all at the same time.

    Args:
        networks: on the CPU, of one input size.
        tiles: (N, 96, 96, 3) uint8.
        views: as there.
        batch_size: as there.
        devices: of one kind.
        precision: as the config has it.

    Returns:
        (N, K) float32.
    """
    places = list(dict.fromkeys(devices))  # a CPU that stands in for two cards is still one
    shares = np.array_split(np.arange(len(tiles)), len(places))

    def predict(device: torch.device, rows: np.ndarray) -> np.ndarray:
        return predict_members(
            [deepcopy(network).to(device) for network in networks],
            tiles,
            rows,
            views=views,
            batch_size=batch_size,
            device=device,
            precision=choose_precision(precision, device),
        )

    with ThreadPoolExecutor(max_workers=len(places)) as pool:
        return np.concatenate(list(pool.map(predict, places, shares)))
