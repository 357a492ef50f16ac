"""Verbs `init` and `schema`: write a commented study file from options, print its JSON Schema."""

import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mixtune.cli.app import (
    DataDir,
    Json,
    app,
    complete_files,
    complete_models,
    complete_tasks,
    verb,
)
from mixtune.cli.show import print_json
from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError, did_you_mean, shorten
from mixtune.models.catalog import Unreachable, catalogue, locate
from mixtune.planning.cells import cocktails
from mixtune.planning.runs import canonical
from mixtune.store.files import write_text
from mixtune.study import presets
from mixtune.study.aliases import ALIASES, FIXED, amounts
from mixtune.study.reading import parse_study
from mixtune.study.spec import DesignName, Ingredient, Study
from mixtune.study.yaml import Origin
from mixtune.tasks.task import Task

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SECTIONS = {"train": "TrainSpec", "budget": "Budget"}
"""Section of a study that takes aliases too → its name in the schema."""
LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""pydantic's names of limits on a type that has a validator before them → the standard's."""
Schema = dict[str, Any]
WIDTH = 96
_PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|y|n)$)[a-z][a-z0-9_-]*", re.IGNORECASE)
"""Text that no reader of YAML takes for a number, a boolean or null."""
MODEL = "smollm2-135m"
FIRST_STUDY = {
    "tasks": ["toy-sentiment", "toy-mood", "toy-topic"],
    "ingredients": {name: {"rows": 192} for name in ("toy-sentiment", "toy-mood", "toy-topic")},
    "design": ["incremental"],
    "budget": {"steps": 12},
    "evaluate": {"validation_items": 60, "test_items": 30},
}
"""A study that needs no data and takes minutes: written when no tasks are named."""


@dataclass(frozen=True, slots=True)
class InitOptions:
    """Options that describe a study; None is the default."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Base model: a catalogue name, hub id or folder. Default: smollm2-135m.",
            autocompletion=complete_models,
        ),
    ] = None
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Target task. Repeatable.", autocompletion=complete_tasks),
    ] = None
    ingredients: Annotated[
        list[str] | None,
        typer.Option(
            "--ingredient",
            help="Dataset to train on, such as fpb, fpb:1600, ner*3 or 0.2*alpaca. Repeatable. "
            "Default: the tasks.",
            autocompletion=complete_tasks,
        ),
    ] = None
    task_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--task-file",
            help="File with your own tasks. Repeatable.",
            autocompletion=complete_files,
        ),
    ] = None
    design: Annotated[
        list[str] | None,
        typer.Option(
            help="Families of cocktails, such as singles,pairs, or a cocktail, such as fpb+alpaca. "
            "Repeatable. Default: incremental.",
            autocompletion=lambda: list(get_args(DesignName)),
        ),
    ] = None
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.")] = None
    items: Annotated[int | None, typer.Option(help="Items per task and split. Default: all.")] = (
        None
    )
    seeds: Annotated[str, typer.Option(help="Seeds, such as 1,2. Default: 1.")] = ""


@verb("Prepare", "file model tasks ingredients task_files design steps items seeds *")
def init(  # noqa: PLR0913 - a verb's options
    options: InitOptions,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="[STUDY.yaml]", help="Where to write it.", autocompletion=complete_files
        ),
    ] = Path("study.yaml"),
    name: Annotated[
        str, typer.Option(help="Name of the folder of results. Default: the file's name.")
    ] = "",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Write a preset of the package: brief2024, finance, finance-cpu. "
            "Only --name can be combined with it.",
            autocompletion=presets.names,
        ),
    ] = None,
    data_dir: DataDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print it; write no file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented study file with every key and its default. Next: mixtune plan."""
    if file.exists() and not (force or stdout):
        raise SpecError(
            "there is a file already",
            where=shorten(str(file), 300),
            remedy="choose another name, or replace it with --force",
        )
    name = name or re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:64] or "study"
    if preset is not None:
        study, text = None, _preset_text(preset, name, options != InitOptions())
    else:
        registry = Registry.open(map(str, options.task_files or ()), data_dir)
        own = set(registry.names()) - set(Registry.open(()).names())
        study = draft(name, options, registry, own)
        with suppress(Unreachable):  # a known model that is not on this machine yet
            locate(study.model, download=False)
        text = study_text(_relative_to(file.parent, study), _head(file))
    if not stdout:
        write_text(file, text)
    if study and as_json:
        print_json(study.model_dump(mode="json"))
    elif stdout:
        print(text, end="")
    else:
        print(f"wrote {shorten(str(file), 300)}\nnext: {shorten(_next_command(file), 300)}")


def _preset_text(preset: str, name: str, with_options: bool) -> str:
    """The file of a preset under a study's own name."""
    source = presets.preset(preset)
    if source is None:
        hint = did_you_mean(preset, presets.names())
        raise SpecError("no such preset", found=preset, wanted=hint)
    if with_options:
        raise SpecError(
            "a preset is written without changes",
            where=f"--preset {preset}",
            remedy="leave out the other options and change the file, or give key=value to plan and "
            "run",
        )
    return re.sub(r"(?m)^name: .*$", f"name: {name}", source.read_text(encoding="utf-8"), count=1)


