"""Augmented tiles that a fold keeps for the report: a few training tiles as its networks see them.

The report has neither the tiles nor torch. lib.image.examples augments the tiles; this module needs no torch.
"""

import io
from pathlib import Path

import numpy as np

from lib.files import write_atomic


def augmented_tiles_name(fold: int) -> str:
    """The name of the file: (n, 1 + k, 96, 96, 3) uint8, each tile and k augmentations of it."""
    return f"augmented-tiles-{fold}.npy"


def write_augmented_tiles(folder: Path, fold: int, pictures: np.ndarray) -> dict[str, bool]:
    """Write the augmented tiles of a fold; returns the file's name, marked to be fetched."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(pictures), allow_pickle=False)
    write_atomic(folder / augmented_tiles_name(fold), stream.getvalue())
    return {augmented_tiles_name(fold): True}
