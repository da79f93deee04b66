"""Sections before any training: the problem, the data, their exploration."""

from collections.abc import Mapping
from typing import Any

from lib.data.competition import TEST_TILES, TRAIN_TILES
from lib.data.prepared import BRIGHTNESS, COPIES, FOCUS, GROUP_STAINS, GROUPS, OUTLIERS, SHEET, SPLITS, STAINS
from lib.errors import KernelError
from lib.report.context import ReportContext
from lib.report.formatting import count, decimals, percent, several
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.style import with_palette

_NO_PREPARE = "There is no usable output of a prepare kernel: run it and attach its output."
_LARGE = 400_000  # bytes: larger figures of prepare are shown in 256 colours, so that the page stays small
_CLASSES = {"0": "no tumour", "1": "tumour"}
_INTEGRITY = {  # of eda.json, in the order in which a reader asks
    "missing": "in a table, without a file",
    "not_in_a_table": "a file, in no table",
    "id_named_twice": "named twice",
    "undecodable": "not to be read",
    "wrong_size": "of another size",
    "mismatched": "pixels that are not what their id says",
    "same_content_under_two_ids": "the same pixels under two ids",
    "labelled_and_test": "both labelled and test tile",
}


def problem(context: ReportContext) -> list[Block]:
    """What is asked, and of what this is the report."""
    campaign = context.numbers["campaign"]
    names = ", ".join(context.inputs.folds) or "none whose folds are at hand"
    return [
        *map(Note, context.numbers["rehearsal"]),
        Text(
            "Kaggle's Histopathologic Cancer Detection asks for the probability that the 32 x 32 pixels in the middle of a "
            "96 x 96 tile of lymph-node tissue, stained with haematoxylin and eosin, hold at least one pixel of tumour. "
            "Submissions are ranked by the area under the ROC curve (AUC): the chance that a random tile with tumour gets a "
            f"higher score than a random one without. The competition has {TRAIN_TILES:,} labelled and {TEST_TILES:,} "
            "unlabelled tiles."
        ),
        Text(
            f"This is the report of {f'the campaign {campaign}' if campaign else 'one campaign'}; experiments: {names}. Scores "
            "are out of fold unless they say otherwise: every labelled tile is judged by networks that did not learn from it. "
            "Intervals are 95 % bootstrap intervals that resample whole groups of tiles, because tiles of one slide are not "
            "independent. The competition does not tell the slides: a stain group, tiles whose stain and background are alike, "
            "stands in for one. Stratified folds take tiles at random; stain and slide folds keep each group whole."
        ),
    ]


def data(context: ReportContext) -> list[Block]:
    """Counts, classes, damage, copies; and outputs that could not be used."""
    blocks = context.problems("prepare", "train", "inference", "search", "pretrain", "")
    eda = context.inputs.exploration()
    if eda is None:
        return [*blocks, Note(_NO_PREPARE)]
    rows = [_set_row("labelled", eda.get("train", {}), eda), _set_row("test", eda.get("test", {}), eda)]
    mismatches = eda.get("mismatches", {})
    wrong = sum(len(ids) for ids in mismatches.values())
    copies, record = eda.get("near_copies", {}), context.inputs.prepare.record  # type: ignore[union-attr]
    blocks += [
        Table(
            "Tiles of both sets; black: no channel above 10 of 255, blank: no variation; focus: variance of the Laplacian",
            ("set", "tiles", "tumour", "share", "black", "blank", "focus, median"),
            rows,
        ),
        Text(
            f"The id of a tile is the SHA-1 of its pixels: {several(wrong, 'tile')} of "
            f"{count(sum(part.get('tiles', 0) for part in (eda.get('train', {}), eda.get('test', {}))))} did not match. "
            f"{several(copies.get('pairs', 0), 'pair')} of tiles look the same, "
            f"{count(copies.get('between_labelled_and_test', 0))} of them between labelled and test tiles, "
            f"{count(copies.get('with_another_label', 0))} with different labels. Data id {record.data_id[:16]}."
        ),
    ]
    if findings := eda.get("integrity", {}):
        caption = (
            "What can be wrong with a tile; where it ends the run, no report shows any other number than 0"
        )
        blocks.append(
            Table(
                caption,
                ("tiles that are", "n", "ends the run", "the first of them"),
                _integrity_rows(findings),
            )
        )
    if context.numbers["is_full"] is False:
        blocks.append(
            Note("These are not all tiles of the competition: no number here stands for the full data.")
        )
    return blocks


