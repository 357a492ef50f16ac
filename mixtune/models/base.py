"""The protocol of systems that answer queries, and the majority-class baseline."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from mixtune.errors import DataError
from mixtune.records import Answer, Query
from mixtune.tasks.parsers.labels import as_json


class Model(Protocol):
    """A system that answers queries; answers come back in the order of the queries."""

    @property
    def system(self) -> str:
        """The id under which its predictions are kept."""

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Log-probability of each choice; `output` is the likeliest. Choices non-empty."""

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Greedy text up to the end of turn, at most `max_new_tokens` tokens."""


@runtime_checkable
class Chooser(Protocol):
    """A system whose output can be constrained by a JSON schema to one of a query's choices."""

    def choose(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """One choice per query, as JSON (tasks/label_schema.py). Choices non-empty."""


class TrainAnswer(Protocol):
    """A train row as the majority class counts it."""

    @property
    def stratum(self) -> str:
        """Sub-question that the row belongs to, "" where there is only one."""

    @property
    def target(self) -> str:
        """The right answer."""

    @property
    def cue(self) -> str:
        """Part of the prompt that the floor may look up, "" for none."""


class MajorityModel:
    """Answers with the commonest train answer for the query's cue, else for its stratum.

    A cue is a part of the prompt that the baseline may look up, such as a marked entity. Queries
    without a cue that train has are answered by stratum; without such a stratum, by all of train.
    Ties go to the first choice (for open answers: the first by name), so that generating and
    ranking agree.
    """

    def __init__(self, train: Iterable[TrainAnswer], system: str = "majority") -> None:
        """Count the train rows of one task; raises DataError where there are none."""
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._cues: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for example in train:
            self._counts[example.stratum][example.target] += 1
            if example.cue:
                self._cues[example.stratum, example.cue][example.target] += 1
        self._all = sum(self._counts.values(), Counter[str]())
        if not self._all:
            raise DataError("a majority class needs train rows", found=0)
        self.system = system

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Log of the train frequency of each choice, with add-one smoothing."""
        return [self._ranked(query) for query in queries]

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """The commonest answer; never truncated."""
        return [Answer(output=self._commonest(query)) for query in queries]

    def choose(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """The commonest answer as JSON: the baseline of systems constrained by a schema."""
        return [Answer(output=as_json(self._commonest(query))) for query in queries]

    def _of(self, query: Query) -> Counter[str]:
        by_stratum = self._counts.get(query.stratum, self._all)
        return self._cues.get((query.stratum, query.cue), by_stratum)

    def _commonest(self, query: Query) -> str:
        counts = self._of(query)
        return max(query.choices or sorted(counts), key=lambda answer: counts[answer])

    def _ranked(self, query: Query) -> Answer:
        counts = self._of(query)
        total = sum(counts[choice] + 1 for choice in query.choices)
        logprobs = tuple(math.log((counts[choice] + 1) / total) for choice in query.choices)
        return Answer(output=self._commonest(query), logprobs=logprobs)
