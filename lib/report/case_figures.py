"""Figures of single tiles: the hardest mistakes, and where a network found what speaks for tumour. All as PNG bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.report.tile_figures import Row, framed, sheet

COLUMNS = 5


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
    rows = []
    for name, found in cases.items():
        for at in range(0, min(len(found), 2 * COLUMNS), COLUMNS):
            part = found[at : at + COLUMNS]
            rows.append(Row(name, [framed(case.tile) for case in part], [_said(case) for case in part]))
    return sheet(rows, title=title, columns=COLUMNS)


def map_sheet(cases: Mapping[str, Sequence[Case]], *, title: str) -> bytes:
    """Tiles, and under each its map: the brighter, the more speaks for tumour; each map on its own scale.

    Args:
        cases: by what they are, at most `COLUMNS` of each are shown; at least one tile in all.
        title: with n.
    """
    rows = []
    for name, found in cases.items():
        part = found[:COLUMNS]
        if part:
            rows.append(Row(name, [framed(case.tile) for case in part], [_said(case) for case in part]))
            texts = ["" if case.map.any() else "nothing" for case in part]
            rows.append(Row("maps", [framed(_coloured(case.map)) for case in part], texts))
    return sheet(rows, title=title, columns=COLUMNS)


def _said(case: Case) -> str:
    return f"{case.probability:.3f}, fold {case.fold}"


def _coloured(values: np.ndarray) -> np.ndarray:
    """(96, 96, 3) uint8 of a map (96, 96), its highest value bright: a colour scale that is as light in grey as in colour."""
    from matplotlib import colormaps

    highest = float(values.max())
    scaled = np.asarray(values, dtype=np.float64) / (highest or 1.0)
    return np.asarray(colormaps["cividis"](scaled, bytes=True)[..., :3], dtype=np.uint8)
