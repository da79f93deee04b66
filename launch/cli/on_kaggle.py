"""Commands on Kaggle: run, status, watch, logs, output, push, submit, report, ensemble."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from launch.cli.group import main
from launch.cli.shared import (
    AVERAGE,
    CAMPAIGN,
    DATASET,
    EXPERIMENTS,
    FOLDER,
    FOLDS,
    HOLDOUT,
    JSON,
    LOCAL,
    MESSAGE,
    NEW_CAMPAIGN,
    OWNER,
    RESERVE,
    SEARCH,
    SET,
    STRICT_BUNDLE,
    complete_experiments,
    examples,
    load_chosen,
    load_search_space,
    next_run,
    out_option,
    print_next,
    repeated_options,
    require_networks,
)
from launch.console import print_json, print_text


def _spec(
    experiments: tuple[str, ...], overrides: tuple[str, ...], *, owner: str | None, **values: Any
) -> Any:
    """What a campaign computes, from the arguments of a command."""
    from launch.campaign.spec import CampaignSpec

    return CampaignSpec(experiments=tuple(load_chosen(experiments, overrides)), owner=owner or "", **values)


def _folder(spec: Any, campaign: str | None) -> Path:
    """The folder of a campaign, by --campaign or by its experiments and hours."""
    from launch.campaign.spec import campaign_folder, campaign_name

    return campaign_folder(campaign or campaign_name(spec.experiments, hours=spec.hours))


@main.command(
    epilog=examples(
        "build_kernel.py run --folds 0               one fold of the default experiment: a first score",
        "build_kernel.py run                         all of its folds",
        "build_kernel.py run strong --hours 3        the part of it that fits in 3 GPU hours",
        "build_kernel.py run resnet18 resnet34       two experiments, averaged",
        "build_kernel.py run strong --set epochs=8   a changed experiment, under a name of its own",
    )
)
@EXPERIMENTS
@FOLDS
@click.option(
    "--hours",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Pick the folds, members and epochs that are expected to fit in N GPU hours, and say which.",
)
@RESERVE
@click.option("--no-submit", is_flag=True, help="Stop before the submission.")
@MESSAGE
@NEW_CAMPAIGN
@click.option(
    "--reuse",
    is_flag=True,
    help="Reuse finished outputs of other campaigns even if other code made them.",
)
@STRICT_BUNDLE
@click.option("--no-check", is_flag=True, help="Do not offer the environment check before the first fold.")
@AVERAGE
@SEARCH
@HOLDOUT
@OWNER
@DATASET
@SET
def run(
    experiments: tuple[str, ...],
    folds: tuple[int, ...] | None,
    hours: float | None,
    reserve_hours: float,
    no_submit: bool,
    message: str,
    campaign: str | None,
    reuse: bool,
    strict_bundle: bool,
    no_check: bool,
    average: str,
    search_name: str | None,
    holdout: str | None,
    owner: str | None,
    datasets: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Run a campaign on Kaggle, up to a leaderboard score.

    It uploads the library dataset, pushes the kernels (weights, prepare, the folds two at a time, inference),
    submits, waits for the score, and makes the report.

    You can interrupt it and repeat it. Finished kernels are not run again, and kernels that run on Kaggle
    continue without this command.

    With --hours N it gives up members beyond two, epochs down to a half, folds, then epochs, until the rest
    fits. The pick is kept: the same command continues it. Another N makes another campaign (EXPERIMENTS-Nh),
    which reuses the finished folds of the same options.
    """
    from launch.campaign.commands import run as campaign_run
    from launch.campaign.spec import RunOptions
    from launch.kaggle_api.client import connect

    if hours is not None and search_name is not None:
        raise click.UsageError("--hours picks folds, members and epochs: a search has its own trials")
    spec = _spec(
        experiments,
        (*overrides, *([f"holdout={holdout}"] if holdout is not None else [])),
        owner=owner,
        folds=folds,
        hours=hours,
        datasets=datasets,
        strict_bundle=strict_bundle,
        average=average,
        search=load_search_space(search_name),
    )
    options = RunOptions(
        folder=_folder(spec, campaign),
        search_only=search_name is not None,
        submit=not no_submit,
        message=message,
        reuse=reuse,
        reserve_hours=reserve_hours,
    )
    if not (options.folder / "ledger.json").is_file():
        require_networks(spec.experiments)
    if not no_check:
        _offer_environment_check(spec, options.folder)
    campaign_run(spec, options, connect=connect)
    if search_name is not None:
        print_next("experiments", f"run {repeated_options(without=('search_name',))} --folds 0")
    elif folds is not None:
        print_next(f"run {repeated_options(without=('folds',))}")
    else:
        print_next(
            "submit" if no_submit else "ensemble select",
            f"predict --tiles DIR --members {options.folder.name} --out predictions.csv",
        )


