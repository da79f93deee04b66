"""The eight symmetries of a square (the dihedral group D4) on whole batches: exact, without interpolation."""

from functools import lru_cache

import torch

ORDER = 8


def transform(images: torch.Tensor, element: int) -> torch.Tensor:
    """Apply one symmetry to all images.

    Args:
        images: (..., H, W) with H = W.
        element: 0 to 7: a mirror left to right if `element >= 4`, then `element % 4` quarter turns
            anticlockwise. 0 is the identity, and 0 to 3 are the rotations.
    """
    if element >= 4:
        images = images.flip(-1)
    return images.rot90(element % 4, (-2, -1)) if element % 4 else images


def orient(images: torch.Tensor, element: int) -> torch.Tensor:
    """As `transform`, by one flip and a view: for images that the caller copies anyway, it saves a copy."""
    mirror, turns = element >= 4, element % 4
    if turns % 2 == 0:
        down, across, swap = turns == 2, mirror != (turns == 2), False
    else:  # a quarter turn is a transposition, which is a view, and one flip
        down, across, swap = turns == 3, mirror == (turns == 3), True
    sides = [side for side, flipped in ((-2, down), (-1, across)) if flipped]
    images = images.flip(sides) if sides else images
    return images.transpose(-2, -1) if swap else images


def transform_each(images: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Apply to each image its own symmetry, as `transform` defines it.

    Args:
        images: (B, C, H, W) with H = W.
        elements: (B,) int64, 0 to 7, on the same device; never read by the host, which would wait.
    """
    sources = _sources(images.shape[-1], images.device)[elements]  # (B, H*W)
    flat = images.flatten(2)  # (B, C, H*W)
    return flat.gather(2, sources.unsqueeze(1).expand_as(flat)).view(images.shape)


@lru_cache(maxsize=8)
def _sources(side: int, device: torch.device) -> torch.Tensor:
    """The source pixel of each pixel of the result, for each symmetry, (8, H*W) int64."""
    pixels = torch.arange(side * side).view(side, side)
    return torch.stack([transform(pixels, element).flatten() for element in range(ORDER)]).to(device)
