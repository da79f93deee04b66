"""The command line: every command, its options and its help."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from launch.errors import LaunchError

_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a knob of the experiment, see `knobs`; repeatable.",
)
_OWNER = click.option("--owner", help="Your Kaggle user name, instead of the one in kernel-metadata.json.")
_ATTACH = click.option(
    "--attach",
    multiple=True,
    type=_FOLDER,
    help="A folder the kernels see as a dataset: a weight file, a tile-to-slide map; repeatable.",
)


_AVERAGE = click.option(
    "--average",
    type=click.Choice(["mean", "logit", "rank"]),
    default="mean",
    show_default=True,
    help="How members are averaged: their probabilities, their logits, or their ranks over all test tiles.",
)


def _search_option(default: str) -> Any:
    """--search, or --search NAME: a search of experiments/searches; the command then says which by `load_search`."""
    text = f"A search of experiments/searches (without a NAME: {default}) over the experiment, and only what it reads."
    return click.option(
        "--search", "searched", is_flag=False, flag_value=default, metavar="[NAME]", help=text
    )


_SEARCH = _search_option("baseline")


def _load_search(name: str | None) -> Any:
    from launch.plan import load_search

    return None if name is None else load_search(name)


def _examples(*lines: str) -> str:
    """What stands below the options of a command; the line breaks stay."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class _InOrder(click.Group):
    """A group that lists its commands as one comes to need them, not by the alphabet."""

    _SECTIONS = (
        ("Before it costs anything", ("smoke", "doctor", "experiments", "knobs")),
        ("On Kaggle", ("run", "status", "watch", "logs", "pull", "push", "submit", "report")),
        ("On this machine", ("download", "weights", "local")),
        ("For the plain Kaggle client", ("build", "check", "emulator")),
    )

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each part of the way."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in self._SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Histopathologic Cancer Detection on Kaggle: from a checkout to a leaderboard score, rehearsed first.

    Start with `smoke` (no account needed), then `doctor`, then `run`.

    Exit codes: 0 done; 1 failed, with a sentence that says what and what to do; 2 wrong use.
    """


def _say(text: str) -> None:
    click.echo(text)


@main.command(
    epilog=_examples(
        "build_kernel.py build strong --set epochs=8",
        "build_kernel.py check",
        "kaggle kernels push -p dist/kernels/hcd-prepare",
    )
)
@click.argument("experiments", nargs=-1)
@_OWNER
@_SET
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="OWNER/SLUG",
    help="A dataset to attach to the kernels; repeatable.",
)
@click.option(
    "--thin", is_flag=True, help="Kernels that import the library from the dataset, after checking its hash."
)
@click.option(
    "--strict-bundle", is_flag=True, help="Refuse to average folds that were trained by different code."
)
@_AVERAGE
@_SEARCH
@click.option("--out", default="dist", show_default=True, type=_FOLDER, help="Where to.")
def build(
    experiments: tuple[str, ...],
    owner: str | None,
    overrides: tuple[str, ...],
    datasets: tuple[str, ...],
    thin: bool,
    strict_bundle: bool,
    average: str,
    searched: str | None,
    out: Path,
) -> None:
    """Write the dataset and the kernels for `kaggle kernels push`.

    EXPERIMENTS are names of files in experiments/; without any, the one that kernel-metadata.json names.
    """
    from launch.packaging import builder
    from launch.packaging.bundle import SOURCE_LIMIT
    from launch.packaging.metadata import PLACEHOLDER_OWNER, default_experiment, read_base
    from launch.plan import load_experiments

    wrong = [dataset for dataset in datasets if dataset.count("/") != 1]
    if wrong:
        raise LaunchError(f"--dataset takes OWNER/SLUG, not {', '.join(wrong)}")
    names = experiments or (default_experiment(read_base()),)
    loaded = load_experiments(names, overrides)
    built = builder.build(
        loaded,
        out=out,
        owner=owner,
        datasets=datasets,
        average=average,
        search=_load_search(searched),
        thin=thin,
        strict_bundle=strict_bundle,
    )
    for kernel in built.kernels:
        size = built.sizes[kernel.slug]
        click.echo(
            f"{built.out}/kernels/{kernel.slug}  {size:,} bytes, {size / SOURCE_LIMIT:.0%} of the limit"
        )
    click.echo(f"{built.out}/dataset  bundle {built.bundle}")
    if built.owner == PLACEHOLDER_OWNER:
        click.echo(
            f"note: the owner is {PLACEHOLDER_OWNER}; write yours into kernel-metadata.json before you push"
        )


@main.command()
@click.option("--out", default="dist", show_default=True, type=_FOLDER, help="Where `build` wrote to.")
def check(out: Path) -> None:
    """Hold a build against the rules of Kaggle and its client.

    Sizes, metadata, sources, secrets; all problems at once.
    """
    from launch.packaging.check import check as check_build

    looked, problems, warnings = check_build(out)
    for line in looked:
        click.echo(line)
    for line in warnings:
        click.echo(f"warning: {line}")
    if problems:
        raise LaunchError(f"{len(problems)} problems:\n  - " + "\n  - ".join(problems))
    click.echo("no problems")


@main.command(
    epilog=_examples(
        "build_kernel.py smoke                                        drawn tiles, a small network",
        "build_kernel.py smoke resnet34 --data DIR --tiles 300        your tiles, your network",
        "build_kernel.py smoke --search                               a search instead of a training",
    )
)
@click.argument("experiments", nargs=-1)
@click.option("--data", type=_FOLDER, help="A folder in competition layout. [default: drawn tiles]")
@click.option("--tiles", type=click.IntRange(min=50), help="Labelled tiles to take (stratified) or to draw.")
@click.option("--folds", type=click.IntRange(min=2, max=20), help="The same as --set num_folds=K.")
@click.option("--thin", is_flag=True, help="Rehearse thin kernels, with the dataset mounted.")
@click.option(
    "--faults",
    type=_FILE,
    help="Faults of the emulated Kaggle: a JSON list, see docs/emulator.md.",
)
@click.option(
    "--out", default="runs/smoke", show_default=True, type=_FOLDER, help="Where everything is kept."
)
@_search_option("smoke")
@_ATTACH
@_AVERAGE
@_SET
def smoke(
    experiments: tuple[str, ...],
    data: Path | None,
    tiles: int | None,
    folds: int | None,
    thin: bool,
    faults: Path | None,
    out: Path,
    searched: str | None,
    attach: tuple[Path, ...],
    average: str,
    overrides: tuple[str, ...],
) -> None:
    """Rehearse `run` against an emulated Kaggle on this machine.

    Dataset, weights, prepare, folds, inference, submission, score, report: with the real client and the real kernels.

    Without EXPERIMENTS it is the one called smoke: a small network that two cores train in a minute.

    An interrupted rehearsal goes on where it stopped; one that came to its end starts anew.
    """
    from launch.emulator.faults import load_faults
    from launch.emulator.smoke import smoke as rehearse
    from launch.packaging.metadata import owner_of, read_base
    from launch.plan import load_experiments

    knobs = [*overrides, *([f"num_folds={folds}"] if folds else [])]
    loaded = load_experiments(experiments or ("smoke",), knobs)
    rehearse(
        loaded,
        data=data,
        tiles=tiles,
        out=out,
        attach=attach,
        thin=thin,
        average=average,
        search=_load_search(searched),
        faults=load_faults(faults) if faults is not None else (),
        owner=owner_of(read_base()),
        say=_say,
    )


@main.command(
    epilog=_examples(
        "build_kernel.py local resnet34 --set epochs=3 --set num_members=1",
    )
)
@click.argument("experiments", nargs=-1)
@click.option(
    "--data",
    default="input/histopathologic-cancer-detection",
    show_default=True,
    type=_FOLDER,
    help="A folder in competition layout.",
)
@click.option(
    "--out", default="runs/local", show_default=True, type=_FOLDER, help="Where everything is kept."
)
@_SEARCH
@_ATTACH
@_AVERAGE
@_SET
def local(
    experiments: tuple[str, ...],
    data: Path,
    out: Path,
    searched: str | None,
    attach: tuple[Path, ...],
    average: str,
    overrides: tuple[str, ...],
) -> None:
    """The whole training on this machine, without a Kaggle.

    On its GPU or CPU, by the kernels that would run on Kaggle.

    What is finished is not done again, so the same command continues an interrupted training.
    """
    from launch.local import local as train
    from launch.packaging.metadata import default_experiment, owner_of, read_base
    from launch.plan import load_experiments

    base = read_base()
    loaded = load_experiments(experiments or (default_experiment(base),), overrides)
    search = _load_search(searched)
    train(
        loaded,
        data=data,
        out=out,
        attach=attach,
        average=average,
        search=search,
        owner=owner_of(base),
        say=_say,
    )


@main.command()
@click.argument("experiments", nargs=-1)
@click.option(
    "--upload",
    is_flag=True,
    help="Make them a private dataset, hcd-encoders; attach it with --dataset OWNER/hcd-encoders.",
)
@_SET
def weights(experiments: tuple[str, ...], upload: bool, overrides: tuple[str, ...]) -> None:
    """Fetch the encoders' weights.

    Into input/weights, where `smoke` and `local` find them.

    With --upload they become a private dataset of yours: the way for weights behind a licence gate. Which licence a set
    of weights has, and whether it is gated, is yours to check and accept.
    """
    from launch.local import fetch_weights
    from launch.packaging.metadata import default_experiment, owner_of, read_base
    from launch.plan import load_experiments

    base = read_base()
    loaded = load_experiments(experiments or (default_experiment(base),), overrides)
    click.echo(f"weights in {fetch_weights(loaded, owner=owner_of(base), say=_say)}")
    if upload:
        from launch.kaggle_api.client import connect
        from launch.weights_dataset import upload_weights

        click.echo(f"dataset {upload_weights(connect(), say=_say)}: attach it with --dataset")


@main.command()
@click.option(
    "--to",
    default="input/histopathologic-cancer-detection",
    show_default=True,
    type=_FOLDER,
    help="Where to.",
)
def download(to: Path) -> None:
    """Fetch the competition's data.

    Through the Kaggle client, for `local` and `smoke --data`; about 14 GB while unpacking.
    """
    from launch.kaggle_api.download import download_competition

    download_competition(to, say=_say)


_CAMPAIGN = click.option(
    "--campaign", metavar="NAME", help="Which campaign. [default: the one that was at work last]"
)
_DATASET = click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="OWNER/SLUG",
    help="A dataset to attach to the kernels; repeatable.",
)


def _order(
    experiments: tuple[str, ...],
    overrides: tuple[str, ...],
    *,
    campaign: str | None,
    owner: str | None,
    folds: Sequence[int] | None = None,
    datasets: tuple[str, ...] = (),
    **rest: Any,
) -> Any:
    """The order for a campaign that is named by its experiments, or by --campaign."""
    from launch.campaign.spec import CampaignSpec, campaign_folder, campaign_name
    from launch.packaging.metadata import default_experiment, read_base
    from launch.plan import load_experiments

    loaded = load_experiments(experiments or (default_experiment(read_base()),), overrides)
    folder = campaign_folder(campaign or campaign_name(loaded))
    return CampaignSpec(
        experiments=loaded, folder=folder, owner=owner or "", folds=folds, datasets=datasets, **rest
    )


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("numbers with commas between them, such as 0,1") from None


@main.command(
    epilog=_examples(
        "build_kernel.py run --folds 0               one fold of the default experiment: a first score",
        "build_kernel.py run                         all of its folds",
        "build_kernel.py run resnet18 resnet34       two experiments, averaged",
        "build_kernel.py run strong --set epochs=8   another plan, under a name of its own",
    )
)
@click.argument("experiments", nargs=-1)
@click.option(
    "--folds",
    callback=_numbers,
    metavar="0,1,...",
    help="Only these folds; `--folds 0` gives a first score early.",
)
@click.option("--no-submit", is_flag=True, help="Stop before the submission.")
@click.option(
    "--message", default="", help="What the submission says of itself. [default: the out-of-fold AUC]"
)
@click.option("--campaign", metavar="NAME", help="A name of its own. [default: the experiments' names]")
@click.option(
    "--reuse",
    is_flag=True,
    help="Take over finished outputs of earlier campaigns even if other code made them.",
)
@click.option(
    "--strict-bundle", is_flag=True, help="Refuse to average folds that were trained by different code."
)
@click.option("--no-probe", is_flag=True, help="Do not offer the canaries before the first fold.")
@_AVERAGE
@_SEARCH
@_OWNER
@_DATASET
@_SET
def run(
    experiments: tuple[str, ...],
    folds: tuple[int, ...] | None,
    no_submit: bool,
    message: str,
    campaign: str | None,
    reuse: bool,
    strict_bundle: bool,
    no_probe: bool,
    average: str,
    searched: str | None,
    owner: str | None,
    datasets: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """From this checkout to a leaderboard score.

    Safe to repeat, and to interrupt.

    Dataset, weights, prepare, the folds of every experiment (two at a time), one inference over all of them, submission,
    score, report. What is done is not done again; what runs on Kaggle goes on without this command.
    """
    from launch.campaign.commands import run as campaign_run
    from launch.kaggle_api.client import connect

    order = _order(
        experiments,
        overrides,
        campaign=campaign,
        owner=owner,
        folds=folds,
        datasets=datasets,
        submit=not no_submit,
        message=message,
        reuse=reuse,
        strict_bundle=strict_bundle,
        average=average,
        search=_load_search(searched),
    )
    if not no_probe:
        _offer_probe(order)
    campaign_run(order, connect=connect)


def _offer_probe(order: Any) -> None:
    """Before the first fold of the first campaign: a few minutes of canaries may save hours of quota."""
    from launch.doctor.command import PROBE_FOLDER
    from launch.doctor.command import doctor as examine
    from launch.doctor.environment_check import RESULTS

    if (
        (PROBE_FOLDER / RESULTS).is_file()
        or (order.folder / "ledger.json").is_file()
        or not sys.stdin.isatty()
    ):
        return
    text = "No canary has looked at your Kaggle yet: three kernels of a few minutes, about 0.1 h of GPU quota. Push them first?"
    if click.confirm(text, default=True):
        examine(order.experiments, probe=True, folder=PROBE_FOLDER, say=_say)


@main.command(
    epilog=_examples(
        "build_kernel.py push prepare",
        "build_kernel.py push fold-0 fold-1",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--experiment", "experiments", multiple=True, help="Which experiments the campaign is about.")
@click.option("--campaign", metavar="NAME", help="A name of its own. [default: the experiments' names]")
@_SEARCH
@_OWNER
@_DATASET
@_SET
def push(
    names: tuple[str, ...],
    experiments: tuple[str, ...],
    campaign: str | None,
    searched: str | None,
    owner: str | None,
    datasets: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Push single kernels by hand.

    The rules are those of `run`: nothing is pushed over a running version, or before what it reads.

    NAME is dataset, weights, prepare, pretrain, embed, fold-0 ..., inference, search or report, as far as the experiment has it.

    It returns when Kaggle has them; `run` fetches their outputs and goes on from there. A search that was pushed before goes
    on: the trials of its output are not run again.
    """
    from launch.campaign.commands import push as push_names
    from launch.kaggle_api.client import connect

    search = _load_search(searched)
    order = _order(experiments, overrides, campaign=campaign, owner=owner, datasets=datasets, search=search)
    push_names(order, names, connect=connect)


