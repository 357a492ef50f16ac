"""A model that says what it is told, for tests and dry runs.

Knows: a script. Does not know: targets, tasks, metrics, tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from mixtune.errors import RunFailed
from mixtune.records import Answer, Query

Script = Callable[[Query], str | Answer] | Mapping[str, str | Answer]


class ScriptedModel:
    """Answers from a function of the query or a mapping by query id.

    A text is taken as it stands when generating; when ranking, the choice it names gets 0.9 of the
    probability and the others share the rest. `fail_at`: the call, counted from 1 over `rank` and
    `generate` together, that raises `error`.
    """

    def __init__(
        self,
        script: Script,
        system: str = "scripted",
        fail_at: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self._script = script
        self._system = system
        self._fail_at = fail_at
        self._error = error or RunFailed("scripted failure")
        self.calls = 0

    @property
    def system(self) -> str:
        """The id under which its predictions are kept."""
        return self._system

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Log-probability of each choice.

        Raises:
            RunFailed: the script has nothing for a query, or names no choice of it.
        """
        self._count()
        return [self._ranked(query) for query in queries]

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """The scripted text, whatever its length.

        Raises:
            RunFailed: the script has nothing for a query.
        """
        self._count()
        said = [self._said(query) for query in queries]
        return [Answer(output=answer) if isinstance(answer, str) else answer for answer in said]

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._fail_at:
            raise self._error

    def _said(self, query: Query) -> str | Answer:
        if callable(self._script):
            return self._script(query)
        if query.id not in self._script:
            raise RunFailed(f"{self._system} has no script for {query.id!r}")
        return self._script[query.id]

    def _ranked(self, query: Query) -> Answer:
        said = self._said(query)
        if isinstance(said, Answer):
            return said
        if said not in query.choices:
            raise RunFailed(f"{self._system}: {said!r} is no choice of {query.id!r}")
        rest = len(query.choices) - 1
        if rest == 0:
            return Answer(output=said, logprobs=(0.0,))
        low, high = math.log(0.1 / rest), math.log(0.9)
        return Answer(
            output=said, logprobs=tuple(high if c == said else low for c in query.choices)
        )
