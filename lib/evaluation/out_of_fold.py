"""Out-of-fold result of an experiment: one table of the probabilities of all folds, and its scores.

It needs no torch, because the launcher and the report import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config, ConfigError, config_from_record
from lib.data.competition import read_table
from lib.errors import KernelError, listed
from lib.evaluation.calibration import Calibration, CalibrationError, calibrate_out_of_fold
from lib.evaluation.metrics import (
    MIN_GROUPS,
    MetricError,
    auc,
    auc_gain_interval,
    auc_interval,
    confusion,
    decide_out_of_fold,
    f1,
    has_enough_groups,
    probability,
)
from lib.runtime.run_record import RunRecord, read_run_record

_INTERVAL_SEED = 0
# Of an AUC that is computed again: one pair of tiles in another order changes it by 2e-9 on the full data.
_AUC_TOLERANCE = 1e-6


class ResultError(KernelError):
    """Out-of-fold predictions cannot be scored; the message names what is missing or contradictory."""


@dataclass(frozen=True)
class Summary:
    """The scores of an experiment.

    Attributes:
        experiment: its name.
        config: its options.
        table: id, label, fold, group, probability of every tile predicted out of fold.
        folds: one row a fold: fold, tiles, positives, auc, low, high (ends of its 95 % interval), f1_at_half,
            threshold, f1_at_threshold, seconds; NaN where a value is undefined.
        pooled: AUC of all out-of-fold probabilities together.
        interval: its 95 % bootstrap interval over groups; NaN where fewer than 10 groups are known.
        groups: number of groups that were resampled; 0 where none are known.
        grouping: kind of the groups: stain groups or slides.
        calibration: of all out-of-fold probabilities; None where it is undefined.
        decisions: F1 and confusion matrix of all tiles, at 0.5 and at thresholds chosen on the other folds.
        records: run.json of each fold, in the order of `folds`.
        positive: (N,) the decision on each tile by the threshold of the other folds; None without such a
            threshold.
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
    records: list[RunRecord]
    positive: np.ndarray | None

    @property
    def transductive(self) -> str:
        """The reason why its scores are transductive (training used unlabelled or test tiles); else empty."""
        reasons = []
        if self.config.weights == "pretrain":
            reasons.append("the encoder was pretrained on all of these tiles without their labels")
        if self.config.pseudo_labels:
            teacher = self.config.pseudo_labels
            reasons.append(f"it was trained on test tiles with pseudo-labels by {teacher}, fold by fold")
        return "; ".join(reasons)

    @property
    def ends(self) -> list[float | None]:
        """The ends of its interval for JSON, None where they are undefined."""
        return [end if np.isfinite(end) else None for end in self.interval]

    @property
    def is_whole(self) -> bool:
        """Whether every fold of the experiment is present."""
        return len(self.folds) == self.config.num_folds


def describe_interval(ends: Sequence[float | None], *, groups: int, grouping: str) -> str:
    """An interval in words, with what was resampled; or why there is none.

    Args:
        ends: low and high; None or NaN where undefined.
        groups: number of groups; 0 where none are known.
        grouping: stain groups or slides.
    """
    low, high = ends
    if low is not None and high is not None and np.isfinite(low):
        return f"95 % interval {low:.4f} to {high:.4f}, resampling {groups:,} {grouping}"
    if not groups:
        return "no interval: the groups of the tiles are not known"
    return f"no interval: {groups:,} {grouping}, and {MIN_GROUPS} are needed"


def recorded_config(record: RunRecord) -> Config:
    """The config of a run.

    Raises:
        ResultError: it holds an option that this code does not know, or lacks one.
    """
    try:
        return config_from_record(record.config)
    except ConfigError as error:
        raise ResultError(
            f"the config of {record.experiment} was written by another version of this code: {error}"
        ) from error


