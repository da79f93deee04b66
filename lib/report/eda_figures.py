"""Figures of the data: brightness, focus, stains, stain groups, and the folds that each split would make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.data import prepared
from lib.data.eda import Description, outliers
from lib.data.stain_groups import FEATURES
from lib.report.style import CLASS_STYLES, NEGATIVE, POSITIVE, new_figure, plain_log_ticks, png_of, save
from lib.report.tile_figures import contact_sheet, copies_sheet, outlier_sheet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_TITLES = {
    "stratified": "stratified: random tiles",
    "stain": "stain: whole stain groups",
    "slide": "slide: whole slides",
}


def draw_eda_figures(
    folder: Path,
    tiles: np.ndarray,
    test_tiles: np.ndarray,
    *,
    index: "pd.DataFrame",
    test_ids: Sequence[str],
    train: Description,
    eda: Mapping[str, Any],
    seed: int,
) -> list[str]:
    """Draw the figures of the prepare kernel.

    Args:
        folder: for the figures.
        tiles: (N, 96, 96, 3) uint8, the labelled tiles.
        test_tiles: (M, 96, 96, 3) uint8.
        index: id and label of the labelled tiles.
        test_ids: ids of the test tiles.
        train: description of the labelled tiles.
        eda: the content of eda.json.
        seed: chooses the tiles of the contact sheet.

    Returns:
        The file names. The copies are drawn only where there are any.
    """
    labels, groups = index["label"].to_numpy(), eda["stain_groups"]["table"]
    contact_sheet(tiles, labels, folder / prepared.SHEET, seed=seed)
    brightness_histogram(train.means, labels, folder / prepared.BRIGHTNESS)
    focus_histogram(train.focus, labels, folder / prepared.FOCUS)
    outlier_sheet(tiles, outliers(train), folder / prepared.OUTLIERS)
    group_scatter(groups, folder / prepared.GROUPS)
    group_stains(groups, folder / prepared.GROUP_STAINS)
    stain_histograms(train.features, FEATURES, labels, folder / prepared.STAINS)
    splits_figure(eda["splits"], folder / prepared.SPLITS)
    names = [prepared.SHEET, prepared.BRIGHTNESS, prepared.FOCUS, prepared.OUTLIERS]
    names += [prepared.GROUPS, prepared.GROUP_STAINS, prepared.STAINS, prepared.SPLITS]
    (folder / prepared.COPIES).unlink(missing_ok=True)  # of an earlier run
    copies = eda["near_copies"]
    if not copies["pairs"]:
        return names
    rows = {name: row for row, name in enumerate(index["id"])}
    test_rows = {name: row for row, name in enumerate(test_ids)}

    def tile(name: str) -> tuple[np.ndarray, str]:
        if name in rows:
            return tiles[rows[name]], "tumour" if labels[rows[name]] else "no tumour"
        return test_tiles[test_rows[name]], "test"

    pairs = [(tile(first), tile(second)) for first, second in copies["examples"]]
    copies_sheet(pairs, folder / prepared.COPIES, number=copies["pairs"])
    return [*names, prepared.COPIES]


def class_balance(counts: Mapping[str, tuple[int, int]]) -> bytes:
    """The shares of both classes as PNG bytes, a bar for each set.

    Args:
        counts: tiles without tumour and with tumour, by the name of the set with n.
    """
    figure = new_figure(1.3 + 0.55 * len(counts))
    axis = figure.subplots()
    for height, (normal, tumour) in enumerate(counts.values()):
        whole, left = max(normal + tumour, 1), 0.0
        for number, colour, hatch, name in (
            (normal, NEGATIVE, "", "no tumour"),
            (tumour, POSITIVE, "///", "tumour"),
        ):
            width = 100 * number / whole
            axis.barh(
                height, width, left=left, height=0.6, color=colour, alpha=0.55, hatch=hatch, edgecolor="black"
            )
            text = f"{name}\n{number:,} ({width:.1f} %)"
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
            if width > 15:
                axis.text(left + width / 2, height, text, ha="center", va="center", fontsize=8, bbox=box)
            left += width
    axis.set_yticks(range(len(counts)), list(counts), fontsize=8)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the tiles")
    axis.set_title("Class balance", fontsize=10)
    return png_of(figure)


def brightness_histogram(means: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Draw the distribution of the mean brightness of a tile in both classes.

    Args:
        means: (N, 3) mean of each channel, 0 to 255.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    figure = new_figure(3.6, width=7)
    axis = figure.subplots()
    _histogram_by_class(axis, means.mean(axis=1), labels, np.linspace(0, 255, 52))
    axis.legend(frameon=False)
    axis.set_xlabel("mean brightness of a tile (grey level, 0 to 255)")
    axis.set_ylabel("% of the class")
    axis.set_title(f"Brightness by class, n = {len(labels):,} tiles")
    save(figure, path)


def focus_histogram(focus: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Draw the distribution of focus in both classes, on a logarithmic axis: it spans several powers of ten.

    Args:
        focus: (N,) variance of the Laplacian. Tiles of one colour have 0: they are left out and counted in
            the title.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    figure = new_figure(3.6, width=7)
    axis = figure.subplots()
    positive = focus > 0
    low, high = np.quantile(focus[positive], (0.0005, 0.9995)) if positive.any() else (1.0, 1.0)
    bins = np.geomspace(low, max(high, low * 1.01), 52)
    _histogram_by_class(axis, focus[positive], labels[positive], bins)
    axis.set_xscale("log")
    plain_log_ticks(axis.xaxis)
    axis.set_xlabel("variance of the Laplacian (grey levels squared, logarithmic): blurred left, sharp right")
    axis.set_ylabel("% of the class")
    axis.legend(frameon=False)
    left_out = "" if positive.all() else f", {int((~positive).sum()):,} of one colour left out"
    axis.set_title(f"Focus by class, n = {len(focus):,} tiles{left_out}")
    save(figure, path)


def stain_histograms(features: np.ndarray, names: Sequence[str], labels: np.ndarray, path: Path) -> None:
    """Draw the distribution of stain vectors and background colour in both classes.

    These are properties of a slide. Where they differ by class, colour alone carries information about the
    label.

    Args:
        features: (N, F) of lib.data.stain_groups.
        names: of the F columns.
        labels: (N,) 0 or 1.
        path: the PNG file.
    """
    figure = new_figure(5, width=11)
    axes = figure.subplots(2, -(-len(names) // 2)).ravel()
    figure.suptitle(f"Stain vectors and background by class, n = {len(labels):,} tiles")
    for name, values, axis in zip(names, features.T, axes, strict=False):
        low, high = np.quantile(values, (0.005, 0.995))
        _histogram_by_class(axis, values, labels, np.linspace(low, max(high, low + 1e-6), 41))
        unit = "(0 to 1)" if name.startswith("white") else "(unit vector)"
        axis.set_xlabel(f"{name.replace('_', ', ')} {unit}")
        axis.set_ylabel("% of the class")
    for axis in axes[len(names) :]:
        axis.axis("off")
    for text, colour, height in (("no tumour: solid", NEGATIVE, 0.7), ("tumour: dashed", POSITIVE, 0.4)):
        axes[-1].text(0.1, height, text, color=colour, transform=axes[-1].transAxes)
    save(figure, path)


def _histogram_by_class(axis: "Axes", values: np.ndarray, labels: np.ndarray, bins: np.ndarray) -> None:
    """Draw a histogram outline for each class, in % of the class; values outside the bins are left out."""
    for label, colour, dashes, name in CLASS_STYLES:
        of_class = values[labels == label]
        axis.hist(
            of_class,
            bins=bins.tolist(),
            weights=np.full(len(of_class), 100 / max(len(of_class), 1)),
            histtype="step",
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            label=f"{name}, n = {len(of_class):,}",
        )


def group_scatter(table: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw size and share of tumour of each stain group: a split by group has to balance both.

    Args:
        table: tiles and positive_share of each group.
        path: the PNG file.
    """
    tiles = np.array([row["tiles"] for row in table])
    share = np.array([row["positive_share"] for row in table])
    mean = 100 * float((tiles * share).sum() / tiles.sum())
    figure = new_figure(3.8, width=7)
    axis = figure.subplots()
    axis.scatter(tiles, 100 * share, s=22, facecolors="none", edgecolors=NEGATIVE)
    axis.axhline(mean, color="0.4", linewidth=1, linestyle="--")
    axis.annotate(
        f"all tiles: {mean:.1f} %",
        (0.99, mean),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )
    axis.set_xscale("log")
    plain_log_ticks(axis.xaxis)
    axis.set_xlabel("tiles in the group (logarithmic)")
    axis.set_ylabel("tumour, % of its tiles")
    axis.set_ylim(-4, 104)
    axis.set_title(f"Stain groups, n = {len(table)} of {tiles.sum():,} tiles")
    save(figure, path)


