"""What the emulated Kaggle shall do wrong, and when: a list of faults, each with its own count of requests."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from lib.validation import UNREADABLE

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
# Where a fault can strike besides the methods of the API, which go by their own names (SaveKernel, ListSubmissions, ...).
PLACES = ("upload", "output", "log", "session", "dataset", "score")
_WIRE = (*REFUSALS, "reset-before")
_ANY_METHOD = (*_WIRE, "reset-after", "html", "html-after", "timeout", "empty")
_ONLY = {
    "SaveKernel": (*_ANY_METHOD, "capacity", "quota", "ghost", "drop-sources", "wrong-slug", "error"),
    "GetKernelSessionStatus": (*_ANY_METHOD, "status", "stale"),
    "ListKernelSessionOutput": (*_ANY_METHOD, "missing", "page", "traversal", "stale"),
    "upload": (*_WIRE, "html", "reset"),
    "output": (*_WIRE, "html", "timeout", "expired", "short", "cut"),
    "log": (*_WIRE, "html", "timeout"),
    "session": ("error", "for-ever", "cancelled", "no-output", "no-mount"),
    "dataset": ("old-version", "failed", "drop-file"),
    "score": ("pending", "error"),
}
METHODS = (
    "IntrospectToken", "StartBlobUpload", "GetDatasetStatus", "GetDataset", "ListDatasetFiles", "CreateDataset",
    "CreateDatasetVersion", "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "GetKernel", "ListKernels",
    "ListKernelFiles", "DeleteKernel", "GetAcceleratorQuotaStatistics", "StartSubmissionUpload", "CreateSubmission",
    "ListSubmissions", "GetSubmission", "GetSubmissionLimits", "GetCompetition", "ListCompetitions", "ListDataFiles",
    "DownloadDataFile", "DownloadDataFiles",
)  # fmt: skip
_NEED_TEXT = (
    ("SaveKernel", "error"),
    ("GetKernelSessionStatus", "status"),
    ("ListKernelSessionOutput", "missing"),
)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        on: a method of the API; or upload (the PUT of a file), output (the GET of an output file), log, session (a run),
            dataset (the processing of a version), score.
        what: an HTTP status as text, reset-before or reset-after (the connection breaks before or after the request took
            effect), html, html-after, timeout, empty; or what only makes sense in one place: capacity, quota, ghost,
            drop-sources, wrong-slug, error (SaveKernel); status, stale (GetKernelSessionStatus); missing, page,
            traversal, stale (ListKernelSessionOutput); 503 after half of the bytes, reset (upload); expired, short, cut
            (output); error, for-ever, cancelled, no-output, no-mount (session); old-version, failed,
            drop-file (dataset); pending, error (score).
        slug: only requests about a kernel or dataset whose slug, or an uploaded file whose name, contains this text.
        nth: the first such request it strikes, counted from 1.
        times: how many in a row; 0 for ever.
        value: seconds, a status, a message, or part of a file's name.
    """

    on: str
    what: str
    slug: str = ""
    nth: int = 1
    times: int = 1
    value: Any = None

    def problems(self) -> list[str]:
        """Why it would never strike, or not as meant; empty for a fault that makes sense."""
        found = []
        if self.on not in PLACES and self.on not in METHODS:
            return [f"on = {self.on!r} is neither a method of the API nor one of {', '.join(PLACES)}"]
        known = _ONLY.get(self.on, _ANY_METHOD)
        if self.what not in known:
            found.append(f"what = {self.what!r} does not happen on {self.on}; there are {', '.join(known)}")
        if self.nth < 1 or self.times < 0:
            found.append("nth counts from 1, times from 0 (for ever)")
        if (self.on, self.what) in _NEED_TEXT and not (isinstance(self.value, str) and self.value):
            found.append(f"{self.what} on {self.on} needs a text as value")
        if self.what in ("timeout", "429", "old-version") and not isinstance(self.value, int | float | None):
            found.append(f"{self.what} needs seconds as value")
        return found


class Faults:
    """The faults of a server, asked at every request; counts start anew with the server.

    Raises:
        LaunchError: some of them make no sense.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        if problems := [f"{fault}: {problem}" for fault in faults for problem in fault.problems()]:
            raise LaunchError("faults cannot be used:\n  - " + "\n  - ".join(problems))
        self._faults = list(faults)
        self._seen = [0] * len(self._faults)
        self._lock = threading.Lock()
        self.fired: list[Fault] = []

    def take(self, on: str, slug: str = "") -> Fault | None:
        """The fault that strikes this request, if any; the request counts for all that match."""
        with self._lock:
            found = None
            for number, fault in enumerate(self._faults):
                if fault.on != on or fault.slug not in slug:
                    continue
                self._seen[number] += 1
                late = fault.times != 0 and self._seen[number] >= fault.nth + fault.times
                if found is None and self._seen[number] >= fault.nth and not late:
                    found = fault
            if found is not None:
                self.fired.append(found)
            return found

    def clear(self) -> None:
        """From now on everything works."""
        with self._lock:
            self._faults, self._seen = [], []


def load_faults(path: Path) -> list[Fault]:
    """Read a JSON list of faults.

    Raises:
        LaunchError: it cannot be read, with everything that is wrong.
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
        before = len(problems)
        if unknown := sorted(set(entry) - known):
            problems.append(
                f"entry {number}: {', '.join(unknown)} unknown; there are {', '.join(sorted(known))}"
            )
        for name, kind in (("on", str), ("what", str), ("slug", str), ("nth", int), ("times", int)):
            if name in entry and (not isinstance(entry[name], kind) or isinstance(entry[name], bool)):
                problems.append(
                    f"entry {number}: {name} must be {'a text' if kind is str else 'a whole number'}"
                )
            elif name in ("on", "what") and not entry.get(name):
                problems.append(f"entry {number}: {name} is missing")
        if len(problems) == before:
            faults.append(Fault(**entry))
            problems += [f"entry {number}: {problem}" for problem in faults[-1].problems()]
    if problems:
        raise LaunchError(f"{path} cannot be used:\n  - " + "\n  - ".join(problems))
    return faults
