"""Conclusion: each sentence follows from the numbers, changes with them, and is absent without them."""

import copy
from typing import Any

import pytest

from lib.report.conclusion import conclude, limitations

FOLD = {
    "tiles": 500,
    "positives": 200,
    "low": 0.9,
    "high": 0.97,
    "f1_at_half": 0.8,
    "threshold": 0.4,
    "f1_at_threshold": 0.8,
}
EXPERIMENT: dict[str, Any] = {
    "backbone": "resnet34",
    "split": "stain",
    "seed": 2018,
    "members": 2,
    "train_mode": "full",
    "transductive": "",
    "folds_expected": 2,
    "tiles": 1000,
    "positives": 400,
    "auc": 0.95,
    "interval_95": [0.94, 0.96],
    "groups": 60,
    "grouping": "stain groups",
    "folds": [FOLD | {"fold": 0, "auc": 0.93}, FOLD | {"fold": 1, "auc": 0.97}],
    "f1_at_half": 0.85,
    "f1_at_thresholds": 0.86,
    "calibration": {
        "expected_calibration_error": [0.05, 0.02],
        "platt_scaling": [{"slope": 1.2}, {"slope": 1.1}],
    },
    "explained": {"method": "Grad-CAM", "tiles": 48, "mean": 0.25},
}
NUMBERS: dict[str, Any] = {
    "campaign": "c",
    "rehearsal": [],
    "place": "kaggle",
    "labelled": 220_025,
    "test_tiles": 57_458,
    "is_full": True,
    "experiments": {"one": EXPERIMENT},
    "failed": {},
    "experiment_average": None,
    "leaderboard": None,
    "other_campaigns": [],
    "holdout": None,
    "searches": 1,
    "has_inference": True,
    "problems": [],
}
SCORE = {"scored_by": "Kaggle", "public": 0.9612, "private": 0.9587}


