"""What a search tries: which knobs, which of their values, and by which method.

A search is a TOML file under `experiments/searches/`; as plain values it travels to the kernel. A trial is the experiment with
some knobs changed, trained as one network on one card. The same search over the same experiment draws the same trials.
"""

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lib.config import (
    EXPECTATIONS,
    FOLD_OPTIONS,
    PREPARE_OPTIONS,
    Config,
    ConfigError,
    Value,
    check_value,
    config_from_dict,
)

METHODS = ("grid", "random", "halving")
TABLE, RECORDS, WINNER = "search.csv", "trials.json", "winner.toml"  # what a search leaves
MOST_TRIALS = (
    500  # no session is long enough for more, and what is known of them must fit the kernel's script
)
GPUS = 2  # of a session
_KEYS = {"grid": (), "random": ("trials",), "halving": ("trials", "eta", "first_epochs")}
_DRAWS = 100  # for each trial asked for, until it is said that there are no more different ones
_SHARED = "it decides the folds or the prepared data, which all trials share"
_ALONE = "a trial is one network on one card"
_SAME = "it does not change what is learnt"
_REFUSED = {
    **dict.fromkeys((*FOLD_OPTIONS, *PREPARE_OPTIONS), _SHARED),
    **dict.fromkeys(EXPECTATIONS, "it says what is expected, and decides nothing"),
    **dict.fromkeys(("num_members", "ddp", "sync_batchnorm"), _ALONE),
    **dict.fromkeys(("device", "eval_every", "eval_batch_size", "fixed_schedule"), _SAME),
    **dict.fromkeys(("pseudo_labels", "pseudo_share"), "a search reads no folds of another experiment"),
    **dict.fromkeys(
        (
            "pretrain_epochs",
            "pretrain_batch_size",
            "pretrain_learning_rate",
            "projector_dim",
            "pretrain_tiles",
        ),
        "an encoder is pretrained once, before the search",
    ),
    "train_mode": "a frozen encoder is another kernel",
}


class SearchError(ConfigError):
    """A search cannot be used; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included; drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    scale: str = "linear"

    def to_dict(self) -> dict[str, Any]:
        """As in the TOML file."""
        return {"low": self.low, "high": self.high, "scale": self.scale}


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A search.

    Attributes:
        name: of its file.
        method: grid (every combination), random (so many draws), or halving (as random; the best of each rung are trained
            again, from the start, for eta times as many epochs, until one is left or the experiment's own epochs are reached).
        space: knob to the values it may take.
        trials: draws, for random and halving.
        seed: of the draws.
        folds: each trial is trained for and scored on.
        eta: of each rung, one in so many goes on.
        first_epochs: of the first rung.
    """

    name: str
    method: str
    space: Mapping[str, tuple[Value, ...] | Interval]
    trials: int = 0
    seed: int = 0
    folds: tuple[int, ...] = (0,)
    eta: int = 2
    first_epochs: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values: what `search_from_dict` reads, less the name."""
        space = {
            key: value.to_dict() if isinstance(value, Interval) else list(value)
            for key, value in self.space.items()
        }
        own = {key: getattr(self, key) for key in _KEYS[self.method]}
        return {
            "method": self.method,
            "space": space,
            "seed": self.seed,
            "folds": list(self.folds),
            **own,
        }


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search.

    Attributes:
        number: in the order of drawing, from 0.
        values: of the knobs that are searched.
        config: the experiment with these values, as one network on one card.
        rung: how often it was among the best of a rung; 0 but for halving.
    """

    number: int
    values: Mapping[str, Value]
    config: Config
    rung: int = 0

    @property
    def words(self) -> str:
        """Its values, for people."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_search(text: str, *, name: str) -> SearchSpace:
    """A search from the text of `experiments/searches/<name>.toml`.

    Raises:
        SearchError: the text is not TOML, or its values cannot be used.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SearchError(f"search {name!r} is not valid TOML: {error}") from error
    return search_from_dict(values, name=name)


def search_from_dict(values: Mapping[str, Any], *, name: str) -> SearchSpace:
    """A search from plain values.

    Raises:
        SearchError: unknown keys or knobs, wrong types, values out of range; all of them in one message.
    """
    method = values.get("method")
    if method not in METHODS:
        raise SearchError(f"search {name!r}: method = {method!r}: one of {', '.join(METHODS)} expected")
    reader = _Reader(values)
    allowed = ("method", "space", "seed", "folds", *_KEYS[method])
    for key in values:
        if key not in allowed:
            owner = [other for other in METHODS if key in _KEYS[other]]
            why = (
                f"{key} is for method = {' or '.join(owner)}"
                if owner
                else f"unknown key {key!r}; known: {', '.join(allowed)}"
            )
            reader.problems.append(why)
    found = SearchSpace(
        name=name,
        method=method,
        space=reader.space(method),
        seed=reader.whole("seed", low=0, high=2**32 - 1, default=0),
        folds=reader.folds(),
        trials=reader.whole("trials", low=2 if method == "halving" else 1, high=MOST_TRIALS)
        if "trials" in allowed
        else 0,
        eta=reader.whole("eta", low=2, high=10, default=2),
        first_epochs=reader.whole("first_epochs", low=1, high=1000) if "first_epochs" in allowed else 1,
    )
    size = math.prod(len(each) for each in found.space.values() if isinstance(each, tuple))
    if method == "grid" and size > MOST_TRIALS:
        reader.problems.append(
            f"the grid has {size:,} trials, {MOST_TRIALS} at most: name fewer values, or draw with random"
        )
    if reader.problems:
        raise SearchError(_message(f"search {name!r}", reader.problems))
    return found


