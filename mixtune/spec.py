"""What was asked: a study file, validated, frozen, with every default visible.

Knows: the fields of a study, their limits, key overrides. Does not know: which tasks or models
exist (tasks/, models/catalog.py), which cells a design gives (design.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mixtune.errors import SpecError, did_you_mean, shorten

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
DesignName = Literal["singles", "pairs", "leave-one-out", "all", "incremental"]
FormName = Literal["strict", "constrained"]


class Frozen(BaseModel):
    """Base of every spec: immutable, unknown keys refused, strict about types."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Ingredient(Frozen):
    """How much of a dataset may enter a cocktail.

    `rows`: the size of its pool (a seeded subset of its train split); null takes all of it. Under
    `equal-steps` the pools' sizes are also the proportions of the mix.
    """

    rows: Annotated[int, Field(gt=0)] | None = None


class Design(Frozen):
    """Which cocktails: named families over the ingredients, and any listed by hand."""

    families: tuple[DesignName, ...] = ()
    explicit: tuple[tuple[Name, ...], ...] = ()

    @model_validator(mode="after")
    def _something(self) -> "Design":
        if not self.families and not self.explicit:
            raise ValueError("a design needs at least one family or one explicit cocktail")
        return self


class Budget(Frozen):
    """`equal-steps`: every cell gets the same optimiser steps of the same number of examples."""

    kind: Literal["equal-steps"] = "equal-steps"
    steps: Annotated[int, Field(gt=0)] = 100
    examples_per_step: Annotated[int, Field(gt=0)] = 16

    @property
    def examples(self) -> int:
        """Examples seen by one run."""
        return self.steps * self.examples_per_step


