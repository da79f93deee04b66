"""A frozen encoder from embed to submission, and what is refused on the way."""

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

from lib.evaluation.metrics import probability
from lib.inference.export_folder import Options, export_folder
from lib.inference.predictor import Predictor, PredictorError
from lib.model.features import TEST_FEATURES, TRAIN_FEATURES
from lib.model.linear_head import load_head
from lib.model.network import build_network

KNOBS = {
    "train_mode": "linear_probe",
    "num_members": "1",
    "weights": "mine.safetensors",
    "input_size": "32",
    "tta_views": "4",
}
PREPARE = "notebooks/someone/hcd-prepare"


@pytest.fixture
def encoder(bench: Any, prepared: Path, competition: Path) -> Path:
    """A weight file among the inputs, beside the prepared data and the competition."""
    bench.mount(prepared, PREPARE)
    bench.mount(competition, workbench.COMPETITION)
    torch.manual_seed(5)
    config = workbench.experiment(**KNOBS).config
    weights = {
        name: tensor.contiguous() for name, tensor in build_network(config).backbone.state_dict().items()
    }
    path = bench.inputs / "datasets/someone/mine/mine.safetensors"
    path.parent.mkdir(parents=True)
    save_file(weights, path)
    return path


def leave(bench: Any, place: str) -> Path:
    """Move what a kernel left to where the next one looks for it."""
    target = bench.inputs / place
    shutil.copytree(bench.working, target)
    for path in bench.working.iterdir():
        path.unlink()
    return Path(target)


def test_from_embed_to_submission(bench: Any, encoder: Path, prepared: Path) -> None:
    assert bench.run("embed", **KNOBS)[0] == 0
    embedded = leave(bench, "notebooks/someone/hcd-x-embed")
    train, test = (np.load(embedded / name) for name in (TRAIN_FEATURES, TEST_FEATURES))
    index = pd.read_csv(prepared / "index-train.csv", dtype={"id": str})
    assert len(train) == len(index) and train.dtype == np.float32 and np.isfinite(train).all()
    heads = []
    for fold in (0, 1):
        code, said, _ = bench.run("train", fold=fold, **KNOBS)
        assert code == 0 and "inner folds" in said
        assert "read the tiles" not in said  # nor a GPU, nor the weights
        output = leave(bench, f"notebooks/someone/hcd-x-fold-{fold}")
        head, identity = load_head(output / f"fold-{fold}-member-0.safetensors")
        heads.append(head)
        table = pd.read_csv(output / f"oof-{fold}-member-0.csv", dtype={"id": str})
        rows = index.set_index("id").index.get_indexer(table["id"])
        np.testing.assert_allclose(table["logit"], head.logits(train[rows]), rtol=1e-6, atol=1e-6)
        assert identity.fold == fold
        record = json.loads((output / "run.json").read_text())
        assert "the encoder is frozen" in record["scores"]["explained"]["missing"]
        assert not [name for name in record["files"] if name.startswith("hard-tiles-")]
    code, said, errors = bench.run("inference", **KNOBS)
    assert (code, errors) == (0, "")
    submission = pd.read_csv(bench.working / "submission.csv")
    by_hand = np.mean([probability(head.logits(test)) for head in heads], axis=0)
    np.testing.assert_allclose(submission["label"], by_hand, atol=1e-6)
    # `predict` embeds the tiles itself, with the encoder's weights, which a head does not hold.
    folds, tiles = bench.inputs / "notebooks/someone", np.load(prepared / "tiles-test.npy")
    predictor = Predictor.load(folds, device="cpu", weights=[encoder.parent])
    np.testing.assert_allclose(
        predictor.predict(tiles)["probability"], submission["label"], rtol=0, atol=1e-6
    )
    export = Options(members=str(folds), out=str(bench.folder / "exported"), weights=(str(encoder.parent),))
    exported = Predictor.load(export_folder(export), device="cpu")  # the encoder is in the folder
    np.testing.assert_array_equal(exported.logits(tiles), predictor.logits(tiles))
    with pytest.raises(PredictorError, match="linear probe.* in the file mine.safetensors.* --weights DIR"):
        Predictor.load(folds, device="cpu")
    assert len(pd.read_csv(bench.working / "ensemble.csv")) == 2


def test_features_of_another_encoder_are_refused_by_the_differing_option(bench: Any, encoder: Path) -> None:
    assert bench.run("embed", **KNOBS)[0] == 0
    embedded = leave(bench, "notebooks/someone/hcd-x-embed")
    message = bench.refused("train", **{**KNOBS, "tta_views": "8"})
    assert "hcd-x-embed has tta_views 4 instead of 8" in message
    workbench.reseal(embedded, data_id="7be0" * 16)
    assert "data 7be07be0... instead of" in bench.refused("train", **KNOBS)


def test_features_that_are_absent_or_damaged_are_refused(bench: Any, encoder: Path) -> None:
    assert "no output of an embed kernel is mounted" in bench.refused("train", **KNOBS)
    assert bench.run("embed", **KNOBS)[0] == 0
    embedded = leave(bench, "notebooks/someone/hcd-x-embed")
    workbench.flip_byte(embedded / TRAIN_FEATURES)
    assert f"{TRAIN_FEATURES} is damaged" in bench.refused("train", **KNOBS)


def test_a_weight_file_of_another_network_stops_embed_with_its_name(bench: Any, encoder: Path) -> None:
    assert "does not hold the weights of test_vit" in bench.refused(
        "embed", **{**KNOBS, "backbone": "test_vit"}
    )


def test_an_ensemble_of_a_frozen_and_a_trained_network(
    bench: Any, encoder: Path, prepared: Path, folds: list[Path]
) -> None:
    assert bench.run("embed", **KNOBS)[0] == 0
    leave(bench, "notebooks/someone/hcd-x-embed")
    for fold in (0, 1):
        assert bench.run("train", fold=fold, **KNOBS)[0] == 0
        leave(bench, f"notebooks/someone/hcd-x-fold-{fold}")
        bench.mount(folds[fold], f"notebooks/someone/hcd-y-fold-{fold}")
    both = [workbench.experiment(), workbench.experiment(**KNOBS)]
    code, _, errors = bench.run("inference", experiments=both)
    assert (code, errors) == (0, "")
    members = pd.read_csv(bench.working / "members.csv", dtype={"id": str})
    assert members.shape[1] == 5
    table = pd.read_csv(bench.working / "ensemble.csv")
    assert table["experiment"].tolist() == [both[0].name] * 2 + [both[1].name] * 2
    record = json.loads((bench.working / "run.json").read_text())
    assert record["scores"]["members"] == 4
