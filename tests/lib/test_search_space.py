"""What a search may say, and what it draws."""

import itertools
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import FOLD_OPTIONS, PREPARE_OPTIONS, Config, config_from_dict, parse_toml, to_toml
from lib.search_space import (
    Interval,
    SearchError,
    SearchSpace,
    at_rung,
    draw_trials,
    expected_folds,
    parse_search,
    reusable_trials,
    rungs,
    search_from_dict,
)

ROOT = Path(__file__).resolve().parents[2]
BASE = Config(
    backbone="test_resnet",
    weights="none",
    epochs=8,
    warmup_epochs=1.0,
    freeze_epochs=2,
    num_members=2,
    ddp=True,
)
RATES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique=True)
DECAYS = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3, unique=True)
RANGES = st.tuples(st.floats(1e-6, 0.5), st.floats(1.5, 100.0), st.sampled_from(["log", "linear"]))


def space(**values: Any) -> SearchSpace:
    return search_from_dict({"method": "grid", "space": {"learning_rate": [1e-3, 1e-4]}, **values}, name="x")


def wrong(**values: Any) -> str:
    with pytest.raises(SearchError) as refusal:
        space(**values)
    return str(refusal.value)


def test_the_baseline_is_the_published_grid() -> None:
    found = parse_search((ROOT / "experiments" / "searches" / "baseline.toml").read_text(), name="baseline")
    base = parse_toml((ROOT / "experiments" / "resnet34.toml").read_text(), name="resnet34")
    points = {
        (t.config.learning_rate, t.config.weight_decay, t.config.backbone) for t in draw_trials(found, base)
    }
    assert points == set(
        itertools.product((3e-4, 1e-4), (1e-4, 3e-5), ("resnet18.tv_in1k", "resnet34.tv_in1k"))
    )
    assert found.folds == (0,)
    assert expected_folds(found, base) == 8


@given(RATES, DECAYS)
def test_a_grid_is_every_combination_once(rates: list[float], decays: list[float]) -> None:
    found = space(space={"learning_rate": rates, "weight_decay": decays, "pooling": ["avg", "gem"]})
    trials = draw_trials(found, BASE)
    points = [(t.config.learning_rate, t.config.weight_decay, t.config.pooling) for t in trials]
    assert points == list(itertools.product(rates, decays, ["avg", "gem"]))
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for trial in trials:  # one network on one card; everything else is the experiment's
        differing = {f.name for f in fields(Config) if getattr(trial.config, f.name) != getattr(BASE, f.name)}
        assert differing <= {"learning_rate", "weight_decay", "pooling", "num_members", "ddp", "eval_every"}
        assert trial.config.num_members == 1 and not trial.config.ddp


