"""Figures of the exploration: whole, the same bytes each time, and drawn for whatever the data are like."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data.folds import describe_splits
from lib.data.stain_groups import FEATURES
from lib.report.eda_figures import focus_histogram, group_stains, splits_figure
from lib.report.tile_figures import contact_sheet, copies_sheet, outlier_sheet

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(200) % 2
FOCUS = GENERATOR.lognormal(6, 2, 200)
TILES = GENERATOR.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
MANY = np.repeat(np.arange(200, dtype=np.uint8), 96 * 96 * 3).reshape(
    200, 96, 96, 3
)  # a tile's grey is its row
GROUPS = [
    {"tiles": 10 * (at + 1), "light": 100.0 + at, "focus_median": 0.0 if at == 0 else 50.0 * at}
    | {"stain_medians": dict.fromkeys(FEATURES, 0.1 * at)}
    for at in range(8)
]
PAIRS = [((TILES[0], "tumour"), (TILES[1], "test")), ((TILES[2], "tumour"), (TILES[3], "no tumour"))]


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


DRAWN: dict[str, Callable[[Path], None]] = {
    "focus": lambda path: focus_histogram(FOCUS, LABELS, path),
    "tiles of one colour": lambda path: focus_histogram(np.zeros(200), LABELS, path),
    "groups": lambda path: group_stains(GROUPS, path),
    "tiles of both classes": lambda path: contact_sheet(MANY, LABELS, path),
    "the furthest out": lambda path: outlier_sheet(MANY, {"darkest": [3, 1, 4], "of one colour": [1]}, path),
    "copies": lambda path: copies_sheet(PAIRS, path, number=77),
    "splits": lambda path: splits_figure(splits_of(40), path),
    "splits with slides": lambda path: splits_figure(splits_of(40, slides=50), path),
    "a split that cannot be made": lambda path: splits_figure(splits_of(3), path),
}


@pytest.mark.parametrize("name", ["focus", "groups", "tiles of both classes", "copies", "splits with slides"])
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
    savefig = Figure.savefig

    def keep(figure: Figure, *given: object, **named: object) -> None:
        kept.append(figure)
        savefig(figure, *given, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(tmp_path / "x.png")
    monkeypatch.undo()
    [figure] = kept
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def test_figures_say_what_they_count_and_in_which_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {name: texts(draw, tmp_path, monkeypatch) for name, draw in DRAWN.items()}
    assert (
        "n = 200 tiles" in said["focus"]
        and "grey levels squared" in said["focus"]
        and "tumour, n = 100" in said["focus"]
    )
    assert "200 of one colour left out" in said["tiles of one colour"]
    assert "n = 8 of 360 tiles" in said["groups"] and "unit vector" in said["groups"]
    assert "20 tiles of each class, of n = 200" in said["tiles of both classes"]
    assert said["tiles of both classes"].split("\n").count("no tumour") == 2
    assert (
        "of n = 200; the most extreme first" in said["the furthest out"]
        and "of one colour" in said["the furthest out"]
    )
    assert "2 of n = 77 pairs" in said["copies"] and "no tumour" in said["copies"]
    assert "5 folds" in said["splits"] and "40 stain groups" in said["splits"] and "50.0 %" in said["splits"]
    assert "100 %" in said["splits"] and "0 %" in said["splits"].split("\n")
    assert "50 slides" in said["splits with slides"] and "whole slides" in said["splits with slides"]
    assert "cannot be made:\n5 folds need at least 5 groups" in said["a split that cannot be made"]


def test_a_sheet_shows_tiles_of_their_class_pixel_for_pixel(tmp_path: Path) -> None:
    contact_sheet(MANY, LABELS, tmp_path / "x.png")
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    shown = []
    for row in range(4):
        for column in range(10):
            top, left = 26 + 102 * row, 26 + 102 * column
            tile = picture[top : top + 96, left : left + 96]
            grey = tile[0, 0, 0]
            assert grey % 2 == row // 2
            assert (
                (tile[:30] == grey).all()
                and (tile[:, 66:] == grey).all()
                and (tile[32:64, 32:64] == grey).all()
            )
            assert (tile[30, 30:66] == 0).all() and (
                tile[31, 31:65] == 255
            ).all()  # the frame, around the centre
            assert (picture[top : top + 96, left + 96 : left + 102] == 255).all()
            shown.append(grey)
    assert len(set(shown)) == 40


def test_a_sheet_with_a_tile_or_two_has_room_for_what_it_says(tmp_path: Path) -> None:
    copies_sheet(PAIRS[:1], tmp_path / "x.png", number=1)
    grey = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert (grey[:, [0, 1, -2, -1]] == 255).all()  # nothing is cut off at the sides
