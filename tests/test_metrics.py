"""Metrics: scikit-learn's value, the same from counts, chance, unread answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mixtune.errors import DataError
from mixtune.metrics import METRICS, tallies


def codes(*values):
    return np.array(values, dtype=np.int64)


@st.composite
def answers(draw):
    labels = draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    gold = draw(st.lists(st.integers(0, labels - 1), min_size=n, max_size=n))
    parsed = draw(st.lists(st.integers(0, labels), min_size=n, max_size=n))
    return codes(*gold), codes(*parsed), labels


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(case=answers())
def test_counts_give_scikit_learns_value(name, case):
    gold, parsed, labels = case
    counts = tallies(gold, parsed, labels).sum(0)
    expected = METRICS[name].compute(gold, parsed, labels)
    assert METRICS[name].from_tallies(counts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_stack_of_resamples_is_each_resample(name):
    rng = np.random.default_rng(3)
    gold, parsed = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    taken = rng.integers(0, 50, (20, 50))
    stack = tallies(gold, parsed, 3)[taken].sum(1)
    one_by_one = [METRICS[name].compute(gold[t], parsed[t], 3) for t in taken]
    np.testing.assert_allclose(METRICS[name].from_tallies(stack), one_by_one, atol=1e-12)


def test_f1_runs_over_the_labels_that_occur():
    gold, parsed = codes(0, 0, 1, 1), codes(0, 0, 1, 0)  # label 2 is declared and never used
    value = METRICS["macro-f1"].compute(gold, parsed, 3)
    assert value == f1_score(gold, parsed, average="macro")
    # A label that is only answered counts as 0: here label 2.
    assert METRICS["macro-f1"].compute(codes(0, 0), codes(0, 2), 3) == pytest.approx(1 / 3)


def test_an_unread_answer_is_wrong_and_no_label_of_its_own():
    gold, parsed = codes(0, 1), codes(0, 2)  # 2 = unread, of two labels
    assert METRICS["accuracy"].compute(gold, parsed, 2) == 0.5
    assert METRICS["macro-f1"].compute(gold, parsed, 2) == 0.5  # F1 1 and 0, no third class
    assert METRICS["weighted-f1"].compute(gold, codes(2, 2), 2) == 0.0


def test_chance_is_what_guessing_gives():
    rng = np.random.default_rng(1)
    gold = np.repeat([0, 1, 2], [70_000, 20_000, 10_000])
    guessed = rng.integers(0, 3, len(gold))
    counts = np.bincount(gold).astype(float)
    assert METRICS["accuracy"].chance(counts) == pytest.approx(1 / 3, abs=1e-12)
    for metric in METRICS.values():
        assert metric.chance(counts) == pytest.approx(metric.compute(gold, guessed, 3), abs=0.01)


@pytest.mark.parametrize(
    ("gold", "parsed"),
    [(codes(), codes()), (codes(0), codes(0, 1)), (codes(2), codes(0)), (codes(0), codes(3))],
)
def test_codes_out_of_range_are_refused(gold, parsed):
    with pytest.raises(DataError):
        tallies(gold, parsed, 2)
    for metric in METRICS.values():
        with pytest.raises(DataError):
            metric.compute(gold, parsed, 2)
