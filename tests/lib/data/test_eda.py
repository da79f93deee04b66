"""Exploratory data analysis: statistics, outliers, copies and integrity, all fit for JSON."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.data.competition import Competition
from lib.data.eda import (
    THUMB,
    describe_integrity,
    describe_tiles,
    explore,
    near_copies,
    outliers,
    same_content,
)
from lib.data.stain_groups import UNNAMED
from lib.data.tile_store import BuiltStore

Arrays = dict[str, tuple[Path, list[str], np.ndarray]]  # part: file, ids, tiles


@pytest.fixture
def array(tmp_path: Path, random_tiles: Callable[..., np.ndarray]) -> Path:
    tiles = random_tiles(40)
    tiles[0], tiles[1] = 0, 200
    np.save(tmp_path / "tiles.npy", tiles)
    return tmp_path / "tiles.npy"


def _explore(
    array: Path, labels: np.ndarray, slides: list[str] | None = None, groups: np.ndarray | None = None
) -> dict[str, Any]:
    description = describe_tiles(array, with_stain=True)
    index = pd.DataFrame(
        {
            "id": [str(n) for n in range(40)],
            "label": labels,
            "stain_group": np.arange(40) % 4 if groups is None else groups,
            "slide": slides or [""] * 40,
        }
    )
    stores = {"tiles.npy": BuiltStore(tiles=40, mismatches=["3"])}
    return explore(index, description, description, stores, Config(), test_ids=[f"t{n}" for n in range(40)])


def test_means_and_deviations_are_those_of_all_pixels(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.data.eda._PIECE", 7)
    tiles = np.load(array)
    found = describe_tiles(array, with_stain=False)
    np.testing.assert_allclose(found.means, tiles.mean(axis=(1, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.deviations, tiles.std(axis=(1, 2)), rtol=1e-6, atol=1e-6)
    eda = _explore(array, np.arange(40) % 2)
    np.testing.assert_allclose(eda["train"]["mean"], tiles.mean(axis=(0, 1, 2)) / 255, atol=1e-6)
    np.testing.assert_allclose(eda["train"]["std"], tiles.std(axis=(0, 1, 2)) / 255, atol=1e-5)


def test_outliers_and_mismatches_are_counted(array: Path) -> None:
    eda = _explore(array, np.arange(40) % 2, slides=[f"slide-{n % 5}" for n in range(40)])
    assert (eda["train"]["black"], eda["train"]["blank"]) == (1, 1)
    assert (eda["train"]["positives"], eda["train"]["positive_share"]) == (20, 0.5)
    assert eda["mismatches"] == {"tiles.npy": ["3"]}
    assert eda["slides"]["unnamed_tiles"] == 0
    partial = _explore(array, np.arange(40) % 2, slides=["slide-1"] * 30 + [f"{UNNAMED}0"] * 10)
    assert (partial["slides"]["number"], partial["slides"]["unnamed_tiles"]) == (1, 10)
    assert eda["slides"]["number"] == 5 and 0 <= eda["slides"]["auc_of_slide_number"] <= 1


def test_what_is_undefined_is_left_out_of_a_record_not_written_as_nan(array: Path) -> None:
    eda = _explore(array, (np.arange(40) == 7).astype(np.int64))  # one positive: no two folds to compare
    json.dumps(eda, allow_nan=False)  # as run.json is written


def test_a_description_does_not_depend_on_the_pieces(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_tiles(array, with_stain=True)
    monkeypatch.setattr("lib.data.eda._CACHED", 3)
    again = describe_tiles(array, with_stain=True)
    for name in ("means", "deviations", "focus", "thumbs", "features"):
        assert getattr(whole, name).tobytes() == getattr(again, name).tobytes()
    assert describe_tiles(array, with_stain=False).features.shape == (0, 7)


def test_sums_are_exact_where_they_are_largest(tmp_path: Path) -> None:
    tiles = np.full((3, 96, 96, 3), 255, np.uint8)
    tiles[1, ::2], tiles[2, 5, 7] = 0, 254
    np.save(tmp_path / "tiles.npy", tiles)
    found = describe_tiles(tmp_path / "tiles.npy", with_stain=False)
    square = (tiles.astype(np.int64) ** 2).sum(axis=(1, 2)) / 9216
    assert np.array_equal(found.means, tiles.sum(axis=(1, 2), dtype=np.int64) / 9216)
    assert np.array_equal(found.deviations, np.sqrt(np.maximum(square - found.means**2, 0)))


def test_focus_is_the_variance_of_the_laplacian_and_falls_with_blur(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter, laplace

    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3))
    tiles = np.stack([noise, gaussian_filter(noise, (1, 1, 0)), gaussian_filter(noise, (4, 4, 0))]).astype(
        np.uint8
    )
    np.save(tmp_path / "tiles.npy", tiles)
    found = describe_tiles(tmp_path / "tiles.npy", with_stain=False).focus
    grey = tiles @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found, [laplace(tile)[1:-1, 1:-1].var() for tile in grey], rtol=1e-4)
    assert found[0] > 10 * found[1] > 100 * found[2]


def test_outliers_are_the_furthest_first(tmp_path: Path, random_tiles: Callable[..., np.ndarray]) -> None:
    tiles = random_tiles(20)
    tiles[3], tiles[7], tiles[11] = 0, 255, 0
    tiles[5] = tiles[5] // 40 * 4 + 120
    np.save(tmp_path / "tiles.npy", tiles)
    found = outliers(describe_tiles(tmp_path / "tiles.npy", with_stain=False))
    assert found["darkest"][:2] == [3, 11] and found["lightest"][0] == 7
    assert set(found["plainest"][:3]) == {3, 7, 11}
    assert found["blurred"][0] == 5  # what has no contrast at all is not called blurred


def test_copies_are_found_and_similar_tiles_are_not(array: Path) -> None:
    """A copy, one with a little noise, one shifted by a cell, and plain tiles that all look alike."""
    generator = np.random.default_rng(2)
    thumbs = generator.integers(0, 256, (40, THUMB, THUMB), dtype=np.uint8)
    thumbs[9] = thumbs[2]
    thumbs[30] = np.clip(thumbs[4].astype(int) + (np.arange(THUMB) % 2), 0, 255)
    thumbs[17] = np.roll(thumbs[5], 1, axis=1)
    thumbs[20:25] = 240
    assert near_copies(thumbs) == [(2, 9), (4, 30)]
    eda = _explore(
        array, np.arange(40) % 2
    )  # the test tiles are the labelled ones once more; two of them are plain
    assert eda["near_copies"]["pairs"] == eda["near_copies"]["between_labelled_and_test"] == 38
    assert eda["near_copies"]["examples"][0] == ["2", "t2"] and eda["near_copies"]["with_another_label"] == 0


def test_copies_are_found_with_other_tiles_of_their_hash_between_them() -> None:
    """Row 1 and row 3 have the hash of rows 0, 2 and 4, and are 8 and 16 levels lighter."""
    tile = np.random.default_rng(0).integers(60, 200, (8, 8)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    assert near_copies(np.stack([tile, tile + 8, tile])) == [(0, 2)]
    assert near_copies(np.stack([tile, tile + 8, tile, tile + 16, tile, tile + 8])) == [
        (0, 2),
        (1, 5),
        (2, 4),
    ]
    assert near_copies(np.stack([tile])) == near_copies(np.empty((0, 16, 16), np.uint8)) == []


def test_copies_that_matter_most_are_named_first(array: Path) -> None:
    generator = np.random.default_rng(6)
    tiles = generator.integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    tiles[1], tiles[3], tiles[9] = (
        tiles[11],
        tiles[13],
        tiles[8],
    )  # by rows, twice with the same label, once with another
    np.save(array, tiles)
    assert _explore(array, np.arange(40) % 2)["near_copies"]["examples"][0] == ["8", "9"]


def test_a_group_whose_tiles_are_all_held_out_is_not_counted(array: Path) -> None:
    groups = _explore(array, np.arange(40) % 2, groups=np.arange(40) % 4 * 3)["stain_groups"]
    assert (groups["number"], groups["smallest"], groups["largest"]) == (4, 10, 10)
    assert groups["number"] == len(groups["table"])


def test_each_group_has_its_own_colours_and_stains(array: Path) -> None:
    found = describe_tiles(array, with_stain=True)
    table = _explore(array, np.arange(40) % 2)["stain_groups"]["table"]
    for row in table:
        own = np.arange(40) % 4 == row["group"]
        np.testing.assert_allclose(row["mean"], found.means[own].mean(axis=0) / 255, atol=1e-6)
        np.testing.assert_allclose(
            list(row["stain_medians"].values()), np.median(found.features[own], axis=0), atol=1e-5
        )
        assert row["focus_median"] == pytest.approx(np.median(found.focus[own]), abs=1e-3)


def test_no_tile_has_no_copy() -> None:
    assert near_copies(np.empty((0, THUMB, THUMB), np.uint8)) == []


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    """Six labelled and four test tiles with the ids of their pixels."""
    generator = np.random.default_rng(4)
    found = {}
    for name, number in (("train", 6), ("test", 4)):
        tiles = generator.integers(0, 256, (number, 96, 96, 3), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", tiles)
        found[name] = (
            tmp_path / f"{name}.npy",
            [hashlib.sha1(tile.tobytes()).hexdigest() for tile in tiles],
            tiles,
        )
    return found


def _competition_of(arrays: Arrays) -> Competition:
    train = pd.DataFrame({"id": arrays["train"][1], "label": [0, 1] * 3})
    return Competition(Path(), train, arrays["test"][1], b"")


def _integrity(arrays: Arrays, mismatches: dict[str, list[str]]) -> dict[str, Any]:
    stores = {
        path: BuiltStore(tiles=len(ids), mismatches=mismatches.get(name, []))
        for name, (path, ids, _) in arrays.items()
    }
    found = describe_integrity(_competition_of(arrays), stores)
    json.dumps(found)
    return found


def test_intact_data_have_no_fault(arrays: Arrays) -> None:
    found = _integrity(arrays, {})
    assert (found["labelled_tiles"], found["test_tiles"]) == (6, 4)
    findings = {name: entry for name, entry in found.items() if isinstance(entry, dict) and "count" in entry}
    assert set(findings) >= {
        "missing",
        "id_named_twice",
        "undecodable",
        "wrong_size",
        "mismatched",
        "same_content_under_two_ids",
    }
    assert all((entry["count"], entry["first"]) == (0, []) for entry in findings.values())
    assert findings["missing"]["stops_the_run"] and not findings["mismatched"]["stops_the_run"]
    assert found["of_the_competition"]["all_of_them"] is False


def test_a_tile_under_a_wrong_id_is_reported_as_a_copy(arrays: Arrays) -> None:
    """One labelled tile has the pixels of a test tile, two have equal pixels without id, one is damaged."""
    path, ids, tiles = arrays["train"]
    tiles[1] = arrays["test"][2][3]
    tiles[2] = tiles[4] = 17
    tiles[5, 0, 0, 0] ^= 1
    np.save(path, tiles)
    wrong = [ids[1], ids[2], ids[4], ids[5]]
    found = _integrity(arrays, {"train": wrong})
    assert found["mismatched"] == {"count": 4, "first": wrong, "stops_the_run": False}
    copies = {f"{ids[1]} = {arrays['test'][1][3]}", f"{ids[4]} = {ids[2]}"}
    assert set(found["same_content_under_two_ids"]["first"]) == copies
    assert (
        same_content({each: (names, []) for each, names, _ in arrays.values()}) == []
    )  # matching ids cannot share pixels


def test_an_id_that_is_labelled_and_to_be_predicted_is_named(arrays: Arrays) -> None:
    arrays["test"][1][0] = arrays["train"][1][2]
    assert _integrity(arrays, {})["labelled_and_test"] == {
        "count": 1,
        "first": [arrays["train"][1][2]],
        "stops_the_run": False,
    }
