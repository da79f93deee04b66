"""Figures of the data: brightness, focus, stains, stain groups, and the folds that each split would make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.report.style import NEGATIVE, POSITIVE, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {
    "stratified": "stratified: tiles at random",
    "stain": "stain: whole stain groups",
    "slide": "slide: whole slides",
}


def brightness_histogram(means: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """How the mean brightness of a tile is distributed in both classes.

    Args:
        means: (N, 3) mean of each channel, 0 to 255.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, 255, 52).tolist()
    for label, colour, name, style in ((0, NEGATIVE, "no tumour", "-"), (1, POSITIVE, "tumour", "--")):
        values = means[labels == label].mean(axis=1)
        text = f"{name}, n = {len(values):,}"
        axis.hist(
            values,
            bins=bins,
            density=True,
            histtype="step",
            color=colour,
            linestyle=style,
            linewidth=1.6,
            label=text,
        )
    axis.legend()
    axis.set_xlabel("mean brightness of a tile (0 to 255)")
    axis.set_ylabel("density")
    axis.set_title(f"Brightness by class, n = {len(labels):,} tiles")
    save(figure, path)


def focus_histogram(focus: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """How sharp the tiles of both classes are, on a logarithmic axis, because focus spans several powers of ten.

    Args:
        focus: (N,) variance of the Laplacian; tiles with none at all, which are of one colour, are left out and counted.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    there = focus > 0
    low, high = np.quantile(focus[there], (0.0005, 0.9995)) if there.any() else (1.0, 1.0)
    bins = np.geomspace(low, max(high, low * 1.01), 52).tolist()
    for label, colour, style in ((0, NEGATIVE, "-"), (1, POSITIVE, "--")):
        values = focus[there & (labels == label)]
        name = f"{'tumour' if label else 'no tumour'}, n = {len(values):,}"
        weights = np.full(len(values), 100 / max(len(values), 1))
        axis.hist(
            values,
            bins=bins,
            weights=weights,
            histtype="step",
            color=colour,
            linestyle=style,
            linewidth=1.6,
            label=name,
        )
    axis.set_xscale("log")
    axis.set_xlabel("variance of the Laplacian (grey levels squared, logarithmic): blurred left, sharp right")
    axis.set_ylabel("% of the class")
    axis.legend(frameon=False)
    without = f", {int((~there).sum()):,} of one colour left out" if not there.all() else ""
    axis.set_title(f"Focus by class, n = {len(focus):,} tiles{without}")
    save(figure, path)


def stain_histograms(features: np.ndarray, names: Sequence[str], labels: np.ndarray, path: Path) -> None:
    """How what a slide gives to its tiles is distributed in both classes: where they differ, colour alone tells something.

    Args:
        features: (N, F) of lib.data.stain_groups.
        names: of the F columns.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, -(-len(names) // 2)).ravel()
    figure.suptitle(f"Stain vectors and background by class, n = {len(labels):,} tiles")
    for at, axis in enumerate(axes):
        if at >= len(names):
            axis.axis("off")
            continue
        low, high = np.quantile(features[:, at], (0.005, 0.995))
        bins = np.linspace(low, max(high, low + 1e-6), 41).tolist()
        for label, colour, style in ((0, NEGATIVE, "-"), (1, POSITIVE, "--")):
            values = features[labels == label, at]
            axis.hist(
                values, bins=bins, density=True, histtype="step", color=colour, linestyle=style, linewidth=1.4
            )
        axis.set_xlabel(
            names[at].replace("_", ", ") + (" (of 1)" if names[at].startswith("white") else " (unit vector)")
        )
        axis.set_ylabel("density")
    for text, colour, down in (("no tumour: solid", NEGATIVE, 0.7), ("tumour: dashed", POSITIVE, 0.4)):
        axes[-1].text(0.1, down, text, color=colour, transform=axes[-1].transAxes)
    save(figure, path)


def group_scatter(table: Sequence[Mapping[str, float]], path: Path) -> None:
    """How large each stain group is and how much of it is tumour: what a split by group has to cope with.

    Args:
        table: tiles and positive_share of each group.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    tiles = np.array([row["tiles"] for row in table])
    share = np.array([row["positive_share"] for row in table])
    whole = float((tiles * share).sum() / tiles.sum())
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.scatter(tiles, 100 * share, s=22, facecolors="none", edgecolors=NEGATIVE)
    axis.axhline(100 * whole, color="0.4", linewidth=1, linestyle="--")
    axis.annotate(
        f"all tiles: {100 * whole:.1f} %",
        (1.0, 100 * whole),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
    )
    axis.set_xscale("log")
    axis.set_xlabel("tiles of the group (logarithmic)")
    axis.set_ylabel("tumour, % of its tiles")
    axis.set_ylim(-4, 104)
    axis.set_title(f"Stain groups, n = {len(table)} of {tiles.sum():,} tiles")
    save(figure, path)


def group_stains(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Where the stain groups lie: their stain vectors, and how light and how sharp their tiles are.

    A group of tiles without stain has its vectors at (0, 1).

    Args:
        table: of eda.json: tiles, light, focus_median and stain_medians of each group.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    tiles = np.array([row["tiles"] for row in table], dtype=float)
    area = 12 + 140 * tiles / tiles.max()
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(
        f"Stain groups, n = {len(table)} of {int(tiles.sum()):,} tiles; the larger the mark, the more tiles"
    )
    for stain, colour, mark in (("haematoxylin", NEGATIVE, "o"), ("eosin", POSITIVE, "^")):
        red, blue = (
            np.array([row["stain_medians"][f"{stain}_{channel}"] for row in table])
            for channel in ("red", "blue")
        )
        left.scatter(
            red, blue, s=area, marker=mark, facecolors="none", edgecolors=colour, linewidth=1.2, label=stain
        )
    left.set_xlabel("red component of the stain vector (unit vector of optical density)")
    left.set_ylabel("blue component")
    marks = left.legend(frameon=False)
    for handle in marks.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    left.set_title("median stain vectors")
    light, focus = (np.array([row[name] for row in table]) for name in ("light", "focus_median"))
    right.scatter(light, np.maximum(focus, 1e-3), s=area, facecolors="none", edgecolors="0.25", linewidth=1.2)
    right.set_yscale("log")
    right.set_xlabel("mean brightness of its tiles (0 to 255)")
    right.set_ylabel("median focus (grey levels squared)")
    right.set_title("light and focus")
    save(figure, path)


def splits_figure(splits: Mapping[str, Any], path: Path) -> None:
    """The folds each split would make: how large, how much tumour, how many tiles of known groups, how groups are spread.

    Args:
        splits: of lib.data.splits.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    names = [name for name in _TITLES if name in splits]
    group = str(splits["group"]).replace("_", " ")
    figure = Figure(figsize=(4.6 * len(names) + 0.9, 8.2), layout="constrained")
    axes = figure.subplots(3, len(names), squeeze=False, height_ratios=(1.1, 0.8, 1.5))
    tiles = max(
        (sum(row["tiles"] for row in splits[name]["table"]) for name in names if "table" in splits[name]),
        default=0,
    )
    lead = f"{splits['folds']} folds as each split would make them"
    figure.suptitle(f"{lead}, n = {tiles:,} tiles in {splits['groups']:,} {group}s")
    for column, name in enumerate(names):
        top, middle, bottom = axes[:, column]
        top.set_title(_TITLES[name])
        if "missing" in splits[name]:
            for axis in (middle, bottom):
                axis.axis("off")
            top.set_xticks([])
            top.set_yticks([])
            why = "cannot be made:\n" + "\n".join(wrap(splits[name]["missing"], 52))
            top.text(0.03, 0.95, why, transform=top.transAxes, va="top", fontsize=8)
            continue
        _sizes(top, splits[name]["table"])
        _known(middle, splits[name]["table"], group)
        _spread(bottom, splits[name]["spread"], group, number=int(splits["folds"]))
    save(figure, path)


def _sizes(axis: "Axes", table: Sequence[Mapping[str, Any]]) -> None:
    fold = [row["fold"] for row in table]
    tumour = np.array([row["positives"] for row in table])
    normal = np.array([row["tiles"] for row in table]) - tumour
    axis.bar(fold, tumour, color=POSITIVE, edgecolor="black", linewidth=0.6, hatch="///", label="tumour")
    axis.bar(
        fold,
        normal,
        bottom=tumour,
        color=NEGATIVE,
        edgecolor="black",
        linewidth=0.6,
        alpha=0.45,
        label="no tumour",
    )
    for row in table:
        _above(axis, row["fold"], row["tiles"], f"{100 * row['positive_share']:.1f} %")
    axis.set_ylim(0, 1.32 * float((tumour + normal).max()))
    axis.set_xticks(fold)
    axis.set_xlabel("fold")
    axis.set_ylabel("tiles (above: % tumour)")
    axis.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)


def _known(axis: "Axes", table: Sequence[Mapping[str, Any]], group: str) -> None:
    fold = [row["fold"] for row in table]
    share = [100 * row["known_group_share"] for row in table]
    axis.bar(fold, share, color="0.75", edgecolor="black", linewidth=0.6)
    for at, value in zip(fold, share, strict=True):
        _above(axis, at, value, f"{value:.0f} %")
    axis.set_ylim(0, 122)
    axis.set_yticks([0, 50, 100])
    axis.set_xticks(fold)
    axis.set_xlabel("fold")
    axis.set_ylabel(f"% of its tiles whose\n{group} is learnt from")


def _spread(axis: "Axes", spread: Sequence[Mapping[str, Any]], group: str, *, number: int) -> None:
    from matplotlib.ticker import MaxNLocator

    shares = 100 * np.array([row["shares"] for row in spread])  # (G, F)
    drawn = axis.imshow(shares, cmap="Greys", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axis.set_xticks(range(number))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("fold")
    axis.set_ylabel(f"{group}, the largest first (n = {len(spread)})")
    bar = axis.figure.colorbar(drawn, ax=axis, shrink=0.9)
    bar.set_label("% of the group's tiles")


def _above(axis: "Axes", at: float, height: float, text: str) -> None:
    axis.annotate(
        text, (at, height), ha="center", va="bottom", xytext=(0, 2), textcoords="offset points", fontsize=8
    )
