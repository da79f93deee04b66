"""Sections about single tiles: the hardest errors, and attribution maps."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import KernelError
from lib.evaluation.out_of_fold import Summary
from lib.explain.hard_tiles import CENTRE_SHARE
from lib.report.context import NO_FOLDS, ReportContext
from lib.report.formatting import count, decimals, file_name, percent, several
from lib.report.inputs import KernelOutput, read_hard_tiles
from lib.report.numbers import is_explained, why_not_explained
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.tile_figures import COLUMNS, draw_maps, draw_mistakes

_ERRORS = {"false_positive": "false positives", "false_negative": "false negatives"}
_ROWS = {**_ERRORS, "sure_tumour": "sure tumour", "sure_normal": "sure normal"}
_LISTED = 10


def mistakes(context: ReportContext) -> list[Block]:
    """The hardest false positives and false negatives of each experiment: a table, and pictures if kept."""
    by_name = {summary.experiment: summary for summary in context.summaries}
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += [*heading, *_error_pictures(name, outputs)]
        if name in by_name:
            blocks += _error_table(by_name[name])
        else:
            blocks.append(Note(f"{name} could not be scored: {context.failed[name]}."))
    return blocks or [Note(NO_FOLDS)]


def _error_table(summary: Summary) -> list[Block]:
    table = summary.table
    wrong = table[(table["probability"] >= 0.5) != (table["label"] == 1)]
    if wrong.empty:
        text = f"{summary.experiment} has no error at threshold 0.5 on {count(len(table))} tiles."
        return [Note(text)]
    rows = []
    for label, name in ((0, "no tumour"), (1, "tumour")):
        errors = wrong[wrong["label"] == label]
        hardest = errors.sort_values(["probability", "id"], ascending=[label == 1, True]).head(_LISTED)
        rows += [
            [name, decimals(row.probability), str(row.fold), str(row.id)] for row in hardest.itertuples()
        ]
    false_positives = int((wrong["label"] == 0).sum())
    caption = (
        f"{summary.experiment}: at threshold 0.5, {several(false_positives, 'false positive')} and "
        f"{several(len(wrong) - false_positives, 'false negative')} on n = {count(len(table))} tiles; "
        f"the hardest {_LISTED} of each at most"
    )
    return [Table(caption, ("label", "probability of tumour", "fold", "tile"), rows)]


def _error_pictures(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    try:
        tiles, folds_without = read_hard_tiles(outputs)
    except KernelError as error:
        return [Note(str(error))]
    shown = {title: tiles[kind] for kind, title in _ERRORS.items() if tiles.get(kind)}
    blocks: list[Block] = []
    if shown:
        kept = " and ".join(f"{count(len(errors))} {title}" for title, errors in shown.items())
        caption = (
            f"{name}: the hardest errors, {2 * COLUMNS} of each kind at most, of the n = {kept} that the "
            "folds kept. Above each tile: its probability of tumour and its fold."
        )
        figure = draw_mistakes(shown, title=f"The hardest errors, of n = {kept}")
        alt = f"The tiles with the largest errors of {name}: {kept}."
        blocks.append(Picture(file_name("mistakes", name), figure, alt, caption))
    elif len(folds_without) < len(outputs):
        blocks.append(Note("The folds kept no tile with an error."))
    if folds_without:
        folds = ", ".join(map(str, folds_without))
        blocks.append(Note(f"Pictures of fold {folds} are missing: the run kept no hard tiles."))
    return blocks


def explanations(context: ReportContext) -> list[Block]:
    """Attribution maps of each experiment, and the share of the attribution in the centre."""
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        scores = context.numbers["experiments"].get(name)
        blocks += _explanations_of(name, outputs, scores["explained"] if scores else None)
    return blocks or [Note(NO_FOLDS)]


def _explanations_of(
    name: str, outputs: Sequence[KernelOutput], explained: Mapping[str, Any] | None
) -> list[Block]:
    blocks: list[Block] = []
    if explained is not None:
        rollout = (
            " Attention rollout does not depend on the class." if "rollout" in explained["method"] else ""
        )
        blocks.append(
            Text(
                "An attribution map shows how much each pixel contributes to the logit of tumour. With "
                f"{explained['method']}, {percent(explained['mean'])} of the attribution is in the 32 x 32 "
                f"centre that decides the label: the mean over {several(explained['tiles'], 'tumour tile')}, "
                f"drawn at random from the folds. A uniform map has {percent(CENTRE_SHARE)} there.{rollout}"
            )
        )
        rows = [
            [
                str(row["fold"]),
                count(row["tiles"]),
                *(decimals(row[key], 3) for key in ("mean", "q25", "median", "q75")),
            ]
            for row in explained["folds"]
        ]
        head = ("fold", "tiles", "mean", "lower quartile", "median", "upper quartile")
        blocks.append(Table(f"{name}: share of the attribution in the centre", head, rows))
    blocks += _map_picture(name, outputs)
    if reasons := why_not_explained(outputs):
        text = f"The share of the attribution in the centre is not known: {'; '.join(reasons)}."
        blocks.append(Note(text))
    return blocks


def _map_picture(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    # Maps of fewer than 3 x 3 cells mean nothing: such a run records no share. Earlier code kept the maps.
    explained = [output for output in outputs if is_explained(output)]
    try:
        tiles, _ = read_hard_tiles(explained)
    except KernelError as error:
        return [Note(str(error))]
    shown = {title: tiles[kind] for kind, title in _ROWS.items() if tiles.get(kind)}
    if not any(tile.map.any() for kind in shown.values() for tile in kind):
        return []
    number = count(sum(len(kind) for kind in shown.values()))
    caption = (
        f"{name}: tiles, and below each its attribution map over the tile in grey (bright: evidence for "
        "tumour; "
        "the colour bar is a share of the map's own maximum; the frame marks the centre). Above each tile: "
        "its "
        "probability of tumour and its fold. "
        f"The hardest or surest {COLUMNS} of each kind at most, of n = {number} tiles that the folds kept."
    )
    figure = draw_maps(shown, title=f"Attribution maps, of n = {number} tiles")
    alt = f"Tiles of {name}, and below each the same tile under its attribution map, with a colour bar."
    return [Picture(file_name("maps", name), figure, alt, caption)]
