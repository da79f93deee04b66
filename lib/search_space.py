"""The hyperparameter search: its options and values, and the trials that Optuna draws and prunes.

A search is a TOML file under `experiments/searches/`:

    method = "tpe"                  # grid, random, tpe or hyperband
    trials = 30                     # all methods but grid
    seed = 0                        # of the draws
    folds = [0]                     # each trial is trained for and scored on

    [space]
    backbone = ["resnet18.tv_in1k", "resnet34.tv_in1k"]
    learning_rate = {low = 1e-4, high = 1e-2, scale = "log"}

A trial is the experiment with some options changed, trained as one network on one GPU. The same search over
the same experiment has the same trials, whatever the number and speed of the GPUs. Optuna is imported only
where a trial is drawn or pruned: to plan a search needs neither Optuna nor torch.
"""

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lib.config import (
    EXPECTATIONS,
    FOLD_OPTIONS,
    PREPARE_OPTIONS,
    WEIGHT_ENDINGS,
    Config,
    ConfigError,
    Value,
    check_value,
    config_from_dict,
)

METHODS = ("grid", "random", "tpe", "hyperband")
TABLE, RECORDS, WINNER = "search.csv", "trials.json", "winner.toml"  # the files a search writes
RECORD_FORMAT = 2  # of the trials in RECORDS
MOST_TRIALS = 500  # no session is long enough for more, and their records must fit the kernel's script
GPUS = 2  # of a session
_KEYS = {
    "grid": (),
    "random": ("trials",),
    "tpe": ("trials",),
    "hyperband": ("trials", "eta", "first_epochs"),
}
# TPE draws trial n from the scores of trials 0 to n - 4. More would make the trials depend on which GPU is
# faster, or leave one idle: with two GPUs trial n may start while trials n - 1 to n - 3 run or wait.
_TPE_LAG = 4
_ATTEMPTS = 100  # draws per trial, until the space is said to hold no further point
# Config compares these with each other, or reads them further than their type.
_CHECKED_TOGETHER = (
    "epochs",
    "warmup_epochs",
    "freeze_epochs",
    "schedule",
    "backbone",
    "weights",
    "mean",
    "std",
)
_SHARED = "it decides the folds or the prepared data, which all trials share"
_ONE_GPU = "a trial is one network on one GPU"
_NO_EFFECT = "it does not change what is learnt"
_REFUSED = {
    **dict.fromkeys((*FOLD_OPTIONS, *PREPARE_OPTIONS), _SHARED),
    **dict.fromkeys(EXPECTATIONS, "it is an estimate for planning and changes no result"),
    **dict.fromkeys(("num_members", "ddp", "sync_batchnorm"), _ONE_GPU),
    **dict.fromkeys(
        (
            "device",
            "tiles_on",
            "eval_every",
            "eval_tiles",
            "eval_batch_size",
            "fixed_schedule",
            "deterministic",
        ),
        _NO_EFFECT,
    ),
    **dict.fromkeys(("pseudo_labels", "pseudo_share"), "a search reads no folds of another experiment"),
    **dict.fromkeys(
        (
            "pretrain_weights",
            "pretrain_epochs",
            "pretrain_batch_size",
            "pretrain_learning_rate",
            "projector_dim",
            "pretrain_tiles",
        ),
        "an encoder is pretrained once, before the search",
    ),
    "train_mode": "a frozen encoder is embedded by another kernel, and other modes differ in time and memory",
}

_OPTION_OF_MODE = {"train_blocks": "last_blocks", "lora_rank": "lora"}  # options of one train_mode


