"""Sections before training: the problem, the data, the exploratory data analysis, the plan."""

from collections.abc import Mapping
from typing import Any

from lib.data.competition import TEST_TILES, TRAIN_TILES
from lib.data.prepared import BRIGHTNESS, COPIES, FOCUS, GROUP_STAINS, GROUPS, OUTLIERS, SHEET, SPLITS, STAINS
from lib.errors import KernelError
from lib.evaluation.out_of_fold import recorded_config
from lib.report.context import ReportContext
from lib.report.eda_figures import class_balance
from lib.report.findings import findings
from lib.report.formatting import count, decimals, is_number, percent, several
from lib.report.inputs import KernelOutput
from lib.report.page import Block, Heading, Note, Picture, Table, Text
from lib.report.plan import plan
from lib.report.style import with_palette

_NO_PREPARE = "There is no usable output of a prepare kernel. Run it and attach its output."
_LARGE = 400_000  # bytes: larger figures of prepare are reduced to 256 colours, so that the page stays small
_CLASSES = {"0": "no tumour", "1": "tumour"}
_SUBJECTS = {  # of the exploration, with the figures of prepare that belong to each
    "tiles": ("Tiles", (SHEET, OUTLIERS)),
    "balance": ("Balance", (GROUPS,)),
    "brightness": ("Brightness", (BRIGHTNESS,)),
    "focus": ("Focus", (FOCUS,)),
    "stain": ("Stain", (STAINS, GROUP_STAINS)),
    "groups": ("Groups and folds", (SPLITS,)),
    "copies": ("Near-duplicates", (COPIES,)),
}
_INTEGRITY = {  # findings in eda.json, in the order of the table
    "missing": "in a table, without a file",
    "not_in_a_table": "a file that is in no table",
    "id_named_twice": "listed twice",
    "undecodable": "unreadable",
    "wrong_size": "of another size than 96 x 96",
    "mismatched": "different from the SHA-1 in their id",
    "same_content_under_two_ids": "identical to a tile with another id",
    "labelled_and_test": "both labelled and test tile",
}


def problem(context: ReportContext) -> list[Block]:
    """The task, the metric, the campaign, and the terms that all sections use."""
    campaign = context.numbers["campaign"]
    names = ", ".join(context.inputs.folds) or "none with usable folds"
    return [
        *map(Note, context.numbers["rehearsal"]),
        Text(
            "The task of Kaggle's Histopathologic Cancer Detection competition: given a 96 x 96 pixel tile "
            "of lymph-node tissue, stained with haematoxylin and eosin (H&E), predict the probability that "
            "its 32 x 32 pixel centre contains at least one pixel of tumour. The competition has "
            f"{TRAIN_TILES:,} labelled and {TEST_TILES:,} unlabelled test tiles. Submissions are ranked by "
            "the area under the ROC curve (AUC): the probability that a random tumour tile gets a higher "
            "score than a random tile without tumour. A random guess has AUC 0.5, a perfect ranking 1."
        ),
        Text(
            f"This is the report of {f'the campaign {campaign}' if campaign else 'one campaign'}. "
            f"Its experiments: {names}."
        ),
        Text(
            "Scores are out-of-fold (OOF) unless stated otherwise: the labelled tiles are divided into "
            "folds, and each tile is scored only by networks that were trained on the other folds. A pooled "
            "score uses the predictions of all folds together. Intervals are 95 % bootstrap intervals. The "
            "bootstrap resamples whole groups of tiles, because tiles of one slide are not independent. The "
            "competition does not publish which slide a tile comes from, so stain groups replace slides: a "
            "stain group is a cluster of tiles with similar stain and background. Stratified folds divide "
            "the tiles at random; stain folds and slide folds keep each group in one fold."
        ),
    ]


