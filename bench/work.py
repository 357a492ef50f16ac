"""How much arithmetic a training step needs: shapes of a base model, tokens of rows.

Knows: a config.json of a Llama-like model, LoRA's sizes, which tokens rows share. Does not know:
torch, how an engine batches, time.

Per token that has to be computed, with N parameters in the base's linear layers and P in the
adapter (embedding and head apart):

                base                         adapter
    forward     2 N                          2 P
    backward    2 N (to the inputs only)     4 P (to the inputs, and the adapter's own gradient)

and per supervised position 2 V d forward and 2 V d backward for the head. Scores of attention,
norms and the optimiser are left out, so that shares of the matmul rate come out low, not high.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mixtune.tokens import Row


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a base model: (inputs, outputs) of a layer's linear parts, layers, head."""

    linears: tuple[tuple[int, int], ...]
    layers: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Read config.json of a Llama-like model."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width, inner = config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or width // heads
        queries, keys = heads * size, config.get("num_key_value_heads", heads) * size
        attention = ((width, queries), (width, keys), (width, keys), (queries, width))
        mlp = ((width, inner), (width, inner), (inner, width))
        return cls((*attention, *mlp), config["num_hidden_layers"], width, config["vocab_size"])

    @property
    def base(self) -> int:
        """N: parameters of all linear layers but the head."""
        return self.layers * sum(ins * outs for ins, outs in self.linears)

    def adapter(self, rank: int) -> int:
        """P: parameters of a LoRA adapter on all of them."""
        return self.layers * rank * sum(ins + outs for ins, outs in self.linears)


@dataclass(frozen=True, slots=True)
class Counts:
    """What one optimiser step computes.

    `tokens`: inputs of all rows. `unique`: without those that a row shares with another from its
    start. `supervised`: positions that the loss is taken at.
    """

    tokens: int
    unique: int
    supervised: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens + other.tokens,
            self.unique + other.unique,
            self.supervised + other.supervised,
        )


def counts(rows: Sequence[Row]) -> Counts:
    """Count the rows of one step; an answer's last token is a target and never an input."""
    inputs = [(*row.prompt, *row.answer[:-1]) for row in rows]
    ordered = sorted(inputs)
    shared = sum(_common(one, two) for one, two in pairwise(ordered))
    tokens = sum(len(row) for row in inputs)
    return Counts(tokens, tokens - shared, sum(len(row.answer) for row in rows))


def _common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """Length of the common start of two rows."""
    for position, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return position
    return min(len(one), len(two))


def training_flops(shape: Shape, rank: int, tokens: int, supervised: int) -> float:
    """Floating-point operations that `tokens` inputs and `supervised` positions need."""
    each = 4 * shape.base + 6 * shape.adapter(rank)
    head = 4 * shape.vocabulary * shape.width
    return float(each) * tokens + float(head) * supervised
