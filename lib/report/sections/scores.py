"""Sections about scores: folds, curves, decisions, calibration, grouped against stratified folds."""

from collections.abc import Mapping
from typing import Any

from lib.evaluation.out_of_fold import Summary
from lib.report.conclusion import calibration_verdict
from lib.report.context import NO_FOLDS, ReportContext
from lib.report.formatting import ABSENT, count, decimals, file_name, interval, is_number, several
from lib.report.numbers import average_of_experiments, split_pairs, split_rows
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.score_figures import decision_tables, draw_fold_scores, reliability_curves, roc_and_precision

_STRATIFIED = "The folds are stratified: neighbours of a tile stand on both sides of the split, so these scores are optimistic."


def results(context: ReportContext) -> list[Block]:
    """A table of folds for each experiment, and one figure of them all."""
    blocks: list[Block] = context.problems("train")
    for summary, heading in context.each_summary():
        blocks += heading
        if summary is not None:
            blocks += _result(summary, context.numbers["experiments"][summary.experiment])
    if context.summaries:
        names = ", ".join(f"{summary.experiment} {decimals(summary.pooled)}" for summary in context.summaries)
        tiles = ", ".join(sorted({count(len(summary.table)) for summary in context.summaries}))
        caption = (
            f"AUC of each fold and pooled, with 95 % intervals where groups are known; n = {tiles} tiles."
        )
        alt = f"Dots with intervals: pooled out-of-fold AUC {names}."
        blocks.append(
            Picture(
                "results.png",
                draw_fold_scores(context.summaries, average_of_experiments(context.summaries)),
                alt,
                caption,
            )
        )
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
    tuned = decimals(summary.decisions.get("f1_at_thresholds"))
    pooled = [
        count(numbers["tiles"]),
        count(numbers["positives"]),
        decimals(summary.pooled),
        interval(*summary.interval),
    ]
    rows.append(["all", *pooled, decimals(summary.decisions["f1_at_half"]), ABSENT, tuned])
    head = ("fold", "tiles", "of tumour", "AUC", "95 % interval", "F1 at 0.5", "threshold", "F1 at threshold")
    config = summary.config
    part = "" if summary.is_whole else f", {len(summary.folds)} of {config.num_folds} folds"
    caption = f"{summary.experiment}: {config.fold_split} folds{part}, seed {config.seed}; each threshold is the best of the other folds"
    blocks: list[Block] = [Table(caption, head, rows)]
    if config.fold_split == "stratified":
        blocks.append(Note(_STRATIFIED))
    if summary.transductive:
        blocks.append(Note(f"Transductive: {summary.transductive}."))
    if not summary.is_whole:
        blocks.append(
            Note(
                f"{several(config.num_folds - len(summary.folds), 'fold')} of {config.num_folds} missing: pooled means those here."
            )
        )
    undefined = [str(row.fold) for row in summary.folds.itertuples() if not is_number(row.auc)]
    if undefined:
        blocks.append(Note(f"No AUC of fold {', '.join(undefined)}: all its labels are the same."))
    if not summary.groups:
        blocks.append(
            Note("No intervals: without the output of prepare it is not known which tiles belong together.")
        )
    else:
        blocks.append(
            Text(f"Intervals resample {count(summary.groups)} {summary.grouping}, those of a fold its own.")
        )
    return blocks


def curves(context: ReportContext) -> list[Block]:
    """ROC and precision-recall of each experiment."""
    blocks: list[Block] = []
    for summary, heading in context.each_summary():
        blocks += heading
        if summary is None:
            continue
        numbers = context.numbers["experiments"][summary.experiment]
        precision = decimals(numbers["average_precision"])
        caption = (
            f"{_marked(summary)}: ROC (left) and precision-recall (right), out of fold, n = {count(numbers['tiles'])} tiles, "
            f"{count(numbers['positives'])} of them tumour. AUC {decimals(summary.pooled)}, average precision {precision}."
        )
        alt = f"Two curves of {summary.experiment}: ROC with AUC {decimals(summary.pooled)}, precision-recall with {precision}."
        blocks.append(
            Picture(file_name("curves", summary.experiment), roc_and_precision(summary), alt, caption)
        )
    return blocks or [Note(NO_FOLDS)]


def _marked(summary: Summary) -> str:
    return summary.experiment + (" (transductive)" if summary.transductive else "")


def decisions(context: ReportContext) -> list[Block]:
    """Confusion matrices at 0.5 and at the thresholds of the other folds."""
    blocks: list[Block] = []
    for summary, heading in context.each_summary():
        blocks += heading
        if summary is not None:
            blocks += _decisions_of(summary)
    return blocks or [Note(NO_FOLDS)]


