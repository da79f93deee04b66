"""The last sections: the ensemble, the leaderboard, the conclusion."""

import numpy as np

from lib.errors import KernelError
from lib.files import sha256_of
from lib.report.conclusion import conclude, limitations
from lib.report.context import ReportContext, mark
from lib.report.formatting import count, decimals, interval, is_number, percent
from lib.report.inputs import KernelOutput
from lib.report.numbers import average_of_experiments
from lib.report.page import Block, Heading, Items, Note, Picture, Table, Text
from lib.report.score_figures import correlation_matrix, probability_histogram

_MEMBERS = (
    "name",
    "fold",
    "out_of_fold_auc",
    "mean_probability",
    "pearson_with_others",
    "spearman_with_others",
)


def ensemble(context: ReportContext) -> list[Block]:
    """The members that were averaged, how alike they are, and the mean of several experiments."""
    blocks = context.problems("inference")
    output = context.inputs.inference
    if output is None:
        blocks.append(
            Note(
                "There is no usable output of an inference kernel: nothing was averaged on the test tiles yet."
            )
        )
    else:
        try:
            blocks += _members(output, context)
        except KernelError as error:
            blocks.append(Note(str(error)))
    average = average_of_experiments(context.summaries)
    if average is None:
        if len(context.summaries) == 1:
            blocks.append(Text("One experiment only: there is no mean of several to score."))
        return blocks
    rows = [
        [
            mark(s.experiment, context.inputs.folds[s.experiment]),
            count(len(s.table)),
            decimals(s.pooled),
            interval(*s.interval),
        ]
        for s in context.summaries
    ]
    anywhere = " (transductive in part)" if any(s.transductive for s in context.summaries) else ""
    rows.append(
        [
            f"plain mean of all{anywhere}",
            count(average.tiles),
            decimals(average.pooled),
            interval(*average.interval),
        ]
    )
    head = ("experiment", "tiles", "pooled AUC", "95 % interval")
    blocks.append(Table("Experiments alone and their plain mean, tile by tile, out of fold", head, rows))
    names = list(average.correlations.columns)
    cells = [[str(name), *(decimals(value, 3) for value in average.correlations.loc[name])] for name in names]
    blocks.append(
        Table(
            f"Spearman's correlation of their probabilities, n = {count(average.tiles)}", ("", *names), cells
        )
    )
    return blocks


def _members(output: KernelOutput, context: ReportContext) -> list[Block]:
    scores, transductive = output.record.scores, {s.experiment for s in context.summaries if s.transductive}
    table = (
        output.read_table("ensemble.csv", ("name", "experiment", "fold", "out_of_fold_auc"))
        if output.holds("ensemble.csv")
        else None
    )
    blocks: list[Block] = []
    tiles = 0
    if output.holds("submission.csv"):
        submission = output.read_table("submission.csv", ("id", "label"), dtype={"id": str})
        values = submission["label"].to_numpy(dtype=np.float64)
        tiles = len(values)
        positive = percent(float((values >= 0.5).mean())) if tiles else "none"
        caption = (
            f"The submitted probabilities, n = {count(tiles)} test tiles; {positive} of them are 0.5 or more."
        )
        blocks.append(Picture("submission.png", probability_histogram(values), caption, caption))
    if table is None:
        return [
            *blocks,
            Note("ensemble.csv is missing: the members are not listed (the run was made by earlier code)."),
        ]
    rows = []
    for row in table.to_dict("records"):
        name = str(row["name"]) + (" (transductive)" if row["experiment"] in transductive else "")
        rows.append([name, str(row["fold"]), *(decimals(row.get(key)) for key in _MEMBERS[2:])])
    how = {"mean": "mean of probabilities", "logit": "mean of logits", "rank": "mean of ranks"}.get(
        str(scores.get("average")), "mean"
    )
    caption = f"The n = {len(rows)} members of the submission ({how}); correlations are with the mean of the others, on test tiles"
    head = ("member", "fold", "AUC out of fold", "mean probability", "Pearson", "Spearman")
    blocks = [Table(caption, head, rows), *blocks]
    if output.holds("correlations.csv") and len(rows) > 1:
        matrix = output.read_table("correlations.csv", index_col=0)
        if not is_number(float(np.nanmin(matrix.to_numpy(dtype=np.float64)))):
            return blocks
        lowest = decimals(float(np.nanmin(matrix.to_numpy(dtype=np.float64))), 3)
        caption = f"Spearman's correlation of every pair of members, n = {count(tiles)} test tiles; the lowest is {lowest}."
        alt = f"A matrix of correlations of {len(rows)} members, the lowest {lowest}."
        blocks.append(Picture("correlations.png", correlation_matrix(matrix, tiles=tiles), alt, caption))
    return blocks


def leaderboard(context: ReportContext) -> list[Block]:
    """The score of the submission, who gave it, and whether it is that of the submission at hand."""
    score = context.numbers["leaderboard"]
    if score is None:
        return [Note("There is no leaderboard result: no submission of this campaign has been scored.")]
    judge = score["scored_by"] or "a judge without a name"
    rows = [["public", decimals(score["public"])], ["private", decimals(score["private"])]]
    rows += [
        [f"out of fold, {mark(s.experiment, context.inputs.folds[s.experiment])}", f"{decimals(s.pooled)}"]
        for s in context.summaries
    ]
    blocks: list[Block] = [
        Table(f"AUC of submission {score['ref'] or ''}, scored by {judge}", ("on", "AUC"), rows)
    ]
    if not is_number(score["public"]) and not is_number(score["private"]):
        blocks.append(Note(f"{judge} took the submission and gave no score."))
    if score["scored_by"] != "Kaggle":
        blocks.append(
            Note(
                f"Scored by {judge} in a rehearsal, on labels it held back: never comparable with Kaggle's leaderboard."
            )
        )
    output = context.inputs.inference
    if output is not None and output.holds("submission.csv") and score["sha256"]:
        same = sha256_of(output.folder / "submission.csv") == score["sha256"]
        blocks.append(
            Text("The scored file is the submission.csv of this report's inference output (equal SHA-256).")
            if same
            else Note(
                "The scored file is another one than the submission.csv of this report's inference output."
            )
        )
    return blocks


def conclusion(context: ReportContext) -> list[Block]:
    """Sentences that follow from the numbers, and what is not known."""
    said = conclude(context.numbers)
    blocks: list[Block] = (
        [Items(said)] if said else [Note("There is nothing to conclude from: no fold could be scored.")]
    )
    return [*blocks, Heading("What is not known"), Items(limitations(context.numbers))]
