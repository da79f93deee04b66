"""Status, board and logs of a run of `local`, read from its folder: it has no ledger and no account."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.campaign.board import LiveTable, StatusTable
from launch.campaign.state import KernelStatus
from launch.campaign.waits import steady
from launch.console import print_text
from launch.errors import LaunchError
from launch.plan import LOCAL_PLAN
from launch.sandbox import is_running
from lib.runtime.run_record import RECORD_NAME
from lib.validation import UNREADABLE

LOCAL_STATUS_FORMAT = 1  # of the JSON document; it changes when a key is removed or means something else
_EPOCH = re.compile(r"epoch (\d+) of (\d+)(?:: .*\((\d+) %\))?")  # of lib.training.fold and barlow_twins
_LOG_END = 4096  # bytes at the end of a log that are searched for its progress
_POLL = 1.0  # seconds between two looks at a log that is followed


@dataclass(frozen=True)
class LocalKernel:
    """A kernel of a run of `local`, as its folder describes it."""

    slug: str
    kind: str
    fold: int
    state: str

    def is_called(self, name: str) -> bool:
        """Whether a user may mean this kernel: its slug, its kind, or fold-K."""
        fold = f"fold-{self.fold}" if self.kind == "train" else ""
        return name in (self.slug, self.slug.removeprefix("hcd-"), self.kind, fold)


def read_kernels(folder: Path) -> list[LocalKernel]:
    """The kernels of a run of `local`, in the order of its plan.

    Raises:
        LaunchError: the folder holds no such run.
    """
    try:
        content = json.loads((folder / LOCAL_PLAN).read_bytes())
        return [
            LocalKernel(str(row["slug"]), str(row["kind"]), int(row["fold"]), str(row["state"]))
            for row in content["kernels"]
        ]
    except (KeyError, TypeError, *UNREADABLE) as error:
        raise LaunchError(
            f"{folder} holds no run of `local` that can be read: start one with build_kernel.py local, or "
            "name its folder with --local FOLDER"
        ) from error


def read_statuses(folder: Path) -> list[KernelStatus]:
    """The status of each kernel: `stopped` where one was running and its process is gone.

    Raises:
        LaunchError: the folder holds no run of `local`.
    """
    statuses = []
    for kernel in read_kernels(folder):
        place = folder / kernel.slug
        status = KernelStatus(kernel.slug, kernel.state)
        if kernel.state == "running" and not is_running(place):
            status.state = "stopped"
        if status.state == "running":
            status.since = steady() - max(0.0, time.time() - _begun(place))
            status.progress = _describe(_progress(place / "log.txt"))
        if status.state in ("stopped", "failed"):
            status.since = math.nan  # nobody saw its end
        if status.state == "done":
            status.auc = _number(place / "working" / RECORD_NAME, "scores", "fold", "auc")
        statuses.append(status)
    return statuses


def _begun(place: Path) -> float:
    """When a kernel was started: its identity is written right before."""
    identity = place / "identity.json"
    return identity.stat().st_mtime if identity.is_file() else time.time()


@dataclass(frozen=True)
class _Progress:
    """The last epoch that a log names, and how far it is in percent; None where the epoch is done."""

    epoch: int
    epochs: int
    percent: int | None


def _progress(log: Path) -> _Progress | None:
    """The last epoch in the end of a log; None where there is none."""
    if not log.is_file():
        return None
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_END))
        end = stream.read().decode(errors="replace")
    told = list(_EPOCH.finditer(end))
    if not told:
        return None
    epoch, epochs, percent = told[-1].groups()
    return _Progress(int(epoch), int(epochs), int(percent) if percent else None)


def _describe(progress: _Progress | None) -> str:
    """Progress as text, such as `epoch 2 of 5, 41 %`; empty where there is none."""
    if progress is None:
        return ""
    end = " done" if progress.percent is None else f", {progress.percent} %"
    return f"epoch {progress.epoch} of {progress.epochs}{end}"


def _number(record: Path, *names: str) -> float | None:
    """A number in a run.json, named by the keys that lead to it; None where there is none."""
    try:
        value = json.loads(record.read_bytes())
        for name in names:
            value = value[name]
    except (KeyError, TypeError, *UNREADABLE):
        return None
    return float(value) if isinstance(value, int | float) else None


def local_status_document(folder: Path) -> dict[str, Any]:
    """The document of `status --local --json`; docs/json.md describes its keys.

    Raises:
        LaunchError: the folder holds no run of `local`.
    """
    statuses = read_statuses(folder)
    kernels = []
    for kernel, status in zip(read_kernels(folder), statuses, strict=True):
        place = folder / kernel.slug
        has_begun = (place / "identity.json").is_file()
        progress = _progress(place / "log.txt") if status.state in ("running", "stopped", "failed") else None
        is_done = status.state == "done"
        kernels.append(
            {
                "slug": kernel.slug,
                "kind": kernel.kind,
                "fold": kernel.fold if kernel.kind == "train" else None,
                "state": status.state,
                "epoch": progress.epoch if progress else None,
                "epochs": progress.epochs if progress else None,
                "percent_of_epoch": progress.percent if progress else None,
                "started_at": datetime.fromtimestamp(_begun(place), UTC).isoformat(timespec="seconds")
                if has_begun
                else None,
                "log": str(place / "log.txt") if (place / "log.txt").is_file() else None,
                "seconds": _number(place / "working" / RECORD_NAME, "seconds", "total") if is_done else None,
                "auc": status.auc,
            }
        )
    return {
        "format": LOCAL_STATUS_FORMAT,
        "service": "this machine",
        "folder": str(folder),
        "is_running": any(status.state == "running" for status in statuses),
        "kernels": kernels,
    }


@contextmanager
def local_board(folder: Path) -> Iterator[Callable[[], None]]:
    """A live table of a run of `local` below the messages; gives the function that brings it up to date."""
    with LiveTable(f"local run in {folder.name}", has_quota=False) as board:
        yield lambda: board.show(read_statuses(folder), None)


def show_local_status(folder: Path) -> list[KernelStatus]:
    """Print the status of a run of `local`: a table on a terminal, a line for each kernel elsewhere.

    Raises:
        LaunchError: the folder holds no run of `local`.
    """
    statuses = read_statuses(folder)
    if sys.stdout.isatty():
        from rich.console import Console

        table: Any = StatusTable(f"local run in {folder}", statuses, None, has_quota=False)
        Console(highlight=False).print(table)
        return statuses
    for status in statuses:
        progress = f", {status.progress}" if status.progress else ""
        auc = "" if status.auc is None else f", AUC {status.auc:.4f}"
        print_text(f"{status.slug}: {status.state}{progress}{auc}")
    return statuses


def watch_local(folder: Path, *, every: float) -> list[KernelStatus]:
    """Repeat the status of a run of `local` until none of its kernels runs."""
    while True:
        statuses = show_local_status(folder)
        if not any(status.state == "running" for status in statuses):
            return statuses
        print_text(f"next status in {every:.0f} s")
        time.sleep(every)


def show_local_log(folder: Path, name: str, *, follow: bool) -> None:
    """Print the log of a kernel of a run of `local`; with `follow` until the kernel ends.

    Raises:
        LaunchError: there is no such kernel, or it has not started.
    """
    kernels = read_kernels(folder)
    matches = [kernel for kernel in kernels if kernel.is_called(name)]
    if len(matches) != 1:
        problem = "more than one kernel is called" if matches else "no kernel is called"
        names = ", ".join(kernel.slug.removeprefix("hcd-") for kernel in kernels)
        raise LaunchError(f"{problem} {name!r}; there are: {names}")
    place = folder / matches[0].slug
    log = place / "log.txt"
    if not log.is_file():
        raise LaunchError(f"{matches[0].slug} has not started yet: it has no log")
    with log.open(encoding="utf-8", errors="replace") as stream:
        while True:
            running = follow and is_running(place)  # asked first: what it writes at its end is read, too
            print(stream.read(), end="", flush=True)
            if not running:
                return
            time.sleep(_POLL)
