"""Checks that tests of figures share: all text of a figure, and that the same input gives the same bytes."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Path], None]


def assert_reproducible(draw: Draw, folder: Path) -> None:
    """The figure has the same bytes each time, and shows something, in grey as well."""
    for number in (0, 1):
        draw(folder / f"{number}.png")
    first, second = ((folder / f"{number}.png").read_bytes() for number in (0, 1))
    assert first == second
    picture = np.asarray(Image.open(io.BytesIO(first)).convert("L"))
    assert min(picture.shape) > 200 and picture.std() > 5


@contextmanager
def figures_drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["Figure"]]:
    """The figures that are drawn inside, in their order, with the layout they were drawn in."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn: list[Figure] = []
    draw_canvas = FigureCanvasAgg.draw

    def keep(canvas: FigureCanvasAgg) -> None:
        draw_canvas(canvas)
        drawn.append(canvas.figure)

    with monkeypatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "draw", keep)
        yield drawn


def texts_of(draw: Draw, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All text of a figure, one a line."""
    from matplotlib.text import Text

    with figures_drawn(monkeypatch) as drawn:
        draw(folder / "x.png")
    [figure] = drawn
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]
