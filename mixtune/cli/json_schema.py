"""The JSON Schema of a study file and of a task file, for editors and for the generated reference.

Knows: pydantic's schema, short forms of a study's keys, other tools' names of them. Does not know:
which tasks and models exist. A file that does not fit the schema is refused; one that fits can
still be refused, for its names or for settings that contradict each other.
"""

from typing import Any, Literal

from mixtune.study.aliases import ALIASES, FIXED
from mixtune.study.spec import Study
from mixtune.tasks.task import Task

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SECTIONS = {"train": "TrainSpec", "budget": "Budget"}
"""Section of a study that takes aliases too → its name in the schema."""
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""pydantic's names of limits on a type that has a validator before them → the standard's."""
Schema = dict[str, Any]


def json_schema(of: Literal["study", "task"]) -> Schema:
    """The schema (draft 2020-12) of a study file or of a task file."""
    schema: Schema = _standard((Study if of == "study" else Task).model_json_schema())
    if of == "study":
        _allow_short_forms(schema)
        _allow_aliases(schema)
    else:
        # A task file may name its rows' files directly, and leave out keys that have defaults.
        _allow(schema, "source", [{"$ref": "#/$defs/FileSource"}, {"type": "string"}])
        schema["required"] = ["name", "source"]
    return {"$schema": DIALECT, **schema}


def _standard(node: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The same value with the standard's names of limits."""
    if isinstance(node, list):
        return [_standard(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        LIMITS.get(key, key) if isinstance(value, int | float) else key: _standard(value)
        for key, value in node.items()
    }


def _allow_short_forms(schema: Schema) -> None:
    """Allow lists of models and families, short amounts, and names of API models."""
    names = {"type": "array", "items": {"type": "string"}}
    _allow(schema, "model", [{**names, "minItems": 1}])
    _allow(schema, "design", [names])
    _allow(schema, "ingredients", [names, {"type": "string"}])
    models = schema["properties"]["api_models"]
    models["items"] = {"anyOf": [models["items"], {"type": "string"}]}
    pools = schema["properties"]["ingredients"]["anyOf"][0]
    for pattern, amount in pools["patternProperties"].items():
        pools["patternProperties"][pattern] = {"anyOf": [amount, {"type": "null"}]}


def _allow(schema: Schema, key: str, forms: list[Schema]) -> None:
    """Allow further forms of a key, in place."""
    own = schema["properties"][key]
    notes = {note: own.pop(note) for note in ("title", "description", "default") if note in own}
    schema["properties"][key] = {**notes, "anyOf": [own, *forms]}


def _allow_aliases(schema: Schema) -> None:
    """Allow other tools' keys at the top level, in their section, and for a required key."""
    places = {"": schema, **{key: schema["$defs"][name] for key, name in SECTIONS.items()}}
    for section, place in places.items():
        for alias, own in ALIASES.items():
            if own.startswith(section):
                place["properties"].setdefault(alias, {"description": f"Read as {own}."})
        for key, (accepted, reason) in FIXED.items():
            if accepted is not None:
                place["properties"][key] = {"const": accepted, "description": reason}
    spellings = {
        own: [own, *(alias for alias, key in ALIASES.items() if key == own)]
        for own in schema["required"]
        if own in ALIASES.values()
    }
    schema["required"] = [own for own in schema["required"] if own not in spellings]
    schema["allOf"] = [
        {"anyOf": [{"required": [name]} for name in names]} for names in spellings.values()
    ]
