"""What a record says by itself, and how such a text names a group.

Knows: texts, values of fields. Does not know: task files, which fields a prompt reads.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from mixtune.identity import digest
from mixtune.tasks.templates import render


def own_text(
    template: str | None, record: Mapping[str, object], told: Iterable[object], where: str
) -> str:
    """What splits are compared by: the template's text, else all that the record tells.

    Raises:
        DataError: the template fails.
    """
    if template is not None:
        return render(template, record, f"{where}: own_text")
    return "\n".join(map(_said, told))


def _said(value: object) -> str:
    """The words of a field: those of a list or mapping one after another, without its signs."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_said, value)))
    return "" if value is None else str(value)


def loose_text(text: str) -> str:
    """Lower case, without links, letters and digits only: what a group is compared by.

    Text that has no letters or digits left keeps its own characters, so that two such texts are
    one group only when they are equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[^\W_]+", re.sub(r"(?:https?://|www\.)\S+", " ", folded))
    return " ".join(words) or " ".join(folded.split())


def grouped(text: str) -> str:
    """The group that a text is; long ones are cut, with a digest of the whole.

    The group is stored with every score.
    """
    loose = loose_text(text)
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"
