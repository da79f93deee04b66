"""What five folds came to: a table, the pooled out-of-fold AUC with its interval, and the submission, checked once more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.errors import LaunchError
from launch.plan import Kernel
from launch.rehearsal.runner import LocalRun
from lib.errors import KernelError
from lib.inference.submission import check_submission
from lib.metrics import auc, confusion, decide_out_of_fold, f1, group_interval, probability
from lib.run_record import read_run_record


@dataclass(frozen=True)
class Summary:
    """The result of an experiment.

    Attributes:
        table: id, label, fold, group, probability of every labelled tile, out of fold.
        folds: one row a fold: tiles, auc, f1_at_half, threshold, f1_at_threshold, seconds.
        pooled: AUC of all out-of-fold probabilities together.
        interval: its 95 % interval, resampling groups.
        groups: how many groups were resampled.
        decisions: F1 and confusion matrix of all tiles, at 0.5 and at thresholds chosen on the other folds.
    """

    experiment: str
    table: pd.DataFrame
    folds: pd.DataFrame
    pooled: float
    interval: tuple[float, float]
    groups: int
    decisions: dict[str, Any]


def read_out_of_fold(folders: Sequence[Path], index: pd.DataFrame) -> pd.DataFrame:
    """The mean probability over members of every labelled tile, each tile exactly once.

    Raises:
        LaunchError: a tile without a prediction, or with two.
    """
    parts = []
    for folder in folders:
        record = read_run_record(folder, kind="train")
        members = [
            pd.read_csv(folder / f"oof-{record.fold}-member-{member}.csv", dtype={"id": str}).set_index("id")
            for member in record.members
        ]
        mean = sum(probability(member["logit"].reindex(members[0].index).to_numpy()) for member in members) / len(members)
        parts.append(pd.DataFrame({"id": members[0].index, "fold": record.fold, "probability": mean}))
    table = index.merge(pd.concat(parts), on="id", how="outer", validate="one_to_one")
    if len(table) != len(index) or table["probability"].isna().any():
        raise LaunchError(f"{int(table['probability'].isna().sum()):,} tiles have no out-of-fold prediction: run the folds again")
    return table


def summarise(run: LocalRun, experiment: str) -> Summary:
    """Read and score what the fold kernels of an experiment left."""
    kernels: list[Kernel] = [k for k in run.built.kernels if k.kind == "train" and k.experiments == (experiment,)]
    prepare = next(kernel for kernel in run.built.kernels if kernel.kind == "prepare")
    index = pd.read_csv(run.working(prepare.slug) / "index-train.csv", dtype={"id": str, "slide": str}, keep_default_na=False)
    table = read_out_of_fold([run.working(kernel.slug) for kernel in kernels], index)
    slides = kernels[0].configs[0].split == "slide"
    table["group"] = table["slide"] if slides else table["stain_group"]
    labels, scores, fold = (table[name].to_numpy() for name in ("label", "probability", "fold"))
    positive, thresholds = decide_out_of_fold(labels, scores, fold)
    rows = []
    for kernel, threshold in zip(kernels, thresholds, strict=True):
        inside = fold == kernel.fold
        rows.append(
            {
                "fold": kernel.fold,
                "tiles": int(inside.sum()),
                "auc": auc(labels[inside], scores[inside]),
                "f1_at_half": f1(labels[inside], scores[inside] >= 0.5),
                "threshold": threshold,
                "f1_at_threshold": f1(labels[inside], positive[inside]),
                "seconds": run.seconds[kernel.slug],
            }
        )
    groups = table["group"].to_numpy()
    return Summary(
        experiment=experiment,
        table=table,
        folds=pd.DataFrame(rows),
        pooled=auc(labels, scores),
        interval=group_interval(lambda rows: auc(labels[rows], scores[rows]), groups, seed=0),
        groups=len(np.unique(groups)),
        decisions={
            "f1_at_half": f1(labels, scores >= 0.5),
            "confusion_at_half": confusion(labels, scores >= 0.5),
            "f1_at_thresholds": f1(labels, positive),
            "confusion_at_thresholds": confusion(labels, positive),
        },
    )


def print_summary(run: LocalRun, summaries: Sequence[Summary], *, seconds: float) -> None:
    """The table, the pooled AUC, the submission's path, the time."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 110)
    for summary in summaries:
        config = next(k.configs[0] for k in run.built.kernels if k.kind == "train" and k.experiments == (summary.experiment,))
        title = f"{summary.experiment}: {config.backbone}, {config.weights} weights, {config.split} folds, seed {config.seed}"
        table = Table(title=title, title_justify="left")
        for name in ("fold", "tiles", "AUC", "F1 at 0.5", "F1 at threshold", "threshold*", "seconds"):
            table.add_column(name, justify="right")
        for row in summary.folds.itertuples():
            table.add_row(
                str(row.fold),
                f"{row.tiles:,}",
                f"{row.auc:.4f}",
                f"{row.f1_at_half:.3f}",
                f"{row.f1_at_threshold:.3f}",
                f"{row.threshold:.3f}",
                f"{row.seconds:.1f}",
            )
        console.print(table)
        console.print("* the threshold with the best F1 on the other folds")
        low, high = summary.interval
        console.print(
            f"pooled out-of-fold AUC {summary.pooled:.4f} on n = {len(summary.table):,} tiles "
            f"(95 % interval {low:.4f} to {high:.4f}, resampling {summary.groups} groups)",
            soft_wrap=True,
        )
        decisions = summary.decisions
        console.print(
            f"pooled F1 {decisions['f1_at_half']:.4f} at 0.5, {decisions['f1_at_thresholds']:.4f} at the thresholds; "
            f"confusion [[TN, FP], [FN, TP]] {decisions['confusion_at_half']} and {decisions['confusion_at_thresholds']}",
            soft_wrap=True,
        )
    inference = next(kernel for kernel in run.built.kernels if kernel.kind == "inference")
    path = run.working(inference.slug) / "submission.csv"
    text, sample = path.read_text(encoding="utf-8"), (run.data / "sample_submission.csv").read_bytes()
    try:
        check_submission(text, sample)
    except KernelError as error:
        raise LaunchError(f"{path}: {error}") from error
    console.print(f"submission: {path} ({text.count(chr(10)) - 1:,} tiles, matches sample_submission.csv)", soft_wrap=True)
    console.print(f"total time: {seconds:.1f} s")
