"""A study of 3 cells × 5 seeds of which one, two or three runs failed, whichever they are.

Nothing crashes, and every difference is over the seeds that both of its sides have. The suite takes
every 24th of the 575 subsets; MIXTUNE_ALL_SUBSETS=1 takes all.
"""

import os
from collections import defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from pack_kit import fill, write_study

from mixtune.analysis.selection import expected_maximum
from mixtune.report.gather import gather
from mixtune.report.page import as_json, as_markdown, page_files, render
from mixtune.study.reading import load_study

SEEDS = (1, 2, 3, 4, 5)
CELLS = ("north", "sums", "north+sums")
RUNS = [(cell, seed) for cell in CELLS for seed in SEEDS]
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(RUNS, size)]
STRIDE = 1 if os.environ.get("MIXTUNE_ALL_SUBSETS") else 24
PAIRED = {"tie", "difference-to-single", "difference-to-base", "transfer", "ability-gain"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory, files):
    """The study with every run finished."""
    folder = tmp_path_factory.mktemp("failed")
    changes = {"tasks": ["north", "sums"], "seeds": list(SEEDS)}
    return fill(folder, load_study(write_study(folder, changes)), files)


def with_failed(facts, failed):
    """The study as it would be had these runs failed."""
    systems = {row.system for row in facts.plan if (row.cocktail, row.seed) in failed}
    units = {
        name: replace(unit, state="failed" if unit.kind == "train" else "planned")
        if unit.system in systems
        else unit
        for name, unit in facts.units.items()
    }
    return replace(facts, units=units)


def by_seed(results):
    """(task, form, metric) → cocktail → seed → value."""
    values = defaultdict(lambda: defaultdict(dict))
    for row in results:
        values[row.task, row.form, row.metric][row.cocktail][row.seed] = row.value
    return values


def paired(sides):
    """Mean difference over the seeds that both sides have; a fixed system pairs with every seed."""
    subject, reference = sides
    if None in reference:
        return np.mean(list(subject.values())) - reference[None]
    shared = subject.keys() & reference.keys()
    assert shared
    return np.mean([subject[seed] - reference[seed] for seed in shared])


def test_575_subsets_of_up_to_three_runs():
    assert len(SUBSETS) == 575


@pytest.mark.parametrize("failed", SUBSETS[::STRIDE], ids=str)
def test_differences_are_over_shared_seeds(facts, failed):
    page = gather(with_failed(facts, set(failed)), "validation")
    values = by_seed(page.results)
    differences = [row for row in page.estimates if row.quantity in PAIRED]
    assert len(differences) > 20
    for row in differences:
        cells = values[row.target, row.form, row.metric]
        expected = paired((cells[row.subject], cells[row.reference]))
        assert row.value == pytest.approx(expected, abs=1e-12), row
    for row in page.means:
        own = values[row.target, row.form, row.metric][row.subject]
        assert row.seeds == len(own)
        assert row.value == pytest.approx(np.mean(list(own.values())), abs=1e-12)
    assert "<svg" in render(page)
    assert page_files(page)
    assert as_markdown(page)
    assert as_json(page)


def test_a_cell_without_a_common_seed_is_not_paired(facts):
    failed = {("north", seed) for seed in (1, 2, 3)} | {("sums", seed) for seed in (4, 5)}
    page = gather(with_failed(facts, failed), "validation")
    pairs = {(r.subject, r.reference) for r in page.estimates if r.quantity == "tie"}
    assert not {("north", "sums"), ("sums", "north")} & pairs


@pytest.mark.parametrize(("runs", "k"), [(1_030, 515), (10_000, 1), (10_000, 5_000), (3, 3)])
def test_the_expected_maximum_of_many_runs(runs, k):
    values = np.arange(runs) / runs
    # The largest of k of 0 … n-1 is k (n + 1) / (k + 1) - 1 on average.
    exact = (k * (runs + 1) / (k + 1) - 1) / runs
    assert expected_maximum(values.tolist(), k) == pytest.approx(exact, rel=1e-12)
