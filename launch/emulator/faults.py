"""Faults that a user or a test injects into the emulated Kaggle, and the requests that they affect.

A fault names where it occurs (`on`), its kind, and its requests: those whose slug contains `slug`, from the
`nth` one (default 1), `times` in a row (default 1; 0 for all later ones). `value` is a parameter of some
kinds.

| on | kind | the service |
|---|---|---|
| any API method; upload, output, log | 400 401 403 404 409 500 502 503 | refuses; value: the message |
| | 429 | refuses; value: seconds in Retry-After, default 1 |
| | reset-before | resets the connection before the request takes effect |
| any API method | reset-after | takes effect, sends half of the answer, resets the connection |
| | html-after | takes effect and answers with an HTML page |
| | empty | answers `{}`; the request takes no effect |
| any API method; output, log | timeout | waits, then resets; a method takes effect; value: seconds (1) |
| any API method; upload, output, log | html | answers with an HTML page; the request takes no effect |
| SaveKernel | capacity, empty-kernel | refuses, as if all sessions were in use |
| | quota | refuses, as if the weekly GPU quota were used up |
| | drop-sources | makes a version without any of its sources and names them in the answer |
| | wrong-slug | files the version under another slug |
| | pushed-over | cancels the run and makes a version over it, by hand; value: id of a campaign instead |
| | error | answers 200 with an error; value: its text (required) |
| GetKernelSessionStatus | status | answers with this status; value: the status (required) |
| | stale | answers with the status of the version before |
| ListKernelSessionOutput | missing | leaves files out; value: a part of their names (required) |
| | truncated | lists one file and no token for the next page |
| | traversal | lists one more file, named `../x` |
| | stale | lists the output of the version before |
| ListKernelSessionOutput; log | surrogates | ends each text of the log in lone surrogates |
| ListDatasetFiles | flat | leaves out the files in folders |
| | no-path | lists files in folders by their names alone |
| GetAcceleratorQuotaStatistics | shrunk | allows other GPU hours a week; value: the hours (required) |
| upload (PUT of a file) | 503 | keeps half of the bytes, then refuses |
| | reset | keeps half of the bytes, then resets the connection |
| output (GET of a file) | expired | answers 403 with an HTML page |
| | short | sends half of the file as if it were whole |
| | cut | sends half of the file, then resets the connection |
| session (a run) | error, cancelled | ends in this state at once |
| | held-slot | is cancelled at once, and holds its session until the kernel is deleted |
| | endless | stays in state RUNNING |
| | no-output | completes, but lists no file |
| | no-mount | starts without the kernels it reads from |
| | replaced-input | starts just after another campaign replaced its first input; value: the new data id |
| | traceback | completes with its output, and its log ends with a traceback |
| | wrong-scores | completes; the AUC of a fold in its run.json is 0.05 less than that of its predictions |
| dataset (a version) | old-version | is listed late; value: seconds, default 1 |
| | failed | processing fails |
| | drop-file | loses one file |
| score (a submission) | pending | never gets a score |
| | error | fails in evaluation |

A first push that is refused for capacity or quota leaves a kernel without a version, which refuses all later
pushes.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from lib.validation import UNREADABLE

# HTTP statuses that refuse a request, with their default messages.
REFUSALS = {
    "400": "Bad request",
    "401": "Unauthenticated",
    "403": "Permission denied",
    "404": "Not found",
    "409": "Conflict",
    "429": "Too many requests",
    "500": "Internal error",
    "502": "Bad gateway",
    "503": "Service unavailable",
}
METHODS = (
    "IntrospectToken",
    "StartBlobUpload",
    "GetDatasetStatus",
    "GetDataset",
    "ListDatasetFiles",
    "CreateDataset",
    "CreateDatasetVersion",
    "SaveKernel",
    "GetKernelSessionStatus",
    "ListKernelSessionOutput",
    "GetKernel",
    "ListKernels",
    "ListKernelFiles",
    "DeleteKernel",
    "GetAcceleratorQuotaStatistics",
    "StartSubmissionUpload",
    "CreateSubmission",
    "ListSubmissions",
    "GetSubmission",
    "GetSubmissionLimits",
    "GetCompetition",
    "ListCompetitions",
    "ListDataFiles",
    "DownloadDataFile",
    "DownloadDataFiles",
)
# Places of faults besides the methods of the API.
PLACES = ("upload", "output", "log", "session", "dataset", "score")
_CONNECTION = (*REFUSALS, "reset-before")
_METHOD = (*_CONNECTION, "reset-after", "html", "html-after", "timeout", "empty")
# The kinds of each place or method that has kinds of its own; all other methods have those of _METHOD.
_KINDS = {
    "SaveKernel": (
        *_METHOD,
        "capacity",
        "quota",
        "empty-kernel",
        "drop-sources",
        "wrong-slug",
        "error",
        "pushed-over",
    ),
    "GetKernelSessionStatus": (*_METHOD, "status", "stale"),
    "ListKernelSessionOutput": (*_METHOD, "missing", "truncated", "traversal", "stale", "surrogates"),
    "ListDatasetFiles": (*_METHOD, "flat", "no-path"),
    "GetAcceleratorQuotaStatistics": (*_METHOD, "shrunk"),
    "upload": (*_CONNECTION, "html", "reset"),
    "output": (*_CONNECTION, "html", "timeout", "expired", "short", "cut"),
    "log": (*_CONNECTION, "html", "timeout", "surrogates"),
    "session": (
        "error",
        "endless",
        "cancelled",
        "held-slot",
        "no-output",
        "no-mount",
        "replaced-input",
        "traceback",
        "wrong-scores",
    ),
    "dataset": ("old-version", "failed", "drop-file"),
    "score": ("pending", "error"),
}
# For the tests and their documentation: the kinds that many requests share, and those of one place only.
SHARED_KINDS = _METHOD
SPECIAL_KINDS = {
    place: tuple(kind for kind in kinds if kind not in _METHOD) for place, kinds in _KINDS.items()
}
_TEXT_VALUES = (
    ("SaveKernel", "error"),
    ("GetKernelSessionStatus", "status"),
    ("ListKernelSessionOutput", "missing"),
)
_NUMBER_VALUES = ("timeout", "429", "old-version", "shrunk")


@dataclass(frozen=True)
class Fault:
    """One fault; the table at the top of this module explains all kinds.

    Attributes:
        on: a method of the API or one of `PLACES`.
        kind: of the fault.
        slug: only requests about a kernel or dataset whose slug contains this text; for an uploaded file its
            name.
        nth: the first such request that fails, counted from 1.
        times: number of requests in a row that fail; 0 for all later ones.
        value: seconds, a status, a message, or a part of a file's name.
    """

    on: str
    kind: str
    slug: str = ""
    nth: int = 1
    times: int = 1
    value: Any = None

    def problems(self) -> list[str]:
        """The reasons why the fault would never occur, or not as intended; empty for a valid one."""
        if self.on not in PLACES and self.on not in METHODS:
            return [f"on = {self.on!r} is neither a method of the API nor one of {', '.join(PLACES)}"]
        problems = []
        kinds = _KINDS.get(self.on, _METHOD)
        if self.kind not in kinds:
            problems.append(f"kind = {self.kind!r} is unknown on {self.on}; use one of {', '.join(kinds)}")
        if self.nth < 1 or self.times < 0:
            problems.append("nth must be at least 1, and times at least 0 (0: always)")
        if (self.on, self.kind) in _TEXT_VALUES and not (isinstance(self.value, str) and self.value):
            problems.append(f"{self.kind} on {self.on} needs a text as value")
        if self.kind in _NUMBER_VALUES and not isinstance(self.value, int | float | None):
            problems.append(f"{self.kind} needs a number as value")
        if self.kind == "shrunk" and self.value is None:
            problems.append("shrunk needs the hours of a week as value")
        return problems


class Faults:
    """The faults of a running server; it counts the requests of each from its start.

    Raises:
        LaunchError: a fault is not valid.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        if problems := [f"{fault}: {problem}" for fault in faults for problem in fault.problems()]:
            raise LaunchError("faults cannot be used:\n  - " + "\n  - ".join(problems))
        self._faults = list(faults)
        self._counts = [0] * len(self._faults)
        self._lock = threading.Lock()
        self.fired: list[Fault] = []

    def take(self, on: str, slug: str = "") -> Fault | None:
        """The fault of this request, or None; the request counts for every fault that matches."""
        with self._lock:
            active = None
            for index, fault in enumerate(self._faults):
                if fault.on != on or fault.slug not in slug:
                    continue
                self._counts[index] += 1
                over = fault.times != 0 and self._counts[index] >= fault.nth + fault.times
                if active is None and self._counts[index] >= fault.nth and not over:
                    active = fault
            if active is not None:
                self.fired.append(active)
            return active

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults, self._counts = [], []


def load_faults(path: Path) -> list[Fault]:
    """Read a JSON list of faults.

    Raises:
        LaunchError: the file cannot be read or holds problems; all of them are listed.
    """
    known = {item.name for item in fields(Fault)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise LaunchError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise LaunchError(f"{path} must hold a list of faults")
    problems, faults = [], []
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict):
            problems.append(f"entry {number} is not an object")
            continue
        entry_problems = []
        if unknown := sorted(set(entry) - known):
            entry_problems.append(f"{', '.join(unknown)} unknown; use {', '.join(sorted(known))}")
        for name, kind in (("on", str), ("kind", str), ("slug", str), ("nth", int), ("times", int)):
            if name in entry and (not isinstance(entry[name], kind) or isinstance(entry[name], bool)):
                entry_problems.append(f"{name} must be {'a text' if kind is str else 'a whole number'}")
            elif name in ("on", "kind") and not entry.get(name):
                entry_problems.append(f"{name} is missing")
        if not entry_problems:
            faults.append(Fault(**entry))
            entry_problems = faults[-1].problems()
        problems += [f"entry {number}: {problem}" for problem in entry_problems]
    if problems:
        raise LaunchError(f"{path} cannot be used:\n  - " + "\n  - ".join(problems))
    return faults
