"""Branches of tokens behind shared prefixes, packed into one pass without padding.

A pass is a forest: each branch is a run of tokens that continues its parent (or nothing), and sees
its parent, its parent's parent and so on, and itself causally. Shared headers are branches that
others continue, so they are computed once:

    branch 0   header of adapter 0          packed   0 0 0 0 1 1 1 2 2 3 3 3 3 4 4
    branch 1     text, answer               position 0 1 2 3 4 5 6 4 5 0 1 2 3 4 5
    branch 2     text, answer               slot     0 0 0 0 0 0 0 0 0 1 1 1 1 1 1
    branch 3   header of adapter 1
    branch 4     text, answer

All that a network does token by token (products, norms) runs on the packed tokens, one row of them.
Only attention looks across tokens; it runs in blocks of branches that continue the same parents.
The tokens of one adapter stand together, so that its low-rank products are slices.

Knows: token ids, parents, slots, index arithmetic. Does not know: networks, attention's arithmetic,
which tokens are supervised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixtune.engine.kv_cache import DecodeCache, PrefixCache

BASE = -1
"""Slot of tokens that no adapter touches: the frozen base alone."""

ROOT = -1
"""Parent of a branch that continues nothing."""

MAX_LENGTH_RATIO = 1.5
"""On a CPU, a block's longest row over its shortest: rows are padded to the longest."""


class AdapterSlice(NamedTuple):
    """Packed tokens [start, stop) that belong to the adapter in a slot."""

    slot: int
    start: int
    stop: int


@dataclass(slots=True)
class AdapterRouting:
    """Adapters of the packed tokens in work; every LoRA layer reads it."""

    slices: tuple[AdapterSlice, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """A run of tokens behind its parent, under one adapter of the bank.

    The last n tokens may be a tree. `tree_mask` [n, n] bool: whether the second is the first or one
    of its ancestors. `tree_depths` [n]: distance from the token in front of the tree, minus one.
    """

    tokens: Sequence[int]
    parent: int = ROOT
    slot: int = 0
    tree_mask: Tensor | None = None
    tree_depths: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Branches whose attention is computed together, padded to the longest.

    Of R rows; T tokens of the longest row, S keys of the longest row (its ancestors' tokens, then
    its own). `queries` [R, T], `keys` [R, S]: indices of packed tokens, at padding the row's first.
    `mask` [R or 1, T, S]: which keys a query sees. `query_positions` [R, T], `key_positions`
    [R, S]: positions in the text, for sliding windows. `valid` [R, T]: false at padding.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    query_positions: Tensor
    key_positions: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Forest:
    """A pass of N packed tokens: `input_ids` and `position_ids` [N], slices by adapter, blocks.

    `branch_starts`: index of each branch's first token. `max_length`: positions of the longest
    text. `prefix`: what every branch without a parent continues; its keys are numbered from N on.
    """

    input_ids: Tensor
    position_ids: Tensor
    branch_starts: tuple[int, ...]
    slices: tuple[AdapterSlice, ...]
    blocks: tuple[Block, ...]
    max_length: int
    prefix: PrefixCache | None = None
    layouts: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False)
    """Index arithmetic of attention by numbers of heads and key heads, made once for all layers."""

    @property
    def num_tokens(self) -> int:
        """Packed tokens."""
        return len(self.input_ids)

    @property
    def num_keys(self) -> int:
        """Packed tokens, and those of the prefix."""
        return self.num_tokens + (self.prefix.length if self.prefix else 0)

    def decode_cache(self, max_new_tokens: int) -> DecodeCache:
        """An empty cache for the rows of the last block, each to go on behind its last token."""
        block = self.blocks[-1]
        rows = len(block.valid)
        last = block.valid.sum(1) - 1
        # The last token of a row sees all of the row's keys, and no padding.
        visible = block.mask.expand(rows, -1, -1)[torch.arange(rows), last]
        positions = block.query_positions.gather(1, last.unsqueeze(1)).squeeze(1)
        return DecodeCache(visible, block.key_positions, positions, max_new_tokens)


def pack_forest(
    branches: Sequence[Branch],
    device: torch.device,
    *,
    stacked: bool = False,
    prefix: PrefixCache | None = None,
) -> Forest:
    """Pack branches; a parent stands before its children, slots in any order.

    Args:
        branches: at least one; a child has its parent's slot.
        device: where the pass runs.
        stacked: one block for all headers and a last one for all rows, and every adapter filled up
            to equally many tokens: fewer, larger kernels, at the price of padding.
        prefix: continued by every branch without a parent; no gradients then.

    Raises:
        ValueError: a branch continues a later one, a tree, or one of another adapter.
    """
    if stacked:
        branches = [*branches, *_filler_branches(branches)]
    order = sorted(range(len(branches)), key=lambda i: (branches[i].slot, i))
    ends = list(accumulate(len(branches[i].tokens) for i in order))
    starts = [0] * len(branches)
    for index, end in zip(order, ends, strict=True):
        starts[index] = end - len(branches[index].tokens)
    prefix_length = prefix.length if prefix else 0
    first_positions = _first_positions(branches, prefix_length)
    ids = [token for i in order for token in branches[i].tokens]
    positions = [p for i in order for p in _positions(branches[i], first_positions[i])]
    key_positions = np.concatenate([positions, np.arange(prefix_length)]).astype(np.int64)
    packing = _Packing(branches, starts, len(ids), prefix_length)
    groups = _headers_and_rows(branches) if stacked else _similar_siblings(branches)
    return Forest(
        input_ids=torch.tensor(ids, device=device),
        position_ids=torch.tensor(positions, device=device),
        branch_starts=tuple(starts),
        slices=tuple(_slices([branches[i].slot for i in order], ends)),
        blocks=tuple(_block(packing, group, key_positions, device) for group in groups),
        max_length=max(positions) + 1,
        prefix=prefix,
    )


