"""The account of the emulated Kaggle: owner, token, settings, and the durable state that all parts share.

Every change of the state is on disk before its request is answered, so a server that was killed continues
from there.
"""

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

from filelock import FileLock, Timeout

from launch.campaign.waits import steady
from launch.emulator.faults import Fault, Faults
from launch.errors import LaunchError
from lib.files import write_atomic

_LINK_SECONDS = 600.0
_STATE_FORMAT = 2

JsonObject = dict[str, Any]
_Result = TypeVar("_Result")


class ApiError(Exception):
    """A response with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and delays of the emulated Kaggle without faults; times in seconds.

    Attributes:
        gpu_sessions, cpu_sessions: sessions at a time; a push beyond the limit is refused, not queued.
        weekly_gpu_hours: the GPU quota.
        gpu_hours_used: the used quota when the emulator is started for the first time.
        quota_refresh: from the first start to the reset of the quota.
        dataset_delay: from an upload until the version is ready and mounted.
        score_delay: from a submission to its score.
        status_delay: after a push, the status is that of the version before for this time.
        submissions_a_day: the daily limit.
        session_limit: the longest session.
        rules_accepted: whether the account accepted the competition's rules.
        phone_verified: whether the account may use GPUs and internet.
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
    """One account, its durable state, and the lock that every reader and writer of the state holds.

    The keys of `state`: `format`; `datasets` and `kernels` by slug (no slug is in both); `deleted_kernels`,
    their slugs; `blobs` by token; `submissions` and `changes` in order; `last_id`; `saved_at`; and of the
    quota `gpu_seconds` and `refresh_at`. All times are seconds since 1970.

    Tests may set `before_change` and `after_change`. They are called with method and name before a request
    takes effect, and again when its effect is durable but not yet answered.

    Args:
        folder: of the state and all files; locked until `close`.
        owner: the account's name.
        token: authenticates the account.
        settings: limits and delays.
        faults: to inject.

    Raises:
        LaunchError: another server uses the folder, its state cannot be read, or a fault is not valid.
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
        self._folder_lock = FileLock(folder / "server.lock", timeout=0, thread_local=False)
        try:
            self._folder_lock.acquire()
        except Timeout:
            raise LaunchError(
                f"another emulated Kaggle uses {folder}: stop it, or choose another folder"
            ) from None
        self._start_time, self._start_steady = time.time(), steady()
        try:
            self.state = self._load()
        except LaunchError:
            self._folder_lock.release()
            raise

    def _load(self) -> JsonObject:
        path = self.folder / "state.json"
        if not path.is_file():
            return {
                "format": _STATE_FORMAT,
                "datasets": {},
                "kernels": {},
                "deleted_kernels": [],
                "blobs": {},
                "submissions": [],
                "changes": [],
                "last_id": 1,
                "gpu_seconds": self.settings.gpu_hours_used * 3600,
                "refresh_at": self.now() + self.settings.quota_refresh,
            }
        try:
            state: JsonObject = json.loads(path.read_bytes())
        except ValueError as error:
            raise LaunchError(f"{path} cannot be read ({error}): remove {self.folder}") from error
        if state.get("format") != _STATE_FORMAT:
            raise LaunchError(f"{path} was written by another version of this project: remove {self.folder}")
        # The machine's clock may have been set back since: the service's time never runs backwards.
        self._start_time = max(self._start_time, float(state.get("saved_at", 0.0)))
        return state

    def now(self) -> float:
        """The service's time in seconds since 1970; it does not follow changes of the machine's clock."""
        return self._start_time + steady() - self._start_steady

    def save(self) -> None:
        """Write the state to disk."""
        self.state["saved_at"] = self.now()
        write_atomic(self.folder / "state.json", json.dumps(self.state))

    def close(self) -> None:
        """Unlock the folder."""
        self._folder_lock.release()

    def next_id(self) -> int:
        """A number that nothing else of the account has."""
        self.state["last_id"] += 1
        return int(self.state["last_id"])

    def change(self, method: str, slug: str, act: Callable[[], _Result]) -> _Result:
        """Run `act`, which changes the state, and save it; the tests' hooks are called before and after."""
        if self.before_change is not None:
            self.before_change(method, slug)
        with self.lock:
            result = act()
            self.save()
        if self.after_change is not None:
            self.after_change(method, slug)
        return result

    def record_change(self, method: str, slug: str) -> None:
        """Append to the list of changes; the caller saves."""
        self.state["changes"].append({"method": method, "slug": slug, "time": self.now()})

    def changes(self) -> list[JsonObject]:
        """Pushes that made a version, dataset versions, submissions and deletions, in order."""
        with self.lock:
            return list(self.state["changes"])

    def log_request(self, entry: JsonObject) -> None:
        """Append a line to the request log."""
        with self._log_lock, (self.folder / "requests.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def check_owner(self, owner: str) -> None:
        """Refuse requests about another account."""
        if owner and owner.lower() != self.owner.lower():
            raise ApiError(403, "Permission denied")

    def sign_link(self, place: str, name: str) -> str:
        """The query of a link to a file; it is valid for 10 minutes and needs no credentials.

        Args:
            place: the folder of the file, as its address names it.
            name: of the file in it.
        """
        until = int(self.now() + _LINK_SECONDS)
        signature = self._signature(place, name, until)
        return urllib.parse.urlencode({"name": name, "until": until, "signature": signature})

    def check_link(self, place: str, name: str, *, until: str, signature: str) -> None:
        """Refuse a link that expired or that `sign_link` did not make."""
        expired = not until.isdigit() or int(until) < self.now()
        if expired or signature != self._signature(place, name, int(until)):
            raise ApiError(403, "the link has expired")

    def _signature(self, place: str, name: str, until: int) -> str:
        return hashlib.sha256(f"{self.token}\0{place}\0{name}\0{until}".encode()).hexdigest()[:32]


def paginate(items: Sequence[Any], body: JsonObject) -> tuple[Sequence[Any], JsonObject]:
    """One page of a list.

    Args:
        items: the whole list.
        body: the request, with `pageSize` and `pageToken`.

    Returns:
        The items of the page, and a `nextPageToken` where more follow.
    """
    size, start = min(max(int(body.get("pageSize") or 20), 1), 200), int(body.get("pageToken") or 0)
    end = start + size
    return items[start:end], {"nextPageToken": str(end)} if end < len(items) else {}


def format_time(seconds: float) -> str:
    """A time in seconds since 1970, in the format of the API."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
