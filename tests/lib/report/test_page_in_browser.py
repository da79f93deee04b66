"""The report, its notebook and the page of an external test in headless Chromium, checked by axe-core.

Desktop, phone, light, dark, printed. The tests are skipped where the machine has no Chromium.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import campaigns
import numpy as np
import pandas as pd
import pytest
from chromium import measure, opened, started_chromium, tables_outside_the_paper, violations
from notebook_page import write_notebook_page
from playwright.sync_api import Browser

from lib.evaluation.external_test import score_external_test
from lib.report.document import REPORT_PAGE
from lib.report.external_test_page import write_page

# The rule that takes three quarters of axe-core's time. Colours depend on the scheme, and not on the width.
CONTRAST = ("color-contrast",)
VIEWS: tuple[tuple[int, Literal["light", "dark"], dict[str, tuple[str, ...]]], ...] = (
    (1280, "light", {}),
    (1280, "dark", {"only": (*CONTRAST, "link-in-text-block")}),
    (390, "dark", {"without": CONTRAST}),
    (390, "light", {"without": CONTRAST}),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_chromium() as browser:
        yield browser


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
def test_the_page_is_readable_in_every_width_and_colour_scheme(
    browser: Browser, kind: str, written, tmp_path: Path
) -> None:
    _, folder, names = written
    file, pictures = folder / REPORT_PAGE, sum(name.endswith(".png") for name in names)
    if kind == "external test":
        file, pictures = _external_test(tmp_path), 2
    with opened(browser, file) as (page, seen):
        for width, scheme, rules in VIEWS:
            found = measure(page, width=width, scheme=scheme)
            dark, light = sorted((found["ink"], found["paper"]))
            assert (found["paper"] == light) == (scheme == "light")
            assert light > 0.85 and dark < 0.15
            # On a phone a figure keeps three quarters of its size, so that its text stays readable.
            assert found["smallest_figure"] >= 0.74
            assert found["images"] == pictures and found["blank"] == 0
            assert found["scroll"] <= width and found["outside"] == []
            assert found["narrow"] == []  # no sentence in a column of two words
            assert violations(page, **rules) == []
        assert seen["messages"] == []
        assert {url.split(":")[0] for url in seen["requests"]} <= {"file", "data"}
        assert tables_outside_the_paper(page) == []


def test_the_notebook_as_a_page_is_readable_on_a_desktop_and_a_phone(
    browser: Browser, written, campaign: Path, tmp_path: Path
) -> None:
    report, _, _ = written
    session = campaigns.session_of(campaign, tmp_path / "working", experiments=tuple(campaigns.EXPERIMENTS))
    file = write_notebook_page(report, session, tmp_path)
    with opened(browser, file) as (page, _):
        # Axe sees one token of each kind: thousands of tokens differ in nothing but their text.
        page.evaluate(
            """() => { const kinds = new Set();
            for (const token of document.querySelectorAll('.highlight span')) {
              if (kinds.has(token.className)) token.replaceWith(token.textContent);
              kinds.add(token.className); } }"""
        )
        page.evaluate(
            "[...document.querySelectorAll('details')].slice(0, 5).forEach(e => { e.open = true; })"
        )
        assert page.locator("details").count() > 20 and page.locator("table").count() > 10
        for width in (1280, 390):
            found = measure(page, width=width)
            assert found["images"] > 20 and found["blank"] == 0
            assert found["scroll"] <= width and found["narrow"] == []
            assert violations(page, without=CONTRAST if width == 390 else ()) == []
