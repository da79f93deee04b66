"""Figures of single tiles in rows: a tile is shown pixel for pixel, one pixel of it as one pixel of the figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.files import write_atomic
from lib.report.style import new_figure, png_of, with_palette

COLUMNS = 5
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


@dataclass(frozen=True)
class HardTile:
    """One tile a fold left: (96, 96, 3) uint8, its map (96, 96) with a sum of 1 or 0, and what was said of it."""

    tile: np.ndarray
    map: np.ndarray
    probability: float
    fold: int


def contact_sheet(
    tiles: np.ndarray, labels: np.ndarray, path: Path, *, columns: int = 10, seed: int = 0
) -> None:
    """Tiles of both classes with the centre that decides the label framed.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        labels: (N,) 0 or 1.
        path: the PNG file.
        columns: tiles a row; there are two rows of each class.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    lines = []
    for label, name in ((0, "no tumour"), (1, "tumour")):
        rows = np.flatnonzero(labels == label)
        picked = generator.choice(rows, size=min(2 * columns, len(rows)), replace=False)
        for at in (0, columns):
            lines.append(Row(name, [framed(tiles[row]) for row in picked[at : at + columns]]))
    title = f"{2 * columns} tiles of each class, of n = {len(labels):,}; framed: the 32 x 32 centre"
    write_atomic(path, sheet(lines, title=title, columns=columns))


def outlier_sheet(tiles: np.ndarray, rows: Mapping[str, Sequence[int]], path: Path) -> None:
    """The tiles furthest out in each respect, one respect a line.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        rows: by what they are, such as "darkest".
        path: the PNG file.
    """
    lines = [Row(name, [tiles[row] for row in picked]) for name, picked in rows.items()]
    title = f"The tiles furthest out, of n = {len(tiles):,}; the furthest first"
    write_atomic(path, sheet(lines, title=title, columns=max(len(each) for each in rows.values())))


def copies_sheet(
    pairs: Sequence[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]], path: Path, *, number: int
) -> None:
    """Pairs of tiles that look the same, one above the other.

    Args:
        pairs: of each tile its pixels (96, 96, 3) uint8 and what it is.
        path: the PNG file.
        number: of pairs there are, of which these are shown.
    """
    lines = [
        Row(name, [pair[at][0] for pair in pairs], [pair[at][1] for pair in pairs])
        for at, name in enumerate(("one", "other"))
    ]
    shown = f"{len(pairs)} of n = {number:,} pairs" if len(pairs) < number else f"n = {number:,} pairs"
    title = f"Tiles that look the same, one above the other: {shown}"
    write_atomic(path, sheet(lines, title=title, columns=len(pairs)))


def draw_mistakes(cases: Mapping[str, Sequence[HardTile]], *, title: str) -> bytes:
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


def draw_maps(cases: Mapping[str, Sequence[HardTile]], *, title: str) -> bytes:
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


def _said(case: HardTile) -> str:
    return f"{case.probability:.3f}, fold {case.fold}"


def _coloured(values: np.ndarray) -> np.ndarray:
    """(96, 96, 3) uint8 of a map (96, 96), its highest value bright: a colour scale that is as light in grey as in colour."""
    from matplotlib import colormaps

    highest = float(values.max())
    scaled = np.asarray(values, dtype=np.float64) / (highest or 1.0)
    return np.asarray(colormaps["cividis"](scaled, bytes=True)[..., :3], dtype=np.uint8)


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
