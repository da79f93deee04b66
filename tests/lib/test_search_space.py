"""Searches: reading, checking, drawing and pruning of trials."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import FOLD_OPTIONS, PREPARE_OPTIONS, Config, config_from_dict, parse_toml, to_toml
from lib.search_space import (
    RECORD_FORMAT,
    Interval,
    SearchError,
    SearchSpace,
    Trial,
    check_search,
    count_trials,
    draw_trial,
    expected_folds,
    is_promoted,
    parse_search,
    pruning_epochs,
    reusable_trials,
    search_from_dict,
    searched_backbones,
    trials_needed,
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


def draw_trials(
    space: SearchSpace, base: Config, score: Callable[[Trial], float] = lambda trial: 0.5
) -> list[Trial]:
    """All trials of a search; TPE sees the score of each that has ended by then."""
    trials: list[Trial] = []
    while True:
        scores = {trial.number: score(trial) for trial in trials[: trials_needed(space, len(trials))]}
        trial = draw_trial(space, base, trials, scores)
        if trial is None:
            return trials
        trials.append(trial)


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
    for trial in trials:  # one network on one GPU; everything else is the experiment's
        differing = {f.name for f in fields(Config) if getattr(trial.config, f.name) != getattr(BASE, f.name)}
        assert differing <= {"learning_rate", "weight_decay", "pooling", "num_members", "ddp", "eval_every"}
        assert trial.config.num_members == 1 and not trial.config.ddp


@settings(deadline=None, max_examples=30)
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
    assert len(draw_trials(found, BASE)) == 4 == count_trials(found)
    whole = space(method="tpe", space={"epochs": {"low": 3, "high": 5}}, trials=50)
    assert sorted(trial.config.epochs for trial in draw_trials(whole, BASE)) == [3, 4, 5]


def tpe(trials: int, seed: int = 0) -> SearchSpace:
    table = {"learning_rate": {"low": 1e-6, "high": 1.0, "scale": "log"}, "pooling": ["avg", "gem"]}
    return space(method="tpe", space=table, trials=trials, seed=seed)


def near_a_thousandth(trial: Trial) -> float:
    """A score that is highest at a learning rate of 1e-3."""
    return 1 - abs(math.log10(trial.config.learning_rate) + 3) / 6


@pytest.mark.parametrize("seed", [0, 1])
def test_tpe_draws_the_same_for_the_same_scores_and_more_where_they_are_high(seed: int) -> None:
    trials = draw_trials(tpe(40, seed), BASE, near_a_thousandth)
    assert [t.values for t in trials] == [
        t.values for t in draw_trials(tpe(40, seed), BASE, near_a_thousandth)
    ]
    assert len({tuple(trial.values.items()) for trial in trials}) == 40
    shorter = draw_trials(tpe(15, seed), BASE, near_a_thousandth)
    assert [t.values for t in shorter] == [t.values for t in trials[:15]]
    scores = [near_a_thousandth(trial) for trial in trials]
    assert sum(scores[20:]) / 20 > 0.82  # 0.75 is expected of random draws, with a deviation of 0.03
    other = draw_trials(tpe(40, seed), BASE, lambda trial: 1 - near_a_thousandth(trial))
    assert [t.values for t in other[:10]] == [t.values for t in trials[:10]]  # without enough scores: random
    assert sum(near_a_thousandth(trial) for trial in other[20:]) / 20 < 0.7


def test_tpe_never_uses_the_last_scores() -> None:
    """Trial n may start while its three predecessors run, so their scores must not matter."""
    search = tpe(40)
    trials = draw_trials(search, BASE, near_a_thousandth)
    scores = {trial.number: near_a_thousandth(trial) for trial in trials}
    for number in (0, 3, 20, 39):
        needed = trials_needed(search, number)
        assert needed == max(0, number - 3)
        for known in (needed, number):
            some = {index: scores[index] for index in range(known)}
            drawn = draw_trial(search, BASE, trials[:number], some)
            assert drawn is not None and drawn.values == trials[number].values
    assert all(trials_needed(space(method="random", trials=9), number) == 0 for number in range(9))


def hyperband(trials: int = 9, **values: int) -> SearchSpace:
    table = {"learning_rate": {"low": 1e-6, "high": 1.0, "scale": "log"}}
    return space(method="hyperband", space=table, trials=trials, **{"first_epochs": 1, **values})


@given(st.integers(2, 5), st.integers(1, 7))
def test_hyperband_prunes_after_epochs_that_grow_by_eta(eta: int, first: int) -> None:
    epochs = pruning_epochs(hyperband(eta=eta, first_epochs=first), BASE)
    assert epochs[0] == first and epochs[-1] < BASE.epochs <= epochs[-1] * eta
    assert all(later == eta * earlier for earlier, later in itertools.pairwise(epochs))
    assert pruning_epochs(space(), BASE) == []


def run_hyperband(search: SearchSpace, scores: list[float]) -> list[int]:
    """The epochs to which each trial is trained, when its score is the same after any number of epochs."""
    reached: list[dict[int, float]] = []
    trained = []
    for score in scores:
        reached.append({})
        for epochs in pruning_epochs(search, BASE):
            reached[-1][epochs] = score
            if not is_promoted(search, BASE, reached):
                trained.append(epochs)
                break
        else:
            trained.append(BASE.epochs)
    return trained


def test_hyperband_keeps_the_good_trials_and_costs_about_what_is_expected() -> None:
    search = hyperband(trials=60)
    scores = random.Random(0).sample(range(1000), 60)
    trained = run_hyperband(search, [score / 1000 for score in scores])
    assert set(trained) <= {1, 2, 4, 8} and trained.count(1) > 5 and trained.count(8) > 5
    assert trained[scores.index(max(scores))] == BASE.epochs
    by_score = [epochs for _, epochs in sorted(zip(scores, trained, strict=True))]
    assert sum(by_score[:20]) < sum(by_score[40:])
    assert expected_folds(search, BASE) == pytest.approx(sum(trained) / BASE.epochs, rel=0.3)
    # A decision depends on trials with a lower number only: a longer search prunes the same trials.
    assert run_hyperband(hyperband(trials=20), [score / 1000 for score in scores[:20]]) == trained[:20]


@given(st.integers(2, 100), st.integers(2, 5), st.integers(1, 7))
def test_hyperband_costs_less_than_whole_trainings(trials: int, eta: int, first: int) -> None:
    expected = expected_folds(hyperband(trials, eta=eta, first_epochs=first), BASE)
    assert trials * first / BASE.epochs < expected < trials


def test_plans_need_neither_optuna_nor_torch() -> None:
    code = """
