"""The page: its numbers are the inputs, everything is escaped, nothing is loaded."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mixtune.records import Estimate, MixRow, Result, TrainStep
from mixtune.report import figures
from mixtune.report.inputs import DataRow, ReportInput, RunRow
from mixtune.report.page import ends, number, percent, render, signed
from mixtune.spec import dump_study, parse_study

TASKS = {"toy-sentiment": "Sentiment of headlines", "toy-topic": "Topic"}
COCKTAILS = ("toy-sentiment", "toy-topic", "toy-sentiment+toy-topic")
VALUES = {
    ("toy-sentiment", "toy-sentiment"): 0.8123,
    ("toy-sentiment", "toy-topic"): 0.3311,
    ("toy-topic", "toy-sentiment"): 0.4044,
    ("toy-topic", "toy-topic"): 0.7055,
    ("toy-sentiment+toy-topic", "toy-sentiment"): 0.8666,
    ("toy-sentiment+toy-topic", "toy-topic"): 0.6877,
}
"""(cocktail, task) → accuracy of every seed."""


def result(cocktail, task, value, seed=1, split="validation", form="strict"):
    return Result(
        system=f"{cocktail}-{seed}", cocktail=cocktail, seed=seed, task=task, split=split,
        form=form, metric="accuracy", value=value, low=value - 0.051, high=value + 0.047, n=150,
        clusters=150, unparsed=0.0, chance=1 / 3, majority=0.4111, floor=0.4111, method="Wilson",
    )  # fmt: skip


def on_test(**changes):
    """The page of the test split: the same numbers, read there."""
    page = page_of()
    moved = {
        name: [replace(row, split="test") for row in getattr(page, name)]
        for name in ("results", "means", "differences")
    }
    return replace(page, **{"split": "test", **moved, **changes})


def answer_of(page):
    return text_of(section(render(page), "answer"))


def estimate(quantity, cocktail, task, value, reference="", half=0.0313):
    return Estimate(
        quantity=quantity, subject=cocktail, reference=reference, target=task, split="validation",
        form="strict", metric="accuracy", value=value, low=value - half, high=value + half, n=150,
        clusters=150, seeds=1, method=f"bootstrap for {quantity}, given this run", seed=0,
    )  # fmt: skip


def page_of(**changes):
    study = parse_study(
        {
            "name": "toy",
            "model": "smollm2-135m",
            "tasks": list(TASKS),
            "ingredients": list(TASKS),
        }
    )
    rows = [result("majority", t, 0.4111, None) for t in TASKS]
    rows += [result("base", t, 0.3777, None) for t in TASKS]
    rows += [result(c, t, v) for (c, t), v in VALUES.items()]
    gaps = [
        estimate("difference-to-single", c, t, v - VALUES[t, t], t)
        for (c, t), v in VALUES.items()
        if c != t
    ]
    runs = [
        RunRow(f"id{i}", f"{c}-1", c, 1, "done", None, 1, 61.5 + i, f"cells/id{i}-{i}")
        for i, c in enumerate(COCKTAILS)
    ]
    steps = [TrainStep(s, 3.0 / s, 1e-3, 1.0, 16, 40, 900, 0.5) for s in range(1, 101)]
    mix = MixRow("toy-topic", 400, 390, 380, 190, 2.0, 12345, 67890, 3, 7)
    page = ReportInput(
        study=study,
        resolved_yaml=dump_study(study),
        model_note="4-bit source",
        synthetic=True,
        split="validation",
        results=rows,
        means=[estimate("mean", c, t, v) for (c, t), v in VALUES.items()],
        differences=gaps,
        mixes=[(runs[2].id, mix)],
        runs=runs,
        curves={run.id: steps for run in runs},
        created="2025-01-31 12:00 UTC",
        tasks=TASKS,
        version="0.1.0",
        test_reads=4,
        main_forms=dict.fromkeys(TASKS, "strict"),
    )
    return replace(page, **changes)


def section(html, name):
    return re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)[1]


def text_of(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html.replace("<wbr>", "")).split())


def test_every_cell_shows_its_value_and_its_difference():
    page = page_of()
    matrix = text_of(section(render(page), "matrix"))
    for mean in page.means:
        assert f"{number(mean.value)} {ends(mean.low, mean.high)}" in matrix
    for gap in page.differences:
        assert f"{signed(gap.value)} {ends(gap.low, gap.high, True)}" in matrix
    assert matrix.count("the single task itself") == 2
    assert matrix.count("given this run") >= 6


def test_the_first_sentence_is_the_answer():
    answer = text_of(section(render(page_of()), "answer"))
    assert "Sentiment of headlines : best is toy-sentiment+toy-topic , accuracy 0.867" in answer
    assert "Against toy-sentiment alone at the same steps: +0.054 [+0.023, +0.086]" in answer
    assert "given this run; its 95 % interval lies above 0" in answer
    assert "Topic : best is toy-topic" in answer
    assert "No cocktail did better than the single task; next is toy-sentiment+toy-topic" in answer
    assert "exploratory: the best was picked and is read on the same data (validation)" in answer


def test_a_cell_chosen_on_validation_is_the_one_that_test_shows():
    chosen = {"toy-sentiment": "toy-topic", "toy-topic": "toy-topic"}
    html = render(on_test(chosen=chosen))
    answer = text_of(section(html, "answer"))
    assert "Sentiment of headlines : best is toy-topic , accuracy 0.404" not in answer
    assert "Sentiment of headlines : chosen on validation: toy-topic , accuracy 0.404" in answer
    assert "a confirmed claim needs fresh seeds" in answer
    assert "NOT CONFIRMED" in html and "EXPLORATORY" not in html


def test_nothing_on_a_test_page_was_picked_on_test():
    """The single was chosen: the best other on test is not named beside it."""
    chosen = {"toy-sentiment": "toy-sentiment", "toy-topic": "toy-topic"}
    answer = answer_of(on_test(chosen=chosen))
    assert answer.count("This is the single task itself.") == 2
    assert "+" not in answer.split("These sentences")[0] and "next is" not in answer
    assert all(a.runner_up is None for a in figures.answers(on_test(chosen=chosen)))


def test_what_has_no_test_scores_is_not_replaced_by_the_best_on_test():
    answer = answer_of(on_test(chosen={"toy-sentiment": "toy-maths+toy-topic"}))
    assert "chosen on validation: toy-maths+toy-topic , no test scores yet." in answer
    assert "Topic : nothing was chosen on validation." in answer
    assert "best is" not in answer and "0.867" not in answer and "0.706" not in answer
    nothing = answer_of(on_test())
    assert "best is" in nothing and "picked and is read on the same data (test)" in nothing


def test_the_first_sentence_is_read_in_the_form_that_was_chosen_in():
    """Constrained answers rank the other way round; the matrix of the main form stands first."""
    page = page_of()
    moved = {
        name: [
            *getattr(page, name),
            *(replace(r, form="constrained", value=1 - r.value) for r in getattr(page, name)),
        ]
        for name in ("results", "means", "differences")
    }
    both = replace(page, **moved, main_forms=dict.fromkeys(TASKS, "constrained"))
    assert {a.cell.form for a in figures.answers(both)} == {"constrained"}
    assert "Sentiment of headlines : best is toy-topic , accuracy 0.596" in answer_of(both)
    html = section(render(both), "matrix")
    assert html.index("<h3>constrained") < html.index("<h3>strict")
    mixed = figures.answers(replace(both, main_forms={**both.main_forms, "toy-topic": "strict"}))
    assert [a.cell.form for a in mixed] == ["constrained", "strict"]
    strict = replace(both, main_forms=dict.fromkeys(TASKS, "strict"))
    assert section(render(strict), "matrix").index("<h3>strict") < html.index("<h3>strict")


def test_a_difference_is_marked_with_its_own_seeds():
    page = page_of()
    means = [replace(m, seeds=3, method="t, 4 df") for m in page.means]
    two = [replace(d, seeds=2) for d in page.differences]
    of_one = replace(page, means=means)
    assert "over 1 shared seed, given this run; its 95 %" in answer_of(of_one)
    assert "over 2 shared seeds; its 95 %" in answer_of(replace(of_one, differences=two))
    equal = [replace(d, seeds=3) for d in page.differences]
    answer = answer_of(replace(of_one, differences=equal))
    assert "shared" not in answer and "given this run" not in answer
    assert "over 1 shared seed" in text_of(section(render(of_one), "matrix"))
    rows = {(c.cocktail, c.task): c.difference_seeds for c in figures.cells(of_one)}
    assert rows["toy-topic", "toy-sentiment"] == 1 and rows["toy-topic", "toy-topic"] is None


def test_the_difference_to_the_base_is_shown_and_flagged():
    gaps = [
        estimate("difference-to-base", "toy-topic", "toy-topic", 0.3278, "base"),
        estimate("difference-to-base", "toy-topic", "toy-sentiment", -0.0101, "base"),
    ]
    page = page_of()
    html = render(replace(page, differences=[*page.differences, *gaps]))
    matrix = text_of(section(html, "matrix"))
    assert "to base +0.328 [+0.296, +0.359] given" in matrix
    assert "to base −0.010 [−0.041, +0.021], includes 0" in matrix
    assert matrix.count("to base") == matrix.count("includes 0") + 1 == 2
    assert "Against the untuned base: +0.328" in text_of(section(html, "answer"))


def test_only_the_split_asked_for_is_shown():
    page = page_of()
    other = [replace(m, split="test", value=0.9876) for m in page.means]
    rows = [replace(r, split="test", value=0.9876) for r in page.results]
    both = replace(page, means=[*other, *page.means], results=[*rows, *page.results])
    assert "0.988" not in render(both)
    assert render(both) == render(page)


def test_synthetic_studies_say_so():
    assert "SYNTHETIC" in render(page_of())
    assert "synthetic" not in render(page_of(synthetic=False)).lower()


def test_floors_stand_beside_scores_and_are_flagged():
    page = page_of()
    shown = text_of(section(render(page), "floors"))
    assert "Sentiment of headlines strict accuracy 0.333 0.411 0.411 0.378" in shown
    # 0.4044 on sentiment: the interval holds 0.4111; 0.3311 on topic ends at 0.378, below it
    assert "· not above the floor 1 of 3 toy-topic Topic" in shown
    assert shown.endswith("1 of 3 toy-sentiment below: 1 toy-sentiment")
    rows = {(f.task, f.form): f for f in figures.floors(page)}
    assert rows["toy-topic", "strict"].cocktails == "toy-sentiment"
    assert (rows["toy-topic", "strict"].not_above, rows["toy-topic", "strict"].below) == (1, 1)
    assert rows["toy-topic", "strict"].base_against_floor == "not above"
    matrix = section(render(page), "matrix")
    assert matrix.count(">not above the floor<") == matrix.count(">below the floor<") == 1
    assert "at floor" not in render(page)


@pytest.mark.parametrize(
    ("low", "high", "floor", "where"),
    [
        (0.5, 0.6, 0.4, "above"),
        (0.4, 0.6, 0.4, "not above"),
        (0.3, 0.4, 0.4, "not above"),
        (0.2, 0.3, 0.4, "below"),
        (None, None, 0.4, ""),
        (0.2, 0.3, None, ""),
    ],
)
def test_where_an_interval_lies_against_the_floor(low, high, floor, where):
    assert figures.against_floor(low, high, floor) == where


def test_no_floor_is_not_none_at_the_floor():
    page = page_of()
    bare = [replace(r, floor=None, majority=None) for r in page.results]
    shown = text_of(section(render(replace(page, results=bare)), "floors"))
    assert shown.count("no majority class was scored") == 2 and "none of" not in shown
    rows = [replace(r, chance=None) for r in bare]
    open_task = text_of(section(render(replace(page, results=rows)), "floors"))
    assert open_task.count("no floor") >= 2 and "too few" not in open_task
    assert "majority class was scored" not in open_task
    assert all(f.missing == "no floor" for f in figures.floors(replace(page, results=rows)))


def test_too_few_is_said_in_words():
    page = page_of()
    bare = {
        name: [replace(row, low=None, high=None) for row in getattr(page, name)]
        for name in ("results", "means", "differences")
    }
    html = render(replace(page, **bare))
    matrix = text_of(section(html, "matrix"))
    assert matrix.count("too few") == len(page.means) + len(page.differences)
    assert "too few clusters for an interval" in text_of(section(html, "answer"))
    assert "too few to say" in section(html, "floors")


def test_unread_answers_are_counted_apart():
    page = page_of()
    assert "Every answer was in the form asked for" in section(render(page), "unread")
    rows = [replace(r, unparsed=0.125) if r.cocktail == "base" else r for r in page.results]
    shown = text_of(section(render(replace(page, results=rows)), "unread"))
    assert "base strict 12.5 % 12.5 %" in shown and "toy-topic strict" not in shown


def test_data_counts_are_the_runs_own():
    shown = text_of(section(render(page_of()), "data"))
    assert "toy-sentiment+toy-topic 1 toy-topic 400 390 380 190 2.00 12345 67890 3 7" in shown


def test_what_was_read_and_taken_out_is_shown():
    row = DataRow("toy-topic", "train", "a folder", 500, 12, "no label: 9, empty: 3", 7, 481)
    shown = text_of(section(render(page_of(data=[row])), "data"))
    assert "toy-topic train 500 12 no label: 9, empty: 3 7 481 a folder" in shown
    clean = text_of(section(render(page_of(data=[replace(row, dropped=0, why="")])), "data"))
    assert "toy-topic train 500 0 – 7 481" in clean


def test_the_methods_say_that_f1_pools_the_questions():
    page = page_of()
    assert "pools the questions" not in section(render(page), "methods")
    rows = [*page.results, *(replace(r, metric="macro-f1") for r in page.results)]
    assert "F1 pools the questions" in section(render(replace(page, results=rows)), "methods")


def test_a_run_without_a_seed_has_a_dash():
    page = page_of()
    fixed = replace(page.runs[0], cocktail="base", seed=None, state="failed", error="broke")
    html = render(replace(page, runs=[fixed]))
    assert "base – failed" in text_of(section(html, "runs"))
    assert "base, seed – failed" in text_of(section(html, "failures"))
    assert "None" not in section(html, "runs") + section(html, "failures")


def test_every_run_is_listed_and_failures_keep_their_error():
    page = page_of()
    broken = replace(page.runs[0], state="failed", error="out of memory\n  at step 12", attempts=3)
    html = render(replace(page, runs=[broken, *page.runs[1:]]))
    for run in page.runs:
        assert run.id in section(html, "runs")
    assert "out of memory\n  at step 12" in section(html, "failures")
    assert "2 of 3 runs are done, 1 failed" in text_of(section(html, "answer"))
    assert "No run failed" in section(render(page), "failures")


NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Collects tags and attributes of a page; complains about a tag that is never closed."""

    VOID = frozenset({"meta", "br", "line", "circle", "wbr"})

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


