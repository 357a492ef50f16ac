"""Studies that went wrong: every verb that reads says what there is, and invents no interval."""

import json

import pytest
from pack_kit import finish

from mixtune.results.study_results import StudyFacts

ITEMS = {"validation_items": 30, "test_items": 30, "max_new_tokens": 6}
CASES = {
    "a failed run": {},
    "one seed": {"changes": {"seeds": [1]}, "failing": None},
    "every run failed but one": {"changes": {"seeds": [1], "design": ["singles"]}},
    "a task nobody answered": {"skipped": ("people",), "failing": None},
    "no validation answers": {"skipped": ("validation",), "failing": None},
    "a task with 12 items": {
        "changes": {"evaluate": ITEMS | {"validation_items": 12, "test_items": 12}},
        "failing": None,
    },
    "no answer can be read": {"said": "I would rather not say.", "failing": None},
}
VERBS = (
    ("results", "study.yaml", "--json"),
    ("results", "study.yaml", "--split", "test", "--json"),
    ("results", "study.yaml", "--summary"),
    ("analyze", "study.yaml", "--json"),
    ("analyze", "study.yaml", "--split", "test", "--json"),
    ("claims", "study.yaml", "--json"),
    ("questions", "study.yaml", "--json"),
    ("report", "study.yaml"),
    ("report", "study.yaml", "--split", "test", "--format", "json"),
    ("report", "study.yaml", "--format", "md"),
    ("status", "study.yaml"),
)
FEWEST = 15
"""Clusters below which there is no interval."""


@pytest.fixture(scope="module", params=CASES)
def broken(request, tmp_path_factory, files):
    """A folder with a study that went wrong, and what it is called."""
    folder = tmp_path_factory.mktemp("broken")
    facts = finish(folder, files, **CASES[request.param])
    assert isinstance(facts, StudyFacts)
    return request.param, folder


@pytest.fixture
def read(broken, mixtune, monkeypatch):
    """A verb on that study: its output."""
    monkeypatch.chdir(broken[1])
    monkeypatch.setenv("MIXTUNE_DATA_DIR", "data")

    def call(*words):
        code, out, error = mixtune(*words)
        assert code in (0, 2), error
        assert "Traceback" not in error
        # Where nothing is finished a verb may refuse, with what to do.
        assert code == 0 or "remedy" in error or "wanted" in error, error
        return out

    return call


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_reads_it(read, verb):
    read(*verb)


def rows_of(text):
    return [row for row in json.loads(text or "[]") if "low" in row]


@pytest.mark.parametrize("verb", VERBS[3:6], ids=" ".join)
def test_no_interval_is_invented(read, verb):
    for row in rows_of(read(*verb)):
        ends = (row["low"], row["high"])
        assert (ends[0] is None) == (ends[1] is None)
        if row["clusters"] < FEWEST and row.get("form") != "main":
            assert ends == (None, None), row
            assert row.get("p") is None, row
        if ends[0] is not None:
            assert ends[0] <= row["value"] <= ends[1]


def test_what_went_wrong_is_said(broken, read):
    case, _ = broken
    if case == "a failed run":
        assert "no memory" in read("report", "study.yaml", "--format", "md")
    results = json.loads(read("results", "study.yaml", "--json") or "[]")
    if case == "a task with 12 items":
        few = [row for row in results if row["task"] == "north" and row["seed"]]
        assert few and all("too few" in row["method"] for row in few)
    if case == "no answer can be read":
        strict = [
            r for r in results if r["form"] == "strict" and r["seed"] and r["task"] != "people"
        ]
        assert strict and all(row["unparsed"] == 1.0 and row["value"] == 0.0 for row in strict)
        # None of thirty is not certainly never.
        assert all(row["high"] is None or row["high"] > 0 for row in strict)
    if case in ("one seed", "every run failed but one"):
        assert not any("between-run" in row["method"] for row in results)
        claims = json.loads(read("claims", "study.yaml", "--json"))
        assert all(claim["verdict"] == "exploratory" for claim in claims)
    if case == "a task nobody answered":
        assert "people" not in {row["task"] for row in results}
    if case == "no validation answers":
        assert results == []
