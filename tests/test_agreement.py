"""Do base models agree: exact values, simulated studies, and two studies on disk."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from cells_kit import NAMES, cells, measured, right
from pack_kit import fill
from scipy.stats import kendalltau

from mixtune.analysis.agreement import (
    APART,
    CARRIED,
    FEWEST,
    ITSELF,
    RANKS,
    Side,
    agreement,
    tau_interval,
)
from mixtune.study.reading import load_studies

GAINS = {"b": 0.02, "c": 0.06, "d": -0.04, "e": 0.10}


def share(parts, gains=GAINS):
    return 0.6 + sum(gains.get(p, 0.0) for p in parts)


def side(rights, name, chosen=None, split="validation"):
    return Side(name, measured(rights, split=split), {"a": chosen} if chosen else {})


def by_quantity(rows, quantity):
    return [row for row in rows if row.quantity == quantity]


class TestRows:
    def test_a_model_agrees_with_its_like(self):
        rights = cells(lambda parts: right(share(parts)))
        rows = agreement(side(rights, "one"), side(rights, "two"))
        (ranks,) = by_quantity(rows, RANKS)
        assert (ranks.value, ranks.low, ranks.n) == (pytest.approx(1.0), None, 10)
        assert "no interval" in ranks.method
        assert [row.value for row in by_quantity(rows, ITSELF)] == [pytest.approx(1.0)] * 2
        apart = by_quantity(rows, APART)
        assert len(apart) == 9  # every cell with the target but the target alone
        assert all(row.value == 0.0 and row.low < 0 < row.high for row in apart)

    def test_gains_apart_are_the_difference_of_gains(self):
        mine = cells(lambda parts: right(share(parts)))
        theirs = cells(lambda parts: right(0.2 + share(parts, {"b": 0.02, "c": -0.05})))
        rows = agreement(side(mine, "one"), side(theirs, "two"))
        apart = {row.subject: row for row in by_quantity(rows, APART)}
        assert apart["one: a+c"].value == pytest.approx(0.11)
        assert apart["one: a+c"].reference == "two: a+c"
        assert apart["one: a+b"].value == pytest.approx(0.0)

    def test_the_interval_of_ranks_is_fiellers(self):
        """Tau .511 of 10 cells: atanh ± 1.96 · sqrt(.437 / 6)."""
        mine = cells(lambda parts: right(share(parts)))
        theirs = cells(lambda parts: right(share(parts, GAINS | {"e": 0.0})))
        (row,) = by_quantity(agreement(side(mine, "one"), side(theirs, "two")), RANKS)
        half = 1.959964 * (0.437 / 6) ** 0.5
        assert row.low == pytest.approx(np.tanh(np.arctanh(row.value) - half), abs=1e-6)
        assert row.high == pytest.approx(np.tanh(np.arctanh(row.value) + half), abs=1e-6)
        assert row.p is not None

    def test_few_cells_have_no_interval(self):
        rights = {k: v for k, v in cells(lambda p: right(share(p))).items() if len(k[0]) < 4}
        other = {k: right(share(k[0].split("+"), {"b": 0.2})) for k in rights}
        (row,) = by_quantity(agreement(side(rights, "one"), side(other, "two")), RANKS)
        assert (row.n, row.low, row.high) == (5, None, None)
        assert "too few" in row.method

    def test_a_choice_is_carried_over_on_test_only(self):
        mine = cells(lambda parts: right(share(parts)))
        theirs = cells(lambda parts: right(share(parts, {"b": 0.08, "e": 0.01})))
        for split, expected in (("validation", 0), ("test", 2)):
            sides = side(mine, "one", "a+e", split), side(theirs, "two", "a+b", split)
            rows = {row.subject: row for row in by_quantity(agreement(*sides), CARRIED)}
            assert len(rows) == expected
        assert rows["one: a+b"].value == pytest.approx(0.02 - 0.10)
        assert rows["two: a+e"].value == pytest.approx(0.01 - 0.08)
        assert "chosen on validation" in rows["one: a+b"].method

    def test_one_seed_does_not_say_how_it_agrees_with_itself(self):
        rights = cells(lambda parts: right(share(parts)), seeds=(1,))
        rows = agreement(side(rights, "one"), side(rights, "two"))
        assert by_quantity(rows, ITSELF) == []
        assert all("given these runs" in r.method or "no item" in r.method
                   for r in by_quantity(rows, APART))  # fmt: skip

    def test_cells_that_one_model_lacks_and_variants_are_left_out(self):
        rights = cells(lambda parts: right(share(parts)))
        rights["a+b (general 10%)", 1] = right(0.9)
        fewer = {key: value for key, value in rights.items() if key[0] != "a+e"}
        (ranks,) = by_quantity(agreement(side(rights, "one"), side(fewer, "two")), RANKS)
        assert ranks.n == 9

    def test_other_items_or_cells_give_no_row(self):
        rights = cells(lambda parts: right(share(parts)))
        other = cells(lambda parts: right(share(parts), 150))
        assert agreement(side(rights, "one"), side(other, "two")) == []
        alone = {("a", 1): right(0.7), ("b", 1): right(0.4)}
        assert agreement(side(alone, "one"), side(alone, "two")) == []


class TestSimulated:
    def studies(self, rng, apart):
        """Two models whose gains differ by `apart` at random, beside items and runs."""
        difficulty, sides = rng.random(300), []
        common = {name: rng.normal(0.03, 0.04) for name in NAMES}
        for name in ("one", "two"):
            own = {n: value + rng.normal(0, apart) for n, value in common.items()}
            rights = {
                key: 0.8 * difficulty + 0.2 * rng.random(300)
                < 0.6 + sum(own[p] for p in key[0].split("+")) + rng.normal(0, 0.01)
                for key in cells(lambda parts: parts, seeds=(1, 2, 3))
            }
            sides.append(side(rights, name))
        return sides

    def test_models_that_gain_alike_are_rarely_told_apart(self):
        rng, alarms, made = np.random.default_rng(0), 0, 0
        for _ in range(25):
            rows = by_quantity(agreement(*self.studies(rng, 0.0)), APART)
            alarms, made = alarms + sum(row.p < 0.05 for row in rows), made + len(rows)
        assert made == 225
        assert alarms / made < 0.08

    def test_models_that_gain_differently_are(self):
        rng = np.random.default_rng(1)
        found = [agreement(*self.studies(rng, apart)) for apart in (0.0, 0.15) for _ in range(10)]
        taus = [by_quantity(rows, RANKS)[0].value for rows in found]
        seen = [sum(r.adjusted < 0.05 for r in by_quantity(rows, APART)) for rows in found]
        assert np.mean(taus[:10]) > np.mean(taus[10:]) + 0.2
        assert sum(seen[:10]) < 5 < 20 < sum(seen[10:])

    @pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
    def test_intervals_of_tau_cover(self, rho):
        """Normal pairs, whose tau is 2/pi · asin rho; as few as an interval is given for."""
        rng, studies, covered = np.random.default_rng(3), 600, 0
        true = 2 / np.pi * np.arcsin(rho)
        for _ in range(studies):
            one, own = rng.normal(size=(2, FEWEST))
            other = rho * one + (1 - rho**2) ** 0.5 * own
            low, high = tau_interval(float(kendalltau(one, other).statistic), FEWEST)
            covered += low <= true <= high
        assert covered / studies >= 0.95 - 3 * (0.95 * 0.05 / studies) ** 0.5

    def test_ranks_without_a_common_cause_rarely_agree(self):
        """The p of tau, of cells whose order is by chance in either model."""
        rng, alarms, studies = np.random.default_rng(2), 0, 150
        for _ in range(studies):
            sides = []
            for name in ("one", "two"):
                means = {key: rng.random(200) < 0.7 for key in cells(lambda parts: parts, (1,))}
                sides.append(side(means, name))
            (row,) = by_quantity(agreement(*sides), RANKS)
            alarms += row.p < 0.05
        assert alarms / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


# ---- two studies on disk ------------------------------------------------------------------------

FILE = """
name: both
model: [alpha, beta, gamma]
tasks: [toy-sentiment, toy-mood]
ingredients: [toy-sentiment, toy-mood, toy-entity]
design: [singles, pairs, all]
budget: {steps: 2, examples_per_step: 4}
seeds: [1, 2]
evaluate: {validation_items: 20, test_items: 60}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, files):
    """Two of three models' studies; mood helps sentiment in one of them only."""
    place = tmp_path_factory.mktemp("both")
    (place / "study.yaml").write_text(FILE, encoding="utf-8")
    for study, gain in zip(load_studies(place / "study.yaml"), (0.3, 0.0), strict=False):

        def say(run, item, gain=gain):
            easy = random.Random(f"{run.name}/{run.seed}/{item.id}").random()
            ask = 0.6 + gain * ("toy-mood" in run.cocktail) * (item.task == "toy-sentiment")
            wrong = [choice for choice in item.choices if choice != item.target]
            return item.target if easy < ask else wrong[0]

        fill(place, study, replace(files, name=study.model), said=say)
    return place