def data(context: ReportContext) -> list[Block]:
    """Counts, classes, damaged tiles, near-duplicates; and outputs that could not be used."""
    blocks = context.unusable_outputs("prepare", "train", "inference", "search", "pretrain", "")
    eda, prepare = context.inputs.eda(), context.inputs.prepare
    if eda is None or prepare is None:
        return [*blocks, Note(_NO_PREPARE)]
    sets = {"labelled": eda.get("train", {}), "test": eda.get("test", {})}
    mismatched = sum(len(ids) for ids in eda.get("mismatches", {}).values())
    copies = eda.get("near_copies", {})
    blocks += [
        *_balance_picture(eda, context.numbers["holdout"]),
        Table(
            "Tiles of both sets. Black: no channel above 10 of 255. Blank: all pixels equal. "
            "Focus: variance of the Laplacian",
            ("set", "tiles", "tumour", "share", "black", "blank", "focus, median"),
            [_set_row(name, part) for name, part in sets.items()],
        ),
        Text(
            f"The id of a tile is the SHA-1 of its pixels. {several(mismatched, 'tile')} of "
            f"{count(sum(part.get('tiles', 0) for part in sets.values()))} did not match. "
            f"{several(copies.get('pairs', 0), 'pair')} of tiles are near-duplicates; "
            f"{count(copies.get('between_labelled_and_test', 0))} of these pairs join a labelled and a test "
            f"tile, {count(copies.get('with_another_label', 0))} have different labels."
        ),
    ]
    if findings := eda.get("integrity", {}):
        rows = _integrity_rows(findings)
        columns = ("tiles that are", "n", "stops the run", "first ids")
        shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1  # no column without an id
        title = "Integrity checks. A check that stops the run can only show 0 in a report"
        blocks.append(Table(title, columns[:shown], [row[:shown] for row in rows]))
    if context.numbers["is_full"] is False:
        blocks.append(
            Note("These are not all tiles of the competition: no number here describes the full data.")
        )
    return blocks


def _balance_picture(eda: Mapping[str, Any], holdout: Mapping[str, Any] | None) -> list[Block]:
    """Tiles of both classes in the sets with labels; none where the counts are missing."""
    counts = {}
    for name, part in (("labelled", eda.get("train", {})), ("hold-out", holdout or {})):
        tiles, tumour = part.get("tiles"), part.get("positives")
        if is_number(tiles) and is_number(tumour):
            counts[f"{name}, n = {count(tiles)}"] = (int(tiles - tumour), int(tumour))
    if not counts:
        return []
    shown = "; ".join(
        f"{name}: {count(tumour)} tumour ({percent(tumour / max(normal + tumour, 1))}), {count(normal)} no "
        "tumour"
        for name, (normal, tumour) in counts.items()
    )
    caption = f"Class balance: {shown}."
    return [Picture("class-balance.png", class_balance(counts), caption, caption)]


