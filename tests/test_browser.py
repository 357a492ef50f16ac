"""The page in a browser: Debian's Chromium driven by Playwright, from files, no network."""

import csv
import io
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from report_kit import LENGTHS, TASKS, big_page, evidence, nasty_page, page_of, result

from mixtune.records import DataRow
from mixtune.report.page import page_files, render

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def browser():
    """Skips where there is no browser; in CI that is a failure."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or not CHROMIUM.exists():
        missing = "playwright" if sync_playwright is None else str(CHROMIUM)
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing: .ci/run has to install it")
        pytest.skip(f"{missing} is missing: apt-get install chromium, pip install playwright")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages as files, by name."""
    folder = tmp_path_factory.mktemp("report")
    made = {
        "plain": page_of(lengths=[LENGTHS]),
        "nasty": nasty_page(),
        "bare": page_of(results=[], means=[], differences=[], mixes=[], curves={}, runs=[]),
        "big": big_page(14, 2),
        "many": many_page(),
        "whole": page_of(lengths=[LENGTHS], **evidence()),
    }
    for name, page in made.items():
        (folder / name / page.split).mkdir(parents=True)
        (folder / name / "index.html").write_text(render(page), encoding="utf-8")
        for file, text in page_files(page).items():
            (folder / name / page.split / file).write_text(text, encoding="utf-8", newline="")
    return {name: (folder / name / "index.html").as_uri() for name in made}


def many_page():
    """Long names: seven cocktails at the floor, one dataset dropped for many reasons."""
    page, name = page_of(), "toy-mood+toy-sentiment+toy-topic"
    low = [result(f"{name}-{i}", task, 0.2, i) for i in range(7) for task in TASKS]
    theirs = [result("theirs", task, 0.6, None) for task in TASKS]
    why = "; ".join(f"reason number {i} is: {i}" for i in range(5))
    return replace(
        page,
        results=[*page.results, *low, *theirs],
        runs=[replace(run, cocktail=name) for run in page.runs],
        data=[
            DataRow(
                "toy-topic", "validation", "hub: " + "a-name/" * 9, 500, 12, why, 7, 481, "", {}
            )
        ],
    )


class Visit:
    """A page in a window: what it complained about and asked for is kept."""

    def __init__(self, browser, address, width=1440, scheme="light", script=True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.set_default_timeout(5000)
        self.page.goto(address)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()

    def ask(self, script):
        return self.page.evaluate(script)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "nasty", "bare", "big", "whole"])