@main.command()
@_CAMPAIGN
def status(campaign: str | None) -> None:
    """How a campaign stands: kernels, versions, states, AUC, quota."""
    from launch.campaign.commands import show_status
    from launch.campaign.spec import find_campaign
    from launch.kaggle_api.client import connect

    show_status(find_campaign(campaign), connect=connect)


@main.command()
@_CAMPAIGN
@click.option(
    "--every", default=60.0, show_default=True, type=click.FloatRange(min=1), help="Seconds between looks."
)
def watch(campaign: str | None, every: float) -> None:
    """`status` until nothing is at work on Kaggle any more. Changes nothing."""
    from launch.campaign.commands import watch as look
    from launch.campaign.spec import find_campaign
    from launch.kaggle_api.client import connect

    look(find_campaign(campaign), connect=connect, every=every)


@main.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Line by line, while it runs.")
@_CAMPAIGN
def logs(name: str, follow: bool, campaign: str | None) -> None:
    """The log of a kernel: weights, prepare, fold-0 ..., inference."""
    from launch.campaign.commands import show_log
    from launch.campaign.spec import find_campaign
    from launch.kaggle_api.client import connect

    show_log(find_campaign(campaign), name, follow=follow, connect=connect)


@main.command()
@_CAMPAIGN
def report(campaign: str | None) -> None:
    """Make the report of a campaign on this machine.

    From what was fetched so far; it prints where it is.

    `run` makes it on Kaggle, last of all; this needs no account. The notebook beside it opens in Jupyter.
    """
    from launch.campaign.report import make_report
    from launch.campaign.spec import find_campaign

    click.echo(f"report: {make_report(find_campaign(campaign), say=_say)}")


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--to", type=_FOLDER, help="Where to. [default: pulled/ in the campaign's folder]")
@_CAMPAIGN
def pull(names: tuple[str, ...], to: Path | None, campaign: str | None) -> None:
    """Fetch the outputs of kernels.

    They are held against their run.json; arrays and weights stay on Kaggle.
    """
    from launch.campaign.commands import pull_outputs
    from launch.campaign.spec import find_campaign
    from launch.kaggle_api.client import connect

    pull_outputs(find_campaign(campaign), names, to=to, connect=connect)


@main.command()
@click.option(
    "--message", default="", help="What the submission says of itself. [default: the out-of-fold AUC]"
)
@_CAMPAIGN
def submit(message: str, campaign: str | None) -> None:
    """Submit what a campaign left, once, and wait for the score."""
    from launch.campaign.commands import submit_only
    from launch.campaign.spec import find_campaign
    from launch.kaggle_api.client import connect

    submit_only(find_campaign(campaign), message=message, connect=connect)


@main.command()
@click.argument("experiments", nargs=-1)
@click.option(
    "--probe",
    is_flag=True,
    help="Push three canaries of a few minutes and compare what they see; 0.1 h of quota.",
)
@_SET
def doctor(experiments: tuple[str, ...], probe: bool, overrides: tuple[str, ...]) -> None:
    """What is still to do, before it costs anything.

    Credentials, rules, quota, slugs, versions, sizes, clock; each with what to do about it.
    """
    from launch.doctor.command import PROBE_FOLDER
    from launch.doctor.command import doctor as examine
    from launch.packaging.metadata import default_experiment, read_base
    from launch.plan import load_experiments

    loaded = load_experiments(experiments or (default_experiment(read_base()),), overrides)
    examine(loaded, probe=probe, folder=PROBE_FOLDER, say=_say)


@main.command()
@click.option(
    "--port", default=0, type=click.IntRange(0, 65535), help="Where it listens. [default: a free one]"
)
@click.option("--data", type=_FOLDER, help="A folder in competition layout. [default: drawn tiles]")
@click.option("--faults", type=_FILE, help="Faults of the service: a JSON list, see docs/emulator.md.")
@click.option(
    "--out", default="runs/emulator", show_default=True, type=_FOLDER, help="Where everything is kept."
)
def emulator(port: int, data: Path | None, faults: Path | None, out: Path) -> None:
    """Serve the emulated Kaggle until Ctrl-C.

    It prints the environment that points a client at it.
    """
    from launch.emulator.faults import load_faults
    from launch.emulator.smoke import serve
    from launch.packaging.metadata import owner_of, read_base

    wrong = load_faults(faults) if faults is not None else ()
    serve(port=port, data=data, faults=wrong, out=out, owner=owner_of(read_base()), say=_say)


@main.command()
def experiments() -> None:
    """The experiments and searches there are."""
    from launch.plan import described

    for name, lines in described():
        click.echo("\n    ".join([name, *lines]))


@main.command()
def knobs() -> None:
    """Every knob of an experiment: default and meaning."""
    from lib.config import describe

    for name, default, meaning in describe():
        click.echo(f"{name} = {default or 'empty'}\n    {meaning}")


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        main(args=arguments, standalone_mode=False)
    except LaunchError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        click.echo(
            f"error: the package {error.name} is not installed here: make env, then .venv/bin/python build_kernel.py",
            err=True,
        )
        return 1
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            remedy = "give yourself the right to it, or choose another folder (--out, --to)"
            click.echo(
                f"error: {error.filename or 'a file'} cannot be read or written ({error.strerror}): {remedy}",
                err=True,
            )
            return 1
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the rest keeps its traceback
            raise
        click.echo(
            f"error: the disk is full ({error}). Free some space: the same command goes on from here",
            err=True,
        )
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: the same command goes on from here", err=True)
        return 1
    return 0
