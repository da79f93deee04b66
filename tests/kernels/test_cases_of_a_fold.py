"""A trained fold leaves its hardest tiles, with maps, where a report without tiles and weights finds them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import workbench

from lib.metrics import probability

FILES = ("cases-0.csv", "cases-0-tiles.npy", "cases-0-maps.npy")


def test_a_fold_leaves_its_hardest_tiles_and_says_how_they_were_explained(folds: list[Path]) -> None:
    record = workbench.record_of(folds[0])
    assert all(record["files"][name]["fetch"] for name in FILES)
    table = pd.read_csv(folds[0] / "cases-0.csv", dtype={"id": str})
    tiles = np.load(folds[0] / "cases-0-tiles.npy", allow_pickle=False)
    assert [hashlib.sha1(tile.tobytes()).hexdigest() for tile in tiles] == table["id"].tolist()
    assert np.load(folds[0] / "cases-0-maps.npy", allow_pickle=False).shape == (len(table), 96, 96)
    own = pd.read_csv(folds[0] / "oof-0-member-0.csv", dtype={"id": str}).set_index("id")
    chances = own["logit"].map(lambda logit: float(probability(np.array([logit]))[0]))
    np.testing.assert_allclose(table["probability"], chances[table["id"]], rtol=1e-9)
    wrong = table["kind"].isin(["false_positive", "false_negative"])
    assert ((table["probability"] >= 0.5) == table["label"])[~wrong].all()
    [[_, false_positives], [false_negatives, _]] = record["scores"]["fold"]["confusion_at_half"]
    assert wrong.sum() == min(false_positives, 12) + min(false_negatives, 12)
    explained = record["scores"]["explained"]
    assert explained["method"] == "grad-cam" and 0 < explained["tiles"] <= own["label"].sum()
    assert "explain the hardest tiles" in record["seconds"]


def test_a_network_that_cannot_be_explained_leaves_a_whole_fold(
    bench: Any, prepared: Path, folds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("this layer has no gradient")

    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    monkeypatch.setattr("lib.report.cases.attribute", fail)
    code, said, _ = bench.run("train")
    assert code == 0 and "warning: no explanation: RuntimeError: this layer has no gradient" in said
    record, whole = workbench.record_of(bench.working), workbench.record_of(folds[0])
    assert record["scores"]["explained"] == {"missing": "RuntimeError: this layer has no gradient"}
    assert set(whole["files"]) - set(record["files"]) == {"cases-0-maps.npy"}
    assert {**record["scores"], "explained": 0} == {**whole["scores"], "explained": 0}
