"""What somebody else wrote: what reading it may raise, whether its values are of the right kind, where its names lead."""

import types
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, get_args, get_origin, get_type_hints

# Reading JSON or TOML: text in another encoding is a ValueError, deep nesting a RecursionError.
UNREADABLE = (OSError, ValueError, RecursionError)
_LONGEST_NAME = (
    200  # bytes of a file's name; file systems take 255, of which a name for the unfinished file needs some
)
_SHOWN = 60  # characters of a value in a message


def is_safe_name(name: str) -> bool:
    """Whether a file of this name stays inside the folder it is written to, on any system."""
    if not name.isprintable() or any(
        character in name for character in "\\:"
    ):  # null bytes and lone surrogates among them
        return False
    path = PurePosixPath(name)
    short = all(len(part.encode()) <= _LONGEST_NAME for part in path.parts)
    return bool(path.name) and short and not path.is_absolute() and ".." not in path.parts


def type_errors(kind: type, values: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """Where plain values do not fit a dataclass: fields missing, unknown, or not what their annotation says.

    Args:
        kind: a dataclass of plain values, lists and tables of them.
        values: by the names of its fields; those that are absent need a default, which is not looked at here.
        but: fields that are looked at elsewhere.
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
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    if hint is float:  # a whole number is a fine float; what is not finite is none
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
