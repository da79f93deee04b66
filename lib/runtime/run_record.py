"""Record of a run (run.json): the kernel, its config, inputs, devices, scores, and the hashes of its files.

A kernel writes it last. A reader accepts no output whose record is missing, incomplete, or does not match the
files.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lib.config import ConfigError, config_from_record
from lib.errors import KernelError, listed
from lib.files import sha256_of, write_atomic
from lib.validation import UNREADABLE, is_safe_name, type_errors

RECORD_NAME = "run.json"
RECORD_FORMAT = 2


class RunRecordError(KernelError):
    """The output of an earlier kernel cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class FileRecord:
    """One file of an output: its size, its SHA-256, and whether it is fetched to the user's machine."""

    bytes: int
    sha256: str
    fetch: bool


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json: ids are hexadecimal, `seconds` is per stage, `scores` has all results."""

    kind: str
    experiment: str
    config: dict[str, Any]
    push_id: str
    bundle_id: str
    git_commit: str
    data_id: str
    fold_table_id: str = ""
    checkpoint_format: int = 0
    fold: int = -1
    members: list[int] = field(default_factory=list)
    label_set: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    complete: bool = False
    format: int = RECORD_FORMAT

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files by name."""
        return {name: file.sha256 for name, file in self.files.items()}


def describe_files(
    folder: Path, names: Mapping[str, bool], *, hashes: Mapping[str, str] | None = None
) -> dict[str, FileRecord]:
    """Size and SHA-256 of files.

    Args:
        folder: with the files.
        names: their names; the value is true if the file is fetched to the user's machine.
        hashes: of large files, computed while they were written; the others are hashed here.
    """
    known = hashes or {}
    return {
        name: FileRecord(
            bytes=(folder / name).stat().st_size,
            sha256=known.get(name) or sha256_of(folder / name),
            fetch=fetch,
        )
        for name, fetch in sorted(names.items())
    }


def write_run_record(folder: Path, record: RunRecord) -> None:
    """Write run.json atomically. `complete` must be true: an incomplete run leaves no record."""
    assert record.complete, "a record is written once everything else is"
    write_atomic(folder / RECORD_NAME, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")


def peek_kind(folder: Path) -> str:
    """The kind of kernel in a folder's run.json; an empty text if it is absent or cannot be read."""
    return _peek(folder, "kind")


def _peek(folder: Path, name: str) -> str:
    try:
        content = json.loads((folder / RECORD_NAME).read_bytes())
    except UNREADABLE:
        return ""
    return str(content.get(name, "")) if isinstance(content, dict) else ""


def peek_push(folder: Path) -> str:
    """The push id in a folder's run.json; an empty text if it is absent or cannot be read."""
    return _peek(folder, "push_id")


def file_records(listed_files: object) -> dict[str, FileRecord]:
    """Validate the `files` of a run.json.

    Raises:
        RunRecordError: it is not a table of files, or a name leads out of the folder; every problem is
            listed.
    """
    if not isinstance(listed_files, dict):
        raise RunRecordError(f"lists its files as {type(listed_files).__name__}, not as a table of names.")
    problems, records = [], {}
    for name, entry in listed_files.items():
        if not is_safe_name(name):
            problems.append(f"{name!r} is not the name of a file in the folder")
        elif not isinstance(entry, dict) or set(entry) != {"bytes", "sha256", "fetch"}:
            problems.append(f"{name!r} must have bytes, sha256 and fetch, and nothing else")
        elif errors := type_errors(FileRecord, entry):
            problems += [f"{name!r}: {error}" for error in errors]
        elif entry["bytes"] < 0:
            problems.append(f"{name!r}: bytes = {entry['bytes']}")
        else:
            records[name] = FileRecord(**entry)
    if problems:
        raise RunRecordError(listed("lists its files in a way that is not valid:", problems))
    return records


def read_run_record(
    folder: Path, *, kind: str, hashed_by_reader: Collection[str] = (), fetched_only: bool = False
) -> RunRecord:
    """Read a record and check the folder's files against it.

    Args:
        folder: the output of a kernel.
        kind: the kind of kernel it must come from.
        hashed_by_reader: large files whose hash the caller checks when it reads them
            (`lib.data.tile_store.read_array`); only their size is checked here.
        fetched_only: check only the files marked `fetch`; the others were not downloaded.

    Raises:
        RunRecordError: no record, an incomplete one, one of another format or kind, or files that do not
            match.
    """
    path = folder / RECORD_NAME
    remedy = "Run that kernel again, to its end, and attach its new output."
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunRecordError(
            f"{folder} has no {RECORD_NAME}: the kernel that wrote it did not finish. {remedy}"
        ) from None
    except UNREADABLE as error:
        raise RunRecordError(f"{path} cannot be read ({error}). {remedy}") from error
    names = {item.name for item in fields(RunRecord)}
    if not isinstance(content, dict) or content.get("complete") is not True:
        raise RunRecordError(f"{path} does not have complete: true. {remedy}")
    if content.get("format") != RECORD_FORMAT or set(content) != names:
        raise RunRecordError(
            f"{path} has format {content.get('format')}, this code reads format {RECORD_FORMAT}. {remedy}"
        )
    if content["kind"] != kind:
        raise RunRecordError(
            f"{path} comes from a {content['kind']} kernel, not from {kind}. Attach the right output."
        )
    if wrong := type_errors(RunRecord, content, but=("files",)):
        raise RunRecordError(listed(f"{path} holds values of the wrong type:", wrong, remedy=remedy))
    try:
        config_from_record(content["config"])
    except ConfigError as error:
        raise RunRecordError(
            f"{path} was written by another version of this code: {error}\n{remedy}"
        ) from error
    try:
        record = RunRecord(**{**content, "files": file_records(content["files"])})
    except RunRecordError as error:
        raise RunRecordError(f"{path} {error}\n{remedy}") from error
    problems = []
    for name, entry in record.files.items():
        file = folder / name
        if fetched_only and not entry.fetch:
            continue
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != entry.bytes:
            problems.append(f"{name} has {file.stat().st_size:,} bytes, {entry.bytes:,} recorded")
        elif name not in hashed_by_reader and sha256_of(file) != entry.sha256:
            problems.append(f"{name} is damaged: its SHA-256 is not the recorded one")
    if problems:
        raise RunRecordError(listed(f"{folder} does not match its {RECORD_NAME}:", problems, remedy=remedy))
    return record
