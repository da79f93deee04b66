"""Prepared data: the files that the prepare kernel writes and every later kernel reads."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config
from lib.data.competition import Competition, data_id, read_table
from lib.data.shared_memory import SharedMemory
from lib.data.stain_groups import complete_slides, read_slide_map, stain_groups
from lib.data.tiff import TILE_BYTES, TILE_SHAPE
from lib.data.tile_store import BuiltStore, StoreBuilder, StoreError, read_array
from lib.errors import KernelError, listed
from lib.files import write_atomic

logger = logging.getLogger(__name__)

TRAIN_TILES, TEST_TILES, HOLDOUT_TILES = "tiles-train.npy", "tiles-test.npy", "tiles-holdout.npy"
TRAIN_INDEX, TEST_INDEX, HOLDOUT_INDEX = "index-train.csv", "index-test.csv", "index-holdout.csv"
ARRAYS = (TRAIN_TILES, TEST_TILES, HOLDOUT_TILES)
SAMPLE, EDA = "sample_submission.csv", "eda.json"
SHEET, BRIGHTNESS, OUTLIERS = "tiles.png", "brightness.png", "outliers.png"
GROUPS, STAINS = "groups.png", "stains.png"
FOCUS, GROUP_STAINS, COPIES, SPLITS = "focus.png", "group-stains.png", "copies.png", "splits.png"
_READERS = 32  # threads: the mounted network file system is slow, but serves many requests at a time


class PreparedError(KernelError):
    """The prepared data are inconsistent or not valid."""


@dataclass(frozen=True)
class Prepared:
    """The tables of the prepared data; the tiles are still on disk.

    Attributes:
        folder: the output of the prepare kernel.
        hashes: SHA-256 of the arrays, which are checked when they are read.
        train: row, id, label, stain_group, slide; sorted by id, row r of the array is row r here.
        test: row, id; in the order of the sample.
        data_id: of the labelled tiles.
        holdout: like `train`, of the tiles that no fold learns from; None without a hold-out.
    """

    folder: Path
    hashes: Mapping[str, str]
    train: pd.DataFrame
    test: pd.DataFrame
    data_id: str
    holdout: pd.DataFrame | None = None

    def bytes_of(self, name: str) -> int:
        """The size of an array, on disk and in memory."""
        return (self.folder / name).stat().st_size

    def read_tiles(self, name: str, *, allocate: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
        """Read an array as (N, 96, 96, 3) uint8 in one sequential read, and check its hash.

        Args:
            name: TRAIN_TILES, TEST_TILES or HOLDOUT_TILES.
            allocate: returns memory of a given size in bytes, as uint8; by default new memory of this
                process.
        """
        return read_array(self.folder / name, sha256=self.hashes[name], allocate=allocate)

    def share_tiles(self, *, test_rows: np.ndarray | None = None) -> tuple[np.ndarray, SharedMemory]:
        """Read the labelled tiles, and test tiles after them, into memory that worker processes can map.

        Args:
            test_rows: (M,) rows of test tiles; none by default.

        Returns:
            (N + M, 96, 96, 3) uint8, 6 GB for all labelled tiles, and the memory that holds them.
        """
        rows = len(self.train) + (0 if test_rows is None else len(test_rows))
        memory = SharedMemory()
        tiles = memory.allocate(rows * TILE_BYTES).reshape(rows, *TILE_SHAPE)
        self.read_tiles(TRAIN_TILES, allocate=lambda size: tiles.reshape(-1)[:size])
        if test_rows is not None:
            tiles[len(self.train) :] = self.read_tiles(TEST_TILES)[test_rows]
        return tiles, memory


def read_prepared(folder: Path, *, recorded_data_id: str, hashes: Mapping[str, str]) -> Prepared:
    """Read and verify the tables of the prepared data; the arrays are verified when they are read.

    Args:
        folder: the output of the prepare kernel.
        recorded_data_id: the data id of its run.json.
        hashes: SHA-256 of its files by name, of its run.json.

    Raises:
        PreparedError: an index is not a table of tiles, or the index has another data id than run.json.
    """
    train, test = read_index(folder / TRAIN_INDEX), read_index(folder / TEST_INDEX)
    if (computed := data_id(train)) != recorded_data_id:
        raise PreparedError(
            f"{folder}: the index has data id {computed[:8]}..., run.json {recorded_data_id[:8]}...: "
            "prepare again"
        )
    holdout = read_index(folder / HOLDOUT_INDEX) if HOLDOUT_INDEX in hashes else None
    return Prepared(folder, hashes, train, test, computed, holdout)


def read_index(path: Path) -> pd.DataFrame:
    """Read an index of prepared tiles, with row numbers, labels and groups as int64.

    Raises:
        PreparedError: it is not such a table; every problem is listed.
    """
    problems: list[str] = []
    columns = ["row", "id"] if path.name == TEST_INDEX else ["row", "id", "label", "stain_group", "slide"]
    table = read_table(path, columns, problems)
    if table is not None:
        if table["row"].tolist() != [str(row) for row in range(len(table))]:
            problems.append(f"{path.name} does not number its rows from 0")
        if "label" in table and not table["label"].isin(["0", "1"]).all():
            problems.append(f"{path.name} has labels that are not 0 or 1")
        if "stain_group" in table and not table["stain_group"].str.fullmatch("[0-9]{1,9}").all():
            problems.append(f"{path.name} has stain groups that are not numbers")
    if problems:
        raise PreparedError(
            listed(f"{path} cannot be used:", problems, remedy="Run the prepare kernel again.")
        )
    assert table is not None
    numbers = [name for name in ("row", "label", "stain_group") if name in table]
    return table.astype(dict.fromkeys(numbers, np.int64))


def build_stores(
    competition: Competition, folder: Path, *, strict: bool
) -> dict[str, tuple[StoreBuilder, BuiltStore]]:
    """Build all tile arrays, resuming an interrupted run. The files of an earlier run are not replaced.

    Raises:
        StoreError: tiles cannot be read or do not match their ids, in any array.
    """
    stores, problems = {}, []
    for name, part, ids in _parts(competition):
        builder = StoreBuilder(folder, name, ids=ids)
        try:
            result = builder.build(
                competition.folder / part, readers=_READERS, strict=strict, folder_name=f"{part}/"
            )
        except StoreError as error:
            problems.append(str(error))
        else:
            stores[name] = (builder, result)
            names = f": {', '.join(result.mismatches)}" if result.mismatches else ""
            logger.info(
                "%s: %s tiles, %s of which do not match their SHA-1%s",
                name,
                f"{result.tiles:,}",
                f"{len(result.mismatches):,}",
                names,
            )
    if problems:
        raise StoreError("\n".join(problems))
    return stores


def _parts(competition: Competition) -> list[tuple[str, str, list[str]]]:
    """Name of the array, folder of the tiles and ids, of each part of the competition."""
    parts = [
        (TRAIN_TILES, "train", competition.train["id"].tolist()),
        (TEST_TILES, "test", competition.test_ids),
    ]
    if len(competition.holdout):
        parts.append((HOLDOUT_TILES, "train", competition.holdout["id"].tolist()))
    return parts


def bytes_to_write(competition: Competition, folder: Path) -> int:
    """Bytes that building the stores will still write, with figures and tables."""
    total = 32 << 20
    for name, _, ids in _parts(competition):
        builder = StoreBuilder(folder, name, ids=ids)
        total += max(builder.bytes - builder.bytes_on_disk, 0) + 200 * len(ids)
    return total


def index_tables(
    competition: Competition,
    features: np.ndarray,
    config: Config,
    slide_map: Path | None,
    *,
    holdout_features: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The tables row, id, label, stain_group, slide of the training tiles and of the hold-out.

    Args:
        competition: after its hold-out was taken out.
        features: (N, 7), of the training tiles (`lib.data.stain_groups.stain_features`).
        config: number of stain groups, and seed.
        slide_map: the tile-to-slide map, or None. Tiles that it does not name are grouped by stain.
        holdout_features: (M, 7), of the tiles of the hold-out; None without one. Both parts are grouped
            together, by their colours, so that a hold-out does not change what a group is.
    """
    labelled, all_features = competition.train, features
    if holdout_features is not None:
        labelled = pd.concat([competition.train, competition.holdout], ignore_index=True)
        all_features = np.concatenate([features, holdout_features])
    order = np.argsort(labelled["id"].to_numpy(dtype=str), kind="stable")
    table, all_features = labelled.iloc[order].reset_index(drop=True), all_features[order]
    groups = stain_groups(all_features, number=config.stain_groups, seed=config.seed)
    slides = np.full(len(table), "", dtype=object)
    if slide_map is not None:
        named = read_slide_map(slide_map, train_ids=table["id"].tolist(), test_ids=competition.test_ids)
        slides = complete_slides(named, groups)
        if unnamed := int((named == "").sum()):
            logger.warning(
                "%s names no slide for %s of %s labelled tiles: they are grouped by stain, apart from the "
                "slides. Folds by slide may then hold tiles of one slide on both sides",
                slide_map.name,
                f"{unnamed:,}",
                f"{len(named):,}",
            )
    table = table[["id", "label"]].assign(stain_group=groups, slide=slides)
    table["label"] = table["label"].astype(np.int64)
    inside = table["id"].isin(set(competition.holdout["id"]))
    train, holdout = (part.reset_index(drop=True) for part in (table[~inside], table[inside]))
    for part in (train, holdout):
        part.insert(0, "row", np.arange(len(part)))
    return train, holdout if holdout_features is not None else None


