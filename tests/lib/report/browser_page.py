"""Open a page in headless Chromium and print its measurements as JSON. It needs a Python with playwright.

Arguments: the page, the browser, the file axe.min.js of axe-core or an empty text, and pairs of a width in
pixels and a colour scheme, such as 390:dark.
"""

import json
import sys
from pathlib import Path

# The share of black and white between the text and the background of the body: WCAG's relative luminance.
_LUMINANCES = """() => ['color', 'backgroundColor'].map(name => {
  const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
})"""
_OUTSIDE = (
    "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
    "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName)"
)
_SMALLEST = (
    "Math.min(...[...document.images].map(i => "
    "i.getBoundingClientRect().width / Number(i.getAttribute('width'))))"
)
_AXE = (
    "axe.run().then(result => result.violations.map(v => `${v.id}: ${v.nodes.map(n => n.html).join(' ')}`))"
)


def main() -> None:
    from playwright.sync_api import sync_playwright

    page_file, browser_file, axe_file, *views = sys.argv[1:]
    measurements = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_file,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
        )
        for width, scheme in (view.split(":") for view in views):
            page = browser.new_page(
                viewport={"width": int(width), "height": 900}, color_scheme=scheme, bypass_csp=bool(axe_file)
            )
            messages: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, messages=messages: messages.append(message.text))
            page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(Path(page_file).resolve().as_uri())
            page.wait_for_load_state("networkidle")
            ink, paper = page.evaluate(_LUMINANCES)
            measurement = {
                "width": int(width),
                "inner": page.evaluate("innerWidth"),
                "scroll": page.evaluate("document.documentElement.scrollWidth"),
                "images": page.evaluate("document.images.length"),
                "blank": page.evaluate(
                    "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                ),
                "outside": page.evaluate(_OUTSIDE),
                "smallest_figure": page.evaluate(_SMALLEST),
                "ink": ink,
                "paper": paper,
                "messages": messages,
                "schemes": sorted({url.split(":")[0] for url in requests}),
            }
            if axe_file:
                page.add_script_tag(path=axe_file)
                measurement["violations"] = page.evaluate(_AXE)
            measurements.append(measurement)
            page.close()
        page = browser.new_page()
        page.goto(Path(page_file).resolve().as_uri())
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 960})  # A4 without its margins, at 96 pixels an inch
        tables = "[...document.querySelectorAll('table')]"
        broken = f"{tables}.filter(t => t.getBoundingClientRect().right > innerWidth + 0.5)"
        measurements.append(
            {
                "width": "print",
                "tables_outside": page.evaluate(f"{broken}.map(t => t.getAttribute('aria-label'))"),
            }
        )
        browser.close()
    print(json.dumps(measurements))


if __name__ == "__main__":
    main()
