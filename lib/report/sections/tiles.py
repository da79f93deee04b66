"""Sections about single tiles: the hardest mistakes, and what the networks looked at."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import KernelError
from lib.evaluation.out_of_fold import Summary
from lib.explain.hard_tiles import CENTRE_SHARE
from lib.report.context import NO_FOLDS, ReportContext
from lib.report.formatting import count, decimals, file_name, percent, several
from lib.report.inputs import KernelOutput, read_hard_tiles
from lib.report.numbers import why_not_explained
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.tile_figures import COLUMNS, draw_maps, draw_mistakes

_MISTAKES = {"false_positive": "false positives", "false_negative": "false negatives"}
_KINDS = {**_MISTAKES, "sure_tumour": "surely tumour", "sure_normal": "surely not"}
_LISTED = 10


def mistakes(context: ReportContext) -> list[Block]:
    """The hardest false positives and false negatives of each experiment, as pictures where there are any."""
    by_name = {summary.experiment: summary for summary in context.summaries}
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        if name in by_name:
            blocks += _mistake_table(by_name[name])
        else:
            blocks.append(Note(f"{name} could not be scored: {context.failed[name]}"))
        blocks += _mistake_pictures(name, outputs)
    return blocks or [Note(NO_FOLDS)]


def _mistake_table(summary: Summary) -> list[Block]:
    table = summary.table
    wrong = table[(table["probability"] >= 0.5) != (table["label"] == 1)]
    rows = []
    for label, called in ((0, "no tumour"), (1, "tumour")):
        found = wrong[wrong["label"] == label].sort_values(
            ["probability", "id"], ascending=[label == 1, True]
        )
        for row in found.head(_LISTED).itertuples():
            rows.append([called, decimals(row.probability), str(row.fold), str(row.id)])
    if not rows:
        return [Note(f"{summary.experiment} makes no mistake at 0.5 on {count(len(table))} tiles.")]
    false = int((wrong["label"] == 0).sum())
    counts = f"{several(false, 'false positive')} and {several(len(wrong) - false, 'false negative')}"
    caption = f"{summary.experiment}: the hardest of {counts} at 0.5, n = {count(len(table))} tiles, {_LISTED} of each at most"
    return [Table(caption, ("label", "probability", "fold", "tile"), rows)]


def _mistake_pictures(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    try:
        cases, without = read_hard_tiles(outputs)
    except KernelError as error:
        return [Note(str(error))]
    shown = {title: cases[kind] for kind, title in _MISTAKES.items() if cases.get(kind)}
    blocks: list[Block] = []
    if shown:
        kept = " and ".join(f"{count(len(found))} {title}" for title, found in shown.items())
        most = 2 * COLUMNS
        caption = (
            f"{name}: the hardest mistakes, {most} of each at most, of n = {kept} that the folds kept; above each tile its "
            "probability of tumour and its fold."
        )
        sheet = draw_mistakes(shown, title=f"The hardest mistakes, of n = {kept}")
        blocks.append(
            Picture(
                file_name("mistakes", name), sheet, f"Tiles that {name} judged most wrongly: {kept}.", caption
            )
        )
    elif len(without) < len(outputs):
        blocks.append(Note("The folds kept no mistaken tile."))
    if without:
        blocks.append(
            Note(f"Pictures are missing of fold {_numbers(without)}: the run kept no tiles to look at.")
        )
    return blocks


def _numbers(folds: Sequence[int]) -> str:
    return ", ".join(str(fold) for fold in folds)


def explanations(context: ReportContext) -> list[Block]:
    """Maps of what speaks for tumour, and how much of them lies in the centre."""
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        summary = context.numbers["experiments"].get(name)
        blocks += _explained(name, outputs, summary["explained"] if summary else None)
    return blocks or [Note(NO_FOLDS)]


def _explained(name: str, outputs: Sequence[KernelOutput], numbers: Mapping[str, Any] | None) -> list[Block]:
    blocks: list[Block] = []
    if numbers is not None:
        unlike = " It does not know the class." if "rollout" in numbers["method"] else ""
        blocks.append(
            Text(
                f"By {numbers['method']}, {percent(numbers['mean'])} of the attribution lies in the 32 x 32 centre that decides "
                f"the label, on average over {several(numbers['tiles'], 'tile')} with tumour, drawn at random from the folds; a "
                f"map that is the same everywhere has {percent(CENTRE_SHARE)} there.{unlike}"
            )
        )
        rows = [
            [
                str(row["fold"]),
                count(row["tiles"]),
                *(decimals(row[key], 3) for key in ("mean", "q25", "median", "q75")),
            ]
            for row in numbers["folds"]
        ]
        head = ("fold", "tiles", "mean", "lower quartile", "median", "upper quartile")
        blocks.append(Table(f"{name}: share of the attribution in the centre", head, rows))
    blocks += _map_picture(name, outputs)
    reasons = why_not_explained(outputs)
    if reasons:
        blocks.append(Note("How much of it lies in the centre is not known: " + "; ".join(reasons) + "."))
    return blocks


def _map_picture(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    try:
        cases, _ = read_hard_tiles(outputs)
    except KernelError as error:
        return [Note(str(error))]
    shown = {title: cases[kind] for kind, title in _KINDS.items() if cases.get(kind)}
    maps = sum(bool(case.map.any()) for found in shown.values() for case in found)
    if not maps:
        return []
    tiles = sum(len(found) for found in shown.values())
    caption = (
        f"{name}: tiles and, below each, where its network found what speaks for tumour (bright: more; each map on its own "
        "scale; framed: the centre); above each its probability of tumour and its fold. The hardest or surest "
        f"{COLUMNS} of each kind at most, of n = {count(tiles)} that the folds kept."
    )
    sheet = draw_maps(shown, title=f"What speaks for tumour, of n = {count(tiles)} tiles")
    return [
        Picture(
            file_name("maps", name), sheet, f"Tiles of {name} with a map of attribution under each.", caption
        )
    ]
