"""Folds partition the tiles, keep groups whole, and depend only on ids, labels, groups and the seed."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.folds import (
    GROUPS_SHOWN,
    SHARE_TOLERANCE,
    SIZE_TOLERANCE,
    FoldError,
    describe_splits,
    fold_report,
    fold_table_csv,
    fold_table_id,
    make_folds,
    unevenness,
)

SPLITS = ("stratified", "stain", "slide")


@st.composite
def indexes(draw: st.DrawFn) -> pd.DataFrame:
    """Tiles in groups of unlike sizes and shares of tumour."""
    seed = draw(st.integers(0, 2**32 - 1))
    count, groups = draw(st.integers(40, 150)), draw(st.integers(6, 40))
    generator = np.random.default_rng(seed)
    group = generator.integers(0, groups, count)
    share = generator.beta(2, 3, groups)
    return pd.DataFrame(
        {
            "id": [f"{number:08x}" for number in generator.permutation(count)],
            "label": (generator.random(count) < share[group]).astype(np.int64),
            "stain_group": group,
            "slide": [f"slide-{number}" for number in group],
        }
    )


@settings(max_examples=40, deadline=None)
@given(
    index=indexes(), split=st.sampled_from(SPLITS), number=st.integers(2, 6), seed=st.integers(0, 2**32 - 1)
)
def test_folds_partition_the_tiles_within_the_tolerances_or_refuse(
    index: pd.DataFrame, split: str, number: int, seed: int
) -> None:
    try:
        folds = make_folds(index, split=split, number=number, seed=seed)
    except FoldError as error:
        assert str(number) in str(error) or "uneven" in str(error)
        return
    assert folds["id"].tolist() == sorted(index["id"])  # each once
    assert sorted(folds["fold"].unique()) == list(range(number))
    joined = index.merge(folds, on="id", validate="one_to_one")
    if split == "stratified":
        counts = joined.groupby("fold")["label"].agg(["size", "sum"])
        assert (counts.max() - counts.min() <= 1).all() or (counts["size"].max() - counts["size"].min() <= 2)
        return
    column = {"stain": "stain_group", "slide": "slide"}[split]
    assert (joined.groupby(column)["fold"].nunique() == 1).all()  # no group on both sides
    by_fold = joined.groupby("fold")["label"]
    assert (abs(by_fold.size() * number / len(joined) - 1) <= SIZE_TOLERANCE + 1e-9).all()
    assert (abs(by_fold.mean() - joined["label"].mean()) <= SHARE_TOLERANCE + 1e-9).all()


def _index(tiles: int = 200, groups: int = 40, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    group = generator.permutation(np.arange(tiles) % groups)
    return pd.DataFrame(
        {
            "id": [f"{number:08x}" for number in range(tiles)],
            "label": (generator.random(tiles) < 0.4).astype(np.int64),
            "stain_group": group,
            "slide": [f"slide-{number}" for number in group],
        }
    )


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=5, deadline=None)
@given(order=st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_does_not_matter(split: str, order: int) -> None:
    index = _index()
    shuffled = index.sample(frac=1, random_state=order)
    one, other = (make_folds(table, split=split, number=5, seed=7) for table in (index, shuffled))
    assert one.equals(other)
    assert (
        fold_table_id(one) == fold_table_id(other) == fold_table_id(other.sample(frac=1, random_state=order))
    )


@pytest.mark.parametrize("split", SPLITS)
def test_the_seed_and_the_number_decide(split: str) -> None:
    ids = {
        (seed, number): fold_table_id(make_folds(_index(), split=split, number=number, seed=seed))
        for seed in (1, 2)
        for number in (3, 5)
    }
    assert len(set(ids.values())) == 4
    assert ids[1, 3] == fold_table_id(make_folds(_index(), split=split, number=3, seed=1))


def test_group_names_do_not_matter_only_who_is_together() -> None:
    index = _index()
    renamed = index.assign(slide=index["stain_group"].map(lambda group: f"{group:04d}"))
    assert make_folds(renamed, split="slide", number=5, seed=3).equals(
        make_folds(index, split="stain", number=5, seed=3)
    )


def test_the_table_is_readable_and_complete() -> None:
    folds = make_folds(_index(tiles=40, groups=20), split="stratified", number=2, seed=1)
    lines = fold_table_csv(folds).splitlines()
    assert lines[0] == "id,fold" and len(lines) == 41 and lines[1:] == sorted(lines[1:])


def test_too_few_of_a_class_names_count_and_remedy() -> None:
    index = _index().assign(label=[1] * 9 + [0] * 191)
    with pytest.raises(FoldError, match=r"has 9(.|\n)*folds=2"):
        make_folds(index, split="stratified", number=5, seed=1)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(FoldError, match="at least 5 groups, fold_split = stain has 4"):
        make_folds(_index(groups=4), split="stain", number=5, seed=1)


@pytest.mark.parametrize("missing", ["", None, np.nan])
def test_a_tile_without_a_slide_stops_a_split_by_slide(missing: object) -> None:
    index = _index().astype({"slide": object})
    index.loc[17, "slide"] = missing
    with pytest.raises(FoldError, match="slide_map"):
        make_folds(index, split="slide", number=5, seed=1)


def test_a_group_too_large_for_a_fold_is_refused_with_the_folds_named() -> None:
    index = _index()
    index.loc[:99, "stain_group"] = 0  # half of all tiles
    with pytest.raises(FoldError, match=r"uneven(.|\n)*fold \d has(.|\n)*stain_groups"):
        make_folds(index, split="stain", number=5, seed=1)


def test_groups_of_one_class_each_are_mixed_into_even_folds() -> None:
    index = _index(tiles=400, groups=40)
    index["label"] = (index["stain_group"] < 16).astype(np.int64)  # a slide is all tumour or none
    folds = make_folds(index, split="stain", number=5, seed=1)
    assert not unevenness(index["label"].to_numpy(), folds["fold"].to_numpy(), number=5)


def test_every_fold_of_groups_holds_both_classes() -> None:
    # 30 positives of 1,000: each of two folds may lack all of them and still be within five points.
    index = _index(tiles=1000, groups=2)
    index["label"] = ((index["stain_group"] == 0) & (index.index < 60)).astype(np.int64)
    assert 4 <= index["label"].sum() <= 50
    try:
        folds = make_folds(index, split="stain", number=2, seed=1)
    except FoldError:
        return
    joined = index.merge(folds, on="id")
    assert (joined.groupby("fold")["label"].sum() >= 2).all()


def test_unevenness_names_an_empty_fold() -> None:
    labels = np.array([0, 1] * 10)
    problems = unevenness(labels, np.arange(20) // 10, number=3)
    assert any("fold 2 has 0 tiles" in problem for problem in problems)


def test_the_report_adds_up() -> None:
    labels, fold = np.array([1, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1])
    report = fold_report(labels, fold, number=2).set_index("fold")
    assert report["tiles"].tolist() == [4, 2] and report["positives"].tolist() == [2, 2]
    assert report["size"].tolist() == pytest.approx([4 / 3, 2 / 3])
    assert report["share"].tolist() == pytest.approx([0.5 - 4 / 6, 1 - 4 / 6])


def test_real_tiles_split_by_their_stain(real_tiles: object) -> None:
    from pathlib import Path

    from lib.data.competition import read_competition
    from lib.data.stain_groups import stain_features, stain_groups
    from lib.data.tiff import decode_tile

    competition = read_competition(Path(str(real_tiles)), expect_full=False)
    names = competition.train["id"]
    tiles = np.stack(
        [decode_tile((competition.folder / "train" / f"{name}.tif").read_bytes()) for name in names]
    )
    groups = stain_groups(stain_features(tiles), number=60, seed=2018)
    index = competition.train.assign(stain_group=groups)
    folds = make_folds(index, split="stain", number=5, seed=2018)
    assert (index.merge(folds, on="id").groupby("stain_group")["fold"].nunique() == 1).all()


def _index_of_splits(number: int = 1200, *, groups: int = 30, slides: int = 0) -> pd.DataFrame:
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
    index = _index_of_splits()
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


def test_with_a_map_all_splits_are_compared_by_slides() -> None:
    found = describe_splits(_index_of_splits(slides=100), number=4, seed=7)
    assert (found["group"], found["groups"]) == ("slide", 100) and len(
        found["slide"]["spread"]
    ) == GROUPS_SHOWN
    assert {row["known_group_share"] for row in found["slide"]["table"]} == {0.0}
    assert (
        min(row["known_group_share"] for row in found["stain"]["table"]) > 0.5
    )  # stain groups are not slides


def test_a_split_that_cannot_be_made_is_reported_with_the_reason() -> None:
    found = describe_splits(_index_of_splits(groups=3), number=5, seed=7)
    assert "5 folds need at least 5 groups" in found["stain"]["missing"] and "table" in found["stratified"]
    few = describe_splits(_index_of_splits(12), number=5, seed=7)
    assert "missing" in few["stratified"]
    json.dumps(few, allow_nan=False)


def test_the_remedy_of_uneven_slides_is_not_more_stain_groups() -> None:
    index = _index()
    index["slide"] = [f"s{number % 12}" for number in range(len(index))]
    index.loc[: len(index) * 6 // 10, "slide"] = "s0"
    with pytest.raises(FoldError, match=r"(?s)too uneven.*num_folds") as refused:
        make_folds(index, split="slide", number=5, seed=1)
    assert "stain_groups" not in str(refused.value)