def _filler_branches(branches: Sequence[Branch]) -> list[Branch]:
    """Branches that nobody reads, so that every adapter has equally many tokens.

    Its products are then one batched product; adapters of one batch differ by a few tokens.
    """
    tokens: dict[int, int] = {}
    for branch in branches:
        tokens[branch.slot] = tokens.get(branch.slot, 0) + len(branch.tokens)
    longest = max(len(branch.tokens) for branch in branches)
    return [
        Branch([0] * min(longest, missing - start), slot=slot)
        for slot, count in tokens.items()
        if (missing := max(tokens.values()) - count)
        for start in range(0, missing, longest)
    ]


@dataclass(frozen=True, slots=True)
class _Packing:
    """Branches and where they start; a prefix's keys stand behind the packed tokens."""

    branches: Sequence[Branch]
    starts: Sequence[int]
    num_tokens: int
    prefix_length: int

    def own(self, index: int) -> np.ndarray:
        """Indices of a branch's tokens."""
        start = self.starts[index]
        return np.arange(start, start + len(self.branches[index].tokens))

    def ancestors(self, index: int) -> np.ndarray:
        """Indices of all tokens that a branch continues, from the first position on."""
        parent = self.branches[index].parent
        if parent != ROOT:
            return np.concatenate([self.ancestors(parent), self.own(parent)])
        return np.arange(self.num_tokens, self.num_tokens + self.prefix_length)


def _first_positions(branches: Sequence[Branch], prefix_length: int) -> list[int]:
    """Position of each branch's first token: the length of all that it continues."""
    positions: list[int] = []
    for index, branch in enumerate(branches):
        if branch.parent == ROOT:
            positions.append(prefix_length)
            continue
        parent = branches[branch.parent]
        if branch.parent >= index or parent.slot != branch.slot or parent.tree_depths:
            raise ValueError(f"branch {index} cannot continue branch {branch.parent}")
        positions.append(positions[branch.parent] + len(parent.tokens))
    return positions


def _positions(branch: Branch, first: int) -> list[int]:
    tree_start = first + len(branch.tokens) - len(branch.tree_depths)
    return [*range(first, tree_start), *(tree_start + depth for depth in branch.tree_depths)]


def _slices(slots: Sequence[int], ends: Sequence[int]) -> list[AdapterSlice]:
    """Each adapter's packed tokens, from each branch's slot and end in packed order."""
    cuts = [0, *(i for i in range(1, len(slots)) if slots[i] != slots[i - 1]), len(slots)]
    return [
        AdapterSlice(slots[first], ends[first - 1] if first else 0, ends[last - 1])
        for first, last in pairwise(cuts)
    ]


def _headers_and_rows(branches: Sequence[Branch]) -> list[list[int]]:
    """One group of all branches that others continue, and a last one of the others."""
    parents = {branch.parent for branch in branches}
    headers = [index for index in range(len(branches)) if index in parents]
    rows = [index for index in range(len(branches)) if index not in parents]
    return [group for group in (headers, rows) if group]


def _similar_siblings(branches: Sequence[Branch]) -> list[list[int]]:
    """Groups with the same parent and of similar length, so that little is padded."""
    siblings: dict[int, list[int]] = {}
    for index, branch in enumerate(branches):
        siblings.setdefault(branch.parent, []).append(index)
    groups: list[list[int]] = []
    for family in siblings.values():
        by_length = sorted(family, key=lambda index: len(branches[index].tokens))
        groups.append([by_length[0]])
        for index in by_length[1:]:
            shortest = len(branches[groups[-1][0]].tokens)
            if len(branches[index].tokens) > MAX_LENGTH_RATIO * shortest:
                groups.append([])
            groups[-1].append(index)
    return groups


def _block(
    packing: _Packing, group: Sequence[int], positions: np.ndarray, device: torch.device
) -> Block:
    """Pad a group's branches and their ancestors into one block.

    A row's keys are [ancestors, padding, own tokens, padding]: own tokens start at the same column
    `above` in every row, so that one causal mask serves all.
    """
    ancestors = [packing.ancestors(index) for index in group]
    tokens = [packing.own(index) for index in group]
    longest, above = max(map(len, tokens)), max(map(len, ancestors))
    queries = np.zeros((len(group), longest), dtype=np.int64)
    keys = np.zeros((len(group), above + longest), dtype=np.int64)
    valid = np.zeros((len(group), longest), dtype=bool)
    mask = np.zeros((len(group), longest, above + longest), dtype=bool)
    mask[:, :, above:] = np.tri(longest, dtype=bool)
    for row, (index, before, own) in enumerate(zip(group, ancestors, tokens, strict=True)):
        # Padding is the row's own: what is masked is multiplied by zero, and zero times a number of
        # an adapter that has diverged is not a number.
        queries[row], keys[row] = own[0], own[0]
        queries[row, : len(own)] = own
        valid[row, : len(own)] = True
        keys[row, : len(before)] = before
        keys[row, above : above + len(own)] = own
        mask[row, :, : len(before)] = True
        tree = packing.branches[index].tree_mask
        if tree is not None and len(tree):
            root = len(own) - len(tree)
            mask[row, root : len(own), above + root : above + len(own)] = tree.numpy()
    if (mask == mask[:1]).all():
        mask = mask[:1]  # one for all rows
    arrays = (queries, keys, mask, positions[queries], positions[keys], valid)
    return Block(*(torch.from_numpy(array).to(device) for array in arrays))
