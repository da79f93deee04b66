"""Exploratory data analysis (EDA) of the tiles: integrity, colours, stains, light, focus, copies, groups."""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config
from lib.data.competition import TEST_TILES, TRAIN_TILES, Competition
from lib.data.stain_groups import FEATURES, UNNAMED, group_auc, stain_features
from lib.data.tiff import TILE_BYTES, TILE_SHAPE
from lib.data.tile_store import BuiltStore, array_layout

logger = logging.getLogger(__name__)

THUMB = 16  # side in pixels of the grey thumbnail by which copies are found
_PIECE = 512  # tiles a thread describes at a time: 14 MiB, and about 80 MiB for their stain features
_CORES = 8  # at most: more would take memory, not time
_CACHED = 8  # tiles, 0.9 MiB as float32: what a core's cache holds
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_SHOWN = 12  # names of each kind of outlier, copy and faulty file
_PLAIN = 6.0  # grey levels: a thumbnail that varies less resembles too many others to count as a copy
_ALIKE = 2.0  # grey levels: the largest mean difference of copies


@dataclass(frozen=True)
class Description:
    """Statistics of tiles, for eda.json, the stain groups and the figures.

    Attributes:
        means: (N, 3) mean of each channel, 0 to 255.
        deviations: (N, 3) standard deviation of each channel.
        focus: (N,) variance of the Laplacian of the luma (Pech-Pacheco et al. 2000): low for blurred tiles.
        thumbs: (N, 16, 16) uint8 luma.
        features: (N, 7) of lib.data.stain_groups; empty for test tiles.
    """

    means: np.ndarray
    deviations: np.ndarray
    focus: np.ndarray
    thumbs: np.ndarray
    features: np.ndarray


def describe_tiles(path: Path, *, with_stain: bool) -> Description:
    """Describe the tiles of an array in one pass, in pieces on all cores.

    The file is read, not mapped, because mapped pages count as memory in use.
    """
    tiles, start = array_layout(path)

    def describe(row: int) -> tuple[np.ndarray, ...]:
        count = min(_PIECE, tiles - row)
        pixels = np.fromfile(path, dtype=np.uint8, count=count * TILE_BYTES, offset=start + row * TILE_BYTES)
        piece = pixels.reshape(count, *TILE_SHAPE)
        return (*_statistics(piece), stain_features(piece) if with_stain else np.empty((0, len(FEATURES))))

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, _CORES)) as pool:
        columns = zip(*pool.map(describe, range(0, tiles, _PIECE)), strict=True)
    return Description(*(np.concatenate(column) for column in columns))


