"""A study file → a study for each of its base models, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixtune.errors import SpecError, shorten
from mixtune.study.aliases import ALIASES, Spelling, override, own_keys, read_spelling
from mixtune.study.fields import FaultContext, refusal, slug
from mixtune.study.spec import Study
from mixtune.study.yaml import Origin, read_file, read_yaml, write_yaml


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file of one base model and apply `key.sub=value` overrides.

    Raises:
        SpecError: as `load_studies`; or the file names several base models.
    """
    studies = load_studies(path, overrides)
    if len(studies) > 1:
        names = [study.model for study in studies]
        raise SpecError(
            f"the study has {len(studies)} base models, and this takes one of them",
            where=shorten(str(path), 300),
            found=", ".join(names),
            remedy=f"name one: model={names[0]}",
        )
    return studies[0]


def load_studies(path: Path, overrides: Sequence[str] = ()) -> list[Study]:
    """Read a study file and apply `key.sub=value` overrides: a study for each base model.

    Where the file's `model` is a list, each study is named after the file and its model, also
    where an override picks one.

    Raises:
        SpecError: no such file, not YAML, an unknown key, a value out of range.
    """
    where = shorten(str(path), 300)
    document = read_yaml(read_file(path, SpecError), where, SpecError)
    if not isinstance(document.value, dict):
        raise SpecError(
            "a study is a mapping",
            where=where,
            found="an empty file" if document.value is None else document.value,
            wanted="key: value",
            remedy="mixtune init writes a study to start from",
        )
    spelling = read_spelling(document.value, document.origin)
    several = isinstance(spelling.raw.get("model"), list)
    for text in overrides:
        override(spelling, text)
    raw = own_keys(spelling)
    raws = _of_each_model(raw) if several else [raw]
    return [_with_absolute_paths(_validated(study, spelling), path.parent) for study in raws]


def parse_study(raw: dict[str, Any], where: str = "study") -> Study:
    """Validate a study given as a mapping.

    Raises:
        SpecError: with one line per fault, unknown keys with a did-you-mean.
    """
    spelling = read_spelling(raw, Origin(where))
    return _validated(own_keys(spelling), spelling)


def _validated(raw: dict[str, Any], spelling: Spelling) -> Study:
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        context = FaultContext(Study, spelling.origin, spelling.typed, ALIASES)
        raise refusal(error.errors(), context, SpecError) from None


def _of_each_model(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The raw study for each of its base models, or for the one that an override picked."""
    models = raw["model"] if isinstance(raw["model"], list) and raw["model"] else [raw["model"]]
    names = [f"{raw.get('name')}-{slug(str(model).rpartition('/')[2])}" for model in models]
    return [raw | {"model": m, "name": name} for m, name in zip(models, names, strict=True)]


def _with_absolute_paths(study: Study, folder: Path) -> Study:
    """The study with its task files, and its model where that is a path, from the file's folder."""
    files = tuple(str((folder / file).resolve()) for file in study.task_files)
    model = folder / study.model
    try:
        gguf = model.suffix == ".gguf" and model.is_file()
        local = gguf or (model / "config.json").is_file()
    except OSError:  # longer than a path can be: the lookup of models says that there is none
        local = False
    name = str(model.resolve()) if local else study.model
    return study.model_copy(update={"task_files": files, "model": name})


def trial(study: Study, limit: int) -> Study:
    """The study cut to at most `limit` steps, and `limit` items of each task and split.

    Under as-published, where steps follow from rows, `limit` rows of each ingredient replace the
    steps. The study has a name of its own, so that its results are kept apart.
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
    """The study as YAML, with every default written out."""
    return write_yaml(study.model_dump(mode="json"))
