"""A submission that Kaggle would refuse, or that would be worthless, is an error."""

import io
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.inference.submission import SubmissionError, check_submission, submission_csv

IDS = [f"{number:040x}" for number in (9, 3, 7, 1, 5)]  # in no order
SAMPLE = ("id,label\n" + "".join(f"{name},0\n" for name in IDS)).encode()
GOOD = np.array([0.1, 0.9, 0.5, 1e-7, 1.0])


def _problems(text: str) -> str:
    with pytest.raises(SubmissionError) as refused:
        check_submission(text, SAMPLE)
    return str(refused.value)


def _text(values: list[object], ids: list[str] | None = None) -> str:
    return "id,label\n" + "".join(f"{name},{value}\n" for name, value in zip(ids or IDS, values, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_what_is_written_passes_and_keeps_its_order(values: list[float]) -> None:
    text = submission_csv(IDS, np.array(values))
    back = pd.read_csv(io.StringIO(text), dtype={"id": str})
    assert back["id"].tolist() == IDS
    np.testing.assert_allclose(back["label"], values, rtol=1e-9, atol=0)
    if back["label"].nunique() > 1:
        check_submission(text, SAMPLE)
    else:
        assert "all values are" in _problems(text)


def test_close_probabilities_do_not_tie() -> None:
    text = submission_csv(IDS[:2], np.array([0.99999999901, 0.99999999902]))
    assert len(set(pd.read_csv(io.StringIO(text))["label"])) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_text(list(GOOD[:4]), IDS[:4]), "4 rows, the sample has 5"),
        (_text(list(GOOD[:4]), IDS[:4]), f"1 ids of the sample are missing, such as {IDS[4]}"),
        (_text(list(GOOD), [*IDS[:4], "f" * 40]), "1 ids are not in the sample, such as fff"),
        (_text(list(GOOD), [*IDS[:4], IDS[0]]), "1 ids occur more than once"),
        (_text(list(GOOD), sorted(IDS)), "not in the order of the sample"),
        (_text([*GOOD[:4], "nan"]), "1 values are not finite"),
        (_text([*GOOD[:4], ""]), "1 values are not finite"),
        (_text([*GOOD[:3], "high", "-inf"]), "2 values are not finite"),
        (_text([*GOOD[:4], 1.0000001]), "1 values are outside 0 to 1"),
        (_text([*GOOD[:4], -1e-9]), "1 values are outside 0 to 1"),
        (_text([0.5] * 5), "all values are 0.5"),
        (_text(list(GOOD)).replace("id,label", "id,probability"), "columns"),
        (_text(list(GOOD)).replace("id,label\n", ""), "columns"),
        ("label,id\n" + "".join(f"0.{at},{name}\n" for at, name in enumerate(IDS)), "columns"),
        (_text(list(GOOD)) + "one,two,three\n", "not a CSV file"),
        ("id,label\n", "0 rows, the sample has 5"),
        ("", "not a CSV file"),
    ],
)
def test_each_defect_is_reported(text: str, said: str) -> None:
    assert said in _problems(text)


def test_an_index_column_does_not_slip_through() -> None:
    frame = pd.DataFrame({"id": IDS, "label": GOOD})
    assert "columns" in _problems(frame.to_csv())


def test_rows_with_a_value_too_many_do_not_slip_through() -> None:
    shifted = "id,label\n" + "".join(f"{at},{name},0.{at}\n" for at, name in enumerate(IDS))
    assert _problems(shifted)


def test_defects_are_reported_together() -> None:
    text = _text([0.5, "nan", 2.0, 0.5, 0.5], [*IDS[:3], IDS[0], "f" * 40])
    found = _problems(text)
    for piece in ("more than once", "are missing", "not in the sample", "not finite", "outside 0 to 1"):
        assert piece in found


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace("\n", "\r\n"), lambda text: text.rstrip("\n")],
    ids=["crlf", "no end"],
)
def test_what_kaggle_takes_is_not_refused(change: Callable[[str], str]) -> None:
    check_submission(change(submission_csv(IDS, GOOD)), SAMPLE)
