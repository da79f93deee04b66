"""Show a running campaign: a live table on a terminal with messages above it, plain lines elsewhere.

The table fits its terminal: names are whole, a kernel has one line, and columns that do not fit are left out.
With more kernels than lines, kernels that are done or waiting are summarised.
"""

import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.campaign.spec import uses_emulator
from launch.campaign.state import KernelStatus
from launch.campaign.waits import steady
from launch.console import wrapped
from launch.kaggle_api.types import Quota

_STYLES = {"done": "green", "failed": "bold red", "running": "cyan"}
_LOGGER = "launch"
_COLUMNS = ("kernel", "version", "state", "for", "end", "AUC", "link")
_RIGHT = ("version", "for", "end", "AUC")  # aligned to the right
_LEFT_OUT = ("link", "version", "end", "for")  # in this order, where the width does not suffice
_LINK_WIDTH = 110  # columns of a terminal that shows links
_GAP = 2  # columns between two columns of the table
_OTHER_LINES = 5  # title, head, quota, and two lines for messages above the table
_FOLD = re.compile(r"(.+)-fold-(\d+)")


class _AboveTable(logging.Handler):
    """Prints messages on the console of a table, which keeps the table below them."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        width = self._console.width if self._console.is_terminal else None
        self._console.print(wrapped(prefix + record.getMessage(), width), markup=False)


class LiveTable:
    """A context that prints the messages of launch, and keeps a table up to date below them on a terminal.

    Its handler takes the place of the handlers of the logger `launch` while it is shown: no message appears
    twice.
    """

    def __init__(self, title: str, *, has_quota: bool = True) -> None:
        from rich.console import Console

        self.title, self._has_quota = title, has_quota
        # The stream of now: while the client is called, sys.stdout is replaced to catch what it prints.
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._handler = _AboveTable(self.console)
        self._replaced: list[logging.Handler] = []
        self._level = logging.NOTSET
        self._live: Any = None

    def __enter__(self) -> "LiveTable":
        logger = logging.getLogger(_LOGGER)
        self._replaced, self._level = logger.handlers[:], logger.level
        logger.handlers[:] = [self._handler]
        logger.setLevel(logging.INFO)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, refresh_per_second=2, transient=False)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        logger = logging.getLogger(_LOGGER)
        logger.handlers[:] = self._replaced
        logger.setLevel(self._level)

    def show(self, statuses: Sequence[KernelStatus], quota: Quota | None) -> None:
        """Update the table; without a terminal that can redraw, nothing is drawn."""
        if self._live is not None:
            table = StatusTable(self.title, statuses, quota, has_quota=self._has_quota)
            self._live.update(table, refresh=True)


@dataclass(frozen=True)
class StatusTable:
    """A renderable for rich: kernels with state, version, times, AUC and link, and the quota below them.

    Attributes:
        title: a line above the table.
        statuses: of the kernels.
        quota: of the account; None where it is unknown.
        emulated: the campaign runs on the emulated Kaggle: its links lead nowhere, and are not shown.
        has_quota: the kernels run on an account with a quota, not on this machine.
    """

    title: str
    statuses: Sequence[KernelStatus]
    quota: Quota | None
    emulated: bool = field(default_factory=uses_emulator)
    has_quota: bool = True

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The lines of the table for the console's present width and height."""
        from rich.table import Table
        from rich.text import Text

        rows = _summarised([self._row(status) for status in self.statuses], console.height - _OTHER_LINES)
        names = _columns_that_fit(rows, options.max_width)
        widths = {name: _width(rows, name) for name in names}
        excess = sum(widths.values()) + _GAP * (len(names) - 1) - options.max_width
        widths["state"] = max(len("state"), widths["state"] - max(0, excess))  # only a state is ever cut
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for name in names:
            justify: Any = "right" if name in _RIGHT else "left"
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[name])
        for row in rows:
            table.add_row(
                *(
                    Text(row.cells[name], style=_STYLES.get(row.state, "") if name == "state" else "")
                    for name in names
                )
            )
        yield Text(self.title, style="italic", no_wrap=True, overflow="ellipsis")
        yield table
        if self.has_quota:
            line = quota_line(self.quota, emulated=self.emulated)
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")

    def _row(self, status: KernelStatus) -> "_Row":
        waited = max(0.0, steady() - status.since) if not math.isnan(status.since) else math.nan
        end = ""
        if status.state in ("pushed", "queued", "running") and status.expected:
            left = status.expected - waited
            end = f"in {_hours_and_minutes(left)}" if left > 0 else "any moment"
        cells = {
            "kernel": status.slug,
            "version": "" if status.version is None else str(status.version),
            "state": f"{status.state}, {status.progress}" if status.progress else status.state,
            "for": ""
            if status.state in ("waiting", "done") or math.isnan(waited)
            else _hours_and_minutes(waited),
            "end": end,
            "AUC": "" if status.auc is None else f"{status.auc:.4f}",
            "link": "" if self.emulated else status.url.removeprefix("https://www."),
        }
        return _Row(status.state, cells, auc=status.auc)


