"""Examples and amounts to one ordered training list; and which items are evaluated.

Knows: pools, shares, supplies, named orders, interleaving, whole groups. Does not know: tokens
(what a row costs is given), models, which cocktails exist (design.py), which rows leak (leakage.py
removes them beforehand).

What a run asked of each ingredient, against what it got.

Knows: counts of a mixture, lengths of its rows. Does not know: how rows are mixed, ids.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import generator, unit_interval
from mixtune.planning.sizes import RowSize
from mixtune.records import Example, MixRow
from mixtune.study.spec import Ingredient, UnitName, exact


@dataclass(frozen=True, slots=True)
class IngredientCount:
    """Asked against got for one ingredient, in examples.

    `asked`: size of the pool asked for. `available`: rows that could have entered it. `got`: rows
    in the training list, repeats included. `distinct`: different rows among them. `share`: its
    part of the mix as asked for, in what shares are measured in. `exhausted`: "stopped" where its
    supply is used up (others take the rest), "repeated" where it went on beyond rows × repeat.
    """

    asked: int
    available: int
    got: int
    distinct: int
    share: Fraction
    exhausted: Literal["", "stopped", "repeated"] = ""


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
    amounts: Mapping[str, Ingredient],
    examples: int,
    run_seed: int,
    costs: Mapping[str, Fraction] | None = None,
) -> Mixture:
    """One training list of exactly `examples` rows from the ingredients that `amounts` names.

    `costs`: what a row of each ingredient weighs on average, where shares are not of rows. Orders
    come from seeds by name: whatever else is in the cocktail, an ingredient gives a prefix of its
    own order, and a smaller amount is a prefix of a larger one. The streams are spread evenly, so
    every stretch of the list has near-proportional shares. Neither the order of the mappings nor
    that of the pools matters.

    Raises:
        SpecError: no ingredient, no pool for one, an empty pool, more asked than there is, a budget
            so small that an ingredient would get no row, or one that supplies cannot fill.
    """
    sizes = {name: len(pools[name]) for name in amounts if name in pools}
    counts = portions(sizes, amounts, examples, costs)
    streams = {
        name: _stream(pools[name], name, one.asked, one.got, run_seed)
        for name, one in counts.items()
    }
    return Mixture(order=_merge(streams, run_seed), counts=counts)


def portions(
    available: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
    costs: Mapping[str, Fraction] | None = None,
) -> dict[str, IngredientCount]:
    """What `mix` of pools with `available` rows takes of each ingredient; the same for every seed.

    Raises:
        SpecError: as `mix`.
    """
    if not amounts:
        raise SpecError("a cocktail needs an ingredient", wanted="at least one name")
    asked = {name: _asked(name, available, amounts[name].rows) for name in sorted(amounts)}
    shares = wanted_shares(amounts, asked, costs or {})
    supplies = {name: int(asked[name] * _passes(amounts[name])) for name in asked}
    got = _fill(_per_row(shares, costs or {}), supplies, amounts, examples)
    return {
        name: IngredientCount(
            asked=asked[name],
            available=available[name],
            got=got[name],
            distinct=min(asked[name], got[name]),
            share=shares[name],
            exhausted=_exhausted(amounts[name], got[name], supplies[name]),
        )
        for name in asked
    }


def wanted_shares(
    amounts: Mapping[str, Ingredient], asked: Mapping[str, int], costs: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """Each ingredient's part of a cocktail as asked for, adding up to one.

    Shares stand as they are, and what they leave goes to the ingredients without one by rows ×
    repeat (× what a row costs); where all have a share, they are relative.
    """
    given = {name: exact(one.share) for name, one in amounts.items() if one.share is not None}
    total = sum(given.values(), Fraction(0))
    if len(given) == len(amounts):
        return {name: share / total for name, share in given.items()}
    weights = {
        name: asked[name] * _passes(one) * costs.get(name, Fraction(1))
        for name, one in amounts.items()
        if name not in given
    }
    rest = (1 - total) / sum(weights.values(), Fraction(0))
    return given | {name: weight * rest for name, weight in weights.items()}


def _asked(name: str, sizes: Mapping[str, int], amount: int | None) -> int:
    """Size of an ingredient's pool, checked against what there is."""
    if name not in sizes:
        raise SpecError("no rows for an ingredient", found=name, wanted=did_you_mean(name, sizes))
    available = sizes[name]
    asked = available if amount is None else amount
    if not 1 <= asked <= available:
        raise SpecError(
            f"ingredient {name!r} cannot give the rows asked for",
            found=asked,
            wanted=f"1 to {available} (rows left after leakage and length checks)",
            remedy=f"lower ingredients.{name}.rows, or leave it out to take all there is",
        )
    return asked


