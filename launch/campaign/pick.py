"""Pick the folds, members and epochs of a campaign that fit a given number of GPU hours.

A picked campaign is an ordinary one: its specification names the folds, and experiments with fewer members
or epochs have names of their own, as with `--set`. The ledger keeps the pick, and a repeated
command continues it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from launch import hours as estimates
from launch.campaign.ledger import Ledger
from launch.campaign.quota import expected_hours
from launch.campaign.spec import CampaignSpec
from launch.errors import LaunchError
from launch.experiments import Experiment, changed_experiment
from lib.config import Config, ConfigError
from lib.search_space import GPUS

logger = logging.getLogger(__name__)

_LEVELS = 20  # of the number of epochs that are tried


@dataclass(frozen=True)
class _Cut:
    """How much of a campaign is done: its first folds, members for each GPU, and a share of the epochs."""

    folds: int
    rounds: int
    epochs: float


def pick(spec: CampaignSpec) -> CampaignSpec:
    """The largest part of a campaign that is expected to fit in `spec.hours` of GPU quota.

    What is given up, in this order, until the rest fits: members beyond those that cost no time, epochs down
    to a half, folds from the last one, and, of one fold, epochs down to one. It never adds to what the
    experiments say. The result depends on nothing but the specification.

    Raises:
        LaunchError: not even one fold with one epoch fits.
    """
    assert spec.hours is not None, "there is nothing to fit"
    least: CampaignSpec | None = None
    for cut in _cuts(spec):
        try:
            least = _cut(spec, cut)
        except ConfigError:
            continue  # other options need more epochs
        if gpu_hours(least) <= spec.hours:
            return least
    assert least is not None, "the whole campaign is one of the cuts"
    raise LaunchError(
        f"--hours {spec.hours:g} is too little: the least of {_names(spec)} is expected to take "
        f"{gpu_hours(least):.2f} h ({_describe(spec, least)}; estimated, not measured). Give more hours, or "
        "a smaller network (--set backbone=..., --set input_size=...)"
    )


def fit_hours(given: CampaignSpec, ledger: Ledger | None) -> CampaignSpec:
    """What a run with `hours` computes, logged with its cost; without them, what is given.

    Args:
        given: what the command says.
        ledger: of the campaign, whose first pick stays; None: a new campaign.

    Raises:
        LaunchError: not even the least fits.
    """
    if given.hours is None:
        return given
    picked = pick(given) if ledger is None else _kept_pick(ledger.spec, given)
    logger.info(
        "--hours %g picks %s. About %.2f h of GPU quota (estimated, not measured)",
        given.hours,
        _describe(given, picked),
        gpu_hours(picked),
    )
    return picked


def gpu_hours(spec: CampaignSpec) -> float:
    """The expected GPU hours of a campaign of which nothing has run."""
    return sum(expected_hours(kernel) for kernel in spec.plan() if kernel.needs_gpu)


def _kept_pick(saved: CampaignSpec, given: CampaignSpec) -> CampaignSpec:
    """The specification of a run with --hours, in a campaign that exists: its first pick, where it can be.

    Args:
        saved: in the ledger.
        given: what the command says, before anything is picked.

    Returns:
        The given experiments with the saved folds, members and epochs, where those are a part of what is
        given for the same hours; a new pick otherwise. Other options are those given: whether they continue
        the campaign is for `same_campaign` to say.
    """
    pairs = list(zip(saved.experiments, given.experiments, strict=False))
    is_part = (
        saved.hours == given.hours
        and len(saved.experiments) == len(given.experiments)
        and set(_folds(saved)) <= set(_folds(given))
        and all(
            old.config.epochs <= new.config.epochs and old.config.num_members <= new.config.num_members
            for old, new in pairs
        )
    )
    if not is_part:
        return pick(given)
    try:
        experiments = tuple(
            _with(new, epochs=old.config.epochs, members=old.config.num_members) for old, new in pairs
        )
    except ConfigError:
        return pick(given)
    return replace(given, experiments=experiments, folds=saved.folds)


def _describe(given: CampaignSpec, picked: CampaignSpec) -> str:
    """`fold 0 of 5; resnet34-1a2b3c: 1 of 2 members, 3 of 5 epochs`."""
    folds, whole = _folds(picked), _folds(given)
    numbers = "all folds" if folds == whole else f"folds {', '.join(map(str, folds))} of {len(whole)}"
    parts = [numbers.replace("folds", "fold", 1) if len(folds) == 1 and folds != whole else numbers]
    for before, after in zip(given.experiments, picked.experiments, strict=True):
        counts = (
            f"{after.config.num_members} of {before.config.num_members} members, "
            f"{after.config.epochs} of {before.config.epochs} epochs"
        )
        parts.append(f"{after.name}: {counts if after.config != before.config else 'as it is'}")
    return "; ".join(parts)


def _names(spec: CampaignSpec) -> str:
    return ", ".join(experiment.name for experiment in spec.experiments)


def _folds(spec: CampaignSpec) -> Sequence[int]:
    """The folds of a specification; of experiments with different numbers, those that all have."""
    number = min(experiment.config.num_folds for experiment in spec.experiments)
    return tuple(range(number)) if spec.folds is None else spec.folds


def _cuts(spec: CampaignSpec) -> Iterator[_Cut]:
    """All parts that are considered, the most valuable first."""
    epochs = max(experiment.config.epochs for experiment in spec.experiments)
    step = max(1, ceil(epochs / _LEVELS))
    shares = [number / epochs for number in (*range(epochs, 1, -step), 1)]
    half = [share for share in shares if share >= 0.5]
    most = max(ceil(each.config.num_members / _at_once(each.config)) for each in spec.experiments)
    for number in range(len(_folds(spec)), 0, -1):
        yield from (_Cut(number, rounds, 1.0) for rounds in range(most, 1, -1))
        yield from (_Cut(number, 1, share) for share in half)
    yield from (_Cut(1, 1, share) for share in shares if share < 0.5)


def _at_once(config: Config) -> int:
    """So many members take as long as one."""
    return 1 if config.ddp else GPUS


def _cut(spec: CampaignSpec, cut: _Cut) -> CampaignSpec:
    folds = _folds(spec)
    experiments = []
    for experiment in spec.experiments:
        config = experiment.config
        members = min(config.num_members, cut.rounds * _at_once(config))
        epochs = max(1, round(config.epochs * cut.epochs))
        experiments.append(_with(experiment, epochs=epochs, members=members))
    return replace(
        spec,
        experiments=tuple(experiments),
        folds=spec.folds if cut.folds == len(folds) else tuple(folds[: cut.folds]),
    )


def _with(experiment: Experiment, *, epochs: int, members: int) -> Experiment:
    """An experiment with other numbers. Hours that its config states are scaled as the estimate is."""
    config = experiment.config
    if config.train_mode == "linear_probe" or (epochs, members) == (config.epochs, config.num_members):
        return experiment
    changed = changed_experiment(experiment, epochs=epochs, num_members=members)
    if not config.expected_hours:
        return changed
    share = estimates.fold_hours(changed.config) / estimates.fold_hours(config)
    return changed_experiment(changed, expected_hours=max(0.01, round(config.expected_hours * share, 3)))
