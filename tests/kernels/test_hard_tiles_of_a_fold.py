"""A trained fold leaves its hardest tiles, with maps, where a report without tiles and weights finds them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import workbench

from lib.evaluation.metrics import probability

FILES = ("hard-tiles-0.csv", "hard-tiles-0-images.npy", "hard-tiles-0-maps.npy")


def test_a_fold_leaves_its_hardest_tiles_and_says_how_they_were_explained(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    code, said, errors = bench.run(
        "train",
        backbone="test_vit",
        input_size="96",
        epochs="1",
        num_members="2",
        class_balance="loss",
        tta_views="4",
        eval_every="1",
    )
    assert (code, errors) == (0, "")
    record, left = workbench.record_of(bench.working), bench.working
    assert all(record["files"][name]["fetch"] for name in FILES)
    table = pd.read_csv(left / "hard-tiles-0.csv", dtype={"id": str})
    tiles = np.load(left / "hard-tiles-0-images.npy", allow_pickle=False)
    assert [hashlib.sha1(tile.tobytes()).hexdigest() for tile in tiles] == table["id"].tolist()
    assert np.load(left / "hard-tiles-0-maps.npy", allow_pickle=False).shape == (len(table), 96, 96)
    members = [
        pd.read_csv(left / f"oof-0-member-{member}.csv", dtype={"id": str}).set_index("id")
        for member in (0, 1)
    ]
    probabilities = sum(pd.Series(probability(each["logit"].to_numpy()), each.index) for each in members) / 2
    np.testing.assert_allclose(table["probability"], probabilities[table["id"]], rtol=1e-9)
    wrong = table["kind"].isin(["false_positive", "false_negative"])
    assert ((table["probability"] >= 0.5) == table["label"])[~wrong].all()
    [[_, false_positives], [false_negatives, _]] = record["scores"]["fold"]["confusion_at_half"]
    assert wrong.sum() == min(false_positives, 12) + min(false_negatives, 12)
    explained = record["scores"]["explained"]
    assert explained["method"] == "attention rollout" and explained["tiles"] == members[0]["label"].sum()
    share = 100 * explained["share_in_centre"]["median"]
    assert f"inside the centre {share:.1f}% ({explained['tiles']} tumour tiles" in said
    assert "explain the hardest tiles" in record["seconds"]
    assert record["scores"]["precision"] == "float32" and record["scores"]["first_weights"] == {}
    assert record["files"]["augmented-tiles-0.npy"]["fetch"]
    examples = np.load(left / "augmented-tiles-0.npy", allow_pickle=False)
    assert examples.shape == (2, 7, 96, 96, 3) and examples.dtype == np.uint8
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str}).set_index("id")
    originals = [hashlib.sha1(tile.tobytes()).hexdigest() for tile in examples[:, 0]]
    assert index.loc[originals, "label"].tolist() == [1, 0]
    assert not set(originals) & set(members[0].index)  # the fold's own tiles are not augmented
    last = history_of(left / "history-0-member-0.jsonl")[-1]
    assert 0 <= last["all_views_auc"] <= 1


def history_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a history."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_network_that_cannot_be_explained_leaves_a_whole_fold(
    bench: Any, prepared: Path, folds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("this layer has no gradient")

    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    monkeypatch.setattr("lib.explain.attribution.attribute", fail)
    code, said, _ = bench.run("train")
    assert code == 0 and "warning: no attribution: RuntimeError: this layer has no gradient" in said
    record, whole = workbench.record_of(bench.working), workbench.record_of(folds[0])
    assert record["scores"]["explained"] == {"missing": "RuntimeError: this layer has no gradient"}
    assert set(record["files"]) == set(whole["files"]) - {"hard-tiles-0-maps.npy"}
    assert {**record["scores"], "explained": 0} == {**whole["scores"], "explained": 0}
