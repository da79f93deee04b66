"""Augmentation of a whole batch on its device, with random draws of its own for each sample.

The draws depend on (seed, epoch, row) only. So a tile is augmented in the same way in any batch, by any
process, and after any interruption.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from lib.config import Config
from lib.image.constants import constant
from lib.image.dihedral import orient, transform_each

# The uniform random numbers of a sample.
_MIRROR, _FLIP, _TURN, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(7)
_HED_FACTORS, _HED_OFFSETS = slice(7, 10), slice(10, 13)
DRAWS = 13
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# The cross product with the grey axis, times the square root of 3.
_CROSS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
# Optical densities of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston 2001;
# skimage's rgb_from_hed.
HED_DENSITIES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_UNMIX = tuple(tuple(row) for row in np.linalg.inv(np.array(HED_DENSITIES)).tolist())
_DARKEST = 1 / 255  # black has no finite density, so it is replaced by the next grey
# On a CPU a batch is processed in pieces that fit the cache: 24 tiles are 2.5 MiB. Pieces of 24 are 2.9 times
# as fast as the whole batch of 128 (2 cores, 2026-11-24).
_PIECE = 24


class AugmentationDraws:
    """The draws of one epoch; a row that is used n times gets n independent draws."""

    def __init__(self, *, entropy: list[int], rows: int) -> None:
        self._entropy, self._rows = entropy, rows
        self._tables: list[np.ndarray] = []  # one table (N, DRAWS) for each occurrence of a row

    def take(self, rows: np.ndarray, occurrence: np.ndarray) -> torch.Tensor:
        """Draws (B, DRAWS) float32 in [0, 1) of rows, each at its n-th occurrence in the epoch (from 0)."""
        while len(self._tables) <= int(occurrence.max(initial=0)):
            generator = np.random.default_rng(np.random.SeedSequence([*self._entropy, len(self._tables)]))
            parts = [
                generator.random((self._rows, width), dtype=np.float32)
                for width in (_HUE + 1, DRAWS - _HUE - 1)
            ]
            self._tables.append(np.concatenate(parts, axis=1))
        out = np.empty((len(rows), DRAWS), dtype=np.float32)
        for number in np.unique(occurrence):
            selected = occurrence == number
            out[selected] = self._tables[number][rows[selected]]
        return torch.from_numpy(out)


def symmetries(draws: torch.Tensor, config: Config) -> torch.Tensor:
    """The symmetry of the square (lib.image.dihedral) of each sample, (B,) int64."""
    none = torch.zeros(len(draws), dtype=torch.int64, device=draws.device)
    mirror = (draws[:, _MIRROR] < 0.5).long() if config.flip else none
    if config.rotate == "quarter":
        return (draws[:, _TURN] * 4).long() + 4 * mirror
    # Without quarter turns half a turn needs two mirrors: upside down is a mirror and half a turn.
    upside_down = (draws[:, _FLIP] < 0.5).long() if config.flip else none
    return 2 * upside_down + 4 * (mirror ^ upside_down)


def augment(
    images: torch.Tensor,
    draws: torch.Tensor,
    config: Config,
    *,
    shrink: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mirror and rotate the images of a batch, and jitter their stains and colours.

    Args:
        images: (B, 3, H, W), RGB, H = W: uint8, or float32 in [0, 1].
        draws: (B, DRAWS) uniform in [0, 1), on the same device.
        config: flip, rotate, hed_jitter, brightness, contrast, saturation, hue.
        shrink: resizes float images before the augmentation, if the network takes smaller ones: it saves
            time.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    white = 255.0 if images.dtype == torch.uint8 else 1.0
    elements = symmetries(draws, config)
    angles = draws[:, _TURN] * (2 * math.pi) if config.rotate == "any" else None
    colours = _Colours.drawn(draws, config, white=white)

    def prepared(piece: torch.Tensor, samples: slice, copy: torch.Tensor) -> torch.Tensor:
        piece = copy.copy_(piece)  # contiguous float32, and not the caller's memory
        if shrink is not None:
            piece = shrink(piece)
        return piece if angles is None else _rotate(piece, angles[samples])

    if images.device.type != "cpu":
        copy = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        return colours.apply(prepared(transform_each(images, elements), slice(None), copy), slice(None))
    # All pieces use the same memory: new pages cost more than the arithmetic on them.
    copy = torch.empty((min(_PIECE, len(images)), *images.shape[1:]), dtype=torch.float32)
    out = work = torch.empty(0)
    for element, samples in _pieces(elements):
        count = samples.stop - samples.start
        piece = prepared(orient(images[samples], element), samples, copy[:count])  # (count, 3, H, W)
        if not len(out):
            out = torch.empty((len(images), *piece.shape[1:]), dtype=torch.float32)
            work = torch.empty((len(copy), *piece.shape[1:]), dtype=torch.float32)
        colours.apply(piece, samples, work=work[:count], out=out[samples])
    return out.view(-1, *images.shape[1:]) if not len(out) else out


def _pieces(elements: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Consecutive samples with the same symmetry, in pieces that fit the cache."""
    values, counts = torch.unique_consecutive(elements, return_counts=True)
    begin = 0
    for element, count in zip(values.tolist(), counts.tolist(), strict=True):
        for start in range(begin, begin + count, _PIECE):
            yield element, slice(start, min(start + _PIECE, begin + count))
        begin += count