def _decisions_of(summary: Summary) -> list[Block]:
    found = summary.decisions
    tables = {"at 0.5": found["confusion_at_half"]}
    if "confusion_at_thresholds" in found:
        tables["at the other folds' threshold"] = found["confusion_at_thresholds"]
    rows = []
    for name, table in tables.items():
        (right, false), (missed, hit) = table
        rows.append(
            [
                name,
                _ratio(hit, hit + missed),
                _ratio(right, right + false),
                _ratio(hit, hit + false),
                decimals(found["f1_at_half" if name == "at 0.5" else "f1_at_thresholds"]),
                _ratio(hit + right, hit + right + false + missed),
            ]
        )
    tiles = count(len(summary.table))
    said = "; ".join(
        f"{name}: TN {t[0][0]:,}, FP {t[0][1]:,}, FN {t[1][0]:,}, TP {t[1][1]:,}"
        for name, t in tables.items()
    )
    caption = f"{_marked(summary)}: labels against decisions, n = {tiles} tiles; shares are of the row."
    head = ("decided", "sensitivity", "specificity", "precision", "F1", "accuracy")
    blocks: list[Block] = [
        Picture(
            file_name("decisions", summary.experiment),
            decision_tables(tables),
            f"Confusion matrices. {said}.",
            caption,
        ),
        Table(f"{summary.experiment}: decisions on n = {tiles} tiles, out of fold", head, rows),
    ]
    if len(tables) > 1:
        shown = ", ".join(f"fold {row.fold} {decimals(row.threshold)}" for row in summary.folds.itertuples())
        blocks.append(
            Text(f"A fold is judged by the threshold with the highest F1 on all other folds: {shown}.")
        )
    else:
        blocks.append(
            Note(
                "No tuned threshold: one is chosen on other folds that hold both classes, and there are none."
            )
        )
    return blocks


def _ratio(part: int, whole: int) -> str:
    return decimals(part / whole) if whole else ABSENT


def calibration(context: ReportContext) -> list[Block]:
    """Reliability of each experiment, before and after a line fitted on the other folds."""
    blocks: list[Block] = []
    for summary, heading in context.each_summary():
        blocks += heading
        if summary is not None:
            blocks += _calibration_of(summary, context.numbers["experiments"][summary.experiment])
    return blocks or [Note(NO_FOLDS)]


def _calibration_of(summary: Summary, numbers: Mapping[str, Any]) -> list[Block]:
    found = summary.calibration
    if found is None:
        return [
            Note(
                "No calibration: its line is fitted on other folds with both classes, and is undefined where scores part the "
                "classes without a mistake."
            )
        ]
    verdict = calibration_verdict(numbers["calibration"])
    caption = (
        f"{_marked(summary)}: predicted probability against the share of tumour, n = {count(len(summary.table))} tiles out of "
        "fold; below, how many tiles have which probability."
    )
    alt = f"Reliability curves of {summary.experiment}: {verdict}."
    lines = [
        [str(row.fold), decimals(line.slope, 3), decimals(line.intercept, 3)]
        for row, line in zip(summary.folds.itertuples(), found.scalings, strict=True)
    ]
    scores = [
        ["expected calibration error", decimals(found.error[0]), decimals(found.error[1])],
        ["Brier score", decimals(found.brier[0]), decimals(found.brier[1])],
    ]
    return [
        Text(f"The {verdict}."),
        Picture(
            file_name("calibration", summary.experiment), reliability_curves(summary, found), alt, caption
        ),
        Table(f"{summary.experiment}: lower is better", ("score", "as predicted", "mended"), scores),
        Table(
            "The line in logits that mends a fold, fitted on all others",
            ("fold", "slope", "intercept"),
            lines,
        ),
    ]


def splits(context: ReportContext) -> list[Block]:
    """Results on stratified and on grouped folds beside each other, where both are at hand."""
    rows = split_rows(context.numbers)
    if not rows:
        return [Note(NO_FOLDS)]
    table = Table(
        "Every result at hand with its kind of folds",
        ("campaign", "experiment", "folds by", "folds", "tiles", "pooled AUC", "95 % interval"),
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
        ],
    )
    pairs = split_pairs(context.numbers)
    if not pairs:
        kinds = ", ".join(sorted({row["split"] for row in rows}))
        lacking = "stratified" if "stratified" not in {row["split"] for row in rows} else "grouped"
        text = (
            f"Only {kinds} folds are at hand"
            if kinds != "stain, stratified"
            else "No experiment was run on both kinds of folds"
        )
        remedy = "--set fold_split=stain" if lacking == "grouped" else "--set fold_split=stratified"
        return [
            table,
            Note(
                f"{text}: how far they are apart is not known. Run the same experiment with {remedy} beside it."
            ),
        ]
    blocks: list[Block] = [table]
    for pair in pairs:
        one, other = pair["stratified"], pair["grouped"]
        blocks.append(
            Text(
                f"{one['experiment']} on stratified folds and {other['experiment']} on folds by {other['split']}: "
                f"{decimals(one['auc'])} and {decimals(other['auc'])}, a difference of {pair['difference']:+.4f}."
            )
        )
    blocks.append(
        Note(
            "Both learn from the same share of the tiles only where the number of folds agrees; other settings may differ."
        )
    )
    return blocks
