"""Scores to results and differences: values, pairing, floors, coverage by simulation."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
from cells_kit import measured, right
from metric_oracle import ORACLE
from scipy import stats

from mixtune.analysis import effects
from mixtune.analysis import measures as found
from mixtune.analysis.effects import TO_BASE, TO_SINGLE
from mixtune.analysis.intervals import (
    FEW_VARY,
    MIN_CLUSTERS,
    Arm,
    Items,
    Spread,
    cluster_weights,
    interval,
    newcombe,
    pooled,
    resampled,
    wilson,
)
from mixtune.analysis.measures import SystemInfo, measure
from mixtune.analysis.panel import panels
from mixtune.analysis.selection import best_cell
from mixtune.errors import DataError
from mixtune.records import Score, schema_of
from mixtune.tasks.metrics import METRICS, tallies

LABELS = ("down", "flat", "up")


@dataclass(frozen=True)
class Toy:
    labels: tuple[str, ...] = LABELS
    metrics: tuple[str, ...] = ("accuracy", "macro-f1")


TASKS = {"moves": Toy()}
MOVES = ("moves", "strict", "accuracy")
SYSTEMS = [
    SystemInfo("majority", "majority", None, ()),
    SystemInfo("base", "base", None, ()),
    SystemInfo("s1", "moves", 1, ("moves",)),
    SystemInfo("s2", "moves", 2, ("moves",)),
    SystemInfo("m1", "maths+moves", 1, ("maths", "moves")),
    SystemInfo("m2", "maths+moves", 2, ("maths", "moves")),
]


def results(rows, systems, tasks):
    return found.results(measure(rows, systems, tasks))


def cocktail_means(rows, systems, tasks):
    return found.cocktail_means(measure(rows, systems, tasks))


def differences(rows, systems, tasks):
    return effects.differences(measure(rows, systems, tasks))


def scores(system, right, per_cluster=1, split="validation", form="strict"):
    """One system's scores: `right` per item; golds cycle through the labels."""
    rows = []
    for item, good in enumerate(right):
        gold = LABELS[item % 3]
        parsed = gold if good else LABELS[(item + 1) % 3]
        group = f"g{item // per_cluster:04}"
        rows.append(
            Score(
                system, "moves", split, f"{item:04}", form, group, "", parsed, gold,
                float(good), "ok",
            )
        )  # fmt: skip
    return rows


def study(n=120, per_cluster=1, accuracies=(0.4, 0.5, 0.7, 0.75, 0.85, 0.8)):
    rng = np.random.default_rng(7)
    difficulty = rng.random(n)
    return [
        row
        for info, accuracy in zip(SYSTEMS, accuracies, strict=True)
        for row in scores(info.system, difficulty + rng.normal(0, 0.1, n) < accuracy, per_cluster)
    ]


def of(rows, **wanted):
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


# results


def test_one_row_per_system_form_and_metric_with_its_value():
    rows = results(study(), SYSTEMS, TASKS)
    assert len(rows) == len(SYSTEMS) * 2
    for info in SYSTEMS:
        (row,) = of(rows, system=info.system, metric="accuracy")
        right = [s.value for s in study() if s.system == info.system]
        assert row.value == pytest.approx(np.mean(right))
        assert row.low < row.value < row.high
        assert (row.cocktail, row.seed, row.n, row.clusters) == (info.cocktail, info.seed, 120, 120)
        assert "given this run" in row.method


def test_floors_are_chance_and_majority():
    rows = results(study(accuracies=(0.2, 0.5, 0.7, 0.7, 0.8, 0.8)), SYSTEMS, TASKS)
    majority = of(rows, system="majority", metric="accuracy")[0].value
    for row in of(rows, metric="accuracy"):
        assert (row.chance, row.majority) == (pytest.approx(1 / 3), majority)
        assert row.floor == max(row.chance, row.majority)
    assert majority < 1 / 3 and of(rows, metric="accuracy")[0].floor == pytest.approx(1 / 3)
    without = [row for row in study() if row.system != "majority"]
    for row in results(without, SYSTEMS, TASKS):
        assert (row.majority, row.floor) == (None, None)  # chance is not the larger of the two
        assert row.chance is not None


