"""Keys of a JSON document, and those that docs/json.md lists."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "json.md"


def documented_keys(section: str) -> set[str]:
    """The keys in the table of a section."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    keys = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert keys and len(keys) == len(set(keys)), f"docs/json.md, section {section}"
    return set(keys)


def compare_keys(section: str, *documents: dict[str, Any]) -> None:
    """Every key of the documents is in the table of the section, and every key there is in a document."""
    wanted = documented_keys(section)
    prefixes = {key[:end] for key in wanted for end in range(len(key)) if key[end] in ".["}
    found = {(key, empty) for document in documents for key, empty in _leaves(document, "", wanted, prefixes)}
    unknown = {key for key, empty in found if key not in wanted and not (empty and key in prefixes)}
    assert not unknown, f"docs/json.md does not list {sorted(unknown)}"
    absent = wanted - {key for key, _ in found}
    assert not absent, f"docs/json.md lists what is not printed: {sorted(absent)}"


def _leaves(value: Any, path: str, wanted: set[str], prefixes: set[str]) -> Iterator[tuple[str, bool]]:
    """The path of every value that holds no others, and whether it is null or empty."""
    if isinstance(value, dict) and value:
        is_open = f"{path}.*" in wanted or f"{path}.*" in prefixes
        for name, item in value.items():
            inner = f"{path}.{'*' if is_open else name}".lstrip(".")
            yield from (
                [(inner, False)] if inner in wanted and is_open else _leaves(item, inner, wanted, prefixes)
            )
    elif isinstance(value, list) and value and path not in wanted:
        for item in value:
            yield from _leaves(item, f"{path}[]", wanted, prefixes)
    else:
        yield path, value in (None, [], {})
