"""Tokens per row of each ingredient, measured before anything is trained."""

from dataclasses import fields

import pytest
from engine_oracle import write_base
from study_kit import base_files, registry, study, write_data

from mixtune.planning import summary as facts
from mixtune.planning.plan import Planner
from mixtune.planning.summary import length_rows
from mixtune.report.gather import LengthRow
from mixtune.tokens import encode_rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return base_files(write_base(tmp_path_factory.mktemp("base"), "llama"))


@pytest.fixture
def planner(tmp_path, files):
    return Planner(study(), registry(write_data(tmp_path)), files)


def rows_of(planner, name):
    pool = [(name, example) for example in planner.corpus.pools[name]]
    return encode_rows(pool, planner.tokens, 10**9, "error").rows


def test_the_numbers_are_those_of_the_training_rows(planner):
    found = {row["ingredient"]: row for row in length_rows(planner)}
    assert set(found) == {"north", "south"}
    for name, row in found.items():
        rows = rows_of(planner, name)
        totals, answers = sorted(r.length for r in rows), sorted(len(r.answer) for r in rows)
        assert row["rows"] == row["measured"] == len(rows) and row["over_long"] == 0
        assert (row["tokens"], row["supervised"]) == (sum(totals), sum(answers))
        assert (row["tokens_min"], row["tokens_max"]) == (totals[0], totals[-1])
        assert row["tokens_median"] == totals[(len(totals) - 1) // 2]
        assert row["supervised_max"] == answers[-1]


def test_the_page_takes_the_rows_as_they_are_kept(planner):
    for row in length_rows(planner):
        assert list(LengthRow(**row).__slots__) == [field.name for field in fields(LengthRow)]


def test_rows_longer_than_the_limit_are_counted(planner):
    longest = max(row.length for row in rows_of(planner, "north"))
    short = planner.study.train.model_copy(update={"max_length": longest - 1})
    planner.study = planner.study.model_copy(update={"train": short})
    north = next(row for row in length_rows(planner) if row["ingredient"] == "north")
    assert north["over_long"] == sum(r.length == longest for r in rows_of(planner, "north")) > 0


def test_a_large_pool_is_measured_in_part(planner, monkeypatch):
    monkeypatch.setattr(facts, "MAX_MEASURED", 10)
    for row in length_rows(planner):
        assert row["measured"] <= 10 < row["rows"]


def test_an_empty_pool_and_a_missing_tokenizer(planner, tmp_path):
    planner.corpus.pools["north"].clear()
    north = next(row for row in length_rows(planner) if row["ingredient"] == "north")
    assert (north["rows"], north["tokens"], north["tokens_max"]) == (0, 0, 0)
    assert length_rows(Planner(study(), registry(write_data(tmp_path)), None)) == []
