"""Ensemble: validate the members of the folds and average them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import KernelError, listed
from lib.evaluation.metrics import probability
from lib.evaluation.out_of_fold import ResultError, check_fold_scores
from lib.model.checkpoint import CHECKPOINT_FORMAT, LABEL_SET
from lib.runtime.run_record import RunRecord, RunRecordError, read_run_record


class EnsembleError(KernelError):
    """The members cannot be averaged; the message lists every reason and what to run again."""


@dataclass(frozen=True)
class FoldOutput:
    """The output of one fold's kernel, verified."""

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """The name of the fold in messages."""
        return f"fold {self.record.fold} of {self.record.experiment}"


def read_fold_outputs(folders: Sequence[Path]) -> tuple[list[FoldOutput], list[str]]:
    """Read and verify the outputs of folds: their files, and their scores against their own predictions.

    Returns:
        The outputs whose files match their run.json, and the problems of all, which `validate_members`
        reports.
    """
    outputs, problems = [], []
    for folder in folders:
        try:
            output = FoldOutput(folder, read_run_record(folder, kind="train"))
            outputs.append(output)
            check_fold_scores(output.record, folder)
        except (RunRecordError, ResultError) as error:
            problems.append(str(error).replace("\n", "\n    "))
    return outputs, problems


def validate_members(
    outputs: Sequence[FoldOutput],
    *,
    wanted: Mapping[str, tuple[Sequence[int], int]],
    data_id: str,
    strict_bundle: bool,
    damaged: Sequence[str] = (),
) -> tuple[list[FoldOutput], list[str]]:
    """Check that the members agree with each other, with the experiment and with the prepared data.

    Args:
        outputs: verified outputs of folds, in any order.
        wanted: experiment name to (numbers of the folds, members per fold).
        data_id: of the prepared data that will be predicted.
        strict_bundle: make differing code among the folds an error.
        damaged: the problems of outputs that could not be read.

    Returns:
        The outputs in the order of experiment and fold, and warnings.

    Raises:
        EnsembleError: folds are missing, duplicate or of other experiments; data, fold tables, labels or
            formats differ.
    """
    problems = list(damaged)
    chosen: list[FoldOutput] = []
    for experiment, (folds, members) in wanted.items():
        of_experiment = [output for output in outputs if output.record.experiment == experiment]
        for fold in folds:
            candidates = [output for output in of_experiment if output.record.fold == fold]
            again = f"push it again (build_kernel.py push fold-{fold})"
            if not candidates:
                problems.append(
                    f"fold {fold} of {experiment} is missing: run it to its end and attach its output"
                )
            elif len(candidates) > 1:
                places = " and ".join(str(output.folder) for output in candidates)
                problems.append(
                    f"fold {fold} of {experiment} is mounted more than once, at {places}: detach all but one"
                )
            for output in candidates[:1]:
                record = output.record
                chosen.append(output)
                if record.members != list(range(members)):
                    problems.append(
                        f"{output.name} has members {record.members}, {members} expected: {again}"
                    )
                if record.data_id != data_id:
                    problems.append(
                        f"{output.name} was trained on data {record.data_id[:8]}..., the prepared data are "
                        f"{data_id[:8]}...: {again}"
                    )
                if record.checkpoint_format != CHECKPOINT_FORMAT:
                    problems.append(
                        f"{output.name} has checkpoint format {record.checkpoint_format}, "
                        f"this code reads {CHECKPOINT_FORMAT}: {again}"
                    )
                if record.label_set != LABEL_SET:
                    problems.append(
                        f"{output.name} has the labels {record.label_set}, not {LABEL_SET}: {again}"
                    )
        if surplus := sorted({output.record.fold for output in of_experiment} - set(folds)):
            shown = ", ".join(map(str, surplus))
            problems.append(
                f"fold {shown} of {experiment} is mounted, but is not one of the folds to average: detach it"
            )
        tables = {output.record.fold_table_id for output in of_experiment}
        if len(tables) > 1:
            shown = ", ".join(f"fold {o.record.fold} {o.record.fold_table_id[:8]}..." for o in of_experiment)
            problems.append(
                f"the folds of {experiment} come from different fold tables ({shown}): "
                "push them again with one config"
            )
    others = sorted({output.record.experiment for output in outputs} - set(wanted))
    if others:
        problems.append(
            f"outputs of other experiments are mounted: {', '.join(others)}: detach them, or build with them"
        )
    warnings: list[str] = []
    bundles = {output.record.bundle_id for output in chosen}
    if len(bundles) > 1:
        shown = ", ".join(f"{o.name} {o.record.bundle_id[:8]}..." for o in chosen)
        text = f"the folds were trained by different code ({shown})"
        (problems if strict_bundle else warnings).append(text)
    if problems:
        raise EnsembleError(listed("the members cannot be averaged:", problems))
    return chosen, warnings


