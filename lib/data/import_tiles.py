"""Import of a user's own tiles: pictures and a table become a folder in competition layout. Needs no torch.

The competition's layout is train/<id>.tif and test/<id>.tif, where the id is the SHA-1 of the pixels, with
train_labels.csv and sample_submission.csv.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data.pictures import PicturesError, check_pictures, list_pictures, read_pictures
from lib.data.tiff import TILE_SHAPE, encode_tile
from lib.data.tile_table import TileTable, match_names, read_tile_table
from lib.errors import KernelError, listed, shorten
from lib.files import write_atomic

H5_SUFFIXES = (".h5", ".hdf5")
SLIDE_MAP = "slide-map/slides.csv"  # in a folder of its own, for --attach
IMPORTED, TEST_LABELS = "imported.csv", "test_labels.csv"
_BLOCK = 1024  # tiles in memory at a time
_TEST_SPLIT = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)


class ImportTilesError(KernelError):
    """Tiles cannot be imported; the message lists every problem. Nothing was written."""


@dataclass
class _Source:
    """Tiles to import: names, and a way to read them in blocks."""

    names: list[str]
    folder: Path | None = None
    array: Any = None  # of an h5 file
    changes: list[str] = field(default_factory=list)

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        """Some tiles in blocks: their names and (n, 96, 96, 3) uint8."""
        for start in range(0, len(names), _BLOCK):
            part = names[start : start + _BLOCK]
            if self.folder is not None:
                yield part, read_pictures(self.folder, part)
            else:
                rows = [int(name) for name in part]
                yield part, np.asarray(self.array[rows[0] : rows[-1] + 1])[np.array(rows) - rows[0]]


def import_tiles(
    source: Path,
    *,
    table: Path | None,
    out: Path,
    test: Path | None = None,
    exclude: Path | None = None,
    test_share: float = 0.1,
    skip_bad: bool = False,
) -> list[str]:
    """Write a folder in competition layout from tiles and a table.

    Labelled tiles become training tiles. Test tiles are those of `test`; else the tiles without a label; else
    a share of the labelled ones, whole groups where groups are known, whose labels are kept in a file of
    their own.

    Args:
        source: a folder of pictures, or the x file of a split of PatchCamelyon (.h5).
        table: the CSV file of labels (`lib.data.tile_table`), or the y file (.h5); None: the y file beside x.
        out: the folder to write; absent or empty.
        test: a folder of pictures to predict.
        exclude: a text or CSV file whose first column names tiles to leave out.
        test_share: of the labelled tiles, where nothing else is a test tile.
        skip_bad: leave out pictures that cannot be used.

    Returns:
        What was changed and written, a sentence each.

    Raises:
        KernelError: pictures, the table or the folder cannot be used; every problem is listed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ImportTilesError(f"{out} exists and is not empty: name another folder with --out, or remove it")
    if source.suffix.lower() in H5_SUFFIXES:
        tiles, labels = _open_h5(source, table)
    else:
        if table is None:
            raise ImportTilesError("a table of labels is missing: name a CSV file with --table")
        tiles = _open_folder(source, skip_bad=skip_bad)
        labels = read_tile_table(table, tiles.names)
    said = [*tiles.changes]
    if labels.unmatched:
        count = len(labels.unmatched)
        said.append(
            f"{count:,} rows of the table name no tile, and are left out: {shorten(labels.unmatched)}"
        )
    excluded = _excluded(exclude, tiles.names, said)
    rows = pd.DataFrame({"tile": [name for name in tiles.names if name not in excluded]})
    rows = rows.merge(labels.table, on="tile", how="left")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("train", "test"):
        (part / name).mkdir(parents=True)
    try:
        rows["id"] = _write(tiles, rows["tile"].tolist(), part / "train")
        rows = _without_copies(rows, said)
        unlabelled = rows["label"].isna()
        if test is not None:
            rows = rows[~unlabelled].assign(part="train")
            if dropped := int(unlabelled.sum()):
                said.append(f"{dropped:,} tiles have no label, and are left out")
            rows = _add_test(rows, test, part, said, skip_bad=skip_bad)
        elif unlabelled.any():
            rows["part"] = np.where(unlabelled, "test", "train")
            said.append(f"{int(unlabelled.sum()):,} tiles have no label: they are the test tiles")
        else:
            drawn = _draw(rows, test_share)
            rows["part"] = np.where(drawn, "test", "train")
            whole = f", whole groups by {labels.grouping}" if labels.grouping else ""
            said.append(
                f"every tile has a label: {int(drawn.sum()):,} of {len(rows):,} were drawn as test "
                f"tiles{whole}; "
                f"their labels are in {TEST_LABELS}, for `predict --labels`"
            )
        _finish(part, rows, labels, said)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    counts = rows["part"].value_counts()
    positives = int((rows.loc[rows["part"] == "train", "label"] == 1).sum())
    said.append(
        f"{out}: {counts['train']:,} labelled tiles ({positives:,} of them tumour) and {counts['test']:,} "
        "test tiles"
    )
    return said