def test_an_open_task_has_no_chance():
    rows = [replace(r, gold="12", parsed="12.0" if r.value else None) for r in study()]
    found = results(rows, SYSTEMS, {"moves": Toy((), ("accuracy",))})
    assert found[2].value == np.mean([r.value for r in rows if r.system == "s1"])
    assert found[2].chance is None and found[2].floor is not None
    trained = [row for row in rows if row.system != "majority"]
    assert results(trained, SYSTEMS, {"moves": Toy((), ("accuracy",))})[0].floor is None


def test_answers_without_a_readable_value_are_wrong_and_counted():
    rows = scores("s1", [True] * 30)
    for place, status in enumerate(("unparsed", "truncated", "refused")):
        rows[place] = replace(rows[place], parsed=None, value=0.0, status=status)
    (row, _) = results(rows, SYSTEMS, TASKS)
    assert row.unparsed == pytest.approx(0.1)
    assert row.value == pytest.approx(0.9)


def test_a_table_gives_the_same_as_rows():
    rows = study(60)
    table = pa.Table.from_pylist(
        [{n: getattr(r, n) for n in schema_of(Score).names} for r in rows], schema=schema_of(Score)
    )
    assert results(table, SYSTEMS, TASKS) == results(rows, SYSTEMS, TASKS)
    assert differences(table, SYSTEMS, TASKS) == differences(rows, SYSTEMS, TASKS)


def test_the_order_of_rows_changes_nothing():
    rows = study(60, per_cluster=2)
    assert results(rows[::-1], SYSTEMS, TASKS) == results(rows, SYSTEMS, TASKS)
    assert differences(rows[::-1], SYSTEMS, TASKS) == differences(rows, SYSTEMS, TASKS)


def test_too_few_clusters_give_no_interval():
    few = MIN_CLUSTERS - 1
    rows = study(few * 10, per_cluster=10)
    for row in [*results(rows, SYSTEMS, TASKS), *differences(rows, SYSTEMS, TASKS)]:
        assert (row.low, row.high, row.clusters) == (None, None, few)
        assert row.method.startswith("too few")
    enough = study(MIN_CLUSTERS * 10, per_cluster=10)
    assert all(row.low is not None for row in results(enough, SYSTEMS, TASKS))


def test_clusters_that_repeat_one_another_widen_the_interval():
    """Ten copies of an item are worth one: the interval must not shrink."""
    once = np.random.default_rng(2).random(60) < 0.7
    alone = of(results(scores("s1", once), SYSTEMS, TASKS), metric="macro-f1")[0]
    rows = []
    for row in scores("s1", once):
        rows += [replace(row, example=f"{row.example}/{copy}") for copy in range(10)]
    copied = of(results(rows, SYSTEMS, TASKS), metric="macro-f1")[0]
    assert copied.n == 600 and copied.clusters == alone.clusters == 60
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=1e-9)


@pytest.mark.parametrize("right", [True, False])
def test_nothing_varying_is_not_certainty(right):
    for row in results(scores("s1", [right] * 40, per_cluster=2), SYSTEMS, TASKS):
        assert (row.value, row.high - row.low) == (float(right), pytest.approx(wilson(0, 20)[1]))
        assert "no item varies" in row.method


def test_two_systems_with_the_same_answers_are_not_certainly_equal():
    rows = [s for name in ("s1", "m1") for s in scores(name, [True, False] * 50)]
    (row,) = of(differences(rows, SYSTEMS, TASKS), metric="accuracy")
    assert row.value == 0 and row.low == -row.high and row.high == pytest.approx(wilson(0, 100)[1])


