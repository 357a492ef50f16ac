"""Attention over a forest of branches: the function that networks are given in place of their own.

Queries, keys and values arrive packed (one row of N tokens per head) and are gathered block by
block. Laid out flat, a query is row `head · N + token`, a key is row `key head · M + token` (M
counts the keys of a prefix, which stand behind the N packed ones). A block has R rows of T queries
and S keys; with H key heads that serve G query heads each, what is gathered for it is

    queries [R·H, G·T, size]     keys, values [R·H, S, size]

A key that several rows share is copied to each of them; its gradient is the sum of the copies'.

Knows: attention's arithmetic, index arithmetic of heads and blocks. Does not know: tokens,
adapters, layers.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers import AttentionInterface

from mixtune.engine.forest import Block, Forest
from mixtune.engine.kv_cache import DecodeCache, PrefixCache

ATTENTION_NAME = "mixtune_forest"
"""Its name in transformers. No mask function is registered under it, so that transformers makes no
mask."""

MAX_EAGER_KEYS = 512
"""Keys of a row up to which scores are computed whole and kept for the backward pass, which is the
fastest; rows with more keys take torch's fused attention, whose memory is linear in them."""


class ScoreSettings(NamedTuple):
    """Scale and soft cap of a layer's scores, and its window: positions back that a token sees."""

    scaling: float
    softcap: float | None
    window: int | None


class _SharedKeys(NamedTuple):
    """Keys of ancestors: their flat rows, and the gathered copies (None: the same in every row)."""

    flat: Tensor
    copies: Tensor | None


