"""The folds side by side are the folds that training makes, and what they flatter is counted."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.data.folds import fold_table_id, make_folds
from lib.data.splits import SPREAD, describe_splits


def index_of(number: int = 1200, *, groups: int = 30, slides: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "id": [f"{row:05d}" for row in range(number)],
            "label": (generator.random(number) < 0.4).astype(int),
            "stain_group": generator.integers(0, groups, number),
            "slide": [f"s{row % slides}" for row in range(number)] if slides else [""] * number,
        }
    )


def test_stain_folds_know_no_group_and_stratified_ones_know_all() -> None:
    index = index_of()
    found = describe_splits(index, number=5, seed=7)
    json.dumps(found, allow_nan=False)
    assert (found["folds"], found["group"], found["groups"]) == (
        5,
        "stain_group",
        30,
    ) and "slide" not in found
    for split, known, groups in (("stratified", 1.0, 30 * 5), ("stain", 0.0, 30)):
        assert found[split]["fold_table_id"] == fold_table_id(
            make_folds(index, split=split, number=5, seed=7)
        )
        table = pd.DataFrame(found[split]["table"])
        assert (table["tiles"].sum(), table["positives"].sum()) == (1200, index["label"].sum())
        assert (table["known_group_share"] == known).all() and table["groups"].sum() == groups
        spread = found[split]["spread"]
        assert [row["tiles"] for row in spread] == sorted((row["tiles"] for row in spread), reverse=True)
        assert all(sum(row["shares"]) == pytest.approx(1, abs=1e-3) for row in spread)
    assert all(sorted(row["shares"]) == [0, 0, 0, 0, 1] for row in found["stain"]["spread"])


def test_with_a_map_all_splits_are_held_against_the_slides() -> None:
    found = describe_splits(index_of(slides=100), number=4, seed=7)
    assert (found["group"], found["groups"]) == ("slide", 100) and len(found["slide"]["spread"]) == SPREAD
    assert {row["known_group_share"] for row in found["slide"]["table"]} == {0.0}
    assert (
        min(row["known_group_share"] for row in found["stain"]["table"]) > 0.5
    )  # stain groups are not slides


def test_a_split_that_cannot_be_made_says_why() -> None:
    found = describe_splits(index_of(groups=3), number=5, seed=7)
    assert "5 folds need at least 5 groups" in found["stain"]["missing"] and "table" in found["stratified"]
    few = describe_splits(index_of(12), number=5, seed=7)
    assert "missing" in few["stratified"]
    json.dumps(few, allow_nan=False)
