"""Data frames as tables below a notebook cell: a caption, a header above every column, numbers by column."""

import pandas as pd

from lib.report.formatting import count, decimals
from lib.report.page import Section, Table


def show_table(caption: str, frame: pd.DataFrame, *, places: int = 4) -> Section:
    """A data frame in the style of the report. pandas' own table has empty headers, and no caption.

    Args:
        caption: what the table shows; unique in the notebook, because screen readers list tables by it.
        frame: its index becomes the first columns, or is left out where it only numbers the rows.
        places: decimals of the columns that are no whole numbers.

    Raises:
        ValueError: the index has no name and holds more than row numbers.
    """
    if isinstance(frame.index, pd.RangeIndex) and frame.index.name is None:
        flat = frame
    elif None in frame.index.names:
        raise ValueError(f"the index of the table {caption!r} has no name: give it one with rename_axis")
    else:
        flat = frame.reset_index()
    columns = [_cells(flat.iloc[:, number], places) for number in range(flat.shape[1])]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Section("table", caption, [Table(caption, [str(name) for name in flat.columns], rows)])


def _cells(column: pd.Series, places: int) -> list[str]:
    """The cells of one column as texts; a dash for a missing value."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return [str(value) for value in column.fillna("-")]
    numbers = column.astype(float)
    if numbers.dropna().mod(1).eq(0).all():
        return [count(value) for value in numbers]
    return [decimals(value, places) for value in numbers]
