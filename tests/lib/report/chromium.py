"""Headless Chromium for tests: the one of the system or playwright's own, and what is measured in a page."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
_PATIENCE = 300_000  # milliseconds: on a loaded machine a page of 3 MB takes more than the 30 s of playwright
_ABSENT = "no Chromium is installed: apt-get install chromium, or .venv/bin/playwright install chromium"
# The share of black and white between the text and the background of the body: WCAG's relative luminance.
_LUMINANCES = """() => ['color', 'backgroundColor'].map(name => {
  const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
})"""
_OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(
  e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName)"""
_SMALLEST = """() => Math.min(...[...document.images].map(
  i => i.getBoundingClientRect().width / Number(i.getAttribute('width'))))"""
_NARROW = """() => [...document.querySelectorAll('td')].filter(
  c => c.textContent.length > 40 && c.getBoundingClientRect().width < 150).map(c => c.textContent)"""
_BLANK = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
_WIDE_TABLES = """() => [...document.querySelectorAll('table')].filter(
  t => t.getBoundingClientRect().right > innerWidth + 0.5).map(t => t.getAttribute('aria-label'))"""


@contextmanager
def started_chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where the machine has none."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, _NAMES)), playwright.chromium.executable_path)
        if not Path(found).is_file():
            pytest.skip(_ABSENT)
        browser = playwright.chromium.launch(executable_path=found, args=_OPTIONS, timeout=_PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, file: Path) -> Iterator[tuple[Page, dict[str, list[str]]]]:
    """A page without a network; its messages and requested addresses, which grow while it is open."""
    page = browser.new_page()
    page.set_default_timeout(_PATIENCE)
    seen: dict[str, list[str]] = {"messages": [], "requests": []}
    page.on("console", lambda message: seen["messages"].append(message.text))
    page.on("pageerror", lambda error: seen["messages"].append(str(error)))
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.route("http*://**", lambda route: route.abort())
    page.goto(file.resolve().as_uri())
    yield page, seen
    page.close()


def measure(page: Page, *, width: int, scheme: Literal["light", "dark"] = "light") -> dict[str, Any]:
    """Colours, figures, and what is wider than the page, in a window of this width and in this scheme."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    ink, paper = page.evaluate(_LUMINANCES)
    return {
        "scroll": page.evaluate("document.documentElement.scrollWidth"),
        "images": page.evaluate("document.images.length"),
        "blank": page.evaluate(_BLANK),
        "outside": page.evaluate(_OUTSIDE),
        "narrow": page.evaluate(_NARROW),
        "smallest_figure": page.evaluate(_SMALLEST),
        "ink": ink,
        "paper": paper,
    }


def tables_outside_the_paper(page: Page) -> list[str]:
    """The tables that a printed A4 page would cut."""
    page.emulate_media(media="print", color_scheme="light")
    page.set_viewport_size({"width": 680, "height": 960})  # A4 without its margins, at 96 pixels an inch
    return page.evaluate(_WIDE_TABLES)


def violations(page: Page, *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> list[str]:
    """What axe-core objects to: by all of its rules, by some, or by all but some."""
    options: dict[str, Any] = {
        "resultTypes": ["violations"],
        "rules": {rule: {"enabled": False} for rule in without},
    }
    if only:
        options["runOnly"] = {"type": "rule", "values": list(only)}
    found = Axe().run(page, options=options).response["violations"]
    return [f"{rule['id']}: {json.dumps([node['html'] for node in rule['nodes'][:5]])}" for rule in found]