def pair(first, second, n=60, per_cluster=1, metric="accuracy"):
    """Difference of two runs that disagree on `first` + `second` clusters, one item in each."""
    right = (np.arange(n) // per_cluster) % 4 != 0
    other, starts = right.copy(), np.arange(0, n, per_cluster)
    other[starts[right[starts]][:first]] = False
    other[starts[~right[starts]][:second]] = True
    rows = scores("s1", other, per_cluster) + scores("m1", right, per_cluster)
    return of(differences(rows, SYSTEMS, TASKS), quantity=TO_SINGLE, metric=metric)[0]


def test_four_items_one_way_of_sixty_are_not_a_difference():
    found = pair(4, 0)
    assert found.value == pytest.approx(4 / 60) and found.low < 0 < found.high
    assert found.method.startswith("Newcombe") and "given this run" in found.method
    assert pair(0, 4).low < 0 < pair(0, 4).high
    assert pair(12, 0).low > 0


@pytest.mark.parametrize(
    ("per_cluster", "metric"), [(1, "accuracy"), (3, "accuracy"), (1, "macro-f1")]
)
def test_an_item_that_differs_never_narrows_the_interval(per_cluster, metric):
    n = 60 * per_cluster
    none = pair(0, 0, n, per_cluster, metric)
    assert "no item varies" in none.method
    for first, second in ((1, 0), (0, 1), (1, 1), (4, 0), (FEW_VARY - 1, 0)):
        found = pair(first, second, n, per_cluster, metric)
        assert found.value - found.low >= none.high - 1e-12
        assert found.high - found.value >= none.high - 1e-12
    many = pair(FEW_VARY, 0, n, per_cluster, metric)
    assert "widened" not in many.method and "widened" in pair(1, 0, n, per_cluster, metric).method


def test_several_seeds_with_one_item_that_differs_are_no_narrower():
    right = np.arange(60) % 4 != 0
    one_off = right & (np.arange(60) != 1)
    same = [row for name in ("s1", "s2", "m1", "m2") for row in scores(name, right)]
    off = [row for row in same if row.system != "m2"] + scores("m2", one_off)
    wanted = {"quantity": TO_SINGLE, "metric": "accuracy"}
    none, one = (of(differences(r, SYSTEMS, TASKS), **wanted)[0] for r in (same, off))
    assert none.high == pytest.approx(wilson(0, 60)[1])
    assert one.high - one.low >= none.high - none.low - 1e-12


# faults


def test_systems_must_have_answered_the_same_items():
    rows = study(30)
    with pytest.raises(DataError, match="different items"):
        results(rows[:-1], SYSTEMS, TASKS)
    with pytest.raises(DataError, match="two golds"):
        results([*rows[:-1], replace(rows[-1], gold="flat")], SYSTEMS, TASKS)
    with pytest.raises(DataError, match="scored twice"):
        results([*rows, rows[0]], SYSTEMS, TASKS)


def test_a_label_that_the_task_does_not_declare_is_refused():
    rows = study(30)
    with pytest.raises(DataError, match="does not declare"):
        results([replace(rows[0], parsed="sideways"), *rows[1:]], SYSTEMS, TASKS)


def test_two_systems_of_one_cell_and_seed_are_refused():
    systems = [replace(info, seed=1) if info.system == "m2" else info for info in SYSTEMS]
    with pytest.raises(DataError, match="one cocktail and seed"):
        differences(study(30), systems, TASKS)


# means and differences


def test_means_are_over_seeds():
    rows = study()
    one = results(rows, SYSTEMS, TASKS)
    means = of(cocktail_means(rows, SYSTEMS, TASKS), metric="accuracy")
    assert [m.subject for m in means] == ["moves", "maths+moves"]
    for mean in means:
        values = [r.value for r in of(one, cocktail=mean.subject, metric="accuracy")]
        assert mean.value == pytest.approx(np.mean(values))
        assert mean.seeds == 2 and mean.low < mean.value < mean.high
        assert mean.method.startswith("t, ")


def test_differences_are_paired_by_shared_seed():
    rows = study()
    one = {
        (r.cocktail, r.seed): r.value for r in of(results(rows, SYSTEMS, TASKS), metric="accuracy")
    }
    found = of(differences(rows, SYSTEMS, TASKS), metric="accuracy")
    (single,) = of(found, quantity=TO_SINGLE)
    gaps = [one["maths+moves", s] - one["moves", s] for s in (1, 2)]
    assert single.value == pytest.approx(np.mean(gaps)) and single.seeds == 2
    assert (single.subject, single.reference, single.target) == ("maths+moves", "moves", "moves")
    to_base = {row.subject: row.value for row in of(found, quantity=TO_BASE)}
    assert to_base.keys() == {"moves", "maths+moves"}
    assert to_base["moves"] == pytest.approx(
        np.mean([one["moves", s] for s in (1, 2)]) - one["base", None]
    )


def test_only_shared_seeds_are_compared():
    rows = [row for row in study() if row.system != "s2"]
    (single,) = of(differences(rows, SYSTEMS, TASKS), metric="accuracy", quantity=TO_SINGLE)
    assert single.seeds == 1 and "given this run" in single.method
    alone = [row for row in rows if row.system != "m1"]
    assert of(differences(alone, SYSTEMS, TASKS), quantity=TO_SINGLE) == []


def test_a_task_that_is_not_trained_alone_has_no_single():
    systems = [replace(i, ingredients=("x", *i.ingredients)) for i in SYSTEMS]
    assert of(differences(study(), systems, TASKS), quantity=TO_SINGLE) == []


def test_pairing_removes_what_items_share():
    """One run each: between runs there is nothing to pair."""
    rows = [row for row in study(200) if row.system in ("s1", "m1")]
    for metric in ("accuracy", "macro-f1"):
        means = of(cocktail_means(rows, SYSTEMS, TASKS), metric=metric)
        (gap,) = of(differences(rows, SYSTEMS, TASKS), metric=metric, quantity=TO_SINGLE)
        unpaired = sum((m.high - m.low) ** 2 for m in means) ** 0.5
        assert gap.high - gap.low < 0.85 * unpaired


def test_runs_that_never_saw_the_task_do_not_widen_those_that_did():
    wild = [SystemInfo(f"w{s}", "maths", s, ("maths",)) for s in (1, 2)]
    rows = study() + scores("w1", [False] * 120) + scores("w2", [True, False] * 60)
    before = of(cocktail_means(study(), SYSTEMS, TASKS), subject="moves")
    after = of(cocktail_means(rows, SYSTEMS + wild, TASKS), subject="moves")
    assert before == after


def test_selection_is_by_the_mean_with_ties_by_name():
    (moves,) = [m for m in measure(study(), SYSTEMS, TASKS) if m.key == MOVES]
    assert best_cell(moves) == "maths+moves"
    tied = dict.fromkeys(moves.values, 0.5)
    assert best_cell(replace(moves, values=tied)) == "maths+moves"
    # Systems without a seed are not chosen from.
    floors = {s: 1.0 if moves.infos[s].seed is None else 0.5 for s in tied}
    assert best_cell(replace(moves, values=floors)) == "maths+moves"
    fixed = {s: v for s, v in floors.items() if moves.infos[s].seed is None}
    assert best_cell(replace(moves, values=fixed)) is None


def test_selection_is_over_the_seeds_that_all_candidates_have():
    """The third seed flatters the one cocktail that has it."""
    shares = {("a", 1): 0.6, ("a", 2): 0.6, ("b", 1): 0.5, ("b", 2): 0.5, ("b", 3): 1.0}
    assert np.mean([0.5, 0.5, 1.0]) > 0.6  # a mean over all seeds would take b
    (both,) = measured({key: right(share) for key, share in shares.items()})
    assert best_cell(both) == "a"
    (apart,) = measured({("a", 1): right(0.6), ("b", 3): right(1.0)})
    assert best_cell(apart) is None


# resampling


def test_every_draw_takes_as_many_clusters_as_there_are():
    weights = cluster_weights(30, 400, np.random.default_rng(0))
    assert weights.shape == (400, 30) and (weights.sum(1) == 30).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.25)


