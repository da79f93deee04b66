"""Validation of untrusted JSON and TOML values and of file names."""

import types
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, get_args, get_origin, get_type_hints

# The errors of reading JSON or TOML: another encoding is a ValueError, deep nesting a RecursionError.
UNREADABLE = (OSError, ValueError, RecursionError)
_LONGEST_NAME = 200  # bytes; file systems allow 255, and the name of an unfinished file is longer
_SHOWN = 60  # characters of a value in a message


def is_safe_name(name: str) -> bool:
    """True if a file of this name stays inside its folder on any system."""
    if not name.isprintable() or "\\" in name or ":" in name:  # null bytes and surrogates are not printable
        return False
    path = PurePosixPath(name)
    short = all(len(part.encode()) <= _LONGEST_NAME for part in path.parts)
    return bool(path.name) and short and not path.is_absolute() and ".." not in path.parts


def type_errors(kind: type, values: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """The differences between plain values and the fields of a dataclass: unknown names and wrong types.

    Args:
        kind: a dataclass of plain values, lists and tables of them.
        values: by the names of its fields; absent fields are not checked.
        but: fields that are checked elsewhere.
    """
    hints = get_type_hints(kind)
    problems = [f"{name[:_SHOWN]!r} is unknown" for name in values if name not in hints]
    for name, hint in hints.items():
        if name in values and name not in but and not _fits(values[name], hint):
            text = repr(values[name])
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            problems.append(
                f"{name} is {shown}, not {getattr(hint, '__name__', hint) if not get_args(hint) else hint}"
            )
    return problems


def _fits(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if hint is float:  # a whole number is accepted as a float, infinity and NaN are not
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
