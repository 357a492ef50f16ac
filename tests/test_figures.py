"""The numbers of each figure, how they are drawn and written, and the files beside the page."""

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_kit import LENGTHS, NASTY, TASKS, nasty_page, on_test, page_of

from mixtune.report import draw, figures, plots
from mixtune.report.page import csv_files, file, page_files, standalone
from mixtune.report.wording import (
    ends,
    fit,
    lines,
    number,
    percent,
    plain,
    signed,
    some,
    summary,
    width,
    wrap,
)


def test_each_figure_has_a_csv_with_exact_numbers():
    page = page_of()
    written = csv_files(page)
    names = "matrix floors curves counts shares lengths runs results claims estimates clean judged"
    assert set(written) == {f"{name}.csv" for name in names.split()}
    matrix = csv.DictReader(io.StringIO(written["matrix.csv"]))
    rows = {(r["cocktail"], r["task"]): r for r in matrix}
    for mean in page.means:
        assert float(rows[mean.subject, mean.target]["value"]) == mean.value
    for gap in page.differences:
        row = rows[gap.subject, gap.target]
        assert (float(row["difference"]), float(row["low"])) == (gap.value, gap.low)
    assert rows["toy-topic", "toy-topic"]["difference"] == ""
    assert len(written["curves.csv"].splitlines()) == 1 + 300


def test_curves_are_thinned_by_averaging():
    points = [figures.CurvePoint("r", "c", 1, s, float(s), 0.1, 1.0) for s in range(1, 101)]
    line = plots.thinned(points, 50)
    assert line[0] == (1.5, 1.5) and line[-1] == (99.5, 99.5) and len(line) == 50
    assert plots.thinned(points, 100) == [(float(s), float(s)) for s in range(1, 101)]


def test_ties_for_the_best_go_to_the_first_by_name():
    page = page_of()
    tied = replace(page, means=[replace(m, value=0.5) for m in page.means])
    assert {a.cell.cocktail for a in figures.answers(tied)} == {"toy-sentiment"}
    assert {a.runner_up.cocktail for a in figures.answers(tied)} == {"toy-sentiment+toy-topic"}


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(None), "–"),
        (number(0.12345), "0.123"),
        (signed(-0.0214), "−0.021"),
        (signed(0.0214), "+0.021"),
        (percent(0.0), "0.0 %"),
        (percent(0.0004), "<0.1 %"),
        (some("a"), "a"),
        (some("a, b, c, d"), "a, b, c, d"),
        (some("a, b, c, d, e"), "a, b, c and 2 more"),
        (ends(None, None), "too few"),
        (ends(-0.1, 0.2, True), "[−0.100,\xa0+0.200]"),
    ],
)
def test_how_numbers_are_written(shown, wanted):
    assert shown == wanted


# drawing


def drawn(svg):
    """A figure as a tree; fails where it is not well-formed."""
    return ElementTree.fromstring(standalone(svg))


def words(svg):
    return [e.text for e in drawn(svg).iter() if e.tag.endswith("}text")]


def heat_of(page):
    heat = plots.heats(page, figures.cells(page))[0]
    return heat, draw.heat_map(heat, page.tasks, page.main_metrics, "h")


def test_a_cell_of_the_heat_map_has_the_colour_of_its_difference():
    heat, svg = heat_of(page_of())
    shades = {key: draw.shade(cell, heat.step) for key, cell in heat.at.items()}
    assert heat.step == 0.15  # the widest difference is 0.41 of 4 steps
    assert shades["toy-topic", "toy-sentiment"] == "d3"  # −0.408
    assert shades["toy-sentiment+toy-topic", "toy-sentiment"] == "u1"  # +0.054, above 0
    assert shades["toy-sentiment+toy-topic", "toy-topic"] == "d0"  # −0.018, holds 0
    assert shades["toy-topic", "toy-topic"] == "s"
    for name in shades.values():
        assert f'class="c {name}"' in svg
    assert {"0.867", "+0.054", "0.404", "−0.408", "single"} <= set(words(svg))


def test_colour_is_strong_only_where_zero_is_excluded():
    page = page_of()
    wide = [replace(d, low=-0.9, high=0.9) for d in page.differences]
    none = [replace(d, low=None, high=None) for d in page.differences]
    for gaps in (wide, none):
        heat, _ = heat_of(replace(page, differences=gaps))
        assert {draw.shade(c, heat.step) for c in heat.at.values()} <= {"u0", "d0", "s"}


def test_cells_at_the_floor_are_hatched():
    heat, svg = heat_of(page_of())
    assert sum(cell.floored for cell in heat.at.values()) == 2
    assert svg.count("fill:url(#h)") == 2 + 1  # and one in the legend


