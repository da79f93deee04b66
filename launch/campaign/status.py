"""The status of a campaign, from its ledger and from Kaggle: for people (`status`, `watch`) and as JSON."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.campaign.board import StatusTable, quota_line
from launch.campaign.ledger import Ledger, SubmissionEntry, read_ledger
from launch.campaign.spec import service_name, uses_emulator
from launch.campaign.state import KernelStatus, ledger_statuses
from launch.campaign.waits import Timeouts, describe_seconds, seconds_since, steady
from launch.console import print_text
from launch.kaggle_api.client import Kaggle
from launch.kaggle_api.errors import ClientError, CredentialsError
from launch.kaggle_api.types import ACTIVE, Quota

STATUS_FORMAT = 1  # of the JSON document; it changes when a key is removed or means something else


@dataclass
class CampaignStatus:
    """The status of a campaign at one moment.

    Attributes:
        ledger: of the campaign.
        quota: of the account; None where Kaggle does not say.
        on_kaggle: the state of each open push on Kaggle, by slug.
        problems: why the state of an open push is unknown, by slug.
    """

    ledger: Ledger
    quota: Quota | None = None
    on_kaggle: dict[str, str] = field(default_factory=dict)
    problems: dict[str, ClientError] = field(default_factory=dict)

    @property
    def open(self) -> list[str]:
        """Slugs of the kernels with a push that may still run."""
        return [slug for slug, entry in self.ledger.kernels.items() if entry.open is not None]

    @property
    def is_running(self) -> bool:
        """Whether Kaggle shows a push of the campaign as queued or running."""
        return bool(self.running)

    @property
    def running(self) -> list[str]:
        """The kernels whose push Kaggle shows as queued or running."""
        return [slug for slug, state in self.on_kaggle.items() if state.upper() in ACTIVE]

    @property
    def is_fetched(self) -> bool:
        """Whether every kernel of the campaign is done and its output is here.

        The ledger learns of a kernel when it is pushed; the last ones are inference or the search.
        """
        last = any(entry.kind in ("inference", "search") for entry in self.ledger.kernels.values())
        return last and all(kernel.state == "done" for kernel in self.kernels())

    def kernels(self) -> list[KernelStatus]:
        """The status of every kernel: from Kaggle where a push is open, from the ledger elsewhere."""
        statuses = ledger_statuses(self.ledger)
        for status in statuses:
            if status.slug in self.on_kaggle:
                since = status.since
                status.update(self.on_kaggle[status.slug].replace("_", " "))
                status.since = since  # Kaggle does not say since when
        return statuses

    def to_dict(self) -> dict[str, Any]:
        """The document of `status --json`; docs/json.md describes its keys."""
        ledger, quota = self.ledger, self.quota
        return {
            "format": STATUS_FORMAT,
            "service": service_name(),
            "campaign": {
                "name": ledger.campaign,
                "id": ledger.id,
                "owner": ledger.owner,
                "created": ledger.created,
                "folder": str(ledger.folder),
            },
            "has_open_pushes": bool(self.open),
            "kernels": [self._kernel(slug) for slug in ledger.kernels],
            "quota": None
            if quota is None
            else {
                "used_hours": quota.used,
                "allowed_hours": quota.allowed,
                "left_hours": quota.left,
                "refresh": None if quota.refresh is None else quota.refresh.isoformat(),
            },
            "submissions": [
                {
                    "ref": entry.ref or None,
                    "state": entry.state,
                    "public_auc": entry.public,
                    "private_auc": entry.private,
                    "message": entry.message,
                    "sha256": entry.sha256,
                    "at": entry.at,
                    "note": entry.note,
                }
                for entry in ledger.submissions
            ],
        }

    def _kernel(self, slug: str) -> dict[str, Any]:
        entry = self.ledger.kernels[slug]
        push, output = entry.last, entry.output
        is_done = output is not None and entry.open is None
        state = "done" if is_done else "waiting" if push is None else push.state
        version = output.version if output is not None and is_done else push.version if push else None
        return {
            "slug": slug,
            "kind": entry.kind,
            "state": state,
            "on_kaggle": self.on_kaggle.get(slug),
            "problem": str(self.problems[slug]) if slug in self.problems else None,
            "version": version,
            "pushes": len(entry.pushes),
            "push_id": push.push_id if push is not None else None,
            "pushed_at": (push.pushed_at or None) if push is not None else None,
            "ended_at": (push.ended_at or None) if push is not None else None,
            "url": (push.url or None) if push is not None else None,
            "note": push.note if push is not None else "",
            "seconds": output.seconds if output is not None else None,
            "auc": output.auc if output is not None else None,
        }


def read_status(folder: Path, kaggle: Kaggle) -> CampaignStatus:
    """The status of the campaign in a folder. It changes nothing.

    Raises:
        LaunchError: the ledger cannot be read.
    """
    ledger = read_ledger(folder)
    assert ledger is not None, "find_campaign returned this folder"
    status = CampaignStatus(ledger)
    for slug in status.open:
        try:
            status.on_kaggle[slug] = kaggle.status(slug).name.lower()
        except ClientError as error:
            status.problems[slug] = error
    try:
        status.quota = kaggle.quota()
    except ClientError:
        status.quota = None
    return status


def show_status(folder: Path, *, connect: Callable[[], Kaggle]) -> CampaignStatus:
    """Print the status of a campaign: a table on a terminal, a line for each kernel elsewhere."""
    status = read_status(folder, connect())
    kernels = status.kernels()
    if sys.stdout.isatty():
        from rich.console import Console

        title = f"campaign {status.ledger.campaign} ({status.ledger.id})"
        Console(highlight=False).print(StatusTable(title, kernels, status.quota))
    else:
        for kernel in kernels:
            auc = "" if kernel.auc is None else f", AUC {kernel.auc:.4f}"
            version = "" if kernel.version is None else f", version {kernel.version}"
            print_text(f"{kernel.slug}: {kernel.state}{version}{auc}")
        print_text(quota_line(status.quota, emulated=uses_emulator()))
    for slug, problem in status.problems.items():
        print_text(f"{slug}: its state on Kaggle is unknown: {problem}")
    for entry in status.ledger.submissions:
        parts = [entry.state, *([describe_scores(entry)] if describe_scores(entry) else [])]
        print_text(f"submission {entry.ref or '?'}: {', '.join(parts)} {entry.note}".rstrip())
    sys.stdout.flush()
    return status


def watch(folder: Path, *, connect: Callable[[], Kaggle], every: float) -> CampaignStatus:
    """Repeat the status until no kernel of the campaign runs on Kaggle; the last status. It changes nothing.

    Raises:
        ClientError: the credentials are not accepted, or Kaggle has not answered for an hour.
    """
    kaggle, last_answer = connect(), steady()
    while True:
        status = show_status(folder, connect=lambda: kaggle)
        if not status.problems:
            last_answer = steady()
        for problem in status.problems.values():
            if isinstance(problem, CredentialsError) or steady() - last_answer > Timeouts().outage_timeout:
                raise problem
        if not status.is_running and not status.problems:
            break
        pushes = [entry.open for entry in status.ledger.kernels.values() if entry.open is not None]
        longest = describe_seconds(max(seconds_since(push.pushed_at) for push in pushes))
        print_text(f"next status in {every:.0f} s; the longest run was pushed {longest} ago")
        time.sleep(every)
    rest = "all outputs are here" if status.is_fetched else "`run` fetches the outputs and continues"
    print_text(f"no kernel runs on Kaggle; {rest}")
    return status


def describe_scores(entry: SubmissionEntry) -> str:
    """The scores that a submission has: `public 0.9552, private 0.9541`."""
    scores = {"public": entry.public, "private": entry.private}
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items() if score is not None)