def _passes(amount: Ingredient) -> Fraction:
    return Fraction(1) if amount.repeat is None else exact(amount.repeat)


def _per_row(shares: Mapping[str, Fraction], costs: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Proportions of rows that give proportions of cost."""
    return {name: share / costs.get(name, Fraction(1)) for name, share in shares.items()}


def _fill(
    weights: Mapping[str, Fraction],
    supplies: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
) -> dict[str, int]:
    """Rows of each ingredient: by weight, and what a supply that stops leaves, by weight too."""
    stopped: dict[str, int] = {}
    while open_ := {name: weight for name, weight in weights.items() if name not in stopped}:
        found = _apportion(open_, examples - sum(stopped.values()))
        ended = {
            name: supplies[name]
            for name, rows in found.items()
            if rows > supplies[name] and amounts[name].when_exhausted == "stop"
        }
        if not ended:
            _check_filled(stopped | found, supplies, amounts, examples)
            return stopped | found
        stopped |= ended
    raise SpecError(
        f"the ingredients cannot fill the budget of {examples} examples, and all of them stop",
        found=", ".join(f"{name}: {rows}" for name, rows in sorted(supplies.items())),
        wanted=f"{examples} examples in sum (rows × repeat)",
        remedy="lower budget.steps, raise repeat, or set when_exhausted: repeat",
    )


def _apportion(weights: Mapping[str, Fraction], examples: int) -> dict[str, int]:
    """Rows proportional to weights, summing exactly to `examples`.

    Largest remainders get the rows that rounding down leaves, ties by name; in exact arithmetic,
    so that no machine's rounding can differ.
    """
    total = sum(weights.values(), Fraction(0))
    quotas = {name: examples * weight / total for name, weight in weights.items()}
    rows = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (rows[name] - quotas[name], name))
    for name in by_remainder[: examples - sum(rows.values())]:
        rows[name] += 1
    return rows


def _check_filled(
    got: Mapping[str, int],
    supplies: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
) -> None:
    """Refuse a list in which an ingredient has no row, or more than it may give."""
    for name, rows in sorted(got.items()):
        if rows == 0:
            raise SpecError(
                f"ingredient {name!r} would get no row in a budget of {examples} examples",
                found=", ".join(f"{other}: {count}" for other, count in sorted(got.items())),
                wanted="an amount that gives at least one row",
                remedy="raise budget.steps, raise its amount, or leave it out of the cocktail",
            )
        if rows > supplies[name] and amounts[name].when_exhausted == "error":
            raise SpecError(
                f"ingredient {name!r} is exhausted",
                found=f"{rows} examples needed, {supplies[name]} there (rows × repeat)",
                wanted=f"no more than it has, as ingredients.{name}.when_exhausted is error",
                remedy=f"lower budget.steps or its share, raise ingredients.{name}.rows or repeat, "
                "or set when_exhausted: repeat",
            )


def _exhausted(amount: Ingredient, got: int, supply: int) -> Literal["", "stopped", "repeated"]:
    if got > supply:
        return "repeated"
    return "stopped" if got == supply and amount.when_exhausted == "stop" else ""


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


def mix_rows(
    mixture: Mixture,
    rows: Sequence[RowSize],
    unit: UnitName,
    dropped: tuple[Mapping[str, int], Mapping[str, int]],
) -> tuple[MixRow, ...]:
    """One row for each ingredient of a run, in the order of their names.

    Args:
        mixture: examples, counted.
        rows: the same with their tokens; none where there is no tokenizer.
        unit: what shares are measured in.
        dropped: ingredient → rows that were too long, and rows that leak.
    """
    counts, (too_long, leaked) = mixture.counts, dropped
    own = {name: [row for row in rows if row.ingredient == name] for name in counts}
    got = {
        name: one.got if unit == "rows" else sum(size_of(row, unit) for row in own[name])
        for name, one in counts.items()
    }
    return tuple(
        MixRow(
            ingredient=name,
            rows_asked=one.asked,
            rows_available=one.available,
            rows_got=one.got,
            rows_distinct=one.distinct,
            repeats=one.got / one.distinct,
            supervised_tokens=sum(row.supervised for row in own[name]),
            tokens=sum(row.length for row in own[name]),
            dropped_overlong=too_long.get(name, 0),
            dropped_leaked=leaked.get(name, 0),
            unit=unit,
            share_asked=float(one.share),
            share_got=got[name] / sum(got.values()),
            exhausted=one.exhausted,
        )
        for name, one in counts.items()
    )


def size_of(row: RowSize, unit: UnitName) -> int:
    """What a row counts for where shares are of tokens."""
    return row.length if unit == "tokens" else row.supervised
