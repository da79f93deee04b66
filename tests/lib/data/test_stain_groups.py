"""Stain groups depend on dyes and lamp, not on the amount of stain; a slide map has training tiles only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.stain_groups import (
    FEATURES,
    UNNAMED,
    GroupError,
    complete_slides,
    group_auc,
    read_slide_map,
    stain_features,
    stain_groups,
)
from lib.data.tiff import TILE_SHAPE, decode_tile

# Ruifrok and Johnston 2001: optical densities of haematoxylin and eosin.
HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
OTHER, OTHER_EOSIN = np.array([0.55, 0.70, 0.45]), np.array([0.20, 0.95, 0.25])  # dyes of another maker


def _tile(haematoxylin: np.ndarray, eosin: np.ndarray, *, amount: float = 1.0, seed: int = 0) -> np.ndarray:
    """A tile drawn with two stains on a white background."""
    generator = np.random.default_rng(seed)
    concentrations = generator.gamma(2.0, 0.35, (96, 96, 2)) * amount
    concentrations[:20, :20] = 0  # background
    density = concentrations[..., :1] * haematoxylin + concentrations[..., 1:] * eosin
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_features_of_blank_tiles_are_finite(value: int) -> None:
    features = stain_features(np.full((3, *TILE_SHAPE), value, dtype=np.uint8))
    assert features.shape == (3, len(FEATURES)) and np.isfinite(features).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), high=st.integers(1, 256), tissue=st.integers(0, 96))
def test_features_of_any_tile_are_finite(seed: int, high: int, tissue: int) -> None:
    tile = np.full((1, *TILE_SHAPE), 255, dtype=np.uint8)
    tile[:, :tissue, :tissue] = np.random.default_rng(seed).integers(
        0, high, (1, tissue, tissue, 3), dtype=np.uint8
    )
    assert np.isfinite(stain_features(tile)).all()


def test_features_of_a_tile_do_not_depend_on_its_neighbours(random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = np.concatenate(
        [random_tiles(3), np.full((1, *TILE_SHAPE), 255, np.uint8), _tile(HAEMATOXYLIN, EOSIN)[None]]
    )
    together = stain_features(tiles)
    alone = np.concatenate([stain_features(tile[None]) for tile in tiles])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_more_than_one_batch_of_tiles_keeps_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib.data import stain_groups as module

    tiles = np.stack([_tile(HAEMATOXYLIN, EOSIN, seed=seed) for seed in range(7)])
    whole = stain_features(tiles)
    monkeypatch.setattr(module, "_BATCH", 3)
    np.testing.assert_allclose(stain_features(tiles), whole, rtol=0, atol=1e-12)


def test_features_follow_the_dye_not_its_amount() -> None:
    drawn = {
        (name, amount): stain_features(
            np.stack([_tile(dye, EOSIN, amount=amount, seed=seed) for seed in range(6)])
        ).mean(axis=0)
        for name, dye in (("usual", HAEMATOXYLIN), ("other", OTHER))
        for amount in (0.7, 1.0, 1.4)
    }
    directions = slice(0, 4)
    amounts = [abs(drawn["usual", amount] - drawn["usual", 1.0])[directions].max() for amount in (0.7, 1.4)]
    dyes = abs(drawn["usual", 1.0] - drawn["other", 1.0])[directions].max()
    assert max(amounts) < 0.04
    assert dyes > 0.08 and dyes > 3 * max(amounts)


def test_stain_vectors_are_those_that_were_drawn() -> None:
    found = stain_features(_tile(HAEMATOXYLIN, EOSIN)[None])[0]
    for vector, at in ((HAEMATOXYLIN, 0), (EOSIN, 2)):
        expected = vector / np.linalg.norm(vector)
        assert found[at : at + 2] == pytest.approx(expected[[0, 2]], abs=0.08)


def test_the_white_of_the_background_is_a_feature() -> None:
    tile = _tile(HAEMATOXYLIN, EOSIN)
    tinted = (tile * np.array([1.0, 1.0, 0.9])).astype(np.uint8)
    white, yellow = (stain_features(each[None])[0, 4:] for each in (tile, tinted))
    assert white == pytest.approx([1, 1, 1], abs=0.01) and yellow == pytest.approx([1, 1, 0.9], abs=0.01)


def test_groups_are_the_same_each_time_and_find_the_dyes() -> None:
    dyes = [(HAEMATOXYLIN, EOSIN), (OTHER, OTHER_EOSIN)] * 12
    features = stain_features(np.stack([_tile(*dye, seed=seed) for seed, dye in enumerate(dyes)]))
    groups = stain_groups(features, number=2, seed=2018)
    assert groups.dtype == np.int64 and np.array_equal(groups, stain_groups(features, number=2, seed=2018))
    assert len(set(groups[::2])) == len(set(groups[1::2])) == 1 and groups[0] != groups[1]


def test_groups_stay_few_enough_to_hold_four_tiles() -> None:
    features = np.random.default_rng(0).normal(size=(40, len(FEATURES)))
    groups = stain_groups(features, number=60, seed=1)
    assert len(np.unique(groups)) <= 10 and set(groups) <= set(range(10))
    assert len(np.unique(stain_groups(features, number=5, seed=1))) == 5


def test_blank_tiles_do_not_decide_the_groups() -> None:
    features = np.random.default_rng(0).normal(size=(200, len(FEATURES)))
    features[:3] = 1e6
    assert len(np.unique(stain_groups(features, number=8, seed=1)[3:])) >= 6


def test_real_tiles_fall_into_groups_again_and_again(real_tiles: Path) -> None:
    files = sorted((real_tiles / "train").iterdir())
    features = stain_features(np.stack([decode_tile(file.read_bytes()) for file in files]))
    assert np.isfinite(features).all()
    groups = stain_groups(features, number=60, seed=2018)
    assert len(np.unique(groups)) == 60
    assert np.array_equal(groups, stain_groups(features.copy(), number=60, seed=2018))
    assert np.bincount(groups).max() < len(files) / 5  # else no five even folds


# The slide map

TRAIN, TEST = ["a", "b", "c"], ["x", "y"]


def _map(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_slides_are_joined_on_the_id(tmp_path: Path) -> None:
    path = _map(tmp_path / "map.csv", "id,wsi\nc,3\nelsewhere,9\na,1\nb,01\n")
    assert read_slide_map(path, train_ids=TRAIN, test_ids=TEST).tolist() == ["1", "01", "3"]


def test_tiles_that_a_map_does_not_name_are_grouped_by_stain_apart_from_its_slides(tmp_path: Path) -> None:
    path = _map(tmp_path / "map.csv", "id,wsi\na,7\nc, \n")
    named = read_slide_map(path, train_ids=[*TRAIN, "d", "e"], test_ids=TEST)
    assert named.tolist() == ["7", "", "", "", ""]
    groups = np.array([7, 3, 7, 3, 7])
    a, b, c, d, e = complete_slides(named, groups).tolist()
    assert (a, b == d, c == e) == ("7", True, True) and len({a, b, c}) == 3
    assert all(slide.startswith(UNNAMED) for slide in (b, c))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,wsi\na,1\nb,1\nc,2\nx,2\n", "1 test tiles, such as x"),
        ("id,wsi\np,1\nq,2\n", "it names the slide of none of the 3 training tiles"),
        ("id,wsi\na,\nb, \nc,\n", "it names the slide of none of the 3 training tiles"),
        ("id,wsi\na,unnamed-stain-group-3\n", "it names a slide unnamed-stain-group-3"),
        ("id,slide\na,1\nb,1\nc,2\n", "columns id, slide; expected: id, wsi"),
        ("wsi,id\n1,a\n1,b\n2,c\n", "columns wsi, id"),
        ("id,wsi\na,1\na,2\nb,1\nc,2\n", "more than once: a"),
        ("", "empty"),
        ("id,wsi\n", "no rows"),
    ],
)
def test_an_invalid_slide_map_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(GroupError) as refused:
        read_slide_map(_map(tmp_path / "map.csv", text), train_ids=TRAIN, test_ids=TEST)
    assert said in str(refused.value) and "map.csv" in str(refused.value)


def test_all_that_is_wrong_with_a_map_is_listed(tmp_path: Path) -> None:
    with pytest.raises(GroupError) as refused:
        read_slide_map(_map(tmp_path / "map.csv", "id,wsi\ny,1\ny,\n"), train_ids=TRAIN, test_ids=TEST)
    for piece in ("more than once", "1 test tiles", "the slide of none of the 3 training tiles"):
        assert piece in str(refused.value)


def test_a_missing_slide_map_is_a_kernel_error(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="missing"):
        read_slide_map(tmp_path / "map.csv", train_ids=TRAIN, test_ids=TEST)


# The AUC of groups


def test_the_auc_of_groups_is_1_if_they_give_the_label_and_half_if_random() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.4).astype(np.int64)
    assert group_auc(labels, labels, seed=1) == pytest.approx(1.0)
    assert group_auc(labels, np.where(labels == 1, "one", "none"), seed=1) == pytest.approx(1.0)
    assert group_auc(labels, generator.integers(0, 20, 2000), seed=1) == pytest.approx(0.5, abs=0.05)
    assert group_auc(labels, np.zeros(2000), seed=1) == pytest.approx(0.5, abs=0.05)
    half = np.where(generator.random(2000) < 0.5, labels, generator.integers(0, 2, 2000))
    assert 0.6 < group_auc(labels, half, seed=1) < 0.9


def test_a_tile_does_not_score_itself() -> None:
    labels = np.arange(200) % 2
    assert group_auc(labels, np.arange(200), seed=1) == pytest.approx(
        0.5, abs=0.1
    )  # alone in its group, it knows nothing


@pytest.mark.parametrize("unnamed", [0, 5])
def test_the_index_hands_slides_over_by_id_and_tells_of_tiles_without_one(
    unnamed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lib.config import Config
    from lib.data.competition import Competition
    from lib.data.prepared import index_tables

    train = pd.DataFrame({"id": [f"{n:02d}" for n in range(12)], "label": [0, 1] * 6})
    rows = "".join(f"{name},slide-{name}\n" for name in reversed(train["id"].tolist()[unnamed:]))
    path = _map(tmp_path / "map.csv", "id,wsi\n" + rows)
    features = np.random.default_rng(0).normal(size=(12, len(FEATURES)))
    index, _ = index_tables(Competition(tmp_path, train, ["99"], b""), features, Config(), path)
    assert index["slide"].tolist()[unnamed:] == [f"slide-{name}" for name in index["id"][unnamed:]]
    invented = [f"{UNNAMED}{group}" for group in index["stain_group"][:unnamed]]
    assert index["slide"].tolist()[:unnamed] == invented
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text[:47] for text in warnings] == ["map.csv names no slide for 5 of 12 labelled til"] * bool(
        unnamed
    )
    assert index["row"].tolist() == list(range(12))
