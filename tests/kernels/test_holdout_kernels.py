"""A hold-out from prepare to inference: no fold sees it, and its grade is that of the files."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import workbench
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from lib.evaluation.metrics import probability
from lib.model.linear_head import load_head
from lib.model.network import build_network

PREPARE = "notebooks/someone/hcd-prepare"
PROBE = {"train_mode": "linear_probe", "num_members": "1", "weights": "mine.safetensors", "tta_views": "1"}


def _leave(bench: Any, place: str) -> Path:
    """Move the output of a kernel to where the next one looks for it."""
    target = bench.inputs / place
    shutil.copytree(bench.working, target)
    for path in bench.working.iterdir():
        path.unlink()
    return Path(target)


@pytest.fixture
def encoder(bench: Any, competition: Path) -> None:
    """The competition and a weight file among the inputs."""
    bench.mount(competition, workbench.COMPETITION)
    torch.manual_seed(5)
    network = build_network(workbench.experiment(**PROBE).config)
    path = bench.inputs / "datasets/someone/mine/mine.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}, path)


def test_from_prepare_to_the_grade(bench: Any, encoder: None, competition: Path) -> None:
    options = {**PROBE, "holdout": "mlebench"}
    assert bench.run("prepare", **options)[0] == 0
    prepared = _leave(bench, PREPARE)
    train, holdout = (
        pd.read_csv(prepared / name, dtype={"id": str}) for name in ("index-train.csv", "index-holdout.csv")
    )
    labels = pd.read_csv(competition / "train_labels.csv", dtype={"id": str})
    test = pd.read_csv(competition / "sample_submission.csv")
    expected = int(np.ceil(len(labels) * len(test) / (len(labels) + len(test))))
    assert len(holdout) == expected and len(train) == len(labels) - expected
    assert set(train["id"]) | set(holdout["id"]) == set(labels["id"])
    tiles = np.load(prepared / "tiles-holdout.npy")
    for row in range(3):
        digest = hashlib.sha1(tiles[row].tobytes(), usedforsecurity=False).hexdigest()
        assert digest == holdout["id"][row]

    assert bench.run("embed", **options)[0] == 0
    embedded = _leave(bench, "notebooks/someone/hcd-x-embed")
    heads = []
    for fold in (0, 1):
        assert bench.run("train", fold=fold, **options)[0] == 0
        output = _leave(bench, f"notebooks/someone/hcd-x-fold-{fold}")
        heads.append(load_head(output / f"fold-{fold}-member-0.safetensors")[0])
        predicted = pd.read_csv(output / f"oof-{fold}-member-0.csv", dtype={"id": str})
        assert not set(predicted["id"]) & set(holdout["id"])
    code, said, errors = bench.run("inference", **options)
    assert (code, errors) == (0, "")
    assert "hold-out mlebench: AUC" in said and "never with a leaderboard" in said

    graded = pd.read_csv(bench.working / "holdout.csv", dtype={"id": str})
    assert graded["id"].tolist() == holdout["id"].tolist()
    features = np.load(embedded / "features-holdout.npy")
    by_hand = np.mean([probability(head.logits(features)) for head in heads], axis=0)
    np.testing.assert_allclose(graded["probability"], by_hand, atol=1e-6)
    answers = labels.set_index("id").loc[graded["id"], "label"]
    grade = json.loads((bench.working / "run.json").read_text())["scores"]["holdout"]
    assert grade["auc"] == pytest.approx(roc_auc_score(answers, graded["probability"]), abs=1e-9)
    assert grade["tiles"] == len(holdout) and grade["medal_lines"]["gold"] == 0.9835
    submission = pd.read_csv(bench.working / "submission.csv")
    assert submission["id"].tolist() == test["id"].tolist()  # the test tiles, as without a hold-out


def test_networks_predict_the_hold_out(bench: Any, competition: Path) -> None:
    bench.mount(competition, workbench.COMPETITION)
    ids = pd.read_csv(competition / "train_labels.csv", dtype={"id": str})
    attached = bench.inputs / "datasets/someone/mine/ids.csv"
    attached.parent.mkdir(parents=True)
    ids.iloc[::4][["id"]].to_csv(attached, index=False)
    options = {"holdout": "ids.csv", "num_members": "1", "epochs": "1"}
    assert bench.run("prepare", **options)[0] == 0
    _leave(bench, PREPARE)
    for fold in (0, 1):
        assert bench.run("train", fold=fold, **options)[0] == 0
        _leave(bench, f"notebooks/someone/hcd-x-fold-{fold}")
    code, _, errors = bench.run("inference", **options)
    assert (code, errors) == (0, "")
    graded = pd.read_csv(bench.working / "holdout.csv", dtype={"id": str})
    assert sorted(graded["id"]) == sorted(ids["id"].iloc[::4])
    grade = json.loads((bench.working / "run.json").read_text())["scores"]["holdout"]
    assert grade["auc"] == pytest.approx(roc_auc_score(graded["label"], graded["probability"]), abs=1e-9)
    assert "medal" not in grade


def test_a_file_of_ids_that_is_not_attached_is_named(bench: Any, competition: Path) -> None:
    bench.mount(competition, workbench.COMPETITION)
    message = bench.refused("prepare", holdout="ids.csv")
    assert "ids.csv" in message and "--attach" in message
