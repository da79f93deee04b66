"""The command line: every command, its options and its help.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import errno
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from launch.console import log_to_terminal, print_command, print_json, print_text
from launch.errors import LaunchError
from lib.errors import KernelError

DATA = "input/histopathologic-cancer-detection"


# --- options that several commands share --------------------------------------------------------------------


def _complete_experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of experiments, for the shell."""
    from launch.experiments import experiment_names

    return [name for name in experiment_names() if name.startswith(incomplete)]


def _complete_options(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`KEY=` for every option of an experiment, for the shell."""
    from lib.config import describe

    return [f"{name}=" for name, _, _ in describe() if name.startswith(incomplete)]


_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)

_EXPERIMENTS = click.argument("experiments", nargs=-1, shell_complete=_complete_experiments)
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_complete_options,
    help="Change one option of the experiment (list them with `options`). Repeatable.",
)
_OWNER = click.option("--owner", help="Your Kaggle user name, if kernel-metadata.json does not hold it.")
_ATTACH = click.option(
    "--attach",
    multiple=True,
    type=_FOLDER,
    help="A folder that the kernels see as a dataset: a weights file, a tile-to-slide map. Repeatable.",
)
_DATASET = click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="OWNER/SLUG",
    help="A Kaggle dataset to attach to the kernels. Repeatable.",
)
_AVERAGE = click.option(
    "--average",
    metavar="mean|logit|rank|NAME=N,...",
    default="mean",
    show_default=True,
    help="What is averaged over the members: probabilities (mean), logits, ranks over all test tiles, or "
    "probabilities with a weight for each experiment (`ensemble select` proposes them).",
)
_STRICT_BUNDLE = click.option(
    "--strict-bundle", is_flag=True, help="Refuse to average folds that different code trained."
)
_CAMPAIGN = click.option("--campaign", metavar="NAME", help="The campaign. [default: the most recent one]")
_NEW_CAMPAIGN = click.option(
    "--campaign", metavar="NAME", help="A name for the campaign. [default: the names of its experiments]"
)
_RESERVE = click.option(
    "--reserve-hours",
    default=0.0,
    metavar="N",
    type=click.FloatRange(min=0),
    help="Leave N hours of the week's GPU quota to your other work.",
)
_MESSAGE = click.option(
    "--message", default="", help="The description of the submission. [default: the out-of-fold AUC]"
)


_HOLDOUT = click.option(
    "--holdout",
    metavar="mlebench|FILE.csv",
    help="Labelled tiles that no fold learns from, scored once at the end: the random split of MLE-bench, or "
    "a file with a column id. Short for --set holdout=...",
)


def _log_to_errors(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Keep standard output for the document: messages go to standard error."""
    if value:
        log_to_terminal(to_errors=True)
    return value


_JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_log_to_errors,
    help="Print one JSON document, and messages to standard error. docs/json.md explains its keys.",
)


