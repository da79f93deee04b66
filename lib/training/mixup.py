"""Mixup and cutmix (Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899), as timm does them."""

from collections.abc import Callable

import numpy as np
import torch

from lib.config import Config

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def build_mix(config: Config, *, seed: int) -> Mix | None:
    """What blends a batch and its labels; None where neither is asked for.

    Args:
        config: mixup and cutmix: the alphas of their beta distributions; with both, each batch gets one of them.
        seed: of the draws, which timm takes from numpy's own generator: an epoch after an interruption draws as it would have.

    Returns:
        A function of images (B, 3, H, W), which it overwrites, and labels (B,) float32, to images and labels in [0, 1]. Tiles are
        blended with their mirror place in the batch; the last one of an odd number stays as it is.
    """
    if not (config.mixup or config.cutmix):
        return None
    from timm.data import Mixup

    np.random.seed(seed)
    mixup = Mixup(mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=0.0, num_classes=2)

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        even = len(images) // 2 * 2
        if even:
            blended, targets = mixup(images[:even], labels[:even])
            images[:even], labels = blended, torch.cat([targets[:, 1].to(labels.dtype), labels[even:]])
        return images, labels

    return mix


def smooth(labels: torch.Tensor, share: float) -> torch.Tensor:
    """Labels with this share spread evenly over both classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    return labels * (1 - share) + share / 2 if share else labels
