#!/usr/bin/env python3
"""Histopathologic Cancer Detection on Kaggle: build the kernels, check them, rehearse them, train on this machine."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from launch.errors import LaunchError

_FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
_SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one knob of the experiment; see `knobs`."
)
_OWNER = click.option("--owner", help="Your Kaggle user name, instead of the one in kernel-metadata.json.")
_ATTACH = click.option(
    "--attach",
    multiple=True,
    type=_FOLDER,
    help="A folder the kernels see as a dataset: a weight file, a tile-to-slide map.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Histopathologic Cancer Detection on Kaggle: build the kernels, check them, rehearse them, train on this machine.

    Exit codes: 0 done; 1 failed, with a sentence that says what and what to do; 2 wrong use.
    """


def _say(text: str) -> None:
    click.echo(text)


@main.command()
@click.argument("experiments", nargs=-1)
@_OWNER
@_SET
@click.option("--dataset", "datasets", multiple=True, metavar="OWNER/SLUG", help="A dataset to attach to the kernels.")
@click.option("--thin", is_flag=True, help="Kernels that import the library from the dataset, after checking its hash.")
@click.option("--strict-bundle", is_flag=True, help="Refuse to average folds that were trained by different code.")
@click.option("--out", default="dist", show_default=True, type=_FOLDER)
def build(
    experiments: tuple[str, ...],
    owner: str | None,
    overrides: tuple[str, ...],
    datasets: tuple[str, ...],
    thin: bool,
    strict_bundle: bool,
    out: Path,
) -> None:
    """Write the dataset and the kernels, complete for `kaggle kernels push`.

    EXPERIMENTS are names of files in experiments/; without any, the one that kernel-metadata.json names.
    """
    from launch import build as builder
    from launch.bundle import SOURCE_LIMIT
    from launch.metadata import PLACEHOLDER_OWNER, default_experiment, read_base
    from launch.plan import load_experiment

    wrong = [dataset for dataset in datasets if dataset.count("/") != 1]
    if wrong:
        raise LaunchError(f"--dataset takes OWNER/SLUG, not {', '.join(wrong)}")
    names = experiments or (default_experiment(read_base()),)
    loaded = [load_experiment(name, overrides) for name in names]
    built = builder.build(loaded, out=out, owner=owner, datasets=datasets, thin=thin, strict_bundle=strict_bundle)
    for kernel in built.kernels:
        size = built.sizes[kernel.slug]
        click.echo(f"{built.out}/kernels/{kernel.slug}  {size:,} bytes, {size / SOURCE_LIMIT:.0%} of the limit")
    click.echo(f"{built.out}/dataset  bundle {built.bundle}")
    if built.owner == PLACEHOLDER_OWNER:
        click.echo(f"note: the owner is {PLACEHOLDER_OWNER}; write yours into kernel-metadata.json before you push")


@main.command()
@click.option("--out", default="dist", show_default=True, type=_FOLDER)
def check(out: Path) -> None:
    """Hold a build against the rules of Kaggle and its client: sizes, metadata, sources, secrets; all problems at once."""
    from launch import build as builder

    looked, problems, warnings = builder.check(out)
    for line in looked:
        click.echo(line)
    for line in warnings:
        click.echo(f"warning: {line}")
    if problems:
        raise LaunchError(f"{len(problems)} problems:\n  - " + "\n  - ".join(problems))
    click.echo("no problems")


@main.command()
@click.argument("experiment", default="smoke")
@click.option("--data", type=_FOLDER, help="A folder in competition layout. [default: drawn tiles]")
@click.option("--tiles", type=click.IntRange(min=50), help="Labelled tiles to take (stratified) or to draw.")
@click.option("--folds", type=click.IntRange(min=2, max=20), help="The same as --set folds=K.")
@click.option("--thin", is_flag=True, help="Rehearse thin kernels, with the dataset mounted.")
@click.option("--out", default="runs/smoke", show_default=True, type=_FOLDER)
@_ATTACH
@_SET
def smoke(
    experiment: str,
    data: Path | None,
    tiles: int | None,
    folds: int | None,
    thin: bool,
    out: Path,
    attach: tuple[Path, ...],
    overrides: tuple[str, ...],
) -> None:
    """Rehearse: build, then run every kernel as Kaggle would, to a checked submission.

    An interrupted rehearsal goes on where it stopped; one that came to its end starts anew.
    """
    from launch.metadata import owner_of, read_base
    from launch.plan import load_experiment
    from launch.rehearsal.smoke import smoke as rehearse

    knobs = [*overrides, *([f"folds={folds}"] if folds else [])]
    loaded = load_experiment(experiment, knobs)
    rehearse(loaded, data=data, tiles=tiles, out=out, attach=attach, thin=thin, owner=owner_of(read_base()), say=_say)


@main.command()
@click.argument("experiments", nargs=-1)
@click.option(
    "--data",
    default="input/histopathologic-cancer-detection",
    show_default=True,
    type=_FOLDER,
)
@click.option("--out", default="runs/local", show_default=True, type=_FOLDER)
@_ATTACH
@_SET
def local(experiments: tuple[str, ...], data: Path, out: Path, attach: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """The whole training on this machine's GPU or CPU, by the kernels that would run on Kaggle.

    What is finished is not done again, so the same command continues an interrupted training.
    """
    from launch.metadata import default_experiment, owner_of, read_base
    from launch.plan import load_experiment
    from launch.rehearsal.smoke import local as train

    base = read_base()
    loaded = [load_experiment(name, overrides) for name in experiments or (default_experiment(base),)]
    train(loaded, data=data, out=out, attach=attach, owner=owner_of(base), say=_say)


@main.command()
@click.argument("experiments", nargs=-1)
@_SET
def weights(experiments: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Fetch the encoders' weights into input/weights, where `smoke` and `local` find them.

    Which licence a set of weights has, and whether it is gated, is yours to check and accept.
    """
    from launch.metadata import default_experiment, owner_of, read_base
    from launch.plan import load_experiment
    from launch.rehearsal.smoke import fetch_weights

    base = read_base()
    loaded = [load_experiment(name, overrides) for name in experiments or (default_experiment(base),)]
    click.echo(f"weights in {fetch_weights(loaded, owner=owner_of(base), say=_say)}")


@main.command()
@click.option("--to", default="input/histopathologic-cancer-detection", show_default=True, type=_FOLDER)
def download(to: Path) -> None:
    """The competition's data through the Kaggle client, for `local` and `smoke --data`; about 14 GB while unpacking."""
    from launch.download import download_competition

    download_competition(to, say=_say)


@main.command()
def knobs() -> None:
    """Every knob of an experiment, with its default and its meaning."""
    from lib.config import describe

    for name, default, meaning in describe():
        click.echo(f"{name} = {default or 'empty'}\n    {meaning}")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        main(args=arguments, standalone_mode=False)
    except LaunchError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the rest keeps its traceback
            raise
        click.echo(f"error: the disk is full ({error}). Free some space: the same command goes on from here", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: the same command goes on from here", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
