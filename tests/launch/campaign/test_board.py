"""The table of a campaign fits its terminal, and holds no markup."""

import logging
from datetime import UTC, datetime

import pytest
from rich.console import Console

from launch.campaign.board import LiveTable, StatusTable, quota_line
from launch.campaign.state import KernelStatus
from launch.campaign.waits import steady
from launch.kaggle_api.types import Quota

QUOTA = Quota(12.3, 30.0, datetime(2026, 12, 5, tzinfo=UTC))
AUC = 0.9712


def status(slug: str, state: str = "waiting", **values) -> KernelStatus:
    made = KernelStatus(slug, state, since=steady() - 3723, url=f"https://www.kaggle.com/code/alice/{slug}")
    for name, value in values.items():
        setattr(made, name, value)
    return made


def campaign(folds: int = 5) -> list[KernelStatus]:
    """A campaign with names as they come from `--set`, in every kind of state."""
    states = ["done", "running", "queued", "refused, waiting", "failed"]
    rows = [status("hcd-weights", "done", version=1), status("hcd-prepare", "done", version=12)]
    for fold in range(folds):
        known = (
            {"auc": AUC, "version": 2} if states[fold % 5] == "done" else {"expected": 9000.0, "version": 1}
        )
        rows.append(status(f"hcd-resnet34-0a1b2c-fold-{fold}", states[fold % 5], **known))
    return [*rows, status("hcd-resnet34-0a1b2c-inference"), status("hcd-report")]


def lines_of(statuses, width: int, height: int = 24, *, emulated: bool = False, **options) -> list[str]:
    console = Console(width=width, height=height, **options)
    with console.capture() as capture:
        console.print(StatusTable("campaign x", statuses, QUOTA, emulated=emulated))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 109, 110, 120, 200])
@pytest.mark.parametrize("folds", [1, 5, 8])
def test_a_kernel_has_one_line_and_its_whole_name(width, folds):
    statuses = campaign(folds)
    lines = lines_of(statuses, width)
    assert len(lines) == len(statuses) + 3 <= 24  # title, head, quota
    assert all(len(line) <= width for line in lines)
    for kernel, line in zip(statuses, lines[2:-1], strict=True):
        assert line.split()[0] == kernel.slug and kernel.state in line
    if folds > 1:
        assert "end" in lines[1] and "in 1:27:" in lines[5]
        assert ("link" in lines[1]) == (width == 200)
    assert lines[-1] == "GPU quota: 12.3 of 30.0 h used, 17.7 h left, full again Sat 05 Dec 00:00 UTC"


@pytest.mark.parametrize(("width", "shown"), [(109, False), (110, True)])
def test_links_are_shown_from_110_columns_where_they_fit_whole(width, shown):
    lines = lines_of([status("hcd-prepare", "running", version=1)], width)
    assert lines[2].endswith("kaggle.com/code/alice/hcd-prepare") == shown


@pytest.mark.parametrize("width", [80, 120])
def test_the_longest_name_of_kaggle_is_whole(width):
    longest = "hcd-" + "x" * 46
    row = status(longest, "pushed without inputs", version=10, auc=AUC)
    lines = lines_of([row], width)
    assert lines[2].startswith(longest) and " pushed without inpu" in lines[2] and f"{AUC:.4f}" in lines[2]
    assert len(lines) == 4 and all(len(line) <= width for line in lines)


@pytest.mark.parametrize("height", [16, 24])
def test_more_kernels_than_lines_are_summarised(height):
    folds = [
        status(f"hcd-{name}-fold-{fold}", "done" if fold < 4 else "failed", auc=AUC if fold < 4 else None)
        for name in ("strong", "densenet", "convnext")
        for fold in range(5)
    ]
    waiting = [status(f"hcd-strong-{name}") for name in ("inference", "search", "embed", "pretrain")]
    statuses = [status("hcd-weights", "done"), status("hcd-prepare", "done"), *folds, *waiting]
    lines = lines_of(statuses, 80, height)
    assert len(lines) <= height - 2
    words = [line.split("  ")[0] for line in lines]
    assert (
        "hcd-densenet: 4 folds" in words and "done, mean AUC" in lines[words.index("hcd-densenet: 4 folds")]
    )
    assert f"{AUC:.4f}" in lines[words.index("hcd-densenet: 4 folds")]
    assert "\n".join(lines).count("failed") == 3  # what a person must know is kept
    assert ("hcd-prepare" in words) == (height == 24) == ("2 kernels" not in words)
    assert len(lines_of(statuses, 80, 40)) == len(statuses) + 3


def test_rows_that_fit_no_other_way_are_counted():
    statuses = [status(f"hcd-x-fold-{fold}", "failed" if fold % 2 else "running") for fold in range(40)]
    lines = lines_of(statuses, 80)
    assert len(lines) == 22
    assert lines[-2].split("  ")[0] == "22 more kernels" and "11 running, 11 failed" in lines[-2]


def test_a_rehearsal_shows_no_links_and_its_own_quota():
    lines = lines_of(campaign(), 200, emulated=True)
    assert "kaggle.com" not in "\n".join(lines)
    assert lines[-1] == "GPU quota of the emulated account: 12.3 of 30.0 h used"
    assert quota_line(None, emulated=False) == "GPU quota: unknown"


@pytest.mark.parametrize(
    ("terminal", "environment"),
    [(True, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"}), (False, {})],
)
def test_no_markup_is_printed_and_none_is_read(terminal, environment, monkeypatch, capsys):
    """Also with messages above the table, which redraw it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    logger = logging.getLogger("launch.x")
    with LiveTable("campaign [x]") as board:
        board.show([*campaign(), status("hcd-y", "refused [red]")], QUOTA)
        logger.info("a message with [bold]brackets[/]")
    printed = capsys.readouterr().out
    assert "a message with [bold]brackets[/]" in printed
    assert "[cyan]" not in printed and "[green]" not in printed and printed.count("[/]") == 1
    draws = terminal and environment.get("TERM") != "dumb"
    assert {text in printed for text in ("refused [red]", "campaign [x]", "running")} == {draws}
    assert ("\x1b[32m" in printed) == (draws and "NO_COLOR" not in environment)
