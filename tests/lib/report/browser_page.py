"""Open a page in headless Chromium and print its measurements as JSON. It needs a Python with playwright.

Arguments: the page, the browser, and widths in pixels.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from playwright.sync_api import sync_playwright

    page_file, browser_file, *widths = sys.argv[1:]
    measurements = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"]
        )
        for width in map(int, widths):
            page = browser.new_page(viewport={"width": width, "height": 900})
            messages: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, messages=messages: messages.append(message.text))
            page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(Path(page_file).resolve().as_uri())
            page.wait_for_load_state("networkidle")
            measurements.append(
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
                    "messages": messages,
                    "schemes": sorted({url.split(":")[0] for url in requests}),
                }
            )
        browser.close()
    print(json.dumps(measurements))


if __name__ == "__main__":
    main()
