"""Figures of single tiles: the hardest mistakes, and where a network found what speaks for tumour. All as PNG bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.report.style import new_figure, png_of, with_palette

COLUMNS = 5
_DPI = 96
_SIDE, _GAP, _LEFT, _TOP, _ABOVE = 96, 6, 26, 26, 18  # pixels: a tile is shown as it is, a pixel of it a pixel of the figure
_CENTRE = (32, 63)  # first and last row and column


@dataclass(frozen=True)
class Case:
    """One tile a fold left: (96, 96, 3) uint8, its map (96, 96) with a sum of 1 or 0, and what was said of it."""

    tile: np.ndarray
    map: np.ndarray
    probability: float
    fold: int


@dataclass(frozen=True)
class _Row:
    """Pictures side by side, (96, 96, 3) uint8 each, with a text above each or none."""

    name: str
    pictures: Sequence[np.ndarray]
    texts: Sequence[str]


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
            rows.append(_Row(name, [_framed(case.tile) for case in part], [_said(case) for case in part]))
    return _sheet(rows, title=title)


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
            rows.append(_Row(name, [_framed(case.tile) for case in part], [_said(case) for case in part]))
            texts = ["" if case.map.any() else "nothing" for case in part]
            rows.append(_Row("maps", [_framed(_coloured(case.map)) for case in part], texts))
    return _sheet(rows, title=title)


def _said(case: Case) -> str:
    return f"{case.probability:.3f}, fold {case.fold}"


def _coloured(values: np.ndarray) -> np.ndarray:
    """(96, 96, 3) uint8 of a map (96, 96), its highest value bright: a colour scale that is as light in grey as in colour."""
    from matplotlib import colormaps

    highest = float(values.max())
    scaled = np.asarray(values, dtype=np.float64) / (highest or 1.0)
    return np.asarray(colormaps["cividis"](scaled, bytes=True)[..., :3], dtype=np.uint8)


def _framed(picture: np.ndarray) -> np.ndarray:
    """A copy with the centre framed: white within black is seen on any tile. The frame lies around the centre, not on it."""
    framed = picture.copy()
    first, last = _CENTRE
    for out, value in ((2, 0), (1, 255)):
        low, high = first - out, last + out
        framed[[low, high], low : high + 1] = value
        framed[low : high + 1, [low, high]] = value
    return framed


def _sheet(rows: Sequence[_Row], *, title: str) -> bytes:
    """All rows in one picture on one pair of axes: an axis a tile would take seconds to lay out."""
    tops, height = [], _TOP
    for row in rows:
        height += _ABOVE if any(row.texts) else 0
        tops.append(height)
        height += _SIDE + _GAP
    width = _LEFT + COLUMNS * (_SIDE + _GAP)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for row, top in zip(rows, tops, strict=True):
        for at, picture in enumerate(row.pictures):
            left = _LEFT + at * (_SIDE + _GAP)
            canvas[top : top + _SIDE, left : left + _SIDE] = picture
    figure = new_figure(height / _DPI, width=width / _DPI)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.imshow(canvas, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axis.axis("off")
    axis.text(width / 2, _TOP / 2, title, ha="center", va="center", fontsize=8.5)
    for row, top in zip(rows, tops, strict=True):
        axis.text(_LEFT / 2, top + _SIDE / 2, row.name, ha="center", va="center", rotation=90, fontsize=8)
        for at, text in enumerate(row.texts):
            left = _LEFT + at * (_SIDE + _GAP)
            axis.text(left + _SIDE / 2, top - 5, text, ha="center", va="baseline", fontsize=7.5)
    return with_palette(png_of(figure, dpi=_DPI))
