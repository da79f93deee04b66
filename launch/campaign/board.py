"""What a campaign looks like while it runs: a live table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Sequence
from typing import Any

from launch.campaign.clock import steady
from launch.campaign.standings import KernelStatus
from launch.kaggle_api.types import Quota

_MARKS = {"done": "[green]done[/]", "failed": "[bold red]failed[/]", "running": "[cyan]running[/]"}


class LiveTable:
    """A context in which `say` prints lines that stay, and `show` keeps a table up to date below them."""

    def __init__(self, title: str) -> None:
        from rich.console import Console

        self.title = title
        # The stream as it is now: while a call of the client is under way, sys.stdout is hidden from what it prints.
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live: Any = None

    def __enter__(self) -> "LiveTable":
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, refresh_per_second=2, transient=False)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def show(self, standings: Sequence[KernelStatus], quota: Quota | None) -> None:
        """Bring the table up to date; where there is no terminal, nothing is drawn."""
        if self._live is not None:
            self._live.update(standings_table(self.title, standings, quota))


def standings_table(title: str, standings: Sequence[KernelStatus], quota: Quota | None) -> Any:
    """A table: kernel, version, state, since when, expected end, AUC when known, link; below it the quota."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=quota_line(quota), caption_justify="left")
    for name, justify in (
        ("kernel", "left"),
        ("version", "right"),
        ("state", "left"),
        ("for", "right"),
        ("end", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("AUC", justify="right")
    table.add_column("link", overflow="fold")
    now = steady()
    for standing in standings:
        waited = max(0.0, now - standing.since)
        active = standing.state in ("pushed", "queued", "running")
        ends = ""
        if active and standing.expected:
            left = standing.expected - waited
            ends = f"in {_clock(left)}" if left > 0 else "any moment"
        table.add_row(
            standing.slug,
            "" if standing.version is None else str(standing.version),
            _MARKS.get(standing.state, standing.state),
            "" if standing.state in ("waiting", "done") else _clock(waited),
            ends,
            "" if standing.auc is None else f"{standing.auc:.4f}",
            standing.url.removeprefix("https://www."),
        )
    return table


def quota_line(quota: Quota | None) -> str:
    """The quota in words."""
    if quota is None:
        return "GPU quota: unknown"
    back = f", full again {quota.refresh:%a %d %b %H:%M} UTC" if quota.refresh is not None else ""
    return f"GPU quota: {quota.used:.1f} of {quota.allowed:.1f} h used, {quota.left:.1f} h left{back}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
