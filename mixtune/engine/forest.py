"""Branches of tokens behind shared prefixes, packed into one pass without padding.

A pass is a forest: each branch is a run of tokens that continues its parent (or nothing), and sees
its parent, its parent's parent and so on, and itself causally. Shared headers are branches that
others continue, so they are computed once:

    branch 0   header of adapter 0          packed   0 0 0 0 1 1 1 2 2 3 3 3 3 4 4
    branch 1     text, answer               position 0 1 2 3 4 5 6 4 5 0 1 2 3 4 5
    branch 2     text, answer               adapter  0 0 0 0 0 0 0 0 0 1 1 1 1 1 1
    branch 3   header of adapter 1
    branch 4     text, answer

All that a network does token by token (products, norms) runs on the packed tokens, one row of them.
Only attention looks across tokens; it runs in blocks of branches that continue the same parents.
The tokens of one adapter stand together, so that its low-rank products are slices.

Knows: token ids, parents, adapters, index arithmetic. Does not know: networks, attention's
arithmetic, which tokens are supervised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

BASE = -1
"""Adapter of tokens that no adapter touches: the frozen base alone."""

ROOT = -1
"""Parent of a branch that continues nothing."""

SPREAD = 1.5
"""On a CPU rows of a block are at most this much longer than its shortest: padding costs."""


Slices = tuple[tuple[int, int, int], ...]
"""(adapter, from, to) over packed tokens."""


@dataclass(slots=True)
class Routes:
    """Which packed tokens of the pass in work belong to which adapter; layers look here."""

    slices: Slices = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """A run of tokens behind its parent, under one adapter of the bank.

    `lineage`: [n, n] bool for the last n tokens where they are a tree (whether the second is the
    first or one of its ancestors); `depths`: distance of each of them from the token in front of
    the tree, minus one. None: the tokens are a plain run.
    """

    tokens: Sequence[int]
    parent: int = ROOT
    adapter: int = 0
    lineage: Tensor | None = None
    depths: Sequence[int] = ()


@dataclass(slots=True)
class Past:
    """What one shared start left in every layer under some adapters, for later passes.

    `layers`: number of a layer → keys and values, each [key heads, adapters x length, size], the
    adapters in the order of `adapters`. Filled by the pass that computes the start.
    """

    length: int
    adapters: tuple[int, ...]
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Tokens of all adapters."""
        return self.length * len(self.adapters)

    def places(self, adapter: int, behind: int) -> np.ndarray:
        """Places of an adapter's tokens where all of the past stands behind so many others."""
        first = behind + self.adapters.index(adapter) * self.length
        return np.arange(first, first + self.length)


@dataclass(frozen=True, slots=True)
class Block:
    """Branches whose attention is computed together, padded to the longest.

    Of R rows; T is the longest row, S the longest row of keys: the parents' tokens, then the row's
    own. `queries` [R, T] and `keys` [R, S]: places among the packed tokens; padding repeats the
    row's first. `allowed` [R or 1, T, S]: which keys a query sees. `query_positions` [R, T] and
    `key_positions` [R, S]: places in the text, for sliding windows. `real` [R, T]: no padding.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor
    query_positions: Tensor
    key_positions: Tensor
    real: Tensor


@dataclass(frozen=True, slots=True)
class Forest:
    """A pass: packed ids and positions [N], branches' places, adapters' slices, blocks."""

    ids: Tensor
    positions: Tensor
    starts: tuple[int, ...]
    slices: Slices
    blocks: tuple[Block, ...]
    longest: int
    """Positions that the longest text takes."""
    past: Past | None = None
    """What stands in front of every branch that continues nothing; its keys come behind the
    packed ones."""
    plans: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False)
    """Index arithmetic that attention derives from the blocks, for its number of heads."""

    @property
    def size(self) -> int:
        """Packed tokens."""
        return len(self.ids)

    def spots(self, branch: int, offsets: Sequence[int]) -> list[int]:
        """Packed places of a branch's tokens."""
        return [self.starts[branch] + offset for offset in offsets]


def plant(
    branches: Sequence[Branch],
    device: torch.device,
    *,
    stacked: bool = False,
    past: Past | None = None,
) -> Forest:
    """Pack branches; a parent stands before its children, adapters in any order.

    Args:
        branches: at least one; a child has its parent's adapter.
        device: where the pass runs.
        past: in front of every branch without a parent, under its own adapter; no gradients then.
        stacked: one block for all headers and a last one for all rows, and every adapter filled up
            to equally many tokens: fewer, larger kernels, at the price of padding.
    """
    if stacked:
        branches = [*branches, *_filling(branches)]
    order = sorted(range(len(branches)), key=lambda i: (branches[i].adapter, i))
    lengths = [len(branches[i].tokens) for i in order]
    ends = list(accumulate(lengths))
    starts = [0] * len(branches)
    for index, end, length in zip(order, ends, lengths, strict=True):
        starts[index] = end - length
    begins = _begins(branches, past.length if past else 0)
    ids = [token for i in order for token in branches[i].tokens]
    positions = [position for i in order for position in _positions(branches[i], begins[i])]
    where = np.asarray(positions)
    if past is not None:
        where = np.concatenate([where, np.tile(np.arange(past.length), len(past.adapters))])
    trunk = _Trunk(branches, starts, past, len(ids))
    groups = _groups(branches, merge=stacked)
    return Forest(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        starts=tuple(starts),
        slices=tuple(_slices(branches, order, ends)),
        blocks=tuple(_block(trunk, group, where, device) for group in groups),
        longest=max(positions) + 1,
        past=past,
    )


