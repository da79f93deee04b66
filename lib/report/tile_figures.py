"""Figures of single tiles in rows. A pixel of a tile has 2 x 2 pixels, which the page shows as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.files import write_atomic
from lib.report.style import new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5  # of the figures of hard tiles: narrow enough for a page
WIDE = 9  # columns of the widest figures, which the page of 60 rem just shows in their own size
_DPI = 96  # of the lengths below; the file has twice as many pixels
_SIDE, _GAP, _LEFT, _TOP, _ABOVE = 96, 6, 26, 26, 18  # pixels
_BAR = 64  # pixels of width for the colour bar of the attribution maps
_COLOURS, _OPACITY = "inferno", 0.55  # of a map over its tile; monotone in grey as well
_LETTER = 7  # pixels of width for a letter of the title
_CENTRE = (32, 63)  # first and last row and column


@dataclass(frozen=True)
class TileRow:
    """Pictures side by side.

    Attributes:
        name: written beside them.
        pictures: (96, 96, 3) uint8 each.
        texts: one above each picture, or none at all.
    """

    name: str
    pictures: Sequence[np.ndarray]
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class HardTile:
    """A hard tile of a fold.

    Attributes:
        tile: (96, 96, 3) uint8.
        map: (96, 96) attribution with a sum of 1 or 0.
        probability: of tumour, out of fold.
        fold: number of the fold.
    """

    tile: np.ndarray
    map: np.ndarray
    probability: float
    fold: int

    @property
    def text(self) -> str:
        """The text above the tile."""
        return f"{self.probability:.3f}, fold {self.fold}"


def contact_sheet(
    tiles: np.ndarray, labels: np.ndarray, path: Path, *, columns: int = WIDE, seed: int = 0
) -> None:
    """Draw random tiles of both classes, with a frame around the centre that decides the label.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        labels: (N,) 0 or 1.
        path: the PNG file.
        columns: tiles a row; there are two rows of each class.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for label, name in ((0, "no tumour"), (1, "tumour")):
        of_class = np.flatnonzero(labels == label)
        chosen = generator.choice(of_class, size=min(2 * columns, len(of_class)), replace=False)
        for start in (0, columns):
            rows.append(TileRow(name, [framed(tiles[index]) for index in chosen[start : start + columns]]))
    title = f"{2 * columns} tiles of each class, of n = {len(labels):,}; framed: the 32 x 32 centre"
    write_atomic(path, draw_rows(rows, title=title, columns=columns))


def outlier_sheet(tiles: np.ndarray, rows: Mapping[str, Sequence[int]], path: Path) -> None:
    """Draw the most extreme tiles, one property a row.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        rows: indices of tiles by property, such as "darkest"; the first `WIDE` are drawn.
        path: the PNG file.
    """
    lines = [TileRow(name, [tiles[index] for index in indices[:WIDE]]) for name, indices in rows.items()]
    title = f"The most extreme tiles, of n = {len(tiles):,}; the most extreme first"
    columns = max(len(line.pictures) for line in lines)
    write_atomic(path, draw_rows(lines, title=title, columns=columns))


def copies_sheet(
    pairs: Sequence[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]], path: Path, *, number: int
) -> None:
    """Draw pairs of near-duplicate tiles, one above the other.

    Args:
        pairs: of each tile its pixels (96, 96, 3) uint8 and its label or set.
        path: the PNG file.
        number: of all pairs, of which these are shown.
    """
    rows = [
        TileRow(name, [tile for tile, _ in tiles], [label for _, label in tiles])
        for name, tiles in zip(("one", "other"), zip(*pairs, strict=True), strict=True)
    ]
    shown = f"{len(pairs)} of n = {number:,} pairs" if len(pairs) < number else f"n = {number:,} pairs"
    title = f"Near-duplicate tiles, one above the other: {shown}"
    write_atomic(path, draw_rows(rows, title=title, columns=len(pairs)))


def draw_mistakes(tiles: Mapping[str, Sequence[HardTile]], *, title: str) -> bytes:
    """Two rows of tiles for each kind of error, the hardest first, with their probability and fold.

    Args:
        tiles: by the name of their kind; at least one tile in all.
        title: with n.
    """
    rows = []
    for name, of_kind in tiles.items():
        for start in range(0, min(len(of_kind), 2 * COLUMNS), COLUMNS):
            rows.append(_tile_row(name, of_kind[start : start + COLUMNS]))
    return draw_rows(rows, title=title, columns=COLUMNS)


