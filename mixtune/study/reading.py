"""What is wrong with a file, in its writer's words: key, line, what was found, the remedy.

Knows: pydantic's faults, the keys of the model that was to be. Does not know: which files there
are, what the keys mean.

A study file → a study for each of its base models, and back.

Knows: YAML, overrides, where paths in the file begin, how faults are told. Does not know: what the
keys mean (spec.py), other spellings of them (shorthand.py).
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mixtune.errors import SpecError, did_you_mean, shorten
from mixtune.study.aliases import ALIASES, apply_override, own_keys
from mixtune.study.spec import Study
from mixtune.study.yaml import Origin, Place, read_file, read_yaml, write_yaml


class Fault:
    """One of pydantic's faults in the user's words: where, what, what was found, the remedy."""

    def __init__(
        self,
        fault: Any,  # noqa: ANN401 - pydantic's ErrorDetails
        typed: Mapping[tuple[str, ...], str],
        origin: Origin,
        root: type[BaseModel],
    ) -> None:
        """Put a fault into words.

        Args:
            fault: one of pydantic's.
            typed: place → the alias that was typed for it.
            origin: lines of the file.
            root: the model that the file was to be.
        """
        place = tuple(part for part in fault["loc"] if part != "[key]")
        kind, alias = fault["type"], typed.get(place)
        own = ".".join(shorten(part) for part in place) or "study"
        self.key = f"{alias} (read as {own})" if alias else own
        self.line = origin.line(tuple(alias.split(".")) if alias else place)
        said = str(fault["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        self.what, default = _WORDS.get(kind, (said[:1].lower() + said[1:], _REMEDY))
        self.found = None if kind in ("missing", "extra_forbidden") else shorten(fault["input"])
        self.remedy = default
        if kind == "extra_forbidden":
            self.what = f"no such key; {_hint(place, root)}"
        if said.startswith("contradictory"):
            self.what, _, self.remedy = said.rpartition("; ")

    @property
    def text(self) -> str:
        """The fault in one line."""
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{self.key}: {self.what}{f' (found {self.found})' if self.found else ''}"


_REMEDY = "mend it, or leave the key out for its default"
_WORDS = {
    "missing": ("is missing", "add the key"),
    "extra_forbidden": ("", "mend or remove the key; mixtune schema prints all there are"),
    "string_type": ("should be a word", "put it in quotes if it looks like a number"),
    "string_pattern_mismatch": (
        "lower case letters, digits, - and _ only, 64 at most",
        "write names as `mixtune tasks` shows them",
    ),
    "tuple_type": ("should be a list", "write [a, b]"),
    "too_short": ("needs at least one item", "write [a, b]"),
    "model_type": ("should be a mapping", "write {key: value}, or leave it out for its default"),
    "dict_type": ("should be a mapping", "write {name: {rows: 100}}"),
}
"""Kind of fault → what is said of it and the remedy, where pydantic speaks of its own types."""


def faults_of(
    error: ValidationError,
    typed: Mapping[tuple[str, ...], str],
    origin: Origin,
    root: type[BaseModel],
) -> list[Fault]:
    """The faults to tell; that a list is too short is none where its items were refused."""
    raw = error.errors()
    inner = {fault["loc"][:length] for fault in raw for length in range(len(fault["loc"]))}
    told = [f for f in raw if not (f["type"] == "too_short" and f["loc"] in inner)]
    return [Fault(fault, typed, origin, root) for fault in told]


def _hint(place: Place, root: type[BaseModel]) -> str:
    """What an unknown key may have meant: a key of another section, or one that is close."""
    *parents, key = (str(part) for part in place)
    here = _keys_at(parents, root)
    homes = {dotted.rpartition(".")[2]: dotted for dotted in _dotted(root)}
    if key in homes:
        section = homes[key].rpartition(".")[0]
        return f"{key} belongs {f'under {section}' if section else 'at the top level'}"
    known = homes | ({} if parents else dict.fromkeys(ALIASES)) | dict.fromkeys(here)
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {(known[close[0]] or close[0])!r}?" if close else did_you_mean(key, here)


def _dotted(root: type[BaseModel]) -> list[str]:
    """Every key that has one place."""
    found = list(root.model_fields)
    for name, field in root.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [f"{name}.{key}" for key in kind.model_fields]
    return found


def _keys_at(path: Sequence[str], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed at a place."""
    here = root
    for part in path:
        if part not in here.model_fields:
            continue  # a place in a list, or a name that the user chose
        inner = _model_in(here.model_fields[part].annotation)
        if inner is None:
            break
        here = inner
    return list(here.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any annotation
    """The model that an annotation holds: itself, or in a list, a mapping, an option."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


MAX_FAULTS = 5
"""Faults that one message names."""


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file of one base model and apply `key.sub=value` overrides.

    Raises:
        SpecError: as `load_studies`; or the file names several base models.
    """
    found = load_studies(path, overrides)
    if len(found) > 1:
        names = [study.model for study in found]
        raise SpecError(
            f"the study has {len(found)} base models, and this takes one of them",
            where=shorten(str(path), 300),
            found=", ".join(names),
            remedy=f"name one: model={names[0]}",
        )
    return found[0]


def load_studies(path: Path, overrides: Sequence[str] = ()) -> list[Study]:
    """Read a study file and apply `key.sub=value` overrides: a study for each base model.

    Where `model` is a list, each has the file's name and its model's, whether one is picked by an
    override or not.

    Raises:
        SpecError: no such file, not YAML, an unknown key, a value out of range.
    """
    where = shorten(str(path), 300)
    read = read_yaml(read_file(path, SpecError), where, SpecError)
    if not isinstance(read.value, dict):
        raise SpecError(
            "a study is a mapping",
            where=where,
            found="an empty file" if read.value is None else read.value,
            wanted="key: value",
            remedy="mixtune init writes a study to start from",
        )
    raw = read.value
    several = isinstance(raw.get("model"), list)
    for override in overrides:
        apply_override(raw, override)
    # What an override has touched no longer stands in a line of the file.
    touched = {override.partition("=")[0].strip().split(".")[0] for override in overrides}
    lines = {
        place: line
        for place, line in read.origin.lines.items()
        if place and place[0] not in touched
    }
    return [_beside(path, parse_study(one, where, lines)) for one in _of_each_model(raw, several)]


def _of_each_model(raw: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    """The raw study for each of its base models; one, where `model` is no list."""
    models = raw.get("model")
    if not several:
        return [raw]
    found = []
    for model in models if isinstance(models, list) and models else [models]:
        slug = re.sub(r"[^a-z0-9]+", "-", str(model).lower().rpartition("/")[2]).strip("-")
        found.append(raw | {"model": model, "name": f"{raw.get('name')}-{slug}"})
    return found


def _beside(path: Path, study: Study) -> Study:
    """The study with its own tasks' files, and its model where that is a folder, from its file."""
    own = tuple(str((path.parent / file).resolve()) for file in study.task_files)
    return study.model_copy(update={"task_files": own, "model": _model_beside(path, study.model)})


def _model_beside(path: Path, model: str) -> str:
    found = path.parent / model
    try:
        gguf = found.suffix == ".gguf" and found.is_file()
        return str(found.resolve()) if gguf or (found / "config.json").is_file() else model
    except OSError:  # longer than a path can be: no such model, which is said where it is looked up
        return model


def parse_study(
    raw: dict[str, Any], where: str = "study", lines: Mapping[Place, int] | None = None
) -> Study:
    """Validate a study given as a mapping; `lines` are those of its values in its file.

    Raises:
        SpecError: with one line per fault, unknown keys with a did-you-mean.
    """
    origin = Origin(where, lines or {})
    spelled = own_keys(raw, origin)
    try:
        return Study.model_validate(spelled.raw)
    except ValidationError as error:
        faults = faults_of(error, spelled.typed, origin, Study)
    if len(faults) == 1:
        (fault,) = faults
        place = f"{where}, line {fault.line}" if fault.line else where
        raise SpecError(
            f"{fault.key}: {fault.what}", where=place, found=fault.found, remedy=fault.remedy
        )
    said = [fault.text for fault in faults[:MAX_FAULTS]]
    more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    raise SpecError(
        "\n  ".join([f"{len(faults)} faults", *said, *more]),
        where=where,
        remedy="mend the keys named; mixtune schema prints all there are",
    )


def trial(study: Study, limit: int) -> Study:
    """The study cut to at most `limit` items a task and split and `limit` steps, by its own name.

    Under as-published, where steps follow from rows, to `limit` rows an ingredient. Its results
    are kept apart: they are those of another study.
    """
    raw = study.model_dump(mode="json")
    raw["name"] = f"{study.name}-limit{limit}"
    if study.budget.kind == "as-published":
        for amount in raw["ingredients"].values():
            amount["rows"] = min(amount["rows"] or limit, limit)
    else:
        raw["budget"]["steps"] = min(study.budget.steps, limit)
    for key in ("validation_items", "test_items"):
        raw["evaluate"][key] = min(raw["evaluate"][key] or limit, limit)
    return parse_study(raw)


def dump_study(study: Study) -> str:
    """The study as YAML with every default written out."""
    return write_yaml(study.model_dump(mode="json"))