def _relative_to(folder: Path, study: Study) -> Study:
    """The study with its paths relative to the folder of its file."""

    def relative(path: str) -> str:
        return os.path.relpath(Path(path).resolve(), folder.resolve())

    model = study.model
    if model not in catalogue() and os.path.exists(model) and not os.path.isabs(model):  # noqa: PTH110, PTH117 - no errors
        model = relative(model)
    paths: dict[str, object] = {"model": model}
    if study.task_files:
        paths["task_files"] = tuple(map(relative, study.task_files))
    return study.model_copy(update=paths)


def _next_command(file: Path) -> str:
    return shlex.join(["mixtune", "plan", str(file)])


def _head(file: Path) -> str:
    """The comment that a new study file begins with; its command is for the file's own folder."""
    return (
        f"A study of mixtune. Next: {shorten(_next_command(Path(file.name)))}, then mixtune run\n"
        "Lines that start with # show defaults: to change one, remove the # there and in front of "
        "its section.\n"
        "docs/study-file.md explains every key; mixtune schema prints a JSON Schema for editors."
    )


# ---- options → study ----------------------------------------------------------------------------


def draft(name: str, options: InitOptions, registry: Registry, own: Iterable[str] = ()) -> Study:
    """The study that the options describe, checked against the tasks there are.

    Tasks default to those of the user's own files, or else to the ingredients that are tasks;
    ingredients default to the user's own and the tasks, as far as they can be trained on.

    Args:
        name: the study's.
        options: all others.
        registry: all tasks, including those of `options.task_files`.
        own: the names that come from `options.task_files`.

    Raises:
        SpecError: a name, amount, family or number that cannot be used; nothing to score or train.
    """
    raw: dict[str, Any] = {"name": name, "model": options.model or MODEL}
    if options.tasks or options.ingredients or options.task_files:
        raw |= _tasks_and_ingredients(options, registry, sorted(own))
    else:
        raw |= FIRST_STUDY
    if options.task_files:
        raw["task_files"] = list(map(str, options.task_files))
    if options.design:
        raw["design"] = _design(options.design)
    if options.seeds:
        parts = [part.strip() for part in options.seeds.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise SpecError(
                "not a list of seeds", found=options.seeds, wanted="whole numbers, such as 1,2,3"
            )
        raw["seeds"] = list(map(int, parts))
    if options.steps is not None:
        raw["budget"] = {"steps": options.steps}
    if options.items is not None:
        raw["evaluate"] = {"validation_items": options.items, "test_items": options.items}
    study = parse_study(raw, "mixtune init")
    canonical(study, registry)
    cocktails(study.design, sorted(study.ingredients))
    return study


def _tasks_and_ingredients(
    options: InitOptions, registry: Registry, own: Sequence[str]
) -> dict[str, Any]:
    given_amounts = options.ingredients or []
    amounts_of = amounts(given_amounts, Origin("mixtune init: --ingredient"))
    scored = {name for name in registry.names() if registry.get(name).role == "task"}
    trainable = {name for name in registry.names() if registry.get(name).trainable}
    tasks = options.tasks or _names_in(scored, own or list(amounts_of), registry)
    ingredients = given_amounts or _names_in(trainable, [*own, *tasks], registry)
    for names, use, option in (
        (tasks, "be scored on", "--task"),
        (ingredients, "train on", "--ingredient"),
    ):
        if not names:
            raise SpecError(
                f"nothing to {use}",
                where="mixtune init",
                found=[*map(str, options.task_files or ()), *(options.tasks or ()), *given_amounts],
                remedy=f"name one with {option}; mixtune tasks lists what there is",
            )
    return {"tasks": tasks, "ingredients": ingredients}


def _names_in(among: Collection[str], names: Iterable[str], registry: Registry) -> list[str]:
    """The distinct names whose task is in a collection of tasks."""
    return [name for name in dict.fromkeys(names) if registry.get(name).name in among]


def _design(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Families by name; a piece with a "+" is an explicit cocktail."""
    design: dict[str, list[Any]] = {}
    for piece in (piece.strip() for text in texts for piece in text.split(",")):
        if "+" in piece:
            design.setdefault("explicit", []).append([name.strip() for name in piece.split("+")])
        elif piece:
            design.setdefault("families", []).append(piece)
    return design


# ---- study → text -------------------------------------------------------------------------------


def study_text(study: Study, head: str) -> str:
    """The text of a study file that loads as `study`.

    Keys that were set when `study` was made are live; all others are commented out, with their
    defaults. Each key has its description above it.

    Args:
        study: the study.
        head: the file's first comment; may have several lines.
    """
    values = study.model_dump(mode="json")
    live = study.model_dump(mode="json", exclude_unset=True)
    lines = [*_comment(head), ""]
    for name, info in Study.model_fields.items():
        if name == "ingredients":
            lines += [*_comment(_about(info)), *_ingredient_lines(live[name])]
        else:
            lines += _key_lines(name, info, values, live)
        lines.append("")
    return "\n".join(lines)


def _key_lines(
    name: str, info: FieldInfo, values: Mapping[str, Any], live: Mapping[str, Any], indent: str = ""
) -> Iterator[str]:
    """The lines of one key, and of the section that it opens."""
    yield from _comment(_about(info), indent)
    section = info.annotation
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        yield f"{indent}{'' if name in live else '# '}{name}: {_flow(values[name])}"
        return
    yield f"{indent}{'' if live.get(name) else '# '}{name}:"
    for key, inner in section.model_fields.items():
        yield from _key_lines(key, inner, values[name], live.get(name, {}), f"{indent}  ")


def _ingredient_lines(ingredients: Mapping[str, Any]) -> Iterator[str]:
    yield "ingredients:"
    for name, amount in ingredients.items():
        yield f"  {_flow(name)}: {_flow(amount)}"
    yield "  # Keys of an ingredient, with their defaults:"
    defaults = Ingredient().model_dump(mode="json")
    for name, info in Ingredient.model_fields.items():
        yield from _comment(f"{name} ({_flow(defaults[name])}): {_about(info)}", "  ", hang="  ")


def _comment(text: str, indent: str = "", hang: str = "") -> Iterator[str]:
    width = WIDTH - len(indent)
    for paragraph in text.splitlines():
        lines = wrap(paragraph, width, subsequent_indent=hang, break_on_hyphens=False)
        yield from (f"{indent}# {line}".rstrip() for line in lines or [""])


def _flow(value: object) -> str:
    """A value on one line of YAML, quoted unless it is plainly a word: `1e4` may be a name."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_flow(key)}: {_flow(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(_flow, value))}]"
        case str() if _PLAIN.fullmatch(value):
            return value
    return json.dumps(value, ensure_ascii=False)


def _about(info: FieldInfo) -> str:
    """A key's description on one line."""
    return " ".join((info.description or "").split())


# ---- JSON Schema ---------------------------------------------------------------------------------


@app.command(rich_help_panel="Prepare")
def schema(
    of: Annotated[
        Literal["study", "task"], typer.Option(help="A study file, or a file with a task.")
    ] = "study",
) -> None:
    """Print the JSON Schema of a study file or task file, for editors. Next: mixtune init."""
    print(json.dumps(json_schema(of), indent=1, ensure_ascii=False))


def json_schema(of: Literal["study", "task"]) -> Schema:
    """The schema (draft 2020-12) of a study file or of a task file.

    A file that does not fit is refused; one that fits can still be refused, for its names or for
    settings that contradict each other.
    """
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
