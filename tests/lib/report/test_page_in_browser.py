"""The page report.html in headless Chromium: on a desktop and on a phone, light, dark and printed.

It needs Chromium and playwright. HCD_BROWSER_PYTHON names another Python that has playwright. HCD_AXE names
the file axe.min.js of the npm package axe-core, whose rules are then checked as well.
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
_AXE = os.environ.get("HCD_AXE", "")
_VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
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


def test_the_page_is_readable_in_every_width_and_colour_scheme(written) -> None:
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
        _AXE,
        *(f"{width}:{scheme}" for width, scheme in _VIEWS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *pages, printed = json.loads(done.stdout)
    assert [page["width"] for page in pages] == [width for width, _ in _VIEWS]
    assert printed["tables_outside"] == []
    for page, (_, scheme) in zip(pages, _VIEWS, strict=True):
        light, dark = (page["paper"], page["ink"]) if scheme == "light" else (page["ink"], page["paper"])
        assert light > 0.85 and dark < 0.15
        # On a phone a figure keeps three quarters of its size, so that its text stays readable.
        assert page["smallest_figure"] >= 0.74
        assert page.get("violations", []) == []
        assert page["images"] == sum(name.endswith(".png") for name in names) and page["blank"] == 0
        assert page["scroll"] <= page["inner"] == page["width"]
        assert page["outside"] == [] and page["messages"] == []
        assert set(page["schemes"]) <= {"file", "data"}
