"""Numbers as the report writes them: one way for each kind, and words for what is not there."""

import math
import re
from typing import Any, TypeGuard

ABSENT = "-"  # in a table, where a value does not exist


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimals(value: Any, places: int = 4) -> str:
    """A number with so many decimals; a dash where there is none."""
    return f"{value:.{places}f}" if is_number(value) else ABSENT


def count(value: Any) -> str:
    """A whole number with commas; a dash where there is none."""
    return f"{int(value):,}" if is_number(value) else ABSENT


def percent(share: Any, places: int = 1) -> str:
    """A share of 1 as a percentage; a dash where there is none."""
    return f"{100 * share:.{places}f} %" if is_number(share) else ABSENT


def interval(low: Any, high: Any, places: int = 4) -> str:
    """Two ends of an interval; a dash where there is none."""
    return f"{low:.{places}f} to {high:.{places}f}" if is_number(low) and is_number(high) else ABSENT


def several(number: int, one: str, many: str = "") -> str:
    """A count with its noun: 1 fold, 5 folds."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def file_name(what: str, experiment: str) -> str:
    """The name of a figure's file; whatever an experiment is called, it stays in its folder."""
    return f"{what}-{re.sub(r'[^A-Za-z0-9_-]', '_', experiment)}.png"


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, what is not a number as None; for JSON."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
