"""Pseudo-labels: fold k learns from test tiles labelled by fold k of another experiment only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import workbench

import kernels.train
from lib.evaluation.metrics import probability
from lib.inference.pseudo_labels import choose_confident
from lib.model.checkpoint import load_checkpoint
from lib.model.predict import predict_logits
from lib.training.fold import FoldTask

CPU = torch.device("cpu")
PREPARE = "notebooks/someone/hcd-prepare"


@pytest.fixture
def teacher(folds: list[Path]) -> str:
    """The name of the experiment whose folds are at hand."""
    name: str = json.loads((folds[0] / "run.json").read_text())["experiment"]
    return name


def student(teacher: str, fold: int) -> dict[str, Any]:
    """The parameters of a fold that learns from a teacher; the names need not stand in experiments/."""
    parameters = workbench.parameters_of("train", fold=fold)
    parameters["experiments"] = ["student"]
    parameters["configs"][0] |= {"pseudo_labels": teacher, "pseudo_share": 0.5}
    return parameters


def test_a_fold_learns_from_its_own_teachers_labels(
    bench: Any, prepared: Path, folds: list[Path], teacher: str
) -> None:
    bench.mount(prepared, PREPARE)
    bench.mount(folds[0], "notebooks/someone/teacher-0")
    bench.mount(folds[1], "notebooks/someone/teacher-1")  # it saw the tiles of fold 0, and must not be asked
    code, said, errors = bench.run("train", parameters=student(teacher, 0))
    assert (code, errors) == (0, "")
    tiles = np.load(prepared / "tiles-test.npy")
    network, _ = load_checkpoint(folds[0] / "fold-0-member-0.safetensors")
    rows = np.arange(len(tiles))
    logits = predict_logits(
        network, tiles, rows, views=1, batch_size=512, device=CPU, precision=torch.float32
    )
    train = pd.read_csv(prepared / "index-train.csv", dtype={"id": str})
    wanted = choose_confident(probability(logits), share=0.5, prevalence=float(train["label"].mean()))
    assert f"fold 0 of {teacher} labels {len(wanted):,} of {len(tiles):,} test tiles: " in said
    record = json.loads((bench.working / "run.json").read_text())
    assert record["scores"]["pseudo_labelled"] == len(wanted) and record["scores"]["transductive"] is True
    table = pd.read_csv(bench.working / "oof-0-member-0.csv", dtype={"id": str})
    own = pd.read_csv(folds[0] / "oof-0-member-0.csv", dtype={"id": str})
    assert table["id"].tolist() == own["id"].tolist()  # scored on labelled tiles only
    outside = len(train) - len(own)
    assert f"{outside + len(wanted):,} tiles to learn from, {len(own):,} out of fold" in said
    assert not np.array_equal(table["logit"], own["logit"])


def test_it_learns_from_the_very_tiles_that_were_labelled(
    bench: Any, prepared: Path, folds: list[Path], teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label on another tile is worse than none, and nothing would look amiss."""
    tasks: list[FoldTask] = []

    def stop(task: FoldTask, **rest: Any) -> None:
        tasks.append(task)

    monkeypatch.setattr(kernels.train, "train_fold", stop)
    bench.mount(prepared, PREPARE)
    bench.mount(folds[0], "notebooks/someone/teacher-0")
    assert bench.run("train", parameters=student(teacher, 0))[0] == 0
    [task] = tasks
    train = pd.read_csv(prepared / "index-train.csv", dtype={"id": str})
    test = pd.read_csv(prepared / "index-test.csv", dtype={"id": str}).set_index("id")
    extra = slice(len(train), len(task.tiles))
    assert len(task.tiles) == len(task.index) == len(task.folds) > len(train)
    assert task.index["id"].tolist()[: len(train)] == train["id"].tolist()
    np.testing.assert_array_equal(task.tiles[: len(train)], np.load(prepared / "tiles-train.npy"))
    rows = test.loc[task.index["id"][extra], "row"].to_numpy()
    np.testing.assert_array_equal(task.tiles[extra], np.load(prepared / "tiles-test.npy")[rows])
    assert (task.folds[extra] == -1).all()  # in no fold: always learnt from, never scored
    network, _ = load_checkpoint(folds[0] / "fold-0-member-0.safetensors")
    logits = predict_logits(
        network,
        task.tiles,
        np.arange(extra.start, extra.stop),
        views=1,
        batch_size=512,
        device=CPU,
        precision=torch.float32,
    )
    labels = task.index["label"].to_numpy()[extra]
    assert logits[labels == 1].min(initial=np.inf) >= logits[labels == 0].max(initial=-np.inf)


def test_without_its_own_fold_of_the_teacher_it_refuses(
    bench: Any, prepared: Path, folds: list[Path], teacher: str
) -> None:
    bench.mount(prepared, PREPARE)
    bench.mount(folds[1], "notebooks/someone/teacher-1")
    message = bench.refused("train", parameters=student(teacher, 0))
    assert f"fold 0 of {teacher}, which pseudo_labels names, is not among the inputs" in message
    assert f"mounted: fold 1 of {teacher}" in message
