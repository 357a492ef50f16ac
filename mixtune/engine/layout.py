"""Where packed tokens go when attention gathers them block by block, and back again.

Queries and keys of all heads are flat rows (head x N + token; keys of a past behind the N). A block
takes R of the forest's branches. With H key heads that serve G query heads each, T queries and S
keys per row its slots are

    queries [R·H, G·T, size]     keys, values [R·H, S, size]

Knows: index arithmetic of heads and blocks. Does not know: scores, networks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtune.engine.forest import Block, Forest


@dataclass(frozen=True, slots=True)
class How:
    """What a layer does to its scores: a factor, a soft cap, a window of positions."""

    scaling: float
    softcap: float | None
    window: int | None


@dataclass(slots=True)
class BlockPlan:
    """One block's shape, and where its slots stand in the gathered queries and keys."""

    block: Block
    rows: int
    queries: int
    keys: int
    at: tuple[slice, slice]
    copies: tuple[Tensor, Tensor] | None
    """Slots of shared keys, and the flat rows that they were copied from."""
    summed: bool
    """Whether all rows share the same parents, so that copies can be summed before they go back."""

    def shape(self, heads: int, key_heads: int) -> tuple[int, int, int]:
        """Rows x key heads, queries of a key head, keys."""
        return self.rows * key_heads, heads // key_heads * self.queries, self.keys


@dataclass(slots=True)
class Plan:
    """Index arithmetic of a forest for a number of heads, the same in every layer.

    `to_queries`, `to_keys`: gathered slot → flat row (head x N + token). `from_queries`,
    `from_keys`: the other way, for gradients. `to_out`: (token x heads + head) → gathered slot,
    `from_out` the other way, with `padding` the gathered slots that hold no token.
    """

    heads: int
    key_heads: int
    blocks: list[BlockPlan]
    to_queries: Tensor
    to_keys: Tensor
    from_queries: Tensor
    from_keys: Tensor
    to_out: Tensor
    from_out: Tensor
    padding: Tensor
    longest: int
    seen: dict[tuple[int, int | None], Tensor]
    masks: dict[tuple[int, int | None], Tensor]

    def allowed(self, number: int, window: int | None) -> Tensor:
        """[rows or 1, T, S] bool of a block: which keys a query sees."""
        block = self.blocks[number].block
        if window is None:
            return block.allowed
        known = self.seen.get((number, window))
        if known is None:
            back = block.query_positions.unsqueeze(-1) - block.key_positions.unsqueeze(-2)
            known = self.seen[number, window] = block.allowed & (back < window)
        return known

    def mask(self, number: int, window: int | None) -> Tensor:
        """What is added to a block's scores, as float32 [rows or 1, 1, 1, T, S]: 0, or -inf."""
        known = self.masks.get((number, window))
        if known is None:
            seen = self.allowed(number, window)[:, None, None]
            known = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))
            self.masks[number, window] = known
        return known


def plan_of(forest: Forest, heads: int, key_heads: int) -> Plan:
    """The index arithmetic of a forest, made once for a number of heads."""
    if (heads, key_heads) not in forest.plans:
        forest.plans[heads, key_heads] = _make_plan(forest, heads, key_heads)
    plan: Plan = forest.plans[heads, key_heads]
    return plan


def _make_plan(forest: Forest, heads: int, key_heads: int) -> Plan:
    size, device, shared = forest.size, forest.ids.device, heads // key_heads
    held_keys = size + (forest.past.size if forest.past else 0)
    head = torch.arange(heads, device=device).view(key_heads, shared, 1)
    key_head = torch.arange(key_heads, device=device).view(key_heads, 1)
    blocks, queries, keys, real, own = [], [], [], [], []
    first_query = first_key = 0
    for block in forest.blocks:
        rows, length = block.queries.shape
        span = block.keys.shape[1]
        queries.append((head * size + block.queries[:, None, None]).flatten())
        keys.append((key_head * held_keys + block.keys[:, None]).flatten())
        real.append(block.real[:, None, None].expand(-1, key_heads, shared, -1).flatten())
        mine = torch.zeros_like(block.keys, dtype=torch.bool)
        mine[:, span - length :] = block.real
        own.append(mine[:, None].expand(-1, key_heads, -1).flatten())
        at = (
            slice(first_query, first_query := first_query + rows * heads * length),
            slice(first_key, first_key := first_key + rows * key_heads * span),
        )
        copies = _copies(block, keys[-1], key_heads)
        blocks.append(BlockPlan(block, rows, length, span, at, copies, _one_family(block)))
    to_queries, to_keys = torch.cat(queries), torch.cat(keys)
    kept = torch.cat(real).nonzero().squeeze(1)
    from_queries = torch.empty(heads * size, dtype=torch.long, device=device)
    from_queries[to_queries[kept]] = kept
    held = torch.cat(own).nonzero().squeeze(1)
    # Of the past's keys there is no gradient: see `Past`.
    from_keys = torch.zeros(key_heads * held_keys, dtype=torch.long, device=device)
    from_keys[to_keys[held]] = held
    return Plan(
        heads=heads,
        key_heads=key_heads,
        blocks=blocks,
        to_queries=to_queries,
        to_keys=to_keys,
        from_queries=from_queries,
        from_keys=from_keys,
        to_out=from_queries.view(heads, size).t().flatten(),
        from_out=(to_queries % size) * heads + to_queries // size,
        padding=(~torch.cat(real)).nonzero().squeeze(1),
        longest=max(plan.keys for plan in blocks),
        seen={},
        masks={},
    )


def _one_family(block: Block) -> bool:
    above = block.keys.shape[1] - block.queries.shape[1]
    return bool((block.keys[:, :above] == block.keys[:1, :above]).all())


def _copies(block: Block, keys: Tensor, key_heads: int) -> tuple[Tensor, Tensor] | None:
    """Slots (within the block) and flat rows of keys that belong to a row's parents."""
    span = block.keys.shape[1]
    above = span - block.queries.shape[1]
    if not above:
        return None
    slots = torch.arange(len(keys), device=keys.device).view(-1, key_heads, span)[..., :above]
    if _one_family(block):
        return slots[:1].flatten(), keys.view(-1, key_heads, span)[0, :, :above].flatten()
    seen = block.allowed[:, -1, :above].expand(len(slots), -1)
    taken = seen[:, None].expand_as(slots)
    return slots[taken], keys.view_as(slots.new_empty(len(slots), key_heads, span))[..., :above][
        taken
    ]


def give_back(grad: Tensor, plan: Plan) -> Tensor:
    """Gradient of the flat keys (or values) from that of their gathered copies."""
    found = grad.index_select(0, plan.from_keys)
    for part in plan.blocks:
        if part.copies is None:
            continue
        slots, flat = part.copies
        mine = grad[part.at[1]]
        if part.summed:
            above = part.keys - part.queries
            whole = mine.view(part.rows, plan.key_heads, part.keys, -1)[:, :, :above]
            found.index_add_(0, flat, whole.sum(0).flatten(0, 1))
        else:
            found.index_add_(0, flat, mine.index_select(0, slots))
    return found
