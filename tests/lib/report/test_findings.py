"""Findings and plan: each sentence follows from the numbers of the exploration, and changes with them."""

import copy
from typing import Any

import pytest

from lib.config import Config
from lib.report.findings import findings
from lib.report.plan import plan

GROUP = {"tiles": 50, "positive_share": 0.4, "focus_median": 900.0, "stain_medians": {"eosin_red": 0.3}}
EDA: dict[str, Any] = {
    "train": {"tiles": 1000, "positive_share": 0.4, "mean": [0.6, 0.5, 0.7], "black": 0, "blank": 0},
    "test": {"tiles": 200, "mean": [0.6, 0.5, 0.7]},
    "classes": {
        "0": {
            "mean": [0.7, 0.6, 0.8],
            "focus_quartiles": [1.0, 1000.0, 2000.0],
            "stain_medians": {"eosin_red": 0.3},
        },
        "1": {
            "mean": [0.6, 0.5, 0.7],
            "focus_quartiles": [1.0, 2000.0, 3000.0],
            "stain_medians": {"eosin_red": 0.4},
        },
    },
    "single_feature_auc": {"brightness": 0.35, "focus": 0.51, "eosin_red": 0.72, "haematoxylin_red": 0.45},
    "stain_groups": {
        "number": 2,
        "smallest": 50,
        "largest": 950,
        "auc_of_group_number": 0.7,
        "table": [
            GROUP,
            GROUP | {"positive_share": 1.0, "focus_median": 1800.0, "stain_medians": {"eosin_red": 0.45}},
            GROUP | {"tiles": 1, "positive_share": 0.0, "focus_median": 1.0},
        ],
    },
    "near_copies": {"pairs": 3, "between_labelled_and_test": 1, "with_another_label": 2},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """EDA with one value changed; None removes it."""
    eda = copy.deepcopy(EDA)
    *parts, last = path.split("/")
    inner = eda
    for part in parts:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return eda


@pytest.mark.parametrize(
    ("subject", "path", "value", "expected"),
    [
        (
            "balance",
            "train/positive_share",
            0.4,
            "40.0 % of 1,000 labelled tiles are tumour, as in the whole",
        ),
        ("balance", "train/positive_share", 0.7, "unlike the whole competition"),
        ("balance", "train/positive_share", 0.7, "always answers tumour is right on 70.0 %"),
        ("balance", "train/tiles", 1000, "ranges from 40 % to 100 %; 1 of 2 groups have one class only"),
        ("brightness", "test/tiles", 1, "25.5 grey levels darker than the others (153.0 and 178.5 of 255)"),
        ("brightness", "test/tiles", 1, "Brightness alone has AUC 0.650 for the label: strong evidence"),
        (
            "brightness",
            "test/mean",
            [0.7, 0.6, 0.8],
            "Test tiles are on average 25.5 grey levels brighter than",
        ),
        ("brightness", "classes/1/mean", [0.8, 0.7, 0.9], "brighter"),
        ("brightness", "train/blank", 4, "0 labelled tiles are black and 4 are blank"),
        (
            "focus",
            "test/tiles",
            1,
            "Tumour tiles are sharper: their median variance of the Laplacian is 2.00 times",
        ),
        ("focus", "test/tiles", 1, "AUC 0.510 for the label: no better than a guess"),
        ("focus", "test/tiles", 1, "the median differs by a factor of 2.0"),
        ("focus", "classes/1/focus_quartiles", [1.0, 500.0, 600.0], "less sharp"),
        (
            "stain",
            "test/tiles",
            1,
            "the red component of eosin separates the classes most: alone it has AUC 0.720",
        ),
        (
            "stain",
            "single_feature_auc/haematoxylin_red",
            0.1,
            "background, the red component of haematoxylin separates the classes",
        ),
        (
            "stain",
            "single_feature_auc",
            None,
            "differ most in the red component of eosin: 0.400 in tumour tiles, 0.300",
        ),
        ("stain", "test/tiles", 1, "ranges from 0.30 to 0.45"),
        ("groups", "test/tiles", 1, "AUC 0.700 on stratified folds: random folds let a network use this"),
        ("groups", "stain_groups/auc_of_group_number", 0.51, "leak little"),
        (
            "copies",
            "test/tiles",
            1,
            "3 pairs of tiles are near-duplicates; 2 of them have two labels, and 1 join",
        ),
        ("copies", "near_copies/pairs", 0, "No two tiles are near-duplicates"),
    ],
)
def test_a_finding_follows_the_numbers(subject: str, path: str, value: Any, expected: str) -> None:
    assert expected in findings(changed(path, value))[subject]


@pytest.mark.parametrize("eda", [{}, {"train": {}}, changed("classes", {"0": {}})])
def test_a_finding_without_numbers_is_left_out(eda: dict[str, Any]) -> None:
    assert not {"brightness", "focus"} & set(findings(eda))


def test_the_plan_says_what_each_experiment_does() -> None:
    one = Config(backbone="test_resnet", weights="none")
    two = Config(
        backbone="test_resnet", weights="none", fold_split="stain", hed_jitter=0.05, class_balance="sampler"
    )
    rows = {finding: done for finding, _, done in plan(EDA, {"one": one, "two": two})}
    assert rows["40.0 % of the tiles are tumour"] == "class balance: one: none; two: sampler"
    assert rows["The stain group alone has AUC 0.700"] == "folds: one: stratified; two: stain"
    assert "two: jitter: hed jitter 0.05" in rows["Stain and brightness differ between slides"]
    assert rows["A tile has no up or down"] == "8 views"  # once, where all agree