def _open_folder(folder: Path, *, skip_bad: bool) -> _Source:
    """The pictures of a folder, each decoded once.

    Raises:
        PicturesError: pictures cannot be used.
    """
    pictures = list_pictures(folder)
    checked = check_pictures(folder, pictures.pictures)
    problems = [f"{name}: {reason}" for name, reason in checked.bad.items()]
    names = [name for name in pictures.pictures if name not in checked.bad]
    lead = f"{len(problems):,} of {len(pictures.pictures):,} pictures of {folder} cannot be used:"
    if problems and (not skip_bad or not names):
        remedy = "Correct or remove them, or import the others with --skip-bad."
        raise PicturesError(listed(lead, problems, remedy=remedy))
    changes = [listed(f"{lead} they are left out", problems)] if problems else []
    if pictures.ignored:
        changes.append(f"{len(pictures.ignored):,} other files are ignored: {shorten(pictures.ignored)}")
    renamed = sum(Path(name).suffix != ".tif" for name in names)
    changes += checked.sentences()
    changes.append(
        f"{len(names):,} pictures are written as 96 x 96 RGB TIFF ({renamed:,} were other formats); their "
        "names are "
        f"the SHA-1 of their pixels, and {IMPORTED} has the old names"
    )
    return _Source(names, folder=folder, changes=changes)


def _open_h5(source: Path, table: Path | None) -> tuple[_Source, TileTable]:
    """The tiles and labels of the train or valid split of PatchCamelyon, with slides where its meta file is.

    Raises:
        ImportTilesError: h5py is not installed, a file is missing or is another one, or it is the test split.
    """
    stem = re.sub(r"_?x$", "", source.stem)
    labels = table if table is not None else source.with_name(f"{stem}_y{source.suffix}")
    if named := [path.name for path in (source, labels) if _TEST_SPLIT.search(path.stem.replace("_", " "))]:
        raise ImportTilesError(
            f"{' and '.join(named)}: the test split of PatchCamelyon is refused, because it holds hidden "
            "labels of "
            "this competition. Use the splits train and valid"
        )
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ImportTilesError(
            "h5 files need the package h5py, which is not installed: .venv/bin/python -m pip install h5py"
        ) from error
    if missing := [str(path) for path in (source, labels) if not path.is_file()]:
        raise ImportTilesError(f"{' and '.join(missing)} is missing (unpack files that end in .gz first)")
    try:
        array, truth = h5py.File(source)["x"], np.asarray(h5py.File(labels)["y"]).reshape(-1)
        shape, kind = tuple(array.shape), array.dtype
    except (OSError, KeyError) as error:
        raise ImportTilesError(
            f"{source} and {labels} are no x and y file of PatchCamelyon: {error}"
        ) from error
    if (
        shape[1:] != TILE_SHAPE
        or kind != np.uint8
        or len(truth) != shape[0]
        or not np.isin(truth, (0, 1)).all()
    ):
        raise ImportTilesError(
            f"{source.name} holds {shape} {kind} and {labels.name} {len(truth):,} labels, not N x 96 x 96 x "
            "3 uint8 "
            "and N labels 0 or 1"
        )
    names = [f"{row:06d}" for row in range(shape[0])]
    rows = pd.DataFrame({"tile": names, "label": truth.astype(np.int64)})
    changes = [
        f"{len(names):,} tiles of {source.name} are written as TIFF; their names are the SHA-1 of their "
        "pixels",
        "PatchCamelyon is the source of the competition's tiles, test tiles included: never submit to the "
        "competition what learnt from it, and never look a test tile up in it",
    ]
    grouping, meta = "", source.with_name(f"{stem}_meta.csv")
    if meta.is_file():
        slides = pd.read_csv(meta, dtype=str)
        if "wsi" in slides and len(slides) == len(rows):
            rows["group"], grouping = slides["wsi"], "wsi"
            changes.append(f"the slides are those of {meta.name}")
    return _Source(names, array=array, changes=changes), TileTable(rows, grouping, [])


def _excluded(path: Path | None, names: Sequence[str], said: list[str]) -> set[str]:
    """The tiles that a file of names leaves out."""
    if path is None:
        return set()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    wanted = [line.split(",")[0].strip().strip('"') for line in lines if line.strip()]
    matched, several = match_names(wanted, names)
    if several:
        raise ImportTilesError(
            f"{len(several):,} names in {path.name} fit several tiles, use their paths: {shorten(several)}"
        )
    found = {tile for tile in matched if tile is not None}
    said.append(f"{len(found):,} tiles are left out, as {path.name} says")
    # The first line may be the header of a column.
    unknown = [name for name, tile in list(zip(wanted, matched, strict=True))[1:] if tile is None]
    if unknown:
        said.append(f"{len(unknown):,} names in {path.name} are those of no tile: {shorten(unknown)}")
    return found


