"""Fixtures of the training tests."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    """Let caplog hold the lines that a kernel's log shows."""
    caplog.set_level(logging.INFO, logger="lib")
