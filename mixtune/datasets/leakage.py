"""What makes two texts the same: their exact and loose forms, and their words.

Knows: one text. Does not know: records, splits, what is done about a match.

Which rows of one split occur in another, across all tasks, in near-linear time.

Two rows are the same when either of these agrees:

- `Example.compared_text`: the record's own text, without the instruction, so the same text is
  found under another task's prompt. Of a conversation that is all that the user says;
- `Example.group`: the unit of independence (document, page, headline). Where one group has many
  rows, such as nine questions about one headline, all of them go.

What this cannot see: a text inside a longer one (runs.py finds a part of it), a text told in other
words.

Knows: rows of two splits. Does not know: where rows come from, what is done about a leak.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.records import Example

Kind = Literal["exact", "loose", "group"]

SHORTEST_LOOSE = 8
"""Loose forms under so many characters are not compared.

Dropping signs from a short text drops what tells it from others ("7 - 3" and "73", "$A" and "a?",
anything without letters or digits is empty), so for these only the exact form counts.
"""

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_WORD = re.compile(r"[^\W_]+")


def normalise(text: str) -> str:
    """Text without case and with every run of white space as one space: the exact form."""
    return " ".join(text.casefold().split())


def loose(text: str) -> str:
    """Letters and digits only, without case and links: the loose form."""
    return "".join(words(text))


def words(text: str) -> list[str]:
    """Words without case and links: what stands between signs other than letters and digits.

    Of a script without spaces a whole clause is one word.
    """
    return _WORD.findall(_LINK.sub(" ", text.casefold()))


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