def average_members(logits: pd.DataFrame, ids: Sequence[str], *, how: str = "mean") -> np.ndarray:
    """Average the members, aligned by id.

    Args:
        logits: an `id` column and one column of logits per member; rows and columns in any order.
        ids: the order of the result.
        how: mean, the mean of probabilities; logit, the logistic of the mean logit; or rank, the mean rank of
            a tile (ties share their rank) divided by the number of tiles, which is no probability.

    Returns:
        (N,) float64 in [0, 1]. It does not depend on the order of members: values are sorted before they are
        added.

    Raises:
        EnsembleError: ids are missing, unknown or duplicate, there is no member, or logits are not finite.
    """
    members = [column for column in logits.columns if column != "id"]
    problems = []
    if not members:
        problems.append("there is no member")
    if twice := int(logits["id"].duplicated().sum()):
        problems.append(f"{twice:,} ids occur more than once")
    missing, extra = set(ids) - set(logits["id"]), set(logits["id"]) - set(ids)
    if missing:
        problems.append(f"{len(missing):,} ids have no logits, such as {min(missing)}")
    if extra:
        problems.append(f"{len(extra):,} ids are unknown, such as {min(extra)}")
    values = logits.set_index("id")[members].to_numpy(dtype=np.float64)  # (N, M)
    if bad := int((~np.isfinite(values)).sum()):
        problems.append(f"{bad:,} logits are not finite")
    if problems:
        raise EnsembleError(listed("the members cannot be averaged:", problems))
    aligned = logits.set_index("id")[members].loc[list(ids)].to_numpy(dtype=np.float64)
    return _AVERAGES[how](aligned)


def average_weighted(
    logits: pd.DataFrame,
    ids: Sequence[str],
    *,
    columns: Mapping[str, Sequence[str]],
    weights: Mapping[str, int],
) -> np.ndarray:
    """The weighted mean of experiments, each the mean probability of its members.

    Args:
        logits: as in `average_members`.
        ids: the order of the result.
        columns: the members of each experiment.
        weights: of the same experiments.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        EnsembleError: as `average_members`.
    """
    means = [average_members(logits[["id", *columns[name]]], ids) for name in weights]
    mean: np.ndarray = np.average(means, axis=0, weights=list(weights.values()))
    return mean


def _mean_of(values: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.sort(values, axis=1).mean(axis=1)
    return mean


def _ranks(logits: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(logits, axis=0) / len(logits)
    return ranks


_AVERAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda logits: _mean_of(probability(logits)),
    "logit": lambda logits: probability(_mean_of(logits)),
    "rank": lambda logits: _mean_of(_ranks(logits)),
}


def member_table(logits: pd.DataFrame, about: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the members: out-of-fold scores and correlations of their predictions.

    Args:
        logits: an `id` column and one column of logits per member.
        about: indexed by the members' names, any columns (experiment, fold, out-of-fold AUC and so on).

    Returns:
        `about` with mean_probability and the correlations (Pearson's and Spearman's) of the test
        probabilities with the mean of the other members, which are NaN for a single member; and Spearman's
        correlations of all pairs.
    """
    values = logits.drop(columns="id").apply(probability)
    table = about.loc[values.columns].copy()
    table["mean_probability"] = values.mean()
    others = (
        {name: values.drop(columns=name).mean(axis=1) for name in values.columns}
        if values.shape[1] > 1
        else {}
    )
    for method in ("pearson", "spearman"):
        table[f"{method}_with_others"] = [
            values[name].corr(others[name], method=method) if others else float("nan")
            for name in values.columns
        ]
    return table.rename_axis("name").reset_index(), values.corr(method="spearman")