def numbers(
    *, one: dict[str, Any] | None = None, other: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """NUMBERS with changes to experiment `one`, and perhaps a second experiment `other`."""
    changed = copy.deepcopy(NUMBERS)
    changed["experiments"]["one"].update(one or {})
    if other is not None:
        changed["experiments"]["other"] = copy.deepcopy(EXPERIMENT) | other
    return changed | more


def conclusions(**changes: Any) -> str:
    return "\n".join(conclude(numbers(**changes)))


def not_known(**changes: Any) -> str:
    return "\n".join(limitations(numbers(**changes)))


def scalings(*slopes: float, error: tuple[float, float] = (0.05, 0.02)) -> dict[str, Any]:
    return {
        "calibration": {
            "expected_calibration_error": list(error),
            "platt_scaling": [{"slope": slope} for slope in slopes],
        }
    }


EXPLAINED = {"method": "attention rollout", "tiles": 1, "mean": 0.05}


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        (
            {},
            "AUC of 0.9500 on 1,000 tiles (95 % interval 0.9400 to 0.9600, bootstrap over 60 stain groups)",
            "Of 2",
        ),
        (
            {"one": {"interval_95": [None, None]}},
            "no interval: 60 stain groups, and 10 are needed",
            "95 %",
        ),
        ({"one": {"groups": 1, "grouping": "slides"}}, "bootstrap over 1 slide)", "slides"),
        ({"one": {"folds_expected": 5}}, "on 1,000 tiles of 2 of 5 folds", "of 2 folds"),
        (
            {"other": {"auc": 0.96, "interval_95": [0.955, 0.965]}},
            "Of 2 experiments, other has the highest",
            "one has",
        ),
        (
            {"other": {"auc": 0.9}},
            "It is 0.0500 above the next experiment, other; their intervals overlap",
            "do not overlap",
        ),
        (
            {"other": {"auc": 0.9, "interval_95": [0.89, 0.91]}},
            "other; their intervals do not overlap",
            "intervals overlap,",
        ),
        ({"other": {"auc": 0.95001}}, "The AUC of one is equal to four decimals", "above the next"),
        (
            {"other": {"auc": 0.9, "split": "stratified", "backbone": "x"}},
            "kinds of folds, so they cannot be ranked",
            "overlap",
        ),
        ({"other": {"auc": 0.9, "tiles": 10}}, "on different numbers of tiles", "overlap"),
        ({}, "range from 0.9300 (fold 0) to 0.9700 (fold 1), a difference of 0.0400", "experiments"),
        (
            {"one": {"folds": [FOLD | {"fold": 3, "auc": 0.9}, FOLD | {"fold": 4, "auc": None}]}},
            "one has",
            "range from",
        ),
        (
            {"experiment_average": {"auc": 0.97, "tiles": 900}},
            "has AUC 0.9700 on 900 tiles, 0.0200 above the best",
            "below",
        ),
        (
            {"experiment_average": {"auc": 0.94, "tiles": 900}},
            "0.0100 below the best",
            "above the best",
        ),
        (
            {"experiment_average": {"auc": 0.95, "tiles": 900}},
            "equal to four decimals to the best",
            "above the best",
        ),
        ({}, "are too close to 0.5", "too close to 0 and 1"),
        ({"one": scalings(0.9, 0.8)}, "are too close to 0 and 1", "too close to 0.5"),
        ({"one": scalings(0.9, 1.1)}, "have no consistent bias", "too close"),
        ({}, "lowers the error to 0.0200", "raises"),
        ({"one": scalings(1.1, error=(0.02, 0.03))}, "raises the error to 0.0300", "lowers"),
        ({"one": scalings(1.1, error=(0.02, 0.02))}, "does not change the error", "raises"),
        ({"one": {"calibration": None}}, "one has", "calibration"),
        ({}, "F1 is 0.8500 at threshold 0.5 and 0.8600 (higher) at thresholds", "(lower)"),
        ({"one": {"f1_at_thresholds": 0.8}}, "and 0.8000 (lower) at thresholds", "(higher)"),
        ({"one": {"f1_at_thresholds": 0.85}}, "and the same at thresholds", "higher"),
        ({"one": {"f1_at_thresholds": None}}, "one has", "F1"),
        ({}, "25.0 % of the attribution (Grad-CAM, 48 tumour tiles) is", "rollout"),
        (
            {"one": {"explained": EXPLAINED}},
            "5.0 % of the attribution (attention rollout, 1 tumour tile) is",
            "Grad-CAM",
        ),
        ({"one": {"explained": None}}, "one has", "attribution"),
        (
            {"leaderboard": SCORE},
            "The submission scored 0.9612 public and 0.9587 private on Kaggle's leaderboard",
            "rehears",
        ),
        (
            {"leaderboard": SCORE | {"scored_by": "the emulated Kaggle"}},
            "scored by the emulated Kaggle: a rehearsal",
            "on Kaggle's leaderboard",
        ),
        ({"leaderboard": SCORE | {"public": None}}, "scored 0.9587 private", "public"),
        ({"leaderboard": SCORE | {"public": None, "private": None}}, "one has", "submission scored"),
        (
            {"one": {"split": "stratified"}},
            "are stratified: tiles of one slide are in training and validation folds",
            "Transductive",
        ),
        ({"one": {"transductive": "it saw the tiles"}}, "This score is transductive.", "stratified"),
        (
            {"other": {"transductive": "it saw"}},
            "Transductive, so not comparable with scores that are not: other",
            "stratified",
        ),
        (
            {"other": {"split": "stratified", "auc": 0.96}},
            "gave an AUC 0.0100 higher than stain folds (one, 0.9500)",
            "AUC 0.0100 lower",
        ),
        (
            {"other": {"split": "stratified", "auc": 0.94}},
            "(other, 0.9400) gave an AUC 0.0100 lower than stain folds",
            "AUC 0.0100 higher",
        ),
        (
            {"other": {"split": "stratified"}},
            "gave the same AUC to four decimals as stain folds",
            "lower than",
        ),
        ({"other": {"auc": 0.9}}, "The best experiment was chosen by the score", "one has a"),
    ],
)
def test_sentences_follow_the_numbers(changes: dict[str, Any], expected: str, absent: str) -> None:
    sentences = conclusions(**changes)
    assert expected in sentences
    assert absent not in sentences


