"""Formatting of numbers in the report: a function for each kind of number, a dash for a missing value."""

import math
import re
from typing import Any, TypeGuard

ABSENT = "-"  # a table cell without a value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimals(value: Any, places: int = 4) -> str:
    """A number with this many decimals; a dash where there is none."""
    return f"{value:.{places}f}" if is_number(value) else ABSENT


def count(value: Any) -> str:
    """A whole number with thousands separators; a dash where there is none."""
    return f"{int(value):,}" if is_number(value) else ABSENT


def percent(share: Any, places: int = 1) -> str:
    """A share between 0 and 1 as a percentage; a dash where there is none."""
    return f"{100 * share:.{places}f} %" if is_number(share) else ABSENT


def interval(low: Any, high: Any, places: int = 4) -> str:
    """The two ends of an interval; a dash where there is none."""
    return f"{low:.{places}f} to {high:.{places}f}" if is_number(low) and is_number(high) else ABSENT


def several(number: int, singular: str, plural: str = "") -> str:
    """A count with its noun: 1 fold, 5 folds."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def file_name(figure: str, experiment: str) -> str:
    """The name of a figure's PNG file; characters that could leave the folder are replaced."""
    return f"{figure}-{re.sub(r'[^A-Za-z0-9_-]', '_', experiment)}.png"


def plain(value: Any) -> Any:
    """The value for JSON: NumPy's numbers as Python's, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
