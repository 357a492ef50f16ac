"""What was asked: a study file, validated, frozen, with every default visible.

Knows: the fields of a study, their limits, which settings contradict each other. Does not know:
other spellings (shorthand.py), which tasks or models exist (tasks/, models/catalog.py), which
cells a design gives (design.py).
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mixtune.errors import SpecError, did_you_mean, shorten
from mixtune.shorthand import ALIASES, apply_override, own_keys
from mixtune.strict_yaml import Origin, Place, read_file, read_yaml, write_yaml

MAX_EXAMPLES = 10_000_000
"""Examples that one run may see: its training list is held in memory."""
MAX_FAULTS = 5
"""Faults that one message names."""


def _no_bool(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds control characters")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_printable)]
Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[Int, Field(gt=0, le=10**9)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
DesignName = Literal["singles", "pairs", "leave-one-out", "all", "incremental"]
FormName = Literal["strict", "constrained"]
LossName = Literal["example-mean", "batch-token-mean"]
UnitName = Literal["rows", "tokens", "supervised_tokens"]


class Frozen(BaseModel):
    """Base of every spec: immutable, unknown keys refused, strict about types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        str_strip_whitespace=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Ingredient(Frozen):
    """How much of a dataset may enter a cocktail: a pool, and its part of the mix.

    Without a share an ingredient weighs rows × repeat. `share` and `repeat` exclude each other.
    """

    rows: Count | None = None
    """Size of its pool in rows, a seeded subset of its train split; null takes all of it."""
    repeat: Annotated[Float, Field(gt=0, le=10_000)] | None = None
    """Passes over the pool, such as 3 or 0.5; null is one. The mix weighs it rows × repeat."""
    share: Annotated[Float, Field(gt=0, le=1)] | None = None
    """Its part of the mix, measured in `unit`. Where every ingredient has a share they are
    relative to their sum; else what they leave goes to the others by rows × repeat."""
    unit: UnitName | None = None
    """What a share is measured in: rows, tokens (prompt and answer) or supervised_tokens (answer).
    One unit for the whole study; null is the unit that other shares give, or rows."""
    when_exhausted: Literal["stop", "repeat", "error"] = "repeat"
    """When the mix needs more than rows × repeat: go on with reshuffled passes, stop and leave the
    rest of the budget to the others, or refuse the plan."""

    @model_validator(mode="after")
    def _consistent(self) -> "Ingredient":
        if self.share is not None and self.repeat is not None:
            raise ValueError(
                "contradictory settings: share and repeat both set its part of the mix; keep one"
            )
        if self.share is None and self.unit is not None:
            raise ValueError(
                "contradictory settings: unit says what a share is measured in, and there is no "
                "share; add share, or remove unit"
            )
        return self


class Design(Frozen):
    """Which cocktails: named families over the ingredients, and any listed by hand."""

    families: tuple[DesignName, ...] = ()
    """singles, pairs, leave-one-out, all; incremental is the four together."""
    explicit: tuple[tuple[Name, ...], ...] = ()
    """Cocktails by hand: lists of ingredients."""

    @model_validator(mode="after")
    def _something(self) -> "Design":
        if not self.families and not self.explicit:
            raise ValueError("a design needs at least one family or one explicit cocktail")
        return self


class Budget(Frozen):
    """What a run may cost: every cell gets the same optimiser steps of equally many examples."""

    kind: Literal["equal-steps"] = "equal-steps"
    """How cells are made comparable: the same steps × examples for each."""
    steps: Count = 100
    """Optimiser steps of one run."""
    examples_per_step: Annotated[Int, Field(gt=0, le=65_536)] = 16
    """Examples of one optimiser step, all devices and accumulation together."""

    @model_validator(mode="after")
    def _bounded(self) -> "Budget":
        if self.examples > MAX_EXAMPLES:
            raise ValueError(f"steps × examples_per_step is more than {MAX_EXAMPLES:,} examples")
        return self

    @property
    def examples(self) -> int:
        """Examples seen by one run."""
        return self.steps * self.examples_per_step


