"""What five folds came to: a table, the pooled out-of-fold AUC with its interval, and the submission, checked once more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.errors import LaunchError
from launch.plan import Kernel
from lib.calibration import Calibration, CalibrationError, calibrate_out_of_fold
from lib.config import Config
from lib.data.competition import read_table
from lib.data.prepared import TRAIN_INDEX, read_index
from lib.errors import KernelError
from lib.inference.submission import check_submission
from lib.metrics import auc, confusion, decide_out_of_fold, f1, group_interval, probability
from lib.run_record import RunRecord, read_run_record


@dataclass(frozen=True)
class Summary:
    """The result of an experiment.

    Attributes:
        experiment: its name.
        config: its knobs.
        table: id, label, fold, group, probability of every labelled tile, out of fold.
        folds: one row a fold: tiles, auc, f1_at_half, threshold, f1_at_threshold, seconds.
        pooled: AUC of all out-of-fold probabilities together.
        interval: its 95 % interval, resampling groups.
        groups: how many groups were resampled.
        grouping: what they are: stain groups or slides.
        calibration: of all out-of-fold probabilities; None where it is undefined.
        decisions: F1 and confusion matrix of all tiles, at 0.5 and at thresholds chosen on the other folds.
    """

    experiment: str
    config: Config
    table: pd.DataFrame
    folds: pd.DataFrame
    pooled: float
    interval: tuple[float, float]
    groups: int
    grouping: str
    calibration: Calibration | None
    decisions: dict[str, Any]


def read_out_of_fold(folders: Sequence[Path], index: pd.DataFrame) -> tuple[pd.DataFrame, list[RunRecord]]:
    """The mean probability over members of every tile of the folds, each tile exactly once; and the folds' records.

    Raises:
        LaunchError: a tile without a prediction, or with two.
    """
    parts, records = [], []
    for folder in folders:
        record = read_run_record(folder, kind="train", fetched_only=True)
        members = [_read_member(folder / f"oof-{record.fold}-member-{member}.csv") for member in record.members]
        if not members:
            raise LaunchError(f"{folder} names no members: run the fold again")
        mean = sum(probability(member["logit"].reindex(members[0].index).to_numpy()) for member in members) / len(members)
        parts.append(pd.DataFrame({"id": members[0].index, "fold": record.fold, "probability": mean}))
        records.append(record)
    predicted = pd.concat(parts)
    if twice := int(predicted["id"].duplicated().sum()):
        raise LaunchError(f"{twice:,} tiles have more than one out-of-fold prediction: run the folds again, with one config")
    whole = len(folders) == records[0].config["folds"]
    table = index.merge(predicted, on="id", how="outer" if whole else "right", validate="one_to_one")
    if table[["label", "probability"]].isna().any().any() or (whole and len(table) != len(index)):
        missing = int(table["probability"].isna().sum())
        raise LaunchError(f"{missing:,} tiles have no out-of-fold prediction, or are not in the index: run the folds again")
    return table, records


def _read_member(path: Path) -> pd.DataFrame:
    """What a member predicted out of fold, indexed by id, its logits as float64.

    Raises:
        LaunchError: it is no such table.
    """
    problems: list[str] = []
    table = read_table(path, ["id", "label", "logit"], problems)
    if table is not None:
        logits = pd.to_numeric(table["logit"], errors="coerce").astype(np.float64)
        if bad := int((~np.isfinite(logits)).sum()):
            problems.append(f"{path.name} has {bad:,} logits that are not finite numbers")
        table["logit"] = logits
    if table is None or problems:
        raise LaunchError(f"{path} cannot be used: {'; '.join(problems)}. Run the fold again.")
    return table.set_index("id")


def summarise(experiment: str, kernels: Sequence[Kernel], folder_of: Callable[[str], Path]) -> Summary:
    """Read and score what the fold kernels of an experiment left.

    Args:
        experiment: its name.
        kernels: of the whole plan.
        folder_of: the output folder of a kernel, by slug.
    """
    trained = [k for k in kernels if k.kind == "train" and k.experiments == (experiment,)]
    prepare = next(kernel for kernel in kernels if kernel.kind == "prepare")
    index = read_index(folder_of(prepare.slug) / TRAIN_INDEX)
    table, records = read_out_of_fold([folder_of(kernel.slug) for kernel in trained], index)
    slides = trained[0].configs[0].split == "slide"
    table["group"] = table["slide"] if slides else table["stain_group"]
    labels, scores, fold = (table[name].to_numpy() for name in ("label", "probability", "fold"))
    decisions: dict[str, Any] = {"f1_at_half": f1(labels, scores >= 0.5), "confusion_at_half": confusion(labels, scores >= 0.5)}
    at_thresholds: dict[int, tuple[float, float]] = {}
    if len(trained) > 1:  # a threshold is chosen on the other folds; of one fold alone there is none
        positive, thresholds = decide_out_of_fold(labels, scores, fold)
        decisions |= {"f1_at_thresholds": f1(labels, positive), "confusion_at_thresholds": confusion(labels, positive)}
        for kernel, threshold in zip(trained, thresholds, strict=True):
            inside = fold == kernel.fold
            at_thresholds[kernel.fold] = (threshold, f1(labels[inside], positive[inside]))
    rows = []
    for kernel, record in zip(trained, records, strict=True):
        inside = fold == kernel.fold
        threshold, reached = at_thresholds.get(kernel.fold, (float("nan"), float("nan")))
        rows.append(
            {
                "fold": kernel.fold,
                "tiles": int(inside.sum()),
                "auc": auc(labels[inside], scores[inside]),
                "f1_at_half": f1(labels[inside], scores[inside] >= 0.5),
                "threshold": threshold,
                "f1_at_threshold": reached,
                "seconds": float(record.seconds.get("total", 0.0)),
            }
        )
    groups = table["group"].to_numpy()
    return Summary(
        experiment=experiment,
        config=trained[0].configs[0],
        table=table,
        folds=pd.DataFrame(rows),
        pooled=auc(labels, scores),
        interval=group_interval(lambda rows: auc(labels[rows], scores[rows]), groups, seed=0),
        groups=len(np.unique(groups)),
        grouping="slides" if slides else "stain groups",
        calibration=_calibrate(labels, scores, fold),
        decisions=decisions,
    )


def _calibrate(labels: np.ndarray, scores: np.ndarray, fold: np.ndarray) -> Calibration | None:
    try:
        return calibrate_out_of_fold(labels, scores, fold)
    except CalibrationError:
        return None


@dataclass(frozen=True)
class Together:
    """The plain mean of several experiments, out of fold.

    Attributes:
        pooled: its AUC on the tiles that all of them predicted out of fold.
        interval: 95 %, resampling groups.
        tiles: how many they are.
        correlations: (E, E) of the experiments' probabilities (Spearman).
    """

    pooled: float
    interval: tuple[float, float]
    tiles: int
    correlations: pd.DataFrame


def summarise_together(summaries: Sequence[Summary]) -> Together:
    """Average experiments tile by tile, as the inference kernel does; each probability is out of its experiment's fold."""
    tables = [summary.table.set_index("id") for summary in summaries]
    common = tables[0].index
    for table in tables[1:]:
        common = common[common.isin(table.index)]
    each = pd.DataFrame({s.experiment: t.loc[common, "probability"] for s, t in zip(summaries, tables, strict=True)})
    labels, groups = tables[0].loc[common, "label"].to_numpy(), tables[0].loc[common, "group"].to_numpy()
    mean = each.mean(axis=1).to_numpy()
    return Together(
        pooled=auc(labels, mean),
        interval=group_interval(lambda rows: auc(labels[rows], mean[rows]), groups, seed=0),
        tiles=len(common),
        correlations=each.corr(method="spearman"),
    )


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
                "-" if np.isnan(row.f1_at_threshold) else f"{row.f1_at_threshold:.3f}",
                "-" if np.isnan(row.threshold) else f"{row.threshold:.3f}",
                f"{row.seconds:.1f}",
            )
        console.print(table)
        console.print("* the threshold with the best F1 on the other folds")
        low, high = summary.interval
        some = "" if len(summary.folds) == config.folds else f" of {len(summary.folds)} of {config.folds} folds"
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
                str(decisions[name]) for name in ("confusion_at_half", "confusion_at_thresholds") if name in decisions
            ),
            soft_wrap=True,
        )
        if config.weights == "pretrain":
            console.print("transductive: the encoder was pretrained on all of these tiles, without their labels", soft_wrap=True)
        if config.pseudo_labels:
            text = f"transductive: test tiles were learnt from, with labels given by {config.pseudo_labels}, fold by fold"
            console.print(text, soft_wrap=True)
        if summary.calibration is not None:
            console.print(_calibration_line(summary.calibration), soft_wrap=True)
    if len(summaries) > 1:
        together = summarise_together(summaries)
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
    console.print(f"submission: {submission} ({tiles:,} tiles, matches sample_submission.csv)", soft_wrap=True)
    console.print(f"total time: {seconds:.1f} s")


def _calibration_line(found: Calibration) -> str:
    slopes, intercepts = ([getattr(line, name) for line in found.lines] for name in ("slope", "intercept"))
    return (
        f"calibration: expected error {found.error[0]:.4f}, {found.error[1]:.4f} once each fold is mended by the others' line "
        f"(slopes {min(slopes):.3f} to {max(slopes):.3f}, intercepts {min(intercepts):+.3f} to {max(intercepts):+.3f}); "
        f"Brier {found.brier[0]:.4f} and {found.brier[1]:.4f}"
    )


def calibration_facts(found: Calibration | None) -> dict[str, Any] | None:
    """A calibration as plain values, for leaderboard.json."""
    if found is None:
        return None
    return {
        "expected_error": list(found.error),
        "brier": list(found.brier),
        "lines": [{"slope": line.slope, "intercept": line.intercept} for line in found.lines],
    }
