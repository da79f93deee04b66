"""Submission file: write submission.csv and check it against sample_submission.csv. Needs no torch."""

import io

import numpy as np
import pandas as pd

from lib.errors import KernelError, listed


class SubmissionError(KernelError):
    """Kaggle would refuse the submission, or it would be worthless; the message lists every reason."""


def submission_csv(ids: list[str], probabilities: np.ndarray) -> str:
    """The text of submission.csv: id and the probability of tumour with twelve significant digits."""
    table = pd.DataFrame({"id": ids, "label": np.asarray(probabilities, dtype=np.float64)})
    text: str = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    return text


def check_submission(text: str, sample: bytes) -> None:
    """Check a submission against the sample: columns, ids, order, values.

    Args:
        text: the content of submission.csv.
        sample: the content of sample_submission.csv.

    Raises:
        SubmissionError: it differs; every difference is listed.
    """
    problems: list[str] = []
    wanted = pd.read_csv(io.BytesIO(sample), dtype=str, keep_default_na=False)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SubmissionError(f"the submission is not a CSV file: {error}") from error
    # With too many values in a row pandas uses the first one as the row's name.
    if not isinstance(table.index, pd.RangeIndex):
        raise SubmissionError("the submission has rows with more values than its header has columns")
    if list(table.columns) != list(wanted.columns):
        raise SubmissionError(
            f"the submission has the columns {list(table.columns)}, the sample {list(wanted.columns)}"
        )
    if len(table) != len(wanted):
        problems.append(f"{len(table):,} rows, the sample has {len(wanted):,}")
    if twice := int(table["id"].duplicated().sum()):
        problems.append(f"{twice:,} ids occur more than once")
    missing, extra = set(wanted["id"]) - set(table["id"]), set(table["id"]) - set(wanted["id"])
    if missing:
        problems.append(f"{len(missing):,} ids of the sample are missing, such as {min(missing)}")
    if extra:
        problems.append(f"{len(extra):,} ids are not in the sample, such as {min(extra)}")
    if not missing and not extra and not twice and table["id"].tolist() != wanted["id"].tolist():
        problems.append("the ids are not in the order of the sample")
    values = pd.to_numeric(table["label"], errors="coerce").to_numpy(dtype=np.float64)
    if bad := int((~np.isfinite(values)).sum()):
        problems.append(f"{bad:,} values are not finite numbers")
    finite = values[np.isfinite(values)]
    if outside := int(((finite < 0) | (finite > 1)).sum()):
        problems.append(f"{outside:,} values are outside 0 to 1")
    if len(finite) > 1 and np.ptp(finite) == 0:
        problems.append(f"all values are {finite[0]:g}")
    if problems:
        raise SubmissionError(listed("the submission does not match sample_submission.csv:", problems))
