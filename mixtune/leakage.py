"""Which rows of one split occur in another, across all tasks, in near-linear time.

Two rows are the same when either of these agrees:

- all that the user says. It holds the instruction, so it finds repeats inside one task; of a
  conversation all turns are compared together, since many end with the same few words;
- `Example.group`: for text tasks the record's own text without the instruction, so it finds the
  same text under another task's prompt too. A group is also the unit of independence (document,
  page, headline): where one group has many rows, such as nine questions about one headline, all
  of them go.

What this cannot see: the same text in two tasks that both group by something else (a document
number) under different prompts; a text inside a longer one.

Knows: two notions of equal text. Does not know: where rows come from, what is done about a leak.
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


@dataclass(frozen=True, slots=True)
class LeakedBy:
    """The evaluation row that a train row repeats, and in what way.

    `kind`: "exact" (messages equal up to case and white space), "loose" (up to links and
    punctuation too), "group" (same record text, document or page).
    """

    split: str
    task: str
    example: str
    kind: Kind


def normalise(text: str) -> str:
    """Text without case and with every run of white space as one space: the exact form."""
    return " ".join(text.casefold().split())


def loose(text: str) -> str:
    """Letters and digits only, without case and links: the loose form."""
    return "".join(filter(str.isalnum, _LINK.sub(" ", text.casefold())))


def find_leaked(train: Sequence[Example], evaluation: Sequence[Example]) -> dict[str, LeakedBy]:
    """Train rows that occur in the evaluation rows, by example id.

    Each is given with one witness: the strictest kind (exact, loose, group), then the first by
    split, task and id, so the orders of the arguments do not matter. Time and memory grow with
    the length of the texts: one table of keys, one look-up per key. Ids of `train` occur once, as
    in any split that the registry gives.
    """
    table: dict[tuple[str, ...], Example] = {}
    for example in sorted(evaluation, key=lambda row: (row.split, row.task, row.id)):
        for _, key in _keys(example):
            table.setdefault(key, example)
    leaked = {}
    for example in train:
        for kind, key in _keys(example):
            if (witness := table.get(key)) is not None:
                leaked[example.id] = LeakedBy(witness.split, witness.task, witness.id, kind)
                break
    return leaked


def _keys(example: Example) -> Iterable[tuple[Kind, tuple[str, ...]]]:
    """What a row is looked up by, strictest first.

    A group too short to be a text may be a running number, which says something only inside its
    own task; a longer one is compared across tasks.
    """
    said = "\n".join(turn.content for turn in example.messages if turn.role == "user")
    yield "exact", ("message", normalise(said))
    if len(form := loose(said)) >= SHORTEST_LOOSE:
        yield "loose", ("message-loose", form)
    if len(form := loose(example.group)) >= SHORTEST_LOOSE:
        yield "group", ("group-loose", form)
    elif example.group:
        yield "group", ("group", example.task, normalise(example.group))
