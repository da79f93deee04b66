"""The conclusion says what the numbers say: each sentence turns with them, and goes where they are not there."""

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
    "calibration": {"expected_calibration_error": [0.05, 0.02], "platt_scaling": [{"slope": 1.2}, {"slope": 1.1}]},
    "explained": {"method": "grad-cam", "tiles": 48, "mean": 0.25},
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
    "beside": [],
    "searches": 1,
    "has_inference": True,
    "problems": [],
}
SCORE = {"scored_by": "Kaggle", "public": 0.9612, "private": 0.9587}


def numbers(
    *, one: dict[str, Any] | None = None, other: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """NUMBERS with changes, and perhaps with a second experiment that differs from the first as said."""
    found = copy.deepcopy(NUMBERS)
    found["experiments"]["one"].update(one or {})
    if other is not None:
        found["experiments"]["other"] = copy.deepcopy(EXPERIMENT) | other
    return found | more


def said(**changes: Any) -> str:
    return "\n".join(conclude(numbers(**changes)))


def not_known(**changes: Any) -> str:
    return "\n".join(limitations(numbers(**changes)))


def lines(*slopes: float, error: tuple[float, float] = (0.05, 0.02)) -> dict[str, Any]:
    return {
        "calibration": {
            "expected_calibration_error": list(error),
            "platt_scaling": [{"slope": slope} for slope in slopes],
        }
    }


EXPLAINED = {"method": "attention rollout", "tiles": 1, "mean": 0.05}


@pytest.mark.parametrize(
    ("changes", "there", "absent"),
    [
        ({}, "AUC of 0.9500 on 1,000 tiles (95 % interval 0.9400 to 0.9600, resampling 60 stain groups)", "Of"),
        ({"one": {"interval_95": [None, None]}}, "with no interval, because no groups are known", "95 %"),
        ({"one": {"groups": 1, "grouping": "slides"}}, "resampling 1 slide)", "slides"),
        ({"one": {"folds_expected": 5}}, "on 1,000 tiles of 2 of 5 folds", "of 2 folds"),
        ({"other": {"auc": 0.96, "interval_95": [0.955, 0.965]}}, "Of 2 experiments other has the highest", "one has"),
        ({"other": {"auc": 0.9}}, "It is 0.0500 above the next, other; their intervals overlap", "do not overlap"),
        ({"other": {"auc": 0.9, "interval_95": [0.89, 0.91]}}, "other; their intervals do not overlap", "intervals overlap,"),
        ({"other": {"auc": 0.95001}}, "level with it to four decimals", "above the next"),
        ({"other": {"auc": 0.9, "split": "stratified", "backbone": "x"}}, "kinds of folds, so this is no ranking", "overlap"),
        ({"other": {"auc": 0.9, "tiles": 10}}, "on different numbers of tiles", "overlap"),
        ({}, "range from 0.9300 (fold 0) to 0.9700 (fold 1), 0.0400 apart", "experiments"),
        ({"one": {"folds": [FOLD | {"fold": 3, "auc": 0.9}, FOLD | {"fold": 4, "auc": None}]}}, "one reached", "range from"),
        ({"experiment_average": {"auc": 0.97, "tiles": 900}}, "reaches 0.9700 on 900 tiles, 0.0200 above the best", "below"),
        ({"experiment_average": {"auc": 0.94, "tiles": 900}}, "0.0100 below the best", "above the best"),
        ({"experiment_average": {"auc": 0.95, "tiles": 900}}, "level with the best", "above the best"),
        ({}, "lie too close to one half", "too close to 0 and 1"),
        ({"one": lines(0.9, 0.8)}, "lie too close to 0 and 1", "one half"),
        ({"one": lines(0.9, 1.1)}, "do not lean one way", "too close"),
        ({}, "lowers that error to 0.0200", "raises"),
        ({"one": lines(1.1, error=(0.02, 0.03))}, "raises that error to 0.0300", "lowers"),
        ({"one": lines(1.1, error=(0.02, 0.02))}, "leaves that error as it is", "raises"),
        ({"one": {"calibration": None}}, "one reached", "calibration"),
        ({}, "F1 is 0.8500 at 0.5 and higher at thresholds", "lower at"),
        ({"one": {"f1_at_thresholds": 0.8}}, "and lower at thresholds", "higher at"),
        ({"one": {"f1_at_thresholds": 0.85}}, "the same at thresholds", "higher"),
        ({"one": {"f1_at_thresholds": None}}, "one reached", "F1"),
        ({}, "25.0 % of the attribution (grad-cam, 48 tiles) lies", "rollout"),
        ({"one": {"explained": EXPLAINED}}, "5.0 % of the attribution (attention rollout, 1 tile) lies", "grad-cam"),
        ({"one": {"explained": None}}, "one reached", "attribution"),
        ({"leaderboard": SCORE}, "On Kaggle's leaderboard the submission scored 0.9612 public and 0.9587 private", "rehears"),
        ({"leaderboard": SCORE | {"scored_by": "the emulated Kaggle"}}, "by the emulated Kaggle: a rehearsal", "On Kaggle's"),
        ({"leaderboard": SCORE | {"public": None}}, "scored 0.9587 private", "public"),
        ({"leaderboard": SCORE | {"public": None, "private": None}}, "one reached", "submission scored"),
        ({"one": {"split": "stratified"}}, "are stratified, so neighbours of a tile stand on both sides", "Transductive"),
        ({"one": {"transductive": "it saw the tiles"}}, "This score is transductive.", "stratified"),
        ({"other": {"transductive": "it saw"}}, "Transductive, so not comparable with scores that are not: other", "stratified"),
        ({"other": {"split": "stratified", "auc": 0.96}}, "gave 0.0100 more AUC than folds by stain (one, 0.9500)", "less"),
        ({"other": {"split": "stratified", "auc": 0.94}}, "(other, 0.9400) gave 0.0100 less AUC than folds by stain", "more AUC"),
        ({"other": {"split": "stratified"}}, "gave the same AUC to four decimals as folds by stain", "less AUC"),
        ({"other": {"auc": 0.9}}, "The best of several is chosen by the very score", "one reached"),
    ],
)  # fmt: skip
def test_sentences_turn_with_the_numbers(changes: dict[str, Any], there: str, absent: str) -> None:
    found = said(**changes)
    assert there in found
    assert absent not in found


def test_a_share_of_the_attribution_is_held_against_an_even_map() -> None:
    wanted = "lies in the centre that decides the label, 2.25 times the 11.1 % of a map that is the same everywhere"
    assert wanted in said() and "0.45 times" in said(one={"explained": EXPLAINED})


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({"leaderboard": None}, "no submission of this campaign has one here"),
        (
            {"leaderboard": SCORE | {"scored_by": "the emulated Kaggle"}},
            "The score on Kaggle: what is shown is a rehearsal",
        ),
        (
            {"leaderboard": SCORE | {"public": None, "private": None}},
            "Kaggle took the submission and gave none",
        ),
        ({"leaderboard": SCORE, "place": "rehearsal"}, "made in a rehearsal"),
        ({"is_full": False, "labelled": 600, "test_tiles": 150}, "600 labelled and 150 test tiles, a part"),
        ({"has_inference": False}, "How the test tiles are predicted"),
        ({"one": {"folds_expected": 3}}, "how the other 1 fold would score"),
        ({"one": {"split": "stratified"}}, "how much its stratified folds flatter"),
        ({}, "stain groups stand in for them"),
        ({"one": {"groups": 12}}, "it resamples only 12 stain groups"),
        ({"one": {"interval_95": [None, None], "groups": 0}}, "how uncertain its AUC is"),
        ({"one": {"calibration": None}}, "its calibration; no line can be fitted"),
        ({"one": {"folds": EXPERIMENT["folds"][:1]}}, "both need a second fold"),
        ({"one": {"members": 1}}, "what another seed would give"),
        ({"one": {"explained": None}}, "what its networks look at"),
        ({"searches": 0}, "no search was made"),
        ({"rehearsal": ["Its tiles were drawn."]}, "Its tiles were drawn."),
        ({"problems": ["x"]}, "What 1 output held that could not be used"),
        (
            {"failed": {"two": "no fold of it is among the inputs"}},
            "How two scores: no fold of it is among the inputs",
        ),
        ({"experiments": {}}, "no fold of any experiment could be scored"),
    ],
)
def test_what_is_not_known_is_said_when_it_is_not_known(changes: dict[str, Any], there: str) -> None:
    assert there in not_known(**changes)


def test_what_is_known_is_not_called_unknown() -> None:
    found = not_known(leaderboard=SCORE, one={"split": "slide", "grouping": "slides"})
    assert found.splitlines() == [
        "one: what other folds would give; they were drawn once, with seed 2018.",
        "Whether any of it holds for tiles of other laboratories and scanners: all tiles come from one data set.",
    ]


def test_of_nothing_nothing_follows() -> None:
    assert conclude(numbers(experiments={})) == []


@pytest.mark.parametrize(
    ("interval", "chance"),
    [([0.42, 0.71], True), ([0.5, 0.6], True), ([0.51, 0.9], False), ([None, None], False)],
)
def test_a_score_whose_interval_holds_a_half_is_not_told_from_chance(
    interval: list[float | None], chance: bool
) -> None:
    assert ("one cannot be told from chance" in said(one={"auc": 0.57, "interval_95": interval})) is chance