@dataclass
class _Reader:
    """Takes values, and keeps what is wrong with them."""

    values: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def whole(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.problems.append(f"{key} = {value!r}: a whole number from {low} to {high} expected")
        return low

    def folds(self) -> tuple[int, ...]:
        value = self.values.get("folds", [0])
        fits = (
            isinstance(value, list | tuple)
            and value
            and all(type(each) is int and each >= 0 for each in value)
        )
        if fits and len(set(value)) == len(value):
            return tuple(sorted(value))
        self.problems.append(f"folds = {value!r}: a list of different folds expected, such as [0]")
        return (0,)

    def space(self, method: str) -> dict[str, tuple[Value, ...] | Interval]:
        table = self.values.get("space")
        if not isinstance(table, Mapping) or not table:
            self.problems.append(
                "the table [space] is missing or empty: it names knobs, each with a list of values"
            )
            return {}
        found: dict[str, tuple[Value, ...] | Interval] = {}
        for key, wanted in table.items():
            if key in _REFUSED:
                self.problems.append(f"{key} cannot be searched: {_REFUSED[key]}")
            elif key == "epochs" and method == "halving":
                self.problems.append("epochs cannot be searched by halving, which decides them itself")
            elif isinstance(wanted, list | tuple):
                found[key] = self._list(key, wanted)
            elif isinstance(wanted, Mapping):
                if method == "grid":
                    self.problems.append(f"{key}: a grid takes a list of values, not a range")
                else:
                    found[key] = self._range(key, wanted)
            else:
                self.problems += check_value(key, wanted)[1] or [
                    f"{key} = {wanted!r}: a list of values expected"
                ]
        return found

    def _list(self, key: str, wanted: Iterable[object]) -> tuple[Value, ...]:
        taken: list[Value] = []
        for each in wanted:
            value, wrong = check_value(key, each)
            self.problems += [text for text in wrong if text not in self.problems]
            if key == "weights" and value == "pretrain":
                self.problems.append(
                    "weights = pretrain cannot be searched: an encoder is pretrained once, before the search"
                )
            if value in taken:
                self.problems.append(f"{key} names {value!r} twice")
            taken.append(value)
        if not taken:
            self.problems.append(f"{key} names no value")
        return tuple(taken)

    def _range(self, key: str, wanted: Mapping[str, object]) -> Interval:
        nothing = Interval(0.0, 1.0)
        if set(wanted) - {"scale"} != {"low", "high"}:
            self.problems.append(f'{key}: a range is {{low = ..., high = ..., scale = "log" or "linear"}}')
            return nothing
        (low, wrong), (high, also) = check_value(key, wanted["low"]), check_value(key, wanted["high"])
        scale = wanted.get("scale", "linear")
        problems = list(dict.fromkeys([*wrong, *also]))
        if not problems and (isinstance(low, bool) or not isinstance(low, int | float)):
            problems.append(f"{key} is no number: name its values in a list")
        if not problems and not low < high:
            problems.append(f"{key}: low = {low!r} is not below high = {high!r}")
        if not problems and scale == "log" and low <= 0:
            problems.append(f"{key}: scale = log needs low above zero, not {low!r}")
        if not problems and key == "tta_views":
            problems.append("tta_views is one of 1, 4, 8: name its values in a list")
        if scale not in ("log", "linear"):
            problems.append(f"{key}: scale = {scale!r}: log or linear expected")
        self.problems += problems
        return nothing if problems else Interval(low, high, str(scale))


def _message(lead: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{lead} cannot be used: {problems[0]}"
    return "\n  - ".join([f"{lead} cannot be used, {len(problems)} things are wrong:", *problems])


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw_trials(space: SearchSpace, base: Config) -> list[Trial]:
    """The trials of a search over an experiment (of halving: those of the first rung), always the same; none twice.

    Random draws are different from each other; where a space holds fewer points than were asked for, all of them that
    were met are tried.

    Raises:
        SearchError: the experiment cannot be searched so, or a combination of values cannot be used; all of them listed.
    """
    problems = _problems_with(space, base)
    trials: list[Trial] = []
    seen: set[tuple[Value, ...]] = set()
    for values in _points(space):
        key = tuple(values.values())
        if key in seen:
            continue
        seen.add(key)
        try:
            config = _alone(config_from_dict(values, base=base))
        except ConfigError as error:
            words = ", ".join(f"{name}={value}" for name, value in values.items())
            problems.append(f"{words}: {str(error).splitlines()[-1].removeprefix('  - ')}")
            continue
        trials.append(Trial(number=len(trials), values=values, config=config))
        if space.method != "grid" and len(trials) == space.trials:
            break
        if len(problems) > 20:
            break
    fetched = {trial.config.backbone for trial in trials if trial.config.weights.endswith(".safetensors")}
    if len(fetched) > 1:
        problems.append(f"one file of weights cannot fit several backbones ({', '.join(sorted(fetched))})")
    if problems:
        raise SearchError(_message(f"search {space.name!r}", problems))
    return [at_rung(space, base, trial, 0) for trial in trials] if space.method == "halving" else trials


def _problems_with(space: SearchSpace, base: Config) -> list[str]:
    problems = []
    if base.train_mode == "linear_probe":
        problems.append(
            "the experiment's encoder is frozen (train_mode = linear_probe), a search trains networks: --set train_mode=full"
        )
    if base.pseudo_labels:
        problems.append(
            f"the experiment learns from the labels of {base.pseudo_labels}: --set pseudo_labels= leaves them away"
        )
    if base.weights == "pretrain" and "backbone" in space.space:
        problems.append(
            "backbone cannot be searched with weights = pretrain, which holds those of one backbone"
        )
    if absent := [fold for fold in space.folds if fold >= base.num_folds]:
        problems.append(
            f"there is no fold {', '.join(map(str, absent))}: the experiment has folds 0 to {base.num_folds - 1}"
        )
    if space.method == "halving" and space.first_epochs >= base.epochs:
        problems.append(
            f"first_epochs = {space.first_epochs} is not below the experiment's epochs = {base.epochs}"
        )
    return problems


def _points(space: SearchSpace) -> Iterable[dict[str, Value]]:
    """Values of the searched knobs: all combinations, or draws without an end in sight."""
    if space.method == "grid":
        lists = [each for each in space.space.values() if isinstance(each, tuple)]
        for combination in itertools.product(*lists):
            yield dict(zip(space.space, combination, strict=True))
        return
    for number in range(_DRAWS * space.trials):
        generator = np.random.default_rng(np.random.SeedSequence([space.seed, number]))
        yield {key: _draw(wanted, generator) for key, wanted in space.space.items()}


def _draw(wanted: tuple[Value, ...] | Interval, generator: np.random.Generator) -> Value:
    if isinstance(wanted, tuple):
        return wanted[int(generator.integers(len(wanted)))]
    low, high = wanted.low, wanted.high
    if wanted.scale == "log":
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    elif isinstance(low, int) and isinstance(high, int):
        return int(generator.integers(low, high + 1))
    else:
        value = float(generator.uniform(low, high))
    if isinstance(low, int) and isinstance(high, int):
        return min(max(round(value), low), high)
    return min(max(float(f"{value:.6g}"), low), high)  # six digits: nobody can tell more of them apart


def _alone(config: Config) -> Config:
    """The config of a trial: one network, on one card, scored once, at its end."""
    return replace(config, num_members=1, ddp=False, sync_batchnorm=False, eval_every=0)


def rungs(space: SearchSpace, base: Config, *, trials: int) -> list[tuple[int, int]]:
    """(epochs, trials) of the rungs of halving; of the other methods the experiment's epochs and all trials."""
    if space.method != "halving":
        return [(base.epochs, trials)]
    found = [(space.first_epochs, trials)]
    while found[-1][1] > 1 and found[-1][0] < base.epochs:
        epochs, count = found[-1]
        found.append((min(epochs * space.eta, base.epochs), max(1, count // space.eta)))
    return found


def at_rung(space: SearchSpace, base: Config, trial: Trial, rung: int) -> Trial:
    """A trial with the epochs of a rung; warm-up and frozen epochs keep their share of them."""
    epochs = rungs(space, base, trials=space.trials)[rung][0]
    whole = config_from_dict(dict(trial.values), base=base)
    shorter = replace(
        whole,
        epochs=epochs,
        warmup_epochs=round(whole.warmup_epochs * epochs / base.epochs, 6),
        freeze_epochs=whole.freeze_epochs * epochs // base.epochs,
    )
    return replace(trial, config=_alone(shorter), rung=rung)


def expected_folds(space: SearchSpace, base: Config) -> float:
    """What a search costs, in trainings of one fold of the experiment by one network.

    Raises:
        SearchError: the experiment cannot be searched so.
    """
    trials = draw_trials(space, base)
    if space.method == "halving":
        epochs = sum(each * count for each, count in rungs(space, base, trials=len(trials)))
    else:
        epochs = sum(trial.config.epochs for trial in trials)
    return len(space.folds) * epochs / base.epochs


def reusable_trials(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the trials a search recorded, those that need not be run again: finished, or failed as they would again."""
    return [
        dict(each)
        for each in records
        if each.get("status") in ("finished", "failed") and not each.get("again")
    ]
