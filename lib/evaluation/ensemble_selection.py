"""Selection of the experiments to average, on their out-of-fold predictions.

The rule is fixed before any prediction is seen (Caruana et al. 2004, "Ensemble selection from libraries of
models", forward selection with replacement): begin with nothing, and in each round add the experiment, one
that was added before included, that raises the AUC of the mean most. The first of the best rounds gives
the weights. The gain over the plain mean is measured nested by fold: the tiles of a fold are averaged by the
weights that were selected on the other folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.errors import listed
from lib.evaluation.metrics import MetricError, auc, auc_gain_interval, has_enough_groups
from lib.evaluation.out_of_fold import ResultError, Summary

_ROUNDS_PER_EXPERIMENT, _MOST_ROUNDS = 5, 25
_INTERVAL_SEED = 0


@dataclass(frozen=True)
class Selection:
    """The result of a selection.

    Attributes:
        weights: how often each experiment was selected on all tiles, by name; 0 for one that is left out.
        by_fold: the weights that were selected without a fold, in the order of the folds.
        plain: pooled AUC of the plain mean of all experiments.
        selected: pooled AUC of the nested selection.
        gain: selected minus plain.
        interval: 95 % interval of the gain, resampling groups; NaN where no groups are known.
        tiles: number of tiles.
    """

    weights: Mapping[str, int]
    by_fold: Sequence[Mapping[str, int]]
    plain: float
    selected: float
    gain: float
    interval: tuple[float, float]
    tiles: int

    @property
    def is_better(self) -> bool:
        """Whether the whole interval of the gain is above zero; otherwise the plain mean stays."""
        return bool(self.interval[0] > 0)


def select_experiments(summaries: Sequence[Summary]) -> Selection:
    """Select experiments by forward selection with replacement, and measure the gain nested by fold.

    Args:
        summaries: of two experiments or more, with all of their folds.

    Raises:
        ResultError: there are fewer than two experiments, folds are missing, or data and fold tables differ.
    """
    _check(summaries)
    names = [summary.experiment for summary in summaries]
    table = _common_table(summaries)
    labels, fold = table["label"].to_numpy(), table["fold"].to_numpy()
    probabilities = table[names].to_numpy(dtype=np.float64)  # (N, E)
    nested = np.empty(len(table))
    by_fold = []
    for number in np.unique(fold):
        inside = fold == number
        weights = forward_selection(labels[~inside], probabilities[~inside])
        nested[inside] = probabilities[inside] @ (weights / weights.sum())
        by_fold.append(dict(zip(names, weights.tolist(), strict=True)))
    plain = probabilities.mean(axis=1)
    groups = table["group"].to_numpy() if "group" in table else None
    selected_auc, plain_auc = auc(labels, nested), auc(labels, plain)
    weights = forward_selection(labels, probabilities)
    return Selection(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        by_fold=by_fold,
        plain=plain_auc,
        selected=selected_auc,
        gain=selected_auc - plain_auc,
        interval=_gain_interval(labels, nested, plain, groups),
        tiles=len(table),
    )


def forward_selection(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """How often each experiment is selected.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N, E), a column for each experiment.

    Returns:
        (E,) int64 counts, at least one of them positive. Of experiments that raise the AUC equally the first
        is added; of rounds with the same AUC the first counts.

    Raises:
        MetricError: there is one class only.
    """
    experiments = probabilities.shape[1]
    counts = np.zeros(experiments, dtype=np.int64)
    total = np.zeros(len(labels))
    best, best_counts = -np.inf, counts
    for _ in range(min(_ROUNDS_PER_EXPERIMENT * experiments, _MOST_ROUNDS)):
        scores = [auc(labels, total + probabilities[:, column]) for column in range(experiments)]
        column = int(np.argmax(scores))
        counts[column] += 1
        total += probabilities[:, column]
        if scores[column] > best:
            best, best_counts = scores[column], counts.copy()
    return best_counts // np.gcd.reduce(best_counts)


def _check(summaries: Sequence[Summary]) -> None:
    problems = []
    if len(summaries) < 2:
        problems.append("a selection needs two experiments or more")
    for summary in summaries:
        if not summary.is_whole:
            problems.append(
                f"{summary.experiment} has {len(summary.folds)} of {summary.config.num_folds} folds"
            )
    for attribute, text in (("data_id", "data"), ("fold_table_id", "fold tables")):
        values = {summary.experiment: getattr(summary.records[0], attribute) for summary in summaries}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value[:8]}..." for name, value in values.items())
            problems.append(f"their {text} differ ({shown})")
    if problems:
        remedy = "Run the missing folds, or name experiments with the same data, folds and seed."
        raise ResultError(listed("these experiments cannot be selected from:", problems, remedy=remedy))


def _common_table(summaries: Sequence[Summary]) -> pd.DataFrame:
    """id, label, fold, group where it is known, and the probability of every experiment."""
    first = summaries[0].table
    columns = [name for name in ("id", "label", "fold", "group") if name in first]
    table = first[columns]
    for summary in summaries:
        probabilities = summary.table[["id", "probability"]].rename(
            columns={"probability": summary.experiment}
        )
        table = table.merge(probabilities, on="id", validate="one_to_one")
    return table


def _gain_interval(
    labels: np.ndarray, nested: np.ndarray, plain: np.ndarray, groups: np.ndarray | None
) -> tuple[float, float]:
    if groups is None or not has_enough_groups(groups):
        return float("nan"), float("nan")
    try:
        return auc_gain_interval(labels, nested, plain, groups, seed=_INTERVAL_SEED)
    except MetricError:
        return float("nan"), float("nan")