class SearchError(ConfigError):
    """A search cannot be used; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included; drawn uniformly, or uniformly in their logarithm."""

    low: float
    high: float
    scale: str = "linear"

    @property
    def is_whole(self) -> bool:
        """True if it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def to_dict(self) -> dict[str, Any]:
        """As in the TOML file."""
        return {"low": self.low, "high": self.high, "scale": self.scale}


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A search.

    Attributes:
        name: of its file.
        method: grid (every combination), random (independent draws), tpe (Tree-structured Parzen Estimator:
            draws that depend on the scores so far) or hyperband (random draws; trials with low scores are
            pruned after a few epochs).
        space: option to the values it may take.
        trials: number of draws, for all methods but grid.
        seed: of the draws.
        folds: each trial is trained for and scored on.
        eta: for hyperband: at each pruning about one trial in `eta` is kept.
        first_epochs: for hyperband: epochs before the first pruning; the next ones come after `eta` times as
            many each.
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
        """As plain values, without the name: what `search_from_dict` reads."""
        space = {
            key: values.to_dict() if isinstance(values, Interval) else list(values)
            for key, values in self.space.items()
        }
        own = {key: getattr(self, key) for key in _KEYS[self.method]}
        return {"method": self.method, "space": space, "seed": self.seed, "folds": list(self.folds), **own}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search.

    Attributes:
        number: in the order of drawing, from 0.
        values: of the options that are searched.
        config: the experiment with these values, as one network on one GPU.
    """

    number: int
    values: Mapping[str, Value]
    config: Config

    @property
    def description(self) -> str:
        """Its values, for the log."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


# --- reading ------------------------------------------------------------------------------------------------


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
        SearchError: unknown keys or options, wrong types, values out of range; all of them in one message.
    """
    method = values.get("method")
    if method not in METHODS:
        raise SearchError(f"search {name!r}: method = {method!r}: one of {', '.join(METHODS)} expected")
    reader = _Reader(values)
    allowed = ("method", "space", "seed", "folds", *_KEYS[method])
    for key in values:
        if key not in allowed:
            methods = [other for other in METHODS if key in _KEYS[other]]
            reader.problems.append(
                f"{key} is for method = {' or '.join(methods)}"
                if methods
                else f"unknown key {key!r}; known: {', '.join(allowed)}"
            )
    fewest = 2 if method == "hyperband" else 1
    search = SearchSpace(
        name=name,
        method=method,
        space=reader.space(method),
        seed=reader.whole("seed", low=0, high=2**32 - 1, default=0),
        folds=reader.folds(),
        trials=reader.whole("trials", low=fewest, high=MOST_TRIALS) if "trials" in allowed else 0,
        eta=reader.whole("eta", low=2, high=10, default=2),
        first_epochs=reader.whole("first_epochs", low=1, high=1000) if "first_epochs" in allowed else 1,
    )
    if method == "grid" and (size := _grid_size(search)) > MOST_TRIALS:
        reader.problems.append(
            f"the grid has {size:,} trials, at most {MOST_TRIALS} are allowed: "
            "name fewer values, or use method = random"
        )
    if reader.problems:
        raise SearchError(_message(f"search {name!r}", reader.problems))
    return search


