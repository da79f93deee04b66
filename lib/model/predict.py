"""Logits of tiles, averaged over D4 views: the same for out-of-fold tiles and for the test set."""

import numpy as np
import torch

from lib.data.batches import load_batches
from lib.errors import KernelError
from lib.image.dihedral import transform
from lib.model.network import Classifier, autocast


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
    """Mean logit over the views of each tile.

    Args:
        network: on the device; its mode is restored afterwards.
        tiles: (N, 96, 96, 3) uint8.
        rows: (M,) int64 into `tiles`.
        views: 1 (as it is), 4 (rotations) or 8 (rotations of the tile and of its mirror image).
        batch_size: tiles per forward pass.
        device: where the network is.
        precision: of the forward pass; logits are averaged in float32.

    Returns:
        (M,) float32, in the order of `rows`.

    Raises:
        PredictionError: a logit is not finite.
    """
    was_training = network.training
    network.eval()
    parts = []
    with torch.inference_mode():
        for images, _ in load_batches(tiles, rows, batch_size=batch_size, device=device):
            images = network.resize(images)  # once, not for every view: symmetries of the square commute with it
            total = torch.zeros(len(images), dtype=torch.float32, device=device)  # (B,)
            for view in range(views):
                with autocast(device, precision):
                    logits = network(transform(images, view))
                total += logits.float()
            parts.append((total / views).cpu())
    network.train(was_training)
    logits = torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.float32)
    if bad := int((~np.isfinite(logits)).sum()):
        raise PredictionError(
            f"{bad:,} of {len(logits):,} logits are not finite: the training diverged (lower the learning rate: "
            "--set learning_rate=..., or clip: --set clip_gradient=1), or float16 overflowed (--set precision=float32)"
        )
    return logits
