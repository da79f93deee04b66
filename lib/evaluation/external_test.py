"""External test: scores of predictions on labelled tiles that have nothing to do with the training."""

from typing import Any

import numpy as np

from lib.evaluation.calibration import expected_calibration_error
from lib.evaluation.metrics import MIN_GROUPS, MetricError, auc, auc_interval, confusion, f1

_INTERVAL_SEED = 0


def score_external_test(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    calibrated: np.ndarray | None,
    groups: np.ndarray | None,
    grouping: str = "",
) -> dict[str, Any]:
    """Score probabilities against labels.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
        calibrated: (N,) after Platt scaling; None without one.
        groups: (N,) slide or patient of each tile; None when they are not known. Tiles are resampled then,
            as if they were independent.
        grouping: the name of the groups.

    Returns:
        Plain values: tiles, positives, auc, interval_95 (None where undefined), interval (sentence on how it
        was made), f1_at_half, confusion_at_half, expected_calibration_error and brier (before, and after
        Platt scaling or None).

    Raises:
        MetricError: there is one class only.
    """
    score = auc(labels, probabilities)
    resampled = np.arange(len(labels)) if groups is None else groups
    number = len(np.unique(resampled))
    interval: list[float] | None = None
    if groups is None:
        how = "resampling single tiles: too narrow when several tiles come from one slide; add a column slide"
    elif number < MIN_GROUPS:
        how = f"no interval: {number} groups ({grouping}), at least {MIN_GROUPS} are needed"
    else:
        how = f"resampling {number:,} groups ({grouping})"
    if groups is None or number >= MIN_GROUPS:
        try:
            interval = list(auc_interval(labels, probabilities, resampled, seed=_INTERVAL_SEED))
        except MetricError as error:
            how = f"no interval: {error}"
    positive = probabilities >= 0.5
    after = None if calibrated is None else calibrated
    return {
        "tiles": len(labels),
        "positives": int(labels.sum()),
        "auc": score,
        "interval_95": interval,
        "interval": how,
        "f1_at_half": f1(labels, positive),
        "confusion_at_half": confusion(labels, positive),
        "expected_calibration_error": [
            expected_calibration_error(labels, probabilities),
            None if after is None else expected_calibration_error(labels, after),
        ],
        "brier": [_brier(labels, probabilities), None if after is None else _brier(labels, after)],
    }


def _brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean((probabilities - labels) ** 2))


def describe_external_test(scores: dict[str, Any]) -> list[str]:
    """The scores as lines of text."""
    ends = scores["interval_95"]
    interval = f"95 % interval {ends[0]:.4f} to {ends[1]:.4f}, " if ends else ""
    (before, after), (brier, brier_after) = scores["expected_calibration_error"], scores["brier"]
    platt = "" if after is None else f"; after Platt scaling {after:.4f} and {brier_after:.4f}"
    return [
        f"external test: AUC {scores['auc']:.4f} on n = {scores['tiles']:,} tiles, "
        f"{scores['positives']:,} of them tumour ({interval}{scores['interval']})",
        f"F1 {scores['f1_at_half']:.4f} at 0.5; confusion [[TN, FP], [FN, TP]] {scores['confusion_at_half']}",
        f"expected calibration error {before:.4f}, Brier {brier:.4f}{platt}",
    ]
