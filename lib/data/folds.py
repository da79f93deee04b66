"""Folds as a pure function of (index, split, number, seed), their checks, and a comparison of the splits."""

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from lib.errors import KernelError, listed

SIZE_TOLERANCE = 0.20  # a fold's size against the mean size
SHARE_TOLERANCE = 0.05  # a fold's share of tumour against that of all tiles
GROUPS_SHOWN = 60  # of the largest groups, whose spread over the folds is reported
_ATTEMPTS = 20  # random starts for grouped folds; the most even result is used


class FoldError(KernelError):
    """The tiles cannot be split into these folds; the message lists what is uneven or missing."""


def make_folds(index: pd.DataFrame, *, split: str, number: int, seed: int) -> pd.DataFrame:
    """Assign every training tile to a fold.

    Args:
        index: id, label, and for the grouped splits stain_group or slide; rows in any order.
        split: stratified, stain or slide.
        number: folds.
        seed: of the shuffling.

    Returns:
        A table (id, fold), sorted by id. It does not depend on the order of the rows of `index`.

    Raises:
        FoldError: too few tiles or groups, no slide map for a split by slide, or groups too uneven for the
            tolerances.
    """
    from sklearn.model_selection import StratifiedKFold

    table = index.sort_values("id", ignore_index=True)
    labels = table["label"].to_numpy(dtype=np.int64)
    fewest = int(np.bincount(labels, minlength=2).min())
    if fewest < 2 * number:  # two a fold: a threshold is chosen on one and tested on the other
        raise FoldError(
            f"{number} folds need at least {2 * number} tiles of each class, the rarer class has {fewest}: "
            "use more tiles, or fewer folds (--set num_folds=2)"
        )
    fold = np.empty(len(table), dtype=np.int64)
    if split == "stratified":
        splits = StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels)
        for assigned, (_, held_out) in enumerate(splits):
            fold[held_out] = assigned
    else:
        fold = _grouped_folds(labels, groups_of(table, split=split), number=number, seed=seed, split=split)
    return pd.DataFrame({"id": table["id"], "fold": fold})


def groups_of(table: pd.DataFrame, *, split: str) -> np.ndarray:
    """The group of each row: its slide, or its stain group (also for the stratified split, which ignores it).

    Raises:
        FoldError: `fold_split = "slide"` and a tile has no slide.
    """
    if split == "slide":
        slides = table["slide"].fillna("").astype(str)
        if (slides == "").any():
            raise FoldError(
                "fold_split = slide needs a tile-to-slide map (columns id, wsi): attach a dataset that holds "
                "one and name the file with --set slide_map=FILE.csv, or use --set fold_split=stain"
            )
        return np.asarray(slides)
    return np.asarray(table["stain_group"])


