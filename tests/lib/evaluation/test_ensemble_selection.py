"""Selection of experiments: its rule, its nested gain, and names of averages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.evaluation import ensemble_selection
from lib.evaluation.averages import describe_weights, parse_weights
from lib.evaluation.ensemble_selection import forward_selection, select_experiments
from lib.evaluation.metrics import auc, probability
from lib.evaluation.out_of_fold import ResultError


@dataclass
class _Record:
    data_id: str = "d" * 64
    fold_table_id: str = "f" * 64


class _Summary:
    """What a selection reads of a Summary."""

    def __init__(self, name: str, table: pd.DataFrame, *, whole: bool = True, **record: str) -> None:
        self.experiment, self.table, self.is_whole = name, table, whole
        self.records = [_Record(**record)]
        self.config, self.folds = Config(), table.groupby("fold").size()


def _tables(seed: int, noises: dict[str, float], *, tiles: int = 600) -> dict[str, pd.DataFrame]:
    """Probabilities of independent predictors: the label plus noise of a given size."""
    generator = np.random.default_rng(seed)
    labels, groups = generator.integers(0, 2, tiles), generator.integers(0, 40, tiles)
    base = {
        "id": [f"{n:04d}" for n in range(tiles)],
        "label": labels,
        "fold": np.arange(tiles) % 5,
        "group": groups,
    }
    return {
        name: pd.DataFrame(
            {**base, "probability": probability(2 * labels - 1 + noise * generator.normal(size=tiles))}
        )
        for name, noise in noises.items()
    }


def _select(tables: dict[str, pd.DataFrame], **changes: Any) -> Any:
    summaries = [_Summary(name, table, **changes.get(name, {})) for name, table in tables.items()]
    return select_experiments(summaries)  # type: ignore[arg-type]


def test_a_useless_experiment_is_left_out_and_the_gain_is_shown() -> None:
    selection = _select(_tables(1, {"good": 1.5, "other": 1.6, "noise": 60.0}))
    assert selection.weights["noise"] == 0
    assert min(selection.weights["good"], selection.weights["other"]) > 0
    assert selection.gain == pytest.approx(selection.selected - selection.plain)
    assert selection.is_better and selection.interval[0] > 0
    assert len(selection.by_fold) == 5


def test_equal_experiments_show_no_gain() -> None:
    selection = _select(_tables(2, {"one": 2.0, "two": 2.0, "three": 2.0}))
    assert not selection.is_better
    assert abs(selection.gain) < 0.01


def test_the_gain_of_noise_is_not_optimistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested by fold, a selection among worthless experiments gains nothing on average."""
    monkeypatch.setattr(ensemble_selection, "_gain_interval", lambda *_: (0.0, 0.0))  # most of the time
    gains = [_select(_tables(seed, {str(n): 1e6 for n in range(4)}, tiles=200)).gain for seed in range(12)]
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains)) + 0.005


def test_the_nested_score_uses_the_weights_of_the_other_folds() -> None:
    tables = _tables(3, {"one": 1.5, "two": 3.0})
    selection = _select(tables)
    both = np.stack([table["probability"].to_numpy() for table in tables.values()], axis=1)
    table = tables["one"]
    nested = np.empty(len(table))
    for fold, weights in enumerate(selection.by_fold):
        inside = (table["fold"] == fold).to_numpy()
        share = np.array([weights["one"], weights["two"]], dtype=float)
        np.testing.assert_array_equal(
            share, forward_selection(table["label"].to_numpy()[~inside], both[~inside])
        )
        nested[inside] = np.average(both[inside], axis=1, weights=share)
    assert selection.selected == pytest.approx(auc(table["label"].to_numpy(), nested))


def test_rows_are_joined_by_id() -> None:
    tables = _tables(4, {"one": 1.5, "two": 1.5})
    shuffled = {name: table.sample(frac=1, random_state=7) for name, table in tables.items()}
    assert _select(tables).plain == pytest.approx(_select(shuffled).plain)


def test_forward_selection_can_repeat_an_experiment() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.1], [0.8, 0.2], [0.9, 0.8]])
    assert forward_selection(labels, probabilities).tolist() == [1, 0]  # perfect alone: the first best round


def test_everything_that_forbids_a_selection_is_listed() -> None:
    tables = _tables(5, {"one": 1.0, "two": 1.0})
    with pytest.raises(ResultError) as caught:
        _select(tables, one={"whole": False}, two={"data_id": "e" * 64, "fold_table_id": "0" * 64})
    message = str(caught.value)
    assert "one has 5 of 5 folds" in message
    assert "their data differ" in message and "their fold tables differ" in message
    with pytest.raises(ResultError, match="two experiments or more"):
        _select({"one": tables["one"]})


@pytest.mark.parametrize("average", ["mean", "logit", "rank"])
def test_an_average_without_weights_has_none(average: str) -> None:
    assert parse_weights(average, ["a", "b"]) == {}


def test_weights_are_read_in_the_order_of_the_experiments() -> None:
    weights = parse_weights("b=2, a=1", ["a", "b"])
    assert list(weights.items()) == [("a", 1), ("b", 2)]
    assert parse_weights(describe_weights(weights), ["a", "b"]) == weights


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ("median", "mean, logit, rank, or a weight"),
        ("a=0,b=1", "such as a=1,b=1 expected"),
        ("a=1,a=2", "such as a=1,b=1 expected"),
        ("a=1.5,b=1", "such as a=1,b=1 expected"),
        ("a=1", "the experiments are a, b"),
        ("a=1,b=1,c=1", "the experiments are a, b"),
        ("", "such as a=1,b=1 expected"),
    ],
)
def test_another_average_is_refused_with_an_example(average: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_weights(average, ["a", "b"])