def draw_maps(tiles: Mapping[str, Sequence[HardTile]], *, title: str) -> bytes:
    """Tiles, and below each its attribution map over the tile in grey. Each map has its own scale.

    Args:
        tiles: by the name of their kind, at most `COLUMNS` of each are shown; at least one tile in all.
        title: with n.
    """
    rows = []
    for name, of_kind in tiles.items():
        shown = of_kind[:COLUMNS]
        if shown:
            rows.append(_tile_row(name, shown))
            texts = ["" if tile.map.any() else "no evidence" for tile in shown]
            rows.append(TileRow("maps", [framed(overlaid(tile.tile, tile.map)) for tile in shown], texts))
    return draw_rows(rows, title=title, columns=COLUMNS, scale="attribution, share of the map's maximum")


def draw_augmented(tiles: np.ndarray, *, title: str) -> bytes:
    """Tiles as they are, and beside each the same tile as networks saw it in training.

    Args:
        tiles: (n, 1 + k, 96, 96, 3) uint8: each tile, then k augmentations of it.
        title: with n.
    """
    texts = ["original", *[f"draw {number}" for number in range(1, tiles.shape[1])]]
    rows = [
        TileRow("", [framed(picture) for picture in row], texts if not number else ())
        for number, row in enumerate(tiles)
    ]
    return draw_rows(rows, title=title, columns=tiles.shape[1])


def _tile_row(name: str, tiles: Sequence[HardTile]) -> TileRow:
    return TileRow(name, [framed(tile.tile) for tile in tiles], [tile.text for tile in tiles])


def overlaid(tile: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map (96, 96) in colours over its tile in grey, (96, 96, 3) uint8; a map of zeros adds no colour."""
    from matplotlib import colormaps

    grey = np.repeat(tile.mean(axis=2, keepdims=True), 3, axis=2)
    highest = float(values.max())
    if not highest:
        return grey.round().astype(np.uint8)
    colours = colormaps[_COLOURS](np.asarray(values, dtype=np.float64) / highest, bytes=True)[..., :3]
    mixed: np.ndarray = ((1 - _OPACITY) * grey + _OPACITY * colours).round().astype(np.uint8)
    return mixed


def framed(picture: np.ndarray) -> np.ndarray:
    """A copy of (96, 96, 3) uint8 with a frame around the centre that decides the label.

    A white frame inside a black one is visible on any tile. It is outside the centre and hides none of it.
    """
    copy = picture.copy()
    first, last = _CENTRE
    for distance, value in ((2, 0), (1, 255)):
        low, high = first - distance, last + distance
        copy[[low, high], low : high + 1] = value
        copy[low : high + 1, [low, high]] = value
    return copy


def draw_rows(rows: Sequence[TileRow], *, title: str, columns: int, scale: str = "") -> bytes:
    """All rows as one PNG, as wide as `columns` pictures or the title.

    All pictures share one pair of axes: the layout of a pair for each tile would take seconds.

    Args:
        rows: at least one.
        title: above them.
        columns: pictures a row.
        scale: the label of a colour bar from 0 to 1 at the right; none without a label.
    """
    tops, height = [], _TOP
    for row in rows:
        height += _ABOVE if any(row.texts) else 0
        tops.append(height)
        height += _SIDE + _GAP
    width = max(_LEFT + columns * (_SIDE + _GAP) + (_BAR if scale else 0), _LETTER * len(title))
    lefts = [_LEFT + column * (_SIDE + _GAP) for column in range(columns)]
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for row, top in zip(rows, tops, strict=True):
        for left, picture in zip(lefts, row.pictures, strict=False):
            canvas[top : top + _SIDE, left : left + _SIDE] = picture
    figure = new_figure(height / _DPI, width=width / _DPI)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.imshow(canvas, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axis.axis("off")
    axis.text(width / 2, _TOP / 2, title, ha="center", va="center", fontsize=8.5)
    for row, top in zip(rows, tops, strict=True):
        axis.text(_LEFT / 2, top + _SIDE / 2, row.name, ha="center", va="center", rotation=90, fontsize=8)
        for left, text in zip(lefts, row.texts, strict=False):
            axis.text(left + _SIDE / 2, top - 5, text, ha="center", va="baseline", fontsize=7.5)
    if scale:
        _draw_bar(figure, scale, left=(width - _BAR) / width, top=1 - (_TOP + _ABOVE) / height)
    return png_of(figure, dpi=2 * _DPI, dither=True)


def _draw_bar(figure: "Figure", label: str, *, left: float, top: float) -> None:
    """Draw the colour bar of the maps from 0 to 1, at the right of the pictures.

    Args:
        figure: to draw in.
        label: of the bar.
        left: in shares of the figure's width.
        top: its upper end, in shares of the figure's height.
    """
    bar = figure.add_axes((left, 0.08, 0.018, top - 0.08))
    bar.imshow(np.linspace(1, 0, 256)[:, None], cmap=_COLOURS, extent=(0, 1, 0, 1), aspect="auto")
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([0, 0.5, 1])
    bar.tick_params(labelsize=7.5)
    bar.yaxis.set_label_position("right")
    bar.set_ylabel(label, fontsize=8)
