"""Attention over a forest of branches: the function that networks are given in place of their own.

Queries, keys and values arrive packed (one row of N tokens per head) and are gathered block by
block (see layout.py); a key that several rows share is copied to each of them, and its gradient is
the sum of the copies'.

Knows: attention's arithmetic. Does not know: tokens, adapters, layers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import AttentionInterface

from mixtune.engine.forest import Forest, Past
from mixtune.engine.kv_cache import Memory
from mixtune.engine.layout import How, Plan, give_back, plan_of

NAME = "mixtune_forest"
"""What transformers knows this attention by. No mask function is registered under that name, so
that transformers makes no mask."""

KEEP = 512
"""Keys of a row up to which scores are computed whole and kept for the backward pass, which is the
fastest; rows with more keys take torch's fused attention, whose memory is linear in them."""


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, with the signature of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [1, heads, N, size].
        key: [1, key heads, N, size]; query heads that share a key head stand together.
        value: as `key`.
        attention_mask: None.
        more: `scaling` of the scores; `forest`; `record`, a past to be filled; where the layer has
            them, `sliding_window` (how many positions back a token sees, itself included) and
            `softcap` of the scores.

    Raises:
        ValueError: attention sinks or a mask, which this function does not compute.
    """
    if more.get("s_aux") is not None or attention_mask is not None:
        raise ValueError("attention sinks and masks are not part of forest attention")
    scaling = more.get("scaling") or query.shape[-1] ** -0.5
    how = How(float(scaling), more.get("softcap"), more.get("sliding_window"))
    memory: Memory | None = more.get("memory")
    forest: Forest | None = more.get("forest")
    if forest is None:
        assert memory is not None
        return memory.attend(_layer(module), (query[0], key[0], value[0]), how), None
    record: Past | None = more.get("record")
    if record is not None:
        record.layers[_layer(module)] = (key[0].clone(), value[0].clone())
    if forest.past is not None:
        before = forest.past.layers[_layer(module)]
        key = torch.cat([key[0], before[0]], dim=1).unsqueeze(0)
        value = torch.cat([value[0], before[1]], dim=1).unsqueeze(0)
    plan = plan_of(forest, query.shape[1], key.shape[1])
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (query, key, value)]
    fused = how.softcap is None and (query.is_cuda or plan.longest > KEEP)
    out: Tensor = _fused(flat, plan, how) if fused else _Whole.apply(*flat, plan, how)  # type: ignore[no-untyped-call]
    if memory is not None:
        memory.keep(_layer(module), flat[1:], plan)
    return out.view(1, forest.size, query.shape[1], value.shape[-1]), None


def _layer(module: nn.Module) -> int:
    """Number of an attention layer."""
    number = module.layer_idx
    assert isinstance(number, int)
    return number


AttentionInterface.register(NAME, forest_attention)


class _Whole(torch.autograd.Function):
    """Attention with whole scores in the arithmetic of its input, softmax in float32.

    The backward pass is written out: it computes the weights again rather than keep them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, how: How
    ) -> Tensor:
        """[heads x N, size] and twice [key heads x N, size] → [N x heads, size]."""
        queries = query.index_select(0, plan.to_queries)
        keys, values = key.index_select(0, plan.to_keys), value.index_select(0, plan.to_keys)
        out = torch.empty(len(queries), value.shape[1], dtype=value.dtype, device=value.device)
        for number, part in enumerate(plan.blocks):
            lead, wide, span = part.shape(plan.heads, plan.key_heads)
            weight, _ = _weights(queries, keys, (plan, number, how))
            torch.bmm(
                weight.to(value.dtype),
                values[part.at[1]].view(lead, span, -1),
                out=out[part.at[0]].view(lead, wide, -1),
            )
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.how = plan, how
        return out.index_select(0, plan.to_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        plan, how = ctx.plan, ctx.how
        query, key, value = ctx.saved_tensors
        queries = query.index_select(0, plan.to_queries)
        keys, values = key.index_select(0, plan.to_keys), value.index_select(0, plan.to_keys)
        outs = grads[0].reshape(-1, value.shape[1]).index_select(0, plan.from_out)
        outs.index_fill_(0, plan.padding, 0)
        d_queries = torch.empty_like(queries)
        d_keys, d_values = torch.empty_like(keys), torch.empty_like(values)
        for number, part in enumerate(plan.blocks):
            lead, wide, span = part.shape(plan.heads, plan.key_heads)
            of_queries, of_keys = part.at
            weight, capped = _weights(queries, keys, (plan, number, how))
            out = outs[of_queries].view(lead, wide, -1)
            torch.bmm(weight.to(value.dtype).mT, out, out=d_values[of_keys].view(lead, span, -1))
            scores = torch.bmm(out, values[of_keys].view(lead, span, -1).mT)
            scores = torch.ops.aten._softmax_backward_data(
                scores.float(), weight, -1, torch.float32
            )
            if capped is not None:
                scores *= 1 - capped.square()
            scores = scores.mul_(how.scaling).to(value.dtype)
            block_keys = keys[of_keys].view(lead, span, -1)
            torch.bmm(scores, block_keys, out=d_queries[of_queries].view(lead, wide, -1))
            block_queries = queries[of_queries].view(lead, wide, -1)
            torch.bmm(scores.mT, block_queries, out=d_keys[of_keys].view(lead, span, -1))
        return (
            d_queries.index_select(0, plan.from_queries),
            give_back(d_keys, plan),
            give_back(d_values, plan),
            None,
            None,
        )


def _weights(
    queries: Tensor, keys: Tensor, which: tuple[Plan, int, How]
) -> tuple[Tensor, Tensor | None]:
    """A block's attention weights in float32, and its scores before the cap's factor, if any."""
    plan, number, how = which
    part = plan.blocks[number]
    lead, wide, span = part.shape(plan.heads, plan.key_heads)
    scores = torch.bmm(
        queries[part.at[0]].view(lead, wide, -1), keys[part.at[1]].view(lead, span, -1).mT
    )
    scores = scores.float().mul_(how.scaling)
    capped = None
    if how.softcap is not None:
        capped = scores.div_(how.softcap).tanh_()
        scores = capped * how.softcap
    # Added, which takes a fraction of the time of filling where a mask of truth values says so.
    by_row = scores.view(part.rows, plan.key_heads, -1, part.queries, span)
    by_row.add_(plan.mask(number, how.window))
    return torch.softmax(scores, dim=-1), capped


class _ToQueries(torch.autograd.Function):
    """Flat rows → gathered slots and back, each a plain selection."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, there: Tensor, back: Tensor, padding: Tensor | None
    ) -> Tensor:
        """`flat[there]`."""
        ctx.back, ctx.padding = back, padding
        return flat.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """`grad[back]`, without what stands at padding."""
        found = grads[0].index_select(0, ctx.back)
        if ctx.padding is not None:
            found.index_fill_(0, ctx.padding, 0)
        return found, None, None, None


class _ToKeys(torch.autograd.Function):
    """Flat keys or values → gathered copies; the way back adds the copies up."""

    @staticmethod
    def forward(ctx: FunctionCtx, flat: Tensor, plan: Plan) -> Tensor:
        """`flat[plan.to_keys]`."""
        ctx.plan = plan  # type: ignore[attr-defined]
        return flat.index_select(0, plan.to_keys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """See `give_back`."""
        return give_back(grads[0], ctx.plan), None


def _fused(flat: list[Tensor], plan: Plan, how: How) -> Tensor:
    """The same by torch's fused attention, block by block."""
    queries = _ToQueries.apply(flat[0], plan.to_queries, plan.from_queries, None)  # type: ignore[no-untyped-call]
    keys, values = (_ToKeys.apply(each, plan) for each in flat[1:])  # type: ignore[no-untyped-call]
    outs = []
    for number, part in enumerate(plan.blocks):
        key, value = (
            each[part.at[1]].view(part.rows, plan.key_heads, part.keys, -1)
            for each in (keys, values)
        )
        out = functional.scaled_dot_product_attention(
            queries[part.at[0]].view(part.rows, plan.heads, part.queries, -1),
            key,
            value,
            attn_mask=plan.allowed(number, how.window)[:, None],
            scale=how.scaling,
            enable_gqa=plan.heads != plan.key_heads,
        )
        outs.append(out.reshape(-1, value.shape[-1]))
    whole = torch.cat(outs) if len(outs) > 1 else outs[0]
    moved: Tensor = _ToQueries.apply(whole, plan.to_out, plan.from_out, plan.padding)  # type: ignore[no-untyped-call]
    return moved
