"""Labels as JSON for structured output, and free text; every parser by name.

An endpoint's grammar constrains the model token by token, so its answer is not the likeliest label.
Such answers have the form `schema` and are never compared with `constrained` ones, which are ranked
by likelihood.
"""

import json
from collections.abc import Sequence
from typing import Any

from mixtune.tasks.parsers import Parser
from mixtune.tasks.parsers.amounts import AMOUNT
from mixtune.tasks.parsers.boxed import BOXED
from mixtune.tasks.parsers.lists import SPANS, TRIPLETS
from mixtune.tasks.parsers.numbers import FINAL_NUMBER, NUMBER
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


# ---- free text ---------------------------------------------------------------------------------


def _whole_text(text: str, labels: Sequence[str] = ()) -> str | None:
    """The output without white space at both ends; None if it is blank.

    Strict and lenient are the same for free text: to read more into it takes a judge.
    """
    return text.strip() or None


def _equal(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    return parsed == gold.strip()


LABEL = Parser("label", 2, strict_label, lenient_label, _equal, cut=cut_label, gold=strict_label)
TEXT = Parser("text", 1, _whole_text, _whole_text, _equal, gold=_whole_text)

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (LABEL, NUMBER, TEXT, AMOUNT, FINAL_NUMBER, BOXED, SPANS, TRIPLETS)
}
"""Every parser by its name in task files."""
