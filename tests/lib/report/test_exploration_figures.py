"""Figures of the exploration: whole, the same bytes each time, and drawn for whatever the data are like."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data.groups import FEATURES
from lib.data.splits import describe_splits
from lib.report import exploration_figures as module
from lib.report.exploration_figures import copies_sheet, focus_histogram, group_stains, splits_figure

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(200) % 2
FOCUS = GENERATOR.lognormal(6, 2, 200)
TILES = GENERATOR.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
GROUPS = [
    {"tiles": 10 * (at + 1), "light": 100.0 + at, "focus_median": 0.0 if at == 0 else 50.0 * at}
    | {"stain_medians": dict.fromkeys(FEATURES, 0.1 * at)}
    for at in range(8)
]
PAIRS = [((TILES[0], "tumour"), (TILES[1], "test")), ((TILES[2], "tumour"), (TILES[3], "no tumour"))]


def splits_of(groups: int, slides: int = 0) -> dict[str, object]:
    index = pd.DataFrame(
        {"id": [f"{row:03d}" for row in range(200)], "label": LABELS, "stain_group": np.arange(200) // 2 % groups}
    )
    index["slide"] = [f"s{row // 2 % slides}" for row in range(200)] if slides else ""
    return describe_splits(index, number=5, seed=1)


DRAWN: dict[str, Callable[[Path], None]] = {
    "focus": lambda path: focus_histogram(FOCUS, LABELS, path),
    "tiles of one colour": lambda path: focus_histogram(np.zeros(200), LABELS, path),
    "groups": lambda path: group_stains(GROUPS, path),
    "copies": lambda path: copies_sheet(PAIRS, path, number=77),
    "splits": lambda path: splits_figure(splits_of(40), path),
    "splits with slides": lambda path: splits_figure(splits_of(40, slides=50), path),
    "a split that cannot be made": lambda path: splits_figure(splits_of(3), path),
}


@pytest.mark.parametrize("name", ["focus", "groups", "copies", "splits with slides"])
def test_figures_are_whole_and_come_out_the_same(name: str, tmp_path: Path) -> None:
    for number in (0, 1):
        DRAWN[name](tmp_path / f"{number}.png")
    first, second = ((tmp_path / f"{number}.png").read_bytes() for number in (0, 1))
    assert first == second
    picture = np.asarray(Image.open(io.BytesIO(first)).convert("L"))
    assert min(picture.shape) > 200 and picture.std() > 5  # something is drawn, in grey as well


def texts(draw: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that a figure says."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    kept: list[Figure] = []
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    draw(tmp_path / "x.png")
    [figure] = kept
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def test_figures_say_what_they_count_and_in_which_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {name: texts(draw, tmp_path, monkeypatch) for name, draw in DRAWN.items()}
    assert "n = 200 tiles" in said["focus"] and "grey levels squared" in said["focus"] and "tumour, n = 100" in said["focus"]
    assert "200 of one colour left out" in said["tiles of one colour"]
    assert "n = 8 of 360 tiles" in said["groups"] and "unit vector" in said["groups"]
    assert "2 of n = 77 pairs" in said["copies"] and "no tumour" in said["copies"]
    assert "5 folds" in said["splits"] and "40 stain groups" in said["splits"] and "50.0 %" in said["splits"]
    assert "100 %" in said["splits"] and "0 %" in said["splits"].split("\n")
    assert "50 slides" in said["splits with slides"] and "whole slides" in said["splits with slides"]
    assert "cannot be made:\n5 folds need at least 5 groups" in said["a split that cannot be made"]