@dataclass
class _Reader:
    """Reads plain values and collects what is wrong with them."""

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
        valid = (
            isinstance(value, list | tuple)
            and value
            and all(type(fold) is int and fold >= 0 for fold in value)
        )
        if valid and len(set(value)) == len(value):
            return tuple(sorted(value))
        self.problems.append(f"folds = {value!r}: a list of different folds expected, such as [0]")
        return (0,)

    def space(self, method: str) -> dict[str, tuple[Value, ...] | Interval]:
        table = self.values.get("space")
        if not isinstance(table, Mapping) or not table:
            self.problems.append(
                "the table [space] is missing or empty: it names options, each with a list of values"
            )
            return {}
        space: dict[str, tuple[Value, ...] | Interval] = {}
        for key, values in table.items():
            if key in _REFUSED:
                self.problems.append(f"{key} cannot be searched: {_REFUSED[key]}")
            elif key == "epochs" and method == "hyperband":
                self.problems.append("epochs cannot be searched by hyperband, which decides them itself")
            elif isinstance(values, list | tuple):
                space[key] = self._list(key, values)
            elif isinstance(values, Mapping):
                if method == "grid":
                    self.problems.append(f"{key}: a grid takes a list of values, not a range")
                else:
                    space[key] = self._range(key, values)
            else:
                self.problems += check_value(key, values)[1] or [
                    f"{key} = {values!r}: a list of values expected"
                ]
        return space

    def _list(self, key: str, values: Iterable[object]) -> tuple[Value, ...]:
        accepted: list[Value] = []
        for given in values:
            value, problems = check_value(key, given)
            self.problems += [problem for problem in problems if problem not in self.problems]
            if key == "weights" and value == "pretrain":
                self.problems.append(
                    "weights = pretrain cannot be searched: an encoder is pretrained once, before the search"
                )
            if value in accepted:
                self.problems.append(f"{key} names {value!r} twice")
            accepted.append(value)
        if not accepted:
            self.problems.append(f"{key} names no value")
        return tuple(accepted)

    def _range(self, key: str, table: Mapping[str, object]) -> Interval:
        unusable = Interval(0.0, 1.0)
        if set(table) - {"scale"} != {"low", "high"}:
            self.problems.append(f'{key}: a range is {{low = ..., high = ..., scale = "log" or "linear"}}')
            return unusable
        (low, problems_low), (high, problems_high) = (check_value(key, table[end]) for end in ("low", "high"))
        scale = table.get("scale", "linear")
        problems = list(dict.fromkeys([*problems_low, *problems_high]))
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
        return unusable if problems else Interval(low, high, str(scale))


