"""Labels as a JSON schema for an endpoint's structured output, and answers in that form.

The endpoint's grammar constrains the model token by token, so its answer is not the likeliest
label. Such answers have the form `schema` and are never compared with `constrained` ones, which are
ranked by likelihood.

Knows: one flat schema with one enum. Does not know: HTTP, which label is right.
"""

import json
from collections.abc import Sequence
from typing import Any

KEY = "answer"


def response_format(choices: Sequence[str]) -> dict[str, Any]:
    """The `response_format` of a request that allows one of the choices and nothing else."""
    schema = {
        "type": "object",
        "properties": {KEY: {"type": "string", "enum": list(choices)}},
        "required": [KEY],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "label", "strict": True, "schema": schema},
    }


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
