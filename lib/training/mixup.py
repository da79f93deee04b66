"""Mixup, CutMix and label smoothing.

Sources: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
"""

from collections.abc import Callable

import numpy as np
import torch

from lib.config import Config

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def build_mix(config: Config, *, seed: int) -> Mix | None:
    """The function that mixes a batch by timm's Mixup; None where `mixup` and `cutmix` are 0.

    Args:
        config: `mixup` and `cutmix` are the alphas of the beta distributions; with both, each batch gets one
            of them.
        seed: of NumPy's global generator, from which timm draws. Seeded for each epoch: a resumed epoch draws
            the same.

    Returns:
        A function from images (B, 3, H, W), which it overwrites, and labels (B,) float32, to images and
        labels in [0, 1]. Tile i is mixed with tile B - 1 - i; the last tile of an odd batch stays as it is.
    """
    if not (config.mixup or config.cutmix):
        return None
    from timm.data import Mixup

    np.random.seed(seed)
    mixup = Mixup(mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=0.0, num_classes=2)

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        even = len(images) // 2 * 2  # timm refuses odd batches
        if even:
            mixed, targets = mixup(images[:even], labels[:even])  # targets: (even, 2), one-hot mixed
            images[:even], labels = mixed, torch.cat([targets[:, 1].to(labels.dtype), labels[even:]])
        return images, labels

    return mix


def smooth(labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Labels (B,) with this share spread evenly over both classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    return labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
