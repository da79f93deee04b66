"""Table of a user's own tiles: a CSV file of labels and perhaps groups, matched to files by their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.errors import KernelError, listed, shorten

NAME_COLUMNS = ("tile", "id", "file", "filename", "file_name", "path", "image", "name")
LABEL_COLUMNS = ("label", "target", "class")
GROUP_COLUMNS = ("group", "slide", "wsi", "patient", "case")
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # the last two: what pandas writes after a merge


class TileTableError(KernelError):
    """A table of labels cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class TileTable:
    """Labels of tiles.

    Attributes:
        table: tile (a path of the folder), label (int64), and group (text) where the file has such a
            column.
        grouping: the name of the column of groups; empty without one.
        unmatched: names in the file that no tile has.
    """

    table: pd.DataFrame
    grouping: str
    unmatched: list[str]


def read_tile_table(path: Path, tiles: Sequence[str]) -> TileTable:
    """Read labels and match them to tiles.

    A name in the table is the path of a tile below its folder, its file name, or either without the suffix.
    A row with an empty label is no row.

    Args:
        path: the CSV file. Columns are known by their names (`NAME_COLUMNS`, `LABEL_COLUMNS`,
            `GROUP_COLUMNS`), and the first one of each kind counts.
        tiles: paths of the tiles below their folder.

    Raises:
        TileTableError: the file or a value cannot be used, or no name is that of a tile; every problem is
            listed.
    """
    try:
        content = pd.read_csv(
            path, dtype=str, keep_default_na=False, sep=_separator(path), encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise TileTableError(f"{path} is not a CSV file: {error}") from error
    content.columns = pd.Index([str(name).strip().lower() for name in content.columns])
    names, labels, groups = (_column(content, kind) for kind in (NAME_COLUMNS, LABEL_COLUMNS, GROUP_COLUMNS))
    missing = [
        f"a column of {what} is missing (its name is one of {', '.join(kind)})"
        for what, kind, column in (("names", NAME_COLUMNS, names), ("labels", LABEL_COLUMNS, labels))
        if column is None
    ]
    if missing or content.empty:
        shown = f"its columns are {', '.join(content.columns)}"
        problems = missing or ["it has no rows"]
        raise TileTableError(listed(f"{path} cannot be used ({shown}):", problems))
    problems = []
    content = content[content[labels].str.strip() != ""]
    texts = content[labels].str.strip()
    if len(wrong := content[~texts.isin(list(_LABELS))]):
        shown = shorten(f"{row[names]}: {row[labels]!r}" for _, row in wrong.head(3).iterrows())
        problems.append(
            f"{len(wrong):,} labels are not 0 or 1 (1: tumour in the centre 32 x 32 pixels): {shown}"
        )
    wanted = content[names].str.strip()
    matched, several = match_names(wanted, tiles)
    if several:
        problems.append(
            f"{len(several):,} names fit several tiles, use their paths below the folder: {shorten(several)}"
        )
    tile = pd.Series(matched, index=wanted.index, dtype=object)
    found = tile.notna()
    if len(twice := tile[found][tile[found].duplicated()].unique()):
        problems.append(f"{len(twice):,} tiles are named more than once: {shorten(twice)}")
    if groups is not None and (empty := int((content[groups][found].str.strip() == "").sum())):
        problems.append(f"{empty:,} tiles have an empty {groups}")
    if not found.any() and not several:
        problems.append(
            f"none of its {len(wanted):,} names ({shorten(wanted)}) is that of a tile ({shorten(tiles)})"
        )
    if problems:
        raise TileTableError(listed(f"{path} cannot be used:", problems, remedy="Correct the table."))
    table = pd.DataFrame({"tile": tile[found], "label": texts[found].map(_LABELS).astype(np.int64)})
    if groups is not None:
        table["group"] = content[groups][found].str.strip()
    return TileTable(table.reset_index(drop=True), groups or "", wanted[~found].tolist())


def match_names(names: Sequence[str], tiles: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The tile that each name means, None for no tile; and the names that fit several tiles."""
    known, ambiguous = _known_names(tiles)
    plain = [name.replace("\\", "/").removeprefix("./") for name in names]
    return [known.get(name) for name in plain], sorted(set(plain) & ambiguous)


def _separator(path: Path) -> str:
    """Comma, semicolon or tab: the most frequent one in the first line."""
    with path.open(encoding="utf-8-sig") as stream:
        first = stream.readline()
    return max(",;\t", key=first.count)


def _column(table: pd.DataFrame, kind: Sequence[str]) -> str | None:
    return next((name for name in kind if name in table.columns), None)


def _known_names(tiles: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Every name that fits exactly one tile, with the tile; and the names that fit several."""
    known: dict[str, str] = {}
    ambiguous: set[str] = set()
    for tile in tiles:
        path = PurePosixPath(tile)
        for name in {tile, str(path.with_suffix("")), path.name, path.stem}:
            if name in known:
                ambiguous.add(name)
            known[name] = tile
    for tile in tiles:  # the whole path of a tile is never ambiguous
        known[tile] = tile
    ambiguous -= set(tiles)
    return {name: tile for name, tile in known.items() if name not in ambiguous}, ambiguous
