"""Print results: scores of the folds, pooled out-of-fold AUC, submission, ranking of a search."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.console import print_text
from launch.errors import LaunchError
from launch.plan import Kernel
from lib.data.prepared import TRAIN_INDEX, read_index
from lib.errors import KernelError
from lib.evaluation.averages import describe_weights, parse_weights
from lib.evaluation.calibration import Calibration
from lib.evaluation.holdout_grade import caution_of, describe_grade
from lib.evaluation.out_of_fold import (
    ResultError,
    Summary,
    average_experiments,
    describe_interval,
    score_experiment,
)
from lib.inference.submission import check_submission
from lib.runtime.run_record import read_run_record
from lib.search_space import RECORDS, TABLE, WINNER


def summarise(experiment: str, kernels: Sequence[Kernel], folder_of: Callable[[str], Path]) -> Summary:
    """Read and score the out-of-fold predictions of an experiment.

    Args:
        experiment: its name.
        kernels: of the whole plan.
        folder_of: the output folder of a kernel, by slug.

    Raises:
        LaunchError: a tile has no prediction, or two.
    """
    folds = [kernel for kernel in kernels if kernel.kind == "train" and kernel.experiments == (experiment,)]
    prepare = next(kernel for kernel in kernels if kernel.kind == "prepare")
    index = read_index(folder_of(prepare.slug) / TRAIN_INDEX)
    try:
        return score_experiment(experiment, [folder_of(kernel.slug) for kernel in folds], index)
    except ResultError as error:
        raise LaunchError(str(error)) from error


def print_summary(summaries: Sequence[Summary], submission: Path, sample: Path, *, seconds: float) -> None:
    """Print the scores of every experiment and of their mean, the hold-out's, the submission, and the time.

    The grade of a hold-out is read from the run.json beside the submission.

    Raises:
        LaunchError: the submission does not match the sample.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 110)
    for summary in summaries:
        console.print(_fold_table(summary))
        print_text("* the threshold with the best F1 on the other folds")
        for line in _score_lines(summary):
            print_text(line)
    scores = read_run_record(submission.parent, kind="inference", fetched_only=True).scores
    if len(summaries) > 1:
        weights = parse_weights(scores.get("average", "mean"), [summary.experiment for summary in summaries])
        mean = average_experiments(summaries, weights=weights)
        low, high = mean.interval
        uncertainty = f" (95 % interval {low:.4f} to {high:.4f})" if low == low else ""
        note = f" with weights {describe_weights(weights)}" if weights else ""
        print_text(
            f"mean of {len(summaries)} experiments{note}: pooled out-of-fold AUC {mean.pooled:.4f} on "
            f"n = {mean.tiles:,} tiles{uncertainty}\n"
            f"correlation of their probabilities (Spearman):\n{mean.correlations.round(3).to_string()}"
        )
    if (grade := scores.get("holdout")) is not None:
        print_text(f"{describe_grade(grade)}\n{caution_of(grade['name'])}")
    text = submission.read_text(encoding="utf-8")
    try:
        check_submission(text, sample.read_bytes())
    except KernelError as error:
        raise LaunchError(f"{submission}: {error}") from error
    tiles = text.count("\n") - 1
    print_text(f"submission: {submission} ({tiles:,} tiles, matches sample_submission.csv)")
    print_text(f"total time: {seconds:.1f} s")