def test_a_share_of_the_attribution_is_compared_with_a_uniform_map() -> None:
    expected = "is in the centre that decides the label, 2.25 times the 11.1 % of a uniform map"
    assert expected in conclusions() and "0.45 times" in conclusions(one={"explained": EXPLAINED})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"leaderboard": None}, "no submission of this campaign has been scored"),
        (
            {"leaderboard": SCORE | {"scored_by": "the emulated Kaggle"}},
            "The score on Kaggle is not known: the score shown is a rehearsal",
        ),
        (
            {"leaderboard": SCORE | {"public": None, "private": None}},
            "Kaggle accepted the submission without a score",
        ),
        ({"leaderboard": SCORE, "place": "rehearsal"}, "made in a rehearsal"),
        ({"is_full": False, "labelled": 600, "test_tiles": 150}, "600 labelled and 150 test tiles, a subset"),
        ({"has_inference": False}, "The test tiles have no predictions"),
        ({"one": {"folds_expected": 3}}, "one: 1 fold of 3 is missing"),
        ({"one": {"split": "stratified"}}, "not known how optimistic its folds are"),
        ({}, "stain groups replace them"),
        ({"one": {"groups": 12}}, "only 12 stain groups are resampled"),
        ({"one": {"interval_95": [None, None], "groups": 0}}, "the uncertainty of its AUC is not known"),
        ({"one": {"calibration": None}}, "its calibration is not known: Platt scaling cannot be fitted"),
        ({"one": {"folds": EXPERIMENT["folds"][:1]}}, "need at least two folds"),
        ({"one": {"members": 1}}, "other seeds may give other scores"),
        ({"one": {"explained": None}}, "not known how much of its attribution"),
        ({"searches": 0}, "no search was made"),
        ({"rehearsal": ["Its tiles were drawn."]}, "Its tiles were drawn."),
        ({"problems": ["x"]}, "1 output could not be used and is missing"),
        ({"problems": ["x", "y"]}, "2 outputs could not be used and are missing"),
        (
            {"failed": {"two": "no fold of it is among the inputs"}},
            "The score of two is not known: no fold of it is among the inputs.",
        ),
        ({"experiments": {}}, "no fold of any experiment could be scored"),
    ],
)
def test_limitations_follow_the_numbers(changes: dict[str, Any], expected: str) -> None:
    assert expected in not_known(**changes)


def test_nothing_that_is_known_is_a_limitation() -> None:
    sentences = not_known(leaderboard=SCORE, one={"split": "slide", "grouping": "slides"})
    assert sentences.splitlines() == [
        "one: other folds may give other scores: the folds were drawn once, with seed 2018.",
        "Tiles of other laboratories and scanners were not tested: all tiles come from one data set.",
    ]


def test_without_results_there_is_no_conclusion() -> None:
    assert conclude(numbers(experiments={})) == []


@pytest.mark.parametrize(
    ("interval", "contains_a_half"),
    [([0.42, 0.71], True), ([0.5, 0.6], True), ([0.51, 0.9], False), ([None, None], False)],
)
def test_an_interval_that_contains_a_half_is_no_better_than_a_random_guess(
    interval: list[float | None], contains_a_half: bool
) -> None:
    sentences = conclusions(one={"auc": 0.57, "interval_95": interval})
    assert ("one is not shown to be better than a random guess" in sentences) is contains_a_half


def test_a_hold_out_is_told_with_its_interval_and_what_it_must_not_be_compared_with() -> None:
    holdout = {
        "name": "mlebench",
        "tiles": 45_561,
        "auc": 0.99,
        "interval_95": [0.985, 0.994],
        "medal": "gold",
        "medal_lines": {"gold": 0.9835},
    }
    text = conclusions(holdout=holdout)
    assert "AUC 0.9900 on 45,561 tiles (95 % interval 0.9850 to 0.9940), MLE-bench's grade gold" in text
    assert "never with a leaderboard" in text
    own = conclusions(holdout=holdout | {"name": "mine.csv", "medal": "", "interval_95": [None, None]})
    assert (
        "hold-out mine.csv" in own
        and "MLE-bench" not in own
        and "interval" not in own.split("mine.csv")[1].split(".")[0]
    )
