"""Contrasts, effects of ingredients, the primary question: exact values, and simulated studies."""

from dataclasses import replace

import numpy as np
import pytest
from cells_kit import NAMES, cells, measured, right

from mixtune.analysis.hierarchy import INTERCEPT, SLOPE
from mixtune.analysis.ingredients import (
    ABILITY,
    EFFECT,
    FORM,
    LEFT_OUT,
    SYNERGY,
    form_and_ability,
    ingredient_effects,
)
from mixtune.analysis.intervals import Arm, Spread, contrast
from mixtune.analysis.primary import MODEL, OVER_TARGETS, TARGET_MEAN, gains, primary
from mixtune.records import Question
from mixtune.results.questions import _difference, unanswered


class TestContrast:
    def test_with_one_seed_a_difference_is_given_the_runs(self):
        rng = np.random.default_rng(0)
        arms = [Arm(np.array([v]), v + rng.normal(0, 0.01, (1, 2000)), None) for v in (0.8, 0.7)]
        value, ends = contrast([(1, arms[0]), (-1, arms[1])], 100)
        assert value == pytest.approx(0.1)
        assert "given these runs" in ends.method
        assert ends.low < 0.1 < ends.high and ends.p < 0.001

    def test_run_variance_comes_on_top_by_squared_weights(self):
        draws = np.zeros((4, 2000))
        draws[:, ::2] = 0.001
        arm = Arm(np.full(4, 0.5), draws, Spread(0.01, 12))
        whole = contrast([(1, arm)], 1000)[1]
        half = contrast([(0.5, arm)], 1000)[1]
        assert (whole.high - whole.low) / (half.high - half.low) == pytest.approx(2, rel=0.01)

    def test_too_few_clusters_give_no_interval(self):
        arm = Arm(np.array([0.5]), np.zeros((1, 10)), None)
        assert contrast([(1, arm)], 10)[1].low is None


class TestEffects:
    def test_each_is_the_difference_that_it_says(self):
        shares = {"b": 0.05, "c": -0.10, "d": 0.0, "e": 0.02}
        rights = cells(lambda parts: right(0.6 + sum(shares.get(p, 0) for p in parts)))
        rows = ingredient_effects(measured(rights), "equal-steps, 10 steps")
        effects = {r.subject: r.value for r in rows if r.quantity == EFFECT}
        assert effects == {name: pytest.approx(shares[name]) for name in "bcde"}
        left_out = {r.subject: r.value for r in rows if r.quantity == LEFT_OUT}
        assert left_out["c"] == pytest.approx(-0.10)
        assert {r.reference for r in rows if r.subject == "c" and r.quantity == LEFT_OUT} == {
            "a+b+d+e"
        }
        synergy = {r.subject: r.value for r in rows if r.quantity == SYNERGY}
        assert synergy["b+c"] == pytest.approx(0.55 - (0.65 + 0.5) / 2)
        assert all("equal-steps" in row.method for row in rows)
        assert all(row.adjusted >= row.p for row in rows if row.p is not None)

    def test_without_interaction_synergy_is_rarely_seen(self):
        """Additive on the threshold of one latent score; unadjusted p at 5 %."""
        rng, alarms, made = np.random.default_rng(1), 0, 0
        for _ in range(25):
            difficulty = rng.random(300)
            rights = {
                key: difficulty + rng.normal(0, 0.1, 300) < 0.7 + rng.normal(0, 0.01)
                for key in cells(lambda parts: parts)
            }
            rows = ingredient_effects(measured(rights), "")
            found = [row.p < 0.05 for row in rows if row.quantity == SYNERGY]
            alarms, made = alarms + sum(found), made + len(found)
        assert alarms / made < 0.08

    def test_a_gain_is_form_plus_ability(self):
        strict = {("a", 1): right(0.8), ("a+b", 1): right(0.9), ("base", None): right(0.2)}
        bound = {("a", 1): right(0.82), ("a+b", 1): right(0.9), ("base", None): right(0.7)}
        rows = form_and_ability(measured(strict) + measured(bound, form="constrained"))
        parts = {(row.quantity, row.subject): row.value for row in rows}
        assert parts[ABILITY, "a+b"] == pytest.approx(0.2)
        assert parts[FORM, "a+b"] == pytest.approx(0.7 - 0.2)
        assert parts[ABILITY, "a"] + parts[FORM, "a"] == pytest.approx(0.6)

    def test_without_a_base_or_a_second_form_there_are_no_parts(self):
        assert form_and_ability(measured({("a", 1): right(0.8)})) == []


