"""Last sections about results: the ensemble, the leaderboard, insights, conclusion, future work."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.errors import KernelError
from lib.files import sha256_of
from lib.report.conclusion import conclude, future_work, limitations, scored_by
from lib.report.context import NO_FOLDS, ReportContext, marked_name
from lib.report.formatting import count, decimals, interval, is_number, percent
from lib.report.inputs import KernelOutput
from lib.report.insights import insights as find_insights
from lib.report.numbers import average_of_experiments
from lib.report.page import Block, Heading, Items, Note, Picture, Table, Text
from lib.report.score_figures import correlation_matrix, probability_histogram

_AVERAGES = {"mean": "mean of probabilities", "logit": "mean of logits", "rank": "mean of ranks"}
_SCORES = ("out_of_fold_auc", "mean_probability", "pearson_with_others", "spearman_with_others")


def ensemble(context: ReportContext) -> list[Block]:
    """The members of the submission, their correlations, and the mean of several experiments."""
    blocks = context.unusable_outputs("inference")
    output = context.inputs.inference
    if output is None:
        text = "There is no usable output of an inference kernel: the test tiles have no predictions yet."
        blocks.append(Note(text))
    else:
        try:
            blocks += [*_members(output, context), *_submission(output), *_correlations(output)]
        except KernelError as error:
            blocks.append(Note(str(error)))
    return [*blocks, *_average(context)]


def _members(output: KernelOutput, context: ReportContext) -> list[Block]:
    if not output.holds("ensemble.csv"):
        return [Note("ensemble.csv is missing, so the members are not listed (earlier code made the run).")]
    table = output.read_table("ensemble.csv", ("name", "experiment", "fold", "out_of_fold_auc"))
    transductive = {summary.experiment for summary in context.summaries if summary.transductive}

    def cells(member: Mapping[str, Any]) -> list[str]:
        mark = " (transductive)" if member["experiment"] in transductive else ""
        scores = (decimals(member.get(name)) for name in _SCORES)
        return [f"{member['name']}{mark}", str(member["fold"]), *scores]

    rows = [cells(member) for member in table.to_dict("records")]
    average = _AVERAGES.get(str(output.record.scores.get("average")), "mean")
    caption = (
        f"The n = {len(rows)} members of the submission ({average}). Correlations on test tiles, with the "
        "mean of the other members"
    )
    head = ("member", "fold", "OOF AUC", "mean probability", "Pearson", "Spearman")
    return [Table(caption, head, rows)]


def _submission(output: KernelOutput) -> list[Block]:
    if not output.holds("submission.csv"):
        return []
    table = output.read_table("submission.csv", ("id", "label"), dtype={"id": str})
    values = table["label"].to_numpy(dtype=np.float64)
    positive = percent(float((values >= 0.5).mean())) if len(values) else "none"
    caption = (
        f"Submitted probabilities, n = {count(len(values))} test tiles; {positive} of them are 0.5 or more."
    )
    return [Picture("submission.png", probability_histogram(values), caption, caption)]


def _correlations(output: KernelOutput) -> list[Block]:
    if not output.holds("correlations.csv") or not output.holds("ensemble.csv"):
        return []
    matrix = output.read_table("correlations.csv", index_col=0)
    values = matrix.to_numpy(dtype=np.float64)
    if len(matrix) < 2 or not is_number(float(np.nanmin(values))):
        return []
    tiles = len(output.read_table("submission.csv", ("id",))) if output.holds("submission.csv") else 0
    lowest = decimals(float(np.nanmin(values)), 3)
    caption = (
        f"Spearman's correlation of all pairs of members, n = {count(tiles)} test tiles; lowest {lowest}."
    )
    alt = f"Correlation matrix of {len(matrix)} members; the lowest correlation is {lowest}."
    return [Picture("correlations.png", correlation_matrix(matrix, tiles=tiles), alt, caption)]


def _average(context: ReportContext) -> list[Block]:
    """Experiments alone and their mean, out of fold."""
    average = average_of_experiments(context.summaries)
    if average is None:
        single = Text("There is only one experiment, so no mean of experiments is scored.")
        return [single] if len(context.summaries) == 1 else []
    rows = [
        [
            marked_name(summary.experiment, context.inputs.folds[summary.experiment]),
            count(len(summary.table)),
            decimals(summary.pooled),
            interval(*summary.interval),
        ]
        for summary in context.summaries
    ]
    partly = any(summary.transductive for summary in context.summaries)
    mean = f"unweighted mean{' (partly transductive)' if partly else ''}"
    rows.append([mean, count(average.tiles), decimals(average.pooled), interval(*average.interval)])
    head = ("experiment", "tiles", "pooled AUC", "95 % interval")
    names = list(average.correlations.columns)
    cells = [[str(name), *(decimals(value, 3) for value in average.correlations.loc[name])] for name in names]
    caption = (
        f"Spearman's correlation of the experiments' OOF probabilities, n = {count(average.tiles)} tiles"
    )
    return [
        Table("Single experiments and their unweighted mean, tile by tile, out-of-fold", head, rows),
        Table(caption, ("experiment", *names), cells),
    ]


def leaderboard(context: ReportContext) -> list[Block]:
    """The score of the submission, who scored it, and whether the scored file is that of this report."""
    score = context.numbers["leaderboard"]
    if score is None:
        return [Note("There is no leaderboard score: no submission of this campaign has been scored.")]
    service = scored_by(score)
    if not is_number(score["public"]) and not is_number(score["private"]):
        of = f" {score['ref']}" if score["ref"] else ""
        blocks: list[Block] = [
            Note(f"There is no leaderboard score: {service} accepted the submission{of} and gave no score.")
        ]
        return [*blocks, *_scored_file(context, score)]
    rows = [["public", decimals(score["public"])], ["private", decimals(score["private"])]]
    for summary in context.summaries:
        name = marked_name(summary.experiment, context.inputs.folds[summary.experiment])
        rows.append([f"out-of-fold, {name}", decimals(summary.pooled)])
    caption = f"AUC of submission {score['ref'] or ''}, scored by {service}"
    blocks = [Table(caption, ("tiles", "AUC"), rows)]
    if score["scored_by"] != "Kaggle":
        text = (
            f"Scored by {service} in a rehearsal, with labels that the rehearsal held back: not comparable "
            "with Kaggle's leaderboard."
        )
        blocks.append(Note(text))
    return [*blocks, *_scored_file(context, score)]


def _scored_file(context: ReportContext, score: Mapping[str, Any]) -> list[Block]:
    """Whether the submitted file is that of this report."""
    output = context.inputs.inference
    if output is not None and output.holds("submission.csv") and score["sha256"]:
        here = "the submission.csv of this report's inference output"
        if sha256_of(output.folder / "submission.csv") == score["sha256"]:
            return [Text(f"The submitted file is {here} (equal SHA-256).")]
        return [Note(f"The submitted file differs from {here} (different SHA-256).")]
    return []


def insights(context: ReportContext) -> list[Block]:
    """What balance, augmentation, schedule, views and other options did, where a run or a search shows it."""
    if not context.summaries and not context.inputs.searches:
        return [Note(NO_FOLDS)]
    try:
        shown = find_insights(context.summaries, context.inputs.folds, context.inputs.searches)
    except KernelError as error:
        return [Note(str(error))]
    rows = [[insight.subject, insight.text, insight.source] for insight in shown]
    return [
        Text(
            "What the runs of this campaign show about the choices that were made. Where more than one "
            "option changes, the cause of a difference is not known."
        ),
        Table("Observations by subject", ("subject", "observation", "shown by"), rows),
    ]


def future(context: ReportContext) -> list[Block]:
    """The next experiments, each with the reason in these numbers."""
    return [Items(future_work(context.numbers))]


def conclusion(context: ReportContext) -> list[Block]:
    """Conclusions that follow from the numbers, and limitations."""
    sentences = conclude(context.numbers)
    nothing = Note("No conclusion is possible: no fold could be scored.")
    return [
        Items(sentences) if sentences else nothing,
        Heading("Limitations"),
        Items(limitations(context.numbers)),
    ]
