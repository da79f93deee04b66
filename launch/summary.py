"""What five folds came to, on a terminal: a table, the pooled out-of-fold AUC with its interval, and the submission, checked."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from launch.errors import LaunchError
from launch.plan import Kernel
from lib.data.prepared import TRAIN_INDEX, read_index
from lib.errors import KernelError
from lib.evaluation import out_of_fold as results
from lib.evaluation.calibration import Calibration
from lib.evaluation.out_of_fold import ResultError, Summary, average_experiments
from lib.inference.submission import check_submission
from lib.search_space import RECORDS, TABLE, WINNER


def summarise(experiment: str, kernels: Sequence[Kernel], folder_of: Callable[[str], Path]) -> Summary:
    """Read and score what the fold kernels of an experiment left.

    Args:
        experiment: its name.
        kernels: of the whole plan.
        folder_of: the output folder of a kernel, by slug.

    Raises:
        LaunchError: a tile without a prediction, or with two.
    """
    trained = [k for k in kernels if k.kind == "train" and k.experiments == (experiment,)]
    prepare = next(kernel for kernel in kernels if kernel.kind == "prepare")
    index = read_index(folder_of(prepare.slug) / TRAIN_INDEX)
    try:
        return results.score_experiment(experiment, [folder_of(kernel.slug) for kernel in trained], index)
    except ResultError as error:
        raise LaunchError(str(error)) from error


def print_summary(summaries: Sequence[Summary], submission: Path, sample: Path, *, seconds: float) -> None:
    """The table, the pooled AUC, the submission's path, the time.

    Raises:
        LaunchError: the submission does not match the sample.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    for summary in summaries:
        config = summary.config
        title = f"{summary.experiment}: {config.backbone}, {config.weights} weights, {config.fold_split} folds, seed {config.seed}"
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
        console.print(table)
        console.print("* the threshold with the best F1 on the other folds")
        low, high = summary.interval
        some = (
            ""
            if len(summary.folds) == config.num_folds
            else f" of {len(summary.folds)} of {config.num_folds} folds"
        )
        console.print(
            f"pooled out-of-fold AUC {summary.pooled:.4f} on n = {len(summary.table):,} tiles{some} "
            f"(95 % interval {low:.4f} to {high:.4f}, resampling {summary.groups} {summary.grouping}); "
            f"folds {summary.folds['auc'].min():.4f} to {summary.folds['auc'].max():.4f}",
            soft_wrap=True,
        )
        decisions = summary.decisions
        chosen = ""
        if "f1_at_thresholds" in decisions:
            chosen = f", {decisions['f1_at_thresholds']:.4f} at the thresholds"
        console.print(
            f"pooled F1 {decisions['f1_at_half']:.4f} at 0.5{chosen}; confusion [[TN, FP], [FN, TP]] "
            + " and ".join(
                str(decisions[name])
                for name in ("confusion_at_half", "confusion_at_thresholds")
                if name in decisions
            ),
            soft_wrap=True,
        )
        if summary.transductive:
            console.print(f"transductive: {summary.transductive}", soft_wrap=True)
        if summary.calibration is not None:
            console.print(_calibration_line(summary.calibration), soft_wrap=True)
    if len(summaries) > 1:
        together = average_experiments(summaries)
        low, high = together.interval
        console.print(
            f"mean of {len(summaries)} experiments: pooled out-of-fold AUC {together.pooled:.4f} on n = {together.tiles:,} tiles "
            f"(95 % interval {low:.4f} to {high:.4f})\ncorrelation of their probabilities (Spearman):\n"
            f"{together.correlations.round(3).to_string()}",
            soft_wrap=True,
        )
    text = submission.read_text(encoding="utf-8")
    try:
        check_submission(text, sample.read_bytes())
    except KernelError as error:
        raise LaunchError(f"{submission}: {error}") from error
    tiles = text.count(chr(10)) - 1
    console.print(
        f"submission: {submission} ({tiles:,} tiles, matches sample_submission.csv)", soft_wrap=True
    )
    console.print(f"total time: {seconds:.1f} s")


def print_ranking(folder: Path, *, seconds: float) -> None:
    """The trials of a search, the best first; what was not run, and where the winner is.

    Args:
        folder: the output of a search kernel.
        seconds: that the command took.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    content = json.loads((folder / RECORDS).read_bytes())
    ranking = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
    table = Table(title=f"search {content['name']} over {content['experiment']}", title_justify="left")
    ends = zip(ranking["low"], ranking["high"], strict=True)
    interval = [f"{float(low):.4f} to {float(high):.4f}" if low else "" for low, high in ends]
    scores = [f"{float(score):.4f}" if score else "" for score in ranking["auc"]]
    shown = ranking.assign(auc=scores, low=interval).drop(columns=["high", "note"])
    shown = shown.rename(columns={"auc": "AUC", "low": "95 %", "parameters_millions": "M weights"})
    for name in shown.columns:
        table.add_column(
            name, justify="left" if name in ("trial", "status", "backbone") else "right", overflow="fold"
        )
    for row in shown.itertuples(index=False):
        table.add_row(*row)
    console.print(table)
    for row in ranking[ranking["note"] != ""].itertuples():
        console.print(f"trial {row.trial}: {row.note}", soft_wrap=True)
    console.print(
        "AUC is pooled out of fold, with its 95 % interval; that of the best is optimistic, because it was chosen by it",
        soft_wrap=True,
    )
    if not content["complete"]:
        left = [f"{n} {s}" for s in ("not run", "failed") if (n := int((ranking["status"] == s).sum()))]
        left += [f"{content['trials_left']} not drawn"] if content["trials_left"] else []
        console.print(
            f"not complete ({', '.join(left)}): build_kernel.py push search goes on where it stopped",
            soft_wrap=True,
        )
    if (folder / WINNER).is_file():
        console.print(
            f"the winner, ready to run: {folder / WINNER} (copy it to experiments/NAME.toml)", soft_wrap=True
        )
    console.print(f"total time: {seconds:.1f} s")


def _calibration_line(found: Calibration) -> str:
    slopes, intercepts = ([getattr(line, name) for line in found.scalings] for name in ("slope", "intercept"))
    return (
        f"expected calibration error {found.error[0]:.4f}, {found.error[1]:.4f} after Platt scaling fitted on the other folds "
        f"(slopes {min(slopes):.3f} to {max(slopes):.3f}, intercepts {min(intercepts):+.3f} to {max(intercepts):+.3f}); "
        f"Brier {found.brier[0]:.4f} and {found.brier[1]:.4f}"
    )
