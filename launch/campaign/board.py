"""Show a running campaign: a live table on a terminal with messages above it, plain lines elsewhere."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from launch.campaign.state import KernelStatus
from launch.campaign.waits import steady
from launch.kaggle_api.types import Quota

_MARKS = {"done": "[green]done[/]", "failed": "[bold red]failed[/]", "running": "[cyan]running[/]"}
_LOGGER = "launch"


class _AboveTable(logging.Handler):
    """Prints messages on the console of a table, which keeps the table below them."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._console.print(prefix + record.getMessage(), markup=False)


class LiveTable:
    """A context that prints the messages of launch, and keeps a table up to date below them on a terminal.

    Its handler takes the place of the handlers of the logger `launch` while it is shown: no message appears
    twice.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console

        self.title = title
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
        if self.console.is_terminal:
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
        """Update the table; without a terminal nothing is drawn."""
        if self._live is not None:
            self._live.update(status_table(self.title, statuses, quota))


def status_table(title: str, statuses: Sequence[KernelStatus], quota: Quota | None) -> Any:
    """A table of all kernels with state, version, times, AUC and link, and the quota below it."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=quota_line(quota), caption_justify="left")
    for name in ("kernel", "version", "state", "for", "end", "AUC"):
        table.add_column(name, justify="left" if name in ("kernel", "state") else "right")
    table.add_column("link", overflow="fold")
    now = steady()
    for status in statuses:
        waited = max(0.0, now - status.since)
        end = ""
        if status.state in ("pushed", "queued", "running") and status.expected:
            left = status.expected - waited
            end = f"in {_hours_and_minutes(left)}" if left > 0 else "any moment"
        table.add_row(
            status.slug,
            "" if status.version is None else str(status.version),
            _MARKS.get(status.state, status.state),
            "" if status.state in ("waiting", "done") else _hours_and_minutes(waited),
            end,
            "" if status.auc is None else f"{status.auc:.4f}",
            status.url.removeprefix("https://www."),
        )
    return table


def quota_line(quota: Quota | None) -> str:
    """One line about the quota."""
    if quota is None:
        return "GPU quota: unknown"
    reset = f", full again {quota.refresh:%a %d %b %H:%M} UTC" if quota.refresh is not None else ""
    return f"GPU quota: {quota.used:.1f} of {quota.allowed:.1f} h used, {quota.left:.1f} h left{reset}"


def _hours_and_minutes(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