def group_stains(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the stain vectors of the stain groups, and the brightness and focus of their tiles.

    A group of tiles without stain has its vectors at (0, 1).

    Args:
        table: of eda.json: tiles, light, focus_median and stain_medians of each group.
        path: the PNG file.
    """
    tiles = np.array([row["tiles"] for row in table], dtype=float)
    area = 12 + 140 * tiles / tiles.max()
    figure = new_figure(4.2, width=11)
    left, right = figure.subplots(1, 2)
    figure.suptitle(
        f"Stain groups, n = {len(table)} of {int(tiles.sum()):,} tiles; larger marks have more tiles"
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
    left.set_ylabel("blue component (unit vector)")
    legend = left.legend(frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    left.set_title("median stain vectors")
    light, focus = (np.array([row[name] for row in table]) for name in ("light", "focus_median"))
    right.scatter(light, np.maximum(focus, 1e-3), s=area, facecolors="none", edgecolors="0.25", linewidth=1.2)
    right.set_yscale("log")
    plain_log_ticks(right.yaxis)
    right.set_xlabel("mean brightness of its tiles (grey level, 0 to 255)")
    right.set_ylabel("median focus (grey levels squared)")
    right.set_title("brightness and focus")
    save(figure, path)


def splits_figure(splits: Mapping[str, Any], path: Path) -> None:
    """Draw the folds that each split would make: size, share of tumour, groups in the training folds.

    Args:
        splits: of lib.data.folds.describe_splits.
        path: the PNG file.
    """
    names = [name for name in _TITLES if name in splits]
    group = str(splits["group"]).replace("_", " ")
    figure = new_figure(8.2, width=4.6 * len(names) + 0.9)
    axes = figure.subplots(3, len(names), squeeze=False, height_ratios=(1.1, 0.8, 1.5))
    tables = [splits[name]["table"] for name in names if "table" in splits[name]]
    tiles = max((sum(row["tiles"] for row in table) for table in tables), default=0)
    folds = f"The {splits['folds']} folds that each split would make"
    figure.suptitle(f"{folds}, n = {tiles:,} tiles in {splits['groups']:,} {group}s")
    for name, (top, middle, bottom) in zip(names, axes.T, strict=True):
        top.set_title(_TITLES[name])
        if "missing" in splits[name]:
            for axis in (middle, bottom):
                axis.axis("off")
            top.set_xticks([])
            top.set_yticks([])
            reason = "\n".join(["cannot be made:", *_wrapped(splits[name]["missing"])])
            top.text(0.03, 0.95, reason, transform=top.transAxes, va="top", fontsize=8)
            continue
        _draw_sizes(top, splits[name]["table"])
        _draw_known_groups(middle, splits[name]["table"], group)
        _draw_spread(bottom, splits[name]["spread"], group, number=int(splits["folds"]))
    save(figure, path)


def _wrapped(text: str) -> list[str]:
    """Text as lines that fit in a panel; lines of their own, such as those of a list, stay so."""
    return [part for line in text.splitlines() for part in wrap(line, 52, subsequent_indent="  ")]


def _draw_sizes(axis: "Axes", table: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    folds = [row["fold"] for row in table]
    tumour = np.array([row["positives"] for row in table])
    normal = np.array([row["tiles"] for row in table]) - tumour
    outline: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
    axis.bar(folds, tumour, color=POSITIVE, hatch="///", label="tumour", **outline)
    axis.bar(folds, normal, bottom=tumour, color=NEGATIVE, alpha=0.45, label="no tumour", **outline)
    for row in table:
        _label_bar(axis, row["fold"], row["tiles"], f"{100 * row['positive_share']:.1f} %")
    axis.set_ylim(0, 1.32 * float((tumour + normal).max()))
    axis.set_xticks(folds)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("fold")
    axis.set_ylabel("tiles (above: % tumour)")
    axis.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)


def _draw_known_groups(axis: "Axes", table: Sequence[Mapping[str, Any]], group: str) -> None:
    folds = [row["fold"] for row in table]
    shares = [100 * row["known_group_share"] for row in table]
    axis.bar(folds, shares, color="0.75", edgecolor="black", linewidth=0.6)
    for fold, share in zip(folds, shares, strict=True):
        _label_bar(axis, fold, share, f"{share:.0f} %")
    axis.set_ylim(0, 122)
    axis.set_yticks([0, 50, 100])
    axis.set_xticks(folds)
    axis.set_xlabel("fold")
    axis.set_ylabel(f"% of tiles whose {group}\nis in the training folds")


def _draw_spread(axis: "Axes", spread: Sequence[Mapping[str, Any]], group: str, *, number: int) -> None:
    from matplotlib.ticker import MaxNLocator

    shares = 100 * np.array([row["shares"] for row in spread])  # (G, F)
    image = axis.imshow(shares, cmap="Greys", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axis.set_xticks(range(number))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("fold")
    axis.set_ylabel(f"{group}, the largest first (n = {len(spread)})")
    axis.figure.colorbar(image, ax=axis, shrink=0.9).set_label("% of the group's tiles")


def _label_bar(axis: "Axes", fold: float, height: float, text: str) -> None:
    """Write a text above a bar."""
    offset: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points"}
    axis.annotate(text, (fold, height), ha="center", va="bottom", fontsize=8, **offset)