def _rotate(images: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotate each image about its centre by its angle in radians; the outside is filled by reflection."""
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def jitter_colours(images: torch.Tensor, draws: torch.Tensor, config: Config) -> torch.Tensor:
    """Jitter stains, then brightness, contrast, saturation and hue, each sample by its own draws.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        draws: (B, DRAWS) uniform in [0, 1), on the same device.
        config: hed_jitter, brightness, contrast, saturation, hue. If all are 0 the images are unchanged.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    return _Colours.drawn(draws, config, white=1.0).apply(images.clone(), slice(None))


@dataclass(frozen=True)
class _Colours:
    """Colour changes of a batch in few passes over the pixels: a matrix on logarithms, a matrix, an offset.

    Stains (Tellez et al. 2018, IEEE TMI 37:2126): the optical density, which is minus the natural logarithm
    of RGB, is unmixed into haematoxylin, eosin and DAB. Each is multiplied by a factor from 1 +-
    `hed_jitter`, shifted by +- `hed_jitter`, and mixed again. Mixing and unmixing are linear, so x' = exp(A
    log x + b), and exp(b) is part of the next matrix.

    Colours: contrast interpolates towards the mean luma of the sample, saturation towards the luma of the
    pixel, and hue rotates RGB about the grey axis (Rodrigues' formula). Saturation and hue keep grey, so all
    four are one matrix and one offset.

    Attributes:
        white: the value of white in the images: 255 or 1.
        stains: (B, 3, 3), A; None without stain jitter.
        scale: (B, 3), or (1, 3) without stain jitter: scales each channel to [0, 1] afterwards.
        matrix: (B, 3, 3), with `scale`; None without colour jitter.
        towards_grey: (B,) the share of its mean luma that is added to a sample.
    """

    white: float
    stains: torch.Tensor | None
    scale: torch.Tensor
    matrix: torch.Tensor | None
    towards_grey: torch.Tensor

    @classmethod
    def drawn(cls, draws: torch.Tensor, config: Config, *, white: float) -> "_Colours":
        stains, scale = None, torch.full((1, 3), 1 / white, device=draws.device)
        if config.hed_jitter:
            mix = constant(HED_DENSITIES, draws.device)  # rows: stains; columns: RGB
            unmix = constant(_UNMIX, draws.device)
            factors = 1 + config.hed_jitter * (draws[:, _HED_FACTORS] * 2 - 1)  # (B, 3)
            offsets = config.hed_jitter * (draws[:, _HED_OFFSETS] * 2 - 1)  # (B, 3) of density
            stains = mix.T @ (factors.unsqueeze(2) * unmix.T)  # (B, 3, 3), for columns
            shift = -(offsets @ mix) - math.log(white) * stains.sum(dim=2)
            scale = shift.exp()
        matrix, towards_grey = None, torch.zeros(1, device=draws.device)
        if config.brightness or config.contrast or config.saturation or config.hue:
            matrix, towards_grey = _colour_matrix(draws, config)
            matrix = matrix * scale.unsqueeze(1)
        return cls(white, stains, scale, matrix, towards_grey)

    def apply(
        self,
        images: torch.Tensor,
        samples: slice,
        *,
        work: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply the changes; the result is in [0, 1].

        Args:
            images: (B, 3, H, W) float32; may be overwritten.
            samples: their positions in the batch of the draws.
            work: memory of the same shape for intermediate values.
            out: memory of the same shape for the result.
        """
        if self.stains is None and self.matrix is None:
            return torch.div(images, self.white, out=out)
        work, out = (torch.empty_like(images) if memory is None else memory for memory in (work, out))
        values, result = images.flatten(2), out.flatten(2)  # (B, 3, H*W)
        scale = self.scale if self.stains is None else self.scale[samples]
        if self.stains is not None:
            values = torch.bmm(
                self.stains[samples], values.clamp_min_(_DARKEST * self.white).log_(), out=work.flatten(2)
            ).exp_()
        if self.matrix is None:
            torch.mul(values, scale.unsqueeze(2), out=result)
        else:
            luma = constant(_LUMA, images.device)
            grey = self.towards_grey[samples] * ((values.mean(dim=2) * scale) @ luma)  # (B,)
            torch.bmm(self.matrix[samples], values, out=result).add_(grey.view(-1, 1, 1))
        result.clamp_(0, 1)
        return out


def _colour_matrix(draws: torch.Tensor, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix (B, 3, 3) of brightness, contrast, saturation and hue, and `towards_grey` (B,)."""
    spread = draws[:, _BRIGHTNESS : _HUE + 1] * 2 - 1  # (B, 4) in [-1, 1)
    brightness = 1 + config.brightness * spread[:, 0]
    contrast = 1 + config.contrast * spread[:, 1]
    saturation = (1 + config.saturation * spread[:, 2]).view(-1, 1, 1)
    angle = config.hue * spread[:, 3] * (2 * math.pi)
    luma, cross = constant(_LUMA, draws.device), constant(_CROSS, draws.device)
    identity = torch.eye(3, device=draws.device)
    saturate = saturation * identity + (1 - saturation) * luma.expand(3, 3)
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1) / math.sqrt(3)
    turn = cosine * identity + sine * cross + (1 - cosine) / 3
    return (brightness * contrast).view(-1, 1, 1) * (turn @ saturate), brightness * (1 - contrast)
