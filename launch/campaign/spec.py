"""What a campaign is to do, where it lives, and how it is found again."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.campaign.ledger import LEDGER_NAME, read_ledger
from launch.campaign.submission import ScoreTimeouts
from launch.campaign.waits import Timeouts
from launch.errors import LaunchError
from launch.plan import ROOT, Experiment, Kernel, plan_kernels
from lib.config import ConfigError, config_from_dict
from lib.search_space import SearchSpace, search_from_dict

CAMPAIGNS = ROOT / "runs" / "campaigns"
EMULATOR_CAMPAIGNS = (
    ROOT / "runs" / "emulator" / "campaigns"
)  # what was rehearsed must never pass for what Kaggle ran
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}")


@dataclass(kw_only=True)
class CampaignSpec:
    """What a campaign is to do, however it is started.

    Attributes:
        experiments: one or more; more are averaged by one inference kernel.
        folder: of the campaign; its parent holds the lock.
        name: of the campaign; empty: the folder's.
        owner: the account; empty: the one kernel-metadata.json names, or the one whose credentials are used.
        folds: which; None for all.
        datasets: owner/slug to attach.
        submit: send the submission and wait for the score.
        message: what the submission says besides campaign and hash.
        thin: kernels that import the library from the dataset.
        strict_bundle: refuse to average folds that different code trained.
        average: how inference averages members: mean, logit or rank.
        search: bring this search to its end, and nothing else but what it reads.
        reuse: take over outputs of other campaigns even if other code made them.
        judge: who scores; by default whom the client talks to.
        pace, score_pace: waits.
    """

    experiments: Sequence[Experiment]
    folder: Path
    name: str = ""
    owner: str = ""
    folds: Sequence[int] | None = None
    datasets: Sequence[str] = ()
    submit: bool = True
    message: str = ""
    thin: bool = False
    strict_bundle: bool = False
    average: str = "mean"
    search: SearchSpace | None = None
    reuse: bool = False
    judge: str = field(default_factory=lambda: "the emulated Kaggle" if uses_emulator() else "Kaggle")
    pace: Timeouts = field(default_factory=Timeouts)
    score_pace: ScoreTimeouts = field(default_factory=ScoreTimeouts)


def uses_emulator(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a client in this environment talks to this machine and not to Kaggle."""
    return environment.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"


def campaigns() -> Path:
    """The folder of all campaigns of whom the client talks to."""
    return EMULATOR_CAMPAIGNS if uses_emulator() else CAMPAIGNS


def campaign_name(experiments: Sequence[Experiment]) -> str:
    """The name of a campaign that was given none."""
    return "+".join(experiment.name for experiment in experiments)


def campaign_folder(name: str) -> Path:
    """Where a campaign of this name lives.

    Raises:
        LaunchError: it cannot be the name of a folder.
    """
    if not _NAME.fullmatch(name):
        raise LaunchError(f"{name!r} cannot name a campaign: letters, digits and . _ + - please, 80 at most")
    return campaigns() / name


def search_of(folder: Path) -> SearchSpace | None:
    """The search that the campaign in a folder was about last, as its ledger tells; None where there was none."""
    ledger = read_ledger(folder)
    if ledger is None or ledger.search is None:
        return None
    try:
        return search_from_dict(ledger.search["values"], name=ledger.search["name"])
    except ConfigError as error:
        raise LaunchError(
            f"the search of the campaign in {folder} was made by other code: {error}"
        ) from error


def find_campaign(name: str | None) -> Path:
    """The folder of a campaign: of the one named, else of the one that was at work last.

    Raises:
        LaunchError: there is none.
    """
    if name is not None:
        folder = campaign_folder(name)
        if not (folder / LEDGER_NAME).is_file():
            there = sorted(path.parent.name for path in campaigns().glob(f"*/{LEDGER_NAME}"))
            raise LaunchError(f"there is no campaign {name}; there are: {', '.join(there) or 'none'}")
        return folder
    ledgers = sorted(campaigns().glob(f"*/{LEDGER_NAME}"), key=lambda path: path.stat().st_mtime)
    if not ledgers:
        raise LaunchError(
            f"there is no campaign yet in {campaigns()}: start one with build_kernel.py run. "
            "(What `smoke` and `local` left has its report already, in the folder they printed.)"
        )
    return ledgers[-1].parent


def order_of(folder: Path) -> CampaignSpec:
    """The order a campaign was started with, as its ledger tells.

    Raises:
        LaunchError: there is no ledger, or its configs are not of this code.
    """
    ledger = read_ledger(folder)
    if ledger is None:
        raise LaunchError(f"{folder} holds no campaign")
    try:
        experiments = [
            Experiment(name, config_from_dict(config)) for name, config in ledger.experiments.items()
        ]
    except ValueError as error:
        raise LaunchError(f"the campaign in {folder} was made by other code: {error}") from error
    return CampaignSpec(
        experiments=experiments,
        folder=folder,
        owner=ledger.owner,
        datasets=ledger.datasets,
        folds=ledger.folds,
    )


def plan_of(order: CampaignSpec) -> Sequence[Kernel]:
    """The kernels of an order."""
    return plan_kernels(
        order.experiments,
        datasets=order.datasets,
        folds=order.folds,
        average=order.average,
        search=order.search or search_of(order.folder),
    )
