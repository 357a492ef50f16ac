"""The protocol every answering system keeps: local model, majority class, script.

Knows: queries in, answers out, in order. Does not know: targets, tasks, metrics.
"""

from collections.abc import Sequence
from typing import Protocol

from mixtune.records import Answer, Query


class Model(Protocol):
    """A system that answers queries; answers come back in the order of the queries."""

    @property
    def system(self) -> str:
        """The id under which its predictions are kept."""
        ...

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Log-probability of each choice; `output` is the likeliest one. Choices non-empty."""
        ...

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Greedy text up to the end of turn, at most `max_new_tokens` tokens."""
        ...
