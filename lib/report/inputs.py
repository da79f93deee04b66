"""Outputs of a campaign's kernels: found, verified and read.

An output that cannot be used is left out and named; the others are used.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lib.data.prepared import EDA, TEST_INDEX, TRAIN_INDEX, read_index
from lib.errors import KernelError
from lib.explain.augmented_tiles import augmented_tiles_name
from lib.explain.hard_tiles import HardTileFiles
from lib.report.tile_figures import HardTile
from lib.runtime.inputs import find_outputs, list_mounts
from lib.runtime.run_record import RECORD_NAME, RunRecord, RunRecordError, peek_kind, read_run_record

OUTPUT_KINDS = ("prepare", "train", "inference", "search", "pretrain")
_TILE = (96, 96)
_Content = TypeVar("_Content")


class InputError(KernelError):
    """A file of a kernel's output cannot be read in its format; the message names it."""


@dataclass(frozen=True)
class KernelOutput:
    """One verified output of a kernel."""

    folder: Path
    record: RunRecord

    def holds(self, name: str) -> bool:
        """Whether run.json lists the file and marks it to be fetched, so that it was verified."""
        entry = self.record.files.get(name)
        return entry is not None and entry.fetch

    def read_table(self, name: str, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
        """A CSV file of the output.

        Raises:
            InputError: it is not a table, or a column is missing.
        """
        table = self._read(name, partial(pd.read_csv, **options))
        if missing := [column for column in columns if column not in table]:
            raise InputError(f"{self.folder.name}/{name} has no column {' and no '.join(missing)}")
        return table

    def read_json(self, name: str) -> Any:
        """A JSON file of the output.

        Raises:
            InputError: it is not JSON.
        """
        return self._read(name, lambda path: json.loads(path.read_bytes()))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """A file with one JSON object a line.

        Raises:
            InputError: a line is not a JSON object.
        """

        def parse(path: Path) -> list[dict[str, Any]]:
            text = path.read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(line, dict) for line in lines):
                raise ValueError("a line is not a JSON object")
            return lines

        return self._read(name, parse)

    def read_array(self, name: str) -> np.ndarray:
        """A .npy file of the output; pickled objects are refused.

        Raises:
            InputError: it is not an array.
        """
        array: np.ndarray = self._read(name, partial(np.load, allow_pickle=False))
        return array

    def read_picture(self, name: str) -> bytes:
        """A PNG file of the output.

        Raises:
            InputError: it is not a PNG file.
        """
        content = self._read(name, Path.read_bytes)
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise InputError(f"{self.folder.name}/{name} is not a PNG file")
        return content

    def _read(self, name: str, parse: Callable[[Path], _Content]) -> _Content:
        try:
            return parse(self.folder / name)
        except (OSError, ValueError, EOFError) as error:  # the parser errors of pandas are ValueErrors
            raise InputError(f"{self.folder.name}/{name} cannot be read ({error})") from error


