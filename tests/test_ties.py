"""p-values, equivalence, detectable differences: textbook values; false alarms by simulation."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from mixtune.analysis.effects import (
    DETECTABLE,
    TIE,
    TRANSFER,
    detectable,
    differences,
    ties,
    within_margin,
)
from mixtune.analysis.intervals import (
    Arm,
    Items,
    Spread,
    cluster_weights,
    interval,
    mcnemar,
    pooled,
    variance_of,
)
from mixtune.analysis.measures import SystemInfo, measure_panels
from mixtune.analysis.panel import panel_of


@dataclass(frozen=True)
class Toy:
    labels: tuple[str, ...] = ("no", "yes")
    metrics: tuple[str, ...] = ("accuracy", "mcc")


def measured(rights):
    """(cocktail, seed) → right or wrong per item, as what is measured on task `a`."""
    infos, codes = [], {}
    for (cocktail, seed), right in rights.items():
        name = f"{cocktail}/{seed}"
        parts = () if seed is None else tuple(cocktail.split("+"))
        infos.append(SystemInfo(name, cocktail, seed, parts))
        gold = np.arange(len(right)) % 2
        codes[name] = gold, np.where(right, gold, 1 - gold)
    panel = panel_of(("a", "validation", "strict"), Toy(), np.arange(len(gold)), codes)
    return measure_panels([panel], infos)


def drawn(rng, accuracy, n=400):
    return rng.random(n) < accuracy


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (10, 10), (0, 6), (25, 11)])
def test_mcnemar_is_the_binomial_test(first, second):
    n = first + second
    wanted = stats.binomtest(first, n, 0.5).pvalue if n else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, wanted))


def test_one_run_against_another_has_mcnemars_p():
    right = {("a", 1): [1] * 60 + [0] * 40, ("a+b", 1): [1] * 58 + [0] * 2 + [1] * 12 + [0] * 28}
    (row, _) = [r for r in differences(measured(right)) if r.metric == "accuracy"] + [None]
    assert row.p == pytest.approx(mcnemar(12, 2))
    assert row.adjusted == row.p


def test_p_and_interval_agree_under_the_t():
    """p is below 5 % where, and only where, the 95 % interval leaves nothing out."""
    rng = np.random.default_rng(0)
    items = Items(300, True, 100)
    for gap in np.linspace(0, 0.2, 21):
        draws = rng.normal(0, 0.02, (2, 3, 2000))
        arms = [Arm(np.full(3, v), draws[i] + v, Spread(1e-4, 8)) for i, v in enumerate((gap, 0))]
        found = interval(arms[0], arms[1], items)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_false_alarms_are_at_most_one_in_twenty():
    """Three seeds an arm, run and item variance; both p-values at 5 % within ±3 standard errors."""
    rng, alarms, studies, n = np.random.default_rng(5), [0, 0], 200, 150
    for _ in range(studies):
        difficulty = rng.random(n)
        rights = {
            (cell, seed): difficulty + rng.normal(0, 0.1, n) < 0.7 + rng.normal(0, 0.02)
            for cell in ("a", "a+b", "a+c", "a+d")
            for seed in (1, 2, 3)
        }
        for place, metric in enumerate(("accuracy", "mcc")):
            (one,) = [m for m in measured(rights) if m.metric.name == metric]
            cells = one.cells()
            sides = (list(cells[name].values()) for name in ("a+b", "a"))
            alarms[place] += one.interval(*sides).p < 0.05
    allowed = 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
    assert max(alarms) / studies <= allowed


def test_equivalence_needs_the_whole_interval_inside_the_margin():
    rng = np.random.default_rng(1)
    same = drawn(rng, 0.8, 2000)
    near = same.copy()
    near[:8] = ~near[:8]
    found = measured({("a", 1): same, ("a+b", 1): near})[0]
    assert within_margin(found, ["a+b/1"], ["a/1"], 0.01).tied is True
    assert within_margin(found, ["a+b/1"], ["a/1"], 0.001).tied is False
    few = measured({("a", 1): same[:10], ("a+b", 1): near[:10]})[0]
    assert within_margin(few, ["a+b/1"], ["a/1"], 0.5).tied is None


def test_near_ties_are_held_against_the_best_of_the_same_data():
    rng = np.random.default_rng(2)
    best = drawn(rng, 0.8, 3000)
    rows = ties(
        measured({("a", 1): best & drawn(rng, 0.9, 3000), ("a+b", 1): best, ("a+c", 1): best}), 0.01
    )
    accuracy = {row.subject: row for row in rows if row.metric == "accuracy"}
    assert set(accuracy) == {"a", "a+c"}
    assert {row.reference for row in accuracy.values()} == {"a+b"}
    assert accuracy["a"].method.startswith("not shown to be within ±0.01")
    assert accuracy["a+c"].method.startswith("tie within ±0.01")
    assert {row.quantity for row in rows} == {TIE}


def test_the_detectable_difference_is_found_as_often_as_it_says():
    rng, studies, n, sd = np.random.default_rng(3), 120, 400, 0.02
    given, found = [], 0

    def study(gap):
        difficulty = rng.random(n)
        return measured(
            {
                (cell, seed): difficulty + rng.normal(0, 0.2, n)
                < 0.6 + rng.normal(0, sd) + gap * (cell == "a+b")
                for cell in ("a", "a+b", "a+c", "a+d", "a+e")
                for seed in (1, 2, 3)
            }
        )[0]

    for _ in range(20):
        rows = detectable([study(0.0)])
        given.append(next(row.value for row in rows if row.subject == "3 seeds"))
    # Away from its ends a threshold that is moved by x moves the accuracy by about x.
    for _ in range(studies):
        one = study(float(np.mean(given)))
        cells = one.cells()
        sides = (list(cells[name].values()) for name in ("a+b", "a"))
        found += one.interval(*sides).p < 0.05
    assert found / studies == pytest.approx(0.8, abs=0.13)
    assert {row.quantity for row in rows} == {DETECTABLE}
    assert {row.low for row in rows} == {None}


def test_without_repeated_runs_nothing_is_said_to_be_detectable():
    rng = np.random.default_rng(4)
    assert detectable(measured({("a", 1): drawn(rng, 0.8), ("a+b", 1): drawn(rng, 0.8)})) == []


def test_transfer_is_of_cells_that_never_saw_the_task():
    rng = np.random.default_rng(6)
    rights = {(name, 1): drawn(rng, 0.7) for name in ("a", "b", "a+b")}
    rights["base", None] = drawn(rng, 0.5)
    rows = [row for row in differences(measured(rights)) if row.quantity == TRANSFER]
    assert {row.subject for row in rows} == {"b"}
    assert {row.reference for row in rows} == {"base"}


def test_a_correlation_may_be_below_nothing():
    wrong = measured({("a", 1): [0] * 60 + [1] * 20})
    (mcc,) = [one for one in wrong if one.metric.name == "mcc"]
    ends = mcc.interval(["a/1"], [])
    assert mcc.values["a/1"] < 0 and ends.low < mcc.values["a/1"] < ends.high


def test_runs_that_differ_by_items_alone_add_no_run_variance():
    rng = np.random.default_rng(5)
    right = (rng.random((3, 400)) < 0.8).astype(float)
    draws = right @ cluster_weights(400, 500, rng).T / 400
    values = right.mean(1)
    arm = Arm(values, draws, pooled([values]))
    variance, df = variance_of([(1.0, arm)], 400)
    by_items = float(np.var(draws.mean(0), ddof=1)) * 400 / 399
    between = max(0.0, arm.spread.variance - arm.noise * 400 / 399) / 3
    assert variance == pytest.approx(by_items + between)
    assert arm.noise == pytest.approx(0.8 * 0.2 / 400, rel=0.25)
    # Taken off as an estimate: it leaves fewer degrees of freedom, not more.
    assert 1 < df < 399


def test_many_runs_have_a_variance_of_their_own_and_few_the_pooled_one():
    draws = np.zeros((5, 10)) + np.arange(10) / 1000
    values = np.array([0.7, 0.8, 0.75, 0.72, 0.78])
    own = pooled([values])
    for spread in (pooled([np.array([0.5, 0.5001])]), pooled([np.array([0.1, 0.9])])):
        many = variance_of([(1.0, Arm(values, draws, spread))], 100)
        assert many == variance_of([(1.0, Arm(values, draws, own))], 100)
        few = variance_of([(1.0, Arm(values[:4], draws[:4], spread))], 100)
        assert few[0] == pytest.approx(np.var(draws[0], ddof=1) * 100 / 99 + spread.variance / 4)