@dataclass(frozen=True, slots=True)
class _BlockLayout:
    """One block's shape, and where it stands in the gathered queries and keys."""

    block: Block
    heads: int
    key_heads: int
    query_slice: slice
    key_slice: slice
    shared: _SharedKeys | None
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """R."""
        return self.block.queries.shape[0]

    @property
    def num_keys(self) -> int:
        """S: keys of a row, its ancestors' first."""
        return self.block.keys.shape[1]

    @property
    def num_shared(self) -> int:
        """Keys of a row that are its ancestors'."""
        return self.num_keys - self.block.queries.shape[1]

    def queries(self, gathered: Tensor) -> Tensor:
        """[R·H, G·T, size] of this block."""
        return gathered[self.query_slice].view(
            self.num_rows * self.key_heads, -1, gathered.shape[-1]
        )

    def keys(self, gathered: Tensor) -> Tensor:
        """[R·H, S, size] of this block."""
        return gathered[self.key_slice].view(-1, self.num_keys, gathered.shape[-1])

    def keys_by_head(self, gathered: Tensor) -> Tensor:
        """[R, H, S, size] of this block."""
        return self.keys(gathered).view(self.num_rows, self.key_heads, self.num_keys, -1)

    def mask(self, window: int | None) -> Tensor:
        """[R or 1, T, S] bool: which keys a query sees."""
        if window is None:
            return self.block.mask
        if window not in self._masks:
            queries, keys = self.block.query_positions, self.block.key_positions
            distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
            self._masks[window] = self.block.mask & (distance < window)
        return self._masks[window]

    def bias(self, window: int | None) -> Tensor:
        """Added to scores, float32 [R or 1, 1, 1, T, S]: 0 where a key is seen, else -inf."""
        if window not in self._biases:
            mask = self.mask(window)[:, None, None]
            zeros = torch.zeros(mask.shape, device=mask.device)
            self._biases[window] = zeros.masked_fill_(~mask, float("-inf"))
        return self._biases[window]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Index arithmetic of a forest for a number of heads, the same in every layer.

    `to_queries`, `to_keys`: flat row of each gathered query and key. `from_queries`, `from_keys`:
    the inverse, for gradients. `to_out`: gathered query of each (token · heads + head), `from_out`
    its inverse. `padding`: gathered queries that hold no token.
    """

    blocks: list[_BlockLayout]
    to_queries: Tensor
    to_keys: Tensor
    from_queries: Tensor
    from_keys: Tensor
    to_out: Tensor
    from_out: Tensor
    padding: Tensor

    @property
    def max_keys(self) -> int:
        """Keys of the longest row."""
        return max(block.num_keys for block in self.blocks)

    def key_gradient(self, gathered: Tensor) -> Tensor:
        """Gradient of the flat keys (or values) from that of the gathered ones."""
        grad = gathered.index_select(0, self.from_keys)
        for block in self.blocks:
            if block.shared is None:
                continue
            flat, copies = block.shared
            if copies is None:
                by_head = block.keys_by_head(gathered)[:, :, : block.num_shared]
                grad.index_add_(0, flat, by_head.sum(0).flatten(0, 1))
            else:
                grad.index_add_(0, flat, gathered[block.key_slice].index_select(0, copies))
        return grad


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, with the signature of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [1, heads, N, size].
        key: [1, key heads, N, size]; query heads that share a key head stand together.
        value: as `key`.
        attention_mask: None.
        options: `scaling` of the scores; where the layer has them, `sliding_window` (how many
            positions back a token sees, itself included) and `softcap`. What is computed: `forest`,
            whose keys go into `prefix_cache` or, of its last block, into `decode_cache`, if given;
            without a forest one token for each row of `decode_cache`.

    Raises:
        ValueError: attention sinks or a mask, which this function does not compute.
    """
    if options.get("s_aux") is not None or attention_mask is not None:
        raise ValueError("attention sinks and masks are not part of forest attention")
    scaling = float(options.get("scaling") or query.shape[-1] ** -0.5)
    settings = ScoreSettings(scaling, options.get("softcap"), options.get("sliding_window"))
    forest: Forest | None = options.get("forest")
    decode_cache: DecodeCache | None = options.get("decode_cache")
    prefix_cache: PrefixCache | None = options.get("prefix_cache")
    layer = module.layer_idx
    assert isinstance(layer, int)
    if forest is None:
        assert decode_cache is not None
        return _decode(decode_cache, layer, query, key, value, settings), None
    if prefix_cache is not None:
        prefix_cache.layers[layer] = (key[0].clone(), value[0].clone())
    if forest.prefix is not None:
        prefix_keys, prefix_values = forest.prefix.layers[layer]
        key = torch.cat([key[0], prefix_keys], dim=1).unsqueeze(0)
        value = torch.cat([value[0], prefix_values], dim=1).unsqueeze(0)
    layout = _layout_of(forest, query.shape[1], key.shape[1])
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (query, key, value)]
    fused = settings.softcap is None and (query.is_cuda or layout.max_keys > MAX_EAGER_KEYS)
    attend: Any = _fused if fused else _Eager.apply
    out: Tensor = attend(*flat, layout, settings)
    if decode_cache is not None:
        last = layout.blocks[-1]
        gathered = [tensor.index_select(0, layout.to_keys) for tensor in flat[1:]]
        decode_cache.prefill(layer, *map(last.keys_by_head, gathered))
    return out.view(1, forest.num_tokens, query.shape[1], value.shape[-1]), None


AttentionInterface.register(ATTENTION_NAME, forest_attention)


def _layout_of(forest: Forest, heads: int, key_heads: int) -> _Layout:
    """The index arithmetic of a forest, made once for a number of heads."""
    if (heads, key_heads) not in forest.layouts:
        forest.layouts[heads, key_heads] = _make_layout(forest, heads, key_heads)
    layout: _Layout = forest.layouts[heads, key_heads]
    return layout