def _statistics(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, (N, 3) each; focus (N,); thumbs (N, 16, 16).

    The sums are whole numbers and exact in any order of addition: the squares of a column of 96 pixels add up
    to at most 6.2 million, which float32 holds. With float64 from the start it takes ten times as long.
    """
    number, side = len(tiles), tiles.shape[1]
    area, cell = side * side, side // THUMB
    sums, squares = np.empty((2, number, 3))
    focus, thumbs = np.empty(number), np.empty((number, THUMB, THUMB), dtype=np.uint8)
    for row in range(0, number, _CACHED):
        rows = slice(row, row + _CACHED)
        part = tiles[rows].astype(np.float32)  # (b, H, W, 3)
        sums[rows] = part.sum(axis=1).sum(axis=1, dtype=np.float64)
        grey = part @ _LUMA  # (b, H, W)
        part *= part
        squares[rows] = part.sum(axis=1).sum(axis=1, dtype=np.float64)
        edges = (
            4 * grey[:, 1:-1, 1:-1]
            - grey[:, :-2, 1:-1]
            - grey[:, 2:, 1:-1]
            - grey[:, 1:-1, :-2]
            - grey[:, 1:-1, 2:]
        )
        focus[rows] = edges.var(axis=(1, 2))
        thumbs[rows] = grey.reshape(-1, THUMB, cell, THUMB, cell).mean(axis=(2, 4)).round()
    means = sums / area
    return means, np.sqrt(np.maximum(squares / area - means**2, 0)), focus, thumbs


def near_copies(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of near copies: equal difference hashes, and thumbs at most 2 grey levels apart on average.

    The hash tells for neighbouring cells of an 8 x 8 image which one is lighter (56 bits); see the difference
    hash of Krawetz (2013). Tiles with little contrast have no copies. A copy whose hash differs in one bit is
    not found.

    Args:
        thumbs: (N, 16, 16) uint8.

    Returns:
        Rows, the smaller one first; of three equal tiles two pairs, whatever stands between them.
    """
    contrast = thumbs.std(axis=(1, 2))
    rows = np.flatnonzero(contrast >= _PLAIN)
    coarse = thumbs[rows].reshape(-1, THUMB // 2, 2, THUMB // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    lighter = (coarse[:, :, 1:] > coarse[:, :, :-1]).reshape(len(rows), 56)
    codes = lighter @ (1 << np.arange(56, dtype=np.uint64))
    order = np.argsort(codes, kind="stable")
    _, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    pairs: list[tuple[int, int]] = []
    for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
        waiting = rows[order[start : start + count]]  # of one hash, ascending: the sort is stable
        while len(waiting) > 1:  # the first one against all others; its copies form a chain
            apart = np.abs(thumbs[waiting].astype(np.int16) - thumbs[waiting[0]]).mean(axis=(1, 2))
            copies = waiting[apart <= _ALIKE]
            pairs += [(int(a), int(b)) for a, b in itertools.pairwise(copies)]
            waiting = waiting[apart > _ALIKE]
    return sorted(pairs)


def outliers(description: Description) -> dict[str, list[int]]:
    """Rows of the darkest, lightest, plainest, most blurred and sharpest tiles, the most extreme first."""
    light = description.means.mean(axis=1)
    orders = {
        "darkest": light,
        "lightest": -light,
        "plainest": description.deviations.max(axis=1),
        # A plain tile is not a blurred one.
        "blurred": np.where(description.deviations.max(axis=1) < _PLAIN, np.inf, description.focus),
        "sharpest": -description.focus,
    }
    return {name: np.argsort(values, kind="stable")[:_SHOWN].tolist() for name, values in orders.items()}


def explore(
    index: pd.DataFrame,
    train: Description,
    test: Description,
    stores: Mapping[str, BuiltStore],
    config: Config,
    *,
    test_ids: list[str],
) -> dict[str, Any]:
    """The content of eda.json: counts, colours by set, class and group, outliers, copies, the AUC of groups.

    Copies with different labels are listed first, then copies between labelled and test tiles.

    Args:
        index: of the labelled tiles: id, label, stain_group, slide.
        train: of the labelled tiles.
        test: of the test tiles.
        stores: by file name.
        config: seed.
        test_ids: in the order of the test tiles.
    """
    labels, groups = index["label"].to_numpy(), index["stain_group"].to_numpy()
    ids = np.array([*index["id"], *test_ids])
    unnamed = index["slide"].astype(str).str.startswith(UNNAMED)

    def auc_of(names: np.ndarray) -> float | None:
        value = group_auc(labels, names, seed=config.seed)
        return None if np.isnan(value) else value

    copies = near_copies(np.concatenate([train.thumbs, test.thumbs]))
    labelled = len(index)

    def rank(pair: tuple[int, int]) -> tuple[bool, bool]:
        first, second = pair
        other_label = second < labelled and labels[first] != labels[second]
        return not other_label, not first < labelled <= second

    sizes = np.unique(groups, return_counts=True)[1]  # a group whose tiles are all held out is none here
    light = train.means.mean(axis=1)
    by_group = pd.DataFrame({"group": groups, "label": labels, "light": light, "focus": train.focus}).groupby(
        "group"
    )
    stains = pd.DataFrame(train.features, columns=list(FEATURES)).groupby(groups).median()
    colours = pd.DataFrame(train.means / 255).groupby(groups).mean()
    eda = {
        "train": {
            **_colours(train),
            "positives": int(labels.sum()),
            "positive_share": round(float(labels.mean()), 6),
        },
        "test": _colours(test),
        "classes": {str(label): _colours(_part(train, labels == label)) for label in (0, 1)},
        "single_feature_auc": single_feature_auc(train, labels),
        "mismatches": {name: store.mismatches for name, store in stores.items()},
        "outliers": {name: index["id"].iloc[rows].tolist() for name, rows in outliers(train).items()},
        "near_copies": {
            "pairs": len(copies),
            "between_labelled_and_test": sum(a < labelled <= b for a, b in copies),
            "with_another_label": sum(b < labelled and bool(labels[a] != labels[b]) for a, b in copies),
            "examples": [[str(ids[a]), str(ids[b])] for a, b in sorted(copies, key=rank)[:_SHOWN]],
        },
        "stain_groups": {
            "number": len(sizes),
            "smallest": int(sizes.min()),
            "largest": int(sizes.max()),
            "auc_of_group_number": auc_of(groups),
            "table": [
                {
                    "group": int(group),
                    "tiles": len(part),
                    "positive_share": round(float(part["label"].mean()), 4),
                }
                | {name: round(float(part[name].mean()), 3) for name in ("light", "focus")}
                | {"focus_median": round(float(part["focus"].median()), 3)}
                | {"mean": [round(float(value), 6) for value in colours.loc[group]]}
                | {"stain_medians": {name: round(float(stains.loc[group, name]), 5) for name in FEATURES}}
                for group, part in by_group
            ],
        },
        "slides": {
            "number": int(index.loc[(index["slide"] != "") & ~unnamed, "slide"].nunique()),
            "unnamed_tiles": int(unnamed.sum()),
            "auc_of_slide_number": auc_of(index["slide"].to_numpy())
            if (index["slide"] != "").any()
            else None,
        },
    }
    _log_findings(eda)
    return eda


def single_feature_auc(train: Description, labels: np.ndarray) -> dict[str, float]:
    """The AUC of each single property of a tile for its label; empty with one class only.

    0.5 says nothing about the label. Below 0.5 tumour tiles have lower values, above 0.5 higher ones.

    Args:
        train: of the labelled tiles.
        labels: (N,) 0 or 1.
    """
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels)) < 2:
        return {}
    columns = {"brightness": train.means.mean(axis=1), "focus": train.focus}
    columns |= dict(zip(FEATURES, train.features.T, strict=True))
    return {name: round(float(roc_auc_score(labels, values)), 4) for name, values in columns.items()}


