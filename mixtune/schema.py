"""The JSON Schema of a study file and of a task file, for editors and for the generated reference.

Knows: pydantic's schema; which keys of a study may be written shorter, or as other tools call them.
Does not know: which tasks and models exist. A file that fits can still be refused, for its names or
for settings that contradict each other; a file that does not fit is refused.
"""

from typing import Any, Literal

from mixtune.shorthand import ALIASES, FIXED
from mixtune.spec import Study
from mixtune.tasks.base import Task

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SECTIONS = {"train": "TrainSpec", "budget": "Budget"}
"""Keys of a study whose section takes aliases too → the section's name in the schema."""
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""pydantic's words for limits of a type with a validator before them → the standard's."""
Schema = dict[str, Any]


def json_schema(of: Literal["study", "task"]) -> Schema:
    """The schema (draft 2020-12) of a study file or of a task file."""
    made: Schema = _standard((Study if of == "study" else Task).model_json_schema())
    if of == "study":
        _shorter(made)
        _spelled(made)
    else:
        _from_files(made)
    return {"$schema": DIALECT, **made}


def _standard(node: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The same with limits under the names that the standard gives them."""
    if isinstance(node, list):
        return [_standard(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        LIMITS.get(key, key) if isinstance(value, int | float) else key: _standard(value)
        for key, value in node.items()
    }


def _shorter(made: Schema) -> None:
    """Let designs, amounts and API models be written short."""
    names = {"type": "array", "items": {"type": "string"}}
    _also(made, "model", [{**names, "minItems": 1}])
    _also(made, "design", [names])
    _also(made, "ingredients", [names, {"type": "string"}])
    models = made["properties"]["api_models"]
    models["items"] = {"anyOf": [models["items"], {"type": "string"}]}
    pools = made["properties"]["ingredients"]["anyOf"][0]
    for pattern, amount in pools["patternProperties"].items():
        pools["patternProperties"][pattern] = {"anyOf": [amount, {"type": "null"}]}


def _from_files(made: Schema) -> None:
    """Let a task file name its rows' files plainly, and leave out what follows from the rest."""
    _also(made, "source", [{"$ref": "#/$defs/FileSource"}, {"type": "string"}])
    made["required"] = ["name", "source"]


def _also(schema: Schema, key: str, forms: list[Schema]) -> None:
    """Let a key of a schema take other forms as well, in place."""
    own = schema["properties"][key]
    notes = {note: own.pop(note) for note in ("title", "description", "default") if note in own}
    schema["properties"][key] = {**notes, "anyOf": [own, *forms]}


def _spelled(schema: Schema) -> None:
    """Let other tools' keys stand at the top level, in their section, and for a required key."""
    places = {"": schema, **{key: schema["$defs"][name] for key, name in SECTIONS.items()}}
    for section, place in places.items():
        for alias, own in ALIASES.items():
            if own.startswith(section):
                place["properties"].setdefault(alias, {"description": f"Read as {own}."})
        for key, (allowed, reason) in FIXED.items():
            if allowed is not None:
                place["properties"][key] = {"const": allowed, "description": reason}
    spelled = {own: [own, *_aliases(own)] for own in schema["required"] if _aliases(own)}
    schema["required"] = [own for own in schema["required"] if own not in spelled]
    schema["allOf"] = [
        {"anyOf": [{"required": [name]} for name in names]} for names in spelled.values()
    ]


def _aliases(own: str) -> list[str]:
    return [alias for alias, key in ALIASES.items() if key == own]
