"""How figures look and are kept: readable in print, in grey and by the colour-blind; the same bytes for the same input."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart under every common form of colour blindness.
NEGATIVE, POSITIVE = "#0072B2", "#D55E00"
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# In grey the colours are gone: lines differ by dashes and markers as well.
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 6.2  # inches: on a page of 390 px the text is still read
_DPI = 110


def new_figure(height: float, *, width: float = WIDTH) -> "Figure":
    """An empty figure that lays itself out, of so many inches; no state outside it is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: "Figure", *, dpi: int = _DPI) -> bytes:
    """The figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="png", dpi=dpi, metadata={"Software": None}
    )  # no version: the same bytes each time
    return stream.getvalue()


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG file, whole."""
    write_atomic(path, png_of(figure))


def with_palette(png: bytes) -> bytes:
    """The same picture in 256 colours chosen for it: a third of the bytes, and of stained tissue hardly a difference to see."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    stream = io.BytesIO()
    image.quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
        stream, "PNG"
    )
    return stream.getvalue()


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line with this number, for `plot`."""
    return {
        "color": LINES[number % len(LINES)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
