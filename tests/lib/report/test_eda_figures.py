"""Figures of the data: reproducible, with n, units and labels, for usual and for degenerate data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_checks import Draw, assert_reproducible, figures_drawn, texts_of

from lib.data.folds import describe_splits
from lib.data.stain_groups import FEATURES
from lib.report.eda_figures import (
    brightness_histogram,
    focus_histogram,
    group_scatter,
    group_stains,
    splits_figure,
    stain_histograms,
)

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(200) % 2
FOCUS = GENERATOR.lognormal(6, 2, 200)
MEANS = GENERATOR.uniform(0, 255, (200, 3))
STAINS = GENERATOR.uniform(0, 1, (200, len(FEATURES)))
GROUPS = [
    {"tiles": 10 * (number + 1), "light": 100.0 + number, "focus_median": 50.0 * number}
    | {"positive_share": 0.1 * number, "stain_medians": dict.fromkeys(FEATURES, 0.1 * number)}
    for number in range(8)
]


def splits_of(groups: int, slides: int = 0) -> dict[str, object]:
    index = pd.DataFrame(
        {
            "id": [f"{row:03d}" for row in range(200)],
            "label": LABELS,
            "stain_group": np.arange(200) // 2 % groups,
        }
    )
    index["slide"] = [f"s{row // 2 % slides}" for row in range(200)] if slides else ""
    return describe_splits(index, number=5, seed=1)


FIGURES: dict[str, Draw] = {
    "brightness": lambda path: brightness_histogram(MEANS, LABELS, path),
    "focus": lambda path: focus_histogram(FOCUS, LABELS, path),
    "tiles of one colour": lambda path: focus_histogram(np.zeros(200), LABELS, path),
    "stains": lambda path: stain_histograms(STAINS, FEATURES, LABELS, path),
    "group sizes": lambda path: group_scatter(GROUPS, path),
    "groups": lambda path: group_stains(GROUPS, path),
    "splits": lambda path: splits_figure(splits_of(40), path),
    "splits with slides": lambda path: splits_figure(splits_of(40, slides=50), path),
    "a split that cannot be made": lambda path: splits_figure(splits_of(3), path),
}


@pytest.mark.parametrize("name", ["focus", "groups", "splits with slides"])
def test_figures_are_reproducible(name: str, tmp_path: Path) -> None:
    assert_reproducible(FIGURES[name], tmp_path)


def test_figures_show_their_numbers_and_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: texts_of(draw, tmp_path, monkeypatch) for name, draw in FIGURES.items()}
    for name in ("brightness", "focus"):
        assert "n = 200 tiles" in texts[name] and "tumour, n = 100" in texts[name]
        assert "% of the class" in texts[name]
    assert "grey level, 0 to 255" in texts["brightness"] and "grey levels squared" in texts["focus"]
    assert "200 of one colour left out" in texts["tiles of one colour"]
    assert "n = 200 tiles" in texts["stains"] and "unit vector" in texts["stains"]
    assert texts["stains"].split("\n").count("% of the class") == len(FEATURES)
    assert "n = 8 of 360 tiles" in texts["group sizes"] and "tumour, % of its tiles" in texts["group sizes"]
    assert "n = 8 of 360 tiles" in texts["groups"] and "unit vector" in texts["groups"]
    assert "5 folds" in texts["splits"] and "40 stain groups" in texts["splits"]
    assert "50.0 %" in texts["splits"]
    assert "100 %" in texts["splits"] and "0 %" in texts["splits"].split("\n")
    assert "50 slides" in texts["splits with slides"] and "whole slides" in texts["splits with slides"]
    assert "cannot be made:\n5 folds need at least 5 groups" in texts["a split that cannot be made"]


@pytest.mark.parametrize("spread", [0.2, 0.8, 2.0, 4.0])
def test_numbers_of_logarithmic_axes_are_plain_and_do_not_overlap(
    spread: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.exp(np.random.default_rng(1).normal(6, spread, 60))
    sizes = np.maximum(1, np.exp(np.linspace(0, spread, 8) * 2)).astype(int)
    table = [
        {**row, "tiles": int(size), "focus_median": value}
        for row, size, value in zip(GROUPS, sizes, values, strict=False)
    ]
    with figures_drawn(monkeypatch) as drawn:
        focus_histogram(values, LABELS[:60], tmp_path / "focus.png")
        group_scatter(table, tmp_path / "sizes.png")
        group_stains(table, tmp_path / "groups.png")
    axes = [drawn[0].axes[0].xaxis, drawn[1].axes[0].xaxis, drawn[2].axes[1].yaxis]
    for axis in axes:
        low, high = axis.get_view_interval()
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        inside = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
        assert inside and not any("$" in label.get_text() for label in inside)
        boxes = [label.get_window_extent() for label in inside]
        pairs = [(one, other) for number, one in enumerate(boxes) for other in boxes[:number]]
        assert not any(one.overlaps(other) for one, other in pairs)


def test_a_histogram_by_class_sums_to_100_percent_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    sums: list[float] = []
    draw = Axes.hist

    def keep(axis: Axes, *args: object, **options: object) -> object:
        drawn = draw(axis, *args, **options)
        sums.append(float(np.sum(drawn[0])))
        return drawn

    monkeypatch.setattr(Axes, "hist", keep)
    labels = (np.arange(200) % 4 == 0).astype(int)
    brightness_histogram(MEANS, labels, tmp_path / "x.png")
    assert sums == [pytest.approx(100), pytest.approx(100)]
