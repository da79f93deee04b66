"""A fold of a frozen encoder: fitted on the other folds alone, scored on its own, the files of any fold."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lib.config import Config
from lib.model.linear_head import fit_head, load_head
from lib.training.fold import FoldTask
from lib.training.linear_probe import PENALTIES, choose_penalty, train_head

FOLD = 1


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """(240, 5): the first column tells the label of most tiles."""
    generator = np.random.default_rng(0)
    found = generator.normal(0, 1, (240, 5)).astype(np.float32)
    found[:, 0] += 1.5 * _labels()
    return found


def _labels() -> np.ndarray:
    return (np.arange(240) % 5 < 2).astype(np.int64)


GROUPS = np.arange(240) // 3 % 16


def _train(folder: Path, features: np.ndarray, labels: np.ndarray) -> tuple[dict[str, bool], dict[str, Any]]:
    folder.mkdir()
    task = FoldTask(
        experiment="x",
        config=Config(train_mode="linear_probe", num_members=1, num_folds=4),
        fold=FOLD,
        tiles=np.empty((0, 96, 96, 3), np.uint8),
        index=pd.DataFrame({"id": [f"{at:040x}" for at in range(240)], "label": labels}),
        folds=GROUPS % 4,
        data_id="d" * 64,
        fold_table_id="f" * 64,
        bundle_id="b" * 64,
        weights={},
    )
    return train_head(task, features, GROUPS, folder=folder, invalidate_record=lambda: None)


def test_a_fold_leaves_what_the_other_folds_say_of_its_tiles(features: np.ndarray, tmp_path: Path) -> None:
    names, scores = _train(tmp_path / "fold", features, _labels())
    assert names == {
        "fold-1-member-0.safetensors": False,
        "oof-1-member-0.csv": True,
        "history-1-member-0.jsonl": True,
    }
    table = pd.read_csv(tmp_path / "fold" / "oof-1-member-0.csv", dtype={"id": str})
    inside = np.flatnonzero(GROUPS % 4 == FOLD)
    assert (
        table["id"].tolist() == [f"{at:040x}" for at in inside]
        and table["label"].tolist() == _labels()[inside].tolist()
    )
    outside = np.flatnonzero(GROUPS % 4 != FOLD)
    seed = Config().seed
    penalty = choose_penalty(features[outside], _labels()[outside], GROUPS[outside], seed=seed)
    wanted = fit_head(features[outside], _labels()[outside], penalty=penalty)
    np.testing.assert_allclose(table["logit"], wanted.logits(features[inside]), rtol=1e-6)
    assert scores["fold"]["auc"] == pytest.approx(roc_auc_score(table["label"], table["logit"]))


def test_neither_tiles_nor_labels_of_the_fold_are_learnt_from(features: np.ndarray, tmp_path: Path) -> None:
    inside = GROUPS % 4 == FOLD
    other, turned = features.copy(), np.where(inside, 1 - _labels(), _labels())
    other[inside] = 100 * other[inside][:, ::-1]
    _train(tmp_path / "plain", features, _labels())
    _train(tmp_path / "spoiled", other, turned)
    heads = [load_head(tmp_path / name / "fold-1-member-0.safetensors")[0] for name in ("plain", "spoiled")]
    assert np.array_equal(heads[0].logits(features), heads[1].logits(features))


def drawn(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.normal(2, 3, (count, 12)).astype(np.float32)
    features[:, 11] = 7.0  # says nothing
    labels = (features[:, 0] - features[:, 1] + generator.normal(0, 3, count) > 0).astype(int)
    return features, labels, generator.integers(0, 30, count)


def test_the_penalty_is_chosen_with_groups_kept_apart(caplog: pytest.LogCaptureFixture) -> None:
    """Features that name the group predict its own tiles only: the inner folds by group must show that."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 15)
    labels = np.repeat(generator.integers(0, 2, 40), 15)
    names = np.eye(40, dtype=np.float32)[groups]

    def best_inner_score(kept_apart: np.ndarray) -> float:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            choose_penalty(names, labels, kept_apart, seed=0)
        scores = caplog.messages[0].split("group: ")[1].split("; ")[0].split(", ")
        return max(float(score.split(": ")[1]) for score in scores)

    assert best_inner_score(generator.permutation(600)) > 0.99
    assert best_inner_score(groups) < 0.7


def test_with_too_few_groups_the_penalty_is_the_default(caplog: pytest.LogCaptureFixture) -> None:
    features, labels, groups = drawn(60)
    with caplog.at_level(logging.INFO):
        penalty = choose_penalty(features, labels, np.zeros(60), seed=0)
    assert penalty == 1e-2 and "too few groups" in caplog.messages[0]
    assert np.isfinite(fit_head(features, labels, penalty=penalty).logits(features)).all()
    # All of the tumour is in one group, so no inner fold has both classes on both sides.
    single = np.where(labels == 1, 0, 1 + groups)
    assert choose_penalty(features, labels, single, seed=0) == 1e-2


def test_the_chosen_penalty_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        penalty = choose_penalty(*drawn(), seed=1)
    assert penalty in PENALTIES and f"chosen: C {penalty:g}" in caplog.messages[0]
