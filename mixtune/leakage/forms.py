"""What makes two texts the same: their exact and loose forms, and their words.

Knows: one text. Does not know: records, splits, what is done about a match.
"""

import re
from typing import Literal

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