def test_a_page_loads_in_silence_and_fits(browser, pages, name, width):
    with Visit(browser, pages[name], width) as visit:
        assert visit.complaints == []
        assert visit.requests == [pages[name]]
        assert visit.ask("document.documentElement.scrollWidth") <= width
        assert visit.ask("document.body.innerText.length") > 500
        visit.ask("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert visit.ask("document.documentElement.scrollWidth") <= width


AXE = [("whole", width, scheme) for width in WIDTHS for scheme in ("light", "dark")]
AXE += [("big", 360, "dark"), ("big", 1440, "light")]  # more of the same parts; many seconds each


@pytest.mark.parametrize(("name", "width", "scheme"), AXE)
def test_axe_finds_nothing_serious(browser, pages, name, width, scheme):
    """Contrast, names, roles, order of headings, keyboard: the rules of axe-core."""
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, pages[name], width, scheme) as visit:
        visit.ask("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        found = Axe().run(visit.page).response["violations"]
        grave = [
            (rule["id"], rule["nodes"][0]["target"], rule["nodes"][0]["failureSummary"])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert grave == []


def test_light_and_dark_differ_and_the_button_chooses(browser, pages):
    with (
        Visit(browser, pages["plain"]) as visit,
        Visit(browser, pages["plain"], scheme="dark") as night,
    ):
        light, dark = visit.page.screenshot(), night.page.screenshot()
        assert light != dark
        paper = "getComputedStyle(document.body).backgroundColor"
        assert visit.ask(paper) == "rgb(255, 255, 255)" != night.ask(paper)
        button = visit.page.locator("#theme")
        for name, colour in (("light", visit.ask(paper)), ("dark", night.ask(paper))):
            button.click()
            assert button.inner_text() == f"Theme: {name}"
            assert visit.ask(paper) == colour
        visit.page.reload()
        assert visit.ask(paper) == night.ask(paper)
        button.click()
        assert button.inner_text() == "Theme: auto" and visit.ask(paper) == "rgb(255, 255, 255)"


def test_a_column_sorts_both_ways_by_number(browser, pages):
    with Visit(browser, pages["plain"]) as visit:
        table = visit.page.locator("table.matrix").first
        rows = lambda: table.locator("tbody th").all_inner_texts()  # noqa: E731
        before = rows()
        press = table.locator("thead button").nth(1)
        press.focus()
        visit.page.keyboard.press("Enter")
        assert rows() == ["toy-topic", "toy-sentiment", "toy-sentiment+toy-topic"] != before
        assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"
        press.click()
        assert rows() == ["toy-sentiment+toy-topic", "toy-sentiment", "toy-topic"]


def test_the_heat_map_reads_out_a_cell_by_pointer_and_by_key(browser, pages):
    with Visit(browser, pages["plain"]) as visit:
        figure = visit.page.locator(".heat .panel").first
        said = figure.locator(".readout")
        figure.locator('.c[data-r="2"][data-c="0"]').hover()
        assert "toy-sentiment+toy-topic on Sentiment of headlines" in said.inner_text()
        assert "to single +0.054" in said.inner_text()
        assert figure.locator(".hit").count() == 3 + 2 + 1
        visit.page.mouse.move(1, 1)
        figure.locator("svg").focus()
        visit.page.keyboard.press("ArrowRight")
        assert "toy-sentiment on Topic" in said.inner_text()
        visit.page.keyboard.press("ArrowRight")
        visit.page.keyboard.press("ArrowDown")
        assert "toy-topic on Topic" in said.inner_text()


def test_one_heat_map_is_shown_at_a_time(browser, pages):
    with Visit(browser, pages["big"]) as visit:
        shown = visit.page.locator(".heat .panel:visible h3")
        assert shown.all_inner_texts() == ["constrained answers"]
        visit.page.get_by_role("button", name="strict answers").click()
        assert shown.all_inner_texts() == ["strict answers"]


def test_runs_are_filtered(browser, pages):
    with Visit(browser, pages["plain"]) as visit:
        rows = visit.page.locator("#run-table tbody tr:visible")
        assert rows.count() == 3
        visit.page.locator("#find").fill("sentiment+")
        assert rows.count() == 1 and visit.page.locator("#found").inner_text() == "1 of 3"


def test_the_page_is_complete_without_its_script(browser, pages):
    with Visit(browser, pages["big"], script=False) as visit:
        assert visit.page.locator(".heat .panel:visible").count() == 2
        assert visit.page.locator("#run-table tbody tr:visible").count() == 28
        assert visit.page.locator("button:visible, input:visible").count() == 0


def test_the_links_lead_to_the_numbers_and_the_figure(browser, pages):
    """A page that is opened from disk links to files next to it, which have no server."""
    with Visit(browser, pages["plain"]) as visit:
        figure = visit.page.locator(".heat .panel").first
        texts = {}
        for name in ("CSV", "SVG"):
            link = figure.get_by_role("link", name=name)
            target = urlparse(link.evaluate("anchor => anchor.href"))
            texts[name] = Path(unquote(target.path)).read_text(encoding="utf-8")
        rows = {(r["cocktail"], r["task"]): r for r in csv.DictReader(io.StringIO(texts["CSV"]))}
        assert float(rows["toy-sentiment+toy-topic", "toy-sentiment"]["value"]) == 0.8666
        assert ">0.867</text>" in texts["SVG"]


@pytest.mark.parametrize("name", ["plain", "nasty", "bare", "big", "many"])
def test_a_page_fits_on_paper(browser, pages, name):
    """718 pixels: what A4 leaves between usual margins."""
    with Visit(browser, pages[name], 718) as visit:
        visit.page.emulate_media(media="print")
        visit.ask("dispatchEvent(new Event('beforeprint'))")
        assert visit.ask("document.documentElement.scrollWidth") <= 718
        cut = "[...document.querySelectorAll('.wide')].filter((t) => t.scrollWidth > t.clientWidth)"
        assert visit.ask(f"{cut}.length") == 0
        shown = visit.page.locator("table.matrix:not(.effects):visible").count()
        assert shown == {"plain": 1, "nasty": 1, "bare": 0, "big": 0, "many": 1}[name]


def test_rows_of_long_lists_stay_low_on_narrow_screens(browser, pages):
    with Visit(browser, pages["many"], 360) as visit:
        assert "and 5 more" in visit.page.locator("#floors tbody tr").first.inner_text()
        for part in ("#floors", "#data"):
            rows = visit.page.locator(f"{part} tbody tr")
            assert rows.evaluate_all("(rows) => Math.max(...rows.map((r) => r.offsetHeight))") < 125


def test_the_table_of_counts_is_whole_on_a_wide_screen(browser, pages):
    with Visit(browser, pages["many"], 1440) as visit:
        table = visit.page.locator("table.counts")
        assert table.evaluate("(t) => t.scrollWidth - t.parentElement.clientWidth") <= 0
        name = table.locator("tbody tr").first
        assert name.inner_text().startswith("toy-mood+toy-sentiment+toy-topic")
        assert name.evaluate("(row) => row.offsetHeight") < 60  # two lines


OVERLAPS = """() => [...document.querySelectorAll('svg.fig')].flatMap((svg) => {
  const [size, found] = [svg.viewBox.baseVal, []];
  const boxes = [...svg.querySelectorAll('text')].map((text) => {
    const [box, place] = [text.getBBox(), text.getCTM()];
    const [l, t] = [box.x + place.e / place.a, box.y + place.f / place.d];
    return {l, t, r: l + box.width, b: t + box.height, text: text.textContent};
  });
  boxes.forEach((a, i) => {
    if (a.l < -1 || a.r > size.width + 1 || a.b > size.height + 2) found.push('outside: ' + a.text);
    for (const b of boxes.slice(i + 1)) {
      const across = Math.min(a.r, b.r) - Math.max(a.l, b.l);
      const down = Math.min(a.b, b.b) - Math.max(a.t, b.t);
      if (across > 0.5 && down > 4) found.push(a.text + ' | ' + b.text);
    }
  });
  return found;
})"""


@pytest.mark.parametrize("name", ["plain", "nasty", "big"])
def test_no_text_of_a_figure_lies_on_another_or_outside(browser, pages, name):
    with Visit(browser, pages[name], script=False) as visit:
        assert visit.ask(OVERLAPS) == []
