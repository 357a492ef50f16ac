"""Labels as a JSON schema that an endpoint can hold a model to, and answers in that form.

A model so held is constrained, but by the endpoint's grammar and token by token: what it says is
not the likeliest label. Its answers have the form `schema` and are never compared with
`constrained` ones, which are ranked by likelihood.

Knows: one flat schema with one enum. Does not know: HTTP, which label is right.
"""

import json
from collections.abc import Sequence
from typing import Any

KEY = "answer"


def response_format(choices: Sequence[str]) -> dict[str, Any]:
    """What a request says to get one of the choices and nothing else."""
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
    """The choice that an answer in this form names; None where it breaks the schema."""
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != {KEY}:
        return None
    named = value[KEY]
    return named if isinstance(named, str) and named in choices else None
