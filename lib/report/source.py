"""Source code of the library, shown in a notebook: whole functions and classes, folded, with their lines.

The files are read, not imported: a report needs no torch, and shows the code that does.
"""

import ast
import html
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from lib.report.page import Section, Table

# nbconvert gives code in an output the font of the text, and breaks its lines.
_STYLE = "font-family: monospace; white-space: pre; overflow-x: auto"
_KEYBOARD = 'tabindex="0"'  # long lines are scrolled to by the arrow keys, which need the focus


@dataclass(frozen=True)
class Source:
    """Functions and classes of one module, as Jupyter shows them below a cell.

    Attributes:
        path: the file, as in the repository: lib/model/network.py.
        parts: name, first line and text of each.
    """

    path: str
    parts: tuple[tuple[str, int, str], ...]

    def __repr__(self) -> str:
        """One line for the notebook's text; the code itself is in the HTML."""
        return f"<source of {self.path}: {', '.join(name for name, _, _ in self.parts)}>"

    def __str__(self) -> str:
        """The code, for `print`."""
        return "\n\n".join(text for _, _, text in self.parts)

    def _repr_html_(self) -> str:
        folded = []
        for name, line, text in self.parts:
            end = line + text.count("\n")
            title = f"<code>{html.escape(name)}</code> in {html.escape(self.path)}, lines {line} to {end}"
            folded.append(f"<details><summary>{title}</summary>{_highlighted(text)}</details>")
        return "\n".join(folded)


def show_source(module: str, *names: str) -> Source:
    """The source of functions, classes or methods (`Class.method`) of a module; without names the whole file.

    Args:
        module: such as lib.model.network; it is not imported.
        names: in the order in which they are shown.

    Raises:
        ValueError: there is no such module, or it does not define one of the names.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ValueError(f"there is no module {module}: list_sources() names all of them")
    path = Path(found.origin)
    text = path.read_text(encoding="utf-8")
    shown = "/".join(path.parts[-len(module.split(".")) :])
    if not names:
        return Source(shown, (("the whole file", 1, text.rstrip("\n")),))
    lines, places = text.splitlines(), _definitions(ast.parse(text))
    if missing := [name for name in names if name not in places]:
        raise ValueError(f"{shown} defines no {' and no '.join(missing)}; it has {', '.join(places)}")
    parts = [(name, *places[name]) for name in names]
    return Source(
        shown, tuple((name, first, "\n".join(lines[first - 1 : last])) for name, first, last in parts)
    )


def list_sources() -> Section:
    """Name, lines and purpose of every module that the notebook carries or imports from the dataset."""
    root = Path(__file__).resolve().parents[2]
    rows = []
    for path in sorted(path for top in ("lib", "kernels") for path in (root / top).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if purpose := ast.get_docstring(ast.parse(text)):
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            rows.append((module, f"{text.count(chr(10)):,}", purpose.splitlines()[0]))
    table = Table(f"{len(rows)} modules", ("module", "lines", "purpose"), rows)
    return Section("code", "The code", [table])


def _definitions(tree: ast.Module) -> dict[str, tuple[int, int]]:
    """First and last line of every function, class and method, decorators included."""
    places = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            places[node.name] = _lines_of(node)
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            places |= {f"{node.name}.{method.name}": _lines_of(method) for method in methods}
    return places


def _lines_of(node: ast.FunctionDef | ast.ClassDef) -> tuple[int, int]:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or node.lineno


def _highlighted(code: str) -> str:
    """The code as HTML, with the classes that Jupyter and nbconvert colour; plain without Pygments."""
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:
        return f'<div class="highlight"><pre {_KEYBOARD} style="{_STYLE}">{html.escape(code)}</pre></div>'
    formatter = HtmlFormatter(cssclass="highlight", prestyles=_STYLE)
    shown = str(highlight(code, PythonLexer(stripnl=False), formatter))
    return shown.replace("<pre ", f"<pre {_KEYBOARD} ", 1)