def test_the_verb_asks_all_models_of_a_file(folder, mixtune, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, err = mixtune(
        "questions", "study.yaml", "model=[alpha, beta]", "--split", "test", "--json"
    )
    assert code == 0, err
    rows = json.loads(out)
    assert {row["study"] for row in rows} == {"both-alpha", "both-beta", "both-alpha, both-beta"}
    (asked,) = [row for row in rows if row["key"] == "models"]
    assert asked["answered"]
    assert "on toy-sentiment tau" in asked["answer"]
    assert "gains over the single task differ" in asked["answer"]
    apart = {(r["target"], r["subject"]): r for r in asked["rows"] if r["quantity"] == APART}
    found = apart["toy-sentiment", "both-alpha: toy-mood+toy-sentiment"]
    assert found["value"] > 0.1 and found["low"] > 0
    assert err.count("looked at 1 times") == 2


def test_on_the_terminal_each_study_stands_under_its_name(folder, mixtune, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = mixtune("questions", "study.yaml", "model=[alpha, beta]")
    assert code == 0
    assert out.count("Not answered: effect of mixing (") == 2
    assert out.count("Do base models agree?") == 1
    assert out.index("both-alpha") < out.index("both-beta") < out.index("Do base models agree?")


def test_one_model_is_told_what_it_takes(folder, mixtune, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = mixtune("questions", "study.yaml", "model=[alpha]", "--json")
    assert code == 0
    (asked,) = [row for row in json.loads(out) if row["key"] == "models"]
    assert not asked["answered"] and "list several under model" in asked["answer"]


def test_a_model_that_was_not_run_is_named(folder, mixtune, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = mixtune("questions", "study.yaml")
    assert code != 0
    assert "both-gamma" in err and "remedy" in err
