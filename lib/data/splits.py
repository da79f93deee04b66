"""The folds that each split would make of the same tiles, side by side: what eda.json and its figure say of them."""

from typing import Any

import numpy as np
import pandas as pd

from lib.data.folds import FoldError, fold_table_id, make_folds

SPREAD = 60  # groups, the largest ones, whose spread over the folds is told


def describe_splits(index: pd.DataFrame, *, number: int, seed: int) -> dict[str, Any]:
    """Every split there are groups for, whichever of them an experiment will use.

    Args:
        index: id, label, stain_group, slide; sorted by id.
        number: folds.
        seed: of the folds, as training takes it.

    Returns:
        `folds`, what a `group` is (slide where a map is attached, stain_group elsewhere), how many groups there are, and by
        the name of each split: its fold-table id, per fold tiles, positives, positive_share, groups and known_group_share (the
        share of its tiles whose group is also among the tiles it is trained on), and `spread`, of the largest groups the share
        of their tiles in each fold; or why it cannot be made, as `missing`.
    """
    mapped = bool((index["slide"] != "").all())
    groups = index["slide" if mapped else "stain_group"].to_numpy()
    found: dict[str, Any] = {
        "folds": number,
        "group": "slide" if mapped else "stain_group",
        "groups": len(np.unique(groups)),
    }
    for split in ("stratified", "stain", *(["slide"] if mapped else [])):
        try:
            table = make_folds(index, split=split, number=number, seed=seed)
        except FoldError as error:
            found[split] = {"missing": str(error)}
        else:
            found[split] = {"fold_table_id": fold_table_id(table)} | _describe(
                index["label"].to_numpy(), groups, table["fold"].to_numpy(), number=number
            )
    return found


def _describe(labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, *, number: int) -> dict[str, Any]:
    names, group = np.unique(groups, return_inverse=True)
    tiles = np.bincount(group * number + fold, minlength=len(names) * number).reshape(
        len(names), number
    )  # (G, F)
    size = tiles.sum(axis=1, keepdims=True)
    known = np.where(size > tiles, tiles, 0).sum(
        axis=0
    )  # (F,) tiles of groups that are not in this fold alone
    positives = np.bincount(fold, weights=labels, minlength=number)
    largest = np.argsort(-size[:, 0], kind="stable")[:SPREAD]
    return {
        "table": [
            {
                "fold": at,
                "tiles": int(tiles[:, at].sum()),
                "positives": int(positives[at]),
                "positive_share": round(float(positives[at] / tiles[:, at].sum()), 4),
                "groups": int((tiles[:, at] > 0).sum()),
                "known_group_share": round(float(known[at] / tiles[:, at].sum()), 4),
            }
            for at in range(number)
        ],
        "spread": [
            {"group": str(names[row]), "tiles": int(size[row, 0])}
            | {"shares": [round(float(share), 4) for share in tiles[row] / size[row]]}
            for row in largest
        ],
    }