def _message(lead: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{lead} cannot be used: {problems[0]}"
    return "\n  - ".join([f"{lead} cannot be used, {len(problems)} things are wrong:", *problems])


# --- planning, without Optuna -------------------------------------------------------------------------------


def check_search(space: SearchSpace, base: Config) -> None:
    """Check that an experiment can be searched in this space.

    Raises:
        SearchError: it cannot, or a combination of values is not a valid config; all of them listed.
    """
    problems = _problems_with(space, base)
    for values in _grid(space) if space.method == "grid" else _corners(space):
        try:
            config_from_dict(values, base=base)
        except ConfigError as error:
            named = ", ".join(f"{key}={value}" for key, value in values.items())
            problems.append(f"{named}: {str(error).splitlines()[-1].removeprefix('  - ')}")
        if len(problems) > 20:
            break
    if problems:
        raise SearchError(_message(f"search {space.name!r}", problems))


def _problems_with(space: SearchSpace, base: Config) -> list[str]:
    problems = []
    if base.train_mode == "linear_probe":
        problems.append(
            "the experiment's encoder is frozen (train_mode = linear_probe), a search trains networks: "
            "--set train_mode=full"
        )
    for option, mode in _OPTION_OF_MODE.items():
        if option in space.space and base.train_mode not in (mode, "linear_probe"):
            problems.append(
                f"{option} changes nothing, because the experiment has train_mode = {base.train_mode}: "
                f"--set train_mode={mode}"
            )
    if base.pseudo_labels:
        problems.append(
            f"the experiment learns from the pseudo-labels of {base.pseudo_labels}: "
            "--set pseudo_labels= for a search without"
        )
    if base.weights == "pretrain" and "backbone" in space.space:
        problems.append(
            "backbone cannot be searched with weights = pretrain, which are those of one backbone"
        )
    if absent := [fold for fold in space.folds if fold >= base.num_folds]:
        problems.append(
            f"there is no fold {', '.join(map(str, absent))}: "
            f"the experiment has folds 0 to {base.num_folds - 1}"
        )
    if space.method == "hyperband" and space.first_epochs >= base.epochs:
        problems.append(
            f"first_epochs = {space.first_epochs} is not below the experiment's epochs = {base.epochs}"
        )
    backbones = values_of(space, base, "backbone")
    if len(backbones) > 1 and any(
        str(name).endswith(WEIGHT_ENDINGS) for name in values_of(space, base, "weights")
    ):
        named = ", ".join(sorted(map(str, backbones)))
        problems.append(f"one file of weights cannot fit several backbones ({named})")
    return problems


def _grid(space: SearchSpace) -> Iterable[dict[str, Value]]:
    lists = [values for values in space.space.values() if isinstance(values, tuple)]
    for combination in itertools.product(*lists):
        yield dict(zip(space.space, combination, strict=True))


def _grid_size(space: SearchSpace) -> int:
    return math.prod(len(values) for values in space.space.values() if isinstance(values, tuple))


def _corners(space: SearchSpace) -> Iterable[dict[str, Value]]:
    """The extreme combinations of the options that Config compares: if they are valid, all are."""
    extremes: dict[str, tuple[Value, ...]] = {}
    for key in _CHECKED_TOGETHER:
        if (values := space.space.get(key)) is not None:
            extremes[key] = (values.low, values.high) if isinstance(values, Interval) else values
    for combination in itertools.product(*extremes.values()):
        yield dict(zip(extremes, combination, strict=True))


def values_of(space: SearchSpace, base: Config, option: str) -> tuple[Value, ...]:
    """The values that an option may take in the trials; for a range, its ends."""
    values = space.space.get(option, (getattr(base, option),))
    return (values.low, values.high) if isinstance(values, Interval) else values


def searched_backbones(space: SearchSpace, base: Config) -> tuple[str, ...]:
    """The backbones whose weights the weights kernel must fetch for a search."""
    if "timm" not in values_of(space, base, "weights"):
        return ()
    return tuple(str(backbone) for backbone in values_of(space, base, "backbone"))


def count_trials(space: SearchSpace) -> int:
    """The number of trials; a space that holds fewer points than `trials` has one trial per point."""
    if space.method == "grid":
        return _grid_size(space)
    if any(isinstance(values, Interval) for values in space.space.values()):
        return space.trials
    return min(space.trials, _grid_size(space))


def pruning_epochs(space: SearchSpace, base: Config) -> list[int]:
    """The epochs after which hyperband may prune a trial, in ascending order; none for the other methods."""
    epochs = []
    if space.method == "hyperband":
        epochs.append(space.first_epochs)
        while epochs[-1] * space.eta < base.epochs:
            epochs.append(epochs[-1] * space.eta)
    return epochs


def expected_folds(space: SearchSpace, base: Config) -> float:
    """The expected cost of a search, in trainings of one fold of the experiment by one network.

    Raises:
        SearchError: the experiment cannot be searched in this space.
    """
    check_search(space, base)
    if space.method == "hyperband":
        epochs = count_trials(space) * _hyperband_epochs(space, base)
    elif space.method == "grid":
        epochs = float(sum(int(values.get("epochs", base.epochs)) for values in _grid(space)))
    else:
        drawn = values_of(space, base, "epochs")
        epochs = count_trials(space) * sum(map(float, drawn)) / len(drawn)
    return len(space.folds) * epochs / base.epochs


def _hyperband_epochs(space: SearchSpace, base: Config) -> float:
    """Expected epochs of a trial: bracket b starts with the b-th pruning, and each keeps one in `eta`."""
    rungs = pruning_epochs(space, base)
    brackets = 1
    while space.first_epochs * space.eta**brackets <= base.epochs:
        brackets += 1
    total = shares = 0.0
    for bracket in range(brackets):
        share = math.ceil(
            brackets * space.eta ** (brackets - 1 - bracket) / (brackets - bracket)
        )  # as Optuna's
        kept, epochs, before = 1.0, 0.0, 0
        for index, rung in enumerate([*rungs, base.epochs]):
            epochs += kept * (rung - before)
            kept, before = kept / space.eta if index >= bracket else kept, rung
        total, shares = total + share * epochs, shares + share
    return total / shares


# --- drawing and pruning, by Optuna -------------------------------------------------------------------------


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line per study
    return optuna


def trials_needed(space: SearchSpace, number: int) -> int:
    """How many trials, from the first on, must have ended before this trial can be drawn."""
    return max(0, number - _TPE_LAG + 1) if space.method == "tpe" else 0


def draw_trial(
    space: SearchSpace, base: Config, earlier: Sequence[Trial], scores: Mapping[int, float]
) -> Trial | None:
    """Draw the next trial, different from all earlier ones; None when there is no further one.

    It is a function of the arguments alone: the study is built from them and lives in memory.

    Args:
        space: the search.
        base: the config of the experiment.
        earlier: all trials before this one.
        scores: AUC by number, of trials that finished. TPE uses those of the first `trials_needed` trials.
    """
    number = len(earlier)
    if number >= count_trials(space):
        return None
    values: Mapping[str, Value] | None
    if space.method == "grid":
        values = next(itertools.islice(_grid(space), number, None))
    else:
        values = _sample(space, [trial.values for trial in earlier], scores)
    if values is None:
        return None
    config = config_from_dict(values, base=base)
    # One network on one GPU, scored once, at its end.
    config = replace(config, num_members=1, ddp=False, sync_batchnorm=False, eval_every=0)
    return Trial(number=number, values=values, config=config)


def _sample(
    space: SearchSpace, earlier: Sequence[Mapping[str, Value]], scores: Mapping[int, float]
) -> dict[str, Value] | None:
    optuna = _optuna()
    distributions = {key: _distribution(values) for key, values in space.space.items()}
    study = optuna.create_study(direction="maximize")
    number = len(earlier)
    for index, values in enumerate(earlier[: trials_needed(space, number)]):
        if index in scores:
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(values), distributions=distributions, value=scores[index]
                )
            )
    sampler = optuna.samplers.TPESampler if space.method == "tpe" else optuna.samplers.RandomSampler
    for attempt in range(_ATTEMPTS):
        # A generator of its own for each trial: a search that is resumed or made longer draws the same
        # trials.
        seed = np.random.SeedSequence([space.seed, number, attempt]).generate_state(1)[0]
        study.sampler = sampler(seed=int(seed))
        drawn = study.ask(distributions).params
        sample = {key: _rounded(drawn[key], values) for key, values in space.space.items()}
        if sample not in earlier:
            return sample
    return None


