"""Fixtures of the doctor's tests: a home folder, a checkout, and the clock of Kaggle."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_account import TOKEN, write

from launch import ROOT


@pytest.fixture(autouse=True)
def kaggles_clock(monkeypatch):
    """Kaggle's clock, `ahead` of ours by the seconds that a test sets; no test uses the network."""
    clock = SimpleNamespace(ahead=0.0, error=None)

    def head(*arguments: Any, **options: Any) -> Any:
        if clock.error is not None:
            raise clock.error
        time = datetime.now(UTC) + timedelta(seconds=clock.ahead)
        return SimpleNamespace(headers={"Date": format_datetime(time, usegmt=True)})

    monkeypatch.setattr("requests.head", head)
    return clock


@pytest.fixture
def home(tmp_path) -> Path:
    """A home folder with an access token."""
    folder = tmp_path / "home"
    write(folder / ".kaggle" / "access_token", TOKEN)
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """A checkout with the owner alice."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("lib", "kernels", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("kernel-metadata.json", "dataset-metadata.json"):
        (folder / name).write_text((ROOT / name).read_text().replace("your-kaggle-username", "alice"))
    return folder
