"""Hold-out: labelled tiles that no fold learns from, chosen by MLE-bench's rule or by a file of ids."""

import dataclasses
import hashlib
import logging
from pathlib import Path

import pandas as pd

from lib.data.competition import Competition
from lib.errors import KernelError, listed
from lib.validation import UNREADABLE

logger = logging.getLogger(__name__)

MLE_BENCH = "mlebench"
# MD5 of the three tables that MLE-bench makes of the full data (its checksums.yaml of this competition).
_MLE_BENCH_TABLES = {
    "train_labels.csv": "806d8b128caeeaf4d0091bd6034cd0fb",
    "sample_submission.csv": "8016b8be0087d487ff38ac46f646a01d",
    "answers.csv": "949d1acc553f3a04b89262f6e24e9fc7",
}


class HoldoutError(KernelError):
    """A hold-out cannot be made; the message lists every problem."""


def hold_out(competition: Competition, name: str, *, file: Path | None = None) -> Competition:
    """Move the tiles of a hold-out from `train` to `holdout`.

    Args:
        competition: with all labelled tiles in `train`.
        name: `mlebench`, or the name of a file of ids.
        file: that file: CSV with a column `id`; other columns are not read.

    Raises:
        HoldoutError: the file names no tiles, unknown tiles or all tiles, a part has one class only, or the
            full data do not give MLE-bench's three tables.
    """
    held_out = _mle_bench_ids(competition) if file is None else _read_ids(file, competition)
    train = competition.train
    inside = train["id"].isin(held_out)
    parts = {"hold-out": train[inside], "rest": train[~inside]}
    problems = [
        f"the {part} has no tile with label {label}"
        for part, table in parts.items()
        for label in (0, 1)
        if not (table["label"] == label).any()
    ]
    if problems:
        raise HoldoutError(listed(f"holdout = {name} cannot be used:", problems))
    if file is None and competition.is_full:
        _prove_mle_bench(competition, held_out)
    logger.info(
        "hold-out %s: %s of %s labelled tiles, which no fold learns from",
        name,
        f"{int(inside.sum()):,}",
        f"{len(train):,}",
    )
    return dataclasses.replace(
        competition,
        train=train[~inside].reset_index(drop=True),
        holdout=train[inside].reset_index(drop=True),
    )


def _mle_bench_ids(competition: Competition) -> set[str]:
    """The ids of MLE-bench's test set.

    MLE-bench splits the ids in the order of train_labels.csv; the hold-out's share of the labelled tiles is
    the test tiles' share of all tiles (openai/mle-bench, histopathologic-cancer-detection/prepare.py).
    """
    from sklearn.model_selection import train_test_split

    labelled, test = len(competition.train), len(competition.test_ids)
    _, held_out = train_test_split(
        competition.labelled_order, test_size=test / (labelled + test), random_state=0
    )
    return set(held_out)


def mle_bench_tables(competition: Competition, held_out: set[str]) -> dict[str, bytes]:
    """The three tables as MLE-bench writes them, by name, from a competition before its hold-out.

    Rows are in the order of train_labels.csv; the sample has label 0 everywhere.
    """
    labels = competition.train.set_index("id").loc[competition.labelled_order].reset_index()
    inside = labels["id"].isin(held_out)
    tables = {
        "train_labels.csv": labels[~inside],
        "sample_submission.csv": labels[inside].assign(label=0),
        "answers.csv": labels[inside],
    }
    return {name: table.to_csv(index=False, lineterminator="\n").encode() for name, table in tables.items()}


def _prove_mle_bench(competition: Competition, held_out: set[str]) -> None:
    problems = []
    for name, content in mle_bench_tables(competition, held_out).items():
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 != _MLE_BENCH_TABLES[name]:
            problems.append(f"{name} has the MD5 {md5}, MLE-bench's has {_MLE_BENCH_TABLES[name]}")
    if problems:
        raise HoldoutError(
            listed(
                "this is not MLE-bench's split:",
                problems,
                remedy="Compare train_labels.csv with the competition's (its rows must be in their order), "
                "or name the tiles in a file: --holdout FILE.csv.",
            )
        )
    logger.info("hold-out mlebench: its three tables have MLE-bench's MD5")


def _read_ids(path: Path, competition: Competition) -> set[str]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, *UNREADABLE) as error:
        raise HoldoutError(f"{path.name} is not a CSV file: {error}") from error
    if "id" not in table.columns:
        columns = ", ".join(map(str, table.columns))
        raise HoldoutError(f"{path.name} has no column id, only: {columns}")
    ids = table["id"]
    problems = []
    if not len(ids):
        problems.append("it names no tile")
    if twice := int(ids.duplicated().sum()):
        problems.append(f"it names {twice:,} tiles more than once, such as {ids[ids.duplicated()].iloc[0]}")
    if tests := sorted(set(ids) & set(competition.test_ids)):
        problems.append(f"it names {len(tests):,} test tiles, such as {tests[0]}: their labels are not known")
    if unknown := sorted(set(ids) - set(competition.labelled_order) - set(tests)):
        problems.append(f"it names {len(unknown):,} tiles that are not labelled, such as {unknown[0]}")
    if problems:
        remedy = "A hold-out is a CSV file with a column id, of labelled tiles only."
        raise HoldoutError(listed(f"{path.name} cannot be used as a hold-out:", problems, remedy=remedy))
    return set(ids)
