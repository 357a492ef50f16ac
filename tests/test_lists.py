"""Answers that are lists, from scores to results: corpus F1, its draws, floors, forms."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mixtune.analysis.effects import compare
from mixtune.analysis.intervals import cluster_weights
from mixtune.analysis.measures import SystemInfo, measure, results
from mixtune.identity import generator
from mixtune.records import Score
from mixtune.tasks.metrics import METRICS, items


@dataclass(frozen=True)
class Toy:
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("span-f1", "accuracy")


TASKS = {"people": Toy()}
SYSTEMS = [
    SystemInfo("majority", "majority", None, ()),
    SystemInfo("base", "base", None, ()),
    SystemInfo("s1", "people", 1, ("people",)),
]
NAMES = ("PER: Ann", "PER: Bob", "ORG: Acme")


def lines(chosen):
    return "\n".join(name for name, here in zip(NAMES, chosen, strict=True) if here) or "none"


def scores(system, skill, n=60, per_cluster=2, form="strict"):
    rng = np.random.default_rng(4)
    golds = rng.random((n, 3)) < 0.5
    keep = rng.random((n, 3)) < skill
    rows = []
    for i, (gold, parsed) in enumerate(zip(golds, np.where(keep, golds, ~golds), strict=True)):
        said = None if skill < 1 and i % 10 == 0 else lines(parsed)
        right = said is not None and items(said) == items(lines(gold))
        status = "ok" if said is not None else "unparsed"
        rows.append(
            Score(
                system, "people", "validation", f"{i:03}", form, f"g{i // per_cluster:03}", "",
                said, lines(gold), float(right), status,
            )
        )  # fmt: skip
    return rows


ALL = [*scores("majority", 0.3), *scores("base", 0.6), *scores("s1", 0.9)]


def f1(rows):
    right = sum((items(r.gold) & items(r.parsed)).total() for r in rows)
    total = sum(items(r.gold).total() + items(r.parsed).total() for r in rows)
    return 2 * right / total


def of(rows, **wanted):
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def test_the_value_is_the_f1_of_all_items_and_accuracy_of_whole_lists():
    rows = results(measure(ALL, SYSTEMS, TASKS))
    assert len(rows) == 3 * 2
    for info in SYSTEMS:
        own = of(ALL, system=info.system)
        (found,) = of(rows, system=info.system, metric="span-f1")
        assert found.value == pytest.approx(f1(own))
        assert found.low < found.value < found.high
        assert (found.n, found.clusters, found.unparsed) == (60, 30, pytest.approx(0.1))
        (exact,) = of(rows, system=info.system, metric="accuracy")
        assert exact.value == pytest.approx(np.mean([r.value for r in own]))


def test_lists_have_no_chance_and_the_majority_is_the_floor():
    rows = of(results(measure(ALL, SYSTEMS, TASKS)), metric="span-f1")
    majority = of(rows, system="majority")[0].value
    assert {(row.chance, row.majority, row.floor) for row in rows} == {(None, majority, majority)}


def test_each_draw_is_the_f1_of_its_resample():
    found = measure(ALL, SYSTEMS, TASKS, seed=3, draws=25)[0]
    assert found.metric is METRICS["span-f1"]
    weights = cluster_weights(30, 25, generator(3, "resample-clusters", "people/validation"))
    own = of(ALL, system="s1")
    groups = sorted({row.group for row in own})
    for draw, taken in zip(found.draws.of(found.metric, ["s1"])[0], weights, strict=True):
        rows = []
        for group, times in zip(groups, taken, strict=True):
            rows += of(own, group=group) * int(times)
        assert draw == pytest.approx(f1(rows), abs=1e-12)


def test_two_systems_are_compared_in_pairs():
    (row, _) = compare(measure(ALL, SYSTEMS, TASKS), "people", "base")
    assert row.metric == "span-f1"
    assert row.value == pytest.approx(f1(of(ALL, system="s1")) - f1(of(ALL, system="base")))
    assert 0 < row.low < row.value < row.high
    assert "independent" not in row.method


def test_made_up_items_alone_make_a_list_vary():
    """All gold items are found, so only what was made up is wrong."""
    rows = scores("s1", 1.0)
    more = [
        replace(r, parsed=f"{r.gold}\nORG: x", value=0.0, status="ok")
        if i < 30 and r.gold != "none"
        else r
        for i, r in enumerate(rows)
    ]
    (found, _) = results(measure(more, SYSTEMS, TASKS))
    assert found.value < 1 and "widened" not in found.method and found.low < found.value


def test_all_right_is_not_certainty():
    (found, _) = results(measure(scores("s1", 1.0), SYSTEMS, TASKS))
    assert found.value == 1.0 and found.low < 1 and "no item varies" in found.method


def test_forms_are_panels_of_their_own():
    both = [*scores("s1", 0.6), *scores("s1", 0.9, form="lenient")]
    rows = of(results(measure(both, SYSTEMS, TASKS)), metric="span-f1")
    assert [row.form for row in rows] == ["strict", "lenient"]
    assert rows[0].value < rows[1].value