class TrainSpec(Frozen):
    """How an adapter is trained. What can change the weights is in the run's id."""

    method: Literal["lora", "full"] = "lora"
    """What is trained: adapters beside the frozen base (lora), or all of its weights (full)."""
    targets: Literal["all-linear"] = "all-linear"
    """Layers that get an adapter: every linear layer but the output head."""
    top_layers: Count | None = None
    """Adapters in so many topmost layers only; what the layers below compute is kept on disk and
    used again by every run, epoch and seed. Another method: it learns less. null is all layers."""
    rank: Annotated[Int, Field(gt=0, le=1024)] = 16
    """Rank of the adapter."""
    alpha: Annotated[Float, Field(gt=0)] = 32.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    lr: Annotated[Float, Field(gt=0, le=1)] = 1e-3
    """Highest learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warm-up: fall to 0 (linear, cosine), or stay."""
    warmup: Annotated[Float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    clip: Annotated[Float, Field(gt=0)] = 1.0
    """Global gradient norm above which gradients are scaled down."""
    loss: LossName = "example-mean"
    """Mean over examples of the mean over each one's supervised tokens (example-mean), or over all
    supervised tokens of a step (batch-token-mean: long answers weigh more than labels)."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen base and its activations; adapter weights are float32."""
    max_length: Annotated[Int, Field(ge=16, le=1_000_000)] = 1024
    """Longest training row in tokens, prompt and answer together."""
    over_long: Literal["error", "drop"] = "error"
    """Rows beyond max_length: stop, or drop and count them."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: less memory, about a third slower; the
    result is the same, and so are the ids."""

    @model_validator(mode="after")
    def _of_one_method(self) -> "TrainSpec":
        if self.method == "full" and self.top_layers is not None:
            raise ValueError(
                "contradictory settings: method full trains every layer, top_layers adapters in "
                "some; remove top_layers, or set method to lora"
            )
        return self


class EvalSpec(Frozen):
    """What is answered and how. Items are taken by whole groups, the same ones for every system."""

    validation_items: Count | None = None
    """At least so many items of each task's validation split; null takes all."""
    test_items: Count | None = None
    """At least so many items of each task's test split; null takes all."""
    forms: tuple[FormName, ...] = ("strict", "constrained")
    """How a task is answered: text as asked for (strict), the likeliest label (constrained)."""
    max_new_tokens: Annotated[Int, Field(gt=0, le=4096)] | None = None
    """Longest answer in tokens, end of turn included; a longer one counts as cut off. null is for
    each task the 99th percentile of its train rows' own answers."""
    max_prompt_length: Annotated[Int, Field(ge=16, le=1_000_000)] = 2048
    """Longest prompt in tokens; a longer one stops the plan."""
    batch_size: Annotated[Int, Field(gt=0, le=65_536)] = 32
    """Prompts in one forward pass; part of the ids, because rounding depends on it."""
    probe_items: Count = 200
    """At least so many items of each probe, and of the general text."""
    carve: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Share of train groups that become validation where a scored dataset has none."""
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


class Gate(Frozen):
    """What `mixtune probe` holds systems to: it ends with exit code 3 where one falls below."""

    retention: Annotated[Float, Field(ge=-1, le=1)] | None = None
    """Lowest allowed difference to the base on a probe's main metric, such as -0.02; null: none."""
    probes: tuple[Name, ...] = ()
    """Probes that it holds for; none named: all of the study's."""
    by: Literal["value", "interval"] = "value"
    """What must not lie below: the difference itself (value), or the low end of its interval."""


class Study(Frozen):
    """A study file: one base model, tasks to be good at, ingredients to train on."""

    name: Name
    """Name of the study's folder of results: small letters, digits, "-" and "_"."""
    model: Annotated[Text, Field(max_length=400)]
    """Base model: a name of the catalogue, a hub id, or a folder as seen from the study file."""
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Tasks to be good at: every system answers them."""
    ingredients: Annotated[dict[Name, Ingredient], Field(min_length=1)]
    """Datasets to train on, with amounts. Also a list or one text of short amounts, such as
    `headline:10000, fpb, ner*3, 0.2*orca`."""
    task_files: tuple[Text, ...] = ()
    """Tasks and ingredients of one's own; paths from the study file's folder."""
    design: Design = Design(families=("incremental",))
    """Which cocktails are trained; also a list of families."""
    budget: Budget = Budget()
    """What every run may cost."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1,)
    """Each cocktail is trained once for each seed."""
    train: TrainSpec = TrainSpec()
    """How adapters are trained."""
    evaluate: EvalSpec = EvalSpec()
    """What is answered, and how."""
    baselines: tuple[Literal["majority", "base"], ...] = ("majority", "base")
    """Floors to compare with: the commonest label, and the untuned base."""
    probes: tuple[Name, ...] = ()
    """Tasks that nothing is chosen for, such as mmlu: `mixtune probe` says what was lost there."""
    general: Name | None = None
    """Dataset whose held-out answers `mixtune probe` reads as general text, such as alpaca."""
    gate: Gate = Gate()
    """What `mixtune probe` must find."""

    @field_validator("design", mode="before")
    @classmethod
    def _design(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        return {"families": value} if isinstance(value, list | tuple) else value

    @field_validator("tasks", "seeds", "baselines", "probes")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names the same thing twice")
        return value

    @field_validator("ingredients")
    @classmethod
    def _shares(cls, value: dict[str, Ingredient]) -> dict[str, Ingredient]:
        given = {name: one.share for name, one in value.items() if one.share is not None}
        units = sorted({one.unit for one in value.values() if one.unit is not None})
        if len(units) > 1:
            raise ValueError(
                f"contradictory settings: shares are measured in {' and '.join(units)}; give every "
                "share the same unit"
            )
        total = sum((exact(share) for share in given.values()), Fraction(0))
        if len(given) < len(value) and total >= 1:
            rest = sorted(set(value) - set(given))
            raise ValueError(
                f"contradictory settings: the shares of {', '.join(sorted(given))} add up to "
                f"{float(total):g}, which leaves nothing for {', '.join(rest)}; lower the shares, "
                "or give every ingredient one"
            )
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

    @property
    def unit(self) -> UnitName:
        """What the study's shares are measured in; rows where there are none."""
        return next((one.unit for one in self.ingredients.values() if one.unit), "rows")


def exact(number: float) -> Fraction:
    """A number as it was written: 0.1 is one tenth."""
    return Fraction(repr(number))


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply `key.sub=value` overrides.

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
    for override in overrides:
        apply_override(raw, override)
    # What an override has touched no longer stands in a line of the file.
    touched = {override.partition("=")[0].strip().split(".")[0] for override in overrides}
    lines = {
        place: line
        for place, line in read.origin.lines.items()
        if place and place[0] not in touched
    }
    study = parse_study(raw, where, lines)
    own = tuple(str((path.parent / file).resolve()) for file in study.task_files)
    return study.model_copy(update={"task_files": own, "model": _beside(path, study.model)})


def _beside(path: Path, model: str) -> str:
    """A base model's folder or file, which is meant from the study file as a task file is."""
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
        faults = _faults(error, spelled.typed, origin)
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

    Its results are kept apart: they are those of another study.
    """
    raw = study.model_dump(mode="json")
    raw["name"] = f"{study.name}-limit{limit}"
    raw["budget"]["steps"] = min(study.budget.steps, limit)
    for key in ("validation_items", "test_items", "probe_items"):
        raw["evaluate"][key] = min(raw["evaluate"][key] or limit, limit)
    return parse_study(raw)


def dump_study(study: Study) -> str:
    """The study as YAML with every default written out."""
    return write_yaml(study.model_dump(mode="json"))


class _Fault:
    """One of pydantic's faults in the user's words: where, what, what was found, the remedy."""

    def __init__(
        self,
        fault: Any,  # noqa: ANN401 - pydantic's ErrorDetails
        typed: Mapping[tuple[str, ...], str],
        origin: Origin,
    ) -> None:
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
            self.what = f"no such key; {_hint(place)}"
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


def _faults(
    error: ValidationError, typed: Mapping[tuple[str, ...], str], origin: Origin
) -> list[_Fault]:
    """The faults to tell; that a list is too short is none where its items were refused."""
    raw = error.errors()
    inner = {fault["loc"][:length] for fault in raw for length in range(len(fault["loc"]))}
    told = [f for f in raw if not (f["type"] == "too_short" and f["loc"] in inner)]
    return [_Fault(fault, typed, origin) for fault in told]


def _hint(place: Place) -> str:
    """What an unknown key may have meant: a key of another section, or one that is close."""
    *parents, key = (str(part) for part in place)
    here = _keys_at(parents)
    homes = {dotted.rpartition(".")[2]: dotted for dotted in _dotted()}
    if key in homes:
        section = homes[key].rpartition(".")[0]
        return f"{key} belongs {f'under {section}' if section else 'at the top level'}"
    known = homes | ({} if parents else dict.fromkeys(ALIASES)) | dict.fromkeys(here)
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {(known[close[0]] or close[0])!r}?" if close else did_you_mean(key, here)


def _dotted() -> list[str]:
    """Every key of a study that has one place."""
    found = list(Study.model_fields)
    for name, field in Study.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Frozen):
            found += [f"{name}.{key}" for key in kind.model_fields]
    return found


def _keys_at(path: Sequence[str]) -> list[str]:
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