def _log_findings(eda: Mapping[str, Any]) -> None:
    groups, copies = eda["stain_groups"], eda["near_copies"]
    score = groups["auc_of_group_number"]
    logger.info(
        "%d stain groups of %s to %s tiles; AUC of the group number alone: %s",
        groups["number"],
        f"{groups['smallest']:,}",
        f"{groups['largest']:,}",
        "undefined" if score is None else f"{score:.4f}",
    )
    logger.info(
        "%s pairs of near copies, %s of them between labelled and test tiles, %s with different labels",
        f"{copies['pairs']:,}",
        f"{copies['between_labelled_and_test']:,}",
        f"{copies['with_another_label']:,}",
    )


def _part(description: Description, rows: np.ndarray) -> Description:
    stain = description.features
    return Description(
        description.means[rows],
        description.deviations[rows],
        description.focus[rows],
        description.thumbs[rows],
        stain[rows] if len(stain) else stain,
    )


def _colours(description: Description) -> dict[str, Any]:
    """Mean and standard deviation of all pixels in units of 255; black and blank tiles; focus; stains."""
    if not len(description.means):
        return {"tiles": 0}
    dark, flat = description.means.max(axis=1) < 10, description.deviations.max(axis=1) < 2
    mean = description.means.mean(axis=0)
    spread = np.sqrt((description.deviations**2 + (description.means - mean) ** 2).mean(axis=0))
    colours: dict[str, Any] = {
        "tiles": len(description.means),
        "mean": [round(float(value) / 255, 6) for value in mean],
        "std": [round(float(value) / 255, 6) for value in spread],
        "black": int(dark.sum()),
        "blank": int((flat & ~dark).sum()),
        "focus_quartiles": [
            round(float(value), 3) for value in np.quantile(description.focus, (0.25, 0.5, 0.75))
        ],
    }
    if len(description.features):
        medians = np.median(description.features, axis=0)
        colours["stain_medians"] = {
            name: round(float(value), 5) for name, value in zip(FEATURES, medians, strict=True)
        }
    return colours


