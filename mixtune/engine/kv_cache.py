"""Keys and values that outlive a pass: of a prefix shared by later passes, and of greedy decoding.

Knows: buffers, positions. Does not know: attention's arithmetic, networks, text.
"""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of a prefix under one adapter, for passes that continue it.

    `layers`: layer index → keys and values, each [key heads, length, head size]; filled by the
    pass that computes the prefix.
    """

    length: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class DecodeCache:
    """Keys and values of rows that are decoded token by token, each step one token per row.

    `visible` [R, S + max_new_tokens]: which keys a row sees. `key_positions`: their places in the
    text, as sliding windows need them. `positions` [R]: of the last token.
    """

    def __init__(
        self, visible: Tensor, key_positions: Tensor, positions: Tensor, max_new_tokens: int
    ) -> None:
        """Reserve room behind a prefill of S keys per row, padding among them.

        Args:
            visible: [R, S] bool, false at padding.
            key_positions: [R, S].
            positions: [R], of each row's last token.
            max_new_tokens: tokens that may follow.
        """
        room = (0, max_new_tokens)
        self.visible = functional.pad(visible, room)
        self.key_positions = functional.pad(key_positions, room)
        self.positions = positions
        self.length = visible.shape[1]
        self._room = max_new_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def prefill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store a layer's prefill, each [R, key heads, S, head size]."""
        rows = (0, 0, 0, self._room)
        self._layers[layer] = functional.pad(keys, rows), functional.pad(values, rows)

    def next_positions(self) -> Tensor:
        """Positions [R] of one more token of each row, which from now on is visible."""
        self.positions = self.positions + 1
        self.visible[:, self.length] = True
        self.key_positions[:, self.length] = self.positions
        self.length += 1
        return self.positions

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one key and value per row, each [R, key heads, head size]; returns all so far.

        Returns:
            Keys and values, each [R, key heads, length, head size].
        """
        keys, values = self._layers[layer]
        keys[:, :, self.length - 1] = key
        values[:, :, self.length - 1] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def mask(self, window: int | None) -> Tensor:
        """[R, length] bool: which keys the token in work sees, within a sliding window if any."""
        visible = self.visible[:, : self.length]
        if window is None:
            return visible
        distance = self.positions[:, None] - self.key_positions[:, : self.length]
        return visible & (distance < window)
