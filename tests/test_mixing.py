"""The training list and the evaluation items."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.errors import SpecError
from mixtune.planning.mixing import IngredientCount, select_evaluation
from mixtune.planning.mixing import mix as mix_amounts
from mixtune.records import Example, Message
from mixtune.study.spec import Ingredient


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


def mix(pools, amounts, examples, run_seed, costs=None):
    """Mix amounts that are an Ingredient, or a number of rows."""
    full = {
        name: one if isinstance(one, Ingredient) else Ingredient.model_construct(rows=one)
        for name, one in amounts.items()
    }
    return mix_amounts(pools, full, examples, run_seed, costs)


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
        "a": IngredientCount(10, 40, 20, 10, Fraction(10, 27), "repeated"),
        "b": IngredientCount(17, 17, 34, 17, Fraction(17, 27), "repeated"),
    }


def test_largest_remainder_gives_ties_to_the_first_name():
    counts = mix(POOLS, {"b": 10, "a": 10, "c": 10}, 32, run_seed=1).counts
    assert {name: count.rows for name, count in counts.items()} == {"a": 11, "b": 11, "c": 10}


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
    assert len(mixture.order) == sum(c.rows for c in mixture.counts.values()) == examples
    assert Counter(name for name, _ in mixture.order) == {
        name: count.rows for name, count in mixture.counts.items()
    }
    for name, count in mixture.counts.items():
        assert abs(count.rows - examples * amounts[name] / sum(amounts.values())) < 1
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
            share = count.rows / 400
            assert abs(seen[name] - window * share) <= 1 + share * len(amounts)


@pytest.mark.parametrize(
    ("amounts", "examples", "says"),
    [
        ({}, 10, "needs an ingredient"),
        ({"d": None}, 10, "no rows for an ingredient"),
        ({"a": 41}, 10, "has fewer rows than requested"),
        ({"a": 0}, 10, "has fewer rows than requested"),
        ({"empty": None}, 10, "has fewer rows than requested"),
        ({"a": 1, "c": 90}, 20, "'a' would get no row"),
        ({"a": None}, 0, "would get no row"),
    ],
)
def test_what_cannot_be_mixed_is_refused(amounts, examples, says):
    with pytest.raises(SpecError, match=says):
        mix({**POOLS, "empty": []}, amounts, examples, run_seed=1)


# shares, repeats, and what happens at the end of a supply


def got(amounts, examples, costs=None):
    """Rows that each ingredient gives."""
    counts = mix(POOLS, amounts, examples, 1, costs).counts
    return {name: count.rows for name, count in counts.items()}


def test_repeat_weighs_an_ingredient_by_rows_times_repeat():
    amounts = {"a": Ingredient(rows=10, repeat=3), "b": Ingredient(rows=10), "c": 20}
    assert got(amounts, 60) == {"a": 30, "b": 10, "c": 20}
    assert got({"a": Ingredient(rows=10, repeat=0.5), "b": 10}, 30) == {"a": 10, "b": 20}


def test_what_shares_leave_goes_to_the_others_by_rows_times_repeat():
    amounts = {"a": Ingredient(share=0.2), "b": 10, "c": Ingredient(rows=15, repeat=2)}
    assert got(amounts, 100) == {"a": 20, "b": 20, "c": 60}
    assert got({"a": amounts["a"], "b": 10}, 100) == {"a": 20, "b": 80}


def test_shares_alone_are_relative():
    amounts = {"a": Ingredient(share=0.1), "b": Ingredient(share=0.3)}
    assert got(amounts, 40) == {"a": 10, "b": 30}
    assert got({"a": Ingredient(share=0.1)}, 40) == {"a": 40}
    assert got({"a": Ingredient(share=1.0), "b": Ingredient(share=1.0)}, 40) == {"a": 20, "b": 20}


def test_shares_are_exact_where_floats_are_not():
    """0.1 + 0.2 is 0.30000000000000004 in floats, which would move a row from c to a."""
    amounts = {"a": Ingredient(share=0.1), "b": Ingredient(share=0.2), "c": 5}
    counts = mix(POOLS, amounts, 10, 1).counts
    assert {name: count.share for name, count in counts.items()} == {
        "a": Fraction(1, 10),
        "b": Fraction(1, 5),
        "c": Fraction(7, 10),
    }
    assert got(amounts, 10) == {"a": 1, "b": 2, "c": 7}


def test_a_share_of_cost_gives_fewer_rows_of_what_costs_more():
    costs = {"a": Fraction(30), "b": Fraction(10), "c": Fraction(5)}
    amounts = {"a": Ingredient(share=0.5), "b": Ingredient(share=0.5)}
    assert got(amounts, 40, costs) == {"a": 10, "b": 30}
    # b and c keep their proportion of rows, 1 to 2, and cost 10 + 2 × 5 together.
    mixed = {"a": Ingredient(share=0.6), "b": 10, "c": 20}
    counts = mix(POOLS, mixed, 80, 1, costs).counts
    assert {name: count.rows for name, count in counts.items()} == {"a": 20, "b": 20, "c": 40}
    assert counts["b"].share == counts["c"].share == Fraction(1, 5)


def test_a_supply_that_stops_leaves_the_rest_to_the_others_in_proportion():
    stop = Ingredient(rows=10, when_exhausted="stop")
    mixture = mix(POOLS, {"a": stop, "b": 10, "c": 20}, 100, 1)
    assert {name: count.rows for name, count in mixture.counts.items()} == {
        "a": 10,
        "b": 30,
        "c": 60,
    }
    assert mixture.counts["a"].exhausted == "stopped"
    assert mixture.counts["b"].exhausted == "repeated"
    assert len(set(ids(mixture, "a"))) == 10


def test_one_supply_that_stops_may_end_another():
    amounts = {
        "a": Ingredient(rows=5, when_exhausted="stop"),
        "b": Ingredient(rows=5, repeat=2.5, when_exhausted="stop"),
        "c": Ingredient(rows=20),
    }
    assert got(amounts, 30) == {"a": 4, "b": 10, "c": 16}
    assert got(amounts, 60) == {"a": 5, "b": 12, "c": 43}


def test_supplies_that_cannot_fill_the_budget_are_refused():
    stop = {name: Ingredient(rows=10, repeat=1.5, when_exhausted="stop") for name in ("a", "b")}
    assert got(stop, 30) == {"a": 15, "b": 15}
    with pytest.raises(SpecError, match="cannot fill the budget of 31 examples"):
        got(stop, 31)


def test_an_ingredient_that_may_not_repeat_is_refused_with_need_and_supply():
    amounts = {"a": Ingredient(rows=10, when_exhausted="error"), "b": 10}
    assert got(amounts, 20) == {"a": 10, "b": 10}
    with pytest.raises(SpecError, match="12 examples needed, 10 available"):
        got(amounts, 24)
    stopping = amounts | {"b": Ingredient(rows=10, when_exhausted="stop")}
    with pytest.raises(SpecError, match="11 examples needed, 10 available"):
        got(stopping, 21)


amount = st.builds(
    lambda rows, part, policy: Ingredient.model_validate(
        {"rows": rows, **part, "when_exhausted": policy}
    ),
    st.integers(1, 17),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"share": st.floats(0.01, 0.3)}),
        st.fixed_dictionaries({"repeat": st.floats(0.1, 9)}),
    ),
    st.sampled_from(["stop", "repeat", "error"]),
)


@settings(deadline=None)
@given(
    amounts=st.dictionaries(st.sampled_from(sorted(POOLS)), amount, min_size=1),
    examples=st.integers(1, 300),
    costs=st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {name: st.fractions(1, 500, max_denominator=50) for name in sorted(POOLS)}
        ),
    ),
)
def test_any_amounts_fill_the_budget_exactly_with_prefixes_or_are_refused(amounts, examples, costs):
    try:
        mixture = mix(POOLS, amounts, examples, 1, costs)
    except SpecError as error:
        said = str(error)
        assert any(w in said for w in ("no row", "cannot fill", "is exhausted"))
        return
    assert len(mixture.order) == examples
    assert sum(count.share for count in mixture.counts.values()) == 1
    for name, count in mixture.counts.items():
        alone = ids(mix(POOLS, {name: amounts[name].rows}, 300, 1), name)
        assert ids(mixture, name) == alone[: count.rows]
        supply = amounts[name].rows * (amounts[name].repeat or 1)
        assert amounts[name].when_exhausted == "repeat" or count.rows <= supply


@settings(deadline=None)
@given(
    shares=st.dictionaries(st.sampled_from(sorted(POOLS)), st.integers(1, 9), min_size=2),
    examples=st.integers(50, 400),
)
def test_shares_are_met_to_within_one_row(shares, examples):
    total = sum(shares.values())
    amounts = {name: Ingredient(share=part / 9) for name, part in shares.items()}
    for name, rows in got(amounts, examples).items():
        assert abs(rows - examples * shares[name] / total) < 1


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
