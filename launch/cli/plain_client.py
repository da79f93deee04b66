"""Commands around the plain Kaggle client: build, check, emulator."""

import shlex
from pathlib import Path

import click

from launch.cli.group import main
from launch.cli.shared import (
    AVERAGE,
    DATASET,
    EXPERIMENTS,
    FILE,
    FOLDER,
    OWNER,
    SEARCH,
    SET,
    STRICT_BUNDLE,
    examples,
    load_chosen,
    load_search_space,
    out_option,
    own_name,
    print_next,
)
from launch.console import print_command, print_text
from launch.errors import LaunchError


@main.command(
    epilog=examples(
        "build_kernel.py build strong --set epochs=8",
        "build_kernel.py check",
        "kaggle kernels push -p dist/kernels/hcd-prepare",
    )
)
@EXPERIMENTS
@OWNER
@SET
@DATASET
@click.option(
    "--thin", is_flag=True, help="Kernels import the library from the dataset, after a check of its hashes."
)
@STRICT_BUNDLE
@AVERAGE
@SEARCH
@out_option("dist", "Where to.")
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
    loaded = load_chosen(experiments, overrides)
    built = builder.build(
        loaded,
        out=out,
        owner=owner,
        datasets=datasets,
        average=average,
        search=load_search_space(search_name),
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
    print_next("check" if out == Path("dist").resolve() else f"check --out {shlex.quote(str(out))}")


@main.command()
@out_option("dist", "The folder that `build` wrote.")
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
@click.option("--data", type=FOLDER, help="A folder in competition layout. [default: synthetic tiles]")
@click.option("--faults", type=FILE, help="Faults of the emulated Kaggle: a JSON list, see docs/emulator.md.")
@out_option("runs/emulator", "Folder for the state of the emulated Kaggle.")
def emulator(port: int, data: Path | None, faults: Path | None, out: Path) -> None:
    """Serve the emulated Kaggle until Ctrl-C.

    It prints the environment variables that connect a Kaggle client to it.
    """
    from launch.emulator.faults import load_faults
    from launch.emulator.smoke import serve

    loaded = load_faults(faults) if faults is not None else ()
    serve(port=port, data=data, faults=loaded, out=out, owner=own_name())
