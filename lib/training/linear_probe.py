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


def train_head(
    task: FoldTask,
    features: np.ndarray,
    groups: np.ndarray,
    *,
    folder: Path,
    invalidate_record: Callable[[], None],
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Fit the head on the tiles outside the fold, predict those inside, write the files that a trained fold has.

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
    head, penalty = fit_head(
        np.asarray(features[outside]), labels[outside], groups[outside], seed=config.seed
    )
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