def _write(tiles: _Source, names: Sequence[str], folder: Path) -> list[str]:
    """Write tiles under their ids, and return the ids."""
    ids = []
    for _, block in tiles.blocks(names):
        for pixels in block:
            ids.append(hashlib.sha1(pixels.tobytes(), usedforsecurity=False).hexdigest())
            (folder / f"{ids[-1]}.tif").write_bytes(encode_tile(pixels))
    return ids


def _without_copies(rows: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """The tiles with each id once; of copies, one with a label.

    Raises:
        ImportTilesError: copies have different labels.
    """
    labelled = rows[rows["label"].notna()]
    numbers = labelled.groupby("id")["label"].nunique()
    if contradictory := numbers.index[numbers > 1].tolist():
        pairs = [", ".join(labelled.loc[labelled["id"] == name, "tile"]) for name in contradictory]
        raise ImportTilesError(
            listed(
                f"{len(pairs):,} times pictures with the same pixels have different labels:",
                pairs,
                remedy="Correct the labels, or leave them out with --exclude.",
            )
        )
    once = rows.sort_values("label", kind="stable").drop_duplicates("id").sort_index().reset_index(drop=True)
    if copies := len(rows) - len(once):
        said.append(f"{copies:,} pictures are copies of another one, pixel by pixel, and are left out")
    return once


def _add_test(
    rows: pd.DataFrame, folder: Path, part: Path, said: list[str], *, skip_bad: bool
) -> pd.DataFrame:
    """The rows with the test tiles of a folder; copies of labelled tiles are left out."""
    tiles = _open_folder(folder, skip_bad=skip_bad)
    said += [f"{folder.name}: {text}" for text in tiles.changes]
    test = pd.DataFrame(
        {"tile": tiles.names, "id": _write(tiles, tiles.names, part / "test"), "part": "test"}
    )
    once = test.drop_duplicates("id")
    once = once[~once["id"].isin(rows["id"])]
    if copies := len(test) - len(once):
        said.append(f"{copies:,} test tiles are copies of other tiles, and are left out")
    return pd.concat([rows, once], ignore_index=True)


def _draw(rows: pd.DataFrame, share: float) -> np.ndarray:
    """(N,) bool: the test tiles, whole groups where they are known, else a share of each label.

    Raises:
        ImportTilesError: too few tiles or groups for two parts with both labels.
    """
    generator = np.random.default_rng(0)
    labels = rows["label"].to_numpy()
    drawn = np.zeros(len(rows), dtype=bool)
    if "group" in rows:
        for group in generator.permutation(np.unique(rows["group"])):
            if drawn.mean() >= share:
                break
            drawn |= (rows["group"] == group).to_numpy()
    else:
        for label in (0, 1):
            own = np.flatnonzero(labels == label)
            drawn[generator.permutation(own)[: max(1, round(share * len(own)))]] = True
    if len(np.unique(labels[~drawn])) < 2 or not drawn.any():
        raise ImportTilesError(
            f"{len(rows):,} tiles are too few to draw test tiles from: the others would not have both "
            "labels. Name "
            "test tiles with --test DIR, or label more tiles"
        )
    return drawn


def _finish(part: Path, rows: pd.DataFrame, labels: TileTable, said: list[str]) -> None:
    """Move the test tiles, remove tiles that are left out, and write the tables.

    Raises:
        ImportTilesError: one label only is left, or no test tile.
    """
    train, test = rows[rows["part"] == "train"], rows[rows["part"] == "test"]
    problems = []
    if train["label"].nunique() < 2:
        problems.append(
            f"{len(train):,} labelled tiles with {train['label'].nunique()} label: both are needed"
        )
    if test.empty:
        problems.append("no test tile is left")
    if problems:
        raise ImportTilesError(listed("nothing was imported:", problems))
    for name in test["id"]:
        if (old := part / "train" / f"{name}.tif").is_file():
            old.rename(part / "test" / old.name)
    for name, kept in (("train", set(train["id"])), ("test", set(test["id"]))):
        for path in (part / name).iterdir():
            if path.stem not in kept:
                path.unlink()
    _table(part / "train_labels.csv", train[["id", "label"]].astype({"label": int}))
    _table(part / "sample_submission.csv", test[["id"]].assign(label=0))
    if test["label"].notna().any():
        _table(part / TEST_LABELS, test[["id", "label"]].dropna().astype({"label": int}))
    columns = [name for name in ("id", "part", "tile", "label", "group") if name in rows]
    _table(part / IMPORTED, rows[columns].astype({"label": "Int64"}))
    if "group" in train and (train["group"].fillna("") != "").all():
        (part / SLIDE_MAP).parent.mkdir()
        _table(part / SLIDE_MAP, train[["id", "group"]].rename(columns={"group": "wsi"}))
        said.append(
            f"the groups ({labels.grouping}) are in {SLIDE_MAP}: train with --set fold_split=slide "
            f"--set slide_map={Path(SLIDE_MAP).name} --attach DIR/{Path(SLIDE_MAP).parent}"
        )


def _table(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))
