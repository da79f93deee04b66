"""What prepare says of the tiles is whole, and fit for a record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.data.prepared import describe_tiles, explore
from lib.data.store import BuiltStore


@pytest.fixture
def array(tmp_path: Path, random_tiles: Callable[..., np.ndarray]) -> Path:
    tiles = random_tiles(40)
    tiles[0], tiles[1] = 0, 200
    np.save(tmp_path / "tiles.npy", tiles)
    return tmp_path / "tiles.npy"


def _explore(array: Path, labels: np.ndarray, slides: list[str] | None = None) -> dict[str, Any]:
    description = describe_tiles(array, with_stain=True)
    index = pd.DataFrame(
        {"id": [str(n) for n in range(40)], "label": labels, "stain_group": np.arange(40) % 4, "slide": slides or [""] * 40}
    )
    return explore(index, description, description, {"tiles.npy": BuiltStore(tiles=40, mismatches=["3"])}, Config())


def test_means_and_deviations_are_those_of_all_pixels(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.data.prepared._PIECE", 7)
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
    assert eda["slides"]["number"] == 5 and 0 <= eda["slides"]["auc_of_slide_number"] <= 1


def test_what_is_undefined_is_left_out_of_a_record_not_written_as_nan(array: Path) -> None:
    eda = _explore(array, (np.arange(40) == 7).astype(np.int64))  # one positive: no two folds to compare
    json.dumps(eda, allow_nan=False)  # as run.json is written


def test_a_description_does_not_depend_on_the_pieces(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = describe_tiles(array, with_stain=True)
    monkeypatch.setattr("lib.data.prepared._CACHED", 3)
    again = describe_tiles(array, with_stain=True)
    for name in ("means", "deviations", "features"):
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
