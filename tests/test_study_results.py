"""A study's facts are loaded once, and a split is scored and measured once, then passed on."""

from collections import Counter

import pytest
from pack_kit import finish

from mixtune.report.page import write_report
from mixtune.results import study_results
from mixtune.store.folder import Store


@pytest.fixture(scope="module")
def facts(tmp_path_factory, files):
    return finish(tmp_path_factory.mktemp("study"), files)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_report_reads_and_measures_the_scores_of_a_split_once(facts, split, monkeypatch):
    reads, measured, read = Counter(), [], Store.read_table
    measure = study_results.measure

    def counted_read(store, name):
        reads[name] += "/scores/" in name
        return read(store, name)

    def counted_measure(scores, *others):
        measured.append(scores["split"].unique().to_pylist())
        return measure(scores, *others)

    monkeypatch.setattr(Store, "read_table", counted_read)
    monkeypatch.setattr(study_results, "measure", counted_measure)
    write_report(facts, split, with_text=True)
    assert max(reads.values()) == 1
    assert sorted(measured) == sorted([name] for name in {"validation", split})


def test_facts_hold_the_plan_in_three_parts(facts):
    rows = facts.store.plan()
    assert [*facts.plan, *facts.claimed, *facts.extra] == rows
    assert facts.claimed == facts.extra == ()
    assert set(facts.tasks) == {"north", "sums", "people"}
    assert facts.main_metrics["north"] == ("north", "constrained", "accuracy")
