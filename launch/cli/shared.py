"""Options and helpers that several commands share."""

import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from launch.console import log_to_terminal, print_command, print_text

DATA = "input/histopathologic-cancer-detection"


def complete_experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of experiments, for the shell."""
    from launch.experiments import experiment_names

    return [name for name in experiment_names() if name.startswith(incomplete)]


def _complete_options(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """`KEY=` for every option of an experiment, for the shell."""
    from lib.config import describe

    return [f"{name}=" for name, _, _ in describe() if name.startswith(incomplete)]


FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)

FILE = click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)

EXPERIMENTS = click.argument("experiments", nargs=-1, shell_complete=complete_experiments)

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_complete_options,
    help="Change one option of the experiment (list them with `options`). Repeatable.",
)

OWNER = click.option("--owner", help="Your Kaggle user name, if kernel-metadata.json does not hold it.")

ATTACH = click.option(
    "--attach",
    multiple=True,
    type=FOLDER,
    help="A folder that the kernels see as a dataset: a weights file, a tile-to-slide map. Repeatable.",
)

DATASET = click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="OWNER/SLUG",
    help="A Kaggle dataset to attach to the kernels. Repeatable.",
)

AVERAGE = click.option(
    "--average",
    metavar="mean|logit|rank|NAME=N,...",
    default="mean",
    show_default=True,
    help="What is averaged over the members: probabilities (mean), logits, ranks over all test tiles, or "
    "probabilities with a weight for each experiment (`ensemble select` proposes them).",
)

STRICT_BUNDLE = click.option(
    "--strict-bundle", is_flag=True, help="Refuse to average folds that different code trained."
)

CAMPAIGN = click.option("--campaign", metavar="NAME", help="The campaign. [default: the most recent one]")

NEW_CAMPAIGN = click.option(
    "--campaign", metavar="NAME", help="A name for the campaign. [default: the names of its experiments]"
)

RESERVE = click.option(
    "--reserve-hours",
    default=0.0,
    metavar="N",
    type=click.FloatRange(min=0),
    help="Leave N hours of the week's GPU quota to your other work.",
)

MESSAGE = click.option(
    "--message", default="", help="The description of the submission. [default: the out-of-fold AUC]"
)

HOLDOUT = click.option(
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


JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_log_to_errors,
    help="Print one JSON document, and messages to standard error. docs/json.md explains its keys.",
)


def out_option(
    default: str | None, text: str, *, kind: click.Path = FOLDER, also: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    """--out DIR: the folder of the command's files; -p and --path are what the Kaggle client calls it."""
    names = ("--out", "-p", "--path", *also, "out")
    return click.option(*names, default=default, show_default=default is not None, type=kind, help=text)


def search_option(default: str) -> Callable[[Any], Any]:
    """--search, or --search NAME: the name of a file in experiments/searches."""
    text = f"Run a search from experiments/searches instead of a training. [NAME by default: {default}]"
    return click.option(
        "--search", "search_name", is_flag=False, flag_value=default, metavar="[NAME]", help=text
    )


SEARCH = search_option("baseline")


def load_search_space(name: str | None) -> Any:
    """The search of this name; None without a name."""
    from launch.experiments import load_search

    return None if name is None else load_search(name)


def holdout_here(holdout: str | None, out: Path) -> tuple[list[str], tuple[Path, ...]]:
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


FOLDS = click.option(
    "--folds",
    callback=_fold_numbers,
    metavar="0,1,...",
    help="Train only these folds, numbered from 0. Their number is an option: --set num_folds=K.",
)

LOCAL = click.option(
    "--local",
    "local_run",
    is_flag=False,
    flag_value="runs/local",
    type=FOLDER,
    metavar="[FOLDER]",
    help="A run of `local` instead of a campaign. [FOLDER by default: runs/local]",
)

NAMES = click.argument("names", nargs=-1, metavar="[NAME]...")


def examples(*lines: str) -> str:
    """Examples below the options of a command, with their line breaks kept."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def load_chosen(experiments: Sequence[str], overrides: Sequence[str]) -> Any:
    """The experiments that are named, or the one that kernel-metadata.json names."""
    from launch.experiments import load_experiments
    from launch.packaging.metadata import default_experiment, read_base

    return load_experiments(experiments or (default_experiment(read_base()),), overrides)


def require_networks(experiments: Any, *, attach: Sequence[Path] = ()) -> None:
    """Build the networks once on this machine, before anything is pushed or trained."""
    from launch.local import WEIGHTS_FOLDER
    from launch.packaging.network_check import require_networks
    from launch.plan import first_networks

    require_networks(first_networks(experiments), attached=attach, fetched=WEIGHTS_FOLDER)


def own_name() -> str:
    """The Kaggle user name in kernel-metadata.json."""
    from launch.packaging.metadata import owner_of, read_base

    return owner_of(read_base())


def print_next(*steps: str, to_errors: bool = False) -> None:
    """The last lines of a command: the one or two commands that come next, as a user types them.

    Args:
        steps: without `build_kernel.py`; empty ones are left out.
        to_errors: print to standard error, where standard output holds something else.
    """
    for step in filter(None, steps):
        print_command(f"next: build_kernel.py {' '.join(step.split())}", to_errors=to_errors)


def repeated_options(*, only: Sequence[str] = (), without: Sequence[str] = ()) -> str:
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


CONFIGURED = ("experiments", "overrides")  # the parameters that choose what is trained


def next_run(folder: Path) -> str:
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


def code_version() -> dict[str, str]:
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


def short_commit(commit: str) -> str:
    """The first 12 digits of a commit, and the mark of a changed checkout."""
    return f"{commit[:12]}{commit[40:]}"
