"""What `mixtune init` writes: options → a study, and a study → a commented study file.

Knows: which defaults make a first study, the fields' descriptions and defaults (spec.py), how
YAML is written. Does not know: the command line, whether a base model is there, folders.

The JSON Schema of a study file and of a task file, for editors and for the generated reference.

Knows: pydantic's schema; which keys of a study may be written shorter, or as other tools call them.
Does not know: which tasks and models exist. A file that fits can still be refused, for its names or
for settings that contradict each other; a file that does not fit is refused.
"""

import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError
from mixtune.planning.names import canonical
from mixtune.study.aliases import ALIASES, FIXED
from mixtune.study.design import cocktails
from mixtune.study.reading import parse_study
from mixtune.study.spec import Ingredient, Study
from mixtune.tasks.task import Task

WIDTH = 96
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MODEL = "smollm2-135m"
FIRST = {
    "tasks": ["toy-sentiment", "toy-mood", "toy-topic"],
    "ingredients": {name: {"rows": 192} for name in ("toy-sentiment", "toy-mood", "toy-topic")},
    "design": ["incremental"],
    "budget": {"steps": 12},
    "evaluate": {"validation_items": 60, "test_items": 30},
}
"""A study that needs no data and takes minutes: what is written when nothing is asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for on the command line; whatever is empty or None was not."""

    name: str
    model: str | None = None
    tasks: Sequence[str] = ()
    ingredients: Sequence[str] = ()
    task_files: Sequence[str] = ()
    design: Sequence[str] = ()
    steps: int | None = None
    seeds: Sequence[int] = ()
    items: int | None = None


def draft(asked: Asked, registry: Registry, own: Iterable[str] = ()) -> Study:
    """The study that the options ask for, checked against the tasks there are.

    Tasks that are not named are those of one's own files, else the ingredients that are tasks;
    ingredients that are not named are one's own and the tasks, as far as one can train on them.

    Args:
        asked: the options.
        registry: all tasks, those of `asked.task_files` among them.
        own: the names that come from `asked.task_files`.

    Raises:
        SpecError: a name, amount, family or number that cannot be used; nothing to score or train.
    """
    raw: dict[str, Any] = {"name": asked.name, "model": asked.model or MODEL}
    if asked.tasks or asked.ingredients or asked.task_files:
        raw |= _chosen(asked, registry, sorted(own))
    else:
        raw |= FIRST
    raw |= {"task_files": list(asked.task_files)} if asked.task_files else {}
    raw |= {"design": _design(asked.design)} if asked.design else {}
    raw |= {"seeds": list(asked.seeds)} if asked.seeds else {}
    if asked.steps is not None:
        raw["budget"] = {"steps": asked.steps}
    if asked.items is not None:
        raw["evaluate"] = {"validation_items": asked.items, "test_items": asked.items}
    study = parse_study(raw, "mixtune init")
    canonical(study, registry)
    cocktails(study.design, sorted(study.ingredients))
    return study


def _chosen(asked: Asked, registry: Registry, own: Sequence[str]) -> dict[str, Any]:
    named = _named(asked.ingredients)
    goals = {name for name in registry.names() if registry.get(name).role == "task"}
    trainable = {name for name in registry.names() if registry.get(name).trainable}
    tasks = list(asked.tasks) or _fit(goals, own or named, registry)
    ingredients = list(asked.ingredients) or _fit(trainable, [*own, *tasks], registry)
    for found, option in ((tasks, "--task"), (ingredients, "--ingredient")):
        if not found:
            raise SpecError(
                f"nothing to {'be scored on' if option == '--task' else 'train on'}",
                where="mixtune init",
                found=[*asked.task_files, *asked.tasks, *asked.ingredients],
                remedy=f"name one with {option}; mixtune tasks lists what there is",
            )
    return {"tasks": tasks, "ingredients": ingredients}


