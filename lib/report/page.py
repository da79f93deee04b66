"""Sections of the report, and how they become HTML: in a notebook one by one, and all of them as one self-contained page.

The templates lie in this file because only Python files travel in a kernel. No scripts, no fonts, nothing from another host:
figures are data: URIs, and the page forbids itself everything else.
"""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    block: str = "text"


@dataclass(frozen=True)
class Note:
    """A paragraph that says what is missing, or how a number must not be read."""

    text: str
    block: str = "note"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    block: str = "items"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, such as the name of an experiment."""

    text: str
    block: str = "heading"


@dataclass(frozen=True)
class Table:
    """A table of texts; columns whose cells are all numbers stand to the right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    block: str = "table"

    @property
    def sides(self) -> list[str]:
        """The class of each column: n for numbers, t for text."""
        return ["n" if all(_is_number(row[at]) for row in self.rows) else "t" for at in range(len(self.head))]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of the PNG file beside the page.
        png: its bytes.
        alt: what it shows, for who cannot see it.
        caption: with n.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    block: str = "picture"

    @property
    def source(self) -> str:
        """The picture as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        width, height = struct.unpack(">II", self.png[16:24])
        return int(width), int(height)


Block = Text | Note | Items | Heading | Table | Picture


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        name: its anchor.
        title: its heading.
        blocks: what it holds.
    """

    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def pictures(self) -> list[Picture]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Picture)]

    def _repr_html_(self) -> str:
        """For a notebook: the section with its own style, under a heading of the second level."""
        return _templates().get_template("alone").render(section=self)


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """All sections as one page with a table of contents."""
    return _templates().get_template("page").render(title=title, subtitle=subtitle, sections=sections) + "\n"


def _is_number(cell: str) -> bool:
    plain = cell.replace(",", "").replace("%", "").replace("\N{MINUS SIGN}", "-").strip()
    if plain in ("", "-"):
        return True
    try:
        [float(part) for part in plain.split(" to ")]  # an interval is two of them
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _templates() -> "Environment":
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"style": _STYLE, "section": _SECTION, "alone": _ALONE, "page": _PAGE})
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


_STYLE = """\
.hcd { color: #1a1a1a; background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans",
  sans-serif; overflow-wrap: anywhere; }
.hcd h1, .hcd h2, .hcd h3 { line-height: 1.25; margin: 1.6em 0 0.5em; }
.hcd h1 { font-size: 1.7rem; margin-top: 0; }
.hcd h2 { font-size: 1.35rem; border-bottom: 1px solid #ccc; padding-bottom: 0.2em; }
.hcd h3 { font-size: 1.1rem; }
.hcd p, .hcd ul { margin: 0.6em 0; max-width: 46rem; }
.hcd .note { border-left: 4px solid #767676; background: #f4f4f4; padding: 0.5em 0.8em; white-space: pre-line; }
.hcd .scroll { overflow-x: auto; margin: 0 0 1.2em; }
.hcd table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.hcd .caption { color: #444; font-size: 0.875rem; margin: 1.2em 0 0.4em; }
.hcd th, .hcd td { padding: 0.25em 0.7em; border-bottom: 1px solid #ddd; vertical-align: top; }
.hcd th { border-bottom: 2px solid #888; vertical-align: bottom; }
.hcd .n { text-align: right; white-space: nowrap; }
.hcd .t { text-align: left; }
.hcd td.t { max-width: 28rem; min-width: 5rem; }
.hcd figure { margin: 1.2em 0; }
.hcd img { max-width: 100%; height: auto; display: block; }
.hcd figcaption { color: #444; font-size: 0.875rem; max-width: 46rem; margin-top: 0.3em; }
"""

_SECTION = """\
<section id="{{ section.name }}" aria-labelledby="{{ section.name }}-title">
<h2 id="{{ section.name }}-title">{{ section.title }}</h2>
{% for each in section.blocks %}
{% if each.block == "text" %}
<p>{{ each.text }}</p>
{% elif each.block == "note" %}
<p class="note">{{ each.text }}</p>
{% elif each.block == "items" %}
<ul>
{% for item in each["items"] %}
<li>{{ item }}</li>
{% endfor %}
</ul>
{% elif each.block == "heading" %}
<h3>{{ each.text }}</h3>
{% elif each.block == "table" %}
{% set sides = each.sides %}
<p class="caption">{{ each.caption }}</p>
<div class="scroll" role="region" aria-label="{{ each.caption }}" tabindex="0">
<table aria-label="{{ each.caption }}">
<thead><tr>{% for name in each.head %}<th scope="col" class="{{ sides[loop.index0] }}">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in each.rows %}
<tr>{% for cell in row %}<td class="{{ sides[loop.index0] }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% elif each.block == "picture" %}
{% set size = each.size %}
<figure>
<img src="{{ each.source }}" alt="{{ each.alt }}" width="{{ size[0] }}" height="{{ size[1] }}">
<figcaption>{{ each.caption }}</figcaption>
</figure>
{% endif %}
{% endfor %}
</section>
"""

_ALONE = """\
<div class="hcd">
<style>
{% include "style" %}
</style>
{% include "section" %}
</div>
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
{% include "style" %}
body { margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
nav ol { columns: 2; max-width: 46rem; padding-left: 1.6em; margin: 0.4em 0 0; }
nav a { color: #0b57a4; }
.subtitle { color: #444; }
@media (max-width: 40rem) { nav ol { columns: 1; } }
@media print {
  main { max-width: none; padding: 0; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
  h2, h3, .caption { break-after: avoid; }
  .hcd .scroll { overflow: visible; }
  .hcd table { font-size: 8pt; }
  .hcd .n { white-space: normal; }
}
</style>
</head>
<body class="hcd">
<main>
<header>
<h1>{{ title }}</h1>
<p class="subtitle">{{ subtitle }}</p>
<nav aria-label="Contents">
<ol>
{% for section in sections %}
<li><a href="#{{ section.name }}">{{ section.title }}</a></li>
{% endfor %}
</ol>
</nav>
</header>
{% for section in sections %}
{% include "section" %}
{% endfor %}
</main>
</body>
</html>
"""