def read_out_of_fold(
    folders: Sequence[Path], index: pd.DataFrame | None
) -> tuple[pd.DataFrame, list[RunRecord]]:
    """The out-of-fold probability of every tile, the mean over members; and the records of the folds.

    Args:
        folders: of the folds, in any order.
        index: of the labelled tiles, written by prepare; without it the labels are those in the folds' files,
            and there are no groups.

    Returns:
        id, label, fold, probability and the columns of the index; and the records in the order of the folds.

    Raises:
        ResultError: a tile has no prediction or two, or another label than in the index.
        RunRecordError: an output does not match its run.json.
    """
    outputs = [(read_run_record(folder, kind="train", fetched_only=True), folder) for folder in folders]
    outputs.sort(key=lambda output: output[0].fold)
    predicted = pd.concat([_read_fold(record, folder) for record, folder in outputs])
    records = [record for record, _ in outputs]
    if twice := int(predicted["id"].duplicated().sum()):
        raise ResultError(f"{twice:,} tiles are predicted out of fold more than once: run the folds again")
    if index is None:
        return predicted.sort_values("id", ignore_index=True), records
    whole = len(folders) == records[0].config["num_folds"]
    predicted = predicted.rename(columns={"label": "fold_label"})
    table = index.merge(predicted, on="id", how="outer" if whole else "right", validate="one_to_one")
    if table[["label", "probability"]].isna().any().any() or (whole and len(table) != len(index)):
        missing = int(table["probability"].isna().sum())
        raise ResultError(
            f"{missing:,} tiles have no out-of-fold prediction, or are not in the index: run the folds again"
        )
    if wrong := int((table["label"] != table["fold_label"]).sum()):
        raise ResultError(
            f"{wrong:,} tiles have another label out of fold than in the index: run the folds again"
        )
    return table.drop(columns="fold_label").astype({"label": np.int64, "fold": np.int64}), records


def _read_fold(record: RunRecord, folder: Path) -> pd.DataFrame:
    members = []
    for member in record.members:
        members.append(_read_member(folder / f"oof-{record.fold}-member-{member}.csv"))
    if not members:
        raise ResultError(f"{folder.name}: run.json names no member of fold {record.fold}")
    first = members[0]
    mean = sum(probability(member["logit"].reindex(first.index).to_numpy()) for member in members) / len(
        members
    )
    return pd.DataFrame(
        {"id": first.index, "label": first["label"].to_numpy(), "fold": record.fold, "probability": mean}
    )


def _read_member(path: Path) -> pd.DataFrame:
    """The out-of-fold predictions of a member, indexed by id, with float64 logits.

    Raises:
        ResultError: the file is not such a table.
    """
    problems: list[str] = []
    table = read_table(path, ["id", "label", "logit"], problems)
    if table is not None:
        logits = pd.to_numeric(table["logit"], errors="coerce").astype(np.float64)
        if bad := int((~np.isfinite(logits)).sum()):
            problems.append(f"{path.name} has {bad:,} logits that are not finite numbers")
        if odd := int((~table["label"].isin(["0", "1"])).sum()):
            problems.append(f"{path.name} has {odd:,} labels that are neither 0 nor 1")
        else:
            table["label"] = table["label"].astype(np.int64)
        table["logit"] = logits
    if table is None or problems:
        raise ResultError(f"{path} cannot be used: {'; '.join(problems)}. Run the fold again.")
    return table.set_index("id")


def check_fold_scores(record: RunRecord, folder: Path) -> None:
    """Check the AUC of a fold and of its members in run.json against its own out-of-fold predictions.

    Args:
        record: run.json of the fold.
        folder: with its out-of-fold predictions.

    Raises:
        ResultError: predictions cannot be read, or the recorded scores are not theirs; every difference is
            listed.
    """
    again = f"Run fold {record.fold} of {record.experiment} again (build_kernel.py push fold-{record.fold})."
    members = [_read_member(folder / f"oof-{record.fold}-member-{number}.csv") for number in record.members]
    table = _read_fold(record, folder)
    labels = table["label"].to_numpy()
    recorded = record.scores.get("members", [])
    subjects = [("the fold", record.scores.get("fold"), table["probability"].to_numpy())]
    if recorded:
        known = (
            recorded
            if isinstance(recorded, list) and len(recorded) == len(members)
            else [None] * len(members)
        )
        subjects += [
            (f"member {number}", entry, probability(member["logit"].to_numpy()))
            for number, entry, member in zip(record.members, known, members, strict=True)
        ]
    problems = []
    for name, entry, scores in subjects:
        value = entry.get("auc") if isinstance(entry, dict) else None
        try:
            computed = auc(labels, scores)
        except MetricError as error:
            problems.append(f"{name}: {error}")
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(f"{name}: run.json holds no AUC, its predictions give {computed:.6f}")
        elif not abs(value - computed) <= _AUC_TOLERANCE:  # NaN, too
            problems.append(f"{name}: run.json says AUC {value:.6f}, its predictions give {computed:.6f}")
    if problems:
        lead = f"the scores of fold {record.fold} of {record.experiment} are not those of its predictions:"
        raise ResultError(listed(lead, problems, remedy=again))


