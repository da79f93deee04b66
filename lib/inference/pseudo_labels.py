"""Pseudo-labels: test tiles a fold may learn from, labelled by members that saw no tile of that fold."""

from pathlib import Path

import numpy as np
import pandas as pd

from lib.inference.ensemble import EnsembleError, FoldOutput
from lib.runtime.run_record import read_run_record


def find_teacher(
    folders: list[Path], *, experiment: str, fold: int, data_id: str, fold_table_id: str
) -> FoldOutput:
    """The output of the one fold that may label tiles for this fold: the same fold of the experiment that was named.

    Raises:
        EnsembleError: it is not among the inputs, or was trained on other data or folds.
        RunRecordError: a file is not what run.json says.
    """
    seen = []
    for folder in folders:
        record = read_run_record(folder, kind="train")
        seen.append(f"fold {record.fold} of {record.experiment}")
        if (record.experiment, record.fold) != (experiment, fold):
            continue
        if (record.data_id, record.fold_table_id) != (data_id, fold_table_id):
            raise EnsembleError(
                f"fold {fold} of {experiment} was trained on other data or other folds: run it again"
            )
        return FoldOutput(folder, record)
    raise EnsembleError(
        f"fold {fold} of {experiment}, which pseudo_labels asks for, is not among the inputs "
        f"(mounted: {', '.join(seen) or 'no fold'}): run it to its end and attach its output"
    )


def choose_confident(probabilities: np.ndarray, *, share: float, prevalence: float) -> pd.DataFrame:
    """The tiles whose label is the safest guess, both classes in the proportion of the labelled tiles.

    Args:
        probabilities: (N,) of tumour.
        share: of the tiles that are taken, at most all of them.
        prevalence: share of tumour among those.

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