def nasty_page():
    page = page_of()
    runs = [
        RunRow(NASTY, NASTY, NASTY, 1, NASTY, NASTY, 1, None, NASTY),
        replace(page.runs[0], state="failed", error=NASTY),
    ]
    means = [replace(page.means[0], subject=NASTY, method=NASTY), *page.means]
    rows = [replace(page.results[2], cocktail=NASTY, unparsed=0.5), *page.results]
    return replace(
        page,
        runs=runs,
        means=means,
        results=rows,
        mixes=[(NASTY, replace(page.mixes[0][1], ingredient=NASTY))],
        curves={NASTY: page.curves["id0"]},
        model_note=NASTY,
        resolved_yaml=NASTY,
        created=NASTY,
        data=[DataRow(NASTY, NASTY, NASTY, 1, 1, NASTY, 1, 1)],
        version=NASTY,
        tasks={**TASKS, "toy-topic": NASTY},
    )


def test_text_is_escaped_everywhere():
    html = render(nasty_page())
    assert NASTY not in html and "alert(1)</" not in html
    tags = parsed(html)
    assert "script" not in tags.tags and "img" not in tags.tags
    assert not [a for a in tags.attributes if a[1].startswith("on")]
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "{{ 7 * 7 }}" in html  # names are data, never templates
    assert parsed(render(page_of())).tags.count("section") == html.count("<section ")


