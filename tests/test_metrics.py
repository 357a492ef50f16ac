"""Metrics: scikit-learn's value, the same from counts, chance, unread answers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracle import ORACLE
from sklearn.metrics import f1_score

from mixtune.errors import DataError
from mixtune.tasks.metrics import METRICS, item_tallies, items, tallies

CODED = [name for name, metric in METRICS.items() if metric.counts != "items"]
LISTED = [name for name, metric in METRICS.items() if metric.counts == "items"]


def codes(*values):
    return np.array(values, dtype=np.int64)


@st.composite
def answers(draw):
    labels = draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    gold = draw(st.lists(st.integers(0, labels - 1), min_size=n, max_size=n))
    parsed = draw(st.lists(st.integers(0, labels), min_size=n, max_size=n))
    return codes(*gold), codes(*parsed), labels


@pytest.mark.parametrize("name", CODED)
@settings(max_examples=60, deadline=None)
@given(case=answers())
def test_counts_give_scikit_learns_value(name, case):
    gold, parsed, labels = case
    counts = tallies(gold, parsed, labels).sum(0)
    expected = ORACLE[name](gold, parsed, labels)
    assert METRICS[name].from_tallies(counts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CODED)
def test_a_stack_of_resamples_is_each_resample(name):
    rng = np.random.default_rng(3)
    gold, parsed = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
    taken = rng.integers(0, 50, (20, 50))
    stack = tallies(gold, parsed, 3)[taken].sum(1)
    one_by_one = [ORACLE[name](gold[t], parsed[t], 3) for t in taken]
    np.testing.assert_allclose(METRICS[name].from_tallies(stack), one_by_one, atol=1e-12)


def value(name, gold, parsed, labels):
    return METRICS[name].from_tallies(tallies(gold, parsed, labels).sum(0))


def test_f1_runs_over_the_labels_that_occur():
    gold, parsed = codes(0, 0, 1, 1), codes(0, 0, 1, 0)  # label 2 is declared and never used
    assert value("macro-f1", gold, parsed, 3) == f1_score(gold, parsed, average="macro")
    # A label that is only answered counts as 0: here label 2.
    assert value("macro-f1", codes(0, 0), codes(0, 2), 3) == pytest.approx(1 / 3)


def test_an_unread_answer_is_wrong_and_no_label_of_its_own():
    gold, parsed = codes(0, 1), codes(0, 2)  # 2 = unread, of two labels
    assert value("accuracy", gold, parsed, 2) == 0.5
    assert value("macro-f1", gold, parsed, 2) == 0.5  # F1 1 and 0, no third class
    assert value("weighted-f1", gold, codes(2, 2), 2) == 0.0


def test_chance_is_what_guessing_gives():
    rng = np.random.default_rng(1)
    gold = np.repeat([0, 1, 2], [70_000, 20_000, 10_000])
    guessed = rng.integers(0, 3, len(gold))
    counts = np.bincount(gold).astype(float)
    assert METRICS["accuracy"].chance(counts) == pytest.approx(1 / 3, abs=1e-12)
    for name in CODED:
        guess = ORACLE[name](gold, guessed, 3)
        assert METRICS[name].chance(counts) == pytest.approx(guess, abs=0.01)


@pytest.mark.parametrize(
    ("gold", "parsed"),
    [(codes(), codes()), (codes(0), codes(0, 1)), (codes(2), codes(0)), (codes(0), codes(3))],
)
def test_codes_out_of_range_are_refused(gold, parsed):
    with pytest.raises(DataError):
        tallies(gold, parsed, 2)


# lists

entities = st.tuples(st.sampled_from(["PER", "ORG"]), st.sampled_from(["a", "b", "a b"]))
lists = st.lists(entities, max_size=4)
corpora = st.lists(st.tuples(lists, st.none() | lists), min_size=1, max_size=12)


def written(found):
    return None if found is None else "\n".join(map(": ".join, found)) or "none"


def entity_f1(corpus):
    """Precision and recall of pooled entities, each found one matched once: as seqeval counts."""
    right = n_gold = n_parsed = 0
    for gold, parsed in corpus:
        left = list(gold)
        for entity in parsed or []:
            n_parsed += 1
            if entity in left:
                left.remove(entity)
                right += 1
        n_gold += len(gold)
    precision = right / n_parsed if n_parsed else 0.0
    recall = right / n_gold if n_gold else 0.0
    return 2 * precision * recall / (precision + recall) if right else 0.0


@pytest.mark.parametrize("name", LISTED)
@given(corpora)
def test_f1_of_lists_is_that_of_pooled_entities(name, corpus):
    counts = item_tallies(*zip(*[(written(g), written(p)) for g, p in corpus], strict=True))
    assert counts.shape == (len(corpus), 3, 1)
    assert METRICS[name].from_tallies(counts.sum(0)) == pytest.approx(entity_f1(corpus), abs=1e-12)


@given(corpora)
def test_f1_of_lists_is_scikit_learns_over_all_distinct_entities(corpus):
    """Without repeats an entity of a sentence is a yes/no of its own: micro F1 of those."""
    corpus = [(set(gold), set(parsed or [])) for gold, parsed in corpus]
    pairs = [(e, g, p) for g, p in corpus for e in g | p]
    counts = item_tallies(*zip(*[(written(g), written(p)) for g, p in corpus], strict=True))
    expected = 0.0
    if pairs:
        found = np.array([[e in g, e in p] for e, g, p in pairs])
        expected = f1_score(found[:, 0], found[:, 1], zero_division=0)
    assert METRICS["span-f1"].from_tallies(counts.sum(0)) == pytest.approx(expected, abs=1e-12)


def test_a_stack_of_resampled_lists_is_each_resample():
    rng = np.random.default_rng(5)
    drawn = [[[("PER", str(x)) for x in rng.integers(0, 4, 3)] for _ in "gp"] for _ in range(30)]
    counts = item_tallies(*zip(*[map(written, pair) for pair in drawn], strict=True))
    taken = rng.integers(0, 30, (20, 30))
    one_by_one = [entity_f1([drawn[i] for i in t]) for t in taken]
    found = METRICS["span-f1"].from_tallies(counts[taken].sum(1))
    np.testing.assert_allclose(found, one_by_one, atol=1e-12)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("PER: A\nPER: A\nORG: B  C", {"PER: A": 2, "ORG: B C": 1}),
        ("none", {}),
        (" none \n", {}),
        (None, {}),
        ("", {}),
        ("none\nPER: A", {"none": 1, "PER: A": 1}),
    ],
)
def test_the_items_of_a_list(answer, found):
    assert items(answer) == Counter(found)


def test_where_nothing_is_found_and_nothing_was_there_f1_is_0():
    counts = item_tallies(["none", "none"], ["none", None])
    assert METRICS["triplet-f1"].from_tallies(counts.sum(0)) == 0.0
