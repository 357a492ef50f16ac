"""Training mixtures: examples and amounts → one ordered list per run; lengths; evaluation items.

Knows: pools, shares, supplies, seeded orders, interleaving, lengths in tokens. Does not know:
models, which cocktails exist, which rows leak (the gate removes them beforehand).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mixtune.errors import DataError, SpecError, did_you_mean
from mixtune.identity import generator, unit_interval
from mixtune.records import Example, MixRow, ReasonedText, TrainExample
from mixtune.study.spec import Ingredient, UnitName, exact
from mixtune.tokens import Tokens, refuse_answers, too_long

# ---- lengths -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowSize:
    """Tokens of one training row: `length` of prompt and answer, `supervised` of the answer.

    The answer includes its end of turn.
    """

    ingredient: str
    example_id: str
    length: int
    supervised: int

    def counted(self, unit: UnitName) -> int:
        """Tokens in the unit of shares."""
        return self.length if unit == "tokens" else self.supervised


class Sizes:
    """Lengths of examples, each text encoded once; token rows are made when a run is trained."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        # By identity: the example is part of the entry, so that no other one takes its place.
        self._prompts: dict[int, tuple[Example, int]] = {}
        self._answers: dict[ReasonedText, int] = {}
        self._usable: set[ReasonedText] = set()

    def rows(
        self, examples: Sequence[TrainExample], max_length: int | None = None
    ) -> list[RowSize]:
        """Sizes of examples as training rows, in order.

        Raises:
            DataError: an empty answer, one with a control token, or a row over `max_length`.
        """
        new: dict[ReasonedText, TrainExample] = {}
        for each in examples:
            if (answer := _answer(each.example)) not in self._usable:
                new.setdefault(answer, each)
        refuse_answers(list(new.values()), self._tokens)
        self._usable |= new.keys()
        plain = [example for _, example in examples]
        sizes = []
        for (name, example), prompt, supervised in zip(
            examples, self.prompts(plain), self.answers(plain), strict=True
        ):
            if max_length is not None and prompt + supervised > max_length:
                raise too_long(name, example.id, prompt + supervised, supervised, max_length)
            sizes.append(RowSize(name, example.id, prompt + supervised, supervised))
        return sizes

    def prompts(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example's prompt."""
        new = {id(e): e for e in examples if id(e) not in self._prompts}
        lengths = map(len, self._tokens.batch_prompt_ids(e.messages for e in new.values()))
        self._prompts |= zip(new, zip(new.values(), lengths, strict=True), strict=True)
        return [self._prompts[id(example)][1] for example in examples]

    def answers(self, examples: Iterable[Example]) -> list[int]:
        """Tokens of each example's answer with its end of turn; nothing is refused."""
        answers = [_answer(example) for example in examples]
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._answers]
        self._answers |= zip(new, map(len, self._tokens.batch_answer_ids(new)), strict=True)
        return [self._answers[answer] for answer in answers]


def _answer(example: Example) -> ReasonedText:
    return ReasonedText(example.reasoning, example.target)


def longest_answer(gold: Sequence[str], tokens: Tokens) -> int:
    """The 99th percentile (nearest rank) of answer lengths in tokens, end of turn included.

    Reasoning before the answers is not counted.

    Raises:
        DataError: no answers.
    """
    if not gold:
        raise DataError(
            "no answers to take a length limit from",
            wanted="train or validation rows",
            remedy="set evaluate.max_new_tokens to a number",
        )
    texts = list(dict.fromkeys(gold))
    if tokens.reasoning:
        return percentile_99([tokens.plain_length(text) for text in gold])
    answers = [ReasonedText("", text) for text in texts]
    lengths = dict(zip(texts, map(len, tokens.batch_answer_ids(answers)), strict=True))
    return percentile_99([lengths[text] for text in gold])


def longest_reasoning(examples: Sequence[Example], tokens: Tokens) -> int:
    """The 99th percentile of the tokens before the answer, marks included, of training examples.

    That of examples with reasoning, where there are any.
    """
    reasoned = [example for example in examples if example.reasoning] or list(examples)
    ids = tokens.batch_answer_ids([_answer(example) for example in reasoned])
    pairs = zip(reasoned, ids, strict=True)
    return percentile_99([len(row) - tokens.plain_length(e.target) for e, row in pairs])


