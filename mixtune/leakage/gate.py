"""Which rows of one split occur in another, across all tasks, in near-linear time.

Two rows are the same when either of these agrees:

- `Example.compared_text`: the record's own text, without the instruction, so the same text is
  found under another task's prompt. Of a conversation that is all that the user says;
- `Example.group`: the unit of independence (document, page, headline). Where one group has many
  rows, such as nine questions about one headline, all of them go.

What this cannot see: a text inside a longer one (runs.py finds a part of it), a text told in other
words.

Knows: rows of two splits. Does not know: where rows come from, what is done about a leak.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixtune.leakage.forms import SHORTEST_LOOSE, Kind, loose, normalise
from mixtune.records import Example


@dataclass(frozen=True, slots=True)
class LeakedBy:
    """The evaluation row that a train row repeats, and in what way.

    `kind`: "exact" (own texts equal up to case and white space), "loose" (up to links and
    punctuation too), "group" (same document or page).
    """

    split: str
    task: str
    example: str
    kind: Kind


class Protected:
    """Evaluation rows by what they are looked up by; many splits can be held against them."""

    def __init__(self, evaluation: Sequence[Example]) -> None:
        self._table: dict[tuple[str, ...], Example] = {}
        for example in sorted(evaluation, key=lambda row: (row.split, row.task, row.id)):
            for _, key in _keys(example):
                self._table.setdefault(key, example)

    def leaked(self, train: Sequence[Example]) -> dict[str, LeakedBy]:
        """Rows that occur in the evaluation rows, by example id; see `find_leaked`."""
        leaked = {}
        for example in train:
            for kind, key in _keys(example):
                if (witness := self._table.get(key)) is not None:
                    leaked[example.id] = LeakedBy(witness.split, witness.task, witness.id, kind)
                    break
        return leaked


def find_leaked(train: Sequence[Example], evaluation: Sequence[Example]) -> dict[str, LeakedBy]:
    """Train rows that occur in the evaluation rows, by example id.

    Each is given with one witness: the strictest kind (exact, loose, group), then the first by
    split, task and id, so the orders of the arguments do not matter. Time and memory grow with
    the length of the texts: one table of keys, one look-up per key. Ids of `train` occur once, as
    in any split that the registry gives.
    """
    return Protected(evaluation).leaked(train)


def _keys(example: Example) -> Iterable[tuple[Kind, tuple[str, ...]]]:
    """What a row is looked up by, strictest first."""
    said = example.compared_text
    if form := normalise(said):
        yield "exact", ("text", form)
    if len(form := loose(said)) >= SHORTEST_LOOSE:
        yield "loose", ("text-loose", form)
    if example.group:
        yield "group", group_key(example.task, example.group)


def group_key(task: str, group: str) -> tuple[str, ...]:
    """What a group is looked up by.

    One too short to be a text may be a running number, which says something only inside its own
    task; a longer one is compared across tasks.
    """
    if len(form := loose(group)) >= SHORTEST_LOOSE:
        return ("group-loose", form)
    return ("group", task, normalise(group))
