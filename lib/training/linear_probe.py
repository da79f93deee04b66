"""A fold of a frozen encoder: its head, fitted on features that an earlier kernel left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.evaluation.metrics import auc, probability
from lib.files import write_atomic
from lib.model.linear_head import fit_head, save_head
from lib.training.fold import FoldTask, MemberFiles, collect


def train_head(
    task: FoldTask,
    features: np.ndarray,
    groups: np.ndarray,
    *,
    folder: Path,
    say: Callable[[str], None],
    replace: Callable[[], None],
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Fit the head on the tiles outside the fold, predict those inside, leave the files that a fine-tuned fold leaves.

    Args:
        task: the fold; its tiles are not looked at.
        features: (N, C) float32, in the order of the index.
        groups: (N,) stain groups or slides, for the inner folds that choose the penalty.
        folder: takes the files.
        say: takes a line of progress.
        replace: called before the first file that readers trust is written.

    Returns:
        The names of the files, with whether to fetch them, and the scores for run.json.
    """
    config = task.config
    outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)
    labels = task.index["label"].to_numpy()
    say(f"fold {task.fold}: a head on {features.shape[1]} features of {len(outside):,} tiles")
    head, penalty = fit_head(
        np.asarray(features[outside]), labels[outside], groups[outside], seed=config.seed
    )
    logits = head.logits(np.asarray(features[inside]))
    score = auc(labels[inside], probability(logits))
    files = MemberFiles(task.fold, 0)
    replace()
    table = pd.DataFrame(
        {"id": task.index["id"].to_numpy()[inside], "label": labels[inside], "logit": logits}
    )
    write_atomic(folder / files.history, json.dumps({"penalty": penalty, "validation_auc": score}) + "\n")
    write_atomic(
        folder / files.out_of_fold, table.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )
    save_head(folder / files.checkpoint, head, task.identity(0))
    say(f"fold {task.fold}: AUC {score:.4f} ({config.tta_views} views)")
    return collect(task, folder=folder)
