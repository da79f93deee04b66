"""Page of an external test, as a program: `python -m lib.report.external_test_page '{"out": FILE.csv}'`.

It reads predictions and the JSON file beside them, and writes an HTML page beside both. It needs no torch.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.evaluation.calibration import BINS, reliability
from lib.files import write_atomic
from lib.report.formatting import count, decimals, interval
from lib.report.page import Block, Items, Note, Picture, Section, Table, Text, render_page
from lib.report.score_figures import decision_tables
from lib.report.style import LINES, add_grid, new_figure, png_of

logger = logging.getLogger(__name__)

_CAVEATS = (
    "The scores hold for tiles like these. Other scanners, stains and organs give other scores.",
    "The members learnt one rule: label 1 where the centre 32 x 32 pixels hold tumour. Labels of another "
    "rule measure something else.",
    "Nothing here was tested for clinical use.",
)


def write_page(out: Path) -> Path:
    """Write the page of an external test beside its predictions.

    Args:
        out: the CSV file of `lib.inference.predict_folder`, run with labels.

    Returns:
        The HTML file.
    """
    content = json.loads(out.with_suffix(".json").read_bytes())
    predictions = pd.read_csv(out, dtype={"tile": str}, keep_default_na=False, na_values={"calibrated": [""]})
    table = pd.DataFrame(content["labels"]).merge(predictions, on="tile", validate="one_to_one")
    page = out.with_suffix(".html")
    sections = [
        Section("scores", "Scores", _scores(content["scores"], content["not_scored"])),
        Section("curves", "Curves", _curves(table, content["scores"])),
        Section("members", "Members", _members(content)),
    ]
    subtitle = f"{content['scores']['tiles']:,} labelled tiles, {len(content['members'])} members"
    write_atomic(page, render_page("External test", subtitle, sections))
    return page


def _scores(scores: Mapping[str, Any], not_scored: Sequence[str]) -> list[Block]:
    (error, error_after), (brier, brier_after) = scores["expected_calibration_error"], scores["brier"]
    ends = scores["interval_95"] or (None, None)
    rows = [
        ("tiles", count(scores["tiles"])),
        ("of them tumour", count(scores["positives"])),
        ("AUC", decimals(scores["auc"])),
        ("95 % interval of the AUC", interval(*ends)),
        ("F1 at 0.5", decimals(scores["f1_at_half"])),
        ("expected calibration error", decimals(error)),
        ("expected calibration error after Platt scaling", decimals(error_after)),
        ("Brier score", decimals(brier)),
        ("Brier score after Platt scaling", decimals(brier_after)),
    ]
    matrix = decision_tables({"threshold 0.5": scores["confusion_at_half"]})
    (negatives, false_positives), (false_negatives, positives) = scores["confusion_at_half"]
    alt = (
        f"Confusion matrix at 0.5: {negatives} true negatives, {false_positives} false positives, "
        f"{false_negatives} false negatives, {positives} true positives."
    )
    return [
        Table("Scores of the predictions on the given labels", ("score", "value"), rows),
        Text(f"Interval: {scores['interval']}."),
        *[Note(f"{text}.") for text in not_scored],
        Picture("confusion.png", matrix, alt, f"Decisions at 0.5, n = {scores['tiles']:,} tiles."),
        Items(_CAVEATS),
    ]


def _curves(table: pd.DataFrame, scores: Mapping[str, Any]) -> list[Block]:
    from sklearn.metrics import roc_curve

    labels, probabilities = table["label"].to_numpy(), table["probability"].to_numpy()
    figure = new_figure(3.25)
    left, right = figure.subplots(1, 2)
    false_positives, true_positives, _ = roc_curve(labels, probabilities)
    left.plot(false_positives, true_positives, color=LINES[0])
    left.plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=0.9)
    left.set_xlabel("false positive rate")
    left.set_ylabel("true positive rate")
    left.set_title(f"ROC, AUC {scores['auc']:.4f}", fontsize=10)
    right.plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=0.9)
    lines = [("as predicted", probabilities, "o", "-", LINES[0])]
    calibrated = table["calibrated"].to_numpy(dtype=np.float64)
    if np.isfinite(calibrated).all():
        lines.append(("after Platt scaling", calibrated, "s", "--", LINES[2]))
    for name, values, marker, dashes, colour in lines:
        curve = reliability(labels, values, bins=min(BINS, max(2, len(labels) // 20)))
        style: dict[str, Any] = {"linestyle": dashes, "color": colour, "marker": marker, "markersize": 4}
        right.plot(curve["predicted"], curve["observed"], label=name, fillstyle="none", **style)
    right.legend(fontsize=8)
    right.set_xlabel("predicted probability")
    right.set_ylabel("share of tumour")
    right.set_title("Calibration", fontsize=10)
    for axis in (left, right):
        add_grid(axis)
    alt = f"ROC curve with AUC {scores['auc']:.4f}, and reliability curve of the probabilities."
    caption = (
        f"ROC and reliability curves, n = {len(table):,} tiles. Dotted: random guess, perfect calibration."
    )
    return [Picture("curves.png", png_of(figure), alt, caption)]


def _members(content: Mapping[str, Any]) -> list[Block]:
    rows = [
        (
            str(member["experiment"]),
            str(member["fold"]),
            str(member["member"]),
            str(member["backbone"]),
            decimals(member["out_of_fold_auc"]),
        )
        for member in content["members"]
    ]
    caption = "Members whose probabilities are averaged, with their AUC out of fold on the training data"
    head = ("experiment", "fold", "member", "backbone", "AUC out of fold")
    blocks: list[Block] = [Table(caption, head, rows)]
    if content["without_scaling"]:
        blocks.append(Note(f"There are no calibrated probabilities: {content['without_scaling']}."))
    else:
        blocks.append(
            Text(
                "Platt scaling was fitted on the members' out-of-fold predictions of the training data, not "
                "on these labels."
            )
        )
    return [*blocks, *[Note(text) for text in content["notes"]]]


def main(arguments: Sequence[str]) -> int:
    """Run with one JSON object that names the CSV file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    page = write_page(Path(json.loads(arguments[0])["out"]))
    logger.info("external test: %s", page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
