"""What is said of a submission before it is sent, and about its gap when it has its score."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_commands import account, order, reach  # noqa: F401

from launch.campaign.commands import run
from launch.campaign.comparison import (
    EarlierSubmission,
    describe_before_sending,
    describe_gap,
    earlier_submissions,
    is_out_of_line,
)
from launch.emulator.faults import Fault
from lib.config import Config
from lib.evaluation.metrics import auc
from lib.evaluation.out_of_fold import Summary, gain_of_averages

N = 400


def summary(noise: float, *, name: str = "x", seed: int = 0, split: str = "stain") -> Summary:
    """An experiment whose probabilities are the labels with some noise."""
    labels = np.arange(N) % 2
    scores = 1 / (1 + np.exp(-(labels + noise * np.random.default_rng(seed).normal(size=N))))
    table = pd.DataFrame({"id": [f"{row:04}" for row in range(N)], "label": labels, "probability": scores})
    table["group"] = np.arange(N) // 10
    return Summary(
        experiment=name,
        config=Config(fold_split=split),
        table=table,
        folds=pd.DataFrame(),
        pooled=auc(labels, scores),
        interval=(0.0, 1.0),
        groups=40,
        grouping="stain groups",
        calibration=None,
        decisions={},
        records=[],
        positive=None,
    )


class Limits:
    """An account that tells how many submissions are left."""

    def submissions_left(self) -> int | None:
        return 3


def earlier(name: str, auc: float, public: float | None, **values: Any) -> EarlierSubmission:
    given = {"folder": Path(f"/{name}"), "splits": ("stain",), "sha256": name}
    return EarlierSubmission(name=name, auc=auc, public=public, **{**given, **values})


def lines(*submissions: EarlierSubmission, **values: Any) -> str:
    given = {"kaggle": Limits(), "folder": Path("/own"), "sha256": "own"}
    return "\n".join(describe_before_sending([summary(1.0)], earlier=submissions, **{**given, **values}))


def test_without_earlier_submissions_nothing_is_claimed() -> None:
    text = lines()
    assert "out-of-fold AUC: 0.7" in text and "95 % interval 0.7" in text and "n = 400 tiles" in text
    assert "none was submitted" in text
    assert "submissions left today (UTC): 3" in text
    assert "0 earlier campaigns with stain folds have a score; 3 are needed" in text


def test_the_gain_is_over_the_best_and_never_over_the_same_file() -> None:
    text = lines(earlier("a", 0.70, 0.71), earlier("b", 0.72, None), earlier("c", 0.99, 0.9, sha256="own"))
    assert "campaign b, out-of-fold AUC 0.7200): +0.0" in text
    assert "no interval: its predictions are not here any more" in text


def test_gaps_of_other_folds_and_of_the_own_campaign_do_not_count() -> None:
    three = [earlier(name, 0.70, 0.69) for name in "abc"]
    assert "median -0.0100 (-0.0100 to -0.0100); this submission would score about 0.7" in lines(*three)
    others = [earlier("a", 0.7, 0.69), earlier("b", 0.7, 0.69, splits=("slide",)), earlier("own", 0.7, 0.69)]
    assert "1 earlier campaigns with stain folds" in lines(*others)


def test_an_earlier_campaign_out_of_line_is_named() -> None:
    gaps = [earlier(name, 0.70, 0.69) for name in "abc"]
    text = lines(*gaps, earlier("odd", 0.70, 0.60))
    assert "out of line with the other campaigns: odd, gap -0.1000" in text
    assert text.count("out of line") == 1


@pytest.mark.parametrize(
    ("gap", "others", "out"),
    [
        (-0.20, [-0.01, -0.01], False),  # too few
        (-0.0149, [-0.01] * 3, False),
        (-0.0151, [-0.01] * 3, True),
        (0.0, [-0.01] * 3, True),  # better than expected, too
        (-0.04, [-0.01, -0.02, -0.03], False),  # they differ as much among themselves
        (-0.30, [-0.01, -0.02, -0.03], True),
        (-0.10, [-0.01, -0.011, -0.012, -0.30], True),  # one odd campaign does not hide another
    ],
)
def test_the_rule_of_a_gap_out_of_line(gap: float, others: list[float], out: bool) -> None:
    assert is_out_of_line(gap, others) is out


def test_the_gap_of_a_score_is_compared_when_it_is_there() -> None:
    own, three = summary(1.0), [earlier(name, 0.70, 0.69) for name in "abc"]
    told = {"folder": Path("/own"), "earlier": three}
    assert describe_gap([own], own.pooled - 0.011, **told).endswith("in line")
    assert "out of line. Before you trust" in describe_gap([own], own.pooled - 0.1, **told)
    assert describe_gap([own], None, **told) == ""
    assert describe_gap([own], 0.5, folder=Path("/own"), earlier=three[:2]) == ""


def test_a_paired_gain_is_the_difference_of_both_and_its_interval_is_narrower() -> None:
    ours, theirs = [summary(0.8), summary(0.8, name="y", seed=1)], [summary(1.0)]
    gain, (low, high), tiles = gain_of_averages(ours, theirs)
    mean = (ours[0].table["probability"] + ours[1].table["probability"]) / 2
    labels = ours[0].table["label"].to_numpy()
    assert gain == pytest.approx(auc(labels, mean.to_numpy()) - theirs[0].pooled, abs=1e-12)
    assert low < gain < high and tiles == N
    assert gain_of_averages(ours, ours)[:2] == (0.0, (0.0, 0.0))


def test_records_of_another_service_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "scored_by": "Kaggle",
        "out_of_fold": {"x": {"auc": 0.9}, "y": {"auc": 0.8}},
        "mean_of_experiments_auc": 0.95,
        "submission": {"public_auc": 0.94, "sha256": "s"},
        "campaign": {"name": "a"},
        "experiments": {"x": {"fold_split": "stain"}, "y": {"fold_split": "stain"}},
    }
    texts = {
        "a": json.dumps(record),
        "b": json.dumps(record | {"scored_by": "the emulated Kaggle"}),
        "c": "{",
        "d": "[]",
        "e": json.dumps(record | {"out_of_fold": {}, "mean_of_experiments_auc": None}),
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "leaderboard.json").write_text(text)
    [found] = earlier_submissions(tmp_path / "new", scored_by="Kaggle")
    assert found == earlier("a", 0.95, 0.94, folder=tmp_path / "a", sha256="s")


def test_it_is_printed_before_the_submission_and_blocks_nothing(account, capsys) -> None:  # noqa: F811
    kaggle = account(Fault("GetSubmissionLimits", "500", times=0))
    run(*order(kaggle, folds=(0, 1)), connect=reach)
    text = capsys.readouterr().out
    assert text.index("out-of-fold AUC: 0.") < text.index("submitted: Successfully")
    assert "submissions left today (UTC): unknown (Kaggle could not get the submission limits" in text
    kaggle.kaggle.clear_faults()
    run(*order(kaggle), connect=reach)
    text = capsys.readouterr().out
    assert "submissions left today (UTC): 4" in text
    assert "over the best submitted before (campaign one, out-of-fold AUC 0." in text
    run(*order(kaggle), connect=reach)  # nothing is sent, so nothing is compared
    assert "submissions left" not in capsys.readouterr().out


def test_the_gain_over_another_campaign_has_an_interval(account, capsys) -> None:  # noqa: F811
    kaggle = account()
    spec, options = order(kaggle, folds=(0, 1))
    run(spec, options, connect=reach)
    capsys.readouterr()
    spec, options = order(kaggle)
    run(spec, replace(options, folder=options.folder.with_name("two")), connect=reach)
    text = capsys.readouterr().out
    assert "(campaign one, out-of-fold AUC 0." in text
    assert "+0.0000 (95 % interval +0.0000 to +0.0000, on the 27 tiles that both predicted)" in text
