"""What the loopback Kaggle shall do wrong, and when: a list of faults, each with its own count of requests."""

import json
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launch.errors import LaunchError

# Where a fault can strike besides the methods of the API, which go by their own names (SaveKernel, ListSubmissions, ...).
PLACES = ("upload", "output", "log", "session", "dataset", "score")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        on: a method of the API; or upload (the PUT of a file), output (the GET of an output file), log, session (a run),
            dataset (the processing of a version), score.
        what: an HTTP status as text, reset-before or reset-after (the connection breaks before or after the request took
            effect), html, html-after, timeout, empty; or what only makes sense in one place: capacity, quota, ghost,
            drop-sources, wrong-slug, error (SaveKernel); status, stale (GetKernelSessionStatus); missing, page,
            traversal, stale (ListKernelSessionOutput); expired, short, cut (output); error, for-ever, cancelled,
            no-output, no-mount (session); old-version, failed, drop-file (dataset); pending, error (score).
        slug: only requests about a kernel or dataset whose slug contains this text.
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


class Faults:
    """The faults of a server, asked at every request."""

    def __init__(self, faults: "list[Fault] | tuple[Fault, ...]" = ()) -> None:
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
    except (OSError, ValueError) as error:
        raise LaunchError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise LaunchError(f"{path} must hold a list of faults")
    problems, faults = [], []
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict):
            problems.append(f"entry {number} is not an object")
            continue
        if unknown := sorted(set(entry) - known):
            problems.append(f"entry {number}: {', '.join(unknown)} unknown; there are {', '.join(sorted(known))}")
        for name, kind in (("on", str), ("what", str), ("slug", str), ("nth", int), ("times", int)):
            if name in entry and (not isinstance(entry[name], kind) or isinstance(entry[name], bool)):
                problems.append(f"entry {number}: {name} must be {'a text' if kind is str else 'a whole number'}")
            elif name in ("on", "what") and not entry.get(name):
                problems.append(f"entry {number}: {name} is missing")
        if isinstance(on := entry.get("on"), str) and on and on not in PLACES and not on[:1].isupper():
            problems.append(f"entry {number}: on = {on!r} is neither a method of the API nor one of {', '.join(PLACES)}")
        if not problems:
            faults.append(Fault(**entry))
    if problems:
        raise LaunchError(f"{path} cannot be used:\n  - " + "\n  - ".join(problems))
    return faults