def study(rng, effect, targets=NAMES):
    """Measured on each target: gain of a cell by a function of target and its other parts."""
    found = []
    for target in targets:
        rights = {}
        for (cell, seed), parts in cells(lambda parts: parts).items():
            gain = effect(target, [p for p in parts if p != target]) if target in parts else -0.2
            rights[cell, seed] = rng.random(400) < 0.7 + gain * (len(parts) > 1)
        found += measured(rights, target)
    return found


class TestPrimary:
    def test_only_cells_with_the_target_and_its_single_are_in_it(self):
        rights = cells(lambda parts: right(0.6 + 0.05 * len(parts)))
        rights["a+b (general 10%)", 1] = right(0.9)
        rows, references = gains(measured(rights), {"tail": ("d", "e")})
        assert len(rows) == 9
        assert {len(row.added) for row in rows} == {1, 3, 4}
        by_cell = {row.cell: row for row in rows}
        pair = by_cell["a+b"]
        assert (pair.target, pair.added, pair.groups, pair.seeds) == ("a", ("b",), (), 2)
        assert pair.value == pytest.approx(5)
        assert by_cell["a+d"].groups == ("tail",)
        assert references["a"].seeds == 2

    def test_it_recovers_what_was_put_in(self):
        rng = np.random.default_rng(2)
        found = study(rng, lambda _, others: 0.04 + 0.03 * ("e" in others))
        rows, _ = primary(found, {"maths": ("e",)})
        model = {row.subject: row for row in rows if row.quantity == MODEL}
        assert model["has maths"].value == pytest.approx(0.03, abs=0.02)
        assert model[INTERCEPT].value == pytest.approx(0.04, abs=0.025)
        over = next(row for row in rows if row.quantity == OVER_TARGETS)
        assert over.n == 5 and over.low < over.value < over.high
        means = [row for row in rows if row.quantity == TARGET_MEAN]
        assert len(means) == 5
        assert all((row.low, row.p) == (None, None) for row in means)

    def test_false_alarms_of_the_mean_over_targets(self):
        rng, alarms, studies = np.random.default_rng(3), 0, 60
        for _ in range(studies):
            rows, _ = primary(study(rng, lambda *_: 0.0), {})
            over = next(row for row in rows if row.quantity == OVER_TARGETS)
            alarms += over.p < 0.05
        assert alarms / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5

    def test_false_alarms_of_a_group_that_does_nothing(self):
        rng, alarms, fitted = np.random.default_rng(4), 0, 0
        for _ in range(30):
            rows, _ = primary(study(rng, lambda *_: 0.02), {"maths": ("e",)})
            terms = [row for row in rows if row.subject == "has maths"]
            alarms, fitted = alarms + sum(row.p < 0.05 for row in terms), fitted + len(terms)
        assert fitted > 20
        assert alarms / fitted <= 0.05 + 3 * (0.05 * 0.95 / fitted) ** 0.5

    def test_what_cannot_be_told_apart_is_left_out_and_said(self):
        rng = np.random.default_rng(5)
        found = study(rng, lambda *_: 0.0)
        rows, why = primary(found, {"all": NAMES})
        assert "has all" in why
        assert {row.subject for row in rows if row.quantity == MODEL} == {INTERCEPT, SLOPE}

    def test_few_targets_give_a_mean_and_no_model(self):
        rng = np.random.default_rng(6)
        rows, why = primary(study(rng, lambda *_: 0.0, NAMES[:1]), {})
        assert "no terms over targets" in why
        over = next(row for row in rows if row.quantity == OVER_TARGETS)
        assert (over.low, over.p) == (None, None)

    def test_no_cell_with_its_single_is_said(self):
        assert primary(measured({("b", 1): right(0.5)}), {}) == (
            [],
            "no cell contains a target that is also trained alone",
        )


def test_differences_are_put_in_words_by_their_interval():
    rows, _ = primary(study(np.random.default_rng(7), lambda *_: 0.0), {})
    row = next(row for row in rows if row.quantity == OVER_TARGETS)
    for ends, word in (
        (0.01, "is above"),
        (-0.03, "not significantly different"),
        (None, "too few"),
    ):
        high = None if ends is None else ends + 0.04
        assert word in _difference(replace(row, low=ends, high=high), "one", "the other")


def test_questions_without_an_answer_are_one_line():
    asked = [
        Question("a", "A?", "Yes.", True, (), "first"),
        Question("b", "B?", "Not answered: no data.", False, (), "second", "no data"),
        Question("c", "C?", "Not answered: one seed.", False, (), "third", "one seed"),
    ]
    assert unanswered(asked) == "Not answered: second (no data); third (one seed)."
    assert unanswered(asked[:1]) == ""