def _fold_table(summary: Summary) -> Any:
    from rich.table import Table

    config = summary.config
    title = (
        f"{summary.experiment}: {config.backbone}, weights {config.weights}, {config.fold_split} folds, "
        f"seed {config.seed}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("fold", "tiles", "AUC", "F1 at 0.5", "F1 at threshold", "threshold*", "seconds"):
        table.add_column(name, justify="right")
    for row in summary.folds.itertuples():
        table.add_row(
            str(row.fold),
            f"{row.tiles:,}",
            f"{row.auc:.4f}",
            f"{row.f1_at_half:.3f}",
            "-" if np.isnan(row.f1_at_threshold) else f"{row.f1_at_threshold:.3f}",
            "-" if np.isnan(row.threshold) else f"{row.threshold:.3f}",
            f"{row.seconds:.1f}",
        )
    return table


def _score_lines(summary: Summary) -> list[str]:
    """Lines below the table of folds: pooled AUC, F1, confusion, calibration."""
    config, decisions, folds = summary.config, summary.decisions, summary.folds
    uncertainty = describe_interval(summary.interval, groups=summary.groups, grouping=summary.grouping)
    is_whole = len(folds) == config.num_folds
    part = "" if is_whole else f" of {len(folds)} of {config.num_folds} folds"
    lines = [
        f"pooled out-of-fold AUC {summary.pooled:.4f} on n = {len(summary.table):,} tiles{part} "
        f"({uncertainty}); "
        f"folds {folds['auc'].min():.4f} to {folds['auc'].max():.4f}"
    ]
    at_thresholds = ""
    if "f1_at_thresholds" in decisions:
        at_thresholds = f", {decisions['f1_at_thresholds']:.4f} at the thresholds"
    confusions = " and ".join(
        str(decisions[name]) for name in ("confusion_at_half", "confusion_at_thresholds") if name in decisions
    )
    lines.append(
        f"pooled F1 {decisions['f1_at_half']:.4f} at 0.5{at_thresholds}; "
        f"confusion [[TN, FP], [FN, TP]] {confusions}"
    )
    if summary.transductive:
        lines.append(f"transductive: {summary.transductive}")
    if summary.calibration is not None:
        lines.append(_calibration_line(summary.calibration))
    return lines


def _calibration_line(calibration: Calibration) -> str:
    slopes = [scaling.slope for scaling in calibration.scalings]
    intercepts = [scaling.intercept for scaling in calibration.scalings]
    error, brier = calibration.error, calibration.brier
    return (
        f"expected calibration error {error[0]:.4f}, {error[1]:.4f} after Platt scaling fitted on the other "
        f"folds (slopes {min(slopes):.3f} to {max(slopes):.3f}, "
        f"intercepts {min(intercepts):+.3f} to {max(intercepts):+.3f}); "
        f"Brier {brier[0]:.4f} and {brier[1]:.4f}"
    )


def print_ranking(folder: Path, *, seconds: float) -> None:
    """Print the trials of a search, the best first, then what was not run, and where the best one is.

    Args:
        folder: the output of a search kernel.
        seconds: that the command took.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 150)
    content = json.loads((folder / RECORDS).read_bytes())
    ranking = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
    ends = zip(ranking["low"], ranking["high"], strict=True)
    interval = [f"{float(low):.4f} to {float(high):.4f}" if low else "" for low, high in ends]
    scores = [f"{float(score):.4f}" if score else "" for score in ranking["auc"]]
    shown = ranking.assign(auc=scores, low=interval).drop(columns=["high", "note"])
    shown = shown.rename(columns={"auc": "AUC", "low": "95 %", "parameters_millions": "M weights"})
    table = Table(title=f"search {content['name']} over {content['experiment']}", title_justify="left")
    for name in shown.columns:
        is_text = name in ("trial", "status", "backbone")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*row)
    console.print(table)
    for row in ranking[ranking["note"] != ""].itertuples():
        print_text(f"trial {row.trial}: {row.note}")
    print_text(
        "AUC is pooled out of fold, with its 95 % interval. The best AUC is optimistic: the trial was "
        "chosen by it"
    )
    if not content["complete"]:
        counts = {status: int((ranking["status"] == status).sum()) for status in ("not run", "failed")}
        left = [f"{count} {status}" for status, count in counts.items() if count]
        left += [f"{content['trials_left']} not drawn"] if content["trials_left"] else []
        print_text(f"not complete ({', '.join(left)}): build_kernel.py push search continues it")
    if (folder / WINNER).is_file():
        print_text(f"the best trial as an experiment: {folder / WINNER} (copy it to experiments/NAME.toml)")
    print_text(f"total time: {seconds:.1f} s")
