"""Examples of the augmentation: a few tiles, and several augmentations of each, as pictures."""

import numpy as np
import torch

from lib.config import Config
from lib.image.augment import DRAWS, augment

EXAMPLES_SHOWN = 6  # augmentations of each tile


def augmented_examples(
    tiles: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, config: Config, entropy: tuple[int, ...]
) -> np.ndarray:
    """Augment one random tile of each class several times, on the CPU.

    Mixup and CutMix act on pairs of tiles, and stain normalisation on all tiles: they are not applied.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        labels: (N,) 0 or 1.
        rows: (M,) the tiles to choose from.
        config: flip, rotate, hed_jitter, brightness, contrast, saturation, hue.
        entropy: the seeds of the choice and of the draws.

    Returns:
        (n, 1 + `EXAMPLES_SHOWN`, 96, 96, 3) uint8, n classes, tumour first: the tile, then its augmentations.
    """
    generator = np.random.default_rng(np.random.SeedSequence(list(entropy)))
    of_class = [rows[labels[rows] == label] for label in (1, 0)]
    chosen = [generator.choice(members) for members in of_class if len(members)]
    originals = np.stack([np.asarray(tiles[row]) for row in chosen])  # (n, 96, 96, 3)
    copies = np.repeat(originals, EXAMPLES_SHOWN, axis=0).transpose(0, 3, 1, 2)  # (n * k, 3, 96, 96)
    draws = torch.from_numpy(generator.random((len(copies), DRAWS), dtype=np.float32))
    images = augment(torch.from_numpy(np.ascontiguousarray(copies)), draws, config)
    pixels = (images * 255).round().byte().numpy().transpose(0, 2, 3, 1)
    pictures = pixels.reshape(len(chosen), EXAMPLES_SHOWN, *originals.shape[1:])
    return np.concatenate([originals[:, None], pictures], axis=1)
