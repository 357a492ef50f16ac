"""Labels as JSON for structured output, plain numbers and free text; every parser by name.

An endpoint's grammar constrains the model token by token, so its answer is not the likeliest label.
Such answers have the form `schema` and are never compared with `constrained` ones, which are ranked
by likelihood.
"""

import json
import re
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from mixtune.tasks.parsers import Parser, whole_words
from mixtune.tasks.parsers.amounts import AMOUNT
from mixtune.tasks.parsers.boxed import BOXED
from mixtune.tasks.parsers.lists import SPANS, TRIPLETS
from mixtune.tasks.parsers.stated_labels import cut_label, lenient_label, strict_label

# ---- labels as JSON ------------------------------------------------------------------------------

KEY = "answer"


def response_format(choices: Sequence[str]) -> dict[str, Any]:
    """The `response_format` of a request that allows one of the choices and nothing else."""
    schema = {
        "type": "object",
        "properties": {KEY: {"type": "string", "enum": list(choices)}},
        "required": [KEY],
        "additionalProperties": False,
    }
    json_schema = {"name": "label", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": json_schema}


def as_json(choice: str) -> str:
    """A choice as the schema writes it."""
    return json.dumps({KEY: choice}, ensure_ascii=False)


def chosen(output: str, choices: Sequence[str]) -> str | None:
    """The choice in an answer of this form; None where it breaks the schema."""
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != {KEY}:
        return None
    choice = value[KEY]
    return choice if isinstance(choice, str) and choice in choices else None


# ---- numbers and free text -----------------------------------------------------------------------

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_STRICT_NUMBER = re.compile(rf"[+-]?{_PLAIN}", re.ASCII)
_LENIENT_NUMBER = re.compile(
    # Not inside a word or another number; a sign only where no digit precedes it.
    rf"(?<![\w.,])(?P<sign>[+-]?)[$€£¥]?(?P<inner>[+-]?)"
    rf"(?P<digits>{_PLAIN}|\.\d+)(?P<power>[eE][+-]?\d{{1,3}})?(?![\w]|[.,]\d)",
)
_FINAL = re.compile(r"####[^\S\n]*([^\n]*)")


def _strict_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number that makes up the output: digits, with sign, thousands commas and decimals."""
    trimmed = text.strip()
    return str(Decimal(trimmed.replace(",", ""))) if _STRICT_NUMBER.fullmatch(trimmed) else None


def _lenient_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The last number in the output; currency and percent signs are ignored."""
    matches = deque(_LENIENT_NUMBER.finditer(text.replace("\u2212", "-")), maxlen=1)
    if not matches:
        return None
    last = matches.pop()
    sign = last["sign"] or last["inner"]
    return str(Decimal(f"{sign}{last['digits'].replace(',', '')}{last['power'] or ''}"))


def _same_number(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    """True if two numbers are equal, exactly; of a longer gold answer the last number counts."""
    number = _lenient_number(gold)
    return number is not None and Decimal(parsed) == Decimal(number)


def _strict_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number of the last line, which has to be `#### 18`; the lines before it are free."""
    last = text.strip().rpartition("\n")[2].strip()
    return _strict_number(last[5:]) if last.startswith("#### ") else None


def _lenient_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number after the last `####` that has one, else the last number."""
    return _marked_number(text) or _lenient_number(text)


def _cut_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    return _marked_number(whole_words(text))


def _marked_number(text: str) -> str | None:
    numbers = filter(None, map(_lenient_number, reversed(_FINAL.findall(text))))
    return next(numbers, None)


def _whole_text(text: str, labels: Sequence[str] = ()) -> str | None:
    """The output without white space at both ends; None if it is blank.

    Strict and lenient are the same for free text: to read more into it takes a judge.
    """
    return text.strip() or None


def _equal(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    return parsed == gold.strip()


NUMBER = Parser("number", 1, _strict_number, _lenient_number, _same_number)
FINAL_NUMBER = Parser(
    "final-number", 1, _strict_final_number, _lenient_final_number, _same_number, _cut_final_number
)
LABEL = Parser("label", 2, strict_label, lenient_label, _equal, cut=cut_label)
TEXT = Parser("text", 1, _whole_text, _whole_text, _equal)

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (LABEL, NUMBER, TEXT, AMOUNT, FINAL_NUMBER, BOXED, SPANS, TRIPLETS)
}
"""Every parser by its name in task files."""
