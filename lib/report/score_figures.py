"""Figures of scores: training, folds, ROC and precision-recall, decisions, calibration, correlations. All as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lib.evaluation.calibration import Calibration, reliability
from lib.evaluation.out_of_fold import ExperimentAverage, Summary
from lib.report.style import LINES, WIDTH, line_style, new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "0.55"
_NUMBERED = 12  # columns of a correlation matrix whose cells have room for their number


def training_curves(histories: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]) -> bytes:
    """Training loss, and where it was validated the AUC, of every member by epoch.

    Args:
        histories: lines of a history file (epoch, loss, perhaps validation_auc) by (fold, member); at least one line in all.
    """
    validated = any("validation_auc" in line for lines in histories.values() for line in lines)
    figure = new_figure(5.4 if validated else 3.2)
    axes = figure.subplots(2 if validated else 1, 1, sharex=True, squeeze=False)[:, 0]
    numbers = sorted({fold for fold, _ in histories})
    for (fold, member), lines in sorted(histories.items()):
        style = line_style(numbers.index(fold)) | {
            "markersize": 3.5,
            "linewidth": 1.3 if member == 0 else 0.7,
        }
        label = f"fold {fold}" if member == 0 else None
        axes[0].plot(
            [line["epoch"] for line in lines], [line["loss"] for line in lines], label=label, **style
        )
        if validated:
            seen = [line for line in lines if "validation_auc" in line]
            axes[1].plot([line["epoch"] for line in seen], [line["validation_auc"] for line in seen], **style)
    axes[0].set_ylabel("training loss (cross-entropy)")
    if validated:
        axes[1].set_ylabel("validation AUC (1 view)")
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8, ncols=2)
    axes[0].set_title(f"Training, n = {len(histories)} networks in {len(numbers)} folds", fontsize=10)
    for axis in axes:
        axis.grid(color="0.92")
    return png_of(figure)


def draw_fold_scores(summaries: Sequence[Summary], average: ExperimentAverage | None) -> bytes:
    """AUC of each fold and of all folds pooled, with 95 % intervals where there are any; a line each."""
    rows: list[tuple[str, float, float, float, bool]] = []
    for summary in summaries:
        for row in summary.folds.itertuples():
            rows.append((f"{summary.experiment}, fold {row.fold}", row.auc, row.low, row.high, False))
        mark = " (transductive)" if summary.transductive else ""
        rows.append((f"{summary.experiment}, pooled{mark}", summary.pooled, *summary.interval, True))
    if average is not None:
        rows.append((f"mean of {len(summaries)} experiments", average.pooled, *average.interval, True))
    rows = [row for row in rows if np.isfinite(row[1])]
    figure = new_figure(1.1 + 0.28 * len(rows))
    axis = figure.subplots()
    for at, (_, score, low, high, pooled) in enumerate(rows):
        if np.isfinite(low):
            axis.plot(
                [low, high], [at, at], color="black" if pooled else _GREY, linewidth=2.2 if pooled else 1.2
            )
        axis.plot(
            [score],
            [at],
            "s" if pooled else "o",
            color="black",
            fillstyle="full" if pooled else "none",
            markersize=6,
        )
        right = max(high, score) if np.isfinite(high) else score
        axis.annotate(
            f"{score:.4f}", (right, at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.14 * (high - low))
    axis.set_xlabel("ROC AUC, out of fold")
    axis.grid(axis="x", color="0.92")
    tiles = ", ".join(sorted({f"{len(summary.table):,}" for summary in summaries}))
    figure.suptitle(f"Folds (circles) and pooled (squares), 95 % intervals; n = {tiles} tiles", fontsize=10)
    return png_of(figure)


def roc_and_precision(summary: Summary) -> bytes:
    """ROC and precision-recall curves of all out-of-fold probabilities, those of single folds behind them."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

    labels, scores, fold = (summary.table[name].to_numpy() for name in ("label", "probability", "fold"))
    figure = new_figure(3.25)
    left, right = figure.subplots(1, 2)
    for number in np.unique(fold):
        inside = fold == number
        if len(np.unique(labels[inside])) == 2:
            false, true, _ = roc_curve(labels[inside], scores[inside])
            left.plot(false, true, color="0.7", linewidth=0.7)
            precision, recall, _ = precision_recall_curve(labels[inside], scores[inside])
            right.plot(recall[:-1], precision[:-1], color="0.7", linewidth=0.7)
    false, true, _ = roc_curve(labels, scores)
    left.plot(false, true, color="black", linewidth=1.6)
    left.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    left.annotate(f"AUC {summary.pooled:.4f}\nchance: dotted", (0.97, 0.05), ha="right", fontsize=8)
    left.set_xlabel("false positive rate")
    left.set_ylabel("true positive rate")
    precision, recall, _ = precision_recall_curve(labels, scores)
    right.plot(recall[:-1], precision[:-1], color="black", linewidth=1.6)
    share = float(labels.mean())
    right.axhline(share, color=_GREY, linewidth=0.8, linestyle=":")
    found = float(average_precision_score(labels, scores))
    right.annotate(f"average precision {found:.4f}\nchance: {share:.3f}, dotted", (0.04, 0.05), fontsize=8)
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    for axis in (left, right):
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.set_aspect("equal")
        axis.grid(color="0.92")
    figure.suptitle(
        f"All folds (black) and each (grey); n = {len(labels):,} tiles, {int(labels.sum()):,} of tumour",
        fontsize=10,
    )
    return png_of(figure)


