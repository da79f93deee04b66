"""A fake Kaggle account for the tests of the doctor, and the findings about it by name."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launch.doctor.command import run_checks
from launch.doctor.finding import PROBLEM, Finding
from launch.experiments import load_experiment
from launch.kaggle_api.types import ABSENT, Quota, RunStatus

TOKEN, KEY = "KGAT_" + "a1b2" * 8, "0123456789abcdef" * 2
# Where each credential is kept, in the order of the client, and its content.
PLACES = {
    "environment": ("KAGGLE_API_TOKEN", TOKEN),
    "file": (".kaggle/access_token", TOKEN),
    "file.txt": (".kaggle/access_token.txt", TOKEN),
    "kaggle.json": (".kaggle/kaggle.json", json.dumps({"username": "alice", "key": KEY})),
    "OAuth": (".kaggle/credentials.json", json.dumps({"refresh_token": TOKEN, "username": "alice"})),
}
REFRESH = datetime.now(UTC) + timedelta(days=2)  # of the quota, the same for every account
EXPERIMENT = load_experiment("smoke", ["expected_hours=2.0", "num_folds=3"])


class FakeKaggle:
    """An account without problems; a test replaces single responses."""

    def __init__(self, **changes: Any) -> None:
        self.user = "alice"
        self.retry_policy = None
        self.api = SimpleNamespace(config_values={"auth_method": "ACCESS_TOKEN"})
        self.requested: list[str] = []
        self.responses = {
            "has_entered": True,
            "submissions": [],
            "quota": Quota(used=3.0, allowed=30.0, refresh=REFRESH),
            "status": RunStatus(ABSENT),
            "pull": None,
            "dataset": None,
            **changes,
        }

    def _respond(self, name: str, *arguments: Any) -> Any:
        self.requested.append(name)
        response = self.responses[name]
        if callable(response):
            response = response(*arguments)
        if isinstance(response, Exception):
            raise response
        return response

    def has_entered(self) -> Any:
        return self._respond("has_entered")

    def submissions(self) -> Any:
        return self._respond("submissions")

    def quota(self) -> Any:
        return self._respond("quota")

    def status(self, slug: str) -> Any:
        return self._respond("status", slug)

    def pull(self, slug: str) -> Any:
        return self._respond("pull", slug)

    def dataset(self, slug: str) -> Any:
        return self._respond("dataset", slug)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def check(kaggle: Any, home: Path, root: Path, **options: Any) -> dict[str, Finding]:
    """The findings by name; of several with one name, a problem."""
    keywords = {"experiments": [EXPERIMENT], "folder": home.parent / "check", "environment": {}, **options}
    findings: dict[str, Finding] = {}
    for finding in run_checks(kaggle, home=home, root=root, **keywords):
        if finding.name not in findings or finding.level == PROBLEM:
            findings[finding.name] = finding
    return findings
