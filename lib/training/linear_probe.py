"""One fold of a linear probe: a logistic regression on the features of a frozen encoder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.evaluation.metrics import auc, probability
from lib.files import write_atomic
from lib.model.linear_head import fit_head, save_head
from lib.training.fold import FoldTask, MemberFiles, collect_outputs

logger = logging.getLogger(__name__)


logger = logging.getLogger(__name__)

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of LogisticRegression: the larger, the weaker
_DEFAULT_PENALTY = 1e-2  # with too few groups for inner folds
_INNER_FOLDS = 3


def choose_penalty(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int) -> float:
    """The penalty with the highest mean AUC over three inner folds by group.

    Args:
        features: (N, C) float32, without the tiles of the fold.
        labels: (N,) 0 or 1.
        groups: (N,) stain groups or slides; the tiles of a group are all in one inner fold.
        seed: of the inner folds.

    Returns:
        One of PENALTIES.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(_INNER_FOLDS, shuffle=True, random_state=seed % 2**32)
    splits = [] if len(np.unique(groups)) < _INNER_FOLDS else list(splitter.split(features, labels, groups))
    splits = [split for split in splits if all(len(np.unique(labels[part])) == 2 for part in split)]
    if not splits:
        logger.info("too few groups for inner folds with both classes: C %g", _DEFAULT_PENALTY)
        return _DEFAULT_PENALTY
    means = []
    for penalty in PENALTIES:
        scores = [
            auc(labels[held], fit_head(features[rest], labels[rest], penalty=penalty).logits(features[held]))
            for rest, held in splits
        ]
        means.append(float(np.mean(scores)))
    chosen = PENALTIES[int(np.argmax(means))]
    shown = ", ".join(f"C {penalty:g}: {mean:.4f}" for penalty, mean in zip(PENALTIES, means, strict=True))
    logger.info("mean AUC of %d inner folds by group: %s; chosen: C %g", len(splits), shown, chosen)
    return chosen


def train_head(
    task: FoldTask,
    features: np.ndarray,
    groups: np.ndarray,
    *,
    folder: Path,
    invalidate_record: Callable[[], None],
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Fit the head on the tiles outside the fold, predict those inside, write the files of a fold.

    Args:
        task: the fold; its tiles are not used.
        features: (N, C) float32, in the order of the index.
        groups: (N,) stain groups or slides, for the inner folds that choose the penalty.
        folder: for the files.
        invalidate_record: called before the first file that readers trust is written.

    Returns:
        The names of the files, with whether to fetch them, and the scores for run.json.
    """
    config = task.config
    outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)
    labels = task.index["label"].to_numpy()
    logger.info(
        "fold %d: logistic regression on %d features of %s tiles",
        task.fold,
        features.shape[1],
        f"{len(outside):,}",
    )
    known = np.asarray(features[outside])
    penalty = choose_penalty(known, labels[outside], groups[outside], seed=config.seed)
    head = fit_head(known, labels[outside], penalty=penalty)
    logits = head.logits(np.asarray(features[inside]))  # (n,)
    score = auc(labels[inside], probability(logits))
    files = MemberFiles(task.fold, 0)
    invalidate_record()
    table = pd.DataFrame(
        {"id": task.index["id"].to_numpy()[inside], "label": labels[inside], "logit": logits}
    )
    write_atomic(folder / files.history, json.dumps({"penalty": penalty, "validation_auc": score}) + "\n")
    write_atomic(
        folder / files.out_of_fold, table.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )
    save_head(folder / files.checkpoint, head, task.identity(0))
    logger.info("fold %d: AUC %.4f (%d views)", task.fold, score, config.tta_views)
    return collect_outputs(task, folder=folder)
