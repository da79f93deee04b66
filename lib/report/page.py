"""Building blocks of report sections, rendered as HTML for a notebook cell or as one self-contained page.

The HTML and CSS are in lib/report/templates. The page needs no script, no font and nothing from another host:
figures are data: URIs, and its Content-Security-Policy forbids everything else.
"""

import base64
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
_DENSE = 150  # dots per inch: figures of earlier code have 96 or 110
_INCHES = 0.0254  # of a metre
_SHORT = 16  # characters of a cell that stays on one line
_PROSE = 28  # characters from which on a cell is a sentence, of which a phone cannot show two side by side


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Note:
    """A paragraph that names what is missing, or warns how a number must not be read."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    kind: str = "items"


@dataclass(frozen=True)
class Fact:
    """A number of the summary.

    Attributes:
        label: its name.
        value: the number itself, short.
        detail: its uncertainty, n, and where it comes from.
    """

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Facts:
    """The box of the summary: numbers with their labels, the most important one first."""

    facts: Sequence[Fact]
    kind: str = "facts"


@dataclass(frozen=True)
class References:
    """A list of sources, each with its address."""

    sources: Sequence[tuple[str, str]]
    kind: str = "references"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, such as the name of an experiment."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Table:
    """A table of texts; columns whose cells are all numbers are aligned to the right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"

    @property
    def column_classes(self) -> list[str]:
        """The CSS classes of each column: n for numbers, t for text, t s for short text."""
        return [
            "n" if all(map(_is_number, cells)) else "t" if _longest(cells) > _SHORT else "t s"
            for cells in self._columns
        ]

    @property
    def layout(self) -> str:
        """The CSS class of the table: prose for several columns of sentences, pairs for names and values."""
        if sum(_longest(cells) > _PROSE for cells in self._columns) > 1:
            return "prose"
        return "pairs" if len(self.head) == 2 else ""

    @property
    def _columns(self) -> list[list[str]]:
        return [[row[column] for row in self.rows] for column in range(len(self.head))]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of the PNG file beside the page.
        png: its bytes.
        alt: description for readers who cannot see it.
        caption: text below it, with n.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    kind: str = "picture"

    @property
    def source(self) -> str:
        """The picture as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def compact_source(self) -> str:
        """The picture for a notebook, which is to stay small: WebP in the size that it is shown in.

        It has less than half of the PNG's bytes, with a loss that is hardly visible. The PNG itself is in the
        page and beside it.
        """
        from PIL import Image

        stream = io.BytesIO()
        try:
            image = Image.open(io.BytesIO(self.png)).convert("RGB")
            if image.size != self.size:
                image = image.resize(self.size, Image.Resampling.LANCZOS)
            image.save(stream, "WEBP", quality=76, method=4)
        except (KeyError, OSError):  # this Pillow was built without WebP
            return self.source
        smallest = min(stream.getvalue(), self.png, key=len)
        kind = "png" if smallest is self.png else "webp"
        return f"data:image/{kind};base64," + base64.b64encode(smallest).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page in CSS pixels; half of its own pixels for a dense figure."""
        width, height = struct.unpack(">II", self.png[16:24])
        scale = 2 if _dots_per_inch(self.png) >= _DENSE else 1
        return round(width / scale), round(height / scale)


Block = Text | Note | Items | Facts | References | Heading | Table | Picture


@dataclass(frozen=True, repr=False)
class Section:
    """One section of the report.

    Attributes:
        name: its anchor.
        title: its heading.
        blocks: its content.
    """

    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def pictures(self) -> list[Picture]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Picture)]

    def __repr__(self) -> str:
        """One line: a notebook stores it beside the HTML, and must not store every figure a second time."""
        return f"<section {self.name!r}: {self.title}, {len(self.blocks)} blocks>"

    def _repr_html_(self) -> str:
        """The section with its own style sheet, as Jupyter shows it below a cell.

        It has no heading, because the notebook has one, which its table of contents needs; its figures are
        compact.
        """
        return _templates().get_template("notebook.html.jinja").render(section=self, in_notebook=True)


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """All sections as one page, with a table of contents after the first one, which is the summary."""
    page = _templates().get_template("page.html.jinja")
    return page.render(title=title, subtitle=subtitle, sections=sections, in_notebook=False) + "\n"


def _dots_per_inch(png: bytes) -> float:
    """The density in a PNG's pHYs chunk, which precedes its pixels; 0 without one."""
    head = png[: png.find(b"IDAT")]
    start = head.find(b"pHYs")
    if start < 0 or len(head) < start + 13 or head[start + 12] != 1:  # 1: dots per metre
        return 0.0
    (dots,) = struct.unpack(">I", head[start + 4 : start + 8])
    return float(dots * _INCHES)


def _longest(cells: Sequence[str]) -> int:
    return max(map(len, cells), default=0)


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, a percentage, an interval, or nothing."""
    plain = cell.replace(",", "").replace("%", "").replace("\N{MINUS SIGN}", "-").strip()
    if plain in ("", "-"):
        return True
    try:
        [float(part) for part in plain.split(" to ")]  # an interval is two numbers
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
