"""The table of faults: for each fault of the emulated Kaggle, the tests of campaigns that meet it.

It is read from the code of the tests. `make docs` writes it into docs/testing.md, and a test fails while a
fault of launch/emulator/faults.py has none.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from launch.emulator.faults import SHARED_KINDS, SPECIAL_KINDS

ANY = "any request"
_FOLDER = Path(__file__).resolve().parent
_MOST_NAMES = 4  # in one row


def known_faults() -> list[tuple[str, str]]:
    """Place and kind of every fault; the place of a kind that many requests share is ANY."""
    return [(ANY, kind) for kind in SHARED_KINDS] + [
        (place, kind) for place, kinds in SPECIAL_KINDS.items() for kind in kinds
    ]


def faults_in_tests() -> dict[tuple[str, str], list[str]]:
    """The names of the tests of each fault: of a row of a table, or of a function."""
    tested: dict[tuple[str, str], list[str]] = {}
    for path in sorted(_FOLDER.glob("test_*.py")):
        for name, call in _faults_in(ast.parse(path.read_text(encoding="utf-8"))):
            place, kind = (ast.literal_eval(argument) for argument in call.args[:2])
            key = (ANY if kind in SHARED_KINDS else place, kind)
            if name not in tested.setdefault(key, []):
                tested[key].append(name)
    return tested


def _faults_in(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every Fault(...) of a module, with the key of its row, or the name of its function."""
    for node in tree.body:
        rows: list[tuple[str, ast.AST]] = []
        if isinstance(node, ast.FunctionDef):  # with its decorators
            rows = [(node.name.removeprefix("test_").replace("_", " "), node)]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            keys = node.value.keys
            rows = [
                (key.value, value)
                for key, value in zip(keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
        for name, part in rows:
            for call in ast.walk(part):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Fault":
                    yield name, call


def _rows_of(name: str) -> int:
    """The number of rows of a table in test_faults.py."""
    tree = ast.parse((_FOLDER / "test_faults.py").read_text(encoding="utf-8"))
    tables = {
        getattr(node.targets[0], "id", ""): node.value for node in tree.body if isinstance(node, ast.Assign)
    }
    table = tables[name]
    assert isinstance(table, ast.Dict)
    return len(table.keys)


def markdown() -> str:
    """The table for docs/testing.md, and how many rows FINISHES and STOPS have."""
    tested, (passing, staying) = faults_in_tests(), (_rows_of("FINISHES"), _rows_of("STOPS"))
    lines = [f"Campaigns with a fault that passes: {passing}; with a fault that stays: {staying}.", ""]
    lines += ["| on | fault | tests |", "|---|---|---|"]
    for place, kind in known_faults():
        names = tested.get((place, kind), [])
        more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        lines.append(f"| {place} | {kind} | {'; '.join(names[:_MOST_NAMES])}{more} |")
    return "\n".join(lines) + "\n"