def decision_tables(tables: Mapping[str, Sequence[Sequence[int]]]) -> bytes:
    """Confusion matrices side by side, each cell with its count and its share of the row; darker is a larger share.

    Args:
        tables: [[true negatives, false positives], [false negatives, true positives]] by how was decided.
    """
    figure = new_figure(3.1, width=WIDTH if len(tables) > 1 else WIDTH / 2)
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        counts = np.asarray(table, dtype=np.int64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        for row in range(2):
            for column in range(2):
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = f"{counts[row, column]:,}\n{100 * shares[row, column]:.1f} %"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
        axis.set_xticks([0, 1], ["no tumour", "tumour"])
        axis.set_yticks([0, 1], ["no tumour", "tumour"], rotation=90, va="center")
        axis.set_xlabel("decided")
        axis.set_title(f"{name}, n = {counts.sum():,}", fontsize=10)
    axes[0].set_ylabel("label")
    return png_of(figure)


def reliability_curves(summary: Summary, calibration: Calibration) -> bytes:
    """Reliability before and after the line of the other folds, and how the probabilities are distributed."""
    labels, scores = summary.table["label"].to_numpy(), summary.table["probability"].to_numpy()
    figure = new_figure(4.8, width=4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for name, values, marker, dashes, colour in (
        ("as predicted", scores, "o", "-", LINES[0]),
        ("after Platt scaling", calibration.recalibrated, "s", "--", LINES[2]),
    ):
        curve = reliability(labels, values)
        top.plot(
            curve["predicted"], curve["observed"], marker=marker, linestyle=dashes, color=colour, markersize=4,
            fillstyle="none", label=name,
        )  # fmt: skip
        bottom.hist(
            values, bins=np.linspace(0, 1, 41).tolist(), histtype="step", color=colour, linestyle=dashes
        )
    top.legend(fontsize=8, title="dotted: perfect", title_fontsize=8)
    top.set_ylabel("share of tumour in the bin")
    bottom.set_ylabel("tiles (log)")
    _count_on_log(bottom)
    bottom.set_xlabel("probability of tumour, out of fold")
    top.set_title(
        f"Reliability, {len(reliability(labels, scores))} bins of equal size, n = {len(labels):,}",
        fontsize=10,
    )
    for axis in (top, bottom):
        axis.grid(color="0.92")
    return png_of(figure)


def correlation_matrix(correlations: pd.DataFrame, *, tiles: int) -> bytes:
    """Spearman's correlation of every pair of members, in grey with its number where there is room.

    Args:
        correlations: (M, M), rows and columns named alike.
        tiles: that were predicted.
    """
    values = correlations.to_numpy(dtype=np.float64)
    count = len(values)
    side = min(WIDTH, 2.4 + 0.42 * count)
    figure = new_figure(side * 0.95, width=side)
    axis = figure.subplots()
    lowest = float(np.floor(np.nanmin(values) * 20) / 20)
    image = axis.imshow(values, cmap="Greys", vmin=lowest, vmax=1)
    if count <= _NUMBERED:
        for row in range(count):
            for column in range(count):
                dark = values[row, column] > (1 + lowest) / 2
                text = f"{values[row, column]:.2f}"
                axis.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=7,
                )
    names = [str(name) for name in correlations.columns]
    small = 8 if count <= _NUMBERED else 5
    axis.set_xticks(range(count), names, rotation=90, fontsize=small)
    axis.set_yticks(range(count), names, fontsize=small)
    figure.colorbar(image, ax=axis, shrink=0.7, label="Spearman's correlation")
    axis.set_title(f"n = {tiles:,} tiles", fontsize=10)
    return png_of(figure)


def probability_histogram(probabilities: np.ndarray) -> bytes:
    """How the submitted probabilities are distributed."""
    figure = new_figure(2.6)
    axis = figure.subplots()
    axis.hist(probabilities, bins=np.linspace(0, 1, 51).tolist(), histtype="step", color="black")
    axis.axvline(0.5, color=_GREY, linewidth=0.8, linestyle=":")
    _count_on_log(axis)
    axis.set_xlabel("probability of tumour in submission.csv (dotted: 0.5)")
    axis.set_ylabel("tiles (log)")
    axis.grid(color="0.92")
    axis.set_title(f"The submission, n = {len(probabilities):,} test tiles", fontsize=10)
    return png_of(figure)


def _count_on_log(axis: "Axes") -> None:
    """Tiles on a logarithmic scale, from less than one, with a number at the powers of ten only."""
    from matplotlib.ticker import NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=0.7, top=max(axis.get_ylim()[1], 12.0))
