"""Grade of a hold-out: AUC with its interval, and the medal lines of MLE-bench's grader."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.data.holdout import MLE_BENCH
from lib.evaluation.metrics import auc, auc_interval, has_enough_groups

# Of the competition's private leaderboard of 2019, as MLE-bench's grader uses them: the 12th, the best 5 %,
# the best 10 % and the median of 1,149 teams.
MEDAL_LINES = {"gold": 0.9835, "silver": 0.9798, "bronze": 0.9738, "median": 0.9477}
_INTERVAL_SEED = 0
_RANDOM = "A random split: neighbouring tiles of one slide are on both sides, so it is optimistic."
_OF_A_FILE = (
    "How the file was made is not known: it is optimistic where the folds hold other tiles of its slides."
)
_NOT_COMPARABLE = (
    "Compare it only with scores on the same hold-out, never with a leaderboard or with grouped folds."
)


def grade_holdout(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, *, name: str, grouping: str
) -> dict[str, Any]:
    """Score the hold-out once.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1], or mean ranks.
        groups: (N,) the group of each tile, for the interval.
        name: of the hold-out: mlebench, or a file of ids.
        grouping: stain groups or slides.

    Returns:
        Plain values: name, tiles, positives, auc, interval_95, groups, grouping; for mlebench also medal
        (gold, silver, bronze, above median, below median) and medal_lines.

    Raises:
        MetricError: there is one class only, or a probability is not finite.
    """
    score = auc(labels, probabilities)
    interval: list[float | None] = [None, None]
    if has_enough_groups(groups):
        interval = [*auc_interval(labels, probabilities, groups, seed=_INTERVAL_SEED)]
    grade: dict[str, Any] = {
        "name": name,
        "tiles": len(labels),
        "positives": int(labels.sum()),
        "auc": score,
        "interval_95": interval,
        "groups": len(np.unique(groups)),
        "grouping": grouping,
    }
    if name == MLE_BENCH:
        grade |= {"medal": medal_of(score), "medal_lines": dict(MEDAL_LINES)}
    return grade


def caution_of(name: str) -> str:
    """What must be known to read the score of a hold-out: mlebench, or a file of ids."""
    return f"{_RANDOM if name == MLE_BENCH else _OF_A_FILE} {_NOT_COMPARABLE}"


def medal_of(score: float) -> str:
    """gold, silver, bronze, above median or below median; a score on a line has the medal."""
    for medal in ("gold", "silver", "bronze"):
        if score >= MEDAL_LINES[medal]:
            return medal
    return "above median" if score > MEDAL_LINES["median"] else "below median"


def describe_grade(grade: Mapping[str, Any]) -> str:
    """The grade in one line, with the medal lines where it has any."""
    low, high = grade["interval_95"]
    interval = ""
    if low is not None:
        interval = (
            f" (95 % interval {low:.4f} to {high:.4f}, resampling {grade['groups']} {grade['grouping']})"
        )
    medal = ""
    if "medal" in grade:
        lines = ", ".join(f"{name} {line:.4f}" for name, line in grade["medal_lines"].items())
        medal = f"; MLE-bench's grade: {grade['medal']} ({lines})"
    return (
        f"hold-out {grade['name']}: AUC {grade['auc']:.4f} on n = {grade['tiles']:,} tiles{interval}{medal}"
    )
