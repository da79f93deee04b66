"""Open a page in headless Chromium and print what was seen as JSON: run with a Python that has playwright.

Arguments: the page, the browser, and widths in pixels.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from playwright.sync_api import sync_playwright

    page_file, browser_file, *widths = sys.argv[1:]
    seen = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"]
        )
        for width in map(int, widths):
            page = browser.new_page(viewport={"width": width, "height": 900})
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(Path(page_file).resolve().as_uri())
            page.wait_for_load_state("networkidle")
            seen.append(
                {
                    "width": width,
                    "inner": page.evaluate("innerWidth"),
                    "scroll": page.evaluate("document.documentElement.scrollWidth"),
                    "images": page.evaluate("document.images.length"),
                    "blank": page.evaluate(
                        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                    ),
                    "outside": page.evaluate(
                        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
                        "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName)"
                    ),
                    "said": said,
                    "asked": sorted({url.split(":")[0] for url in asked}),
                }
            )
        browser.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
