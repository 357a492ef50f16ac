"""Choosing on validation, and what may be said afterwards: exact values, verdicts, false claims."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
from cells_kit import system

from mixtune.analysis.claims import (
    CONFIRMED,
    EXPLORATORY,
    NOT,
    NOT_WORSE,
    TIE,
    Arms,
    alpha_of,
    claims,
    unequal,
)
from mixtune.analysis.measures import PanelMetric, measure_panels
from mixtune.analysis.panel import panel_of
from mixtune.analysis.selection import best_of_n, choose, expected_maximum, tuning_curves


@dataclass(frozen=True)
class Toy:
    labels: tuple[str, ...] = ("no", "yes")
    metrics: tuple[str, ...] = ("accuracy",)


MAIN = [PanelMetric(task, "strict", "accuracy") for task in ("a", "b")]


def measured(rights, task="a", split="validation"):
    """(cell, seed) → right or wrong per item, as what is measured on a task."""
    infos, codes = [], {}
    for (cell, seed), right in rights.items():
        name = f"{cell}/{seed}"
        infos.append(system(name, cell, seed))
        gold = np.zeros(len(right), dtype=np.int64)
        codes[name] = gold, np.where(right, 0, 1)
    panel = panel_of((task, split, "strict"), Toy(), np.arange(len(gold)), codes)
    return measure_panels([panel], infos)


def right(share, n=100):
    return np.arange(n) < share * n


def runs(rng, accuracies, seeds, n=800, sd=0.007):
    """Runs of cells with these true accuracies; items are harder or easier for all alike."""
    difficulty = rng.random(n)
    return {
        (cell, seed): difficulty + rng.normal(0, 0.15, n) < accuracy + rng.normal(0, sd)
        for cell, accuracy in accuracies.items()
        for seed in seeds
    }


class TestChoice:
    def test_both_arms_are_chosen_on_validation_with_their_budgets(self):
        cells = {"a": 0.7, "a (lr 0.01)": 0.74, "a (30 examples)": 0.6, "a+b": 0.8, "b": 0.3}
        cells |= {"a+b+c": 0.79, "a+b (merged)": 0.9}
        (choice,) = choose(
            measured({(c, s): right(v) for c, v in cells.items() for s in (1, 2)}), MAIN
        )
        assert (choice.cocktail, choice.single, choice.plain) == ("a+b", "a (lr 0.01)", "a")
        assert (choice.tried, choice.tried_single) == (6, 6)
        assert (choice.value, choice.single_value) == (pytest.approx(0.8), pytest.approx(0.74))
        assert choice.seeds == (1, 2)

    def test_only_seeds_that_all_have_are_looked_at(self):
        rights = {("a", 1): right(0.7), ("a+b", 1): right(0.8), ("a+c", 1): right(0.7)}
        rights["a+c", 2] = right(0.99)
        (choice,) = choose(measured(rights), MAIN)
        assert (choice.cocktail, choice.seeds) == ("a+b", (1,))

    @pytest.mark.parametrize("cells", [("b", "a+b"), ("a",), ("a", "a (lr 0.01)")])
    def test_without_both_arms_nothing_is_chosen(self, cells):
        assert choose(measured({(cell, 1): right(0.5) for cell in cells}), MAIN) == []


class TestMaxima:
    @pytest.mark.parametrize("k", [1, 2, 3, 5])
    def test_the_expected_maximum_is_that_over_all_subsets(self, k):
        values = [0.3, 0.9, 0.5, 0.5, 0.1]
        subsets = list(combinations(values, k))
        assert expected_maximum(values, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))

    def test_curves_are_of_both_arms_and_never_fall(self):
        rng = np.random.default_rng(0)
        rows = tuning_curves(measured(runs(rng, {"a": 0.7, "a+b": 0.7, "a+c": 0.72}, (1, 2, 3))))
        for name, count in (("cocktails", 6), ("single task", 3)):
            curve = [row.value for row in rows if row.subject == name]
            assert len(curve) == count
            assert np.diff(curve).min() > -1e-12

    def test_the_best_of_equals_gains_what_is_said(self):
        """Methods page: N equal models at 80 %, seed sd 0.7 points, one seed each."""
        rng, said, gained = np.random.default_rng(1), [], []
        for _ in range(30):
            one = measured(runs(rng, {f"a+{i}": 0.8 for i in range(10)}, (1, 2), n=400))
            said.append(best_of_n(one)[0].value)
            means = [
                np.mean([one[0].values[s] for s in seeds.values()])
                for seeds in one[0].cells().values()
            ]
            gained.append(max(means) - np.mean(means))
        assert np.mean(said) == pytest.approx(np.mean(gained), rel=0.2)
        assert np.mean(said) > 0.005


def claimed(rng, gap, n=2000, reason="", margin=0.01, cells=None):
    """One claim on fresh seeds where the cocktail is truly better by `gap`."""
    fresh = (1001, 1002, 1003, 1004, 1005)
    cells = cells or {"a": 0.7, "a (30 examples)": 0.69, "a+b": 0.7 + gap}
    (choice,) = choose(measured({(c, 1): right(v) for c, v in cells.items()}), MAIN) or [None]
    choice = replace(choice, cocktail="a+b")
    arms = Arms(choice, ("a", "a (30 examples)"), reason)
    found = measured(runs(rng, cells, fresh, n), split="test")
    return claims([arms], found, fresh, margin)[0]


def test_choices_share_one_error_rate():
    rates = [alpha_of(choice) for choice in range(30)]
    assert rates[:3] == pytest.approx([0.04, 0.008, 0.0016])
    assert sum(rates) == pytest.approx(0.05)


class TestClaims:
    def test_a_later_choice_needs_more(self):
        rng, fresh = np.random.default_rng(12), (7, 8, 9)
        cells = {"a": 0.7, "a+b": 0.75}
        (choice,) = choose(measured({(c, 1): right(v) for c, v in cells.items()}), MAIN)
        found = measured(runs(rng, cells, fresh, 900), split="test")
        first, *later = (
            claims([Arms(choice, ("a",))], found, fresh, 0.01, alpha_of(again))[0]
            for again in range(12)
        )
        assert first.verdict == CONFIRMED and "tested at 0.04" in first.sentence
        assert later[-1].verdict != CONFIRMED
        assert first.adjusted == later[-1].adjusted

    def test_what_cannot_be_worse_by_the_margin_is_not_called_a_tie(self):
        rng, fresh = np.random.default_rng(13), (7, 8, 9, 10, 11)
        cells = {"a": 0.7, "a+b": 0.72}
        (choice,) = choose(measured({(c, 1): right(v) for c, v in cells.items()}), MAIN)
        found = measured(runs(rng, cells, fresh, 2000), split="test")
        (claim,) = claims([Arms(choice, ("a",))], found, fresh, 0.02, 1e-9)
        assert claim.verdict == NOT_WORSE
        assert "is worse by less than 2 points, if at all" in claim.sentence
        cells = {"a": 0.72, "a+b": 0.66}
        found = measured(runs(rng, cells, fresh, 2000), split="test")
        assert claims([Arms(choice, ("a",))], found, fresh, 0.02)[0].verdict == NOT

    def test_survivors_of_failed_runs_confirm_nothing(self):
        rng, fresh = np.random.default_rng(14), (7, 8, 9, 10, 11)
        cells = {"a": 0.6, "a+b": 0.8}
        (choice,) = choose(measured({(c, 1): right(v) for c, v in cells.items()}), MAIN)
        rights = runs(rng, cells, fresh, 500)
        for seed in (8, 9, 10, 11):
            del rights["a+b", seed]
        (claim,) = claims([Arms(choice, ("a",))], measured(rights, split="test"), fresh, 0.01)
        assert claim.verdict == EXPLORATORY
        assert claim.reason == ("runs are missing: a+b seed 8, a+b seed 9, a+b seed 10 and 1 more")
        assert claim.reason in claim.sentence

    def test_a_large_gain_is_confirmed_against_the_nearest_arm(self):
        claim = claimed(np.random.default_rng(3), 0.06)
        assert claim.verdict == CONFIRMED
        assert (claim.reference, claim.seeds, claim.reason) == ("a", 5, "")
        assert claim.low > 0 and claim.adjusted < 0.05
        assert "beats the single-task procedure (a), tuned with 2 runs" in claim.sentence
        assert "within 1 run," in claim.sentence

    def test_no_gain_is_a_tie_where_the_margin_allows_and_else_not_confirmed(self):
        rng = np.random.default_rng(4)
        cells = {"a": 0.7, "a (30 examples)": 0.7, "a+b": 0.7}
        assert claimed(rng, 0.0, n=20_000, cells=cells, margin=0.03).verdict == TIE
        # By chance one in twenty would look "not worse".
        rng = np.random.default_rng(15)
        assert claimed(rng, 0.0, n=300, cells=cells, margin=0.005).verdict == NOT

    def test_a_reason_makes_it_exploratory_whatever_the_gain(self):
        claim = claimed(np.random.default_rng(5), 0.1, reason="unequal budgets")
        assert (claim.verdict, claim.reason) == (EXPLORATORY, "unequal budgets")
        assert claim.sentence.endswith("Exploratory: unequal budgets.")

    def test_missing_runs_one_seed_and_few_items_are_exploratory(self):
        rng = np.random.default_rng(6)
        cells = {"a": 0.7, "a+b": 0.8}
        (choice,) = choose(measured({(c, 1): right(v) for c, v in cells.items()}), MAIN)
        arms = [Arms(choice, ("a",))]
        said = [
            claims(arms, measured(runs(rng, cells, seeds, n), split="test"), (7, 8), 0.01)[0]
            for seeds, n in (((1, 2), 200), ((7,), 200), ((7, 8), 10))
        ]
        assert [claim.verdict for claim in said] == [EXPLORATORY] * 3
        assert "missing" in said[0].reason and "nothing can be said" in said[0].sentence
        assert said[1].reason == "runs are missing: a+b seed 8, a seed 8"
        assert said[2].reason == "too few items for an interval"
        assert (said[2].low, said[2].adjusted) == (None, None)

    def test_p_is_the_largest_of_the_arms_and_holms_over_targets(self):
        rng, fresh = np.random.default_rng(7), (7, 8, 9)
        arms, found = [], []
        for task in ("a", "b"):
            cells = {task: 0.7, f"{task} (30 examples)": 0.71, "a+b": 0.74}
            mine = measured({(c, 1): right(v) for c, v in cells.items()}, task)
            arms.append(Arms(choose(mine, MAIN)[0], (task, f"{task} (30 examples)")))
            found += measured(runs(rng, cells, fresh), task, "test")
        made = claims(arms, found, fresh, 0.01)
        for one, claim in zip(found, made, strict=True):
            cells = one.cells()
            each = [
                one.interval(list(cells["a+b"].values()), list(cells[name].values())).p
                for name in arms[made.index(claim)].against
            ]
            assert claim.p == pytest.approx(max(each))
        low, high = sorted(claim.p for claim in made)
        assert sorted(claim.adjusted for claim in made) == pytest.approx(
            [min(1, 2 * low), max(min(1, 2 * low), high)]
        )

    def test_with_equal_cells_few_studies_confirm_anything(self):
        """Six targets' cells all equal; the best of six, confirmed with three fresh seeds."""
        rng, studies, wrong = np.random.default_rng(8), 120, 0
        cells = {"a": 0.75, **{f"a+{name}": 0.75 for name in "bcdef"}}
        for _ in range(studies):
            (choice,) = choose(measured(runs(rng, cells, (1,), 300)), MAIN)
            arms = Arms(choice, (choice.single,))
            found = measured(runs(rng, cells, (7, 8, 9), 300), split="test")
            wrong += claims([arms], found, (7, 8, 9), 0.01)[0].verdict == CONFIRMED
        assert wrong / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


def test_budgets_are_equal_where_both_had_what_is_stated_or_all_there_was():
    (choice,) = choose(measured({(c, 1): right(0.5) for c in ("a", "a+b", "a+c")}), MAIN)
    assert unequal(choice, 1) == ""
    assert unequal(choice, 6) == (
        "unequal budgets: the single task was tuned with 1 run, and 2 are stated"
    )
    assert unequal(replace(choice, tried=1), 6) == ""
