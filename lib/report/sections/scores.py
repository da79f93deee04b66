"""Sections about scores: results by fold, curves, decisions, calibration, grouped and stratified folds."""

from collections.abc import Callable, Mapping
from typing import Any

from lib.data.holdout import MLE_BENCH
from lib.evaluation.holdout_grade import caution_of
from lib.evaluation.metrics import MIN_GROUPS
from lib.evaluation.out_of_fold import Summary, describe_interval
from lib.report.conclusion import calibration_verdict
from lib.report.context import NO_FOLDS, ReportContext
from lib.report.formatting import ABSENT, count, decimals, file_name, interval, is_number, several
from lib.report.numbers import average_of_experiments, split_pairs, split_rows
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.score_figures import (
    decision_tables,
    draw_fold_scores,
    reliability_curves,
    roc_and_precision,
)

_STRATIFIED = (
    "The folds are stratified: tiles of one slide are in training and validation folds at the same time, so "
    "these scores are optimistic."
)


def _for_each_summary(
    context: ReportContext, make: Callable[[Summary, Mapping[str, Any]], list[Block]]
) -> list[Block]:
    """The blocks of every experiment that could be scored, from its summary and its numbers."""
    blocks: list[Block] = []
    for summary, heading in context.each_summary():
        blocks += heading
        if summary is not None:
            blocks += make(summary, context.numbers["experiments"][summary.experiment])
    return blocks


def _marked(summary: Summary) -> str:
    return summary.experiment + (" (transductive)" if summary.transductive else "")


def results(context: ReportContext) -> list[Block]:
    """A table of folds for each experiment, and one figure of all experiments."""
    blocks = [*context.unusable_outputs("train"), *_for_each_summary(context, _result)]
    if context.summaries:
        scores = ", ".join(
            f"{summary.experiment} {decimals(summary.pooled)}" for summary in context.summaries
        )
        tiles = ", ".join(sorted({count(len(summary.table)) for summary in context.summaries}))
        caption = (
            f"Out-of-fold AUC of each fold and of all folds pooled, n = {tiles} tiles. Lines are 95 % "
            "intervals, where the groups of the tiles are known."
        )
        figure = draw_fold_scores(context.summaries, average_of_experiments(context.summaries))
        alt = f"AUC with intervals by fold. Pooled out-of-fold AUC: {scores}."
        blocks.append(Picture("results.png", figure, alt, caption))
    for name, reason in context.failed.items():
        if name not in context.inputs.folds:
            blocks.append(Note(f"{name}: {reason}."))
    return blocks or [Note(NO_FOLDS)]


def _result(summary: Summary, numbers: Mapping[str, Any]) -> list[Block]:
    rows = [
        [
            str(row.fold),
            count(row.tiles),
            count(row.positives),
            decimals(row.auc),
            interval(row.low, row.high),
            decimals(row.f1_at_half),
            decimals(row.threshold),
            decimals(row.f1_at_threshold),
        ]
        for row in summary.folds.itertuples()
    ]
    rows.append(
        [
            "all",
            count(numbers["tiles"]),
            count(numbers["positives"]),
            decimals(summary.pooled),
            interval(*summary.interval),
            decimals(summary.decisions["f1_at_half"]),
            ABSENT,
            decimals(summary.decisions.get("f1_at_thresholds")),
        ]
    )
    head = ("fold", "tiles", "tumour", "AUC", "95 % interval", "F1 at 0.5", "threshold", "F1 at threshold")
    config = summary.config
    part = "" if summary.is_whole else f", {len(summary.folds)} of {config.num_folds} folds"
    caption = (
        f"{summary.experiment}: {config.fold_split} folds{part}, seed {config.seed}. Each threshold has the "
        "highest F1 on the other folds"
    )
    return [Table(caption, head, rows), *_result_notes(summary)]