def _filling(branches: Sequence[Branch]) -> list[Branch]:
    """Branches that nobody reads, so that every adapter has equally many tokens.

    Its products are then one batched product; adapters of one batch differ by a few tokens.
    """
    tokens: dict[int, int] = {}
    for branch in branches:
        tokens[branch.adapter] = tokens.get(branch.adapter, 0) + len(branch.tokens)
    longest = max(len(branch.tokens) for branch in branches)
    return [
        Branch([0] * min(longest, short - begin), adapter=adapter)
        for adapter, count in tokens.items()
        if (short := max(tokens.values()) - count)
        for begin in range(0, short, longest)
    ]


@dataclass(frozen=True, slots=True)
class _Trunk:
    """What blocks are made of: branches, their places, the past behind `size` packed tokens."""

    branches: Sequence[Branch]
    starts: Sequence[int]
    past: Past | None
    size: int

    def own(self, index: int) -> np.ndarray:
        """Places of a branch's tokens."""
        return np.arange(self.starts[index], self.starts[index] + len(self.branches[index].tokens))

    def chain(self, index: int) -> np.ndarray:
        """Places of all that a branch continues, from the first token on."""
        branch = self.branches[index]
        if branch.parent != ROOT:
            return np.concatenate([self.chain(branch.parent), self.own(branch.parent)])
        if self.past is None:
            return np.empty(0, dtype=np.int64)
        return self.past.places(branch.adapter, self.size)


def _begins(branches: Sequence[Branch], root: int) -> list[int]:
    """Position of each branch's first token: the length of all that it continues."""
    found: list[int] = []
    for index, branch in enumerate(branches):
        if branch.parent == ROOT:
            found.append(root)
            continue
        parent = branches[branch.parent]
        if branch.parent >= index or parent.adapter != branch.adapter or parent.depths:
            raise ValueError(f"branch {index} cannot continue branch {branch.parent}")
        found.append(found[branch.parent] + len(parent.tokens))
    return found


def _positions(branch: Branch, begin: int) -> list[int]:
    plain = len(branch.tokens) - len(branch.depths)
    return [*range(begin, begin + plain), *(begin + plain + depth for depth in branch.depths)]


def _slices(
    branches: Sequence[Branch], order: Sequence[int], ends: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(adapter, from, to) of each adapter's packed tokens."""
    adapters = [branches[i].adapter for i in order]
    cuts = [0, *(i for i in range(1, len(order)) if adapters[i] != adapters[i - 1]), len(order)]
    return [
        (adapters[first], ends[first - 1] if first else 0, ends[last - 1])
        for first, last in pairwise(cuts)
    ]


def _groups(branches: Sequence[Branch], *, merge: bool) -> list[list[int]]:
    """Branches to compute attention for together: with the same parent and of similar length."""
    families: dict[int, list[int]] = {}
    for index, branch in enumerate(branches):
        families.setdefault(branch.parent, []).append(index)
    if merge:
        headers = [index for index in range(len(branches)) if index in families]
        rows = [index for index in range(len(branches)) if index not in families]
        return [group for group in (headers, rows) if group]
    groups: list[list[int]] = []
    for family in families.values():
        ordered = sorted(family, key=lambda index: len(branches[index].tokens))
        groups.append([ordered[0]])
        for index in ordered[1:]:
            shortest = len(branches[groups[-1][0]].tokens)
            if len(branches[index].tokens) > SPREAD * shortest:
                groups.append([])
            groups[-1].append(index)
    return groups


def _block(
    trunk: _Trunk, group: Sequence[int], positions: np.ndarray, device: torch.device
) -> Block:
    branches = trunk.branches
    chains = [trunk.chain(index) for index in group]
    own = [trunk.own(index) for index in group]
    longest = max(map(len, own))
    above = max(map(len, chains))
    queries = np.zeros((len(group), longest), dtype=np.int64)
    keys = np.zeros((len(group), above + longest), dtype=np.int64)
    real = np.zeros((len(group), longest), dtype=bool)
    allowed = np.zeros((len(group), longest, above + longest), dtype=bool)
    causal = np.tri(longest, dtype=bool)
    for row, (index, chain, mine) in enumerate(zip(group, chains, own, strict=True)):
        # Padding is the row's own: what is masked is multiplied by zero, and zero times an adapter
        # that has diverged is not a number.
        queries[row], keys[row] = mine[0], mine[0]
        queries[row, : len(mine)] = mine
        real[row, : len(mine)] = True
        keys[row, : len(chain)] = chain
        keys[row, above : above + len(mine)] = mine
        allowed[row, :, : len(chain)] = True
        allowed[row, :, above:] = causal
        lineage = branches[index].lineage
        if lineage is not None and len(lineage):
            first = len(mine) - len(lineage)
            allowed[row, first : len(mine), above + first : above + len(mine)] = lineage.numpy()
    if (allowed == allowed[:1]).all():
        allowed = allowed[:1]
    arrays = (queries, keys, allowed, positions[queries], positions[keys], real)
    return Block(*(torch.from_numpy(array).to(device) for array in arrays))
