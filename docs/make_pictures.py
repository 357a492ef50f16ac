"""Pictures of a study's page: `python docs/make_pictures.py [PAGE.html [NAME]]`.

Without an argument the page of studies/quickstart.yaml, which `mixtune report` has written: the
README's. With a name, docs/pictures/NAME-{desktop,phone}-{light,dark}.png of that page.

Knows: Playwright and Debian's Chromium, how much of a page is shown. Does not know: what is on it.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "runs/quickstart/report/index.html"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-lcd-text"]
DESKTOP: ViewportSize = {"width": 1280, "height": 1340}
PHONE: ViewportSize = {"width": 390, "height": 1340}
LARGEST = 300_000
"""Bytes of a picture."""


def main() -> int:
    """Write the pictures; 1 where one is too large, 2 where there is no page."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    if not page.is_file():
        sys.stderr.write(f"{page} is not there: mixtune report studies/quickstart.yaml\n")
        return 2
    sizes = {"report": DESKTOP}
    if len(sys.argv) > 2:
        sizes = {f"{sys.argv[2]}-desktop": DESKTOP, f"{sys.argv[2]}-phone": PHONE}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        made = [
            picture for name, size in sizes.items() for picture in _take(browser, page, name, size)
        ]
        browser.close()
    return int(any(picture.stat().st_size > LARGEST for picture in made))


def _take(browser: Browser, page: Path, name: str, size: ViewportSize) -> list[Path]:
    """The top of the page in both schemes."""
    made = []
    for scheme in ("light", "dark"):
        window = browser.new_page(viewport=size, color_scheme=scheme)
        window.goto(page.resolve().as_uri())
        made.append(ROOT / f"docs/pictures/{name}-{scheme}.png")
        window.screenshot(path=made[-1])
        window.close()
    return made


if __name__ == "__main__":
    sys.exit(main())
