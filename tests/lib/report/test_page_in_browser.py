"""The report and the page of an external test in headless Chromium: desktop, phone, light, dark, printed.

It needs Chromium and playwright. HCD_BROWSER_PYTHON names another Python that has playwright. HCD_AXE names
the file axe.min.js of the npm package axe-core, whose rules are then checked as well.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.evaluation.external_test import score_external_test
from lib.report.document import REPORT_PAGE
from lib.report.external_test_page import write_page

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


def _external_test(folder: Path) -> Path:
    """The page of an external test of 240 tiles in 12 slides."""
    generator = np.random.default_rng(0)
    labels, slides = np.arange(240) % 2, np.arange(240) // 20
    logits = 2 * labels - 1 + generator.normal(0, 1.2, 240)
    probabilities, calibrated = (1 / (1 + np.exp(-slope * logits)) for slope in (1.0, 1.4))
    tiles = [f"slide-{slide:02d}/tile-{number:03d}.png" for number, slide in enumerate(slides)]
    out = folder / "predictions.csv"
    columns = {"tile": tiles, "probability": probabilities, "spread": 0.05, "calibrated": calibrated}
    pd.DataFrame(columns).to_csv(out, index=False)
    scores = score_external_test(
        labels, probabilities, calibrated=calibrated, groups=slides, grouping="slides"
    )
    member = {"experiment": "smoke", "member": 0, "backbone": "resnet34.tv_in1k", "out_of_fold_auc": 0.91}
    content = {
        "labels": {"tile": tiles, "label": labels.tolist()},
        "scores": scores,
        "members": [{**member, "fold": fold} for fold in range(5)],
        "not_scored": ["2 tiles of the labels have no picture: absent.png, lost.png"],
        "without_scaling": "",
        "notes": ["3 pictures of 128 x 128 pixels were resized to 96 x 96"],
    }
    out.with_suffix(".json").write_text(json.dumps(content))
    return write_page(out)


@pytest.mark.parametrize("kind", ["report", "external test"])
def test_the_page_is_readable_in_every_width_and_colour_scheme(kind: str, written, tmp_path: Path) -> None:
    if _CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    if not _has_playwright():
        pytest.skip(
            f"{_PYTHON} has no playwright (pip install playwright, or name another in HCD_BROWSER_PYTHON)"
        )
    _, folder, names = written
    page_file, pictures = folder / REPORT_PAGE, sum(name.endswith(".png") for name in names)
    if kind == "external test":
        page_file, pictures = _external_test(tmp_path), 2
    command = [
        _PYTHON,
        str(Path(__file__).with_name("browser_page.py")),
        str(page_file),
        _CHROMIUM,
        _AXE,
        *(f"{width}:{scheme}" for width, scheme in _VIEWS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
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
        assert page["images"] == pictures and page["blank"] == 0
        assert page["scroll"] <= page["inner"] == page["width"]
        assert page["outside"] == [] and page["messages"] == []
        assert set(page["schemes"]) <= {"file", "data"}
