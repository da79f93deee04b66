"""Augmentation of a whole batch on its device, each sample with its own draw.

Draws are keyed by (seed, epoch, row): a tile is augmented in the same way whatever batch it lands in, whichever process
works on it, and however often the run was interrupted.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from lib.config import Config
from lib.image.dihedral import transform_each

DRAWS = 7  # uniform numbers a sample uses: mirror, second mirror, turn, brightness, contrast, saturation, hue
_MIRROR, _FLIP, _TURN, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(DRAWS)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Draws:
    """The draws of one epoch: for a row that is used n times, n independent ones."""

    def __init__(self, *, entropy: list[int], rows: int) -> None:
        self._entropy, self._rows = entropy, rows
        self._tables: list[np.ndarray] = []  # one (N, 7) table for each time a row may come

    def take(self, rows: np.ndarray, occurrence: np.ndarray) -> torch.Tensor:
        """(B, 7) float32 in [0, 1) for these rows, used for the `occurrence`-th time (0 is the first) in this epoch."""
        while len(self._tables) <= int(occurrence.max(initial=0)):
            generator = np.random.default_rng(np.random.SeedSequence([*self._entropy, len(self._tables)]))
            self._tables.append(generator.random((self._rows, DRAWS), dtype=np.float32))
        out = np.empty((len(rows), DRAWS), dtype=np.float32)
        for number in np.unique(occurrence):
            here = occurrence == number
            out[here] = self._tables[number][rows[here]]
        return torch.from_numpy(out)


def augment(images: torch.Tensor, draws: torch.Tensor, config: Config) -> torch.Tensor:
    """Mirror, turn and jitter the colours of a batch.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB, H = W.
        draws: (B, 7) uniform in [0, 1), on the same device.
        config: flip, rotate, brightness, contrast, saturation, hue.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    return jitter_colours(_turn(images, draws, config), draws, config)


def _turn(images: torch.Tensor, draws: torch.Tensor, config: Config) -> torch.Tensor:
    if config.rotate == "quarter":
        turns = (draws[:, _TURN] * 4).long()
        mirror = (draws[:, _MIRROR] < 0.5).long() if config.flip else torch.zeros_like(turns)
        return transform_each(images, turns + 4 * mirror)
    if config.flip:  # without quarter turns two mirrors are needed to reach half a turn
        across = (draws[:, _MIRROR] < 0.5).view(-1, 1, 1, 1)
        down = (draws[:, _FLIP] < 0.5).view(-1, 1, 1, 1)
        images = torch.where(across, images.flip(-1), images)
        images = torch.where(down, images.flip(-2), images)
    if config.rotate == "any":
        images = _rotate(images, draws[:, _TURN] * (2 * math.pi))
    return images


def _rotate(images: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Each image about its centre, in radians; what comes from outside is the mirror image of what is inside."""
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter_colours(images: torch.Tensor, draws: torch.Tensor, config: Config) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, each by its own factor, as one affine map of RGB per sample.

    Contrast pulls towards the mean luma of the sample, saturation towards the luma of the pixel, and hue turns RGB about
    the grey axis (Rodrigues' formula); grey stays grey under the last two, which lets all four become one 3 x 3 matrix
    and one offset. With all strengths at 0 the images come back unchanged.
    """
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    if not any(strengths):
        return images
    spread = draws[:, _BRIGHTNESS:] * 2 - 1  # (B, 4) in [-1, 1)
    brightness = 1 + strengths[0] * spread[:, 0]
    contrast = 1 + strengths[1] * spread[:, 1]
    saturation = 1 + strengths[2] * spread[:, 2]
    angle = strengths[3] * spread[:, 3] * (2 * math.pi)

    luma = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    identity = torch.eye(3, dtype=images.dtype, device=images.device)
    saturate = saturation.view(-1, 1, 1) * identity + (1 - saturation).view(-1, 1, 1) * luma.expand(3, 3)
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1) / math.sqrt(3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=images.dtype, device=images.device)
    turn = cosine * identity + sine * cross + (1 - cosine) / 3
    matrix = (brightness * contrast).view(-1, 1, 1) * (turn @ saturate)  # (B, 3, 3)
    mean = torch.einsum("bchw,c->b", images, luma) / (images.shape[-1] * images.shape[-2])
    offset = (brightness * (1 - contrast) * mean).view(-1, 1, 1)  # grey, so the same for all channels
    flat = torch.baddbmm(offset.expand(-1, 3, 1), matrix, images.flatten(2))  # (B, 3, H*W)
    return flat.view_as(images).clamp_(0, 1)
