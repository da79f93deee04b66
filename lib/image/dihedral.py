"""The eight symmetries of a square (the group D4), on whole batches: exact, no interpolation."""

import torch

ORDER = 8


def transform(images: torch.Tensor, element: int) -> torch.Tensor:
    """One symmetry applied to all images.

    Args:
        images: (..., H, W) with H = W.
        element: 0 to 7: `element % 4` quarter turns anticlockwise, after a mirror left to right where `element >= 4`.
            0 is the identity and 0 to 3 are the rotations.
    """
    if element >= 4:
        images = images.flip(-1)
    return images.rot90(element % 4, (-2, -1)) if element % 4 else images


def transform_each(images: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Each image by its own symmetry, as `transform` defines it.

    Args:
        images: (B, C, H, W) with H = W.
        elements: (B,) int64, 0 to 7.
    """
    mirrored = elements >= 4
    turns = elements % 4
    images = torch.where(_each(mirrored), images.flip(-1), images)
    images = torch.where(_each(turns >= 2), images.flip((-2, -1)), images)  # half a turn
    return torch.where(_each(turns % 2 == 1), images.rot90(1, (-2, -1)), images)


def _each(choice: torch.Tensor) -> torch.Tensor:
    return choice.view(-1, 1, 1, 1)
