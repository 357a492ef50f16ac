"""Keys and values of rows that go on token by token: greedy decoding.

Knows: buffers, attention of one token per row. Does not know: networks, stopping, text.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mixtune.engine.forest import Forest, Slices
from mixtune.engine.layout import How, Plan


class Memory:
    """The rows' keys and values, layer by layer.

    Filled by a forest whose last block holds the rows; then each step appends one key and value to
    every row. Buffers have room for `limit` more tokens.
    """

    def __init__(self, forest: Forest, limit: int, slices: Slices) -> None:
        """Take the rows of a forest's last block, in the block's order.

        Args:
            forest: a pass that is about to run.
            limit: most tokens that follow.
            slices: (adapter, from, to) over the rows.
        """
        block = forest.blocks[-1]
        rows, span = len(block.queries), block.keys.shape[1]
        spare = block.real.new_zeros(rows, limit)
        last = block.real.sum(1) - 1
        # The last real query of a row sees all of the row's real keys.
        seen = block.allowed.expand(rows, -1, -1)[torch.arange(rows), last]
        self.seen = torch.cat([seen, spare], dim=1)
        room = block.key_positions.new_zeros(rows, limit)
        self.positions = torch.cat([block.key_positions, room], dim=1)
        self.next = block.query_positions.gather(1, last.unsqueeze(1)).squeeze(1)
        self.filled, self.limit = span, limit
        self.slices = slices
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer: int, flat: list[Tensor], plan: Plan) -> None:
        """Store a layer's keys and values of the forest."""
        part = plan.blocks[-1]
        index = plan.to_keys[part.at[1]]
        shape = (part.rows, plan.key_heads, part.keys, flat[0].shape[1])
        held = [functional.pad(t[index].view(shape), (0, 0, 0, self.limit)) for t in flat]
        self._held[layer] = (held[0], held[1])

    def advance(self) -> Tensor:
        """Make room for one more token of each row; returns their positions [rows]."""
        self.next = self.next + 1
        self.seen[:, self.filled] = True
        self.positions[:, self.filled] = self.next
        self.filled += 1
        return self.next

    def attend(self, layer: int, new: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Attention of one token per row, whose key and value are appended.

        Args:
            layer: its number.
            new: queries, keys and values, each [heads, rows, size].
            how: scaling, cap, window.

        Returns:
            [1, rows, heads, size].
        """
        query, key, value = (tensor.transpose(0, 1) for tensor in new)  # [rows, heads, size]
        keys, values = self._held[layer]
        keys[:, :, self.filled - 1] = key
        values[:, :, self.filled - 1] = value
        keys, values = keys[:, :, : self.filled], values[:, :, : self.filled]
        rows, heads, size = query.shape
        grouped = query.reshape(rows, keys.shape[1], -1, size)
        scores = torch.matmul(grouped, keys.mT).float() * how.scaling
        if how.softcap is not None:
            scores = torch.tanh(scores / how.softcap) * how.softcap
        seen = self.seen[:, : self.filled]
        if how.window is not None:
            seen = seen & (self.next[:, None] - self.positions[:, : self.filled] < how.window)
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
        out = torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)
        return out.reshape(1, rows, heads, size)