def score_experiment(experiment: str, folders: Sequence[Path], index: pd.DataFrame | None) -> Summary:
    """Read and score the outputs of an experiment's fold kernels.

    Args:
        experiment: its name.
        folders: outputs of its folds, all of them or some.
        index: of the labelled tiles; see `read_out_of_fold`.

    Raises:
        ResultError: predictions are missing or contradictory, or the folds do not belong together.
        MetricError: there is one class only.
        RunRecordError: an output does not match its run.json.
    """
    table, records = read_out_of_fold(folders, index)
    _belong_together(experiment, records)
    config = recorded_config(records[0])
    slides = config.fold_split == "slide"
    if index is not None:
        table["group"] = table["slide"] if slides else table["stain_group"]
    labels, scores, fold = (table[name].to_numpy() for name in ("label", "probability", "fold"))
    decisions: dict[str, Any] = {
        "f1_at_half": f1(labels, scores >= 0.5),
        "confusion_at_half": confusion(labels, scores >= 0.5),
    }
    at_thresholds: dict[int, tuple[float, float]] = {}
    positive = None
    if _has_thresholds(labels, fold):
        positive, thresholds = decide_out_of_fold(labels, scores, fold)
        decisions |= {
            "f1_at_thresholds": f1(labels, positive),
            "confusion_at_thresholds": confusion(labels, positive),
        }
        for number, threshold in zip(np.unique(fold), thresholds, strict=True):
            inside = fold == number
            at_thresholds[int(number)] = (threshold, f1(labels[inside], positive[inside]))
    groups = table["group"].to_numpy() if "group" in table else None
    rows = []
    for record in records:
        inside = fold == record.fold
        threshold, f1_reached = at_thresholds.get(record.fold, (float("nan"), float("nan")))
        score, (low, high) = _auc_with_interval(
            labels[inside], scores[inside], None if groups is None else groups[inside]
        )
        rows.append(
            {
                "fold": record.fold,
                "tiles": int(inside.sum()),
                "positives": int(labels[inside].sum()),
                "auc": score,
                "low": low,
                "high": high,
                "f1_at_half": f1(labels[inside], scores[inside] >= 0.5),
                "threshold": threshold,
                "f1_at_threshold": f1_reached,
                "seconds": float(record.seconds.get("total", 0.0)),
            }
        )
    return Summary(
        experiment=experiment,
        config=config,
        table=table,
        folds=pd.DataFrame(rows),
        pooled=auc(labels, scores),
        interval=_interval(labels, scores, groups),
        groups=0 if groups is None else len(np.unique(groups)),
        grouping="slides" if slides else "stain groups",
        calibration=_calibrate(labels, scores, fold),
        decisions=decisions,
        records=records,
        positive=positive,
    )


def _belong_together(experiment: str, records: Sequence[RunRecord]) -> None:
    problems = []
    if len({record.fold for record in records}) < len(records):
        folds = ", ".join(str(record.fold) for record in records)
        problems.append(f"a fold is present more than once: {folds}")
    for name, text in (("data_id", "on different data"), ("fold_table_id", "with different fold tables")):
        if len(ids := {getattr(record, name) for record in records}) > 1:
            problems.append(f"they were trained {text}: {', '.join(sorted(value[:8] for value in ids))}")
    if problems:
        raise ResultError(
            listed(f"the folds of {experiment} do not belong together:", problems, remedy="Run them again.")
        )


def _has_thresholds(labels: np.ndarray, fold: np.ndarray) -> bool:
    """Whether a threshold can be chosen for every fold: its other folds must have both classes."""
    numbers = np.unique(fold)
    return len(numbers) > 1 and all(len(np.unique(labels[fold != number])) == 2 for number in numbers)


