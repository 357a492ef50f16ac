"""Which rows of one split occur in another, across all tasks, in near-linear time.

Two rows are the same when either of these agrees:

- the whole last user message. It holds the instruction, so it finds repeats inside one task;
- `Example.group`: for text tasks the record's own text without the instruction, so it finds the
  same text under another task's prompt too. A group is also the unit of independence (document,
  page, headline): where one group has many rows, such as nine questions about one headline, all
  of them go.

What this cannot see: the same text in two tasks that both group by something else (a document
number) under different prompts.

Knows: two notions of equal text. Does not know: where rows come from, what is done about a leak.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import DataError
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


@dataclass(frozen=True, slots=True)
class LeakCount:
    """How many of an ingredient's rows occur in one evaluation split, over all tasks."""

    ingredient: str
    split: str
    rows: int
    leaked: int


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
    the length of the texts: one table of keys, one look-up per key.

    Raises:
        DataError: two train rows share an id (the result could not tell them apart).
    """
    _refuse_repeated_ids(train)
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


def count_leaked(train: Sequence[Example], evaluation: Sequence[Example]) -> list[LeakCount]:
    """Leaked rows per ingredient (the row's task) and evaluation split, sorted, zeros included.

    A row that occurs in two splits counts in both.
    """
    counts = []
    for ingredient in sorted({row.task for row in train}):
        rows = [row for row in train if row.task == ingredient]
        for split in sorted({row.split for row in evaluation}):
            against = [row for row in evaluation if row.split == split]
            counts.append(LeakCount(ingredient, split, len(rows), len(find_leaked(rows, against))))
    return counts


def _keys(example: Example) -> Iterable[tuple[Kind, tuple[str, ...]]]:
    """What a row is looked up by, strictest first.

    A group too short to be a text may be a running number, which says something only inside its
    own task; a longer one is compared across tasks.
    """
    message = _last_user(example)
    yield "exact", ("message", normalise(message))
    if len(form := loose(message)) >= SHORTEST_LOOSE:
        yield "loose", ("message-loose", form)
    if len(form := loose(example.group)) >= SHORTEST_LOOSE:
        yield "group", ("group-loose", form)
    elif example.group:
        yield "group", ("group", example.task, normalise(example.group))


def _last_user(example: Example) -> str:
    """Content of the last user message.

    Raises:
        DataError: there is none.
    """
    for message in reversed(example.messages):
        if message.role == "user":
            return message.content
    raise DataError(
        "a row has no user message",
        where=f"{example.task}, {example.split} {example.id}",
        found=[message.role for message in example.messages],
        wanted="at least one message of role user",
    )


def _refuse_repeated_ids(train: Sequence[Example]) -> None:
    seen: set[str] = set()
    for row in train:
        if row.id in seen:
            raise DataError(
                "two train rows share an id",
                where=row.task,
                found=row.id,
                wanted="ids that occur once",
                remedy="check one ingredient at a time, or mend the dataset's ids",
            )
        seen.add(row.id)