def _integrity_rows(findings: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, words in _INTEGRITY.items():
        finding = findings.get(name, {})
        stops = {True: "yes", False: "no"}.get(finding.get("stops_the_run"), "")
        rows.append([words, count(finding.get("count")), stops, ", ".join(finding.get("first", [])[:2])])
    return rows


def _set_row(name: str, part: Mapping[str, Any], eda: Mapping[str, Any]) -> list[str]:
    quartiles = part.get("focus_quartiles") or [None] * 3
    return [
        name,
        count(part.get("tiles")),
        count(part.get("positives")),
        percent(part.get("positive_share")),
        count(part.get("black")),
        count(part.get("blank")),
        decimals(quartiles[1], 1),
    ]


def exploration(context: ReportContext) -> list[Block]:
    """Colours, stains, groups, outliers, and prepare's figures."""
    eda, prepare = context.inputs.exploration(), context.inputs.prepare
    if eda is None or prepare is None:
        return [Note(_NO_PREPARE)]
    train, groups = eda.get("train", {}), eda.get("stain_groups", {})
    labelled = count(train.get("tiles"))
    parts = {"labelled": train, "test": eda.get("test", {})}
    parts |= {
        f"labelled, {_CLASSES[key]}": part for key, part in eda.get("classes", {}).items() if key in _CLASSES
    }
    rows = [
        [name, count(part.get("tiles")), *_colours(part, "mean"), *_colours(part, "std")]
        for name, part in parts.items()
    ]
    blocks: list[Block] = [
        Table(
            "Mean and standard deviation of all pixels, of 1",
            ("tiles of", "n", "red", "green", "blue", "red, spread", "green, spread", "blue, spread"),
            rows,
        )
    ]
    worth = groups.get("auc_of_group_number")
    captions = {
        SHEET: f"Tiles of both classes, drawn at random from n = {labelled}; the frame is the centre that decides the label.",
        BRIGHTNESS: f"Mean brightness of a tile by class, n = {labelled} labelled tiles.",
        FOCUS: f"How sharp the tiles of both classes are, n = {labelled} labelled tiles.",
        STAINS: f"Stain vectors and white of the background by class, n = {labelled}: where the lines differ, colour alone tells "
        "something of the label.",
        GROUPS: f"Size and share of tumour of each of n = {count(groups.get('number'))} stain groups, {labelled} tiles.",
        GROUP_STAINS: f"Where the n = {count(groups.get('number'))} stain groups lie, and how light and sharp their tiles are.",
        OUTLIERS: f"The tiles furthest out in five respects, of n = {labelled}.",
        COPIES: "Tiles that look the same, in pairs.",
        SPLITS: f"The folds that each split makes of n = {labelled} tiles: their sizes, their share of tumour, and how many of "
        "their tiles have others of the same group among those that are learnt from.",
    }
    if not eda.get("near_copies", {}).get("pairs"):
        captions.pop(COPIES)  # there are none to draw
    for name, caption in captions.items():
        if not prepare.holds(name):
            blocks.append(Note(f"{name} is not among what prepare left: that figure is missing."))
            continue
        try:
            png = prepare.read_picture(name)
            small = png if len(png) <= _LARGE else with_palette(png)
            blocks.append(Picture(f"exploration-{name}", small, caption, caption))
        except KernelError as error:
            blocks.append(Note(str(error)))
    if groups:
        blocks.append(
            Text(
                f"The {count(groups.get('number'))} stain groups hold {count(groups.get('smallest'))} to "
                f"{count(groups.get('largest'))} tiles. The number of its group alone tells tumour from the rest with an AUC of "
                f"{decimals(worth)} on stratified folds: that is what a split which ignores groups can give away."
            )
        )
    slides = eda.get("slides", {})
    if slides.get("number"):
        blocks.append(
            Text(
                f"A map names {count(slides['number'])} slides; their number alone has AUC "
                f"{decimals(slides.get('auc_of_slide_number'))}."
            )
        )
    else:
        blocks.append(Note("Which slide a tile comes from is not known here: no map of slides was attached."))
    return blocks


def _colours(part: Mapping[str, Any], name: str) -> list[str]:
    return [decimals(value, 3) for value in (part.get(name) or [None] * 3)]