def _auc_with_interval(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None
) -> tuple[float, tuple[float, float]]:
    """AUC and interval; NaN where they are undefined, because a fold may have one class or one group only."""
    try:
        return auc(labels, scores), _interval(labels, scores, groups)
    except MetricError:
        return float("nan"), (float("nan"), float("nan"))


def _interval(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """The 95 % interval; NaN without groups, or with too few of them."""
    if groups is None or not has_enough_groups(groups):
        return float("nan"), float("nan")
    return auc_interval(labels, scores, groups, seed=_INTERVAL_SEED)


def _calibrate(labels: np.ndarray, scores: np.ndarray, fold: np.ndarray) -> Calibration | None:
    try:
        return calibrate_out_of_fold(labels, scores, fold)
    except CalibrationError:
        return None


@dataclass(frozen=True)
class ExperimentAverage:
    """The mean of several experiments, out of fold.

    Attributes:
        pooled: its AUC on the tiles that all of them predicted out of fold.
        interval: its 95 % bootstrap interval over groups; NaN where fewer than 10 groups are known.
        tiles: number of these tiles.
        correlations: (E, E) Spearman correlations of the experiments' probabilities.
    """

    pooled: float
    interval: tuple[float, float]
    tiles: int
    correlations: pd.DataFrame


def average_experiments(
    summaries: Sequence[Summary], *, weights: Mapping[str, int] | None = None
) -> ExperimentAverage:
    """Average the out-of-fold probabilities of experiments tile by tile, as the inference kernel averages.

    Args:
        summaries: of the experiments.
        weights: of every experiment, by name; equal weights by default.

    Raises:
        MetricError: the tiles that all of them predicted have one class only, or there are none.
    """
    probabilities, labels, groups = _common_tiles(summaries)
    mean = np.average(probabilities.to_numpy(), axis=1, weights=_shares(summaries, weights))
    return ExperimentAverage(
        pooled=auc(labels, mean),
        interval=_interval(labels, mean, groups),
        tiles=len(labels),
        correlations=probabilities.corr(method="spearman"),
    )


def gain_of_averages(
    summaries: Sequence[Summary],
    others: Sequence[Summary],
    *,
    weights: Mapping[str, int] | None = None,
    other_weights: Mapping[str, int] | None = None,
) -> tuple[float, tuple[float, float], int]:
    """The AUC of the mean of experiments minus that of the mean of others, on the tiles that all predicted.

    Args:
        summaries: of the experiments.
        others: of the others.
        weights: as in `average_experiments`, of the experiments.
        other_weights: of the others.

    Returns:
        The gain; its paired 95 % interval over groups, NaN where none are known; and the number of tiles.

    Raises:
        MetricError: these tiles have one class only, or there are none.
        ResultError: a tile has two labels.
    """
    probabilities, labels, groups = _common_tiles([*summaries, *others])
    for summary in others:
        if (summary.table.set_index("id").loc[probabilities.index, "label"].to_numpy() != labels).any():
            raise ResultError(f"{summary.experiment} has other labels for the same tiles")
    columns = probabilities.to_numpy()
    ours = np.average(columns[:, : len(summaries)], axis=1, weights=_shares(summaries, weights))
    theirs = np.average(columns[:, len(summaries) :], axis=1, weights=_shares(others, other_weights))
    interval = (float("nan"), float("nan"))
    if groups is not None and has_enough_groups(groups):
        interval = auc_gain_interval(labels, ours, theirs, groups, seed=_INTERVAL_SEED)
    return auc(labels, ours) - auc(labels, theirs), interval, len(labels)


def _shares(summaries: Sequence[Summary], weights: Mapping[str, int] | None) -> list[int]:
    return [(weights or {}).get(summary.experiment, 1) for summary in summaries]


def _common_tiles(summaries: Sequence[Summary]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
    """Probabilities (N, E) of the tiles that all experiments predicted, indexed by id; labels and groups."""
    tables = [summary.table.set_index("id") for summary in summaries]
    common = tables[0].index
    for table in tables[1:]:
        common = common[common.isin(table.index)]
    probabilities = pd.concat([table.loc[common, "probability"] for table in tables], axis=1)
    probabilities.columns = pd.Index([summary.experiment for summary in summaries])
    labels = tables[0].loc[common, "label"].to_numpy()
    return probabilities, labels, tables[0].loc[common, "group"].to_numpy() if "group" in tables[0] else None
