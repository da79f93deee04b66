"""report.html in headless Chromium, as wide as a desk's screen and as a phone's.

Needs Chromium and playwright; HCD_BROWSER_PYTHON names a Python that has playwright where this one has not.
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
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    if not _has_playwright():
        pytest.skip(
            f"{_PYTHON} has no playwright (pip install playwright; or name a Python that has in HCD_BROWSER_PYTHON)"
        )
    _, folder, names = written
    command = [
        _PYTHON,
        str(Path(__file__).with_name("look.py")),
        str(folder / REPORT_PAGE),
        _CHROMIUM,
        "1280",
        "390",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [each["width"] for each in seen] == [1280, 390]
    for each in seen:
        assert each["images"] == sum(name.endswith(".png") for name in names) and each["blank"] == 0
        assert each["scroll"] <= each["inner"] == each["width"]
        assert each["outside"] == [] and each["said"] == []
        assert set(each["asked"]) <= {"file", "data"}