def test_resampled_metrics_are_those_of_the_resampled_items():
    rng = np.random.default_rng(0)
    gold, parsed = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    counts = tallies(gold, parsed, 3).reshape(20, 2, 3, 3).sum(1)
    weights = cluster_weights(20, 25, rng)
    for metric in (METRICS[name] for name in ORACLE):
        drawn = metric.from_tallies(resampled(counts, weights))
        for row, value in zip(weights.astype(int), drawn, strict=True):
            items = np.repeat(np.arange(40), np.repeat(row, 2))
            assert value == pytest.approx(
                ORACLE[metric.name](gold[items], parsed[items], 3), abs=1e-12
            )


def test_between_run_variance_is_pooled_within_cells():
    spread = pooled([np.array([0.1, 0.3]), np.array([0.8, 0.8, 0.8]), np.array([0.5])])
    assert spread == Spread(pytest.approx(0.02 / 3), 3)
    assert pooled([np.array([0.5])]) is None


def test_newcombe_is_the_textbook_interval():
    """Newcombe 1998, method 10, his first example; 0 lies inside up to 4:0, as by mid-p McNemar."""
    low, high = newcombe(36, 12, 2, 0)
    assert (low, high) == (pytest.approx(0.0569, abs=1e-4), pytest.approx(0.3404, abs=1e-4))
    assert newcombe(20, 8, 0, 32)[0] > 0
    assert newcombe(0, 0, 0, 30)[1] == pytest.approx(wilson(0, 30)[1])
    for both in range(57):
        low, high = newcombe(both, 4, 0, 56 - both)
        assert low < 0 < high
        assert newcombe(both, 0, 4, 56 - both) == (pytest.approx(-high), pytest.approx(-low))