def _integrity_rows(findings: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, description in _INTEGRITY.items():
        finding = findings.get(name, {})
        stops = {True: "yes", False: "no"}.get(finding.get("stops_the_run"), "")
        first_ids = ", ".join(finding.get("first", [])[:2])
        rows.append([description, count(finding.get("count")), stops, first_ids])
    return rows


def _set_row(name: str, part: Mapping[str, Any]) -> list[str]:
    quartiles = part.get("focus_quartiles") or [None] * 3
    return [
        name,
        count(part.get("tiles")),
        count(part.get("positives")),
        percent(part.get("positive_share")),
        count(part.get("black")),
        count(part.get("blank")),
        count(quartiles[1]) if is_number(quartiles[1]) and quartiles[1] >= 100 else decimals(quartiles[1], 1),
    ]


def exploration(context: ReportContext) -> list[Block]:
    """Findings about balance, brightness, focus, stain, groups and copies, each beside its figures."""
    eda, prepare = context.inputs.eda(), context.inputs.prepare
    if eda is None or prepare is None:
        return [Note(_NO_PREPARE)]
    texts, captions = findings(eda), _captions(eda)
    blocks: list[Block] = []
    for subject, (title, figures) in _SUBJECTS.items():
        shown = [
            block for name in figures if name in captions for block in _figure(prepare, name, captions[name])
        ]
        words: list[Block] = [Text(texts[subject])] if subject in texts else []
        if subject == "stain":
            shown.append(_colour_table(eda))
        if words or shown:
            blocks += [Heading(title), *words, *shown]
    slides = eda.get("slides", {})
    if slides.get("number"):
        blocks.append(
            Text(
                f"A tile-to-slide map names {count(slides['number'])} slides. A classifier that knows only "
                f"the slide of a tile reaches AUC {decimals(slides.get('auc_of_slide_number'))}."
            )
        )
        if unnamed := slides.get("unnamed_tiles"):
            blocks.append(
                Note(
                    f"The map names no slide for {count(unnamed)} labelled tiles. They are grouped by stain, "
                    "apart from the slides: folds by slide may hold tiles of one slide on both sides."
                )
            )
    else:
        blocks.append(Note("The slide of each tile is not known: no tile-to-slide map was attached."))
    return blocks


def _figure(prepare: KernelOutput, name: str, caption: str) -> list[Block]:
    """A figure that prepare drew, or why it is not shown."""
    if not prepare.holds(name):
        return [Note(f"The figure {name} is missing from the output of prepare.")]
    try:
        png = prepare.read_picture(name)
    except KernelError as error:
        return [Note(str(error))]
    small = png if len(png) <= _LARGE else with_palette(png)
    return [Picture(f"exploration-{name}", small, caption, caption)]


def plan_of_analysis(context: ReportContext) -> list[Block]:
    """What follows from the findings, and what the experiments of this campaign do about it."""
    configs = {}
    for name, outputs in context.inputs.folds.items():
        try:
            configs[name] = recorded_config(outputs[0].record)
        except KernelError:
            continue  # the section on models names it
    rows = plan(context.inputs.eda() or {}, configs)
    lead = Text(
        "Each finding about the data has a consequence for training or for scoring. The last column is what "
        "the "
        "experiments of this campaign do, read from their options."
    )
    return [lead, Table("From findings to methods", ("finding", "consequence", "in this campaign"), rows)]


def _colour_table(eda: Mapping[str, Any]) -> Table:
    parts = {"labelled": eda.get("train", {}), "test": eda.get("test", {})}
    classes = eda.get("classes", {})
    parts |= {f"labelled, {name}": classes[key] for key, name in _CLASSES.items() if key in classes}
    rows = [
        [name, count(part.get("tiles")), *_channels(part, "mean"), *_channels(part, "std")]
        for name, part in parts.items()
    ]
    head = ("tiles", "n", "red mean", "green mean", "blue mean", "red SD", "green SD", "blue SD")
    return Table("Mean and standard deviation (SD) of all pixels, on a scale from 0 to 1", head, rows)


def _channels(part: Mapping[str, Any], name: str) -> list[str]:
    return [decimals(value, 3) for value in (part.get(name) or [None] * 3)]


def _captions(eda: Mapping[str, Any]) -> dict[str, str]:
    """The caption of each figure of prepare, by its file name."""
    labelled = count(eda.get("train", {}).get("tiles"))
    groups = count(eda.get("stain_groups", {}).get("number"))
    captions = {
        SHEET: f"Random tiles of both classes, of n = {labelled}. The frame marks the centre that decides "
        "the label.",
        BRIGHTNESS: f"Mean brightness of a tile by class, n = {labelled} labelled tiles.",
        FOCUS: f"Focus (sharpness) of a tile by class, n = {labelled} labelled tiles.",
        STAINS: f"Stain vectors and background colour by class, n = {labelled} tiles. Where the "
        "distributions differ, colour alone carries information about the label.",
        GROUPS: f"Size and share of tumour of each of n = {groups} stain groups, {labelled} tiles.",
        GROUP_STAINS: f"Stain vectors, brightness and focus of n = {groups} stain groups.",
        OUTLIERS: f"The most extreme tiles in five properties, of n = {labelled}.",
        COPIES: "Pairs of near-duplicate tiles.",
        SPLITS: f"The folds that each split makes of n = {labelled} tiles: their size, their share of "
        "tumour, and how many of their tiles have tiles of the same group in the training folds.",
    }
    if not eda.get("near_copies", {}).get("pairs"):
        captions.pop(COPIES)  # prepare drew none
    return captions