def _grouped_folds(
    labels: np.ndarray, groups: np.ndarray, *, number: int, seed: int, split: str
) -> np.ndarray:
    """Assign whole groups to folds within the tolerances.

    scikit-learn's StratifiedGroupKFold balances classes only: on 4,320 real tiles in 30 stain groups its
    folds were up to 45 % off in size and 11 points off in class share (2026-11-23).
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < number:
        raise FoldError(
            f"{number} folds need at least {number} groups, fold_split = {split} has {len(names)}"
        )
    tiles = np.bincount(group).astype(np.float64)  # (G,)
    positives = np.bincount(group, weights=labels)  # (G,)
    best, best_cost = np.empty(0, dtype=np.int64), np.inf
    for attempt in range(_ATTEMPTS):
        generator = np.random.default_rng(np.random.SeedSequence([seed, attempt]))
        assigned = _pack(tiles, positives, number=number, generator=generator)
        cost = float(_cost(*_totals(tiles, positives, assigned, number), number))
        if cost < best_cost:
            best, best_cost = assigned, cost
        if not unevenness(labels, best[group], number=number) and attempt >= 2:
            break
    if problems := unevenness(labels, best[group], number=number):
        more = "more groups (--set stain_groups=...), " if split == "stain" else ""
        remedy = f"Use {more}fewer folds (--set num_folds=...) or another split (--set fold_split=...)."
        raise FoldError(
            listed(f"fold_split = {split} gives folds that are too uneven:", problems, remedy=remedy)
        )
    fold: np.ndarray = best[group]
    return fold


def _totals(
    tiles: np.ndarray, positives: np.ndarray, assigned: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(assigned, tiles, minlength=number), np.bincount(assigned, positives, minlength=number)


def _cost(size: np.ndarray, positive: np.ndarray, number: int) -> np.ndarray:
    """Squared deviations in units of the tolerances, summed over folds (the last axis)."""
    total = size.sum(axis=-1, keepdims=True)
    share = positive.sum(axis=-1, keepdims=True) / total
    uneven_size = (size * number / total - 1.0) / SIZE_TOLERANCE
    uneven_share = (positive / np.maximum(size, 1.0) - share) / SHARE_TOLERANCE
    cost: np.ndarray = (uneven_size**2 + uneven_share**2).sum(axis=-1)
    return cost


def _pack(
    tiles: np.ndarray, positives: np.ndarray, *, number: int, generator: np.random.Generator
) -> np.ndarray:
    """Assign groups in random order to the smallest fold, then move and swap them while the cost falls."""
    count = len(tiles)
    assigned = np.zeros(count, dtype=np.int64)
    filled = np.zeros(number)
    for group in generator.permutation(count):
        assigned[group] = int(np.argmin(filled))
        filled[assigned[group]] += tiles[group]
    eye = np.eye(number)
    size, positive = _totals(tiles, positives, assigned, number)
    cost = float(_cost(size, positive, number))
    improved = True
    while improved:
        improved = False
        for group in range(count):
            # Move to a fold (rows 0 to F - 1), or swap with another group (rows F to F + G - 1).
            source = assigned[group]
            targets = np.concatenate([np.arange(number), assigned])  # (F + G,)
            back_tiles = np.concatenate([np.zeros(number), tiles])[:, None]
            back_positives = np.concatenate([np.zeros(number), positives])[:, None]
            moved = eye[targets] - eye[source]  # (F + G, F): -1 for the source fold, +1 for the target
            sizes = size + moved * (tiles[group] - back_tiles)
            costs = _cost(sizes, positive + moved * (positives[group] - back_positives), number)
            pick = int(np.argmin(costs))
            if costs[pick] < cost - 1e-9:
                if pick >= number:
                    assigned[pick - number] = source
                assigned[group] = targets[pick]
                size, positive = _totals(tiles, positives, assigned, number)
                cost, improved = float(_cost(size, positive, number)), True
    return assigned


def fold_report(labels: np.ndarray, fold: np.ndarray, *, number: int) -> pd.DataFrame:
    """For each fold: tiles, positives, size relative to the mean, tumour share minus that of all tiles."""
    rows = []
    for row in range(number):
        inside = labels[fold == row]
        share = float(inside.mean()) if len(inside) else float("nan")
        size = len(inside) * number / len(labels)
        rows.append((row, len(inside), int(inside.sum()), size, share - float(labels.mean())))
    return pd.DataFrame(rows, columns=["fold", "tiles", "positives", "size", "share"])


def unevenness(labels: np.ndarray, fold: np.ndarray, *, number: int) -> list[str]:
    """The violations of the tolerances: sizes within 20 % of the mean, class shares within 5 points."""
    problems = []
    for row in fold_report(labels, fold, number=number).itertuples():
        if not abs(row.size - 1.0) <= SIZE_TOLERANCE:
            problems.append(
                f"fold {row.fold} has {row.tiles:,} tiles, {row.size - 1.0:+.0%} against the mean"
            )
        negatives = row.tiles - row.positives
        if min(row.positives, negatives) < 2:  # a threshold is chosen on one tile and tested on the other
            problems.append(f"fold {row.fold} has {row.positives:,} tiles with tumour, {negatives:,} without")
        if not abs(row.share) <= SHARE_TOLERANCE:
            problems.append(f"fold {row.fold} has {100 * row.share:+.1f} points of tumour against all tiles")
    return problems


def fold_table_csv(folds: pd.DataFrame) -> str:
    """The fold table as the text of a CSV file, sorted by id."""
    text: str = folds.sort_values("id")[["id", "fold"]].to_csv(index=False, lineterminator="\n")
    return text


def fold_table_id(folds: pd.DataFrame) -> str:
    """SHA-256 of the fold table's CSV text; members are averaged only if they agree in it."""
    return hashlib.sha256(fold_table_csv(folds).encode()).hexdigest()


def describe_splits(index: pd.DataFrame, *, number: int, seed: int) -> dict[str, Any]:
    """Compare the folds of every possible split of the same tiles, for eda.json and its figure.

    Args:
        index: id, label, stain_group, slide; sorted by id.
        number: folds.
        seed: of the folds, as in training.

    Returns:
        `folds` (their number), `group` (slide if a map is attached, else stain_group), `groups` (their
        number), and an entry for each split. It holds `fold_table_id`; `table`, for each fold its tiles,
        positives, positive_share, groups and known_group_share (the share of its tiles whose group is also in
        the training tiles); and `spread`, for each of the largest groups the share of its tiles in each fold.
        For a split that cannot be made the entry holds `missing`, the reason.
    """
    mapped = bool((index["slide"] != "").all())
    groups = index["slide" if mapped else "stain_group"].to_numpy()
    splits: dict[str, Any] = {
        "folds": number,
        "group": "slide" if mapped else "stain_group",
        "groups": len(np.unique(groups)),
    }
    for split in ("stratified", "stain", *(["slide"] if mapped else [])):
        try:
            table = make_folds(index, split=split, number=number, seed=seed)
        except FoldError as error:
            splits[split] = {"missing": str(error)}
        else:
            splits[split] = {"fold_table_id": fold_table_id(table)} | _describe_split(
                index["label"].to_numpy(), groups, table["fold"].to_numpy(), number=number
            )
    return splits


def _describe_split(
    labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, *, number: int
) -> dict[str, Any]:
    names, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group * number + fold, minlength=len(names) * number)
    tiles = counts.reshape(len(names), number)  # (G, F)
    size = tiles.sum(axis=1, keepdims=True)  # (G, 1)
    known = np.where(size > tiles, tiles, 0).sum(axis=0)  # (F,) tiles whose group is in other folds, too
    positives = np.bincount(fold, weights=labels, minlength=number)  # (F,)
    largest = np.argsort(-size[:, 0], kind="stable")[:GROUPS_SHOWN]
    return {
        "table": [
            {
                "fold": column,
                "tiles": int(tiles[:, column].sum()),
                "positives": int(positives[column]),
                "positive_share": round(float(positives[column] / tiles[:, column].sum()), 4),
                "groups": int((tiles[:, column] > 0).sum()),
                "known_group_share": round(float(known[column] / tiles[:, column].sum()), 4),
            }
            for column in range(number)
        ],
        "spread": [
            {"group": str(names[row]), "tiles": int(size[row, 0])}
            | {"shares": [round(float(share), 4) for share in tiles[row] / size[row]]}
            for row in largest
        ],
    }
