"""What is wrong with the files is counted and named; what is whole says so."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.data.competition import Competition
from lib.data.integrity import describe_integrity, same_content
from lib.data.tile_store import BuiltStore


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, tuple[Path, list[str], np.ndarray]]:
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


def competition_of(arrays: dict[str, tuple[Path, list[str], np.ndarray]]) -> Competition:
    train = pd.DataFrame({"id": arrays["train"][1], "label": [0, 1] * 3})
    return Competition(Path(), train, arrays["test"][1], b"")


def describe(
    arrays: dict[str, tuple[Path, list[str], np.ndarray]], mismatches: dict[str, list[str]]
) -> dict[str, object]:
    stores = {
        path: BuiltStore(tiles=len(ids), mismatches=mismatches.get(name, []))
        for name, (path, ids, _) in arrays.items()
    }
    found = describe_integrity(competition_of(arrays), stores)
    json.dumps(found)
    return found


def test_whole_data_have_no_finding(arrays) -> None:
    found = describe(arrays, {})
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


def test_a_tile_under_a_wrong_name_is_found_out_as_a_copy(arrays) -> None:
    """One labelled tile holds the pixels of a test tile, two others the same pixels that no id names; one is only damaged."""
    path, ids, tiles = arrays["train"]
    tiles[1] = arrays["test"][2][3]
    tiles[2] = tiles[4] = 17
    tiles[5, 0, 0, 0] ^= 1
    np.save(path, tiles)
    wrong = [ids[1], ids[2], ids[4], ids[5]]
    found = describe(arrays, {"train": wrong})
    assert found["mismatched"] == {"count": 4, "first": wrong, "stops_the_run": False}
    copies = {f"{ids[1]} = {arrays['test'][1][3]}", f"{ids[4]} = {ids[2]}"}
    assert set(found["same_content_under_two_ids"]["first"]) == copies
    assert (
        same_content({each: (names, []) for each, names, _ in arrays.values()}) == []
    )  # matching ids cannot share pixels


def test_an_id_that_is_labelled_and_to_be_predicted_is_named(arrays) -> None:
    arrays["test"][1][0] = arrays["train"][1][2]
    assert describe(arrays, {})["labelled_and_test"] == {
        "count": 1,
        "first": [arrays["train"][1][2]],
        "stops_the_run": False,
    }
