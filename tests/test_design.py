"""Which cocktails a design gives."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.errors import SpecError
from mixtune.planning.cells import cocktails
from mixtune.study.spec import Design

NINE = ["gsm8k", "alpaca", "fpb", "headline", "fiqa-sa", "finqa", "convfinqa", "finer-ord", "topic"]


def design(*families, explicit=()):
    return Design(families=families, explicit=explicit)


def test_incremental_of_nine_gives_exactly_55_distinct_cocktails():
    found = cocktails(design("incremental"), NINE)
    assert len(found) == len(set(found)) == 55
    assert [len(c) for c in found] == [1] * 9 + [2] * 36 + [8] * 9 + [9]


def test_incremental_is_the_four_families_in_their_order():
    four = cocktails(design("all", "leave-one-out", "pairs", "singles"), NINE)
    assert cocktails(design("incremental"), NINE) == four
    assert cocktails(design("singles", "incremental"), NINE) == four


def test_leave_one_out_of_finqa_keeps_convfinqa():
    found = cocktails(design("leave-one-out"), ["finqa", "convfinqa", "fpb"])
    assert found == [("finqa", "fpb"), ("convfinqa", "fpb"), ("convfinqa", "finqa")]
    without_finqa = [c for c in found if "finqa" not in c]
    assert without_finqa == [("convfinqa", "fpb")]


def test_two_ingredients_pair_and_all_are_one_cocktail():
    found = cocktails(design("pairs", "all"), ["b", "a"])
    assert found == [("a", "b")]


def test_leave_one_out_of_two_adds_nothing_to_singles():
    assert cocktails(design("singles", "leave-one-out"), ["b", "a"]) == [("a",), ("b",)]


def test_incremental_of_two_gives_three():
    assert cocktails(design("incremental"), ["b", "a"]) == [("a",), ("b",), ("a", "b")]


def test_incremental_of_three_does_not_repeat_pairs_as_leave_one_out():
    found = cocktails(design("incremental"), ["a", "b", "c"])
    assert found == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_one_ingredient_gives_its_single_only():
    assert cocktails(design("incremental"), ["a"]) == [("a",)]
    assert cocktails(design("singles"), ["a"]) == [("a",)]


@pytest.mark.parametrize("family", ["pairs", "leave-one-out"])
def test_a_design_without_any_cocktail_is_refused(family):
    with pytest.raises(SpecError, match="no cocktail"):
        cocktails(design(family), ["a"])


def test_explicit_comes_last_sorted_and_without_repeats():
    found = cocktails(design("singles", explicit=(("c", "a"), ("b",), ("a", "c"))), ["a", "b", "c"])
    assert found == [("a",), ("b",), ("c",), ("a", "c")]


@given(
    st.lists(st.from_regex(r"\A[a-z][a-z0-9-]{0,5}\Z"), unique=True, min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_every_family_is_what_its_name_says_whatever_the_order(names, random):
    shuffled = random.sample(names, len(names))
    found = cocktails(design("incremental"), shuffled)
    assert found == cocktails(design("incremental"), names)
    assert len(found) == len(set(found))
    assert all(list(c) == sorted(set(c)) for c in found)
    sizes = {1, 2, len(names) - 1, len(names)} - {0}
    expected = {c for n in sizes if n <= len(names) for c in combinations(sorted(names), n)}
    assert set(found) == expected
