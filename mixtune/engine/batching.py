"""Which rows share a pass, and which starts of their prompts are computed once.

Knows: token ids, common prefixes, what a pass may hold. Does not know: networks, what the tokens
mean.

Headers are found by themselves: among the rows of one adapter, sorted by their prompts, whatever
start several of them share is computed once, in trees of up to two levels:

    system prompt ─┬─ instruction of task A ─┬─ text 1, answer
                   │                         └─ text 2, answer
                   └─ instruction of task B ─── text 3, answer      (alone: no header of its own)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from mixtune.engine.forest import ROOT, Branch
from mixtune.tokens import Row

PASS_TOKENS = 4096
"""Tokens of one pass on a CPU: beyond it products get no faster, and activations cost memory."""

WORTH = 24
"""Tokens that a header must save: it costs a block of attention more."""

LEVELS = 2
"""Headers behind one another."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A row in a pass: whose it is, and where its branch and header are.

    `row`: its number among the rows that were given. `skip`: tokens of it that stand in headers.
    """

    slot: int
    row: int
    branch: int
    skip: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass computes: branches (headers among them) and the seats of its rows."""

    branches: tuple[Branch, ...]
    seats: tuple[Seat, ...]

    @property
    def tokens(self) -> int:
        """Tokens that go through the network."""
        return sum(len(branch.tokens) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Text:
    """A row to seat: its prompt, what follows it, and the adapter that reads it.

    `lineage`, `depths`: of the rest, where that is a tree of tokens (see `Branch`).
    """

    slot: int
    prompt: Sequence[int]
    rest: Sequence[int] = ()
    lineage: Tensor | None = None
    depths: Sequence[int] = ()

    @property
    def size(self) -> int:
        """Tokens without shared headers."""
        return len(self.prompt) + len(self.rest)


def text_of(row: Row, slot: int = 0) -> Text:
    """A training row; the last token of its answer is only ever a target.

    Raises:
        ValueError: the row has no prompt or no answer.
    """
    if not row.prompt or not row.answer:
        raise ValueError(f"{row.ingredient}/{row.example_id} has no prompt or no answer")
    return Text(slot, row.prompt, row.answer[:-1])


def passes(texts: Sequence[Text], budget: int = PASS_TOKENS, span: int | None = None) -> list[Pass]:
    """Seat every text in a pass of at most `budget` tokens; a function of the texts alone.

    Texts are taken by adapter and in the order of their prompts, so that shared starts meet; one
    that is longer than the budget, or than `span`, goes alone.
    """
    order = sorted(range(len(texts)), key=lambda i: (texts[i].slot, *_key(texts[i])))
    found: list[Pass] = []
    waiting: list[int] = []
    used = 0
    for index in order:
        text = texts[index]
        if span is not None and text.size > span:
            found.append(seat(texts, [index]))
            continue
        # What a text adds at most: all of it that its forerunner does not share.
        adds = text.size
        if waiting and texts[waiting[-1]].slot == text.slot:
            adds -= common_start(texts[waiting[-1]].prompt, text.prompt)
        if waiting and used + adds > budget:
            found.append(seat(texts, waiting))
            waiting, used, adds = [], 0, text.size
        waiting.append(index)
        used += adds
    return [*found, *([seat(texts, waiting)] if waiting else [])]


def _key(text: Text) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(text.prompt), tuple(text.rest)


def seat(texts: Sequence[Text], order: Sequence[int], levels: int = LEVELS) -> Pass:
    """One pass for these texts, sorted by adapter and prompt, with the headers that pay."""
    branches: list[Branch] = []
    seats: list[Seat] = []
    slots: dict[int, list[int]] = {}
    for index in order:
        slots.setdefault(texts[index].slot, []).append(index)
    for members in slots.values():
        _grow(texts, members, (ROOT, 0, levels, 0), (branches, seats))
    return Pass(tuple(branches), tuple(seats))


def _grow(
    texts: Sequence[Text],
    members: Sequence[int],
    place: tuple[int, int, int, int],
    into: tuple[list[Branch], list[Seat]],
) -> None:
    """Add members' branches behind a place.

    A place: parent, tokens in front, levels of headers left, tokens that all members share.
    """
    parent, skip, levels, known = place
    branches, seats = into
    for cluster in _clusters(texts, members, known):
        first = texts[cluster[0]]
        shared = _shared([texts[i].prompt for i in cluster])
        if not levels or len(cluster) == 1 or shared <= known:
            for index in cluster:
                text = texts[index]
                seats.append(Seat(text.slot, index, len(branches), skip))
                branches.append(
                    Branch(
                        [*text.prompt[skip:], *text.rest],
                        parent,
                        text.slot,
                        text.lineage,
                        text.depths,
                    )
                )
        elif (shared - skip) * (len(cluster) - 1) >= WORTH:
            branches.append(Branch(first.prompt[skip:shared], parent, first.slot))
            _grow(texts, cluster, (len(branches) - 1, shared, levels - 1, shared), into)
        else:  # some of them may still share more
            _grow(texts, cluster, (parent, skip, levels, shared), into)


def _clusters(texts: Sequence[Text], members: Sequence[int], known: int) -> Iterator[list[int]]:
    """Runs of neighbours that share more tokens than `known`."""
    run = [members[0]]
    for before, index in pairwise(members):
        if common_start(texts[before].prompt, texts[index].prompt) <= known:
            yield run
            run = []
        run.append(index)
    yield run


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; each keeps one of its own."""
    # Prompts are sorted: what the first and the last share is shared by all between them.
    return min(common_start(prompts[0], prompts[-1]), min(map(len, prompts)) - 1)


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with."""
    for position, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return position
    return min(len(one), len(other))