@dataclass
class Inputs:
    """The verified outputs of a campaign.

    Attributes:
        prepare: the output of the prepare kernel, or None.
        folds: the outputs of train kernels by experiment, in the order of the folds.
        inference: the output of the inference kernel, or None.
        searches: the outputs of search kernels.
        pretrains: the outputs of pretrain kernels.
        problems: by kind, why outputs are left out; under "" those whose kind cannot be read.
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
        """row, id, label, stain_group, slide of the labelled tiles; None without an output of prepare."""
        if self.prepare is None:
            return None
        return read_index(self.prepare.folder / TRAIN_INDEX)

    def test_tiles(self) -> int | None:
        """The number of unlabelled tiles; None without an output of prepare."""
        return None if self.prepare is None else len(read_index(self.prepare.folder / TEST_INDEX))

    def eda(self) -> dict[str, Any] | None:
        """The content of eda.json; None without an output of prepare."""
        if self.prepare is None:
            return None
        content: dict[str, Any] = self.prepare.read_json(EDA)
        return content


def read_inputs(root: Path, *, first: Sequence[str] = ()) -> Inputs:
    """Find and verify every output below a folder, whether it is mounted or was downloaded.

    An output that does not match its run.json is left out and named, as are outputs that claim to be the same
    one.

    Args:
        root: of the inputs.
        first: experiments in the order in which they are reported; others follow by name.
    """
    inputs = Inputs()
    by_kind: dict[str, list[KernelOutput]] = {kind: [] for kind in OUTPUT_KINDS}
    for kind, outputs in by_kind.items():
        for folder in find_outputs(root, kind):
            try:
                outputs.append(KernelOutput(folder, read_run_record(folder, kind=kind, fetched_only=True)))
            except RunRecordError as error:
                inputs.problems.setdefault(kind, []).append(str(error))
    for mount in list_mounts(root):
        if (mount / RECORD_NAME).is_file() and not peek_kind(mount):
            problem = f"{mount.name}/{RECORD_NAME} cannot be read: run that kernel again"
            inputs.problems.setdefault("", []).append(problem)
    inputs.prepare = _single(by_kind["prepare"], inputs, "prepare")
    inputs.inference = _single(by_kind["inference"], inputs, "inference")
    inputs.searches, inputs.pretrains = by_kind["search"], by_kind["pretrain"]
    by_experiment: dict[str, dict[int, list[KernelOutput]]] = {}
    for output in by_kind["train"]:
        folds = by_experiment.setdefault(output.record.experiment, {})
        folds.setdefault(output.record.fold, []).append(output)
    order = {name: number for number, name in enumerate(first)}
    for name in sorted(by_experiment, key=lambda name: (order.get(name, len(order)), name)):
        for fold, outputs in sorted(by_experiment[name].items()):
            if len(outputs) == 1:
                inputs.folds.setdefault(name, []).append(outputs[0])
            else:
                _name_duplicates(inputs, "train", f"fold {fold} of {name}", outputs)
    return inputs


def _single(outputs: list[KernelOutput], inputs: Inputs, kind: str) -> KernelOutput | None:
    if len(outputs) > 1:
        _name_duplicates(inputs, kind, f"the output of a {kind} kernel", outputs)
    return outputs[0] if len(outputs) == 1 else None


def _name_duplicates(inputs: Inputs, kind: str, subject: str, outputs: Sequence[KernelOutput]) -> None:
    folders = " and ".join(output.folder.name for output in outputs)
    problem = f"{subject} is present {len(outputs)} times, in {folders}: keep one of them"
    inputs.problems.setdefault(kind, []).append(problem)


def read_history(output: KernelOutput, member: int) -> list[dict[str, Any]]:
    """The lines of a network's history, one an epoch; none where the file is absent.

    Raises:
        InputError: a line is not a JSON object.
    """
    name = f"history-{output.record.fold}-member-{member}.jsonl"
    return output.read_lines(name) if output.holds(name) else []


def read_augmented_tiles(outputs: Sequence[KernelOutput]) -> np.ndarray | None:
    """(n, 1 + k, 96, 96, 3) uint8 of the first fold that kept some: tiles, and k augmentations of each.

    Raises:
        InputError: the file holds another array.
    """
    for output in outputs:
        name = augmented_tiles_name(output.record.fold)
        if not output.holds(name):
            continue
        tiles = output.read_array(name)
        if tiles.ndim != 5 or tiles.shape[2:] != (*_TILE, 3) or tiles.dtype != np.uint8 or not tiles.size:
            raise InputError(f"{output.folder.name}/{name} holds {tiles.shape} {tiles.dtype}, not tiles")
        return tiles
    return None


def read_hard_tiles(outputs: Sequence[KernelOutput]) -> tuple[dict[str, list[HardTile]], list[int]]:
    """The hard tiles of all folds by kind, the hardest first; and the folds that kept none.

    Raises:
        InputError: the table, the images and the maps of a fold do not fit each other.
    """
    by_kind: dict[str, list[HardTile]] = {}
    folds_without = []
    for output in outputs:
        names = HardTileFiles(output.record.fold)
        if not (output.holds(names.table) and output.holds(names.images)):
            folds_without.append(output.record.fold)
            continue
        for kind, tile in _hard_tiles_of(output, names):
            by_kind.setdefault(kind, []).append(tile)
    for kind, tiles in by_kind.items():
        # The most confident first: the highest probability of what was called tumour, the lowest of the rest.
        called_tumour = kind in ("false_positive", "sure_tumour")
        tiles.sort(key=attrgetter("probability"), reverse=called_tumour)
    return by_kind, folds_without


def _hard_tiles_of(output: KernelOutput, names: HardTileFiles) -> list[tuple[str, HardTile]]:
    """(kind, tile) of every row of a fold's table."""
    table = output.read_table(names.table, ("id", "label", "probability", "kind"), dtype={"id": str})
    images = output.read_array(names.images)
    # A network that cannot be explained has no maps; its errors are shown all the same.
    maps = np.zeros((len(table), *_TILE), np.float32)
    if output.holds(names.maps):
        maps = output.read_array(names.maps)
    fits = images.shape == (len(table), *_TILE, 3) and maps.shape == (len(table), *_TILE)
    if not fits or images.dtype != np.uint8:
        shapes = f"{len(table)} rows, images {images.shape} {images.dtype}, maps {maps.shape}"
        raise InputError(f"{output.folder.name}: the files of {names.table} do not fit each other: {shapes}")
    return [
        (str(row.kind), HardTile(image, map_, float(row.probability), output.record.fold))
        for row, image, map_ in zip(table.itertuples(), images, maps, strict=True)
    ]