def _distribution(values: tuple[Value, ...] | Interval) -> Any:
    distributions = _optuna().distributions
    if not isinstance(values, Interval):
        return distributions.CategoricalDistribution(values)
    log = values.scale == "log"
    if values.is_whole:
        return distributions.IntDistribution(values.low, values.high, log=log)
    return distributions.FloatDistribution(values.low, values.high, log=log)


def _rounded(value: Value, values: tuple[Value, ...] | Interval) -> Value:
    """A drawn number with six significant digits, inside its interval."""
    if not isinstance(values, Interval) or values.is_whole:
        return value
    return min(max(float(f"{value:.6g}"), values.low), values.high)


def is_promoted(space: SearchSpace, base: Config, scores: Sequence[Mapping[int, float]]) -> bool:
    """True if hyperband lets the last of these trials go on; False if it prunes it after its last score.

    Optuna assigns each trial to a bracket by its number. A trial goes on if its score is among the best 1 /
    eta of the scores that trials of its bracket with a lower number had after the same epochs.

    Args:
        space: the search.
        base: the config of the experiment.
        scores: for each trial, in the order of the numbers: AUC by epochs, at the `pruning_epochs` that it
            reached.
    """
    optuna = _optuna()
    pruner = optuna.pruners.HyperbandPruner(
        min_resource=space.first_epochs, max_resource=base.epochs, reduction_factor=space.eta
    )
    # The brackets depend on the study's name: a constant one.
    study = optuna.create_study(direction="maximize", study_name="search", pruner=pruner)
    promoted = True
    for by_epochs in scores:
        trial = study.ask()
        for epochs, score in sorted(by_epochs.items()):
            trial.report(score, epochs)
            promoted = not trial.should_prune()
    return promoted


def reusable_trials(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The recorded trials that need not be run again: finished, pruned, or failed for a reason that stays."""
    return [
        dict(record)
        for record in records
        if record.get("format") == RECORD_FORMAT
        and record.get("status") in ("finished", "pruned", "failed")
        and not record.get("again")
    ]
