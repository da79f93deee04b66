"""Fetch outputs and logs of kernels, and verify them against their run.json."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import NoResponseError, UnexpectedResponseError
from launch.kaggle_api.types import Listing
from lib.evaluation.out_of_fold import ResultError, check_fold_scores
from lib.files import sha256_of, write_atomic
from lib.runtime.finished_folds import WEIGHTS_SUFFIX
from lib.runtime.run_record import (
    RECORD_NAME,
    FileRecord,
    RunRecord,
    RunRecordError,
    file_records,
    read_run_record,
)
from lib.validation import UNREADABLE

OUTPUTS, LOGS = "outputs", "logs"  # in the folder of a campaign
# At the start of a line in the log of a script; in the log of a notebook it follows the name of the error.
TRACEBACK = "Traceback (most recent call last)"
_SESSION_LINE = re.compile(r"\[ *\d+\.\d s\] ")  # of lib.runtime.session
_IGNORED = "Exception ignored in"  # Python's words for an error in a destructor or a thread at exit


class NoRecordError(LaunchError):
    """The output holds no run.json: the kernel did not finish."""


def peek_record(kaggle: Kaggle, slug: str, listing: Listing, *, folder: Path) -> dict[str, Any]:
    """The content of the run.json that a listing names, fetched beside the outputs in `folder`.

    Raises:
        NoRecordError: the listing names none.
        NoResponseError: it could not be fetched, or is not JSON.
    """
    if RECORD_NAME not in listing.files:
        raise NoRecordError(f"the output of {slug} holds no {RECORD_NAME}")
    path = _beside(folder, slug) / RECORD_NAME
    kaggle.fetch(listing.files[RECORD_NAME], path)
    try:
        content = json.loads(path.read_bytes())
    except UNREADABLE as error:
        raise NoResponseError(f"the {RECORD_NAME} of {slug} cannot be read: it is not JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise NoResponseError(f"the {RECORD_NAME} of {slug} is not a record")
    return content


def fetch_output(
    kaggle: Kaggle,
    slug: str,
    listing: Listing,
    content: dict[str, Any],
    *,
    kind: str,
    folder: Path,
    with_weights: bool = False,
) -> RunRecord:
    """Fetch the files that the record marks `fetch` into `folder`/`slug`, which appears whole or not at all.

    Files that an interrupted fetch left are not fetched again. Only names in the record are fetched; a name
    that leads out of the folder is refused. An output is refused, too, when the log of its run ends with an
    uncaught error, or when the scores of a fold are not those of its out-of-fold predictions.

    Args:
        kaggle: the account.
        slug: of the kernel.
        listing: where the files are.
        content: of run.json, from `peek_record`, which keeps the file beside.
        kind: the kind of kernel it must come from.
        folder: of all outputs.
        with_weights: fetch the files of weights, too, which the record does not mark.

    Raises:
        NoResponseError: a file is not listed, could not be fetched or is damaged: list again and continue.
        UnexpectedResponseError: the record, its names or its scores cannot be used, or the run failed.
        OSError: the disk is full.
    """
    beside, target = _beside(folder, slug), folder / slug
    # The log may be that of another run than the record: listings lag.
    if str(content.get("push_id", "")) in listing.log and (
        failure := uncaught_error(listing.log.splitlines())
    ):
        raise UnexpectedResponseError(
            f"the output of {slug} is not used: Kaggle calls its run complete, and its log ends with an "
            f"uncaught error ({failure})"
        )
    try:
        wanted = {
            name: entry
            for name, entry in file_records(content["files"]).items()
            if entry.fetch or (with_weights and name.endswith(WEIGHTS_SUFFIX))
        }
    except RunRecordError as error:
        raise UnexpectedResponseError(f"nothing of {slug} was fetched: its {RECORD_NAME} {error}") from error
    if missing := sorted(set(wanted) - set(listing.files)):
        raise NoResponseError(
            f"the output of {slug} is listed without {', '.join(missing)}, which its {RECORD_NAME} records"
        )
    for name, entry in sorted(wanted.items()):
        path = beside / name
        if path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256:
            continue
        kaggle.fetch(listing.files[name], path, size=entry.bytes, sha256=entry.sha256)
    try:
        record = read_run_record(beside, kind=kind, fetched_only=True)
        if kind == "train":
            check_fold_scores(record, beside)
    except (RunRecordError, ResultError) as error:
        raise UnexpectedResponseError(f"the output of {slug} cannot be used: {error}") from error
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    return record


def uncaught_error(log: Sequence[str]) -> str:
    """The error that ended a run, by the end of its log; empty where none did.

    A library may print a traceback of an error that was handled, and Python one of an error in a destructor
    ("Exception ignored in ..."). A traceback counts only where neither is so: after the last line that the
    kernel itself logged.

    Args:
        log: the lines of the log.
    """
    own = [number for number, line in enumerate(log) if _SESSION_LINE.match(line)]
    end = list(log[own[-1] + 1 :] if own else log)
    for number, line in enumerate(end):
        ignored = number > 0 and _IGNORED in end[number - 1]
        if TRACEBACK in line and not ignored:
            later = [text for text in end[number + 1 :] if text[:1].strip()]  # frames are indented
            return later[0] if later else "a traceback"
    return ""


def output_key(record: RunRecord) -> str:
    """The key of an output as an input: two outputs with the same key are the same input.

    The key of prepare is the data id and a hash of its tables and arrays, that of weights the hashes of its
    files.
    All other kernels compute something new with every run: their key is the push id.
    """
    return _key(record.kind, record.push_id, record.data_id, record.files)


def peeked_key(content: Mapping[str, Any]) -> str:
    """The `output_key` of an output of which only the run.json was fetched; empty if it cannot be used."""
    try:
        files = file_records(content.get("files"))
    except RunRecordError:
        return ""
    kind, push_id, data_id = (str(content.get(name, "")) for name in ("kind", "push_id", "data_id"))
    return _key(kind, push_id, data_id, files)


def data_id_of(key: str) -> str:
    """The data id in the key of a prepare output."""
    return key.partition("+")[0]


def _key(kind: str, push_id: str, data_id: str, files: Mapping[str, FileRecord]) -> str:
    if kind == "prepare":
        # The stain groups and slides in the tables decide the folds, and are no part of the data id.
        hashes = [f"{name} {entry.sha256}" for name, entry in sorted(files.items()) if _is_data(name)]
        return f"{data_id}+{hashlib.sha256(chr(10).join(hashes).encode()).hexdigest()[:16]}"
    if kind == "weights":
        return "+".join(sorted(entry.sha256[:16] for entry in files.values()))
    return push_id


def _is_data(name: str) -> bool:
    return name.endswith((".csv", ".npy"))


def log_file(folder: Path, slug: str) -> Path:
    """The file that keeps the log of a kernel, in the campaign in `folder`."""
    return folder / LOGS / f"{slug}.log"


def keep_log(folder: Path, slug: str, listing: Listing) -> Path:
    """Write the log of a run into the campaign in `folder`, and return its path."""
    path = log_file(folder, slug)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, listing.log)
    return path


def _beside(folder: Path, slug: str) -> Path:
    beside = folder / f".{slug}.part"
    beside.mkdir(parents=True, exist_ok=True)
    return beside
