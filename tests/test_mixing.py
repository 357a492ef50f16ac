"""The training list and the evaluation items."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.errors import SpecError
from mixtune.mixing import IngredientCount, mix, select_evaluation
from mixtune.records import Example, Message


def row(task, number, group=None, split="train"):
    return Example(
        task=task,
        id=f"{split}-{number}",
        split=split,
        group=f"{task} {number}" if group is None else group,
        stratum="",
        messages=(Message("user", f"{task} text {number}"),),
        target="yes",
    )


def pool(task, size):
    return [row(task, number) for number in range(size)]


POOLS = {name: pool(name, size) for name, size in [("a", 40), ("b", 17), ("c", 90), ("a-b", 25)]}


def ids(mixture, ingredient):
    return [example.id for name, example in mixture.order if name == ingredient]


def test_an_ingredient_contributes_a_prefix_of_the_same_order_whatever_else_is_there():
    alone = ids(mix(POOLS, {"a": None}, 200, run_seed=1), "a")
    assert len(alone) == 200
    for others in [("b",), ("b", "c"), ("a-b", "b", "c")]:
        together = ids(mix(POOLS, dict.fromkeys(("a", *others)), 120, run_seed=1), "a")
        assert 0 < len(together) < 120
        assert together == alone[: len(together)]


@settings(deadline=None)
@given(
    others=st.sets(st.sampled_from(["b", "c", "a-b"])),
    rows=st.integers(1, 40),
    examples=st.integers(1, 400),
    seed=st.integers(-5, 2**40),
)
def test_prefix_of_the_same_order_holds_for_any_cocktail(others, rows, examples, seed):
    try:
        mixture = mix(POOLS, {"a": rows, **dict.fromkeys(others)}, examples, seed)
    except SpecError as error:
        assert "would get no row" in str(error)
        return
    got = ids(mixture, "a")
    assert got == ids(mix(POOLS, {"a": rows}, 400, seed), "a")[: len(got)]


def test_a_smaller_pool_is_a_prefix_of_a_larger_one():
    small = ids(mix(POOLS, {"c": 10}, 10, run_seed=3), "c")
    assert small == ids(mix(POOLS, {"c": 60}, 60, run_seed=3), "c")[:10]


def test_order_of_ingredients_and_of_pool_rows_is_irrelevant():
    amounts = {"a": 20, "b": None, "c": 50}
    straight = mix(POOLS, amounts, 160, run_seed=7)
    backwards = {name: rows[::-1] for name, rows in reversed(POOLS.items())}
    assert mix(backwards, dict(reversed(amounts.items())), 160, run_seed=7) == straight


def test_seed_changes_subset_order_and_later_epochs():
    first, second = (ids(mix(POOLS, {"c": 30}, 90, run_seed=s), "c") for s in (1, 2))
    assert set(first[:30]) != set(second[:30])
    assert first[:30] != first[30:60] != first[60:]
    assert sorted(first[:30]) == sorted(first[30:60]) == sorted(first[60:])


def test_two_ingredients_with_the_same_rows_get_orders_of_their_own():
    same = {"x": pool("t", 50), "y": pool("t", 50)}
    mixture = mix(same, {"x": None, "y": None}, 100, run_seed=1)
    assert ids(mixture, "x") != ids(mixture, "y")


def test_counts_say_asked_available_got_distinct():
    mixture = mix(POOLS, {"a": 10, "b": None}, 54, run_seed=1)
    assert mixture.counts == {
        "a": IngredientCount(asked=10, available=40, got=20, distinct=10),
        "b": IngredientCount(asked=17, available=17, got=34, distinct=17),
    }


def test_largest_remainder_gives_ties_to_the_first_name():
    counts = mix(POOLS, {"b": 10, "a": 10, "c": 10}, 32, run_seed=1).counts
    assert {name: count.got for name, count in counts.items()} == {"a": 11, "b": 11, "c": 10}


@settings(deadline=None)
@given(
    amounts=st.dictionaries(st.sampled_from(sorted(POOLS)), st.integers(1, 17), min_size=1),
    examples=st.integers(20, 500),
)
def test_counts_sum_exactly_and_agree_with_the_order(amounts, examples):
    try:
        mixture = mix(POOLS, amounts, examples, run_seed=1)
    except SpecError as error:
        assert "would get no row" in str(error)
        return
    assert len(mixture.order) == sum(c.got for c in mixture.counts.values()) == examples
    assert Counter(name for name, _ in mixture.order) == {
        name: count.got for name, count in mixture.counts.items()
    }
    for name, count in mixture.counts.items():
        assert abs(count.got - examples * amounts[name] / sum(amounts.values())) < 1
        assert len(set(ids(mixture, name))) == count.distinct


def test_steps_get_near_proportional_shares():
    amounts = {"a": 40, "b": 10, "c": 50}
    mixture = mix(POOLS, amounts, 100 * 16, run_seed=5)
    names = [name for name, _ in mixture.order]
    for start in range(len(names) - 15):
        window = Counter(names[start : start + 16])
        for name, rows in amounts.items():
            assert abs(window[name] - 16 * rows / 100) <= 2


@settings(deadline=None)
@given(
    amounts=st.dictionaries(st.sampled_from(sorted(POOLS)), st.integers(1, 17), min_size=1),
    window=st.integers(1, 64),
    seed=st.integers(0, 10**6),
)
def test_every_window_stays_within_the_bound_of_even_spacing(amounts, window, seed):
    mixture = mix(POOLS, amounts, 400, seed)
    names = [name for name, _ in mixture.order]
    for start in range(0, len(names) - window + 1, 7):
        seen = Counter(names[start : start + window])
        for name, count in mixture.counts.items():
            share = count.got / 400
            assert abs(seen[name] - window * share) <= 1 + share * len(amounts)


@pytest.mark.parametrize(
    ("amounts", "examples", "says"),
    [
        ({}, 10, "needs an ingredient"),
        ({"d": None}, 10, "no rows for an ingredient"),
        ({"a": 41}, 10, "cannot give the rows asked for"),
        ({"a": 0}, 10, "cannot give the rows asked for"),
        ({"empty": None}, 10, "cannot give the rows asked for"),
        ({"a": 1, "c": 90}, 20, "'a' would get no row"),
        ({"a": None}, 0, "would get no row"),
    ],
)
def test_what_cannot_be_mixed_is_refused(amounts, examples, says):
    with pytest.raises(SpecError, match=says):
        mix({**POOLS, "empty": []}, amounts, examples, run_seed=1)


# which items are evaluated

ITEMS = [
    row("t", f"{group}-{question}", group=f"headline {group}", split="test")
    for group in range(20)
    for question in range(9)
]


def test_whole_groups_are_taken_until_there_are_enough():
    chosen = select_evaluation(ITEMS, 50)
    assert len(chosen) == 54
    assert set(Counter(item.group for item in chosen).values()) == {9}


def test_a_larger_selection_only_adds_items():
    small, large = select_evaluation(ITEMS, 50), select_evaluation(ITEMS, 100)
    assert {item.id for item in small} < {item.id for item in large}


def test_none_and_more_than_there_is_give_all():
    assert len(select_evaluation(ITEMS, None)) == len(select_evaluation(ITEMS, 999)) == 180


def test_selection_does_not_depend_on_the_order_of_the_items_and_is_not_the_first_groups():
    chosen = select_evaluation(ITEMS, 50)
    assert select_evaluation(ITEMS[::-1], 50) == chosen
    assert {item.group for item in chosen} != {f"headline {group}" for group in range(6)}


def test_selection_differs_between_splits():
    validation = [row("t", item.id, group=item.group, split="validation") for item in ITEMS]
    groups = {item.group for item in select_evaluation(ITEMS, 50)}
    assert {item.group for item in select_evaluation(validation, 50)} != groups


def test_no_items_give_none():
    assert select_evaluation([], 5) == []


def test_less_than_one_item_is_refused():
    with pytest.raises(SpecError, match="fewer than one"):
        select_evaluation(ITEMS, 0)