@pytest.mark.parametrize(("n", "agree"), [(60, 0.95), (60, 0.97), (150, 0.95), (150, 0.97)])
@pytest.mark.parametrize("one_way", [0.5, 0.8, 1.0])
def test_intervals_of_runs_that_nearly_agree_cover(n, agree, one_way):
    """Nominal .95, wanted .93 and more; 1000 simulations, standard error .007."""
    rng = np.random.default_rng(3)
    off = 1 - agree
    shares = [0.7 * agree, off * one_way, off * (1 - one_way), 0.3 * agree]
    true, hits = off * (2 * one_way - 1), 0
    for both, first, second, _ in rng.multinomial(n, shares, size=1000):
        values = [(both + k) / n for k in (first, second)]
        sides = [Arm(np.full(1, v), np.full((1, 2), v), None) for v in values]
        found = interval(*sides, Items(n, True, int(first + second)))
        hits += found.low <= true <= found.high
    assert hits / 1000 >= 0.93 - 0.015


def test_arms_that_share_a_variance_have_its_degrees_of_freedom_once():
    """Items that never vary leave the runs' variance alone: df is its own, not twice that."""
    spread, other = Spread(0.0004, 4), Spread(0.0001, 6)
    a, b = (Arm(np.full(2, v), np.full((2, 50), v), spread) for v in (0.7, 0.6))
    items = Items(10_000, False, 5000)
    found = interval(a, b, items)
    assert found.method.startswith("t, 4 df")
    half = stats.t.ppf(0.975, 4) * 0.0004**0.5  # 1/2 + 1/2 of the variance
    assert (found.low, found.high) == (pytest.approx(0.1 - half), pytest.approx(0.1 + half))
    apart = interval(a, replace(b, spread=other), items)
    df = (0.0002 + 0.00005) ** 2 / (0.0002**2 / 4 + 0.00005**2 / 6)
    half = stats.t.ppf(0.975, df) * 0.00025**0.5
    assert apart.high == pytest.approx(0.1 + half)


