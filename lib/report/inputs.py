"""What the kernels of a campaign left, read and verified: what is missing or damaged is named, and the rest is used."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lib.data.prepared import EDA, TEST_INDEX, TRAIN_INDEX, read_index
from lib.errors import KernelError
from lib.explain.hard_tiles import HardTileFiles
from lib.report.tile_figures import HardTile
from lib.runtime.inputs import find_outputs, list_mounts
from lib.runtime.run_record import RECORD_NAME, RunRecord, RunRecordError, peek_kind, read_run_record

OUTPUT_KINDS = ("prepare", "train", "inference", "search", "pretrain")
_TILE = (96, 96)
_Read = TypeVar("_Read")


class InputError(KernelError):
    """A file that a kernel left cannot be read as what it should be; the message names it."""


@dataclass(frozen=True)
class KernelOutput:
    """One verified output of a kernel."""

    folder: Path
    record: RunRecord

    def holds(self, name: str) -> bool:
        """Whether the record lists the file and marks it to be fetched, so that it was verified."""
        entry = self.record.files.get(name)
        return entry is not None and entry.fetch

    def read_table(self, name: str, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
        """A CSV file of the output.

        Raises:
            InputError: it is no table, or lacks a column.
        """
        table = self._read(name, partial(pd.read_csv, **options))
        if lacking := [column for column in columns if column not in table]:
            raise InputError(f"{self.folder.name}/{name} has no column {' and no '.join(lacking)}")
        return table

    def read_json(self, name: str) -> Any:
        """A JSON file of the output.

        Raises:
            InputError: it is no JSON.
        """
        return self._read(name, lambda path: json.loads(path.read_bytes()))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """A file with one JSON object a line.

        Raises:
            InputError: a line is no JSON object.
        """

        def parse(path: Path) -> list[dict[str, Any]]:
            lines = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
            if not all(isinstance(line, dict) for line in lines):
                raise ValueError("a line is no object")
            return lines

        return self._read(name, parse)

    def read_array(self, name: str) -> np.ndarray:
        """An array of the output; nothing is unpickled.

        Raises:
            InputError: it is no array.
        """
        array: np.ndarray = self._read(name, partial(np.load, allow_pickle=False))
        return array

    def read_picture(self, name: str) -> bytes:
        """A PNG file of the output.

        Raises:
            InputError: it is no PNG.
        """
        content = self._read(name, Path.read_bytes)
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise InputError(f"{self.folder.name}/{name} is no PNG file")
        return content

    def _read(self, name: str, how: Callable[[Path], _Read]) -> _Read:
        try:
            return how(self.folder / name)
        except (OSError, ValueError, EOFError) as error:  # pandas' parser errors are ValueErrors
            raise InputError(f"{self.folder.name}/{name} cannot be read ({error})") from error


@dataclass
class Inputs:
    """The verified outputs of a campaign.

    Attributes:
        prepare: the one output of its kind, or None.
        folds: the outputs of train kernels by experiment, in the order of the folds.
        inference: the one output of its kind, or None.
        searches: of search kernels.
        pretrains: of pretrain kernels.
        problems: by kind, what is wrong with outputs that are left out; under "" those whose kind cannot be told.
    """

    prepare: KernelOutput | None = None
    folds: dict[str, list[KernelOutput]] = field(default_factory=dict)
    inference: KernelOutput | None = None
    searches: list[KernelOutput] = field(default_factory=list)
    pretrains: list[KernelOutput] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def all_problems(self) -> list[str]:
        """Every output that is left out, and why."""
        return [problem for problems in self.problems.values() for problem in problems]

    def index(self) -> pd.DataFrame | None:
        """row, id, label, stain_group, slide of the labelled tiles; None where prepare is not there."""
        if self.prepare is None:
            return None
        return read_index(self.prepare.folder / TRAIN_INDEX)

    def test_tiles(self) -> int | None:
        """How many unlabelled tiles there are; None where prepare is not there."""
        return None if self.prepare is None else len(read_index(self.prepare.folder / TEST_INDEX))

    def exploration(self) -> dict[str, Any] | None:
        """eda.json; None where prepare is not there."""
        if self.prepare is None:
            return None
        found: dict[str, Any] = self.prepare.read_json(EDA)
        return found


def read_inputs(root: Path, *, first: Sequence[str] = ()) -> Inputs:
    """Find and verify every output below a folder, as it is mounted or as it was downloaded.

    An output that does not match its run.json is left out and named, as are two outputs that claim to be the same.

    Args:
        root: of the inputs.
        first: experiments in the order in which they are reported; others follow by name.
    """
    inputs = Inputs()
    found: dict[str, list[KernelOutput]] = {}
    for kind in OUTPUT_KINDS:
        for folder in find_outputs(root, kind):
            try:
                found.setdefault(kind, []).append(
                    KernelOutput(folder, read_run_record(folder, kind=kind, fetched_only=True))
                )
            except RunRecordError as error:
                inputs.problems.setdefault(kind, []).append(str(error))
    for mount in list_mounts(root):
        if (mount / RECORD_NAME).is_file() and not peek_kind(mount):
            inputs.problems.setdefault("", []).append(
                f"{mount.name}/{RECORD_NAME} cannot be read: run that kernel again"
            )
    inputs.prepare = _only(found.get("prepare", []), inputs, "prepare")
    inputs.inference = _only(found.get("inference", []), inputs, "inference")
    inputs.searches, inputs.pretrains = found.get("search", []), found.get("pretrain", [])
    by_experiment: dict[str, dict[int, list[KernelOutput]]] = {}
    for output in found.get("train", []):
        by_experiment.setdefault(output.record.experiment, {}).setdefault(output.record.fold, []).append(
            output
        )
    for name in sorted(
        by_experiment, key=lambda name: (list(first).index(name) if name in first else len(first), name)
    ):
        for fold, outputs in sorted(by_experiment[name].items()):
            if len(outputs) == 1:
                inputs.folds.setdefault(name, []).append(outputs[0])
            else:
                _say_twice(inputs, "train", f"fold {fold} of {name}", outputs)
    return inputs


def _only(outputs: list[KernelOutput], inputs: Inputs, kind: str) -> KernelOutput | None:
    if len(outputs) > 1:
        _say_twice(inputs, kind, f"the output of a {kind} kernel", outputs)
    return outputs[0] if len(outputs) == 1 else None


def _say_twice(inputs: Inputs, kind: str, what: str, outputs: Sequence[KernelOutput]) -> None:
    places = " and ".join(output.folder.name for output in outputs)
    inputs.problems.setdefault(kind, []).append(
        f"{what} is there {len(outputs)} times, in {places}: keep one of them"
    )


def read_hard_tiles(outputs: Sequence[KernelOutput]) -> tuple[dict[str, list[HardTile]], list[int]]:
    """The tiles that folds kept for people to look at, by kind, the hardest of all folds first; and the folds without any.

    Raises:
        InputError: table, tiles and maps of a fold do not fit each other.
    """
    cases: dict[str, list[HardTile]] = {}
    without = []
    for output in outputs:
        fold = output.record.fold
        names = HardTileFiles(fold)
        if not (output.holds(names.table) and output.holds(names.images)):
            without.append(fold)
            continue
        table = output.read_table(names.table, ("id", "label", "probability", "kind"), dtype={"id": str})
        tiles = output.read_array(names.images)
        # A network that cannot be explained leaves no maps; its mistakes are worth looking at all the same.
        maps = (
            output.read_array(names.maps)
            if output.holds(names.maps)
            else np.zeros((len(table), *_TILE), np.float32)
        )
        if (
            tiles.shape != (len(table), *_TILE, 3)
            or maps.shape != (len(table), *_TILE)
            or tiles.dtype != np.uint8
        ):
            shapes = f"{len(table)} rows, tiles {tiles.shape} {tiles.dtype}, maps {maps.shape}"
            raise InputError(
                f"{output.folder.name}: the files of {names.table} do not fit each other: {shapes}"
            )
        for at, row in enumerate(table.itertuples()):
            cases.setdefault(str(row.kind), []).append(
                HardTile(tiles[at], maps[at], float(row.probability), fold)
            )
    for kind, found in cases.items():
        # The most confident first: of what was called tumour the highest probability, of the rest the lowest.
        found.sort(
            key=lambda case: (
                -case.probability if kind in ("false_positive", "sure_tumour") else case.probability
            )
        )
    return cases, without
