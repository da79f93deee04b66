"""Tiles in rows as one picture: a tile is shown as it is, a pixel of it a pixel of the figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.report.style import new_figure, png_of, with_palette

_DPI = 96
_SIDE, _GAP, _LEFT, _TOP, _ABOVE = 96, 6, 26, 26, 18  # pixels
_LETTER = 7  # pixels, of the title: no narrower than what it says
_CENTRE = (32, 63)  # first and last row and column


@dataclass(frozen=True)
class Row:
    """Pictures side by side.

    Attributes:
        name: written beside it.
        pictures: (96, 96, 3) uint8 each.
        texts: one above each picture, or none at all.
    """

    name: str
    pictures: Sequence[np.ndarray]
    texts: Sequence[str] = ()


def framed(picture: np.ndarray) -> np.ndarray:
    """A copy of (96, 96, 3) uint8 with the centre that decides the label framed.

    White within black is seen on any tile. The frame lies around the centre, not on it.
    """
    copy = picture.copy()
    first, last = _CENTRE
    for out, value in ((2, 0), (1, 255)):
        low, high = first - out, last + out
        copy[[low, high], low : high + 1] = value
        copy[low : high + 1, [low, high]] = value
    return copy


def sheet(rows: Sequence[Row], *, title: str, columns: int) -> bytes:
    """All rows as one PNG, `columns` pictures wide or as wide as its title.

    One picture on one pair of axes: an axis a tile would take seconds to lay out.
    """
    tops, height = [], _TOP
    for row in rows:
        height += _ABOVE if any(row.texts) else 0
        tops.append(height)
        height += _SIDE + _GAP
    width = max(_LEFT + columns * (_SIDE + _GAP), _LETTER * len(title))
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