def coverage(seeds, cells, sims=400, n=200, run_sd=0.25):
    """Share of intervals of a difference that hold the true one (population of items and runs).

    Items differ in difficulty, runs in ability (sd on the logit scale: about 4 points of accuracy
    here); the first two cells are the arms, the others only serve to pool the between-run variance.
    """
    rng = np.random.default_rng(11)
    difficulty = rng.normal(0, 1.5, (50_000, 1))
    ability = np.array([1.0, 0.6])

    def accuracy(mean):
        runs = mean + run_sd * rng.normal(size=200)
        return float((1 / (1 + np.exp(-(difficulty + runs)))).mean())

    true = accuracy(ability[0]) - accuracy(ability[1])
    hits = 0
    for _ in range(sims):
        items = rng.normal(0, 1.5, n)
        means = np.concatenate([ability, rng.normal(0.8, 0.3, cells - 2)])
        runs = means[:, None] + run_sd * rng.normal(size=(cells, seeds))
        right = rng.random((cells, seeds, n)) < 1 / (1 + np.exp(-(items + runs[..., None])))
        weights = cluster_weights(n, 500, rng) / n
        spread = pooled(list(right.mean(-1)))
        a, b = (Arm(right[c].mean(-1), right[c] @ weights.T, spread) for c in (0, 1))
        differ = int((right[0] != right[1]).any(0).sum())
        found = interval(a, b, Items(n, False, differ))
        hits += found.low <= true <= found.high
    return hits / sims


@pytest.mark.parametrize(("seeds", "cells"), [(2, 7), (3, 7), (4, 4), (5, 2), (8, 2)])
def test_intervals_of_differences_cover(seeds, cells):
    """Nominal .95; with 400 simulations the standard error is .011. Crossed may be too wide."""
    assert 0.92 <= coverage(seeds, cells) <= 0.995


@pytest.mark.parametrize("cells", [4, 2])
def test_intervals_cover_where_runs_scatter_widely(cells):
    """Two seeds, runs that differ by about 12 points: two to four degrees of freedom, each once."""
    assert 0.92 <= coverage(2, cells, run_sd=0.8) <= 0.995


def test_ignoring_the_seeds_would_not_cover():
    """The simulation can tell: the item interval of one run per arm misses the truth too often."""
    assert coverage(1, 2) < 0.90


def test_the_bootstrap_of_clusters_covers_macro_f1():
    """Clusters of four items that share their luck; nominal .95, 300 simulations."""
    rng = np.random.default_rng(5)
    metric = METRICS["macro-f1"]

    def draw(clusters):
        gold = rng.choice(3, p=[0.6, 0.25, 0.15], size=(clusters, 4))
        luck = rng.normal(0, 1, (clusters, 1)) + rng.normal(0, 0.7, (clusters, 4))
        parsed = np.where(luck > -0.7, gold, (gold + rng.integers(1, 3, (clusters, 4))) % 3)
        return gold.ravel(), parsed.ravel()

    true = ORACLE[metric.name](*draw(60_000), 3)
    hits = 0
    for _ in range(300):
        gold, parsed = draw(60)
        counts = tallies(gold, parsed, 3).reshape(60, 4, 3, 3).sum(1)
        drawn = metric.from_tallies(resampled(counts, cluster_weights(60, 500, rng)))
        arm = Arm(np.array([ORACLE[metric.name](gold, parsed, 3)]), drawn[None], None)
        found = interval(arm, None, Items(60, False, 60))
        hits += found.low <= true <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_wilson_is_the_textbook_interval():
    assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


def test_panels_come_in_order_of_tasks_splits_and_forms():
    rows = [
        row
        for split in ("test", "validation")
        for form in ("constrained", "strict")
        for row in scores("s1", [True] * 3, split=split, form=form)
    ]
    assert [(p.split, p.form) for p in panels(rows, TASKS)] == [
        ("validation", "strict"),
        ("validation", "constrained"),
        ("test", "strict"),
        ("test", "constrained"),
    ]
