"""Hard tiles of a fold (its worst errors and most confident decisions) and the files that keep them.

A report has neither the tiles nor the weights, so each fold writes these few tiles into its output. This
module needs no torch, because the report imports it; lib.explain.attribution computes the maps.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.files import write_atomic

CENTRE_SHARE = 1 / 9  # of a uniform attribution map: 32 x 32 of 96 x 96 pixels
THRESHOLD = 0.5
HARDEST, SUREST = 12, 6  # tiles of each kind
ATTRIBUTION_SAMPLE = 512  # tumour tiles in the summary: the median share to about one percentage point
MAX_EXPLAINED_TILES = 2 * HARDEST + 2 * SUREST + ATTRIBUTION_SAMPLE
HARD_TILE_KINDS = {
    "false_positive": "hardest false positives",
    "false_negative": "hardest false negatives",
    "sure_tumour": "most confident tumour tiles",
    "sure_normal": "most confident normal tiles",
}
FROZEN_ENCODER = (
    "the encoder is frozen: the fold trained a linear head on stored features, with no network to explain"
)


@dataclass(frozen=True)
class HardTileFiles:
    """File names of the hard tiles of a fold."""

    fold: int

    @property
    def table(self) -> str:
        """id, label, probability, kind, share_in_centre: one row a tile."""
        return f"hard-tiles-{self.fold}.csv"

    @property
    def images(self) -> str:
        """(n, 96, 96, 3) uint8, in the order of the table."""
        return f"hard-tiles-{self.fold}-images.npy"

    @property
    def maps(self) -> str:
        """(n, 96, 96) float32, in the order of the table; absent where no map means something."""
        return f"hard-tiles-{self.fold}-maps.npy"


@dataclass(frozen=True)
class ExplainedTiles:
    """The hard tiles of a fold and their attribution.

    Attributes:
        table: id, label, probability, kind, share_in_centre (NaN where nothing is evidence for tumour, or
            where the network's feature map has too few cells for a share to mean anything).
        tiles: (n, 96, 96, 3) uint8.
        maps: (n, 96, 96) float32, each with a sum of 1 or 0; None where the network cannot be explained,
            or its feature map has too few cells.
        summary: for run.json: method, tiles, share_in_centre, uniform_share; or the reason why there is none,
            as `missing`.
    """

    table: pd.DataFrame
    tiles: np.ndarray
    maps: np.ndarray | None
    summary: dict[str, Any]


def choose_hard_tiles(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[int, str]]:
    """Choose the worst errors and the most confident correct decisions at 0.5; ties keep the row order.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) probability of tumour.

    Returns:
        (row, kind): up to 12 false_positive and 12 false_negative, the worst first, then up to 6 sure_tumour
        and 6 sure_normal, the most confident first.
    """
    positive, tumour = probabilities >= THRESHOLD, labels == 1
    choices = (
        (positive & ~tumour, -probabilities, HARDEST),
        (~positive & tumour, probabilities, HARDEST),
        (positive & tumour, -probabilities, SUREST),
        (~positive & ~tumour, probabilities, SUREST),
    )
    chosen = []
    for kind, (mask, order, limit) in zip(HARD_TILE_KINDS, choices, strict=True):
        rows = np.flatnonzero(mask)
        chosen += [(int(row), kind) for row in rows[np.argsort(order[rows], kind="stable")][:limit]]
    return chosen


def write_hard_tiles(folder: Path, fold: int, explained: ExplainedTiles) -> dict[str, bool]:
    """Write the files of a fold's hard tiles; returns their names, each marked to be fetched.

    Maps of an earlier run are removed where this run has none.
    """
    names = HardTileFiles(fold)
    table = explained.table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    write_atomic(folder / names.table, table)
    write_atomic(folder / names.images, _as_npy(explained.tiles))
    if explained.maps is None:
        (folder / names.maps).unlink(missing_ok=True)
        return {names.table: True, names.images: True}
    write_atomic(folder / names.maps, _as_npy(explained.maps))
    return {names.table: True, names.images: True, names.maps: True}


def _as_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