def _result_notes(summary: Summary) -> list[Block]:
    config = summary.config
    blocks: list[Block] = []
    if config.fold_split == "stratified":
        blocks.append(Note(_STRATIFIED))
    if summary.transductive:
        blocks.append(Note(f"Transductive: {summary.transductive}."))
    if not summary.is_whole:
        missing = config.num_folds - len(summary.folds)
        blocks.append(
            Note(
                f"{several(missing, 'fold')} of {config.num_folds} {'is' if missing == 1 else 'are'} "
                "missing: pooled scores use the folds in the table."
            )
        )
    undefined = [str(row.fold) for row in summary.folds.itertuples() if not is_number(row.auc)]
    if undefined:
        blocks.append(Note(f"Fold {', '.join(undefined)} has no AUC: all its labels are the same."))
    if is_number(summary.interval[0]):
        groups = f"{count(summary.groups)} {summary.grouping}"
        blocks.append(
            Text(
                f"Intervals resample {groups}; those of a fold resample the groups of that fold. "
                f"A fold with fewer than {MIN_GROUPS} groups has no interval."
            )
        )
    elif summary.groups:
        ends = describe_interval(summary.interval, groups=summary.groups, grouping=summary.grouping)
        blocks.append(Note(f"There is {ends}."))
    else:
        blocks.append(Note("There are no intervals: the groups of the tiles are in the output of prepare."))
    return blocks


def curves(context: ReportContext) -> list[Block]:
    """ROC and precision-recall curves of each experiment."""
    return _for_each_summary(context, _curves_of) or [Note(NO_FOLDS)]


def _curves_of(summary: Summary, numbers: Mapping[str, Any]) -> list[Block]:
    auc, precision = decimals(summary.pooled), decimals(numbers["average_precision"])
    caption = (
        f"{_marked(summary)}: ROC curve (left) and precision-recall curve (right), out-of-fold, n = "
        f"{count(numbers['tiles'])} tiles, {count(numbers['positives'])} of them tumour. AUC {auc}, average "
        f"precision {precision}."
    )
    alt = f"ROC curve with AUC {auc} and precision-recall curve with average precision {precision}."
    return [Picture(file_name("curves", summary.experiment), roc_and_precision(summary), alt, caption)]


def decisions(context: ReportContext) -> list[Block]:
    """Confusion matrices at threshold 0.5 and at the thresholds of the other folds."""
    return _for_each_summary(context, _decisions_of) or [Note(NO_FOLDS)]


def _decisions_of(summary: Summary, numbers: Mapping[str, Any]) -> list[Block]:
    matrices = {"threshold 0.5": numbers["confusion_at_half"]}
    f1_scores = {"threshold 0.5": numbers["f1_at_half"]}
    tuned = "threshold of the other folds"
    if "confusion_at_thresholds" in numbers:
        matrices[tuned], f1_scores[tuned] = numbers["confusion_at_thresholds"], numbers["f1_at_thresholds"]
    rows, counts = [], []
    for name, ((tn, fp), (fn, tp)) in matrices.items():
        counts.append(f"{name}: TN {tn:,}, FP {fp:,}, FN {fn:,}, TP {tp:,}")
        rows.append(
            [
                name,
                _ratio(tp, tp + fn),
                _ratio(tn, tn + fp),
                _ratio(tp, tp + fp),
                decimals(f1_scores[name]),
                _ratio(tp + tn, tp + tn + fp + fn),
            ]
        )
    tiles = count(len(summary.table))
    caption = (
        f"{_marked(summary)}: confusion matrices, out-of-fold, n = {tiles} tiles. Percentages are of the row."
    )
    head = ("decision", "sensitivity", "specificity", "precision", "F1", "accuracy")
    blocks: list[Block] = [
        Picture(
            file_name("decisions", summary.experiment),
            decision_tables(matrices),
            f"Confusion matrices. {'; '.join(counts)}.",
            caption,
        ),
        Table(f"{summary.experiment}: decisions on n = {tiles} tiles, out-of-fold", head, rows),
    ]
    if tuned in matrices:
        shown = ", ".join(f"fold {row.fold} {decimals(row.threshold)}" for row in summary.folds.itertuples())
        blocks.append(Text(f"The threshold of a fold has the highest F1 on all other folds: {shown}."))
    else:
        blocks.append(Note("There is no tuned threshold: it needs other folds with both classes."))
    return blocks


def _ratio(part: int, whole: int) -> str:
    return decimals(part / whole) if whole else ABSENT


def calibration(context: ReportContext) -> list[Block]:
    """Reliability of each experiment, before and after Platt scaling fitted on the other folds."""
    return _for_each_summary(context, _calibration_of) or [Note(NO_FOLDS)]


