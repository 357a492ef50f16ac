"""Pictures of a study's page for the README: `python docs/make_pictures.py [PAGE.html]`.

Without an argument the page of studies/quickstart.yaml, which `mixtune report` has written.

Knows: Playwright and Debian's Chromium, how much of a page is shown. Does not know: what is on it.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "runs/quickstart/report/index.html"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-lcd-text"]
SIZE = {"width": 1280, "height": 1466}
LARGEST = 300_000
"""Bytes of a picture."""


def main() -> int:
    """Write docs/pictures/report-light.png and report-dark.png; 1 where one is too large."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    if not page.is_file():
        sys.stderr.write(f"{page} is not there: mixtune report studies/quickstart.yaml\n")
        return 2
    pictures = [ROOT / f"docs/pictures/report-{scheme}.png" for scheme in ("light", "dark")]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for picture in pictures:
            scheme = picture.stem.removeprefix("report-")
            window = browser.new_page(viewport=SIZE, color_scheme=scheme)
            window.goto(page.resolve().as_uri())
            window.screenshot(path=picture)
        browser.close()
    return int(any(picture.stat().st_size > LARGEST for picture in pictures))


if __name__ == "__main__":
    sys.exit(main())