def publish(
    folder: Path,
    *,
    competition: Competition,
    index: pd.DataFrame,
    holdout: pd.DataFrame | None,
    eda: dict[str, Any],
    builders: dict[str, StoreBuilder],
    figures: Sequence[str],
) -> dict[str, bool]:
    """Write the tables and put the arrays in place; the figures are already there.

    Returns:
        The names of all files; the value is true if the file is fetched to the user's machine.
    """
    for builder in builders.values():
        builder.publish()
    test = pd.DataFrame({"row": np.arange(len(competition.test_ids)), "id": competition.test_ids})
    write_atomic(folder / TRAIN_INDEX, index.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / TEST_INDEX, test.to_csv(index=False, lineterminator="\n"))
    if holdout is not None:
        write_atomic(folder / HOLDOUT_INDEX, holdout.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / SAMPLE, competition.sample)
    write_atomic(folder / EDA, json.dumps(eda, indent=1) + "\n")
    return {
        TRAIN_TILES: False,
        TEST_TILES: False,
        TRAIN_INDEX: True,
        TEST_INDEX: True,
        SAMPLE: True,
        EDA: True,
        **({HOLDOUT_TILES: False, HOLDOUT_INDEX: True} if holdout is not None else {}),
        **dict.fromkeys(figures, True),
    }
