"""Checks that tests of figures share: all text of a figure, and that the same input gives the same bytes."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[[Path], None]


def assert_reproducible(draw: Draw, folder: Path) -> None:
    """The figure has the same bytes each time, and shows something, in grey as well."""
    for number in (0, 1):
        draw(folder / f"{number}.png")
    first, second = ((folder / f"{number}.png").read_bytes() for number in (0, 1))
    assert first == second
    picture = np.asarray(Image.open(io.BytesIO(first)).convert("L"))
    assert min(picture.shape) > 200 and picture.std() > 5


def texts_of(draw: Draw, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All text of a figure, one a line."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        drawn.append(figure)
        savefig(figure, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        draw(folder / "x.png")
    [figure] = drawn
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]
