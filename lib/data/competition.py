"""The competition's folder: train_labels.csv, sample_submission.csv, train/<id>.tif, test/<id>.tif."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import KernelError, listed, shorten
from lib.files import is_system_file

TRAIN_TILES = 220_025
TEST_TILES = 57_458
# Of data that cannot be used, which may be the competition's or a user's own.
REMEDY = (
    "Tiles of your own: `build_kernel.py import` writes this layout from pictures and a table. The "
    "competition's "
    "tiles: download them with `build_kernel.py download`; on Kaggle, attach the competition itself."
)


class CompetitionError(KernelError):
    """The competition's folder cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Competition:
    """The labelled and unlabelled tiles of the competition, or a part of them.

    Attributes:
        folder: with the tables and the tiles.
        train: id (str) and label (0 or 1, int64) of the tiles to learn from, sorted by id.
        test_ids: the ids to predict, in the order of sample_submission.csv.
        sample: the bytes of sample_submission.csv.
        labelled_order: the ids of all labelled tiles, in the order of train_labels.csv.
        holdout: id and label of the tiles that no fold learns from, sorted by id; empty without a hold-out.
    """

    folder: Path
    train: pd.DataFrame
    test_ids: list[str]
    sample: bytes
    labelled_order: list[str] = field(default_factory=list)
    holdout: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"id": [], "label": []}))

    @property
    def is_full(self) -> bool:
        """True for all tiles of the competition, false for a part of them."""
        labelled = len(self.train) + len(self.holdout)
        return labelled == TRAIN_TILES and len(self.test_ids) == TEST_TILES


def read_table(path: Path, columns: list[str], problems: list[str]) -> pd.DataFrame | None:
    """Read a CSV file as text and check its columns; every problem is appended to `problems`."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        problems.append(f"{path.name} is empty")
        return None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} is not a CSV file: {error}")
        return None
    # With too many values in a row pandas uses the first one as the row's name.
    if not isinstance(table.index, pd.RangeIndex):
        problems.append(f"{path.name} has rows with more values than its header has columns")
        return None
    if list(table.columns) != columns:
        problems.append(
            f"{path.name} has the columns {', '.join(table.columns)}; expected: {', '.join(columns)}"
        )
        return None
    if table.empty:
        problems.append(f"{path.name} has a header and no rows")
        return None
    duplicates = table["id"][table["id"].duplicated()].unique()
    if len(duplicates):
        problems.append(f"{path.name} names {len(duplicates):,} ids more than once: {shorten(duplicates)}")
    return table


def _tiles_in(folder: Path, problems: list[str]) -> set[str] | None:
    """The ids that have a file in train/ or test/, from one listing of the folder."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and not is_system_file(entry.name)
            ]
    except OSError:
        problems.append(f"the folder {folder.name}/ is missing or cannot be read")
        return None
    if not names:
        problems.append(f"the folder {folder.name}/ is empty")
        return None
    others = sorted(name for name in names if not name.endswith(".tif"))
    if others:
        problems.append(f"{folder.name}/ holds {len(others):,} files that are not .tif: {shorten(others)}")
    return {name.removesuffix(".tif") for name in names if name.endswith(".tif")}


def _compare(
    listed_ids: "pd.Series[str]", tiles: set[str], *, table: str, folder: str, problems: list[str]
) -> None:
    wanted = set(listed_ids)
    missing, extra = sorted(wanted - tiles), sorted(tiles - wanted)
    if missing:
        problems.append(f"{len(missing):,} ids of {table} have no file in {folder}/: {shorten(missing)}")
    if extra:
        problems.append(f"{len(extra):,} files in {folder}/ are not in {table}: {shorten(extra)}")


def read_competition(folder: Path, *, expect_full: bool) -> Competition:
    """Read the tables and compare them with the folders. No tile is opened.

    Args:
        folder: the competition's folder.
        expect_full: require all 220,025 and 57,458 tiles, as on Kaggle.

    Raises:
        CompetitionError: a table or a folder is wrong; every problem is listed.
    """
    problems: list[str] = []
    labels = read_table(folder / "train_labels.csv", ["id", "label"], problems)
    sample = read_table(folder / "sample_submission.csv", ["id", "label"], problems)
    train_tiles = _tiles_in(folder / "train", problems)
    test_tiles = _tiles_in(folder / "test", problems)
    if labels is not None:
        labels = labels.replace({"label": {"0.0": "0", "1.0": "1"}})  # what pandas writes after a merge
        wrong = labels[~labels["label"].isin(["0", "1"])]
        if len(wrong):
            shown = shorten([f"{row.id}: {row.label!r}" for row in wrong.itertuples()])
            problems.append(f"train_labels.csv has {len(wrong):,} labels that are not 0 or 1: {shown}")
        elif labels["label"].nunique() == 1:
            problems.append(
                f"train_labels.csv labels every tile {labels['label'].iloc[0]}: there is nothing to learn"
            )
        if train_tiles is not None:
            _compare(labels["id"], train_tiles, table="train_labels.csv", folder="train", problems=problems)
        if expect_full and len(labels) != TRAIN_TILES:
            problems.append(f"train_labels.csv has {len(labels):,} rows, the full data {TRAIN_TILES:,}")
    if sample is not None:
        if test_tiles is not None:
            _compare(
                sample["id"], test_tiles, table="sample_submission.csv", folder="test", problems=problems
            )
        if expect_full and len(sample) != TEST_TILES:
            problems.append(f"sample_submission.csv has {len(sample):,} rows, the full data {TEST_TILES:,}")
    if problems:
        lead = f"{folder} is not in the layout of the competition's data:"
        raise CompetitionError(listed(lead, problems, remedy=REMEDY))
    assert labels is not None and sample is not None
    train = labels.astype({"label": np.int64}).sort_values("id", ignore_index=True)
    return Competition(
        folder=folder,
        train=train,
        test_ids=sample["id"].tolist(),
        sample=(folder / "sample_submission.csv").read_bytes(),
        labelled_order=labels["id"].tolist(),
    )


def data_id(train: pd.DataFrame) -> str:
    """SHA-256 of the sorted `id,label` lines; members are averaged only if they agree in it."""
    pairs = sorted(zip(train["id"], train["label"].astype(int), strict=True))
    return hashlib.sha256("".join(f"{name},{label}\n" for name, label in pairs).encode()).hexdigest()