def test_a_forest_plot_has_all_cocktails_the_best_first_and_the_floors():
    page = page_of()
    forest = plots.forests(page, figures.cells(page))[0]
    assert [c.value for c in forest.cells] == sorted((c.value for c in forest.cells), reverse=True)
    assert forest.references == {
        "single": 0.8123, "majority": 0.4111, "chance": 1 / 3, "untuned base": 0.3777,
    }  # fmt: skip
    said = words(draw.forest_plot(forest))
    assert "majority 0.411" in said and "0.867" in said and "Sentiment of headlines" in said


def test_axes_have_round_ticks_within_their_ends():
    assert draw.Scale(0, 103, 0, 1).ticks(4) == [0, 50, 100]
    assert draw.Scale(-0.11, 0.32, 0, 1).ticks(4) == [0, 0.2]
    assert draw.Scale(5, 5, 10, 20)(5) == 10


def test_shares_are_of_the_whole_cocktail():
    page = page_of()
    mix = page.mixes[0][1]
    other = replace(mix, ingredient="toy-sentiment", rows_got=20, supervised_tokens=12345 * 3)
    rows = plots.portions(replace(page, mixes=[(page.runs[2].id, mix), (page.runs[2].id, other)]))
    assert [(p.asked, p.got, p.supervised) for p in rows] == [(0.5, 0.95, 0.25), (0.5, 0.05, 0.75)]
    by_tokens = [replace(m, share_asked=0.5, share_got=0.4, unit="tokens") for m in (mix, other)]
    pairs = [(page.runs[2].id, m) for m in by_tokens]
    rows = plots.portions(replace(page, mixes=pairs))
    assert [(p.unit, p.asked, p.got) for p in rows] == [("tokens", 0.5, 0.4)] * 2
    assert plots.portions(page) == []  # one ingredient has no shares


def test_every_figure_is_a_file_that_drawing_programs_read():
    for page in (page_of(lengths=[LENGTHS]), nasty_page(), on_test()):
        files = page_files(page)
        figures_of = [name for name in files if name.endswith(".svg")]
        assert len(figures_of) >= 5
        for name in figures_of:
            assert re.fullmatch(r"[a-z0-9-]+\.svg", name)
            tree = ElementTree.fromstring(files[name])
            assert not [e for e in tree.iter() if e.tag.endswith("}script")]
            assert "var(" not in files[name] and "light-dark(" not in files[name]


# text from outside


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\nb", "a\\nb"),
        ("\x00", "\\x00"),
        ("x" * 401, "x" * 399 + "…"),
        ("数据", "数据"),
    ],
)
def test_text_from_outside_is_made_plain(text, shown):
    assert plain(text) == shown


def test_long_text_keeps_its_start_and_end():
    shown = lines("start\n" + "x" * 100_000 + "\nend\x07")
    assert shown.startswith("start\n") and shown.endswith("\nend\\x07") and len(shown) < 4200


@given(st.text(max_size=300), st.floats(20, 300), st.integers(1, 3))
def test_wrapped_names_fit(name, room, at_most):
    found = wrap(name, room, 10.5, at_most)
    assert len(found) <= at_most
    assert all(width(line, 10.5) <= room for line in found)
    assert all(c.isprintable() or c == "\xa0" for line in found for c in line)


def test_names_break_behind_the_plus():
    assert wrap("aaa+bbb+ccc", 60, 10.5, 3) == ["aaa+bbb+", "ccc"]
    assert fit(NASTY, 50, 10).endswith("…")


def test_the_first_sentence_counts_every_task_once():
    assert summary([], False) == ""
    assert summary(figures.answers(page_of()), False).count(" on 1 ") == 1
    assert set(TASKS) == {a.task for a in figures.answers(page_of())}


def test_where_no_task_was_trained_on_alone_the_first_sentence_says_so():
    found = [a for a in figures.answers(page_of()) if a.cell]
    bare = [replace(a, cell=replace(a.cell, cocktail="b+c", difference=None)) for a in found]
    assert summary(bare, True).startswith("No task has a single-task run")
    assert "there is no single-task run to compare with" in summary([found[0], bare[1]], False)


# colours


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(dark):
    css = file("figure.css") + file("page.css")
    both = re.findall(r"(--[\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: night if dark else day for name, day, night in both}
    last = "#14171b" if dark else "#ffffff"
    ink, paper, card = colours["--ink"], colours["--paper"], colours["--card"]
    pairs = [(ink, colours[f"--{side}{i}"]) for side in "ud" for i in (0, 1, 2)]
    pairs += [("#14171b", colours[f"--{side}3"]) for side in "ud"]
    pairs += [(last, colours[f"--{side}4"]) for side in "ud"]
    pairs += [(colours["--note"], colours["--note-bg"])]
    text = ("--ink", "--dim", "--up", "--down", "--mark", "--note")
    pairs += [(colours[name], back) for name in text for back in (paper, card)]
    assert len(pairs) == 23
    assert all(contrast(*pair) >= 4.5 for pair in pairs), [p for p in pairs if contrast(*p) < 4.5]