@dataclass(frozen=True)
class _Row:
    """One line of the table: a kernel, or several that share a state."""

    state: str
    cells: dict[str, str]
    auc: float | None = None
    kernels: int = 1


def _width(rows: Sequence[_Row], name: str) -> int:
    """The width of a column whose cells are whole."""
    return max([len(name), *(len(row.cells[name]) for row in rows)])


def _columns_that_fit(rows: Sequence[_Row], width: int) -> list[str]:
    """The columns of a table of this width: all that hold something, or fewer, so that names are whole."""
    names = [name for name in _COLUMNS if name in ("kernel", "state") or any(row.cells[name] for row in rows)]
    if width < _LINK_WIDTH:
        names = [name for name in names if name != "link"]
    for left_out in _LEFT_OUT:
        if sum(_width(rows, name) + _GAP for name in names) - _GAP <= width:
            break
        names = [name for name in names if name != left_out]
    return names


# --- fewer lines than kernels -------------------------------------------------------------------------------


def _summarised(rows: list[_Row], lines: int) -> list[_Row]:
    """Join rows until they fit: folds that are done, by experiment; others that are done; waiting kernels."""
    steps: tuple[Callable[[_Row], str], ...] = (_done_folds, _done, _waiting)
    for step in steps:
        if len(rows) > lines:
            rows = _joined(rows, step)
    lines = max(1, lines)
    if len(rows) > lines:
        rest = rows[lines - 1 :]
        counts: dict[str, int] = {}
        for row in rest:
            counts[row.state] = counts.get(row.state, 0) + row.kernels
        state = ", ".join(f"{count} {state}" for state, count in counts.items())
        rows = [*rows[: lines - 1], _sum(rest, f"{sum(counts.values())} more kernels", state)]
    return rows


def _done_folds(row: _Row) -> str:
    match = _FOLD.fullmatch(row.cells["kernel"])
    return match[1] if match and row.state == "done" else ""


def _done(row: _Row) -> str:
    return "done" if row.state == "done" and row.kernels == 1 else ""


def _waiting(row: _Row) -> str:
    return "waiting" if row.state == "waiting" else ""


def _joined(rows: Sequence[_Row], group_of: Callable[[_Row], str]) -> list[_Row]:
    """Rows with one row for each group of two or more, in the place of its first. "" is no group."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    joined = []
    for row in rows:
        name = group_of(row)
        if not name or len(groups[name]) == 1:
            joined.append(row)
        elif row is groups[name][0]:
            folds = group_of is _done_folds
            count = len(groups[name])
            title = f"{name}: {count} folds" if folds else f"{count} kernels"
            joined.append(_sum(groups[name], title, "done, mean AUC" if folds else row.state))
    return joined


def _sum(rows: Sequence[_Row], title: str, state: str) -> _Row:
    scores = [row.auc for row in rows if row.auc is not None]
    cells = dict.fromkeys(_COLUMNS, "") | {"kernel": title, "state": state}
    if scores and state == "done, mean AUC":
        cells["AUC"] = f"{sum(scores) / len(scores):.4f}"
    return _Row(rows[0].state, cells, kernels=sum(row.kernels for row in rows))


# --- single lines -------------------------------------------------------------------------------------------


def quota_line(quota: Quota | None, *, emulated: bool) -> str:
    """One line about the quota."""
    name = "GPU quota of the emulated account" if emulated else "GPU quota"
    if quota is None:
        return f"{name}: unknown"
    used = f"{name}: {quota.used:.1f} of {quota.allowed:.1f} h used"
    if emulated:
        return used
    reset = f", full again {quota.refresh:%a %d %b %H:%M} UTC" if quota.refresh is not None else ""
    return f"{used}, {quota.left:.1f} h left{reset}"


def _hours_and_minutes(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