def same_content(arrays: Mapping[Path, tuple[Sequence[str], Sequence[str]]]) -> list[tuple[str, str]]:
    """Pairs of ids with the same pixels.

    An id is the SHA-1 of its tile. Two different ids can share their pixels only if one of them does not
    match its tile, so only those few tiles are hashed again.

    Args:
        arrays: for each tile array its ids in order, and the ids that do not match their tile.

    Returns:
        (id that does not match, id with the same pixels), sorted.
    """
    wrong = {name for _, mismatches in arrays.values() for name in mismatches}
    if not wrong:
        return []
    # The id that has each content, by the SHA-1 of the content.
    holders = {name: name for ids, _ in arrays.values() for name in ids if name not in wrong}
    pairs = []
    for path, (ids, mismatches) in arrays.items():
        rows = {name: row for row, name in enumerate(ids)} if mismatches else {}
        start = array_layout(path)[1]
        with path.open("rb") as stream:
            for name in mismatches:
                stream.seek(start + rows[name] * TILE_BYTES)
                content = hashlib.sha1(stream.read(TILE_BYTES), usedforsecurity=False).hexdigest()
                if content in holders:
                    pairs.append((name, holders[content]))
                holders.setdefault(content, name)
    return sorted(pairs)


def describe_integrity(competition: Competition, arrays: Mapping[Path, BuiltStore]) -> dict[str, Any]:
    """The counts of tiles and of faulty files for eda.json, with the first names of each fault.

    A fault that `stops_the_run` has count 0 in every eda.json: the run ends with a message that lists the
    files.

    Args:
        competition: as it was read, so with a file for every id and no id twice.
        arrays: the tile arrays with the results of building them: training, test, and the hold-out's.
    """
    train, test = competition.train["id"].tolist(), competition.test_ids
    holdout = competition.holdout["id"].tolist()
    parts = (train, test, holdout) if holdout else (train, test)
    mismatches = [name for store in arrays.values() for name in store.mismatches]
    ids = zip(arrays.items(), parts, strict=True)
    copies = same_content({path: (names, store.mismatches) for (path, store), names in ids})
    return {
        "labelled_tiles": len(train) + len(holdout),
        "holdout_tiles": len(holdout),
        "test_tiles": len(test),
        "of_the_competition": {
            "labelled_tiles": TRAIN_TILES,
            "test_tiles": TEST_TILES,
            "all_of_them": competition.is_full,
        },
        "missing": _finding([], stops=True),
        "not_in_a_table": _finding([], stops=True),
        "id_named_twice": _finding([], stops=True),
        "undecodable": _finding([], stops=True),
        "wrong_size": _finding([], stops=True),
        "mismatched": _finding(mismatches, stops=False),
        "same_content_under_two_ids": _finding([f"{name} = {other}" for name, other in copies], stops=False),
        "labelled_and_test": _finding(sorted({*train, *holdout} & set(test)), stops=False),
    }


def _finding(names: Iterable[str], *, stops: bool) -> dict[str, Any]:
    names = list(names)
    return {"count": len(names), "first": names[:_SHOWN], "stops_the_run": stops}
