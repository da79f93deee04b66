"""Data frames as tables of the notebook: every column has a header, numbers keep their kind."""

import numpy as np
import pandas as pd
import pytest

from lib.report.frame_table import show_table


def cells(frame: pd.DataFrame, **options: int) -> tuple[list[str], list[list[str]]]:
    [table] = show_table("a table", frame, **options).blocks
    return list(table.head), [list(row) for row in table.rows]


def test_the_index_is_a_column_where_it_has_a_name_and_row_numbers_are_left_out() -> None:
    frame = pd.DataFrame({"label": [0, 1, 1], "x": [0.25, 0.5, 1.0]})
    by_label = frame.groupby("label").agg(tiles=("x", "size"), mean=("x", "mean"))
    assert cells(by_label) == (["label", "tiles", "mean"], [["0", "1", "0.2500"], ["1", "2", "0.7500"]])
    assert cells(frame, places=1) == (["label", "x"], [["0", "0.2"], ["1", "0.5"], ["1", "1.0"]])


def test_missing_values_are_dashes_and_whole_numbers_have_no_decimals() -> None:
    frame = pd.DataFrame(
        {"n": [57458.0, np.nan], "s": ["smoke", None], "x": [1e-3, np.nan], "b": [True, False]}
    )
    assert cells(frame)[1] == [["57,458", "smoke", "0.0010", "True"], ["-", "-", "-", "False"]]


def test_every_header_has_a_text_and_the_caption_names_the_table() -> None:
    frame = pd.DataFrame({"tiles": [1, 2]}, index=pd.Index(["min", "max"], name="of the groups"))
    html = show_table("Sizes", frame)._repr_html_()
    assert html.count("<th ") == 2 and "></th>" not in html and '<table aria-label="Sizes"' in html
    assert len(repr(show_table("Sizes", frame))) < 100  # what the notebook stores as text
    with pytest.raises(ValueError, match="'Sizes' has no name: give it one with rename_axis"):
        show_table("Sizes", frame.rename_axis(None))