def _make_layout(forest: Forest, heads: int, key_heads: int) -> _Layout:
    device, num_tokens, num_keys = forest.input_ids.device, forest.num_tokens, forest.num_keys
    head = torch.arange(heads, device=device).view(key_heads, -1, 1)  # [H, G, 1]
    key_head = torch.arange(key_heads, device=device).view(key_heads, 1)  # [H, 1]
    blocks, queries, keys, valid, own = [], [], [], [], []
    query_start = key_start = 0
    for block in forest.blocks:
        # [R, 1, 1, T] + [H, G, 1] → [R, H, G, T], and [R, 1, S] + [H, 1] → [R, H, S].
        queries.append((head * num_tokens + block.queries[:, None, None]).flatten())
        keys.append((key_head * num_keys + block.keys[:, None]).flatten())
        valid.append(block.valid[:, None, None].expand(-1, *head.shape[:2], -1).flatten())
        own_keys = torch.zeros_like(block.keys, dtype=torch.bool)
        own_keys[:, -block.valid.shape[1] :] = block.valid
        own.append(own_keys[:, None].expand(-1, key_heads, -1).flatten())
        query_slice = slice(query_start, query_start := query_start + len(queries[-1]))
        key_slice = slice(key_start, key_start := key_start + len(keys[-1]))
        shared = _shared_keys(block, keys[-1], key_heads)
        blocks.append(_BlockLayout(block, heads, key_heads, query_slice, key_slice, shared))
    to_queries, to_keys, is_token = torch.cat(queries), torch.cat(keys), torch.cat(valid)
    tokens, own_tokens = (m.nonzero().squeeze(1) for m in (is_token, torch.cat(own)))
    from_queries = torch.empty(heads * num_tokens, dtype=torch.long, device=device)
    from_queries[to_queries[tokens]] = tokens
    # Zeros stay at a prefix's keys, of which there is no gradient.
    from_keys = torch.zeros(key_heads * num_keys, dtype=torch.long, device=device)
    from_keys[to_keys[own_tokens]] = own_tokens
    return _Layout(
        blocks=blocks,
        to_queries=to_queries,
        to_keys=to_keys,
        from_queries=from_queries,
        from_keys=from_keys,
        to_out=from_queries.view(heads, num_tokens).t().flatten(),
        from_out=(to_queries % num_tokens) * heads + to_queries // num_tokens,
        padding=(~is_token).nonzero().squeeze(1),
    )


def _shared_keys(block: Block, keys: Tensor, key_heads: int) -> _SharedKeys | None:
    """Ancestors' keys of a block; `keys`: flat row of each gathered key."""
    num_keys = block.keys.shape[1]
    above = num_keys - block.queries.shape[1]
    if not above:
        return None
    flat = keys.view(-1, key_heads, num_keys)[..., :above]
    if bool((block.keys[:, :above] == block.keys[:1, :above]).all()):
        return _SharedKeys(flat[0].flatten(), None)
    copies = torch.arange(len(keys), device=keys.device).view(-1, key_heads, num_keys)[..., :above]
    # A row's last query sees all of its ancestors, and no padding between them and its own tokens.
    visible = block.mask[:, -1, :above].expand(len(copies), -1)[:, None].expand_as(copies)
    return _SharedKeys(flat[visible], copies[visible])


class _Eager(torch.autograd.Function):
    """Attention with whole scores in the arithmetic of its input, softmax in float32.

    The backward pass is written out: it computes the weights again rather than keep them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: _Layout, how: ScoreSettings
    ) -> Tensor:
        """[heads · N, size] and twice [H · M, size] → [N · heads, size]."""
        queries = query.index_select(0, layout.to_queries)
        keys, values = (tensor.index_select(0, layout.to_keys) for tensor in (key, value))
        out = torch.empty(len(queries), value.shape[1], dtype=value.dtype, device=value.device)
        for block in layout.blocks:
            weights, _ = _weights(block, queries, keys, how)
            torch.bmm(weights.to(value.dtype), block.keys(values), out=block.queries(out))
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.settings = layout, how
        return out.index_select(0, layout.to_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        layout, settings = ctx.layout, ctx.settings
        query, key, value = ctx.saved_tensors
        queries = query.index_select(0, layout.to_queries)
        keys, values = (tensor.index_select(0, layout.to_keys) for tensor in (key, value))
        grad_out = grads[0].reshape(-1, value.shape[1]).index_select(0, layout.from_out)
        grad_out.index_fill_(0, layout.padding, 0)
        grad_queries, grad_keys, grad_values = map(torch.empty_like, (queries, keys, values))
        for block in layout.blocks:
            weights, capped = _weights(block, queries, keys, settings)
            out = block.queries(grad_out)
            torch.bmm(weights.to(value.dtype).mT, out, out=block.keys(grad_values))
            grad = torch.bmm(out, block.keys(values).mT).float()
            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, torch.float32)
            if capped is not None:
                grad *= 1 - capped.square()  # of tanh
            grad = grad.mul_(settings.scaling).to(value.dtype)
            torch.bmm(grad, block.keys(keys), out=block.queries(grad_queries))
            torch.bmm(grad.mT, block.queries(queries), out=block.keys(grad_keys))
        return (
            grad_queries.index_select(0, layout.from_queries),
            layout.key_gradient(grad_keys),
            layout.key_gradient(grad_values),
            None,
            None,
        )


def _weights(
    block: _BlockLayout, queries: Tensor, keys: Tensor, settings: ScoreSettings
) -> tuple[Tensor, Tensor | None]:
    """A block's weights [R·H, G·T, S] in float32, and tanh of its scores where they are capped."""
    scores = torch.bmm(block.queries(queries), block.keys(keys).mT)
    scores = scores.float().mul_(settings.scaling)
    capped = None
    if settings.softcap is not None:
        capped = scores.div_(settings.softcap).tanh_()
        scores = capped * settings.softcap
    # Added, which takes a fraction of the time of filling where a mask of truth values says so.
    by_head = scores.view(block.num_rows, block.key_heads, -1, *block.block.mask.shape[1:])
    by_head.add_(block.bias(settings.window))
    return torch.softmax(scores, dim=-1), capped