def _offer_environment_check(spec: Any, folder: Path) -> None:
    """Offer the environment check before the first campaign: a few minutes may save hours of quota."""
    from launch.doctor.command import CHECK_FOLDER
    from launch.doctor.command import doctor as examine
    from launch.doctor.environment_check import RESULTS

    if (CHECK_FOLDER / RESULTS).is_file() or (folder / "ledger.json").is_file() or not sys.stdin.isatty():
        return
    print_text(
        "Your Kaggle account was not checked yet. The check pushes three small kernels: a few minutes, about "
        "0.1 h of GPU quota."
    )
    if click.confirm("Run it first?", default=True):
        examine(spec.experiments, check_kaggle=True, folder=CHECK_FOLDER)


def _next_of_campaign(status: Any, folder: Path) -> None:
    """What comes next after the status of a campaign."""
    if status.is_running:
        print_next("watch", f"logs {status.running[0]} --follow")
    elif not status.is_fetched:
        print_next(next_run(folder))
    elif any(submission.state == "scored" for submission in status.ledger.submissions):
        print_next("ensemble select", f"predict --tiles DIR --members {folder.name} --out predictions.csv")
    else:
        print_next("report", next_run(folder))


def _next_of_local(statuses: Sequence[Any], folder: Path) -> None:
    """What comes next after the status of a run of `local`."""
    states, place = {status.state for status in statuses}, shlex.quote(str(folder))
    if "running" in states:
        print_next(f"watch --local {place}", f"logs fold-0 --follow --local {place}")
    elif states == {"done"}:
        print_next(f"predict --tiles DIR --members {place} --out predictions.csv")
    else:
        print_next(f"local EXPERIMENT --out {place}")


@main.command()
@CAMPAIGN
@LOCAL
@JSON
def status(campaign: str | None, local_run: Path | None, as_json: bool) -> None:
    """Show the state of a campaign: kernels, versions, AUC, quota.

    With --local it shows the kernels of a run on this machine, while it runs and afterwards.
    """
    if local_run is not None:
        from launch.campaign.local_run import local_status_document, show_local_status

        if as_json:
            print_json(local_status_document(local_run))
        else:
            _next_of_local(show_local_status(local_run), local_run)
        return
    from launch.campaign.ledger import find_campaign
    from launch.campaign.status import read_status, show_status
    from launch.kaggle_api.client import connect

    folder = find_campaign(campaign)
    if as_json:
        print_json(read_status(folder, connect()).to_dict())
    else:
        _next_of_campaign(show_status(folder, connect=connect), folder)


@main.command()
@CAMPAIGN
@click.option(
    "--every",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds between two checks.",
)
@LOCAL
def watch(campaign: str | None, every: float, local_run: Path | None) -> None:
    """Repeat `status` until no kernel runs on Kaggle.

    It changes nothing.
    """
    if local_run is not None:
        from launch.campaign.local_run import watch_local

        _next_of_local(watch_local(local_run, every=every), local_run)
        return
    from launch.campaign.ledger import find_campaign
    from launch.campaign.status import watch as watch_campaign
    from launch.kaggle_api.client import connect

    folder = find_campaign(campaign)
    _next_of_campaign(watch_campaign(folder, connect=connect, every=every), folder)


@main.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Print each line as it appears, until the kernel ends.")
@CAMPAIGN
@LOCAL
def logs(name: str, follow: bool, campaign: str | None, local_run: Path | None) -> None:
    """Print the log of a kernel.

    NAME is weights, prepare, fold-0, fold-1, ..., inference or report.
    """
    if local_run is not None:
        from launch.campaign.local_run import show_local_log

        show_local_log(local_run, name, follow=follow)
        print_next(f"status --local {shlex.quote(str(local_run))}", to_errors=True)
        return
    from launch.campaign.commands import show_log
    from launch.campaign.ledger import find_campaign
    from launch.kaggle_api.client import connect

    show_log(find_campaign(campaign), name, follow=follow, connect=connect)
    print_next("status", to_errors=True)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@out_option(None, "Where to. [default: fetched/ in the folder of the campaign]")
