"""Pseudo-labels: test tiles that a fold trains on, labelled by members that saw no tile of that fold."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.data.prepared import TEST_TILES, Prepared
from lib.evaluation.metrics import probability
from lib.inference.ensemble import EnsembleError, FoldOutput
from lib.inference.members import members_of, predict_members
from lib.runtime.run_record import read_run_record

logger = logging.getLogger(__name__)


def find_teacher(
    folders: list[Path], *, experiment: str, fold: int, data_id: str, fold_table_id: str
) -> FoldOutput:
    """The output that labels tiles for this fold: the same fold of the teacher experiment.

    Raises:
        EnsembleError: it is not among the inputs, or was trained on other data or folds.
        RunRecordError: a file does not match its run.json.
    """
    mounted = []
    for folder in folders:
        record = read_run_record(folder, kind="train")
        mounted.append(f"fold {record.fold} of {record.experiment}")
        if (record.experiment, record.fold) != (experiment, fold):
            continue
        if (record.data_id, record.fold_table_id) != (data_id, fold_table_id):
            raise EnsembleError(
                f"fold {fold} of {experiment} was trained on other data or other folds: run it again"
            )
        return FoldOutput(folder, record)
    raise EnsembleError(
        f"fold {fold} of {experiment}, which pseudo_labels names, is not among the inputs "
        f"(mounted: {', '.join(mounted) or 'no fold'}): run it to its end and attach its output"
    )


def label_test_tiles(
    teacher: FoldOutput,
    data: Prepared,
    *,
    share: float,
    devices: Sequence[torch.device],
    stage: Callable[..., AbstractContextManager[None]],
) -> pd.DataFrame:
    """Label the test tiles that the members of a fold are most confident about.

    Args:
        teacher: the fold.
        data: the prepared data.
        share: of the test tiles that are labelled, in the class proportion of the labelled tiles.
        devices: to predict on.
        stage: measures the time of a part (lib.runtime.session.Session.stage).

    Returns:
        row (into the test tiles), id and label, in the order of rows.
    """
    tiles = data.read_tiles(TEST_TILES)
    logits = predict_members(list(members_of(teacher)), tiles, devices=devices, stage=stage)
    probabilities = probability(np.stack(list(logits.values()), axis=1)).mean(axis=1)  # (N,)
    prevalence = float(data.train["label"].mean())
    chosen = choose_confident(probabilities, share=share, prevalence=prevalence)
    normal, tumour = (probabilities[chosen["row"][chosen["label"] == label]] for label in (0, 1))
    logger.info(
        "%s labels %s of %s test tiles: %s normal (probability at most %.3f), %s tumour (at least %.3f)",
        teacher.name,
        f"{len(chosen):,}",
        f"{len(tiles):,}",
        f"{len(normal):,}",
        normal.max(initial=0),
        f"{len(tumour):,}",
        tumour.min(initial=1),
    )
    return chosen.assign(id=data.test["id"].to_numpy()[chosen["row"]])


def choose_confident(probabilities: np.ndarray, *, share: float, prevalence: float) -> pd.DataFrame:
    """The tiles with the most confident predictions, with the class proportions of the labelled tiles.

    Args:
        probabilities: (N,) of tumour.
        share: of the tiles that are chosen, at most 1.
        prevalence: share of tumour among the chosen tiles.

    Returns:
        row (into `probabilities`) and label, 0 or 1, in the order of rows; no row twice.
    """
    number = round(share * len(probabilities))
    positives = round(number * prevalence)
    order = np.argsort(probabilities, kind="stable")
    chosen = pd.concat(
        [
            pd.DataFrame({"row": order[: number - positives], "label": 0}),
            pd.DataFrame({"row": order[len(order) - positives :], "label": 1}),
        ]
    )
    return chosen.sort_values("row", ignore_index=True)