def _named(ingredients: Sequence[str]) -> list[str]:
    """The names in a list of ingredients with amounts."""
    if not ingredients:
        return []
    raw = {"name": "x", "model": "x", "tasks": ["x"], "ingredients": list(ingredients)}
    return list(parse_study(raw, "mixtune init: --ingredient").ingredients)


def _fit(among: Collection[str], names: Iterable[str], registry: Registry) -> list[str]:
    """The names, each once, of tasks that are among some."""
    return [name for name in dict.fromkeys(names) if registry.get(name).name in among]


def _design(asked: Sequence[str]) -> dict[str, list[Any]]:
    """Families by name; what has a "+" is a cocktail listed by hand."""
    found: dict[str, list[Any]] = {}
    for part in (piece.strip() for text in asked for piece in text.split(",")):
        if "+" in part:
            listed = [name.strip() for name in part.split("+")]
            found.setdefault("explicit", []).append(listed)
        elif part:
            found.setdefault("families", []).append(part)
    return found


# ---- writing ----------------------------------------------------------------------------------


def study_text(study: Study, head: str) -> str:
    """The text of a study file that loads as `study`.

    Keys that were given when `study` was made are live; every other key stands there commented
    out, with its default. Each has its description above it.

    Args:
        study: what was asked for.
        head: the file's first comment; may have several lines.
    """
    asked = study.model_dump(mode="json", exclude_unset=True)
    lines = [*_comment(head, ""), ""]
    for name, field in Study.model_fields.items():
        if name == "ingredients":
            lines += [*_comment(_about(field), ""), *_ingredients(asked[name])]
        else:
            lines += _key(name, field, _default(field), asked)
        lines.append("")
    return "\n".join(lines)


def _key(
    name: str,
    field: FieldInfo,
    default: Any,  # noqa: ANN401 - any key's default
    asked: Mapping[str, Any],
    indent: str = "",
) -> Iterator[str]:
    """The lines of one key, with those of a section below it."""
    yield from _comment(_about(field), indent)
    model = _model(field)
    if model is None:
        live = name in asked
        yield f"{indent}{'' if live else '# '}{name}: {_flow(asked[name] if live else default)}"
        return
    inner = asked.get(name, {})
    yield f"{indent}{name}:" if inner else f"{indent}# {name}:"
    for key, below in model.model_fields.items():
        yield from _key(key, below, default[key], inner, f"{indent}  ")


def _ingredients(asked: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "ingredients:"
    for name, amount in asked.items():
        yield f"  {name}: {_flow(amount)}"
    yield "  # Keys of an ingredient, with their defaults:"
    for name, field in Ingredient.model_fields.items():
        text = f"{name} ({_flow(_default(field))}): {_about(field)}"
        yield from _comment(text, "  ", hang="  ")


def _comment(text: str, indent: str, hang: str = "") -> Iterator[str]:
    for paragraph in text.splitlines():
        width = WIDTH - len(indent)
        wrapped = textwrap.wrap(paragraph, width, subsequent_indent=hang, break_on_hyphens=False)
        yield from (f"{indent}# {line}".rstrip() for line in wrapped or [""])


class _Dumper(yaml.SafeDumper):
    """Quotes whatever is not plainly a word: `1e4` is a name here and a number elsewhere."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        plain = _WORD.fullmatch(data) and data.lower() not in ("null", "true", "false")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
    )
    return text.removesuffix("...\n").strip()


def _default(field: FieldInfo) -> Any:  # noqa: ANN401 - any key's default
    """A key's default as JSON holds it; None where it has to be given."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return list(default) if isinstance(default, tuple) else default


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key opens, if it opens one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _about(field: FieldInfo) -> str:
    """A key's description, or the first paragraph of its section's."""
    model = _model(field) or next(iter(_models(field)), None)
    about = field.description or (model.__doc__ if model else "") or ""
    return " ".join(about.split("\n\n")[0].split())


def _models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    kinds = get_args(field.annotation)
    return (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))


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
