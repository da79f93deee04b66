"""Calibration against scikit-learn and by hand; Platt scaling is fitted on the other folds only."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from lib.evaluation.calibration import (
    CalibrationError,
    calibrate_out_of_fold,
    expected_calibration_error,
    fit_platt_scaling,
    logit,
    reliability,
)
from lib.evaluation.metrics import probability


def drawn(
    count: int = 4000, *, slope: float = 1.0, intercept: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that are calibrated after applying slope and intercept."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 2, count)
    labels = (generator.random(count) < probability(true)).astype(int)
    return labels, (true - intercept) / slope


def test_the_reliability_curve_is_that_of_scikit_learn_for_bins_of_equal_size() -> None:
    labels, logits = drawn(3000)
    curve = reliability(labels, probability(logits), bins=10)
    observed, predicted = calibration_curve(labels, probability(logits), n_bins=10, strategy="quantile")
    assert curve["tiles"].tolist() == [300] * 10
    assert np.allclose(curve["observed"], observed, atol=0.004) and np.allclose(
        curve["predicted"], predicted, atol=0.002
    )


def test_the_expected_error_by_hand() -> None:
    labels = np.array([0, 1, 1, 1])
    probabilities = np.array([0.1, 0.3, 0.6, 0.8])  # two bins: 0.2 against 0.5, 0.7 against 1
    assert expected_calibration_error(labels, probabilities, bins=2) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([0, 1]), np.array([0.0, 1.0]), bins=2) == 0
    assert expected_calibration_error(labels, probabilities, bins=99) == pytest.approx(
        (0.1 + 0.7 + 0.4 + 0.2) / 4
    )


def test_the_expected_error_is_that_of_pandas_quantiles() -> None:
    labels, logits = drawn(3000, slope=0.6)
    table = pd.DataFrame({"label": labels, "probability": probability(logits)})
    bins = table.groupby(pd.qcut(table["probability"], 15), observed=True).mean()  # of 200 tiles each
    wanted = (bins["label"] - bins["probability"]).abs().mean()
    assert expected_calibration_error(labels, probability(logits)) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(slope=st.floats(0.3, 3), intercept=st.floats(-2, 2), seed=st.integers(0, 99))
def test_platt_scaling_has_the_highest_likelihood(slope: float, intercept: float, seed: int) -> None:
    labels, logits = drawn(600, slope=slope, intercept=intercept, seed=seed)
    found = fit_platt_scaling(labels, logits)

    def unlikely(line: np.ndarray) -> float:
        z = line[0] * logits + line[1]
        return float(np.mean(np.logaddexp(0, z) - labels * z))

    best = minimize(unlikely, [1.0, 0.0], tol=1e-12)
    assert unlikely(np.array([found.slope, found.intercept])) <= best.fun + 1e-8


def test_a_known_distortion_is_estimated_and_undone() -> None:
    labels, logits = drawn(40_000, slope=0.5, intercept=-0.7)
    folds = np.arange(len(labels)) % 5
    found = calibrate_out_of_fold(labels, probability(logits), folds)
    assert len(found.scalings) == 5
    assert all(
        line.slope == pytest.approx(0.5, abs=0.03) and line.intercept == pytest.approx(-0.7, abs=0.06)
        for line in found.scalings
    )
    before, after = found.error
    assert before > 0.05 and after < 0.02
    assert found.brier[0] == pytest.approx(brier_score_loss(labels, probability(logits)))
    assert (
        found.brier[1] == pytest.approx(brier_score_loss(labels, found.recalibrated))
        and found.brier[1] < found.brier[0]
    )


def test_a_weighted_loss_shifts_the_intercept_by_the_logarithm_of_the_weight() -> None:
    """The effect of pos_weight on a calibrated score, which Platt scaling undoes."""
    labels, logits = drawn(60_000)
    found = fit_platt_scaling(labels, logits + np.log(3.0))
    assert found.intercept == pytest.approx(-np.log(3.0), abs=0.05) and found.slope == pytest.approx(
        1.0, abs=0.03
    )


def test_a_fold_is_scaled_by_the_other_folds_alone() -> None:
    labels, logits = drawn(600)
    folds = np.arange(600) % 3
    turned = np.where(folds == 1, 1 - labels, labels)
    found, other = (calibrate_out_of_fold(truth, probability(logits), folds) for truth in (labels, turned))
    assert np.array_equal(found.recalibrated[folds == 1], other.recalibrated[folds == 1])
    assert not np.array_equal(found.recalibrated[folds == 0], other.recalibrated[folds == 0])


def test_undefined_calibration_is_an_error() -> None:
    labels, logits = drawn(100)
    with pytest.raises(CalibrationError, match="one fold alone"):
        calibrate_out_of_fold(labels, probability(logits), np.zeros(100))
    with pytest.raises(CalibrationError, match="all 100 labels"):
        fit_platt_scaling(np.ones(100), logits)
    with pytest.raises(CalibrationError, match="perfectly"):
        fit_platt_scaling((logits > 0).astype(int), logits)
    assert np.isfinite(logit(np.array([0.0, 1.0, 0.5]))).all()
