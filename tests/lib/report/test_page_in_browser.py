"""The page report.html in headless Chromium, as wide as a desktop screen and as a phone.

It needs Chromium and playwright. HCD_BROWSER_PYTHON names another Python that has playwright.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.report.document import REPORT_PAGE

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PYTHON = os.environ.get("HCD_BROWSER_PYTHON", sys.executable)


def _has_playwright() -> bool:
    try:
        return (
            subprocess.run(
                [_PYTHON, "-c", "import playwright.sync_api"], capture_output=True, check=False
            ).returncode
            == 0
        )
    except OSError:
        return False


def test_every_figure_shows_and_nothing_overflows(written) -> None:
    if _CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    if not _has_playwright():
        pytest.skip(
            f"{_PYTHON} has no playwright (pip install playwright, or name another in HCD_BROWSER_PYTHON)"
        )
    _, folder, names = written
    command = [
        _PYTHON,
        str(Path(__file__).with_name("browser_page.py")),
        str(folder / REPORT_PAGE),
        _CHROMIUM,
        "1280",
        "390",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout)
    assert [page["width"] for page in pages] == [1280, 390]
    for page in pages:
        assert page["images"] == sum(name.endswith(".png") for name in names) and page["blank"] == 0
        assert page["scroll"] <= page["inner"] == page["width"]
        assert page["outside"] == [] and page["messages"] == []
        assert set(page["schemes"]) <= {"file", "data"}
