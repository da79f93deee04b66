"""Whether a probability of 0.8 is right eight times in ten: reliability, its expected error, and the logistic that mends it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.errors import KernelError
from lib.evaluation.metrics import probability

BINS = 15  # as Guo et al. 2017
_CERTAIN = 1e-12  # probabilities closer to 0 or 1 have no logit worth the name


class CalibrationError(KernelError):
    """Calibration is undefined for these labels or scores."""


def logit(probabilities: np.ndarray) -> np.ndarray:
    """(N,) float64 log-odds of probabilities; 0 and 1 count as the nearest that have any."""
    from scipy.special import logit as inverse

    result: np.ndarray = inverse(np.clip(np.asarray(probabilities, dtype=np.float64), _CERTAIN, 1 - _CERTAIN))
    return result


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> pd.DataFrame:
    """The reliability curve, in bins with equally many tiles: few of them lie where an even grid would put most bins.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
        bins: of them, or as many as there are tiles.

    Returns:
        A row a bin, from low to high: predicted (mean probability), observed (share of tumour), tiles. Equal probabilities may
        lie in two neighbouring bins.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    rows = [(float(probabilities[part].mean()), float(labels[part].mean()), len(part)) for part in parts]
    return pd.DataFrame(rows, columns=["predicted", "observed", "tiles"])


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> float:
    """The mean distance of the reliability curve from the diagonal, each bin by its tiles.

    Source: Naeini et al. 2015 (AAAI), in bins of equal size as Nguyen and O'Connor 2015 (EMNLP); 0 at best.
    """
    curve = reliability(labels, probabilities, bins=bins)
    gaps = (curve["predicted"] - curve["observed"]).abs()
    return float((gaps * curve["tiles"]).sum() / curve["tiles"].sum())


@dataclass(frozen=True)
class PlattScaling:
    """logit' = slope * logit + intercept (Platt 1999; Cox 1958). Slope 1 and intercept 0: nothing to mend."""

    slope: float
    intercept: float

    def recalibrate(self, logits: np.ndarray) -> np.ndarray:
        """(N,) probabilities of logits (N,)."""
        return probability(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


def fit_line(labels: np.ndarray, logits: np.ndarray) -> PlattScaling:
    """The line with the highest likelihood; no penalty, no smoothed labels.

    Raises:
        CalibrationError: one class only, or the logits part the classes without a mistake: no line is the best one then.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(labels)
    if len(np.unique(truth)) != 2:
        raise CalibrationError(f"calibration is undefined: all {len(truth):,} labels are the same")
    inside, outside = logits[truth == 1], logits[truth == 0]
    if outside.max() < inside.min() or inside.max() < outside.min():
        raise CalibrationError("calibration is undefined: the scores part the classes without a mistake")
    scale = float(np.std(logits)) or 1.0
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(np.asarray(logits, dtype=np.float64)[:, None] / scale, truth)
    return PlattScaling(float(model.coef_[0, 0]) / scale, float(model.intercept_[0]))


@dataclass(frozen=True)
class Calibration:
    """How well out-of-fold probabilities are calibrated, before and after a line that other folds drew.

    Attributes:
        lines: of each fold, fitted on all the others.
        mended: (N,) probabilities, each by the line of its fold.
        error: expected calibration error, before and after.
        brier: mean squared distance of probability and label (Brier 1950), before and after.
    """

    lines: list[PlattScaling]
    mended: np.ndarray
    error: tuple[float, float]
    brier: tuple[float, float]


def calibrate_out_of_fold(labels: np.ndarray, probabilities: np.ndarray, folds: np.ndarray) -> Calibration:
    """Fit slope and intercept for every fold on the others, as thresholds are: what is mended was not fitted on.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1], out of fold.
        folds: (N,) at least two.

    Raises:
        CalibrationError: one fold, one class, or classes that the scores part without a mistake.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise CalibrationError("calibration is undefined: of one fold alone there are no others to fit it on")
    logits = logit(probabilities)
    lines, mended = [], np.empty(len(labels))
    for number in numbers:
        inside = folds == number
        lines.append(fit_line(labels[~inside], logits[~inside]))
        mended[inside] = lines[-1].recalibrate(logits[inside])

    def both(score: "object") -> tuple[float, float]:
        return float(score(labels, probabilities)), float(score(labels, mended))  # type: ignore[operator]

    return Calibration(lines, mended, both(expected_calibration_error), both(_brier))


def _brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.mean((probabilities - labels) ** 2))
