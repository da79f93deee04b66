"""Style of the figures: colours, dashes and markers for grey prints and colour blindness; PNG files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito 2008: distinguishable with every common form of colour blindness.
NEGATIVE, POSITIVE = "#0072B2", "#D55E00"
# In each figure by class: label, colour, dashes, name.
CLASS_STYLES = ((0, NEGATIVE, "-", "no tumour"), (1, POSITIVE, "--", "tumour"))
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# A print in grey has no colours, so lines differ by dashes and markers as well.
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 6.2  # inches: the text is still readable on a page 390 px wide
_DPI = 220  # the page shows a figure at half its size: sharp on screens of high density and on paper


def new_figure(height: float, *, width: float = WIDTH) -> "Figure":
    """An empty figure with a constrained layout, in inches; pyplot and its global state are not used."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: "Figure", *, dpi: int = _DPI, dither: bool = False) -> bytes:
    """The figure as PNG in 256 colours, without the version of matplotlib: the same figure, the same bytes.

    It takes half the time of `Figure.savefig`, which draws the figure twice and compresses all its colours.

    Args:
        figure: to draw; it keeps the resolution.
        dpi: pixels per inch.
        dither: see `with_palette`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _in_256_colours(Image.fromarray(np.asarray(canvas.buffer_rgba())), dpi=(dpi, dpi), dither=dither)


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG file, atomically."""
    write_atomic(path, png_of(figure))


def with_palette(png: bytes, *, dither: bool = True) -> bytes:
    """The picture in 256 colours chosen for it: a third of the bytes, with hardly a visible difference.

    Args:
        png: the picture.
        dither: mix colours from neighbouring pixels, for tiles. Charts have few colours and need none.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(png))
    return _in_256_colours(picture, dpi=picture.info.get("dpi"), dither=dither)


def _in_256_colours(picture: "Image", *, dpi: tuple[float, float] | None, dither: bool) -> bytes:
    from PIL import Image

    method = Image.Dither.FLOYDSTEINBERG if dither else Image.Dither.NONE
    reduced = picture.convert("RGB").quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=method)
    stream = io.BytesIO()
    reduced.save(stream, "PNG", optimize=True, **({"dpi": dpi} if dpi else {}))
    return stream.getvalue()


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of line number 0, 1, ..., as arguments of `Axes.plot`."""
    return {
        "color": LINES[number % len(LINES)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def plain_log_ticks(axis: "Axis") -> None:
    """Give a logarithmic axis plain numbers (500, 1,000, 2,000) that have room side by side."""
    from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axis.axes.autoscale_view()
    low, high = sorted(axis.get_view_interval())
    locator: Locator
    if high > 1e4 * low:
        locator = LogLocator(base=100, subs=(1.0,))
    elif high > 200 * low:
        locator = LogLocator(subs=(1.0,))
    elif high > 5 * low:
        locator = LogLocator(subs=(1.0, 2.0, 5.0))
    else:  # not even a power of ten
        locator = MaxNLocator(4)
        axis.set_minor_locator(NullLocator())
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def add_grid(*axes: "Axes", axis: Any = "both") -> None:
    """Draw a light grid behind the lines of these axes."""
    for plot in axes:
        plot.grid(axis=axis, color="0.92")
