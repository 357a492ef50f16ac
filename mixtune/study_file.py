"""A study file → a study for each of its base models, and back.

Knows: YAML, overrides, where paths in the file begin, how faults are told. Does not know: what the
keys mean (spec.py), other spellings of them (shorthand.py).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixtune.errors import SpecError, shorten
from mixtune.faults import faults_of
from mixtune.shorthand import apply_override, own_keys
from mixtune.spec import Study
from mixtune.strict_yaml import Origin, Place, read_file, read_yaml, write_yaml

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
