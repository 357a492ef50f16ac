"""Fields of a record: which are blank or missing, and the loose text that groups are compared by.

Knows: values of fields. Does not know: task files, templates, where a record is stored.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn

from mixtune.errors import DataError, did_you_mean
from mixtune.identity import digest

Record = Mapping[str, Any]


def blank(value: object) -> bool:
    """True for null, white space, an empty list and an empty mapping."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}


def missing_field(field: str, record: Record, where: str, hint: str = "") -> NoReturn:
    """Report a field that a record lacks; `hint` comes before the closest names in the remedy.

    Raises:
        DataError: always.
    """
    remedy = did_you_mean(field, map(str, record)) if record or hint else "fix the row"
    raise DataError(
        f"the record has no field {field!r}",
        where=where,
        found=", ".join(sorted(map(str, record))) or "an empty record",
        wanted=field,
        remedy=f"{hint}{remedy}",
    )


def spellings(raw: object) -> tuple[str, ...]:
    """Spellings of a stored label in a task file; the last one is used where nothing maps it.

    CSV keeps text only, and other programs write whole numbers as 1.0 in columns with empty cells.
    """
    if isinstance(raw, bool):
        return (str(raw).lower(), str(raw))
    if isinstance(raw, float) and raw.is_integer():
        return (str(raw), str(int(raw)))
    text = raw.strip() if isinstance(raw, str) else str(raw)
    return (text.lower(), text) if text.lower() in ("true", "false") else (text,)


def plain_text(value: object) -> str:
    """The words of a field; those of a list or mapping one after another, without brackets."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(plain_text, value)))
    return "" if value is None else str(value)


def loose_text(text: str) -> str:
    """Lower case, without links, letters and digits only: the form that groups are compared in.

    A text without letters and digits keeps its own characters, so that two of them are in one
    group only when they are equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()  # full-width letters, ß → ss
    words = re.findall(r"[^\W_]+", re.sub(r"(?:https?://|www\.)\S+", " ", folded))
    return " ".join(words) or " ".join(folded.split())


def text_group(text: str) -> str:
    """The group of a text: its loose form; long ones are cut and end in a digest of the whole.

    It is stored with every score, so it has to be short.
    """
    loose = loose_text(text)
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"
