"""The account on the emulated Kaggle: who it is, how it is treated, and the state all its parts keep.

What changes is on disk before it is answered, so a server that was killed goes on where it stood.
"""

import fcntl
import hashlib
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from launch.campaign.clock import steady
from launch.emulator.faults import Fault, Faults
from launch.errors import LaunchError
from lib.files import write_atomic

_LINK_SECONDS = 600.0

Json = dict[str, Any]
_Result = TypeVar("_Result")


class ApiError(Exception):
    """An answer with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this Kaggle behaves when nothing is wrong; times in seconds.

    Attributes:
        gpu_sessions, cpu_sessions: at a time; more are refused, not queued.
        weekly_gpu_hours: allowed.
        gpu_hours_used: when it starts.
        quota_refresh: until the used hours are forgotten.
        dataset_delay: from an upload to the moment the version is ready and mounted.
        score_delay: from a submission to its score.
        status_delay: for which the status after a push is still what it was before.
        submissions_a_day: taken.
        session_limit: the longest session.
        rules_accepted: of the competition.
        phone_verified: needed for GPU and internet.
    """

    gpu_sessions: int = 2
    cpu_sessions: int = 5
    weekly_gpu_hours: float = 30.0
    gpu_hours_used: float = 0.0
    quota_refresh: float = 3 * 86400.0
    dataset_delay: float = 2.0
    score_delay: float = 0.5
    status_delay: float = 0.0
    submissions_a_day: int = 5
    session_limit: float = 12 * 3600.0
    rules_accepted: bool = True
    phone_verified: bool = True


class Account:
    """One account, its durable state, and the lock every reader and writer of it holds.

    The state holds datasets and kernels by slug (no slug is of both), `gone`: slugs of deleted kernels, blobs by token,
    submissions and changes in order, `next`: the last number given, `now`: when it was written, and of the quota
    `gpu_seconds` and `refresh_at`.

    `before_change` and `after_change`, where set, are called with method and name of every request that is about to take
    effect and of every one whose effect is durable but not yet answered; the state is locked meanwhile.

    Args:
        folder: where everything is kept; locked until `close`.
        owner: its name.
        token: what authenticates it.
        settings: how it is treated.
        faults: what goes wrong, and when.

    Raises:
        LaunchError: another server is at work in the folder, its state cannot be read, or a fault makes no sense.
    """

    def __init__(
        self, folder: Path, *, owner: str, token: str, settings: Settings, faults: Sequence[Fault]
    ) -> None:
        self.folder, self.owner, self.token, self.settings = folder, owner, token, settings
        self.faults = Faults(tuple(faults))
        self.before_change: Callable[[str, str], None] | None = None
        self.after_change: Callable[[str, str], None] | None = None
        self.lock = threading.RLock()
        self._log_lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder_lock = (folder / "server.lock").open("w")
        try:
            fcntl.flock(self._folder_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._folder_lock.close()
            raise LaunchError(
                f"another emulated Kaggle runs in {folder}: stop it, or choose another folder"
            ) from None
        self._began, self._steady = time.time(), steady()
        self.state = self._load()

    def _load(self) -> Json:
        path = self.folder / "state.json"
        if path.is_file():
            try:
                state: Json = json.loads(path.read_bytes())
            except ValueError as error:
                raise LaunchError(f"{path} cannot be read ({error}): remove {self.folder}") from error
            self._began = max(
                self._began, float(state.get("now", 0.0))
            )  # it was set back since: nothing lies in the future
            return state
        return {
            "datasets": {},
            "kernels": {},
            "blobs": {},
            "submissions": [],
            "changes": [],
            "next": 1,
            "gpu_seconds": self.settings.gpu_hours_used * 3600,
            "refresh_at": self.now() + self.settings.quota_refresh,
        }

    def now(self) -> float:
        """Seconds since 1970 by the service's own clock, which nobody sets: that of a machine may be while it is at work."""
        return self._began + steady() - self._steady

    def save(self) -> None:
        """Make the state durable."""
        self.state["now"] = self.now()
        write_atomic(self.folder / "state.json", json.dumps(self.state))

    def close(self) -> None:
        """Leave the folder to another server."""
        self._folder_lock.close()

    def number(self) -> int:
        """A number nothing else of the account has."""
        self.state["next"] += 1
        return int(self.state["next"])

    def change(self, method: str, slug: str, act: Callable[[], _Result]) -> _Result:
        """Do something that changes the state, durably, between the two hooks of the tests."""
        if self.before_change is not None:
            self.before_change(method, slug)
        with self.lock:
            result = act()
            self.save()
        if self.after_change is not None:
            self.after_change(method, slug)
        return result

    def took_effect(self, method: str, slug: str) -> None:
        """Note one of the `changes`."""
        self.state["changes"].append({"method": method, "slug": slug, "at": self.now()})

    def changes(self) -> list[Json]:
        """What took effect: every push that made a version, dataset version, submission and deletion, in order."""
        with self.lock:
            return list(self.state["changes"])

    def note(self, entry: Json) -> None:
        """A line of the request log."""
        with self._log_lock, (self.folder / "requests.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def check_owner(self, owner: str) -> None:
        """Other accounts' things are not ours to see."""
        if owner and owner.lower() != self.owner.lower():
            raise ApiError(403, "Permission denied")

    def signed(self, place: str, name: str) -> str:
        """The query of a link to a file of a place; good for a while, and for whoever has it."""
        until = int(self.now() + _LINK_SECONDS)
        return urllib.parse.urlencode(
            {"name": name, "until": until, "signature": self._signature(place, name, until)}
        )

    def check_signed(self, place: str, name: str, *, until: str, signature: str) -> None:
        """A link must be one of ours, and fresh."""
        if (
            not until.isdigit()
            or int(until) < self.now()
            or signature != self._signature(place, name, int(until))
        ):
            raise ApiError(403, "the link has expired")

    def _signature(self, place: str, name: str, until: int) -> str:
        return hashlib.sha256(f"{self.token}\0{place}\0{name}\0{until}".encode()).hexdigest()[:32]


def page(items: Sequence[Any], body: Json) -> tuple[Sequence[Any], Json]:
    """The items a request asks for, and the token of those after them, if there are any."""
    size, start = min(max(int(body.get("pageSize") or 20), 1), 200), int(body.get("pageToken") or 0)
    return items[start : start + size], {"nextPageToken": str(start + size)} if start + size < len(
        items
    ) else {}


def stamp(seconds: float) -> str:
    """A moment, in seconds since 1970, as answers write it."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
