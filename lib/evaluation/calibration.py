"""Calibration of probabilities: reliability curve, expected calibration error, Brier score, Platt scaling.

Probabilities are calibrated when, of the tiles with a probability near 0.8, eight in ten are tumour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.errors import KernelError
from lib.evaluation.metrics import probability

BINS = 15  # as Guo et al. 2017
_CLIP = 1e-12  # probabilities are clipped to [_CLIP, 1 - _CLIP], so that every logit is finite


class CalibrationError(KernelError):
    """Calibration is undefined for these labels or scores."""


def logit(probabilities: np.ndarray) -> np.ndarray:
    """(N,) float64 log-odds of probabilities; 0 and 1 are clipped, so that the result is finite."""
    from scipy.special import logit as log_odds

    result: np.ndarray = log_odds(np.clip(np.asarray(probabilities, dtype=np.float64), _CLIP, 1 - _CLIP))
    return result


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> pd.DataFrame:
    """The reliability curve in bins with equally many tiles.

    Bins of equal width would leave most of them nearly empty, because most probabilities are close to 0 or 1.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
        bins: number of bins; fewer where there are fewer tiles.

    Returns:
        A row a bin, from low to high: predicted (mean probability), observed (share of tumour), tiles. Equal
        probabilities may be in two neighbouring bins.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    rows = [(float(probabilities[part].mean()), float(labels[part].mean()), len(part)) for part in parts]
    return pd.DataFrame(rows, columns=["predicted", "observed", "tiles"])


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> float:
    """Mean distance of the reliability curve from the diagonal, weighted by tiles; 0 is perfect.

    Source: Naeini et al. 2015 (AAAI), in bins of equal size as Nguyen and O'Connor 2015 (EMNLP).
    """
    curve = reliability(labels, probabilities, bins=bins)
    gaps = (curve["predicted"] - curve["observed"]).abs()
    return float((gaps * curve["tiles"]).sum() / curve["tiles"].sum())


@dataclass(frozen=True)
class PlattScaling:
    """logit' = slope * logit + intercept (Platt 1999; Cox 1958). Slope 1 and intercept 0 change nothing."""

    slope: float
    intercept: float

    def recalibrate(self, logits: np.ndarray) -> np.ndarray:
        """(N,) probabilities of logits (N,)."""
        return probability(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


def fit_platt_scaling(labels: np.ndarray, logits: np.ndarray) -> PlattScaling:
    """Fit slope and intercept by maximum likelihood, without a penalty and without smoothed labels.

    Raises:
        CalibrationError: the labels have one class only, or a threshold on the logits separates the classes
            perfectly: the likelihood then has no maximum.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(labels)
    if len(np.unique(truth)) != 2:
        raise CalibrationError(f"calibration is undefined: all {len(truth):,} labels are the same")
    positive, negative = logits[truth == 1], logits[truth == 0]
    if negative.max() < positive.min() or positive.max() < negative.min():
        raise CalibrationError("calibration is undefined: the scores separate the classes perfectly")
    scale = float(np.std(logits)) or 1.0
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(np.asarray(logits, dtype=np.float64)[:, None] / scale, truth)
    return PlattScaling(float(model.coef_[0, 0]) / scale, float(model.intercept_[0]))


@dataclass(frozen=True)
class Calibration:
    """Calibration of out-of-fold probabilities, before and after Platt scaling fitted on the other folds.

    Attributes:
        scalings: one of each fold, fitted on all other folds.
        recalibrated: (N,) probabilities after the scaling of their fold.
        error: expected calibration error, before and after.
        brier: mean squared difference of probability and label (Brier 1950), before and after.
    """

    scalings: list[PlattScaling]
    recalibrated: np.ndarray
    error: tuple[float, float]
    brier: tuple[float, float]


def calibrate_out_of_fold(labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray) -> Calibration:
    """Fit Platt scaling for every fold on the other folds: no fold is scaled by its own labels.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1], out of fold.
        folds: (N,) at least two different folds.

    Raises:
        CalibrationError: there is one fold or one class only, or the scores separate the classes perfectly.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise CalibrationError("calibration is undefined: one fold alone has no other folds to fit it on")
    logits = logit(probabilities)
    scalings, recalibrated = [], np.empty(len(labels))
    for number in numbers:
        inside = folds == number
        scalings.append(fit_platt_scaling(labels[~inside], logits[~inside]))
        recalibrated[inside] = scalings[-1].recalibrate(logits[inside])

    def before_and_after(score: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float]:
        return score(labels, probabilities), score(labels, recalibrated)

    error = before_and_after(expected_calibration_error)
    return Calibration(scalings, recalibrated, error, before_and_after(_brier))


def calibration_numbers(calibration: Calibration | None) -> dict[str, Any] | None:
    """A calibration as plain values for JSON; each score before and after Platt scaling."""
    if calibration is None:
        return None
    return {
        "expected_calibration_error": list(calibration.error),
        "brier": list(calibration.brier),
        "platt_scaling": [
            {"slope": scaling.slope, "intercept": scaling.intercept} for scaling in calibration.scalings
        ],
    }


def _brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean((probabilities - labels) ** 2))