def percentile_99(lengths: Sequence[int]) -> int:
    """The 99th percentile by nearest rank: a length that occurs."""
    return sorted(lengths)[-(-99 * len(lengths) // 100) - 1]


# ---- mixtures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IngredientCount:
    """Requested and actual amounts of one ingredient, in examples.

    `requested`: rows of its pool that may be used, of `available` ones. `rows`: its rows in the
    training list, repeats included, `distinct` of them different. `share`: its requested part of
    the mix, in the study's unit. `exhausted`: "stopped" where its supply ran out and others filled
    in, "repeated" where it continued beyond rows × repeat.
    """

    requested: int
    available: int
    rows: int
    distinct: int
    share: Fraction
    exhausted: Literal["", "stopped", "repeated"] = ""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The training list of one run, in order, and the amount of each ingredient in it."""

    order: list[TrainExample]
    counts: dict[str, IngredientCount]


def select_evaluation(examples: Sequence[Example], at_least: int | None) -> list[Example]:
    """Select the items to evaluate: whole groups until there are `at_least` items; None for all.

    The order of groups depends on task, split and group alone, so every system, seed and study
    gets the same items, and a larger `at_least` only adds items. A task with fewer items returns
    all. Sorted by task, split, group, id, whatever the order of `examples`.

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
    return sorted(chosen, key=lambda item: (item.task, item.split, item.group, item.id))


def mix(
    pools: Mapping[str, Sequence[Example]],
    amounts: Mapping[str, Ingredient],
    examples: int,
    run_seed: int,
    costs: Mapping[str, Fraction] | None = None,
) -> Mixture:
    """Build the training list of a run: exactly `examples` rows of the ingredients in `amounts`.

    Seeds depend on the ingredient's name: whatever else is in the cocktail, an ingredient
    contributes a prefix of its own order, and a smaller amount is a prefix of a larger one. The
    streams are interleaved evenly, so any stretch of the list has near-proportional shares. The
    order of mappings and pools does not matter. `costs`: ingredient → mean cost of a row, where
    shares are not of rows.

    Raises:
        SpecError: no ingredient, no pool for one, more rows requested than available, a budget
            that leaves an ingredient without a row, or one that the supplies cannot fill.
    """
    sizes = {name: len(pools[name]) for name in amounts if name in pools}
    counts = portions(sizes, amounts, examples, costs)
    streams = {
        name: _stream(pools[name], name, count.requested, count.rows, run_seed)
        for name, count in counts.items()
    }
    return Mixture(order=_merge(streams, run_seed), counts=counts)


def portions(
    available: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
    costs: Mapping[str, Fraction] | None = None,
) -> dict[str, IngredientCount]:
    """The rows that `mix` takes of each ingredient, from the sizes of pools; equal for all seeds.

    Raises:
        SpecError: as `mix`.
    """
    if not amounts:
        raise SpecError("a cocktail needs an ingredient", wanted="at least one name")
    pool_sizes = {name: _pool_size(name, available, amounts[name].rows) for name in sorted(amounts)}
    shares = requested_shares(amounts, pool_sizes, costs or {})
    supplies = {
        name: int(size * exact(amounts[name].repeat or 1)) for name, size in pool_sizes.items()
    }
    # Proportions of rows that yield the requested proportions of cost.
    weights = {name: share / (costs or {}).get(name, 1) for name, share in shares.items()}
    rows = _fill(weights, supplies, amounts, examples)
    return {
        name: IngredientCount(
            requested=size,
            available=available[name],
            rows=rows[name],
            distinct=min(size, rows[name]),
            share=shares[name],
            exhausted=_exhausted(amounts[name], rows[name], supplies[name]),
        )
        for name, size in pool_sizes.items()
    }


def requested_shares(
    amounts: Mapping[str, Ingredient], pool_sizes: Mapping[str, int], costs: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """Requested part of each ingredient in a cocktail, summing to one.

    Stated shares are kept, and the remainder goes to the ingredients without one in proportion to
    rows × repeat (× cost of a row). Where all have a share, shares are relative.
    """
    stated = {
        name: exact(amount.share) for name, amount in amounts.items() if amount.share is not None
    }
    total = sum(stated.values(), Fraction(0))
    if len(stated) == len(amounts):
        return {name: share / total for name, share in stated.items()}
    weights = {
        name: pool_sizes[name] * exact(amount.repeat or 1) * costs.get(name, Fraction(1))
        for name, amount in amounts.items()
        if name not in stated
    }
    scale = (1 - total) / sum(weights.values(), Fraction(0))
    return stated | {name: weight * scale for name, weight in weights.items()}


def _pool_size(name: str, sizes: Mapping[str, int], amount: int | None) -> int:
    """Requested size of an ingredient's pool, checked against the rows available."""
    if name not in sizes:
        raise SpecError("no rows for an ingredient", found=name, wanted=did_you_mean(name, sizes))
    available = sizes[name]
    size = available if amount is None else amount
    if not 1 <= size <= available:
        raise SpecError(
            f"ingredient {name!r} has fewer rows than requested",
            found=size,
            wanted=f"1 to {available} (rows left after leakage and length checks)",
            remedy=f"lower ingredients.{name}.rows, or leave it out to use all rows",
        )
    return size


def _fill(
    weights: Mapping[str, Fraction],
    supplies: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
) -> dict[str, int]:
    """Rows of each ingredient by weight; others share what an exhausted supply leaves open."""
    stopped: dict[str, int] = {}
    while active := {name: weight for name, weight in weights.items() if name not in stopped}:
        rows = _apportion(active, examples - sum(stopped.values()))
        over = [name for name, count in rows.items() if count > supplies[name]]
        exhausted = {n: supplies[n] for n in over if amounts[n].when_exhausted == "stop"}
        if not exhausted:
            _check_filled(stopped | rows, supplies, amounts, examples)
            return stopped | rows
        stopped |= exhausted
    raise SpecError(
        f"the ingredients cannot fill the budget of {examples} examples, and all of them stop",
        found=_listed(supplies),
        wanted=f"{examples} examples in sum (rows × repeat)",
        remedy="lower budget.steps, raise repeat, or set when_exhausted: repeat",
    )


def _apportion(weights: Mapping[str, Fraction], examples: int) -> dict[str, int]:
    """Rows proportional to weights that sum to `examples` (largest remainders, ties by name).

    In exact arithmetic, so that the result is the same on every machine.
    """
    total = sum(weights.values(), Fraction(0))
    quotas = {name: examples * weight / total for name, weight in weights.items()}
    rows = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (rows[name] - quotas[name], name))
    for name in by_remainder[: examples - sum(rows.values())]:
        rows[name] += 1
    return rows


def _check_filled(
    rows: Mapping[str, int],
    supplies: Mapping[str, int],
    amounts: Mapping[str, Ingredient],
    examples: int,
) -> None:
    """Refuse a list in which an ingredient has no row, or more than its supply allows."""
    for name, count in sorted(rows.items()):
        if count == 0:
            raise SpecError(
                f"ingredient {name!r} would get no row in a budget of {examples} examples",
                found=_listed(rows),
                wanted="an amount that gives at least one row",
                remedy="raise budget.steps, raise its amount, or leave it out of the cocktail",
            )
        if count > supplies[name] and amounts[name].when_exhausted == "error":
            raise SpecError(
                f"ingredient {name!r} is exhausted",
                found=f"{count} examples needed, {supplies[name]} available (rows × repeat)",
                wanted=f"no more than it has, as ingredients.{name}.when_exhausted is error",
                remedy=f"lower budget.steps or its share, raise ingredients.{name}.rows or repeat, "
                "or set when_exhausted: repeat",
            )


def _listed(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(rows.items()))


def _exhausted(amount: Ingredient, rows: int, supply: int) -> Literal["", "stopped", "repeated"]:
    if rows > supply:
        return "repeated"
    return "stopped" if rows == supply and amount.when_exhausted == "stop" else ""


def _stream(
    pool: Sequence[Example], name: str, rows: int, length: int, run_seed: int
) -> list[Example]:
    """The first `length` rows of an ingredient's order, epoch after epoch.

    Epoch 0 is a seeded permutation of the pool truncated to `rows`; every later epoch shuffles
    those rows again. The pool is sorted by id first, so the order of loading does not matter.
    """
    by_id = sorted(pool, key=lambda example: example.id)
    first = generator(run_seed, "order", name).permutation(len(by_id))[:rows]
    subset = [by_id[index] for index in first]
    stream = list(subset)
    for epoch in range(1, -(-length // rows)):
        shuffled = generator(run_seed, f"order/{epoch}", name).permutation(rows)
        stream += [subset[index] for index in shuffled]
    return stream[:length]


def _merge(streams: Mapping[str, Sequence[Example]], run_seed: int) -> list[TrainExample]:
    """Streams interleaved evenly: row k of n is placed at (k + u) / n, with u seeded by name."""
    placed = []
    for name, stream in streams.items():
        offset = generator(run_seed, "interleave", name).random()
        placed += [((k + offset) / len(stream), name, k) for k in range(len(stream))]
    return [TrainExample(name, streams[name][k]) for _, name, k in sorted(placed)]


def mix_rows(
    counts: Mapping[str, IngredientCount],
    rows: Sequence[RowSize],
    unit: UnitName,
    over_long: Mapping[str, int],
    leaked: Mapping[str, int],
) -> tuple[MixRow, ...]:
    """Requested and actual amounts of a run, one row per ingredient, sorted by name.

    `rows`: their sizes, empty without a tokenizer. `over_long`, `leaked`: ingredient → rows that
    never entered its pool.
    """
    own = {name: [row for row in rows if row.ingredient == name] for name in counts}
    amounts = {
        name: count.rows if unit == "rows" else sum(row.counted(unit) for row in own[name])
        for name, count in counts.items()
    }
    return tuple(
        MixRow(
            ingredient=name,
            rows_asked=count.requested,
            rows_available=count.available,
            rows_got=count.rows,
            rows_distinct=count.distinct,
            repeats=count.rows / count.distinct,
            supervised_tokens=sum(row.supervised for row in own[name]),
            tokens=sum(row.length for row in own[name]),
            dropped_overlong=over_long.get(name, 0),
            dropped_leaked=leaked.get(name, 0),
            unit=unit,
            share_asked=float(count.share),
            share_got=amounts[name] / sum(amounts.values()),
            exhausted=count.exhausted,
        )
        for name, count in counts.items()
    )
