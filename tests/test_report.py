"""The page: its numbers are the inputs, everything is escaped, nothing is loaded."""

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser

import pytest
from report_kit import (
    LENGTHS,
    NASTY,
    TASKS,
    big_page,
    estimate,
    evidence,
    nasty_page,
    on_test,
    page_of,
    result,
)

from mixtune.records import DataRow
from mixtune.report import draw, figures, plots
from mixtune.report.page import MAX_COCKTAILS, MAX_ROWS, page_files, render
from mixtune.report.wording import ends, number, signed
from mixtune.study.reading import parse_study


def answer_of(page):
    return text_of(section(render(page), "answer"))


def section(html, name):
    return re.search(rf'<section id="{name}"[^>]*>(.*?)</section>', html, re.DOTALL)[1]


def text_of(html):
    """What stands on the page outside its figures; every white space is one blank."""
    html = re.sub(r"<svg.*?</svg>", " ", html.replace("<wbr>", ""), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_every_cell_shows_its_value_and_its_difference():
    page = page_of()
    matrix = text_of(section(render(page), "matrix"))
    for mean in page.means:
        assert text_of(f"{number(mean.value)} {ends(mean.low, mean.high)}") in matrix
    for gap in page.differences:
        assert text_of(f"{signed(gap.value)} {ends(gap.low, gap.high, True)}") in matrix
    assert matrix.count("single-task training") == 2
    assert matrix.count("given this run") >= 6


def test_the_first_sentence_is_the_answer():
    answer = text_of(section(render(page_of()), "answer"))
    assert "Sentiment of headlines ▲ beats single-task training best is" in answer
    assert "best is toy-sentiment+toy-topic 0.867 accuracy [0.835, 0.898]" in answer
    assert "Against toy-sentiment alone at the same steps: +0.054 [+0.023, +0.086]" in answer
    assert "given this run; its 95 % interval lies above 0" in answer
    assert "Topic single-task training best is toy-topic 0.706 accuracy" in answer
    assert answer.startswith(
        "On 1 of 2 tasks the best cocktail beats single-task training (adjusted p below .05); "
        "on 1 single-task training is best."
    )
    assert (
        "No cocktail scores higher than single-task training; next is toy-sentiment+toy-topic"
        in answer
    )
    assert "sentences are exploratory: the best was picked and is read on the same data" in answer
    assert "(validation). The best of several always looks better than it is. Sentiment" in answer


def test_a_cell_chosen_on_validation_is_the_one_that_test_shows():
    chosen = {"toy-sentiment": "toy-topic", "toy-topic": "toy-topic"}
    html = render(on_test(chosen=chosen))
    answer = text_of(section(html, "answer"))
    assert "best is" not in answer
    assert "▼ below single-task training chosen on validation: toy-topic 0.404 accuracy" in answer
    assert "A confirmed claim needs fresh seeds. Sentiment" in answer
    assert "looks better than it is" not in answer  # true of the best of several, picked here
    assert "NOT CONFIRMED" in html and "EXPLORATORY" not in html


def test_nothing_on_a_test_page_was_picked_on_test():
    """The single was chosen: the best other on test is not named beside it."""
    chosen = {"toy-sentiment": "toy-sentiment", "toy-topic": "toy-topic"}
    answer = answer_of(on_test(chosen=chosen))
    assert answer.count("Single-task training was chosen.") == 2
    assert "+toy" not in answer and "next is" not in answer
    assert all(a.runner_up is None for a in figures.answers(on_test(chosen=chosen)))


def test_what_has_no_test_scores_is_not_replaced_by_the_best_on_test():
    answer = answer_of(on_test(chosen={"toy-sentiment": "toy-maths+toy-topic"}))
    assert "chosen on validation: toy-maths+toy-topic , no test scores yet." in answer
    assert "Topic nothing was chosen on validation." in answer
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
    assert "best is toy-topic 0.596 accuracy" in answer_of(both)
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


def test_a_gain_at_the_floor_is_not_called_a_clear_one():
    page = page_of()
    high = [replace(r, floor=0.86) for r in page.results]
    answer = answer_of(replace(page, results=high))
    assert answer.startswith("On 0 of 2 tasks the best cocktail beats single-task training")
    assert "on 1 the best cocktail beats single-task training, not above the floor" in answer
    assert (
        "beats single-task training, not above the floor best is toy-sentiment+toy-topic" in answer
    )


def test_synthetic_studies_say_so():
    assert "SYNTHETIC" in render(page_of())
    assert "synthetic" not in render(page_of(synthetic=False)).lower()


def test_floors_stand_beside_scores_and_are_flagged():
    page = page_of()
    shown = text_of(section(render(page), "floors"))
    assert "Sentiment of headlines strict accuracy 0.333 0.411 0.411 0.378" in shown
    # 0.4044 on sentiment: the interval holds 0.4111; 0.3311 on topic ends at 0.378, below it
    assert "not above the floor 1 of 3 toy-topic Topic" in shown
    assert shown.endswith("1 of 3 toy-sentiment 1 below it")
    rows = {(f.task, f.form): f for f in figures.floors(page)}
    assert rows["toy-topic", "strict"].cocktails == "toy-sentiment"
    assert (rows["toy-topic", "strict"].not_above, rows["toy-topic", "strict"].below) == (1, 1)
    assert rows["toy-topic", "strict"].base_against_floor == "not above"
    matrix = section(render(page), "matrix")
    assert matrix.count(">not above the floor<") == matrix.count(">below the floor<") == 1
    assert "at floor" not in render(page)


def test_systems_from_elsewhere_stand_by_themselves_and_in_the_plots():
    page = page_of()
    theirs = [result("theirs", t, v, None) for t, v in zip(TASKS, (0.9, 0.4), strict=True)]
    both = replace(page, results=[*page.results, *theirs])
    html = render(both)
    shown = text_of(section(html, "brought"))
    assert "theirs Sentiment of headlines strict accuracy 0.900 [0.849, 0.947] above" in shown
    assert "theirs Topic strict accuracy 0.400 [0.349, 0.447] not above the floor" in shown
    assert "base" not in shown and "majority" not in shown
    best, topic = plots.forests(both, figures.cells(both))
    assert best.cells[0].cocktail == topic.cells[2].cocktail == "theirs"
    assert "a square a system from elsewhere" in section(html, "tasks")
    assert "h8v8h-8z" in draw.forest_plot(best) and "h8v8h-8z" not in draw.forest_plot(
        plots.forests(page, figures.cells(page))[0]
    )
    assert "theirs" not in section(html, "answer")  # it is no cocktail of the study
    assert "brought" not in render(page) and "from elsewhere" not in render(page)


def test_a_system_from_elsewhere_that_is_named_like_a_task_is_not_its_single():
    page = page_of()
    like = replace(page, results=[*page.results, result("toy-topic", "toy-topic", 0.1, None)])
    (cell,) = figures.brought(like)
    assert not cell.is_single and cell.value == 0.1


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
    assert "Every answer was in the required form" in section(render(page), "unread")
    rows = [replace(r, unparsed=0.125) if r.cocktail == "base" else r for r in page.results]
    shown = text_of(section(render(replace(page, results=rows)), "unread"))
    assert "base strict 12.5 % 0.378 12.5 % 0.378" in shown and "toy-topic strict" not in shown


def test_the_lenient_reading_stands_beside_the_strict_one_where_that_failed():
    page = page_of()
    failed = [replace(r, unparsed=0.125) if r.cocktail == "base" else r for r in page.results]
    lenient = [replace(r, form="lenient", value=0.75) for r in page.results]
    means = [replace(m, form="lenient") for m in page.means]
    both = replace(page, results=[*failed, *lenient], means=[*page.means, *means])
    shown = text_of(section(render(both), "unread"))
    assert "base strict 12.5 % 0.378" in shown and "base lenient 0.0 % 0.750" in shown
    assert "toy-topic lenient" not in shown
    # Nothing else on the page speaks of it: neither heat maps nor floors.
    assert "lenient" not in text_of(section(render(both), "floors"))
    assert not [name for name in page_files(both) if "lenient" in name]
    assert {cell.form for cell in figures.cells(both)} == {"strict"}


def test_data_counts_are_the_runs_own():
    shown = text_of(section(render(page_of()), "data"))
    assert "toy-sentiment+toy-topic 1 toy-topic 400 390 380 190 2.00 12345 67890 3 7" in shown
    assert "–" not in shown and "Share" not in shown  # this study asked for none


def test_what_was_asked_as_a_share_stands_beside_what_was_got():
    page = page_of()
    run, mix = page.mixes[0]
    mix = replace(mix, unit="tokens", share_asked=0.25, share_got=0.2411)
    shown = text_of(section(render(replace(page, mixes=[(run, mix)])), "data"))
    assert "380 25.0 % 24.1 % tokens 190" in shown


def test_amounts_are_shown_as_they_were_asked_for():
    page = page_of()
    raw = page.study.model_dump(mode="json", exclude_unset=True)
    raw["ingredients"] = {"a": {"rows": 5, "repeat": 2}, "b": {"share": 0.2, "unit": "tokens"}}
    shown = text_of(section(render(replace(page, study=parse_study(raw))), "study"))
    assert "a (5 rows × 2.0), b (all rows, share 0.2 of tokens)" in shown


def test_tokens_per_row_are_drawn_where_they_are_known():
    html = section(render(page_of(lengths=[LENGTHS])), "data")
    assert "Tokens per row of each ingredient" in html and ">58<" in html and ">4.4 %<" in html
    assert "Tokens per row of each ingredient" not in section(render(page_of()), "data")


def test_what_was_read_and_taken_out_is_shown():
    row = DataRow(
        "toy-topic", "train", "a folder", 500, 12, "no label: 9, empty: 3", 7, 481, "", {}
    )
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
    assert "2 of 3 runs are done, 1 failed" in text_of(html[: html.index("<nav")])
    assert "No run failed" in section(render(page), "failures")


class Tags(HTMLParser):
    """Collects tags and attributes of a page; complains about a tag that is never closed."""

    VOID = frozenset({"meta", "br", "wbr", "input"})

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
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


def test_text_is_escaped_everywhere():
    html = render(nasty_page())
    assert NASTY not in html and "alert(1)</" not in html
    assert "\x1b" not in html and "\u202e" not in html
    tags = parsed(html)
    assert tags.tags.count("script") == 1 and "img" not in tags.tags
    assert not [a for a in tags.attributes if a[1].startswith("on")]
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "{{ 7 * 7 }}" in html  # names are data, never templates
    whole = parsed(render(page_of(**evidence())))
    assert whole.tags.count("section") == html.count("<section ") - 1


def test_names_of_ten_thousand_characters_are_cut():
    """The start stays, with more of it as a tooltip; the page stays small."""
    long = "long" * 2500
    page = page_of()
    moved = {
        "means": [replace(m, subject=long) for m in page.means[:1]],
        "runs": [replace(page.runs[0], cocktail=long, error="e" * 10_000, folder=long)],
        "tasks": {**TASKS, "toy-topic": long},
        "resolved_yaml": "y" * 1_000_000,
        "lengths": [replace(LENGTHS, ingredient=long)],
    }
    html = render(replace(page, **moved))
    assert long not in html and "y" * 10_000 not in html and "e" * 5000 not in html
    assert f'<span title="{long[:299]}…">{long[:79]}…</span>' in html
    assert len(html.encode()) < 150_000


def test_nothing_is_loaded_from_elsewhere():
    html = render(page_of(lengths=[LENGTHS]))
    assert "http:" not in html and "https:" not in html
    loads = {"src", "srcset", "data", "action", "poster", "background"}
    tags = parsed(html)
    assert not [a for a in tags.attributes if a[1] in loads]
    places = {value for _, name, value in tags.attributes if name == "href"}
    assert all(place.startswith(("#", "validation/")) for place in places)
    assert not {"link", "iframe", "object", "embed", "base"} & set(tags.tags)
    assert "@import" not in html and set(re.findall(r"url\((.)", html)) <= {"#", "%"}


def test_the_policy_lets_only_the_pages_own_script_run():
    html = render(page_of())
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    named = b64encode(sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in html and f"script-src 'sha256-{named}'" in html
    assert len(script.encode()) < 6000 and "innerHTML" not in script


def test_each_figure_links_to_its_files_beside_the_page():
    page = page_of(lengths=[LENGTHS])
    links = re.findall(r'href="validation/([^"]+)" download="([^"]+)"', render(page))
    assert all(file == name for file, name in links)
    beside = page_files(page)
    assert {file for file, _ in links} <= set(beside)
    svgs = {name for name in beside if name.endswith(".svg")}
    assert {file for file, _ in links if file.endswith(".svg")} == svgs


def test_links_within_the_page_lead_somewhere():
    html = render(page_of())
    for name in re.findall(r'href="#([a-z]+)"', html):
        assert f'id="{name}"' in html


def test_light_dark_and_narrow_screens_are_provided_for():
    html = render(page_of())
    assert "light-dark(" in html and "width=device-width" in html
    assert "prefers-reduced-motion" in html and "@media print" in html
    assert html.count("<table") == html.count('<div class="wide')


def test_the_page_of_a_large_study_is_bounded():
    page = big_page()
    html = render(page)
    assert len(html.encode()) <= 1_300_000
    assert len(page.runs) > MAX_ROWS and "the first 200 rows of long tables" in html
    assert set(re.findall(r'href="validation/([^"]+)"', html)) <= set(page_files(page))
    assert len(section(html, "tasks").split("<figure")) == 1 + 9
    assert "rows of long tables" not in render(page_of())


def test_a_study_that_is_far_too_large_still_has_a_page():
    page = big_page(120, 2)
    html = render(page)
    assert len(html.encode()) <= 1_300_000
    assert len(section(html, "training").split("<figure")) <= 1 + MAX_COCKTAILS + len(page.tasks)
    best = {a.cell.cocktail for a in figures.answers(page)}
    assert all(name.replace("+", "+<wbr>") in section(html, "answer") for name in best)


def test_a_study_without_a_single_score_has_a_page():
    bare = page_of(results=[], means=[], differences=[], mixes=[], curves={}, runs=[])
    html = render(bare)
    assert "No trained system has scores" in html and "No training log" in html
    parsed(html)


def only(**changes):
    """A study of one task and one ingredient, trained once."""
    page = page_of()
    kept = {
        name: [r for r in getattr(page, name) if r.target == "toy-topic" == r.subject]
        for name in ("means", "differences")
    }
    rows = [
        r
        for r in page.results
        if r.task == "toy-topic" and (r.seed is None or r.cocktail == "toy-topic")
    ]
    alone = {"tasks": {"toy-topic": "Topic"}, "main_forms": {"toy-topic": "strict"}}
    return replace(page, results=rows, runs=page.runs[1:2], **{**kept, **alone, **changes})


def test_a_study_of_one_ingredient_and_one_task_has_a_page():
    html = render(only())
    parsed(html)
    answer = text_of(section(html, "answer"))
    assert answer.startswith("The best cocktail does not beat single-task training")
    assert "No cocktail scores higher than single-task training." in answer


@pytest.mark.parametrize("state", ["failed", "running", "planned"])
def test_a_study_whose_runs_have_no_scores_has_a_page(state):
    page = page_of(means=[], differences=[], mixes=[], curves={})
    error = "out of memory\n at step 3" if state == "failed" else None
    runs = [replace(run, state=state, error=error) for run in page.runs]
    floors_only = [r for r in page.results if r.seed is None]
    for rows in ([], floors_only):
        html = render(replace(page, runs=runs, results=rows))
        parsed(html)
        assert "No trained system has scores" in html and "0 of 3 runs are done" in html
        assert section(html, "failures").count("out of memory") == 3 * (state == "failed")
        assert (
            ("No answers yet" in html) == (not rows) == ("No scores yet" in section(html, "floors"))
        )
        assert "<table" not in section(html, "data") and "\\n" not in section(html, "runs")


def test_the_same_input_gives_the_same_page():
    assert render(page_of()) == render(page_of())
