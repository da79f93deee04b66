"""The specification of a campaign, the options of one run of it, and the folders that hold campaigns."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.campaign.waits import Timeouts
from launch.errors import LaunchError
from launch.experiments import Experiment, with_teachers
from launch.plan import Kernel, plan_kernels
from lib.config import NEUTRAL_OPTIONS, config_from_dict
from lib.errors import listed
from lib.evaluation.averages import parse_weights
from lib.search_space import SearchSpace, search_from_dict
from lib.validation import type_errors

CAMPAIGNS = ROOT / "runs" / "campaigns"
# Kept apart: a rehearsal must never pass for a campaign that ran on Kaggle.
EMULATOR_CAMPAIGNS = ROOT / "runs" / "emulator" / "campaigns"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}")


@dataclass(frozen=True, kw_only=True)
class CampaignSpec:
    """All that decides what a campaign computes. The ledger holds it whole, and every command plans from it.

    Attributes:
        experiments: one or more, each with its teacher; one inference kernel averages them.
        owner: the account; empty: the owner in kernel-metadata.json, or the user of the credentials.
        folds: fold numbers, sorted; None: all folds.
        datasets: owner/slug of the datasets to attach.
        average: what inference averages over the members: mean (probabilities), logit, rank, or weights of
            the experiments (lib.evaluation.averages).
        search: the search of the campaign; it stays in the specification when a later run names none.
        thin: kernels import the library from the dataset.
        strict_bundle: refuse to average folds that different code trained.
        hours: of GPU quota from which folds, members and epochs were picked; None: nothing was picked.
    """

    experiments: tuple[Experiment, ...] = ()
    owner: str = ""
    folds: tuple[int, ...] | None = None
    datasets: tuple[str, ...] = ()
    average: str = "mean"
    search: SearchSpace | None = None
    thin: bool = False
    strict_bundle: bool = False
    hours: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what `spec_from_dict` reads."""
        search = self.search
        return {
            "experiments": [_experiment_to_dict(experiment) for experiment in self.experiments],
            "owner": self.owner,
            "folds": None if self.folds is None else list(self.folds),
            "datasets": list(self.datasets),
            "average": self.average,
            "search": None if search is None else {"name": search.name, "values": search.to_dict()},
            "thin": self.thin,
            "strict_bundle": self.strict_bundle,
            "hours": self.hours,
        }

    def plan(self) -> list[Kernel]:
        """The kernels of the campaign, in an order in which they can run."""
        return plan_kernels(
            self.experiments,
            datasets=self.datasets,
            folds=self.folds,
            average=self.average,
            search=self.search,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of one run of a campaign. They decide nothing about its results, and are not kept.

    Attributes:
        folder: of the campaign; its parent holds the lock.
        name: of a new campaign; empty: the name of the folder.
        search_only: run the search of the specification and what it reads, and nothing else.
        submit: send the submission and wait for its score.
        message: description of the submission, behind the campaign's id and the file's hash.
        reuse: reuse outputs of other campaigns even if other code made them.
        reserve_hours: of the weekly GPU quota to leave to other work.
        scored_by: who scores the submission; by default the service that the client is pointed at.
        timeouts: waits between requests and limits of all waits.
    """

    folder: Path
    name: str = ""
    search_only: bool = False
    submit: bool = True
    message: str = ""
    reuse: bool = False
    reserve_hours: float = 0.0
    scored_by: str = field(default_factory=lambda: service_name())
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, kw_only=True)
class _SavedSpec:
    """The types of what `CampaignSpec.to_dict` returns."""

    experiments: list[dict[str, Any]]
    owner: str
    folds: list[int] | None
    datasets: list[str]
    average: str
    search: dict[str, Any] | None
    thin: bool
    strict_bundle: bool
    hours: float | None


def spec_from_dict(values: Mapping[str, Any]) -> CampaignSpec:
    """Read a specification that was saved by `CampaignSpec.to_dict`.

    Raises:
        ValueError: a key is unknown or missing, a value has the wrong type, or a saved configuration holds an
            option that this code does not know. Nothing unknown is replaced by a default.
    """
    problems = type_errors(_SavedSpec, values)
    problems += [f"{item.name!r} is missing" for item in fields(_SavedSpec) if item.name not in values]
    if problems:
        raise ValueError("; ".join(problems))
    folds, search = values["folds"], values["search"]
    try:
        parse_weights(values["average"], [experiment["name"] for experiment in values["experiments"]])
        return CampaignSpec(
            experiments=tuple(_experiment_from_dict(experiment) for experiment in values["experiments"]),
            owner=values["owner"],
            folds=None if folds is None else tuple(folds),
            datasets=tuple(values["datasets"]),
            average=values["average"],
            search=None if search is None else search_from_dict(search["values"], name=search["name"]),
            thin=values["thin"],
            strict_bundle=values["strict_bundle"],
            hours=values["hours"],
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its specification is incomplete ({error!r})") from error


def _experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    teacher = experiment.teacher
    return {
        "name": experiment.name,
        "config": dict(experiment.config.to_dict()),
        "teacher": None if teacher is None else _experiment_to_dict(teacher),
    }


def _experiment_from_dict(values: Mapping[str, Any], *, is_teacher: bool = False) -> Experiment:
    name, teacher = values["name"], values["teacher"]
    if not isinstance(name, str) or len(values) != 3 or (is_teacher and teacher is not None):
        raise ValueError(f"{name!r} is not an experiment: a name, its config and its teacher expected")
    try:
        config = config_from_dict(values["config"])
    except ValueError as error:
        raise ValueError(f"experiment {name}: {error}") from error
    if teacher is None:
        return Experiment(name, config)
    return Experiment(name, config, teacher=_experiment_from_dict(teacher, is_teacher=True))


def same_campaign(saved: CampaignSpec, given: CampaignSpec) -> list[str]:
    """The differences that make two specifications two campaigns; empty where one may continue the other.

    Folds, average, search, thin and strict_bundle may change: the kernels that depend on them run again.
    Expected hours decide no result.
    """
    before, now = (
        {experiment.name: experiment.config.to_dict() for experiment in with_teachers(spec.experiments)}
        for spec in (saved, given)
    )
    problems = []
    if saved.owner != given.owner:
        problems.append(f"it belongs to {saved.owner}, not to {given.owner}")
    if set(before) != set(now):
        problems.append(f"its experiments are {', '.join(before)}, not {', '.join(now)}")
    if saved.datasets != given.datasets:
        datasets = [", ".join(spec.datasets) or "none" for spec in (saved, given)]
        problems.append(f"its attached datasets are {datasets[0]}, not {datasets[1]}")
    if saved.hours != given.hours:
        hours = [
            "without --hours" if each is None else f"with --hours {each:g}"
            for each in (saved.hours, given.hours)
        ]
        problems.append(f"it was started {hours[0]}, this command is {hours[1]}")
    for name, config in now.items():
        old = before.get(name, config)
        changed = [key for key in config if config[key] != old[key] and key not in NEUTRAL_OPTIONS]
        problems += [f"{name}: {key} was {old[key]!r}, is {config[key]!r}" for key in changed]
    return problems


def different_campaign(folder: Path, problems: Sequence[str]) -> LaunchError:
    """The error of a command that would continue another campaign than the one in `folder`."""
    remedy = "Choose another name with --campaign, or use the experiments and options of the first run."
    return LaunchError(listed(f"the campaign in {folder} was started differently:", problems, remedy=remedy))


def uses_emulator(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a client in this environment is pointed at this machine instead of Kaggle."""
    return environment.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"


def service_name() -> str:
    """The service that a client in this process is pointed at."""
    return "the emulated Kaggle" if uses_emulator() else "Kaggle"


def campaigns() -> Path:
    """The folder of all campaigns on the service that the client is pointed at."""
    return EMULATOR_CAMPAIGNS if uses_emulator() else CAMPAIGNS


def campaign_name(experiments: Sequence[Experiment], *, hours: float | None = None) -> str:
    """The default name of a campaign: its experiments, and the hours that they were fitted to."""
    names = "+".join(experiment.name for experiment in experiments)
    return names if hours is None else f"{names}-{hours:g}h"


def campaign_folder(name: str) -> Path:
    """The folder of a campaign.

    Raises:
        LaunchError: the name cannot name a folder.
    """
    if not _NAME.fullmatch(name):
        raise LaunchError(f"{name!r} cannot name a campaign: use at most 80 letters, digits and . _ + -")
    return campaigns() / name
