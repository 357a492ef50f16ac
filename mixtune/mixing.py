"""Examples and amounts to one ordered training list; and which items are evaluated.

Knows: pools, shares, named orders, interleaving, whole groups. Does not know: tokens, models,
which cocktails exist (design.py), which rows leak (leakage.py removes them beforehand).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import generator, unit_interval
from mixtune.records import Example


@dataclass(frozen=True, slots=True)
class IngredientCount:
    """Asked against got for one ingredient, in examples.

    `asked`: size of the pool asked for. `available`: rows that could have entered it. `got`: rows
    in the training list, repeats included. `distinct`: different rows among them.
    """

    asked: int
    available: int
    got: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """The training list of one run, in order, and what became of each ingredient's amount."""

    order: list[tuple[str, Example]]
    counts: dict[str, IngredientCount]


def select_evaluation(examples: Sequence[Example], at_least: int | None) -> list[Example]:
    """The items to evaluate: whole groups until there are `at_least`; all of them for None.

    Groups are taken in an order that depends only on task, split and group, so every system,
    seed and study sees the same items, and a larger `at_least` adds items without exchanging any.
    A task with fewer items gives all it has (every result states its n). Sorted by task, split,
    group, id; the order of `examples` does not matter.

    Raises:
        SpecError: `at_least` below one.
    """
    if at_least is not None and at_least < 1:
        raise SpecError("cannot evaluate fewer than one item", found=at_least, wanted="1 or more")
    groups: defaultdict[tuple[str, str, str], list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.task, example.split, example.group].append(example)
    chosen: list[Example] = []
    for name in sorted(groups, key=lambda name: (unit_interval("evaluate", *name), name)):
        if at_least is not None and len(chosen) >= at_least:
            break
        chosen += groups[name]
    return sorted(
        chosen, key=lambda example: (example.task, example.split, example.group, example.id)
    )


def mix(
    pools: Mapping[str, Sequence[Example]],
    amounts: Mapping[str, int | None],
    examples: int,
    run_seed: int,
) -> Mixture:
    """One training list of exactly `examples` rows from the ingredients that `amounts` names.

    Each amount is the size of that ingredient's pool (None: all there is) and its share of the
    list. Orders come from seeds by name: whatever else is in the cocktail, an ingredient gives a
    prefix of its own order, and a smaller amount is a prefix of a larger one. The streams are
    spread evenly, so every stretch of the list has near-proportional shares. Neither the order
    of the mappings nor that of the pools matters.

    Raises:
        SpecError: no ingredient, no pool for one, an empty pool, more asked than there is, or a
            budget so small that an ingredient would get no row.
    """
    if not amounts:
        raise SpecError("a cocktail needs an ingredient", wanted="at least one name")
    asked = {name: _asked(name, pools, amounts[name]) for name in sorted(amounts)}
    shares = _shares(asked, examples)
    streams = {
        name: _stream(pools[name], name, asked[name], shares[name], run_seed) for name in asked
    }
    counts = {
        name: IngredientCount(
            asked=asked[name],
            available=len(pools[name]),
            got=shares[name],
            distinct=min(asked[name], shares[name]),
        )
        for name in asked
    }
    return Mixture(order=_merge(streams, run_seed), counts=counts)


def _asked(name: str, pools: Mapping[str, Sequence[Example]], amount: int | None) -> int:
    """Size of an ingredient's pool, checked against what there is."""
    if name not in pools:
        raise SpecError("no rows for an ingredient", found=name, wanted=did_you_mean(name, pools))
    available = len(pools[name])
    asked = available if amount is None else amount
    if not 1 <= asked <= available:
        raise SpecError(
            f"ingredient {name!r} cannot give the rows asked for",
            found=asked,
            wanted=f"1 to {available} (rows left after leakage and length checks)",
            remedy=f"lower ingredients.{name}.rows, or leave it out to take all there is",
        )
    return asked


def _shares(asked: Mapping[str, int], examples: int) -> dict[str, int]:
    """Rows per ingredient, proportional to `asked`, summing exactly to `examples`.

    Largest remainders get the rows that rounding down leaves, ties by name; in whole numbers, so
    that no machine's rounding can differ.
    """
    total = sum(asked.values())
    shares = {name: examples * rows // total for name, rows in asked.items()}
    by_remainder = sorted(asked, key=lambda name: (-(examples * asked[name] % total), name))
    for name in by_remainder[: examples - sum(shares.values())]:
        shares[name] += 1
    for name, share in shares.items():
        if share == 0:
            raise SpecError(
                f"ingredient {name!r} would get no row in a budget of {examples} examples",
                found=f"{asked[name]} of {total} rows",
                wanted="a share that gives at least one row",
                remedy="raise budget.steps, raise its rows, or leave it out of the cocktail",
            )
    return shares


def _stream(
    pool: Sequence[Example], name: str, rows: int, length: int, run_seed: int
) -> list[Example]:
    """The first `length` rows of an ingredient's endless order.

    Epoch 0 is a seeded permutation cut to `rows`; every later epoch reshuffles those `rows`. The
    pool is sorted by id first, so that the order of loading cannot matter.
    """
    by_id = sorted(pool, key=lambda example: example.id)
    first = generator(run_seed, "order", name).permutation(len(by_id))[:rows]
    subset = [by_id[index] for index in first]
    stream = subset[:length]
    epoch = 1
    while len(stream) < length:
        shuffled = generator(run_seed, f"order/{epoch}", name).permutation(rows)
        stream += [subset[index] for index in shuffled[: length - len(stream)]]
        epoch += 1
    return stream


def _merge(streams: Mapping[str, Sequence[Example]], run_seed: int) -> list[tuple[str, Example]]:
    """Streams spread evenly over one list: row k of n goes to (k + u) / n, u seeded by name."""
    placed = []
    for name, stream in streams.items():
        offset = generator(run_seed, "interleave", name).random()
        placed += [((k + offset) / len(stream), name, k) for k in range(len(stream))]
    return [(name, streams[name][k]) for _, name, k in sorted(placed)]