def _out(
    default: str | None, text: str, *, kind: click.Path = _FOLDER, also: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    """--out DIR: the folder of the command's files; -p and --path are what the Kaggle client calls it."""
    names = ("--out", "-p", "--path", *also, "out")
    return click.option(*names, default=default, show_default=default is not None, type=kind, help=text)


def _search_option(default: str) -> Callable[[Any], Any]:
    """--search, or --search NAME: the name of a file in experiments/searches."""
    text = f"Run a search from experiments/searches instead of a training. [NAME by default: {default}]"
    return click.option(
        "--search", "search_name", is_flag=False, flag_value=default, metavar="[NAME]", help=text
    )


_SEARCH = _search_option("baseline")


def _load_search(name: str | None) -> Any:
    from launch.experiments import load_search

    return None if name is None else load_search(name)


def _holdout_here(holdout: str | None, out: Path) -> tuple[list[str], tuple[Path, ...]]:
    """The option of the experiments and the folder to attach, for a command that runs on this machine."""
    from lib.data.holdout import MLE_BENCH
    from lib.files import link_or_copy

    if holdout is None:
        return [], ()
    if holdout == MLE_BENCH:
        return [f"holdout={MLE_BENCH}"], ()
    file, folder = Path(holdout), out / "holdout"
    if not file.is_file():
        raise click.BadParameter(f"--holdout {holdout}: mlebench, or an existing CSV file expected")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    link_or_copy(str(file), str(folder / file.name))
    return [f"holdout={file.name}"], (folder,)


def _fold_numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("fold numbers separated by commas expected, such as 0,1") from None


_FOLDS = click.option(
    "--folds",
    callback=_fold_numbers,
    metavar="0,1,...",
    help="Train only these folds, numbered from 0. Their number is an option: --set num_folds=K.",
)
_LOCAL = click.option(
    "--local",
    "local_run",
    is_flag=False,
    flag_value="runs/local",
    type=_FOLDER,
    metavar="[FOLDER]",
    help="A run of `local` instead of a campaign. [FOLDER by default: runs/local]",
)
_NAMES = click.argument("names", nargs=-1, metavar="[NAME]...")


def _examples(*lines: str) -> str:
    """Examples below the options of a command, with their line breaks kept."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _load(experiments: Sequence[str], overrides: Sequence[str]) -> Any:
    """The experiments that are named, or the one that kernel-metadata.json names."""
    from launch.experiments import load_experiments
    from launch.packaging.metadata import default_experiment, read_base

    return load_experiments(experiments or (default_experiment(read_base()),), overrides)


def _require_networks(experiments: Any, *, attach: Sequence[Path] = ()) -> None:
    """Build the networks once on this machine, before anything is pushed or trained."""
    from launch.local import WEIGHTS_FOLDER
    from launch.packaging.network_check import require_networks
    from launch.plan import first_networks

    require_networks(first_networks(experiments), attached=attach, fetched=WEIGHTS_FOLDER)


def _owner() -> str:
    from launch.packaging.metadata import owner_of, read_base

    return owner_of(read_base())


def _next(*steps: str, to_errors: bool = False) -> None:
    """The last lines of a command: the one or two commands that come next, as a user types them.

    Args:
        steps: without `build_kernel.py`; empty ones are left out.
        to_errors: print to standard error, where standard output holds something else.
    """
    for step in filter(None, steps):
        print_command(f"next: build_kernel.py {' '.join(step.split())}", to_errors=to_errors)


def _given(*, only: Sequence[str] = (), without: Sequence[str] = ()) -> str:
    """The arguments of the running command as they were typed, to be used in one that comes next.

    Args:
        only: names of parameters; all of them where none is given.
        without: names of parameters to leave out.
    """
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        typed = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not typed or name in without or (only and name not in only):
            continue
        value, option = context.params[name], parameter.opts[0]
        if isinstance(parameter, click.Argument):
            words += map(str, value)
        elif value is True:
            words.append(option)
        elif parameter.multiple:
            words += itertools.chain.from_iterable((option, str(item)) for item in value)
        else:
            words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return " ".join(map(shlex.quote, words))


_CONFIGURED = ("experiments", "overrides")  # the parameters that choose what is trained


def _next_run(folder: Path) -> str:
    """The command that continues a campaign; empty where its experiments are not those of files."""
    from launch.campaign.ledger import read_ledger
    from launch.campaign.spec import campaign_name
    from launch.experiments import experiment_names

    ledger = read_ledger(folder)
    if ledger is None or not {each.name for each in ledger.spec.experiments} <= set(experiment_names()):
        print_text("next: repeat the `run` that started the campaign")
        return ""
    spec = ledger.spec
    words = ["run", *(each.name for each in spec.experiments)]
    words += [] if spec.folds is None else ["--folds", ",".join(map(str, spec.folds))]
    words += [] if spec.hours is None else ["--hours", f"{spec.hours:g}"]
    if folder.name != campaign_name(spec.experiments, hours=spec.hours):
        words += ["--campaign", folder.name]
    words += itertools.chain.from_iterable(("--dataset", name) for name in spec.datasets)
    words += [] if spec.average == "mean" else ["--average", spec.average]
    return shlex.join(words)


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    code = _version()
    print_text(f"version {code['version']}, commit {_short(code['commit'])}, bundle {code['bundle_id'][:12]}")
    context.exit()


def _version() -> dict[str, str]:
    """Version, commit and bundle id of this checkout."""
    import tomllib

    from launch import ROOT
    from launch.packaging.bundle import bundle_id, git_commit, library_files

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {
        "version": version,
        "commit": git_commit() or "unknown",
        "bundle_id": bundle_id(library_files()),
    }


def _short(commit: str) -> str:
    """The first 12 digits of a commit, and the mark of a changed checkout."""
    return f"{commit[:12]}{commit[40:]}"


class _Sections(click.Group):
    """A group that lists its commands by the order in which a user needs them."""

    _SECTIONS = (
        ("Before it costs quota", ("smoke", "doctor", "experiments", "options")),
        ("On Kaggle", ("run", "status", "watch", "logs", "output", "push", "submit", "report", "ensemble")),
        ("On this machine", ("download", "import", "weights", "local", "predict", "export")),
        ("With the plain Kaggle client", ("build", "check", "emulator")),
    )

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each part of the way."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for title, names in self._SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])


@click.group(
    cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version, the commit and the bundle id, and exit.",
)
def main() -> None:
    """Train and submit for Histopathologic Cancer Detection on Kaggle.

    Start with `smoke` (no account needed), then `doctor`, then `run`.

    Exit codes: 0 done; 1 failed, with a sentence that names the cause and the remedy; 2 wrong use.
    """
    log_to_terminal()


# --- before it costs quota ----------------------------------------------------------------------------------


@main.command(
    epilog=_examples(
        "build_kernel.py smoke                                     synthetic tiles, a small network",
        "build_kernel.py smoke resnet34 --data DIR --tiles 300     your tiles, your network",
        "build_kernel.py smoke --search                            a hyperparameter search",
    )
)
@_EXPERIMENTS
@click.option("--data", type=_FOLDER, help="A folder in competition layout. [default: synthetic tiles]")
@click.option(
    "--tiles",
    type=click.IntRange(min=50),
    help="Number of labelled tiles to use (stratified) or to generate.",
)
@_FOLDS
@click.option("--thin", is_flag=True, help="Rehearse kernels that import the library from the dataset.")
@click.option(
    "--faults", type=_FILE, help="Faults of the emulated Kaggle: a JSON list, see docs/emulator.md."
)
@_out("runs/smoke", "Folder for the data, the campaign and its outputs.")
@_search_option("smoke")
@_HOLDOUT
@_ATTACH
@_AVERAGE
@_SET
def smoke(
    experiments: tuple[str, ...],
    data: Path | None,
    tiles: int | None,
    folds: tuple[int, ...] | None,
    thin: bool,
    faults: Path | None,
    out: Path,
    search_name: str | None,
    holdout: str | None,
    attach: tuple[Path, ...],
    average: str,
    overrides: tuple[str, ...],
) -> None:
    """Rehearse `run` against an emulated Kaggle on this machine.

    It runs the whole campaign with the real client and the real kernels: dataset, weights, prepare, folds,
    inference, submission, score, report. No account and no network are needed.

    Without EXPERIMENTS it runs the experiment `smoke`, which fine-tunes a small network from real ImageNet
    weights: about three minutes on two cores.

    An interrupted rehearsal continues when you repeat the command. A finished one starts again.
    """
    from launch.emulator.faults import load_faults
    from launch.emulator.smoke import smoke as rehearse
    from launch.experiments import load_experiments

    held_out, holdout_folder = _holdout_here(holdout, out)
    loaded = load_experiments(experiments or ("smoke",), [*overrides, *held_out])
    if not (out / "campaign" / "ledger.json").is_file():
        _require_networks(loaded, attach=attach)
    rehearse(
        loaded,
        data=data,
        tiles=tiles,
        folds=folds,
        out=out,
        attach=(*attach, *holdout_folder),
        thin=thin,
        average=average,
        search=_load_search(search_name),
        faults=load_faults(faults) if faults is not None else (),
        owner=_owner(),
    )
    _next("doctor", f"run {_given(only=_CONFIGURED)} --folds 0")


@main.command()
@_EXPERIMENTS
@click.option(
    "--check-kaggle",
    is_flag=True,
    help="Push three small kernels that check Kaggle itself (a few minutes, about 0.1 h of GPU quota).",
)
@click.option(
    "--check-gated",
    is_flag=True,
    help="Call the model hub, too: which gated encoders are open to your token. Nothing is downloaded.",
)
@_JSON
@_SET
def doctor(
    experiments: tuple[str, ...],
    check_kaggle: bool,
    check_gated: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Check everything that can fail before it costs quota.

    Credentials, competition rules, quota, slugs, versions, sizes, clock. Each problem comes with its remedy.
    """
    from launch.doctor.command import CHECK_FOLDER, examine
    from launch.doctor.command import doctor as print_examination

    loaded = _load(experiments, overrides)
    if not as_json:
        print_examination(loaded, check_kaggle=check_kaggle, check_gated=check_gated, folder=CHECK_FOLDER)
        run_first = f"run {_given(only=_CONFIGURED)} --folds 0"
        _next("" if check_kaggle else "doctor --check-kaggle", run_first)
        return
    examination = examine(loaded, check_kaggle=check_kaggle, check_gated=check_gated, folder=CHECK_FOLDER)
    print_json({**examination.to_dict(), "code": _version()})
    examination.conclude()


@main.command()
@_NAMES
@_JSON
def experiments(names: tuple[str, ...], as_json: bool) -> None:
    """List the experiments and the searches.

    With NAMEs it lists those that contain one.
    """
    from launch.experiments import describe_experiments, list_experiments

    if as_json:
        print_json(list_experiments(names))
        return
    for name, lines in describe_experiments(names):
        print_text("\n    ".join([name, *lines]))
    _next("smoke NAME", "options")


@main.command(
    epilog=_examples("build_kernel.py options fold", "build_kernel.py options learning_rate epochs")
)
@_NAMES
@_JSON
def options(names: tuple[str, ...], as_json: bool) -> None:
    """List the options of an experiment, with default and meaning.

    With NAMEs it lists those that contain one.
    """
    from launch.experiments import filter_names
    from lib.config import option_schema

    schema = option_schema()
    chosen = filter_names([entry["name"] for entry in schema], names, kind="option")
    listed = [entry for entry in schema if entry["name"] in chosen]
    if as_json:
        print_json({"format": 1, "options": listed})
        return
    for entry in listed:
        default = "empty" if entry["default"] == "" else entry["default"]
        print_text(f"{entry['name']} = {default}\n    {entry['help']}")
    _next("smoke --set KEY=VALUE")


# --- on Kaggle ----------------------------------------------------------------------------------------------


def _spec(
    experiments: tuple[str, ...], overrides: tuple[str, ...], *, owner: str | None, **values: Any
) -> Any:
    """What a campaign computes, from the arguments of a command."""
    from launch.campaign.spec import CampaignSpec

    return CampaignSpec(experiments=tuple(_load(experiments, overrides)), owner=owner or "", **values)


def _folder(spec: Any, campaign: str | None) -> Path:
    """The folder of a campaign, by --campaign or by its experiments and hours."""
    from launch.campaign.spec import campaign_folder, campaign_name

    return campaign_folder(campaign or campaign_name(spec.experiments, hours=spec.hours))


@main.command(
    epilog=_examples(
        "build_kernel.py run --folds 0               one fold of the default experiment: a first score",
        "build_kernel.py run                         all of its folds",
        "build_kernel.py run strong --hours 3        the part of it that fits in 3 GPU hours",
        "build_kernel.py run resnet18 resnet34       two experiments, averaged",
        "build_kernel.py run strong --set epochs=8   a changed experiment, under a name of its own",
    )
)
@_EXPERIMENTS
@_FOLDS
@click.option(
    "--hours",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Pick the folds, members and epochs that are expected to fit in N GPU hours, and say which.",
)
@_RESERVE
@click.option("--no-submit", is_flag=True, help="Stop before the submission.")
@_MESSAGE
@_NEW_CAMPAIGN
@click.option(
    "--reuse",
    is_flag=True,
    help="Reuse finished outputs of other campaigns even if other code made them.",
)
@_STRICT_BUNDLE
@click.option("--no-check", is_flag=True, help="Do not offer the environment check before the first fold.")
@_AVERAGE
@_SEARCH
@_HOLDOUT
@_OWNER
@_DATASET
@_SET
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
        search=_load_search(search_name),
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
        _require_networks(spec.experiments)
    if not no_check:
        _offer_environment_check(spec, options.folder)
    campaign_run(spec, options, connect=connect)
    if search_name is not None:
        _next("experiments", f"run {_given(without=('search_name',))} --folds 0")
    elif folds is not None:
        _next(f"run {_given(without=('folds',))}")
    else:
        _next(
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
    text = (
        "Your Kaggle account was not checked yet. The check pushes three small kernels: a few minutes, about "
        "0.1 h of GPU quota. Run it first?"
    )
    if click.confirm(text, default=True):
        examine(spec.experiments, check_kaggle=True, folder=CHECK_FOLDER)


def _next_of_local(statuses: Sequence[Any], folder: Path) -> None:
    """What comes next after the status of a run of `local`."""
    states, place = {status.state for status in statuses}, shlex.quote(str(folder))
    if "running" in states:
        _next(f"watch --local {place}", f"logs fold-0 --follow --local {place}")
    elif states == {"done"}:
        _next(f"predict --tiles DIR --members {place} --out predictions.csv")
    else:
        _next(f"local EXPERIMENT --out {place}")


@main.command()
@_CAMPAIGN
@_LOCAL
@_JSON
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
        state = show_status(folder, connect=connect)
        if state.is_running:
            _next("watch", "logs fold-0 --follow")
        else:
            outputs = [entry.output for entry in state.ledger.kernels.values()]
            _next("report" if outputs and all(outputs) else _next_run(folder))


@main.command()
@_CAMPAIGN
@click.option(
    "--every",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds between two checks.",
)
@_LOCAL
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
    watch_campaign(folder, connect=connect, every=every)
    _next(_next_run(folder))


@main.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Print each line as it appears, until the kernel ends.")
@_CAMPAIGN
@_LOCAL
def logs(name: str, follow: bool, campaign: str | None, local_run: Path | None) -> None:
    """Print the log of a kernel.

    NAME is weights, prepare, fold-0, fold-1, ..., inference or report.
    """
    if local_run is not None:
        from launch.campaign.local_run import show_local_log

        show_local_log(local_run, name, follow=follow)
        _next(f"status --local {shlex.quote(str(local_run))}", to_errors=True)
        return
    from launch.campaign.commands import show_log
    from launch.campaign.ledger import find_campaign
    from launch.kaggle_api.client import connect

    show_log(find_campaign(campaign), name, follow=follow, connect=connect)
    _next("status", to_errors=True)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@_out(None, "Where to. [default: fetched/ in the folder of the campaign]")
@click.option("--weights", is_flag=True, help="Download the weights of the members, too, for `predict`.")
@_CAMPAIGN
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
    _next("report", "predict --tiles DIR --members CAMPAIGN --out predictions.csv")


@main.command(
    epilog=_examples(
        "build_kernel.py push prepare",
        "build_kernel.py push fold-0 fold-1",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    shell_complete=_complete_experiments,
    help="An experiment of the campaign. Repeatable.",
)
@_NEW_CAMPAIGN
@_RESERVE
@_SEARCH
@_OWNER
@_DATASET
@_SET
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

    search = _load_search(search_name)
    if campaign and not experiments and not overrides:
        spec = CampaignSpec(owner=owner or "", datasets=datasets, search=search)
    else:
        spec = _spec(experiments, overrides, owner=owner, datasets=datasets, search=search)
    options = RunOptions(folder=_folder(spec, campaign), reserve_hours=reserve_hours)
    push_names(spec, names, options, connect=connect)
    _next("watch", _next_run(options.folder))


@main.command()
@_MESSAGE
@_CAMPAIGN
def submit(message: str, campaign: str | None) -> None:
    """Submit the result of a campaign once, and wait for its score."""
    from launch.campaign.commands import submit_only
    from launch.campaign.ledger import find_campaign
    from launch.campaign.spec import RunOptions
    from launch.kaggle_api.client import connect

    submit_only(RunOptions(folder=find_campaign(campaign), message=message), connect=connect)
    _next("report")


@main.command()
@_CAMPAIGN
@_JSON
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
        _next("predict --tiles DIR --members CAMPAIGN --out predictions.csv")


@main.group()
def ensemble() -> None:
    """Decide which experiments to average."""


@ensemble.command(
    epilog=_examples(
        "build_kernel.py ensemble select",
        "build_kernel.py ensemble select strong densenet --from runs/campaigns/ensemble",
    )
)
@click.argument("experiments", nargs=-1)
@click.option(
    "--from",
    "folders",
    multiple=True,
    type=_FOLDER,
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


# --- on this machine ----------------------------------------------------------------------------------------


@main.command()
@_out(DATA, "Where to.")
def download(out: Path) -> None:
    """Download the competition's data through the Kaggle client.

    For `local` and `smoke --data`. It needs about 14 GB of disk while it unpacks.
    """
    from launch.kaggle_api.download import download_competition

    download_competition(out)
    data = "" if out == Path(DATA).resolve() else f"--data {shlex.quote(str(out))}"
    _next(f"smoke --data {shlex.quote(str(out))} --tiles 300", f"local {data} --folds 0")


@main.command(
    "import",
    epilog=_examples(
        "build_kernel.py import DIR --table labels.csv --out input/mine",
        "build_kernel.py import camelyonpatch_level_2_split_valid_x.h5 --out input/pcam-valid",
    ),
)
@click.argument("source", type=click.Path(path_type=Path, exists=True, resolve_path=True))
@click.option(
    "--table",
    type=_FILE,
    help="A CSV file with the columns tile (or id, file, path), label, and perhaps slide.",
)
@_out("input/mine", "The folder to write; absent or empty.")
@click.option("--test", type=_FOLDER, help="A folder of tiles to predict. [default: those without a label]")
@click.option(
    "--test-share",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.9, min_open=True),
    help="The share of labelled tiles, or of their slides, that become test tiles where no others are.",
)
@click.option("--exclude", type=_FILE, help="A file whose first column names tiles to leave out.")
@click.option("--skip-bad", is_flag=True, help="Import the other tiles where some cannot be used.")
def import_command(
    source: Path,
    table: Path | None,
    out: Path,
    test: Path | None,
    test_share: float,
    exclude: Path | None,
    skip_bad: bool,
) -> None:
    """Write a folder in competition layout from your own tiles.

    SOURCE is a folder of pictures (PNG, JPEG, TIFF, any names, nested), or the x file of PatchCamelyon's
    train or valid split (.h5; needs h5py). The pictures follow the rules of `predict`.

    The command says what it changed: names become the SHA-1 of the pixels, formats and sizes those of the
    competition. `local` and `smoke` take the folder with --data.
    """
    from lib.data.import_tiles import import_tiles

    said = import_tiles(
        source, table=table, out=out, test=test, exclude=exclude, test_share=test_share, skip_bad=skip_bad
    )
    for text in said:
        print_text(text)
    data = shlex.quote(str(out))
    _next(f"smoke --data {data}", f"local EXPERIMENT --data {data}")


@main.command()
@_EXPERIMENTS
@click.option(
    "--upload",
    is_flag=True,
    help="Upload them as the private dataset hcd-encoders; attach it with --dataset OWNER/hcd-encoders.",
)
@_SET
def weights(experiments: tuple[str, ...], upload: bool, overrides: tuple[str, ...]) -> None:
    """Download pretrained weights of backbones.

    They are kept in input/weights, where `smoke` and `local` find them.

    With --upload they become a private dataset of yours. Use this for weights that need a licence agreement.
    Check and accept the licence of the weights yourself.
    """
    from launch.local import fetch_weights

    folder = fetch_weights(_load(experiments, overrides), owner=_owner())
    print_text(f"weights in {folder}")
    if upload:
        from launch.campaign.weights_dataset import upload_weights
        from launch.kaggle_api.client import connect

        dataset = upload_weights(connect(), folder)
        print_text(f"dataset {dataset}: attach it with --dataset")
        _next(f"run {_given(only=_CONFIGURED)} --dataset {dataset}")
        return
    _next(f"local {_given(only=_CONFIGURED)}")


@main.command(
    epilog=_examples(
        "build_kernel.py local resnet34 --folds 0                  one fold: a first score",
        "build_kernel.py local resnet34                            the other folds, averaged with it",
        "build_kernel.py local resnet34 --set epochs=3 --set num_members=1",
    )
)
@_EXPERIMENTS
@click.option("--data", default=DATA, show_default=True, type=_FOLDER, help="A folder in competition layout.")
@_FOLDS
@_out("runs/local", "Folder for the outputs.")
@_SEARCH
@_HOLDOUT
@_ATTACH
@_AVERAGE
@_SET
def local(
    experiments: tuple[str, ...],
    data: Path,
    folds: tuple[int, ...] | None,
    out: Path,
    search_name: str | None,
    holdout: str | None,
    attach: tuple[Path, ...],
    average: str,
    overrides: tuple[str, ...],
) -> None:
    """Train on this machine, on its GPU or CPU, without Kaggle.

    It runs the same kernels as `run`. Finished kernels are not run again, so the same command continues an
    interrupted training.
    """
    from launch.campaign.local_run import local_board
    from launch.campaign.wandb_upload import upload_histories
    from launch.local import local as train

    held_out, holdout_folder = _holdout_here(holdout, out)
    loaded = _load(experiments, [*overrides, *held_out])
    _require_networks(loaded, attach=attach)
    train(
        loaded,
        data=data,
        folds=folds,
        out=out,
        attach=(*attach, *holdout_folder),
        average=average,
        search=_load_search(search_name),
        owner=_owner(),
        board=local_board,
    )
    upload_histories(out)
    if search_name is not None:
        _next("experiments", f"local {_given(without=('search_name',))}")
    elif folds is not None:
        _next(f"local {_given(without=('folds',))}")
    else:
        _next(f"predict --tiles DIR --members {shlex.quote(str(out))} --out predictions.csv")


def _members_folder(members: str) -> Path:
    """The folder that --members names: a folder, or that of a campaign."""
    folder = Path(members)
    if folder.is_dir():
        return folder.resolve()
    from launch.campaign.ledger import find_campaign

    try:
        return find_campaign(members)
    except LaunchError as error:
        raise LaunchError(f"--members {members}: this is no folder, and {error}") from error


_MEMBERS = click.option(
    "--members",
    required=True,
    metavar="CAMPAIGN|DIR",
    help="A campaign, or a folder with trained members: of `local`, `smoke`, or of fetched outputs.",
)
_MEMBERS_OF = click.option(
    "--experiment",
    "experiments",
    multiple=True,
    metavar="NAME",
    help="Use only the members of this experiment. Repeatable. [default: all that are found]",
)
_ENCODERS = click.option(
    "--weights",
    multiple=True,
    type=_FOLDER,
    help="A folder with the weights of a linear probe's encoder, beside input/weights. Repeatable.",
)


def _encoder_folders(weights: Sequence[Path]) -> list[str]:
    """The folders that --weights names, and the one that the command `weights` writes."""
    from launch.local import WEIGHTS_FOLDER

    return [str(folder) for folder in (*weights, WEIGHTS_FOLDER) if folder.is_dir()]


@main.command(
    epilog=_examples(
        "build_kernel.py predict --tiles DIR --members runs/local --out predictions.csv",
        "build_kernel.py predict --tiles DIR --members strong --out predictions.csv --labels labels.csv",
    )
)
@click.option("--tiles", required=True, type=_FOLDER, help="A folder of pictures, nested as you like.")
@_MEMBERS
@_out(
    "predictions.csv",
    "The CSV file to write; a JSON file beside it, and with --labels an HTML page.",
    kind=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
)
@click.option(
    "--labels",
    type=_FILE,
    help="A CSV file with the columns tile (or id, file, path), label (0 or 1), and perhaps slide or group.",
)
@_MEMBERS_OF
@_ENCODERS
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where to compute; auto takes the GPUs where there are any.",
)
@click.option("--skip-bad", is_flag=True, help="Predict the other tiles where some cannot be used.")
def predict(
    tiles: Path,
    members: str,
    out: Path,
    labels: Path | None,
    experiments: tuple[str, ...],
    weights: tuple[Path, ...],
    device: str,
    skip_bad: bool,
) -> None:
    """Predict your own tiles with the members of a campaign.

    Every member predicts every tile with all of its views, as in the inference kernel. A row of the CSV file
    is a tile: its path, the probability of tumour (the mean over the members), their spread (standard
    deviation), and the probability calibrated by Platt scaling on the campaign's out-of-fold predictions.

    Tiles are PNG, JPEG or TIFF files of any name. RGBA is flattened on white. A square picture that is not
    96 x 96 pixels is resized (bicubic), which is right where it shows the same field as a competition tile,
    about 93 micrometres a side. Greyscale pictures, those that are not square, and damaged files are refused,
    all at once.

    With --labels it is an external test: AUC with an interval that resamples slides or groups, F1, confusion
    and calibration, as a page beside the CSV file. A repeated command continues an interrupted one.
    """
    from launch.members.programs import predict as predict_tiles

    predict_tiles(
        {
            "tiles": tiles,
            "members": _members_folder(members),
            "out": out,
            "labels": "" if labels is None else labels,
            "experiments": experiments,
            "weights": _encoder_folders(weights),
            "device": device,
            "skip_bad": skip_bad,
        }
    )
    if labels is None:
        _next(f"predict --tiles DIR --members {shlex.quote(members)} --out test.csv --labels LABELS.csv")


@main.command(epilog=_examples("build_kernel.py export --members runs/local --to exported --onnx"))
@_MEMBERS
@_out("exported", "The folder to write; absent or empty.", also=("--to",))
@click.option(
    "--onnx",
    is_flag=True,
    help="Write an ONNX file for each member, too (needs the packages onnx, onnxruntime, onnxscript).",
)
@_MEMBERS_OF
@_ENCODERS
def export(
    members: str, out: Path, onnx: bool, experiments: tuple[str, ...], weights: tuple[Path, ...]
) -> None:
    """Export the members of a campaign to share or deploy them.

    The folder is of the Hugging Face kind: the weights as safetensors, config.json with labels and
    normalisation, and README.md with data, folds, out-of-fold AUC, limits and licence, filled from the run.
    An ONNX file takes tiles in [0, 1], any number at a time, and gives the logit, which is compared with
    torch's, to 1e-4. `predict --members` and lib.inference.predictor.Predictor read the folder.
    """
    from launch.members.programs import export as export_members

    export_members(
        {
            "members": _members_folder(members),
            "out": out,
            "onnx": onnx,
            "experiments": experiments,
            "weights": _encoder_folders(weights),
        }
    )
    _next(f"predict --tiles DIR --members {shlex.quote(str(out))} --out predictions.csv")


# --- with the plain Kaggle client ---------------------------------------------------------------------------


@main.command(
    epilog=_examples(
        "build_kernel.py build strong --set epochs=8",
        "build_kernel.py check",
        "kaggle kernels push -p dist/kernels/hcd-prepare",
    )
)
@_EXPERIMENTS
@_OWNER
@_SET
@_DATASET
@click.option(
    "--thin", is_flag=True, help="Kernels import the library from the dataset, after a check of its hashes."
)
@_STRICT_BUNDLE
@_AVERAGE
@_SEARCH
@_out("dist", "Where to.")
def build(
    experiments: tuple[str, ...],
    owner: str | None,
    overrides: tuple[str, ...],
    datasets: tuple[str, ...],
    thin: bool,
    strict_bundle: bool,
    average: str,
    search_name: str | None,
    out: Path,
) -> None:
    """Write the dataset and the kernels for `kaggle kernels push`.

    EXPERIMENTS are names of files in experiments/. The default is the experiment that kernel-metadata.json
    names.
    """
    from launch.packaging import builder
    from launch.packaging.bundle import SOURCE_LIMIT
    from launch.packaging.metadata import PLACEHOLDER_OWNER

    wrong = [dataset for dataset in datasets if dataset.count("/") != 1]
    if wrong:
        raise LaunchError(f"--dataset takes OWNER/SLUG, not {', '.join(wrong)}")
    loaded = _load(experiments, overrides)
    built = builder.build(
        loaded,
        out=out,
        owner=owner,
        datasets=datasets,
        average=average,
        search=_load_search(search_name),
        thin=thin,
        strict_bundle=strict_bundle,
    )
    for kernel in built.kernels:
        size = built.sizes[kernel.slug]
        print_text(
            f"{built.out}/kernels/{kernel.slug}  {size:,} bytes, {size / SOURCE_LIMIT:.0%} of the limit"
        )
    print_text(f"{built.out}/dataset  bundle {built.bundle}")
    if built.owner == PLACEHOLDER_OWNER:
        print_text(
            f"note: the owner is still {PLACEHOLDER_OWNER}: write your Kaggle user name into "
            "kernel-metadata.json before you push"
        )
    _next("check" if out == Path("dist").resolve() else f"check --out {shlex.quote(str(out))}")


@main.command()
@_out("dist", "The folder that `build` wrote.")
def check(out: Path) -> None:
    """Check a build against the rules of Kaggle and its client.

    Sizes, metadata, sources, secrets, and whether the networks can be built. All problems are listed at once.
    """
    from launch.local import WEIGHTS_FOLDER
    from launch.packaging.check import check as check_build
    from launch.packaging.network_check import built_networks, require_networks

    result = check_build(out)
    for line in result.sizes:
        print_text(line)
    for line in result.warnings:
        print_text(f"warning: {line}")
    if result.problems:
        raise LaunchError(f"{len(result.problems)} problems:\n  - " + "\n  - ".join(result.problems))
    require_networks(built_networks(out), fetched=WEIGHTS_FOLDER)
    print_text("no problems")
    print_command(
        f"next: kaggle kernels push -p {shlex.quote(str(out))}/kernels/KERNEL (docs/kaggle.md has the order)"
    )


@main.command()
@click.option(
    "--port", default=0, type=click.IntRange(0, 65535), help="The port to listen on. [default: a free one]"
)
@click.option("--data", type=_FOLDER, help="A folder in competition layout. [default: synthetic tiles]")
@click.option(
    "--faults", type=_FILE, help="Faults of the emulated Kaggle: a JSON list, see docs/emulator.md."
)
@_out("runs/emulator", "Folder for the state of the emulated Kaggle.")
def emulator(port: int, data: Path | None, faults: Path | None, out: Path) -> None:
    """Serve the emulated Kaggle until Ctrl-C.

    It prints the environment variables that connect a Kaggle client to it.
    """
    from launch.emulator.faults import load_faults
    from launch.emulator.smoke import serve

    loaded = load_faults(faults) if faults is not None else ()
    serve(port=port, data=data, faults=loaded, out=out, owner=_owner())


# --- the process --------------------------------------------------------------------------------------------


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of this process when None.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong use.
    """
    try:
        main(args=arguments, standalone_mode=False)
    except (LaunchError, KernelError) as error:
        return _failed(str(error))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        return _failed(
            f"the package {error.name} is not installed: run `make env`, then use .venv/bin/python"
        )
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            path = error.filename or "a file"
            reason = f"{path} cannot be read or written ({error.strerror})"
            return _failed(f"{reason}: change its permissions, or choose another folder with --out")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _failed(
                f"the disk is full ({error}): free some space and repeat the command; it continues"
            )
        raise
    except (KeyboardInterrupt, click.Abort):
        print_text("interrupted: the same command continues from here", to_errors=True)
        return 1
    return 0


def _failed(text: str) -> int:
    print_text(f"error: {text}", to_errors=True)
    return 1


def console_script() -> None:
    """The installed command `hcd`."""
    sys.exit(command_line())
