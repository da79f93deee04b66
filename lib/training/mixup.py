"""Mixup, CutMix and label smoothing.

Sources: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
"""

from collections.abc import Callable

import numpy as np
import torch

from lib.config import Config

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_CENTRE = 1 / 3  # of the tile's side: the label is about the centre 32 x 32 of 96 x 96 pixels


def build_mix(config: Config, *, seed: int) -> Mix | None:
    """The function that mixes a batch; None where `mixup` and `cutmix` are 0.

    Args:
        config: `mixup` and `cutmix` are the alphas of the beta distributions; with both, each batch gets one
            of them at random.
        seed: of the draws, another one for each epoch: a resumed epoch draws the same.

    Returns:
        A function from images (B, 3, H, W), which it overwrites, and labels (B,) float32, to images and
        labels in [0, 1]. Tile i is mixed with tile B - 1 - i; the last tile of an odd batch stays as it is.
        Mixup weighs the labels like the tiles. CutMix weighs them by the share of the centre that it
        replaces, because the label is about the centre only.
    """
    if not (config.mixup or config.cutmix):
        return None
    generator = np.random.default_rng(seed)

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        even = len(images) // 2 * 2
        cut = bool(config.cutmix) and (not config.mixup or generator.random() < 0.5)
        alpha = config.cutmix if cut else config.mixup
        share = float(generator.beta(alpha, alpha))  # that each tile gets of the other one
        pairs, others = images[:even], images[:even].flip(0)
        if cut:
            rows, columns = draw_box(images.shape[-2], images.shape[-1], share, generator)
            pairs[:, :, rows, columns] = others[:, :, rows, columns]
            share = _inside_centre(rows, images.shape[-2]) * _inside_centre(columns, images.shape[-1])
        else:
            pairs.lerp_(others, share)
        mixed = torch.lerp(labels[:even], labels[:even].flip(0), share)
        return images, torch.cat([mixed, labels[even:]])

    return mix


def draw_box(height: int, width: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """A box with this share of the area, its centre anywhere; what lies outside the tile is cut off."""
    slices = []
    for side in (height, width):
        length, centre = int(side * share**0.5), int(generator.integers(side))
        begin = centre - length // 2
        slices.append(slice(max(begin, 0), min(begin + length, side)))
    return slices[0], slices[1]


def _inside_centre(pixels: slice, side: int) -> float:
    """The share of the centre's side that these pixels cover."""
    begin, end = side * (1 - _CENTRE) / 2, side * (1 + _CENTRE) / 2
    return max(0.0, min(pixels.stop, end) - max(pixels.start, begin)) / (end - begin)


def smooth(labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Labels (B,) with this share spread evenly over both classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    return labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