class TrainSpec(Frozen):
    """How an adapter is trained. What can change the weights is in the run's id.

    `lr` for AdamW; `warmup` a share of the steps; `clip` the global gradient norm; `compute` the
    number format of the frozen base and its activations (adapter weights are always float32);
    `max_length` in tokens, prompt and answer together; `over_long` what to do beyond it.
    """

    method: Literal["lora"] = "lora"
    targets: Literal["all-linear"] = "all-linear"
    rank: Annotated[int, Field(gt=0, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    loss: Literal["example-mean"] = "example-mean"
    compute: Literal["float32", "bfloat16"] = "float32"
    max_length: Annotated[int, Field(ge=16)] = 1024
    over_long: Literal["error", "drop"] = "error"


class EvalSpec(Frozen):
    """What is answered and how. Items are taken by whole groups, the same ones for every system.

    `validation_items`, `test_items`: at least so many items (null: all). `batch_size`: prompts per
    forward pass, part of the id because rounding depends on it. `max_prompt_length`: longer ones
    are refused.
    """

    validation_items: Annotated[int, Field(gt=0)] | None = None
    test_items: Annotated[int, Field(gt=0)] | None = None
    forms: tuple[FormName, ...] = ("strict", "constrained")
    max_new_tokens: Annotated[int, Field(gt=0, le=4096)] = 16
    max_prompt_length: Annotated[int, Field(ge=16)] = 2048
    batch_size: Annotated[int, Field(gt=0)] = 32
    carve: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of train groups that become validation where a dataset has none."""
    leaked: Literal["drop", "error"] = "drop"
    """Train rows whose normalised text stands in an evaluation split: drop and count, or stop."""

    @field_validator("forms")
    @classmethod
    def _forms(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if not forms or len(set(forms)) != len(forms):
            raise ValueError(
                "forms needs each of strict, constrained at most once, and one of them"
            )
        return forms


class Study(Frozen):
    """A study file: one base model, tasks to be good at, ingredients to train on.

    `task_files`: tasks and ingredients of one's own; paths from the study file's folder.
    """

    name: Name
    model: Annotated[str, Field(min_length=1, max_length=400)]
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    ingredients: Annotated[dict[Name, Ingredient], Field(min_length=1)]
    task_files: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    design: Design = Design(families=("incremental",))
    budget: Budget = Budget()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    train: TrainSpec = TrainSpec()
    evaluate: EvalSpec = EvalSpec()
    baselines: tuple[Literal["majority", "base"], ...] = ("majority", "base")

    @field_validator("ingredients", mode="before")
    @classmethod
    def _ingredients(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            value = dict.fromkeys(value)
        if isinstance(value, dict):
            return {name: {} if amount is None else amount for name, amount in value.items()}
        return value

    @field_validator("design", mode="before")
    @classmethod
    def _design(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        return {"families": value} if isinstance(value, list | tuple) else value

    @field_validator("tasks", "seeds", "baselines")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names the same thing twice")
        return value

    @model_validator(mode="after")
    def _explicit_known(self) -> "Study":
        for cocktail in self.design.explicit:
            if not cocktail or len(set(cocktail)) != len(cocktail):
                raise ValueError(f"explicit cocktail {list(cocktail)} is empty or repeats a name")
            for name in cocktail:
                if name not in self.ingredients:
                    hint = did_you_mean(name, self.ingredients)
                    raise ValueError(f"explicit cocktail names {name!r}, no ingredient; {hint}")
        return self


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply `key.sub=value` overrides.

    Raises:
        SpecError: no such file, not YAML, an unknown key, a value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read the study file: {error}", where=str(path), remedy="check the path"
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"not valid YAML: {error}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise SpecError("a study is a mapping", where=str(path), found=raw, wanted="key: value")
    for override in overrides:
        apply_override(raw, override)
    study = parse_study(raw, str(path))
    own = tuple(str((path.parent / file).resolve()) for file in study.task_files)
    return study.model_copy(update={"task_files": own})


def parse_study(raw: dict[str, Any], where: str = "study") -> Study:
    """Validate a study given as a mapping.

    Raises:
        SpecError: with one line per fault, unknown keys with a did-you-mean.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        raise SpecError("; ".join(faults), where=where, remedy="mend the keys named") from error


def trial(study: Study, limit: int) -> Study:
    """The study cut to at most `limit` items a task and split and `limit` steps, by its own name.

    Its results are kept apart: they are those of another study.
    """
    raw = study.model_dump(mode="json")
    raw["name"] = f"{study.name}-limit{limit}"
    raw["budget"]["steps"] = min(study.budget.steps, limit)
    for key in ("validation_items", "test_items"):
        raw["evaluate"][key] = min(raw["evaluate"][key] or limit, limit)
    return parse_study(raw)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `key.sub=value` in a raw study; the value is read as YAML.

    Raises:
        SpecError: no "=", or a path through something that is not a mapping.
    """
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise SpecError("not an override", found=override, wanted="key.sub=value")
    *parents, last = path.strip().split(".")
    here: Any = raw
    for key in parents:
        here = here.setdefault(key, {}) if isinstance(here, dict) else here
        if here is None or not isinstance(here, dict):
            raise SpecError(f"{key!r} in {path!r} holds no keys", found=here, wanted="a mapping")
    try:
        here[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"the value of {path!r} is not YAML: {error}", found=text) from error


def dump_study(study: Study) -> str:
    """The study as YAML with every default written out."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """One fault in the user's words: where, what, what was found."""
    where = ".".join(str(part) for part in fault["loc"]) or "study"
    if fault["type"] == "extra_forbidden":
        *parents, key = fault["loc"]
        return f"{where}: no such key; {did_you_mean(str(key), _keys_at(parents))}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message} (found {shorten(fault['input'])})"


def _keys_at(path: Sequence[Any]) -> list[str]:
    """The keys that are allowed at a place in a study."""
    here: type[BaseModel] = Study
    for part in path:
        if here is Study and part == "ingredients":
            return list(Ingredient.model_fields)
        kind = here.model_fields[part].annotation if part in here.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return list(here.model_fields)
        here = kind
    return list(here.model_fields)
