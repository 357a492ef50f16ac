"""A study of 3 cells × 5 seeds of which one, two or three runs failed, whichever they are.

Nothing crashes, and every difference is over the seeds that both of its sides have. The suite takes
every 24th of the 575 subsets and one on the command line; MIXTUNE_ALL_SUBSETS=1 takes all, and 40.
"""

import json
import os
import random
import shutil
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from pack_kit import fill, write_study
from run_kit import call

from mixtune.analysis.selection import expected_maximum
from mixtune.report.gather import gather
from mixtune.report.page import as_json, as_markdown, page_files, render
from mixtune.study.reading import load_study

SEEDS = (1, 2, 3, 4, 5)
CELLS = ("north", "sums", "north+sums")
RUNS = [(cell, seed) for cell in CELLS for seed in SEEDS]
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(RUNS, size)]
EVERY = bool(os.environ.get("MIXTUNE_ALL_SUBSETS"))
STRIDE = 1 if EVERY else 24
DRAWN = random.Random(1).sample(SUBSETS, 40)[: 40 if EVERY else 1]
PAIRED = {"tie", "difference-to-single", "difference-to-base", "transfer", "ability-gain"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the study is."""
    return tmp_path_factory.mktemp("failed")


@pytest.fixture(scope="module")
def facts(folder, files):
    """The study with every run finished."""
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


@pytest.mark.parametrize("failed", DRAWN, ids=str)
def test_every_verb_that_reads_results(facts, folder, tmp_path, failed):
    """No traceback and no other exit code than success, whichever runs failed."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (state,) = copy.glob("runs/*/state.sqlite")
    with closing(sqlite3.connect(state)) as connection, connection:
        for cell, seed in failed:
            query = "update unit set state='failed' where kind='train' and label like ?"
            changed = connection.execute(query, (f"{cell} seed {seed}%",)).rowcount
            assert changed == 1
    (cell, _), *_ = failed
    other = next(name for name in CELLS if name != cell)
    assert "failed" in call(copy, "status", "study.yaml")
    for verb in ("results", "analyze", "questions", "claims"):
        call(copy, verb, "study.yaml")
    call(copy, "compare", "study.yaml", cell, other)
    assert json.loads(call(copy, "results", "study.yaml", "--json"))
    call(copy, "report", "study.yaml", "--data-dir", "data")
    (page,) = copy.glob("runs/*/report/index.html")
    assert "<svg" in page.read_text()


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