def test_nothing_is_loaded_from_elsewhere():
    html = render(page_of())
    assert "http://" not in html and "https://" not in html
    loads = {"src", "srcset", "data", "action", "poster", "background"}
    tags = parsed(html)
    assert not [a for a in tags.attributes if a[1] in loads]
    assert {value for _, name, value in tags.attributes if name == "href"} <= {"#failures"}
    assert not {"link", "script", "iframe", "object", "embed", "base"} & set(tags.tags)
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_light_dark_and_narrow_screens_are_provided_for():
    html = render(page_of())
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html
    assert html.count("<table") == html.count('<div class="wide')


def test_a_large_study_stays_under_a_megabyte():
    page = page_of()
    tasks = {f"task-{t}": f"Task number {t}" for t in range(9)}
    cocktails = [f"cocktail-{c}-of-some-length" for c in range(46)]
    runs = [
        RunRow(f"{c}/{s}", f"{c}/{s}", c, s, "done", None, 1, 100.0, f"cells/{c}-{s}")
        for c in cocktails
        for s in range(3)
    ]
    big = replace(
        page,
        tasks=tasks,
        main_forms=dict.fromkeys(tasks, "strict"),
        runs=runs,
        results=[result(r.cocktail, t, 0.7, r.seed) for r in runs for t in tasks],
        means=[estimate("mean", c, t, 0.7) for c in cocktails for t in tasks],
        differences=[
            estimate(quantity, c, t, 0.01, "task-0")
            for quantity in ("difference-to-single", "difference-to-base")
            for c in cocktails
            for t in tasks
        ],
        mixes=[(r.id, page.mixes[0][1]) for r in runs for _ in range(4)],
        curves={r.id: page.curves["id0"] for r in runs},
    )
    assert len(render(big).encode()) < 1_000_000


def test_a_study_without_a_single_score_has_a_page():
    bare = page_of(results=[], means=[], differences=[], mixes=[], curves={}, runs=[])
    html = render(bare)
    assert "No trained system has scores" in html and "No training log" in html
    parsed(html)


def test_the_same_input_gives_the_same_page():
    assert render(page_of()) == render(page_of())


# figures


def test_each_figure_has_a_csv_with_exact_numbers():
    page = page_of()
    written = figures.csv_files(page)
    assert set(written) == {"matrix.csv", "floors.csv", "curves.csv", "counts.csv", "results.csv"}
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
    line = figures.thinned(points, 50)
    assert line[0] == (1.5, 1.5) and line[-1] == (99.5, 99.5) and len(line) == 50
    assert figures.thinned(points, 100) == [(float(s), float(s)) for s in range(1, 101)]


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
        (ends(None, None), "too few"),
        (ends(-0.1, 0.2, True), "[−0.100, +0.200]"),
    ],
)
def test_how_numbers_are_written(shown, wanted):
    assert shown == wanted
