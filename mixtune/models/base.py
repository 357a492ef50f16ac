"""The protocol every answering system keeps: local model, majority class, script.

Knows: queries in, answers out, in order. Does not know: targets, tasks, metrics.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Chooser(Protocol):
    """A system that can be held to a JSON schema which leaves it one of a query's choices."""

    def choose(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """A choice of each query as JSON (models/api_schema.py). Choices non-empty."""
        ...
