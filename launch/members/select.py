"""Select the experiments to average, on their out-of-fold predictions (`ensemble select`)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from launch.errors import LaunchError
from lib.data.prepared import TRAIN_INDEX, read_index
from lib.errors import KernelError, listed
from lib.evaluation.averages import describe_weights
from lib.evaluation.ensemble_selection import Selection, select_experiments
from lib.evaluation.out_of_fold import Summary, score_experiment
from lib.runtime.finished_folds import outputs_below
from lib.runtime.run_record import RunRecordError, peek_kind, read_run_record

logger = logging.getLogger(__name__)


def select(experiments: Sequence[str], folders: Sequence[Path]) -> Selection:
    """Select among finished experiments, and print the weights, the nested gain and what to do with them.

    Args:
        experiments: names; all that are found when empty.
        folders: campaigns, rehearsals, folders of `local`, or folders of outputs.

    Raises:
        LaunchError: fewer than two whole experiments are found, one is found twice, or they do not agree.
    """
    try:
        selection = select_experiments(_read(experiments, folders))
    except KernelError as error:
        raise LaunchError(str(error)) from error
    _print(selection)
    return selection


def _read(experiments: Sequence[str], folders: Sequence[Path]) -> list[Summary]:
    """The out-of-fold scores of the experiments. An output that cannot be read is named and left out.

    Raises:
        LaunchError: names are unknown, or folds of one experiment lie in two places.
        KernelError: outputs cannot be read or do not belong together.
    """
    by_experiment: dict[str, dict[Path, list[Path]]] = {}
    indexes: dict[str, Path] = {}
    pushes: set[tuple[str, int, str]] = set()  # a fetched copy of an output is the same output
    for output in [path for folder in folders for path in outputs_below(folder, ("train", "prepare"))]:
        try:
            record = read_run_record(output, kind=str(peek_kind(output)), fetched_only=True)
        except RunRecordError as error:
            logger.warning("left out: %s", error)
            continue
        if record.kind == "prepare":
            indexes.setdefault(record.data_id, output / TRAIN_INDEX)
            continue
        push = (record.experiment, record.fold, record.push_id or str(output))
        if push not in pushes:
            pushes.add(push)
            place = output.parent.parent if output.name == "working" else output.parent
            by_experiment.setdefault(record.experiment, {}).setdefault(place, []).append(output)
    names = list(experiments) or sorted(by_experiment)
    problems = [
        f"{name} has no finished fold in these folders" for name in names if name not in by_experiment
    ]
    for name in names:
        if len(places := by_experiment.get(name, {})) > 1:
            shown = " and ".join(str(place) for place in places)
            problems.append(f"{name} is found more than once, in {shown}: name the folder to use with --from")
    if problems:
        found = ", ".join(sorted(by_experiment)) or "none"
        raise LaunchError(
            listed("nothing was selected:", problems, remedy=f"Experiments with finished folds: {found}.")
        )
    summaries = []
    for name in names:
        (parts,) = by_experiment[name].values()
        data_id = read_run_record(parts[0], kind="train", fetched_only=True).data_id
        index = read_index(indexes[data_id]) if data_id in indexes else None
        summaries.append(score_experiment(name, parts, index))
    return summaries


def _print(selection: Selection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    table = Table(title="Selected weights (forward selection with replacement)", title_justify="left")
    table.add_column("experiment")
    for number in range(len(selection.by_fold)):
        table.add_column(f"without fold {number}", justify="right")
    table.add_column("on all folds", justify="right")
    for name, weight in selection.weights.items():
        table.add_row(name, *(str(weights[name]) for weights in selection.by_fold), str(weight))
    console.print(table)
    low, high = selection.interval
    interval = "no interval: fewer than 10 groups of tiles are known"
    if low == low:
        interval = f"95 % interval {low:+.4f} to {high:+.4f}, groups resampled"
    console.print(
        f"pooled out-of-fold AUC on n = {selection.tiles:,} tiles: plain mean {selection.plain:.4f}, "
        f"selected {selection.selected:.4f} (each fold with the weights of the other folds); "
        f"gain {selection.gain:+.4f} ({interval})",
        soft_wrap=True,
    )
    if not selection.is_better:
        console.print(
            "The gain is not shown to be above zero: keep the plain mean (--average mean, the default)."
        )
        return
    kept = {name: weight for name, weight in selection.weights.items() if weight}
    average = f" --average {describe_weights(kept)}" if len(kept) > 1 else ""
    console.print(f"To use it: build_kernel.py run {' '.join(kept)}{average}", soft_wrap=True)
