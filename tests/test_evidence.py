"""What the page says beside its values: which rows it shows where, and in what words."""

from dataclasses import replace

import pytest
from report_kit import TASKS, claim, evidence, nasty_page, page_of

from mixtune.report import plots as found
from mixtune.report.page import page_files, render

FIRST, SECOND = TASKS
BOTH = "toy-sentiment+toy-topic"


@pytest.fixture(scope="module")
def page():
    return page_of(**evidence())


def test_only_rows_of_the_split_and_the_main_metric_are_shown(page):
    other = [replace(row, split="test") for row in page.estimates]
    other += [replace(row, metric="macro-f1") for row in page.estimates]
    more = replace(page, estimates=[*page.estimates, *other])
    assert found.effects(more) == found.effects(page)
    assert found.chance(more) == found.chance(page)


def test_each_kind_of_effect_is_a_table_of_its_own(page):
    tables = {table.title: table for table in found.effects(page)}
    assert list(tables) == [title for _, _, title, _ in found.KINDS[:4]]
    added = tables["Added to the target"]
    assert added.at[SECOND, FIRST].value == 0.054
    assert (added.subjects, added.targets) == ([SECOND], [FIRST])


def test_curves_near_ties_and_chance_belong_to_their_tasks(page):
    assert [len(rows) for rows in found.tuning_curves(page)[FIRST].values()] == [6, 2]
    assert found.near_ties(page) == {FIRST: [SECOND]}
    assert found.chance(page)[FIRST].value == 0.0123


def test_clean_values_stand_beside_the_whole_ones(page):
    (row,) = found.clean(page)
    assert (row.task, row.whole, row.clean, row.items, row.left) == (FIRST, 0.8666, 0.85, 150, 140)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], ""),
        (["exploratory"], ""),
        (["confirmed"], "Confirmed on fresh seeds: toy-sentiment+toy-topic on toy-sentiment"),
        (
            ["tie", "not confirmed"],
            "On none of 2 targets is a gain confirmed on fresh seeds. A tie",
        ),
    ],
)
def test_claims_are_said_first(verdicts, said):
    claims = [claim(task, verdict) for task, verdict in zip(TASKS, verdicts, strict=False)]
    assert found.said_of_claims(claims).startswith(said)


def test_the_page_shows_all_of_it(page):
    text = render(page)
    for words in (
        "Confirmed on fresh seeds",
        "chance alone gives it +0.012",
        "As good, within ±0.010",
        "Not answered: transfer of maths (no group).",
        "adjusted p 0.020",
        "140 of 150",
        "Expected best score by number of tuning runs",
    ):
        assert words in text
    files = page_files(page)
    assert files["claims.csv"].count("\n") == 3
    assert files["estimates.csv"].count("\n") == 1 + len(page.estimates)
    assert "claims.svg" in files
    assert any(name.startswith("tuning-1") for name in files)


def test_a_page_without_any_of_it_has_no_empty_parts():
    text = render(page_of())
    assert 'id="claims"' not in text
    assert 'id="questions"' not in text


def test_nothing_from_outside_is_markup():
    text = render(nasty_page())
    assert "<script>alert" not in text
    assert "<img src=x" not in text
