"""Decides which rows share a pass, and which starts of their prompts are computed once.

Headers are found by themselves: among the rows of one adapter, sorted by their prompts, whatever
start several of them share is computed once, in trees of up to two levels:

    system prompt ─┬─ instruction of task A ─┬─ text 1, answer
                   │                         └─ text 2, answer
                   └─ instruction of task B ─── text 3, answer      (alone: no header of its own)

Knows: token ids, common prefixes, tokens that a pass may hold. Does not know: networks, the meaning
of tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mixtune.engine.forest import ROOT, Branch, Forest, pack_forest
from mixtune.engine.kv_cache import PrefixCache
from mixtune.tokens import Row

PASS_TOKENS = 4096
"""Tokens of one pass on a CPU: beyond it products get no faster, and activations cost memory."""

MIN_SAVED_TOKENS = 24
"""Tokens that a header must save: it costs a block of attention more."""

MAX_HEADERS = 2
"""Headers behind one another."""


@dataclass(frozen=True, slots=True)
class InputSequence:
    """Tokens of one row, to be computed under the adapter in `slot`; only prompts are shared.

    `tree_mask`, `tree_depths`: of the continuation, where that is a tree of tokens (see `Branch`).
    """

    slot: int
    prompt: Sequence[int]
    continuation: Sequence[int] = ()
    tree_mask: Tensor | None = None
    tree_depths: Sequence[int] = ()

    @property
    def length(self) -> int:
        """Tokens, shared headers included."""
        return len(self.prompt) + len(self.continuation)


@dataclass(frozen=True, slots=True)
class PassRow:
    """A row of a pass: sequence number `index`, whose last tokens are in branch `branch`.

    `shared`: tokens of its prompt that stand in headers.
    """

    slot: int
    index: int
    branch: int
    shared: int


@dataclass(frozen=True, slots=True)
class Pass:
    """The branches that one pass computes, headers among them, and its rows."""

    branches: tuple[Branch, ...]
    rows: tuple[PassRow, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the network."""
        return sum(len(branch.tokens) for branch in self.branches)

    def pack(self, device: torch.device, prefix: PrefixCache | None = None) -> Forest:
        """The pass as a forest, laid out as suits the device."""
        return pack_forest(self.branches, device, stacked=device.type != "cpu", prefix=prefix)


def training_sequence(row: Row, slot: int = 0) -> InputSequence:
    """A training row as input; the last token of its answer is only ever a target.

    Raises:
        ValueError: the row has no prompt or no answer.
    """
    if not row.prompt or not row.answer:
        raise ValueError(f"{row.ingredient}/{row.example_id} has no prompt or no answer")
    return InputSequence(slot, row.prompt, row.answer[:-1])


def answer_indices(forest: Forest, row: PassRow, tokens: Row) -> range:
    """Packed indices of the states that predict the tokens of a training row's answer."""
    # The state of the prompt's last token predicts the first token of the answer.
    first = forest.branch_starts[row.branch] + len(tokens.prompt) - 1 - row.shared
    return range(first, first + len(tokens.answer))


def make_passes(
    sequences: Sequence[InputSequence],
    max_tokens: int = PASS_TOKENS,
    packing_limit: int | None = None,
) -> list[Pass]:
    """Put every sequence into a pass of at most `max_tokens`; a function of the sequences alone.

    They are taken by slot and in the order of their prompts, so that shared starts meet; one that
    is longer than `max_tokens`, or than `packing_limit`, goes alone.
    """
    order = sorted(range(len(sequences)), key=lambda i: _sort_key(sequences[i]))
    passes: list[Pass] = []
    waiting: list[int] = []
    used = 0
    for index in order:
        sequence = sequences[index]
        if packing_limit is not None and sequence.length > packing_limit:
            passes.append(make_pass(sequences, [index]))
            continue
        # What it adds at most: all of it that the sequence before it does not share.
        adds = sequence.length
        if waiting and sequences[waiting[-1]].slot == sequence.slot:
            adds -= common_prefix_length(sequences[waiting[-1]].prompt, sequence.prompt)
        if waiting and used + adds > max_tokens:
            passes.append(make_pass(sequences, waiting))
            waiting, used, adds = [], 0, sequence.length
        waiting.append(index)
        used += adds
    return [*passes, *([make_pass(sequences, waiting)] if waiting else [])]


def _sort_key(sequence: InputSequence) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return sequence.slot, tuple(sequence.prompt), tuple(sequence.continuation)


def make_pass(
    sequences: Sequence[InputSequence], order: Sequence[int], max_headers: int = MAX_HEADERS
) -> Pass:
    """One pass of sequences, in an order by slot and prompt, with the headers that pay."""
    builder = _PassBuilder(sequences, [], [])
    by_slot: dict[int, list[int]] = {}
    for index in order:
        by_slot.setdefault(sequences[index].slot, []).append(index)
    for members in by_slot.values():
        builder.add(members, _Position(ROOT, 0, max_headers), common=0)
    return Pass(tuple(builder.branches), tuple(builder.rows))


class _Position(NamedTuple):
    """A place for branches: behind `parent`, with `shared` tokens in front of them."""

    parent: int
    shared: int
    headers_left: int


@dataclass(frozen=True, slots=True)
class _PassBuilder:
    """Branches and rows of a pass, as they are added."""

    sequences: Sequence[InputSequence]
    branches: list[Branch]
    rows: list[PassRow]

    def add(self, members: Sequence[int], at: _Position, common: int) -> None:
        """Add sequences, sorted by prompt, whose first `common` tokens are the same."""
        for cluster in self._clusters(members, common):
            prompts = [self.sequences[index].prompt for index in cluster]
            # Prompts are sorted: what the first and the last share is shared by all between them.
            # Each keeps a token of its own, whose state predicts what follows the prompt.
            shared = min(common_prefix_length(prompts[0], prompts[-1]), min(map(len, prompts)) - 1)
            if not at.headers_left or len(cluster) == 1 or shared <= common:
                for index in cluster:
                    self._add_row(index, at)
            elif (shared - at.shared) * (len(cluster) - 1) >= MIN_SAVED_TOKENS:
                slot = self.sequences[cluster[0]].slot
                self.branches.append(Branch(prompts[0][at.shared : shared], at.parent, slot))
                header = _Position(len(self.branches) - 1, shared, at.headers_left - 1)
                self.add(cluster, header, shared)
            else:  # some of them may still share more
                self.add(cluster, at, shared)

    def _add_row(self, index: int, at: _Position) -> None:
        sequence = self.sequences[index]
        tokens = [*sequence.prompt[at.shared :], *sequence.continuation]
        tree = (sequence.tree_mask, sequence.tree_depths)
        self.rows.append(PassRow(sequence.slot, index, len(self.branches), at.shared))
        self.branches.append(Branch(tokens, at.parent, sequence.slot, *tree))

    def _clusters(self, members: Sequence[int], common: int) -> Iterator[list[int]]:
        """Runs of neighbours that share more tokens than `common`."""
        prompts = {index: self.sequences[index].prompt for index in members}
        run = [members[0]]
        for previous, index in pairwise(members):
            if common_prefix_length(prompts[previous], prompts[index]) <= common:
                yield run
                run = []
            run.append(index)
        yield run


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two sequences begin with."""
    for position, (token_a, token_b) in enumerate(zip(a, b, strict=False)):
        if token_a != token_b:
            return position
    return min(len(a), len(b))
