"""Figures of scores as PNG bytes: training, folds, ROC, decisions, calibration, correlations."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lib.evaluation.calibration import Calibration, reliability
from lib.evaluation.out_of_fold import ExperimentAverage, Summary
from lib.report.style import LINES, WIDTH, add_grid, line_style, new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "0.55"
_REFERENCE: dict[str, Any] = {"color": _GREY, "linewidth": 0.8, "linestyle": ":"}
_MAX_NUMBERED = 12  # columns of a correlation matrix whose cells have room for their number


def training_curves(histories: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]) -> bytes:
    """Training loss of every network by epoch, and its validation AUC where it was measured.

    Args:
        histories: lines of a history file (epoch, loss, perhaps validation_auc) by (fold, member); at least
            one line in all.
    """
    validated = any("validation_auc" in line for lines in histories.values() for line in lines)
    figure = new_figure(5.4 if validated else 3.2)
    axes = figure.subplots(2 if validated else 1, 1, sharex=True, squeeze=False)[:, 0]
    folds = sorted({fold for fold, _ in histories})
    for (fold, member), lines in sorted(histories.items()):
        style = line_style(folds.index(fold)) | {"markersize": 3.5, "linewidth": 0.7 if member else 1.3}
        label = None if member else f"fold {fold}"
        axes[0].plot(*_column(lines, "loss"), label=label, **style)
        if validated:
            axes[1].plot(*_column(lines, "validation_auc"), **style)
    axes[0].set_ylabel("training loss (cross-entropy, nats)")
    if validated:
        sizes = {
            line["validation_tiles"]
            for lines in histories.values()
            for line in lines
            if "validation_tiles" in line
        }
        number = f", n = {sizes.pop():,}" if len(sizes) == 1 else ""
        axes[1].set_ylabel(f"validation AUC (1 view{number})")
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8, ncols=2)
    axes[0].set_title(f"Training, n = {len(histories)} networks in {len(folds)} folds", fontsize=10)
    add_grid(*axes)
    return png_of(figure)


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[Any], list[Any]]:
    """Epochs and values of the lines that have the value."""
    present = [line for line in lines if name in line]
    return [line["epoch"] for line in present], [line[name] for line in present]


def search_scores(trials: pd.DataFrame) -> bytes:
    """The AUC of the trials of a search in the order of drawing, and the best so far.

    Args:
        trials: trial (number), status, auc; at least one row.
    """
    from matplotlib.ticker import MaxNLocator

    trials = trials.assign(number=pd.to_numeric(trials["trial"], errors="coerce")).sort_values("number")
    figure = new_figure(3.0)
    axis = figure.subplots()
    for status, marker, fill in (("finished", "o", "full"), ("pruned", "x", "none")):
        of_status = trials[trials["status"] == status]
        if len(of_status):
            label = f"{status}, n = {len(of_status)}"
            axis.plot(
                of_status["number"],
                of_status["auc"],
                marker,
                color=LINES[1],
                fillstyle=fill,
                markersize=5,
                label=label,
            )
    finished = trials[trials["status"] == "finished"]
    if len(finished):
        axis.step(
            finished["number"], finished["auc"].cummax(), where="post", color="black", label="best so far"
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("trial, in the order of drawing")
    axis.set_ylabel("out-of-fold AUC")
    axis.legend(fontsize=8)
    axis.set_title(f"Search, n = {len(trials)} trials with a score", fontsize=10)
    add_grid(axis)
    return png_of(figure)


def draw_fold_scores(summaries: Sequence[Summary], average: ExperimentAverage | None) -> bytes:
    """AUC of each fold and of all folds pooled, one a line, with 95 % intervals where they exist."""
    rows: list[tuple[str, float, float, float, bool]] = []
    for summary in summaries:
        for fold in summary.folds.itertuples():
            rows.append((f"{summary.experiment}, fold {fold.fold}", fold.auc, fold.low, fold.high, False))
        mark = " (transductive)" if summary.transductive else ""
        rows.append((f"{summary.experiment}, pooled{mark}", summary.pooled, *summary.interval, True))
    if average is not None:
        rows.append((f"mean of {len(summaries)} experiments", average.pooled, *average.interval, True))
    rows = [row for row in rows if np.isfinite(row[1])]
    figure = new_figure(1.1 + 0.28 * len(rows))
    axis = figure.subplots()
    for height, (_, score, low, high, pooled) in enumerate(rows):
        if np.isfinite(low):
            colour, width = ("black", 2.2) if pooled else (_GREY, 1.2)
            axis.plot([low, high], [height, height], color=colour, linewidth=width)
        marker, fill = ("s", "full") if pooled else ("o", "none")
        axis.plot([score], [height], marker, color="black", fillstyle=fill, markersize=6)
        right = max(high, score) if np.isfinite(high) else score
        offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points"}
        axis.annotate(f"{score:.4f}", (right, height), va="center", fontsize=8, **offset)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.14 * (high - low))
    axis.set_xlabel("ROC AUC, out-of-fold")
    add_grid(axis, axis="x")
    tiles = ", ".join(sorted({f"{len(summary.table):,}" for summary in summaries}))
    intervals = ", 95 % intervals" if any(np.isfinite(row[2]) for row in rows) else ""
    figure.suptitle(f"Folds (circles) and pooled (squares){intervals}; n = {tiles} tiles", fontsize=10)
    return png_of(figure)


def roc_and_precision(summary: Summary) -> bytes:
    """ROC and precision-recall curves of all out-of-fold probabilities, and of single folds in grey."""
    from sklearn.metrics import average_precision_score

    labels, scores, fold = (summary.table[name].to_numpy() for name in ("label", "probability", "fold"))
    figure = new_figure(3.25)
    left, right = figure.subplots(1, 2)
    for number in np.unique(fold):
        inside = fold == number
        if len(np.unique(labels[inside])) == 2:
            _draw_curves(left, right, labels[inside], scores[inside], color="0.7", linewidth=0.7)
    _draw_curves(left, right, labels, scores, color="black", linewidth=1.6)
    left.plot([0, 1], [0, 1], **_REFERENCE)
    left.annotate(f"AUC {summary.pooled:.4f}\nrandom guess: dotted", (0.97, 0.05), ha="right", fontsize=8)
    left.set_xlabel("false positive rate")
    left.set_ylabel("true positive rate")
    share = float(labels.mean())
    right.axhline(share, **_REFERENCE)
    precision = f"average precision {average_precision_score(labels, scores):.4f}"
    right.annotate(f"{precision}\nrandom guess: {share:.3f}, dotted", (0.04, 0.05), fontsize=8)
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    for axis in (left, right):
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.set_aspect("equal")
    add_grid(left, right)
    tiles = f"n = {len(labels):,} tiles, {int(labels.sum()):,} of them tumour"
    figure.suptitle(f"All folds (black) and single folds (grey); {tiles}", fontsize=10)
    return png_of(figure)


def _draw_curves(left: "Axes", right: "Axes", labels: np.ndarray, scores: np.ndarray, **style: Any) -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_positives, true_positives, _ = roc_curve(labels, scores)
    left.plot(false_positives, true_positives, **style)
    precision, recall, _ = precision_recall_curve(labels, scores)
    right.plot(
        recall[:-1], precision[:-1], **style
    )  # the last point, (0, 1), is a convention and no threshold


def decision_tables(tables: Mapping[str, Sequence[Sequence[int]]]) -> bytes:
    """Confusion matrices side by side; each cell has its count and its share of the row.

    Args:
        tables: [[true negatives, false positives], [false negatives, true positives]] by the name of the
            threshold.
    """
    figure = new_figure(3.1, width=WIDTH if len(tables) > 1 else WIDTH / 2)
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        counts = np.asarray(table, dtype=np.int64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            text = f"{counts[row, column]:,}\n{100 * share:.1f} %"
            _write_cell(axis, row, column, text, dark=share > 0.5, size=10)
        axis.set_xticks([0, 1], ["no tumour", "tumour"])
        axis.set_yticks([0, 1], ["no tumour", "tumour"], rotation=90, va="center")
        axis.set_xlabel("decision")
        axis.set_title(f"{name}, n = {counts.sum():,}", fontsize=10)
    axes[0].set_ylabel("label")
    return png_of(figure)


def _write_cell(axis: "Axes", row: int, column: int, text: str, *, dark: bool, size: float) -> None:
    colour = "white" if dark else "black"
    axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def reliability_curves(summary: Summary, calibration: Calibration) -> bytes:
    """Reliability before and after Platt scaling, and the distribution of the probabilities."""
    labels, scores = summary.table["label"].to_numpy(), summary.table["probability"].to_numpy()
    figure = new_figure(4.8, width=4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], **_REFERENCE)
    for name, values, marker, dashes, colour in (
        ("as predicted", scores, "o", "-", LINES[0]),
        ("after Platt scaling", calibration.recalibrated, "s", "--", LINES[2]),
    ):
        curve = reliability(labels, values)
        style = {"linestyle": dashes, "color": colour}
        marks: dict[str, Any] = {"marker": marker, "markersize": 4, "fillstyle": "none"}
        top.plot(curve["predicted"], curve["observed"], label=name, **style, **marks)
        bottom.hist(values, bins=np.linspace(0, 1, 41).tolist(), histtype="step", **style)
    top.legend(fontsize=8, title="dotted: perfect", title_fontsize=8)
    top.set_ylabel("observed share of tumour")
    bottom.set_ylabel("tiles (log)")
    _set_log_count(bottom)
    bottom.set_xlabel("predicted probability of tumour, out-of-fold")
    bins = len(reliability(labels, scores))
    top.set_title(f"Reliability, {bins} bins of equal size, n = {len(labels):,} tiles", fontsize=10)
    add_grid(top, bottom)
    return png_of(figure)


def correlation_matrix(correlations: pd.DataFrame, *, tiles: int) -> bytes:
    """Spearman's correlation of every pair of members in grey, with its number where there is room.

    Args:
        correlations: (M, M), with the same names for rows and columns.
        tiles: number of tiles they were computed on.
    """
    values = correlations.to_numpy(dtype=np.float64)
    number = len(values)
    has_numbers = number <= _MAX_NUMBERED
    side = min(WIDTH, 3.2 + 0.42 * number)
    figure = new_figure(side * 0.95, width=side)
    axis = figure.subplots()
    lowest = float(np.floor(np.nanmin(values) * 20) / 20)
    image = axis.imshow(values, cmap="Greys", vmin=lowest, vmax=1)
    if has_numbers:
        for (row, column), value in np.ndenumerate(values):
            _write_cell(axis, row, column, f"{value:.2f}", dark=value > (1 + lowest) / 2, size=7)
    names = [str(name) for name in correlations.columns]
    size = 8 if has_numbers else 5
    axis.set_xticks(range(number), names, rotation=90, fontsize=size)
    axis.set_yticks(range(number), names, fontsize=size)
    if not has_numbers:
        figure.colorbar(image, ax=axis, shrink=0.7)
    figure.suptitle(f"Spearman's correlation, n = {tiles:,} test tiles", fontsize=10)
    return png_of(figure)


def probability_histogram(probabilities: np.ndarray) -> bytes:
    """The distribution of the submitted probabilities."""
    figure = new_figure(2.6)
    axis = figure.subplots()
    axis.hist(probabilities, bins=np.linspace(0, 1, 51).tolist(), histtype="step", color="black")
    axis.axvline(0.5, **_REFERENCE)
    _set_log_count(axis)
    axis.set_xlabel("probability of tumour in submission.csv (dotted: 0.5)")
    axis.set_ylabel("tiles (log)")
    add_grid(axis)
    axis.set_title(f"The submission, n = {len(probabilities):,} test tiles", fontsize=10)
    return png_of(figure)


def _set_log_count(axis: "Axes") -> None:
    """A logarithmic axis of counts that starts below one, with numbers at the powers of ten only."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=0.7, top=max(axis.get_ylim()[1], 12.0))
