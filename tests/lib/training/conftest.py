"""Fixtures of the training tests."""

import logging
import subprocess
from types import SimpleNamespace

import pytest
import warm_python

from lib.training import workers


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    """Let caplog hold the lines that a kernel's log shows."""
    caplog.set_level(logging.INFO, logger="lib")


@pytest.fixture(autouse=True)
def _warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked; the tests that are about their start use `subprocess` itself."""
    stand_in = SimpleNamespace(Popen=warm_python.Popen, PIPE=subprocess.PIPE)
    monkeypatch.setattr(workers, "subprocess", stand_in)