def _calibration_of(summary: Summary, numbers: Mapping[str, Any]) -> list[Block]:
    fitted = summary.calibration
    if fitted is None:
        return [
            Note(
                "There is no calibration: Platt scaling needs other folds with both classes, and scores "
                "that do not separate the classes perfectly."
            )
        ]
    verdict = calibration_verdict(numbers["calibration"])
    caption = (
        f"{_marked(summary)}: reliability curve (predicted probability against observed share of tumour), "
        f"out-of-fold, n = {count(len(summary.table))} tiles. Below: the distribution of the probabilities."
    )
    scalings = [
        [str(row.fold), decimals(scaling.slope, 3), decimals(scaling.intercept, 3)]
        for row, scaling in zip(summary.folds.itertuples(), fitted.scalings, strict=True)
    ]
    scores = [
        ["expected calibration error", *map(decimals, fitted.error)],
        ["Brier score", *map(decimals, fitted.brier)],
    ]
    head = ("score", "as predicted", "after Platt scaling")
    return [
        Text(
            f"{verdict} The expected calibration error is the mean distance of the curve from the diagonal. "
            "Platt scaling changes each logit to slope * logit + intercept."
        ),
        Picture(
            file_name("calibration", summary.experiment),
            reliability_curves(summary, fitted),
            f"Reliability curves of {summary.experiment}. {verdict}",
            caption,
        ),
        Table(f"{summary.experiment}: calibration scores, lower is better", head, scores),
        Table(
            "Platt scaling of each fold, fitted on the other folds", ("fold", "slope", "intercept"), scalings
        ),
    ]


def splits(context: ReportContext) -> list[Block]:
    """Results on stratified and on grouped folds, where both exist."""
    rows = split_rows(context.numbers)
    if not rows:
        return [Note(NO_FOLDS)]
    table = Table(
        "All results with their kind of split",
        ("campaign", "experiment", "split", "folds", "tiles", "AUC", "95 % interval"),
        [
            [
                row["campaign"],
                row["experiment"] + (" (transductive)" if row["transductive"] else ""),
                row["split"] + (" (optimistic)" if row["split"] == "stratified" else ""),
                count(row["folds"]),
                count(row["tiles"]),
                decimals(row["auc"]),
                interval(*row["interval_95"]),
            ]
            for row in rows
        ]
        + _holdout_rows(context.numbers),
    )
    blocks: list[Block] = [table]
    if context.numbers["holdout"] is not None:
        blocks.append(Note(caution_of(context.numbers["holdout"]["name"])))
    pairs = split_pairs(context.numbers)
    if not pairs:
        return [*blocks, Note(_no_pair({row["split"] for row in rows}))]
    differences = [
        Text(
            f"{pair['stratified']['experiment']} on stratified folds has AUC "
            f"{decimals(pair['stratified']['auc'])}, {pair['grouped']['experiment']} on "
            f"{pair['grouped']['split']} folds {decimals(pair['grouped']['auc'])}: a difference of "
            f"{pair['difference']:+.4f}."
        )
        for pair in pairs
    ]
    caution = Note(
        "The two are trained on the same share of the tiles only if they have the same number of folds. "
        "Other options may differ too."
    )
    return [*blocks, *differences, caution]


def _holdout_rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The ensemble on the hold-out, as a row of the table of all results."""
    holdout = numbers["holdout"]
    if holdout is None:
        return []
    split = f"hold-out {holdout['name']}" + (" (random)" if holdout["name"] == MLE_BENCH else "")
    row = [numbers["campaign"] or "this campaign", "all, averaged", split]
    return [
        [
            *row,
            ABSENT,
            count(holdout["tiles"]),
            decimals(holdout["auc"]),
            interval(*holdout["interval_95"]),
        ]
    ]


def _no_pair(kinds: set[str]) -> str:
    """Why the two kinds of folds are not compared, and how to get the comparison."""
    reason = f"There are results on {' and '.join(sorted(kinds))} folds only"
    if "stratified" in kinds and len(kinds) > 1:
        reason = "No experiment was run on both kinds of folds"
    other = "stain" if "stratified" in kinds else "stratified"
    return (
        f"{reason}, so it is not known how optimistic stratified folds are. Run the same experiment with "
        f"--set fold_split={other} as well."
    )