class _Permute(torch.autograd.Function):
    """Flat rows → gathered ones, or back: each row once, so that gradients are selected too."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, padding: Tensor | None
    ) -> Tensor:
        """`rows[index]`."""
        ctx.inverse, ctx.padding = inverse, padding
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """`grad[inverse]`, zero at padding."""
        grad = grads[0].index_select(0, ctx.inverse)
        if ctx.padding is not None:
            grad.index_fill_(0, ctx.padding, 0)
        return grad, None, None, None


class _GatherKeys(torch.autograd.Function):
    """Flat keys or values → gathered copies; gradients of copies are added up."""

    @staticmethod
    def forward(ctx: FunctionCtx, flat: Tensor, layout: _Layout) -> Tensor:
        """`flat[layout.to_keys]`."""
        ctx.layout = layout  # type: ignore[attr-defined]
        return flat.index_select(0, layout.to_keys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """See `_Layout.key_gradient`."""
        return ctx.layout.key_gradient(grads[0]), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, layout: _Layout, settings: ScoreSettings
) -> Tensor:
    """As `_Eager`, by torch's fused attention, block by block."""
    queries = _Permute.apply(query, layout.to_queries, layout.from_queries, None)  # type: ignore[no-untyped-call]
    keys, values = (_GatherKeys.apply(tensor, layout) for tensor in (key, value))  # type: ignore[no-untyped-call]
    outs = []
    for block in layout.blocks:
        by_head = queries[block.query_slice].view(
            block.num_rows, block.heads, -1, queries.shape[-1]
        )
        out = functional.scaled_dot_product_attention(
            by_head,
            block.keys_by_head(keys),
            block.keys_by_head(values),
            attn_mask=block.mask(settings.window)[:, None],
            scale=settings.scaling,
            enable_gqa=block.heads != block.key_heads,
        )
        outs.append(out.reshape(-1, value.shape[-1]))
    gathered = torch.cat(outs) if len(outs) > 1 else outs[0]
    flat: Tensor = _Permute.apply(gathered, layout.to_out, layout.from_out, layout.padding)  # type: ignore[no-untyped-call]
    return flat


def _decode(
    cache: DecodeCache,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    settings: ScoreSettings,
) -> Tensor:
    """Attention of one token per row, each [1, heads, R, size], to all before it and itself.

    Returns:
        [1, R, heads, size].
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    keys, values = cache.update(layer, key, value)
    rows, heads, size = query.shape
    grouped = query.reshape(rows, keys.shape[1], -1, size)  # [R, H, G, size]
    scores = torch.matmul(grouped, keys.mT).float() * settings.scaling
    if settings.softcap is not None:
        scores = torch.tanh(scores / settings.softcap) * settings.softcap
    mask = cache.mask(settings.window)
    scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    out = torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)
    return out.reshape(1, rows, heads, size)
