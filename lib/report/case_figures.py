"""Figures of single tiles: the hardest mistakes, and where a network found what speaks for tumour. All as PNG bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.report.style import WIDTH, bare, frame_centre, new_figure, png_of

COLUMNS = 6
_DPI = 96  # of a tile's 96 pixels about as many are shown


@dataclass(frozen=True)
class Case:
    """One tile a fold left: (96, 96, 3) uint8, its map (96, 96) with a sum of 1 or 0, and what was said of it."""

    tile: np.ndarray
    map: np.ndarray
    probability: float
    fold: int


def mistake_sheet(cases: Mapping[str, Sequence[Case]], *, title: str) -> bytes:
    """Two rows of tiles for each kind of mistake, the hardest first, with their probability and fold.

    Args:
        cases: by what they are; at least one tile in all.
        title: with n.
    """
    lines = [
        (name, found[at : at + COLUMNS])
        for name, found in cases.items()
        for at in range(0, min(len(found), 2 * COLUMNS), COLUMNS)
    ]
    figure = new_figure(0.5 + 1.3 * len(lines))
    axes = figure.subplots(len(lines), COLUMNS, squeeze=False)
    figure.suptitle(title, fontsize=10)
    for row, (name, found) in enumerate(lines):
        for column in range(COLUMNS):
            axis = axes[row, column]
            bare(axis)
            if column < len(found):
                case = found[column]
                axis.imshow(case.tile)
                frame_centre(axis)
                axis.set_title(f"{case.probability:.3f}, fold {case.fold}", fontsize=7, pad=2)
            else:
                axis.axis("off")
        axes[row, 0].set_ylabel(name, fontsize=8)
    return png_of(figure, dpi=_DPI)


def map_sheet(cases: Mapping[str, Sequence[Case]], *, title: str) -> bytes:
    """Tiles, and under each its map: the brighter, the more speaks for tumour; each map on its own scale.

    Args:
        cases: by what they are, at most `COLUMNS` of each are shown; at least one tile in all.
        title: with n.
    """
    shown = {name: found[:COLUMNS] for name, found in cases.items() if found}
    figure = new_figure(0.5 + 2.1 * len(shown), width=WIDTH)
    axes = figure.subplots(2 * len(shown), COLUMNS, squeeze=False)
    figure.suptitle(title, fontsize=10)
    for row, (name, found) in enumerate(shown.items()):
        for column in range(COLUMNS):
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            for axis in (above, below):
                bare(axis)
            if column >= len(found):
                above.axis("off")
                below.axis("off")
                continue
            case = found[column]
            above.imshow(case.tile)
            above.set_title(f"{case.probability:.3f}, fold {case.fold}", fontsize=7, pad=2)
            highest = float(case.map.max())
            below.imshow(case.map, cmap="cividis", vmin=0, vmax=highest or 1.0)  # as light in grey as in colour
            if not highest:
                below.text(48, 16, "nothing", color="white", ha="center", va="center", fontsize=8)
            for axis in (above, below):
                frame_centre(axis)
        axes[2 * row, 0].set_ylabel(name, fontsize=8)
        axes[2 * row + 1, 0].set_ylabel("its map", fontsize=8)
    return png_of(figure, dpi=_DPI)
