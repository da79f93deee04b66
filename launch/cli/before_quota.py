"""Commands before anything costs quota: smoke, doctor, experiments, options."""

from pathlib import Path

import click

from launch.cli.group import main
from launch.cli.shared import (
    ATTACH,
    AVERAGE,
    CONFIGURED,
    EXPERIMENTS,
    FILE,
    FOLDER,
    FOLDS,
    HOLDOUT,
    JSON,
    NAMES,
    SET,
    code_version,
    examples,
    holdout_here,
    load_chosen,
    load_search_space,
    out_option,
    own_name,
    print_next,
    repeated_options,
    require_networks,
    search_option,
)
from launch.console import print_json, print_text


@main.command(
    epilog=examples(
        "build_kernel.py smoke                                     synthetic tiles, a small network",
        "build_kernel.py smoke resnet34 --data DIR --tiles 300     your tiles, your network",
        "build_kernel.py smoke --search                            a hyperparameter search",
    )
)
@EXPERIMENTS
@click.option("--data", type=FOLDER, help="A folder in competition layout. [default: synthetic tiles]")
@click.option(
    "--tiles",
    type=click.IntRange(min=50),
    help="Number of labelled tiles to use (stratified) or to generate.",
)
@FOLDS
@click.option("--thin", is_flag=True, help="Rehearse kernels that import the library from the dataset.")
@click.option("--faults", type=FILE, help="Faults of the emulated Kaggle: a JSON list, see docs/emulator.md.")
@out_option("runs/smoke", "Folder for the data, the campaign and its outputs.")
@search_option("smoke")
@HOLDOUT
@ATTACH
@AVERAGE
@SET
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

    held_out, holdout_folder = holdout_here(holdout, out)
    loaded = load_experiments(experiments or ("smoke",), [*overrides, *held_out])
    if not (out / "campaign" / "ledger.json").is_file():
        require_networks(loaded, attach=attach)
    rehearse(
        loaded,
        data=data,
        tiles=tiles,
        folds=folds,
        out=out,
        attach=(*attach, *holdout_folder),
        thin=thin,
        average=average,
        search=load_search_space(search_name),
        faults=load_faults(faults) if faults is not None else (),
        owner=own_name(),
    )
    print_next("doctor", f"run {repeated_options(only=CONFIGURED)} --folds 0")


@main.command()
@EXPERIMENTS
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
@JSON
@SET
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

    loaded = load_chosen(experiments, overrides)
    if not as_json:
        print_examination(loaded, check_kaggle=check_kaggle, check_gated=check_gated, folder=CHECK_FOLDER)
        run_first = f"run {repeated_options(only=CONFIGURED)} --folds 0"
        print_next("" if check_kaggle else "doctor --check-kaggle", run_first)
        return
    examination = examine(loaded, check_kaggle=check_kaggle, check_gated=check_gated, folder=CHECK_FOLDER)
    print_json({**examination.to_dict(), "code": code_version()})
    examination.conclude()


@main.command()
@NAMES
@JSON
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
    print_next("smoke NAME", "options")


@main.command(epilog=examples("build_kernel.py options fold", "build_kernel.py options learning_rate epochs"))
@NAMES
@JSON
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
    print_next("smoke --set KEY=VALUE")