@click.option("--weights", is_flag=True, help="Download the weights of the members, too, for `predict`.")
@CAMPAIGN
def output(names: tuple[str, ...], out: Path | None, weights: bool, campaign: str | None) -> None:
    """Download the outputs of kernels.

    NAME is weights, prepare, fold-0, fold-1, ..., inference or report. Without a name, all folds are meant.
    Each output is checked against its run.json. Arrays stay on Kaggle, and weights unless you add --weights:
    those of a fold are about 90 MB a member for `resnet34`.
    """
    from launch.campaign.commands import fetch_outputs
    from launch.campaign.ledger import find_campaign
    from launch.kaggle_api.client import connect

    fetch_outputs(find_campaign(campaign), names, out=out, connect=connect, with_weights=weights)
    print_next("report", "predict --tiles DIR --members CAMPAIGN --out predictions.csv")


@main.command(
    epilog=examples(
        "build_kernel.py push prepare",
        "build_kernel.py push fold-0 fold-1",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    shell_complete=complete_experiments,
    help="An experiment of the campaign. Repeatable.",
)
@NEW_CAMPAIGN
@RESERVE
@SEARCH
@OWNER
@DATASET
@SET
def push(
    names: tuple[str, ...],
    experiments: tuple[str, ...],
    campaign: str | None,
    reserve_hours: float,
    search_name: str | None,
    owner: str | None,
    datasets: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Push single kernels by hand.

    NAME is dataset, weights, prepare, pretrain, embed, fold-0, ..., inference, search or report, if the
    experiment has such a kernel.

    The rules of `run` apply: a kernel is not pushed over a running version, nor before the kernels that it
    reads are done. The command returns when Kaggle has accepted the push. `run` fetches the outputs and
    continues from there. A
    search that was pushed before continues: its finished trials are not run again.
    """
    from launch.campaign.commands import push as push_names
    from launch.campaign.spec import CampaignSpec, RunOptions
    from launch.kaggle_api.client import connect

    search = load_search_space(search_name)
    if campaign and not experiments and not overrides:
        spec = CampaignSpec(owner=owner or "", datasets=datasets, search=search)
    else:
        spec = _spec(experiments, overrides, owner=owner, datasets=datasets, search=search)
    options = RunOptions(folder=_folder(spec, campaign), reserve_hours=reserve_hours)
    push_names(spec, names, options, connect=connect)
    print_next("watch", next_run(options.folder))


@main.command()
@MESSAGE
@CAMPAIGN
def submit(message: str, campaign: str | None) -> None:
    """Submit the result of a campaign once, and wait for its score."""
    from launch.campaign.commands import submit_only
    from launch.campaign.ledger import find_campaign
    from launch.campaign.spec import RunOptions
    from launch.kaggle_api.client import connect

    submit_only(RunOptions(folder=find_campaign(campaign), message=message), connect=connect)
    print_next("report")


@main.command()
@CAMPAIGN
@JSON
def report(campaign: str | None, as_json: bool) -> None:
    """Make the report of a campaign on this machine.

    It uses the outputs that were fetched so far, and needs no account. `run` makes the same report on Kaggle
    as its last step. The notebook beside the report opens in Jupyter.
    """
    from launch.campaign.ledger import find_campaign
    from launch.campaign.report import make_report, report_document

    page = make_report(find_campaign(campaign))
    if as_json:
        print_json(report_document(page))
    else:
        print_text(f"report: {page}")
        print_next("predict --tiles DIR --members CAMPAIGN --out predictions.csv")


@main.group()
def ensemble() -> None:
    """Decide which experiments to average."""


@ensemble.command(
    epilog=examples(
        "build_kernel.py ensemble select",
        "build_kernel.py ensemble select strong densenet --from runs/campaigns/ensemble",
    )
)
@click.argument("experiments", nargs=-1)
@click.option(
    "--from",
    "folders",
    multiple=True,
    type=FOLDER,
    help="A campaign, a rehearsal, the folder of `local`, or a folder of outputs. Repeatable. "
    "[default: all campaigns, and runs/local]",
)
def select(experiments: tuple[str, ...], folders: tuple[Path, ...]) -> None:
    """Select the experiments to average by their out-of-fold predictions.

    The rule is fixed: forward selection with replacement. Its gain over the plain mean is measured nested by
    fold, with an interval. The plain mean is proposed unless the whole interval is above zero.
    """
    from launch import ROOT
    from launch.campaign.spec import campaigns
    from launch.members.select import select as select_ensemble

    everywhere = (*sorted(campaigns().glob("*")), ROOT / "runs" / "local")
    select_ensemble(experiments, folders or everywhere)
