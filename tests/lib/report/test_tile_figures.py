"""Figures of tiles in rows: reproducible, pixel for pixel, with n and labels."""

from pathlib import Path

import numpy as np
import pytest
from figure_checks import Draw, assert_reproducible, texts_of
from PIL import Image

from lib.report.tile_figures import contact_sheet, copies_sheet, outlier_sheet

LABELS = np.arange(200) % 2
TILES = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
GREY = np.arange(200, dtype=np.uint8)  # the grey of a tile is its row
MANY = np.repeat(GREY, 96 * 96 * 3).reshape(200, 96, 96, 3)
PAIRS = [((TILES[0], "tumour"), (TILES[1], "test")), ((TILES[2], "tumour"), (TILES[3], "no tumour"))]
FIGURES: dict[str, Draw] = {
    "tiles of both classes": lambda path: contact_sheet(MANY, LABELS, path),
    "outliers": lambda path: outlier_sheet(
        MANY, {"darkest": [3, 1, 4], "of one colour": [1], "blurred": list(range(12))}, path
    ),
    "copies": lambda path: copies_sheet(PAIRS, path, number=77),
}


@pytest.mark.parametrize("name", ["tiles of both classes", "copies"])
def test_figures_are_reproducible(name: str, tmp_path: Path) -> None:
    assert_reproducible(FIGURES[name], tmp_path)


def test_figures_show_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: texts_of(draw, tmp_path, monkeypatch) for name, draw in FIGURES.items()}
    assert "18 tiles of each class, of n = 200" in texts["tiles of both classes"]
    assert texts["tiles of both classes"].split("\n").count("no tumour") == 2
    assert "of n = 200; the most extreme first" in texts["outliers"] and "of one colour" in texts["outliers"]
    assert "2 of n = 77 pairs" in texts["copies"] and "no tumour" in texts["copies"]


def test_a_sheet_shows_tiles_of_their_class_pixel_for_pixel(tmp_path: Path) -> None:
    contact_sheet(MANY, LABELS, tmp_path / "x.png")
    dense = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    picture = dense[::2, ::2]  # a pixel of a tile has 2 x 2 pixels
    assert (dense[52:, 52:] == picture[26:, 26:].repeat(2, axis=0).repeat(2, axis=1)).all()
    shown = []
    for row in range(4):
        for column in range(9):
            top, left = 26 + 102 * row, 26 + 102 * column
            tile = picture[top : top + 96, left : left + 96]
            grey = tile[0, 0, 0]
            assert grey % 2 == row // 2
            assert (tile[:30] == grey).all() and (tile[:, 66:] == grey).all()
            assert (tile[32:64, 32:64] == grey).all()
            # The frame is around the centre, black outside and white inside.
            assert (tile[30, 30:66] == 0).all() and (tile[31, 31:65] == 255).all()
            assert (picture[top : top + 96, left + 96 : left + 102] == 255).all()
            shown.append(grey)
    assert len(set(shown)) == 36


def test_a_sheet_with_one_or_two_tiles_is_as_wide_as_its_title(tmp_path: Path) -> None:
    copies_sheet(PAIRS[:1], tmp_path / "x.png", number=1)
    grey = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert (grey[:, [0, 1, -2, -1]] == 255).all()  # nothing is cut off at the sides
