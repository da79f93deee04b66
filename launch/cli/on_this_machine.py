"""Commands on this machine: download, import, weights, local, predict, export."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from launch.cli.group import main
from launch.cli.shared import (
    ATTACH,
    AVERAGE,
    CONFIGURED,
    DATA,
    EXPERIMENTS,
    FILE,
    FOLDER,
    FOLDS,
    HOLDOUT,
    SEARCH,
    SET,
    examples,
    holdout_here,
    load_chosen,
    load_search_space,
    out_option,
    own_name,
    print_next,
    repeated_options,
    require_networks,
)
from launch.console import print_text
from launch.errors import LaunchError


@main.command()
@out_option(DATA, "Where to.")
def download(out: Path) -> None:
    """Download the competition's data through the Kaggle client.

    For `local` and `smoke --data`. It needs about 14 GB of disk while it unpacks.
    """
    from launch.kaggle_api.download import download_competition

    download_competition(out)
    data = "" if out == Path(DATA).resolve() else f"--data {shlex.quote(str(out))}"
    print_next(f"smoke --data {shlex.quote(str(out))} --tiles 300", f"local {data} --folds 0")


@main.command(
    "import",
    epilog=examples(
        "build_kernel.py import DIR --table labels.csv --out input/mine",
        "build_kernel.py import camelyonpatch_level_2_split_valid_x.h5 --out input/pcam-valid",
    ),
)
@click.argument("source", type=click.Path(path_type=Path, exists=True, resolve_path=True))
@click.option(
    "--table",
    type=FILE,
    help="A CSV file with the columns tile (or id, file, path), label, and perhaps slide.",
)
@out_option("input/mine", "The folder to write; absent or empty.")
@click.option("--test", type=FOLDER, help="A folder of tiles to predict. [default: those without a label]")
@click.option(
    "--test-share",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.9, min_open=True),
    help="The share of labelled tiles, or of their slides, that become test tiles where no others are.",
)
@click.option("--exclude", type=FILE, help="A file whose first column names tiles to leave out.")
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
    print_next(f"smoke --data {data}", f"local EXPERIMENT --data {data}")


@main.command()
@EXPERIMENTS
@click.option(
    "--upload",
    is_flag=True,
    help="Upload them as the private dataset hcd-encoders; attach it with --dataset OWNER/hcd-encoders.",
)
@SET
def weights(experiments: tuple[str, ...], upload: bool, overrides: tuple[str, ...]) -> None:
    """Download pretrained weights of backbones.

    They are kept in input/weights, where `smoke` and `local` find them.

    With --upload they become a private dataset of yours. Use this for weights that need a licence agreement.
    Check and accept the licence of the weights yourself.
    """
    from launch.local import fetch_weights

    folder = fetch_weights(load_chosen(experiments, overrides), owner=own_name())
    print_text(f"weights in {folder}")
    if upload:
        from launch.campaign.weights_dataset import upload_weights
        from launch.kaggle_api.client import connect

        dataset = upload_weights(connect(), folder)
        print_text(f"dataset {dataset}: attach it with --dataset")
        print_next(f"run {repeated_options(only=CONFIGURED)} --dataset {dataset}")
        return
    print_next(f"local {repeated_options(only=CONFIGURED)}")


@main.command(
    epilog=examples(
        "build_kernel.py local resnet34 --folds 0                  one fold: a first score",
        "build_kernel.py local resnet34                            the other folds, averaged with it",
        "build_kernel.py local resnet34 --set epochs=3 --set num_members=1",
    )
)
@EXPERIMENTS
@click.option("--data", default=DATA, show_default=True, type=FOLDER, help="A folder in competition layout.")
@FOLDS
@out_option("runs/local", "Folder for the outputs.")
@SEARCH
@HOLDOUT
@ATTACH
@AVERAGE
@SET
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

    held_out, holdout_folder = holdout_here(holdout, out)
    loaded = load_chosen(experiments, [*overrides, *held_out])
    require_networks(loaded, attach=attach)
    train(
        loaded,
        data=data,
        folds=folds,
        out=out,
        attach=(*attach, *holdout_folder),
        average=average,
        search=load_search_space(search_name),
        owner=own_name(),
        board=local_board,
    )
    upload_histories(out)
    if search_name is not None:
        print_next("experiments", f"local {repeated_options(without=('search_name',))}")
    elif folds is not None:
        print_next(f"local {repeated_options(without=('folds',))}")
    else:
        print_next(f"predict --tiles DIR --members {shlex.quote(str(out))} --out predictions.csv")


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
    type=FOLDER,
    help="A folder with the weights of a linear probe's encoder, beside input/weights. Repeatable.",
)


def _encoder_folders(weights: Sequence[Path]) -> list[str]:
    """The folders that --weights names, and the one that the command `weights` writes."""
    from launch.local import WEIGHTS_FOLDER

    return [str(folder) for folder in (*weights, WEIGHTS_FOLDER) if folder.is_dir()]


@main.command(
    epilog=examples(
        "build_kernel.py predict --tiles DIR --members runs/local --out predictions.csv",
        "build_kernel.py predict --tiles DIR --members strong --out predictions.csv --labels labels.csv",
    )
)
@click.option("--tiles", required=True, type=FOLDER, help="A folder of pictures, nested as you like.")
@_MEMBERS
@out_option(
    "predictions.csv",
    "The CSV file to write; a JSON file beside it, and with --labels an HTML page.",
    kind=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
)
@click.option(
    "--labels",
    type=FILE,
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
        print_next(f"predict --tiles DIR --members {shlex.quote(members)} --out test.csv --labels LABELS.csv")


@main.command(epilog=examples("build_kernel.py export --members runs/local --to exported --onnx"))
@_MEMBERS
@out_option("exported", "The folder to write; absent or empty.", also=("--to",))
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
    print_next(f"predict --tiles DIR --members {shlex.quote(str(out))} --out predictions.csv")