@settings(max_examples=30)
@given(RANGES, st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_random_draws_are_inside_distinct_and_always_the_same(
    ends: tuple[float, float, str], seed: int, number: int
) -> None:
    low, factor, scale = ends
    table = {
        "learning_rate": {"low": low, "high": min(low * factor, 1.0), "scale": scale},
        "epochs": {"low": 3, "high": 40, "scale": scale},
        "pooling": ["avg", "gem"],
    }
    found = space(method="random", space=table, trials=number, seed=seed)
    trials = draw_trials(found, BASE)
    assert [trial.values for trial in trials] == [trial.values for trial in draw_trials(found, BASE)]
    assert len({tuple(trial.values.items()) for trial in trials}) == len(trials) == number
    for trial in trials:
        assert low <= trial.config.learning_rate <= min(low * factor, 1.0)
        assert 3 <= trial.config.epochs <= 40 and isinstance(trial.config.epochs, int)
    # More of them begin with these: a search that is made longer repeats nothing.
    longer = draw_trials(space(method="random", space=table, trials=number + 3, seed=seed), BASE)
    assert [trial.values for trial in longer[:number]] == [trial.values for trial in trials]


def test_a_log_range_draws_evenly_in_the_logarithm() -> None:
    table = {"learning_rate": {"low": 1e-6, "high": 1.0, "scale": "log"}}
    drawn = [
        math.log10(t.config.learning_rate)
        for t in draw_trials(space(method="random", space=table, trials=400), BASE)
    ]
    assert abs(sum(drawn) / len(drawn) + 3) < 0.3
    assert sum(each < -3 for each in drawn) in range(160, 241)


def test_a_small_space_gives_no_trial_twice() -> None:
    found = space(method="random", space={"pooling": ["avg", "gem"], "flip": [True, False]}, trials=50)
    assert len(draw_trials(found, BASE)) == 4


@given(st.integers(2, 100), st.integers(2, 5), st.integers(1, 7))
def test_halving_multiplies_epochs_and_divides_trials(trials: int, eta: int, first: int) -> None:
    table = {"learning_rate": {"low": 1e-6, "high": 1.0, "scale": "log"}}
    found = space(method="halving", space=table, trials=trials, eta=eta, first_epochs=first)
    plan = rungs(found, BASE, trials=trials)
    assert plan[0] == (first, trials)
    for (epochs, count), (more, fewer) in itertools.pairwise(plan):
        assert more == min(epochs * eta, BASE.epochs) and fewer == max(1, count // eta) and epochs < more
    assert plan[-1][1] == 1 or plan[-1][0] == BASE.epochs
    drawn = draw_trials(found, BASE)
    for rung, (epochs, _) in enumerate(plan):  # each is a whole training, with its share of warm-up
        config = at_rung(found, BASE, drawn[0], rung).config
        assert config.epochs == epochs
        assert config.warmup_epochs == pytest.approx(epochs / BASE.epochs)
        assert config.freeze_epochs == BASE.freeze_epochs * epochs // BASE.epochs
    assert expected_folds(found, BASE) == pytest.approx(sum(e * n for e, n in plan) / BASE.epochs)


@given(RATES, st.integers(0, 9))
def test_a_search_travels_as_plain_values(rates: list[float], seed: int) -> None:
    for values in (
        {"space": {"learning_rate": rates, "flip": [True]}, "folds": [1, 0]},
        {"method": "random", "space": {"learning_rate": {"low": 1e-5, "high": 1e-2}}, "trials": 3},
        {"method": "halving", "space": {"ema_decay": [0.0, 0.9]}, "trials": 4, "eta": 3, "first_epochs": 2},
    ):
        found = space(**{**values, "seed": seed})
        assert search_from_dict(json.loads(json.dumps(found.to_dict())), name="x") == found


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = wrong(
        method="halving",
        space={
            "learnin_rate": [1e-3],
            "learning_rate": [1e-3, "fast", 1e-3],
            "weight_decay": {"low": 0.0, "high": 1.0, "scale": "log"},
            "tta_views": {"low": 1, "high": 8},
            "pooling": {"low": 1, "high": 8},
            "epochs": [3],
            "ema_decay": {"low": 0.5},
            "hue": {"low": 0.3, "high": 0.1},
            "clip_grad_norm": 1.0,
            "flip": [],
            "num_members": [1, 2],
            "fold_split": ["stain"],
            "weights": ["timm", "pretrain"],
        },
        trials=1,
        first_epochs=0,
        folds=[0, 0],
        rounds=3,
    )
    for text in (
        "unknown key 'learnin_rate'; did you mean learning_rate?",
        "learning_rate = 'fast': a number expected",
        "learning_rate names 0.001 twice",
        "weight_decay: scale = log needs low above zero",
        "tta_views",
        "pooling",
        "epochs cannot be searched by halving",
        "ema_decay: a range is",
        "hue: low = 0.3 is not below high = 0.1",
        "clip_grad_norm = 1.0: a list of values expected",
        "flip names no value",
        "num_members cannot be searched: a trial is one network on one card",
        "fold_split cannot be searched: it decides the folds",
        "weights = pretrain cannot be searched",
        "trials = 1: a whole number from 2",
        "first_epochs = 0",
        "folds = [0, 0]",
        "unknown key 'rounds'",
    ):
        assert text in said


@pytest.mark.parametrize(
    "knob",
    sorted({*FOLD_OPTIONS, *PREPARE_OPTIONS, "num_folds", "train_mode", "pseudo_labels", "expected_hours"}),
)
def test_what_trials_must_share_cannot_be_searched(knob: str) -> None:
    assert f"{knob} cannot be searched" in wrong(space={knob: [getattr(Config(), knob)]})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "bayes"}, "one of grid, random, halving"),
        ({"trials": 3}, "trials is for method = random or halving"),
        ({"space": {}}, "is missing or empty"),
        ({"space": {"learning_rate": {"low": 1e-4, "high": 1e-3}}}, "a grid takes a list of values"),
        (
            {
                "space": {
                    "learning_rate": [n / 1000 for n in range(1, 31)],
                    "ema_decay": [n / 100 for n in range(20)],
                }
            },
            "600 trials",
        ),
        ({"space": {"learning_rate": [20.0]}}, "from 1e-08 to 10 expected"),
        ({"method": "random"}, "trials = None"),
    ],
)
def test_a_search_that_makes_no_sense_says_why(values: dict[str, Any], said: str) -> None:
    assert said in wrong(**values)


@pytest.mark.parametrize(
    ("knobs", "values", "said"),
    [
        ({"train_mode": "linear_probe", "num_members": 1, "weights": "timm"}, {}, "frozen"),
        ({"pseudo_labels": "strong"}, {}, "the labels of strong"),
        ({"weights": "pretrain"}, {"space": {"backbone": ["a", "b"]}}, "those of one backbone"),
        ({}, {"folds": [0, 7]}, "there is no fold 7"),
        (
            {"warmup_epochs": 2.0},
            {"space": {"epochs": [1, 2, 3]}},
            "epochs=1: warmup_epochs = 2.0 leaves nothing",
        ),
        ({}, {"method": "halving", "trials": 2, "first_epochs": 5}, "first_epochs = 5 is not below"),
        ({"weights": "a.safetensors"}, {"space": {"backbone": ["a", "b"]}}, "cannot fit several backbones"),
    ],
)
def test_an_experiment_that_cannot_be_searched_so_says_why(
    knobs: dict[str, Any], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(SearchError, match=said):
        draw_trials(space(**values), config_from_dict(knobs))


def test_what_may_pass_is_tried_again_and_nothing_else() -> None:
    records = [
        {"id": "a", "status": "finished", "again": False},
        {"id": "b", "status": "failed", "again": False},
        {"id": "c", "status": "failed", "again": True},
        {"id": "d", "status": "not run", "again": False},
    ]
    assert [each["id"] for each in reusable_trials(records)] == ["a", "b"]


@given(
    st.floats(1e-8, 10.0), st.booleans(), st.sampled_from(["", 'a"b\\c', "é🔬", "x\ty"]), st.integers(1, 1000)
)
def test_a_config_written_as_toml_reads_back_as_itself(
    rate: float, flip: bool, text: str, epochs: int
) -> None:
    config = Config(learning_rate=rate, flip=flip, slide_map=text, epochs=epochs)
    assert parse_toml("# a comment\n" + to_toml(config), name="x") == config
    assert to_toml(Config()) == ""


def test_a_range_keeps_its_kind() -> None:
    found = space(
        method="random",
        space={"learning_rate": {"low": 0.001, "high": 1}, "epochs": {"low": 2, "high": 9}},
        trials=1,
    )
    assert found.space == {"learning_rate": Interval(0.001, 1.0), "epochs": Interval(2, 9)}
