"""The page's numbers as JSON and Markdown: those of the page, and text from outside stays text."""

import json
from dataclasses import asdict, dataclass, replace

from report_kit import NASTY, nasty_page, page_of

from mixtune.records import Claim
from mixtune.report.gather import ReportInput
from mixtune.report.page import as_json, as_markdown


def test_json_has_every_row():
    page = page_of()
    found = json.loads(as_json(page))
    assert found["study"] == page.study.model_dump(mode="json")
    for name in ("results", "means", "differences", "runs"):
        assert found[name] == [asdict(row) for row in getattr(page, name)]
    run, mix = page.mixes[0]
    assert found["mixes"] == [[run, asdict(mix)]]
    assert len(found["curves"][page.runs[0].id]) == 100


def test_markdown_has_the_numbers_of_the_page():
    page = page_of()
    tested = replace(page.differences[1], p=0.0312)
    text = as_markdown(replace(page, differences=[page.differences[0], tested]))
    rows = [line for line in text.splitlines() if line.startswith("| toy-sentiment+toy-topic |")]
    assert len(rows) == 2
    assert "0.867" in rows[0] and "[0.835,\xa00.898]" in rows[0].replace(" ", "\xa0")
    assert "0.688" in rows[1]
    assert "0.031" in text or tested.subject not in text
    assert "The highest of 3 cocktails" in text
    assert "3 done." in text
    assert "synthetic" in text


def test_without_scores_it_says_so():
    text = as_markdown(page_of(results=[], means=[], differences=[], runs=[]))
    assert text.count("No finished run has scores.") == 2
    assert "none." in text


def test_failed_runs_are_listed_with_their_error():
    page = page_of()
    failed = replace(page.runs[0], state="failed", error="no memory")
    text = as_markdown(replace(page, runs=[failed, *page.runs[1:]]))
    assert "failed, no memory" in text
    assert "2 done, 1 failed." in text


def test_text_from_outside_is_no_markup():
    text = as_markdown(nasty_page())
    assert "\u202e" not in text and "\x1b" not in text
    assert "<script" not in text.replace("\\<script", "")
    assert NASTY in json.loads(as_json(nasty_page()))["model_note"]


def test_claims_are_shown_where_the_page_has_them():
    claim = Claim(
        "toy-topic", "a+b", "a", "test", "strict", "accuracy", 0.02, 0.01, 0.03, 0.01, 0.02, 99, 99,
        5, 0.01, 9, 9, "confirmed", "", "On toy-topic a+b beats a.", "t", 0, 0.04,
    )  # fmt: skip
    text = as_markdown(_with_claims(page_of(), [claim]))
    assert "- **confirmed**: On toy-topic a+b beats a." in text


def _with_claims(page, claims):
    """The page as it is once it has claims."""
    if "claims" in ReportInput.__dataclass_fields__:
        return replace(page, claims=claims)

    @dataclass(frozen=True)
    class More(ReportInput):
        claims: tuple = ()

    return More(**vars(page), claims=tuple(claims))
