"""From a tag for each token to entities: where they begin, where they end, what they are.

Knows: IOB1, IOB2 and tags whose letter stands behind ("PER_B"). Does not know: tokens, tasks.

An entity begins at a B tag, and at an I tag that goes on with nothing of its type: so IOB1, in
which B only parts neighbours, is read as it is meant, and so is an entity that starts with an
inside tag by mistake, as seqeval reads it by default.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mixtune.errors import DataError

_BEFORE = re.compile(r"([BI])-(.+)")
_BEHIND = re.compile(r"(.+)_([BI])")


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: its type, and the places of its first and last token."""

    type: str
    first: int
    last: int


def read_spans(tags: Sequence[str], where: str) -> list[Span]:
    """The entities of a sentence, in their order.

    Raises:
        DataError: a tag that is none of "O", "B-TYPE", "I-TYPE", "TYPE_B", "TYPE_I".
    """
    found: list[Span] = []
    running = ""
    for place, tag in enumerate(tags):
        letter, kind = _read(tag, where)
        if kind and letter == "I" and kind == running:
            found[-1] = Span(kind, found[-1].first, place)
        elif kind:
            found.append(Span(kind, place, place))
        running = kind
    return found


def _read(tag: str, where: str) -> tuple[str, str]:
    """Letter and type of a tag; nothing of "O"."""
    if tag == "O":
        return "", ""
    if hit := _BEFORE.fullmatch(tag):
        return hit[1], hit[2]
    if hit := _BEHIND.fullmatch(tag):
        return hit[2], hit[1]
    raise DataError(
        "a tag that is not understood",
        where=where,
        found=tag,
        wanted="O, B-TYPE, I-TYPE, TYPE_B or TYPE_I",
        remedy="mend the row, or name numbered tags under make.spans.tag_names",
    )
