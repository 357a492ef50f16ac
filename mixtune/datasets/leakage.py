"""Keys by which two records are the same, and the rows of one split that occur in another.

Two records match by any of these:

- exact and loose: `Example.compared_text`, the record's own text without the instruction, so that
  the same text is found under another task's prompt. Of a conversation that is all the user says;
- group: `Example.group`, the unit of independence (document, page, headline). Where one group has
  many rows, such as nine questions about one headline, all of them go.

Not detected: a text inside a longer one (overlap.py finds a part of it), a paraphrase.

Knows: rows of two splits. Does not know: where rows come from, the remedy for a leak.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.records import Example, OwnText
from mixtune.tasks.record import text_group

Kind = Literal["exact", "loose", "group"]
Key = tuple[str, ...]

SHORTEST_LOOSE = 8
"""Characters below which loose forms are not compared.

Dropping signs from a short text drops what distinguishes it ("7 - 3" and "73", "$A" and "a?";
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
    """Words without case and links, split at all signs other than letters and digits.

    Of a script without spaces a whole clause is one word.
    """
    return _WORD.findall(_LINK.sub(" ", text.casefold()))


def exact_key(text: str) -> Key | None:
    """Key of the exact form; None for blank text."""
    return ("text", form) if (form := normalise(text)) else None


def loose_key(text: str) -> Key | None:
    """Key of the loose form; None where it is too short to be compared."""
    return ("text-loose", form) if len(form := loose(text)) >= SHORTEST_LOOSE else None


def group_key(task: str, group: str) -> Key | None:
    """Key of a group; None for no group.

    A name too short to be a text may be a running number, which means something only inside its
    own task; a longer one is compared across tasks.
    """
    if not group:
        return None
    if len(form := loose(group)) >= SHORTEST_LOOSE:
        return ("group-loose", form)
    return ("group", task, normalise(group))


def own_texts(examples: Iterable[Example]) -> list[OwnText]:
    """The records that examples were made of, in their order, with what is compared of each."""
    by_record: dict[str, list[Example]] = {}
    for example in examples:
        by_record.setdefault(example.record or example.id, []).append(example)
    return [_own_text(record, rows) for record, rows in by_record.items()]


def _own_text(record: str, rows: Sequence[Example]) -> OwnText:
    text, group = rows[0].compared_text, rows[0].group
    # A group that is the text itself would only repeat the loose match.
    distinct = "" if group == text_group(text) else group
    return OwnText(record, text, distinct, tuple(row.target for row in rows))


@dataclass(frozen=True, slots=True)
class LeakedBy:
    """The evaluation row that a train row repeats.

    `kind`: "exact" (own texts equal up to case and white space), "loose" (up to links and
    punctuation too), "group" (same document or page).
    """

    split: str
    task: str
    example: str
    kind: Kind


class Protected:
    """Evaluation rows in a table of their keys, for any number of splits to be checked against."""

    def __init__(self, evaluation: Sequence[Example]) -> None:
        self._table: dict[Key, Example] = {}
        # Sorted, so that the witness of a key does not depend on the order of the rows.
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

    Each has one witness: the strictest kind (exact, loose, group), then the first by split, task
    and id, so the orders of the arguments do not matter. Time and memory grow with the length of
    the texts: one table of keys, one look-up per key. Ids of `train` are unique, as in any split.
    """
    return Protected(evaluation).leaked(train)


def _keys(example: Example) -> Iterator[tuple[Kind, Key]]:
    """Keys of a row, strictest first; lazily, since most matches are exact."""
    text = example.compared_text
    if key := exact_key(text):
        yield "exact", key
    if key := loose_key(text):
        yield "loose", key
    if key := group_key(example.task, example.group):
        yield "group", key
