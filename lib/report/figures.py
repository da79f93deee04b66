"""Figures of the data, before any training: what prepare draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib.files import write_atomic
from lib.report.style import NEGATIVE, POSITIVE, save
from lib.report.tile_figures import Row, framed, sheet


def contact_sheet(
    tiles: np.ndarray, labels: np.ndarray, path: Path, *, columns: int = 10, seed: int = 0
) -> None:
    """Tiles of both classes with the centre that decides the label framed.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        labels: (N,) 0 or 1.
        path: the PNG file.
        columns: tiles a row; there are two rows of each class.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    lines = []
    for label, name in ((0, "no tumour"), (1, "tumour")):
        rows = np.flatnonzero(labels == label)
        picked = generator.choice(rows, size=min(2 * columns, len(rows)), replace=False)
        for at in (0, columns):
            lines.append(Row(name, [framed(tiles[row]) for row in picked[at : at + columns]]))
    title = f"{2 * columns} tiles of each class, of n = {len(labels):,}; framed: the 32 x 32 centre"
    write_atomic(path, sheet(lines, title=title, columns=columns))


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


def outlier_sheet(tiles: np.ndarray, rows: Mapping[str, Sequence[int]], path: Path) -> None:
    """The tiles furthest out in each respect, one respect a line.

    Args:
        tiles: (N, 96, 96, 3) uint8.
        rows: by what they are, such as "darkest".
        path: the PNG file.
    """
    lines = [Row(name, [tiles[row] for row in picked]) for name, picked in rows.items()]
    title = f"The tiles furthest out, of n = {len(tiles):,}; the furthest first"
    write_atomic(path, sheet(lines, title=title, columns=max(len(each) for each in rows.values())))


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