import sys
from lib.config import Config
from lib.search_space import check_search, count_trials, expected_folds, search_from_dict, searched_backbones
for method in ("grid", "random", "tpe", "hyperband"):
    own = {"grid": {}, "hyperband": {"trials": 4, "first_epochs": 1}}.get(method, {"trials": 4})
    space = search_from_dict({"method": method, "space": {"backbone": ["a", "b"]}, **own}, name="x")
    check_search(space, Config())
    print(count_trials(space), searched_backbones(space, Config()), expected_folds(space, Config()) > 0)
print(sorted({"torch", "optuna"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["2 ('a', 'b') True"] * 4 + ["[]"], done.stderr


def test_backbones_to_fetch_are_those_that_a_trial_may_have() -> None:
    both = {"backbone": ["a", "b"], "weights": ["none", "timm"]}
    assert searched_backbones(space(space=both), BASE) == ("a", "b")
    assert searched_backbones(space(space={"backbone": ["a", "b"]}), BASE) == ()  # BASE has weights = none
    assert searched_backbones(space(), Config(backbone="c")) == ("c",)


@given(RATES, st.integers(0, 9))
def test_a_search_travels_as_plain_values(rates: list[float], seed: int) -> None:
    for values in (
        {"space": {"learning_rate": rates, "flip": [True]}, "folds": [1, 0]},
        {"method": "random", "space": {"learning_rate": {"low": 1e-5, "high": 1e-2}}, "trials": 3},
        {"method": "tpe", "space": {"learning_rate": {"low": 1e-5, "high": 1e-2}}, "trials": 3},
        {"method": "hyperband", "space": {"ema_decay": [0.0, 0.9]}, "trials": 4, "eta": 3, "first_epochs": 2},
    ):
        found = space(**{**values, "seed": seed})
        assert search_from_dict(json.loads(json.dumps(found.to_dict())), name="x") == found


def test_everything_that_is_wrong_is_in_one_message() -> None:
    message = wrong(
        method="hyperband",
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
        "epochs cannot be searched by hyperband",
        "ema_decay: a range is",
        "hue: low = 0.3 is not below high = 0.1",
        "clip_grad_norm = 1.0: a list of values expected",
        "flip names no value",
        "num_members cannot be searched: a trial is one network on one GPU",
        "fold_split cannot be searched: it decides the folds",
        "weights = pretrain cannot be searched",
        "trials = 1: a whole number from 2",
        "first_epochs = 0",
        "folds = [0, 0]",
        "unknown key 'rounds'",
    ):
        assert text in message


@pytest.mark.parametrize(
    "option",
    sorted({*FOLD_OPTIONS, *PREPARE_OPTIONS, "num_folds", "train_mode", "pseudo_labels", "expected_hours"}),
)
def test_what_trials_must_share_cannot_be_searched(option: str) -> None:
    assert f"{option} cannot be searched" in wrong(space={option: [getattr(Config(), option)]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "halving"}, "one of grid, random, tpe, hyperband"),
        ({"trials": 3}, "trials is for method = random or tpe or hyperband"),
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
def test_a_search_that_makes_no_sense_says_why(values: dict[str, Any], message: str) -> None:
    assert message in wrong(**values)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({"train_mode": "linear_probe", "num_members": 1, "weights": "timm"}, {}, "frozen"),
        ({"pseudo_labels": "strong"}, {}, "the pseudo-labels of strong"),
        ({}, {"space": {"lora_rank": [4, 8]}}, "lora_rank changes nothing.*--set train_mode=lora"),
        ({"train_mode": "lora"}, {"space": {"train_blocks": [1, 2]}}, "--set train_mode=last_blocks"),
        ({"weights": "pretrain"}, {"space": {"backbone": ["a", "b"]}}, "those of one backbone"),
        ({}, {"folds": [0, 7]}, "there is no fold 7"),
        (
            {"warmup_epochs": 2.0},
            {"space": {"epochs": [1, 2, 3]}},
            "epochs=1: warmup_epochs = 2.0 is not below",
        ),
        ({}, {"method": "hyperband", "trials": 2, "first_epochs": 5}, "first_epochs = 5 is not below"),
        (
            {"warmup_epochs": 2.0},
            {"method": "tpe", "trials": 3, "space": {"epochs": {"low": 2, "high": 9}}},
            "epochs=2: warmup_epochs = 2.0 is not below",
        ),
        ({"weights": "a.safetensors"}, {"space": {"backbone": ["a", "b"]}}, "cannot fit several backbones"),
    ],
)
def test_an_experiment_that_cannot_be_searched_so_says_why(
    options: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        check_search(space(**values), config_from_dict(options))


def test_what_may_pass_is_tried_again_and_nothing_else() -> None:
    records = [
        {"id": "a", "status": "finished", "again": False},
        {"id": "b", "status": "failed", "again": False},
        {"id": "c", "status": "failed", "again": True},
        {"id": "d", "status": "not run", "again": False},
        {"id": "e", "status": "pruned", "again": False},
    ]
    records = [{"format": RECORD_FORMAT, **record} for record in records]
    former = [
        {"format": RECORD_FORMAT - 1, "id": "f", "status": "finished"},
        {"id": "g", "status": "finished"},
    ]
    assert [record["id"] for record in reusable_trials([*records, *former])] == ["a", "b", "e"]


@given(
    st.floats(1e-8, 10.0), st.booleans(), st.sampled_from(["", 'a"b\\c', "é🔬", "x\ty"]), st.integers(1, 1000)
)
def test_a_config_written_as_toml_reads_back_as_itself(
    rate: float, flip: bool, text: str, epochs: int
) -> None:
    config = Config(learning_rate=rate, flip=flip, pseudo_labels=text, epochs=epochs)
    assert parse_toml("# a comment\n" + to_toml(config), name="x") == config
    assert to_toml(Config()) == ""


def test_a_range_keeps_its_kind() -> None:
    found = space(
        method="random",
        space={"learning_rate": {"low": 0.001, "high": 1}, "epochs": {"low": 2, "high": 9}},
        trials=1,
    )
    assert found.space == {"learning_rate": Interval(0.001, 1.0), "epochs": Interval(2, 9)}
