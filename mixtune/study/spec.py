"""The keys of a study file, validated and frozen, with every default visible.

The descriptions below are the user's documentation: docs/study-file.md, `mixtune init` and
`mixtune schema` show them. Does not know: files, other spellings, which tasks or models exist.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixtune.errors import did_you_mean
from mixtune.study.api_spec import ApiEntries, ApiSpec
from mixtune.study.fields import (
    Count,
    Distinct,
    Float,
    Frozen,
    Int,
    Name,
    Seed,
    Text,
    contradiction,
)

MAX_EXAMPLES = 10_000_000
"""Examples that one run may see: its training list is held in memory."""

DesignName = Literal["singles", "pairs", "leave-one-out", "all", "incremental"]
FormName = Literal["strict", "constrained"]
LossName = Literal["example-mean", "batch-token-mean"]
UnitName = Literal["rows", "tokens", "supervised_tokens"]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]
Rate = Annotated[Float, Field(gt=0, le=1)]


class Ingredient(Frozen):
    """Amount of a dataset in a cocktail: a pool of its rows, and its part of the mix.

    Without a share an ingredient weighs rows × repeat. `share` and `repeat` exclude each other.
    """

    rows: Count | None = None
    """Size of the pool in rows, a seeded subset of the train split; null takes all of it."""
    repeat: Annotated[Float, Field(gt=0, le=10_000)] | None = None
    """Passes over the pool, such as 3 or 0.5; null is one. Its weight is rows × repeat."""
    share: Rate | None = None
    """Part of the mix, measured in `unit`. If every ingredient has a share, shares are relative to
    their sum; otherwise the remainder goes to the other ingredients by rows × repeat."""
    unit: UnitName | None = None
    """Unit of the share: rows, tokens (prompt and answer) or supervised_tokens (answer). All shares
    of a study have the same unit; null is the unit of the other shares, or rows."""
    when_exhausted: Literal["stop", "repeat", "error"] = "repeat"
    """When the mix needs more than rows × repeat: continue with reshuffled passes (repeat), leave
    the rest of the budget to the other ingredients (stop), or refuse the plan (error)."""

    @model_validator(mode="after")
    def _consistent(self) -> "Ingredient":
        if self.share is not None and self.repeat is not None:
            raise contradiction("share and repeat both set the part of the mix", "keep one")
        if self.share is None and self.unit is not None:
            problem = "unit says how a share is measured, and there is no share"
            raise contradiction(problem, "add share, or remove unit")
        return self


class Level(Frozen):
    """A dose series: an addition in growing shares of each step, to a mix that stays the same.

    Results call it `name`. Proportions inside the mix and inside the addition do not change.
    """

    name: Name
    """Name of the addition, such as general or maths."""
    add: Names
    """Ingredients that are added."""
    to: Names
    """Ingredients of the mix that they are added to."""
    shares: Annotated[
        tuple[Annotated[Float, Field(ge=0, lt=1)], ...], Field(min_length=1), Distinct
    ]
    """Shares of the addition in the examples of each step, such as [0, 0.01, 0.1]."""

    @model_validator(mode="after")
    def _disjoint(self) -> "Level":
        names = [*self.add, *self.to]
        if len(set(names)) != len(names):
            raise ValueError("names an ingredient twice, in add and to together")
        return self


class Design(Frozen):
    """Cocktails to train: named families over the ingredients, dose series, and explicit lists."""

    families: tuple[DesignName, ...] = ()
    """singles, pairs, leave-one-out, all; incremental is these four together."""
    explicit: tuple[tuple[Name, ...], ...] = ()
    """Further cocktails, each a list of ingredients."""
    levels: tuple[Level, ...] = ()
    """Dose series, such as 0, 1, 2, 10 and 50 % of the examples of each step."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Design":
        if not self.families and not self.explicit and not self.levels:
            raise ValueError("needs at least one family, explicit cocktail or series of levels")
        if len({level.name for level in self.levels}) != len(self.levels):
            raise ValueError("levels: two have one name")
        return self


class Budget(Frozen):
    """The cost of one run, and the single-task controls that the cocktails are compared with."""

    kind: Literal["equal-steps", "equal-exposure", "as-published"] = "equal-steps"
    """Basis of comparison between cells. equal-steps: the same steps × examples for each.
    equal-exposure: also, for each cocktail and target, a single-task run on exactly the target rows
    that the cocktail sees, in their order. as-published: as the original study did, all rows of a
    cocktail, 3 times (up to 3 ingredients) or 2 times with 10 steps of warm-up, so that more
    ingredients mean more steps."""
    steps: Count = 100
    """Optimiser steps of one run; as-published takes them from the rows."""
    examples_per_step: Annotated[Int, Field(gt=0, le=65_536)] = 16
    """Examples of one optimiser step, over all devices and accumulation steps."""
    more_epochs: Annotated[Int, Field(ge=2, le=1000)] | None = None
    """Further control: each single task trained for this multiple of the steps."""
    merged: bool = False
    """Further control, without training: for each cocktail the sum of its single-task adapters,
    weighted by its rows."""

    @model_validator(mode="after")
    def _bounded(self) -> "Budget":
        if self.examples > MAX_EXAMPLES:
            raise ValueError(f"steps × examples_per_step is more than {MAX_EXAMPLES:,} examples")
        if self.kind != "as-published":
            return self
        if "steps" in self.model_fields_set and self.steps != 100:
            problem = "as-published takes its steps from the rows, and steps is set"
            raise contradiction(problem, "remove steps, or choose kind equal-steps")
        if self.more_epochs is not None:
            remedy = "remove more_epochs, or choose kind equal-steps"
            raise contradiction("as-published sets the epochs", remedy)
        return self

    @property
    def examples(self) -> int:
        """Examples seen by one run under equal steps."""
        return self.steps * self.examples_per_step


@dataclass(frozen=True, slots=True)
class RunLength:
    """Length of one run: its examples, and the examples of an optimiser step.

    The last step has the remainder. `warmup_steps`, `lr`: instead of the study's. `sizes`:
    examples of each step, where they differ.
    """

    examples: int
    examples_per_step: int
    warmup_steps: int | None = None
    sizes: tuple[int, ...] = ()
    lr: float | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.sizes) or -(-self.examples // self.examples_per_step)


class TrainSpec(Frozen):
    """Training of adapters. Settings that can change the weights are part of the run's id."""

    method: Literal["lora", "full"] = "lora"
    """Train LoRA adapters on the frozen base (lora), or all of its weights (full)."""
    targets: Literal["all-linear"] = "all-linear"
    """Layers that get an adapter: every linear layer but the output head."""
    top_layers: Count | None = None
    """Train adapters in the top N layers only; activations below are cached on disk and reused by
    every run, epoch and seed. Faster, learns less. null is all layers."""
    rank: Annotated[Int, Field(gt=0, le=1024)] = 16
    """Rank of the adapter."""
    alpha: Annotated[Float, Field(gt=0)] = 32.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    lr: Rate = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: decay to 0 (linear, cosine), or constant."""
    warmup: Annotated[Float, Field(ge=0, lt=1)] = 0.05
    """Warm-up as a share of the steps."""
    warmup_steps: Annotated[Int, Field(ge=0, le=10**9)] | None = None
    """Warm-up in steps, instead of a share of them."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    clip: Annotated[Float, Field(gt=0)] = 1.0
    """Global gradient norm above which gradients are scaled down."""
    loss: LossName = "example-mean"
    """Mean over examples of each example's mean over supervised tokens (example-mean), or mean over
    all supervised tokens of a step (batch-token-mean: long answers weigh more than labels)."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen base and its activations; adapter weights are float32."""
    max_length: Annotated[Int, Field(ge=16, le=1_000_000)] = 1024
    """Longest training row in tokens, prompt and answer together."""
    over_long: Literal["error", "drop"] = "error"
    """Rows longer than max_length: refuse the plan (error), or drop and count them."""
    reasoning: Literal["keep", "drop"] | None = None
    """Answers that begin with reasoning: train on it, and let every system reason before it answers
    (keep), or train on the answers alone (drop). null refuses such rows."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower; results and
    ids are the same."""

    @model_validator(mode="after")
    def _one_method(self) -> "TrainSpec":
        if self.method == "full" and self.top_layers is not None:
            problem = "method full trains every layer, top_layers adapters in some"
            raise contradiction(problem, "remove top_layers, or set method to lora")
        return self


class EvalSpec(Frozen):
    """Evaluation. Items are sampled in whole groups, the same for every system."""

    validation_items: Count | None = None
    """Items of each task's validation split, at least; null takes all."""
    test_items: Count | None = None
    """Items of each task's test split, at least; null takes all."""
    forms: Annotated[tuple[FormName, ...], Field(min_length=1), Distinct] = (
        "strict",
        "constrained",
    )
    """Form of answers: generated text (strict, also scored as lenient), or the likeliest label
    (constrained)."""
    max_new_tokens: Annotated[Int, Field(gt=0, le=4096)] | None = None
    """Longest answer in tokens, end of turn included; a longer one counts as cut off. null is the
    99th percentile of each task's own train answers."""
    max_prompt_length: Annotated[Int, Field(ge=16, le=1_000_000)] = 2048
    """Longest prompt in tokens; a longer one stops the plan."""
    batch_size: Annotated[Int, Field(gt=0, le=65_536)] = 32
    """Prompts in one forward pass; part of the ids, because rounding depends on it."""
    probe_items: Count = 200
    """Items of each probe, and of the general text, at least."""
    carve: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Share of train groups that become validation if a scored dataset has none."""
    leaked: Literal["drop", "error", "report"] = "drop"
    """Train rows whose text, document or page is also in an evaluation split: drop and count them
    (drop), refuse the plan (error), or only count them (report)."""


class Gate(Frozen):
    """Limits that `mixtune probe` checks: it exits with code 3 if a system falls below them."""

    retention: Annotated[Float, Field(ge=-1, le=1)] | None = None
    """Lowest allowed difference to the base on a probe's main metric, such as -0.02; null: none."""
    probes: tuple[Name, ...] = ()
    """Probes that the limit applies to; an empty list is all of the study's."""
    by: Literal["value", "interval"] = "value"
    """Compare the difference itself (value), or the low end of its interval."""


class Claims(Frozen):
    """Requirements of `mixtune confirm` and `mixtune claims` for a claim."""

    targets: Annotated[tuple[Name, ...], Distinct] = ()
    """Tasks to make claims about; an empty list is all that are also trained on."""
    margin: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Smallest difference that matters: a tie is claimed when the difference is shown to be
    smaller."""
    fresh_seeds: Annotated[Int, Field(ge=2, le=100)] = 5
    """Fresh seeds of both arms, never used to choose anything."""
    single_runs: Annotated[Int, Field(ge=1, le=100_000)] = 6
    """Tuning runs that a single task gets if the cocktails had as many; with fewer there is no
    claim. Seeds, claims.tune_lr and budget.more_epochs add runs."""
    tune_lr: Annotated[tuple[Rate, ...], Field(max_length=100), Distinct] = ()
    """Learning rates to tune single tasks with, in addition to train.lr."""


class LongContext(Frozen):
    """Treatment of pages that are too long for a task's prompt."""

    policy: Literal["error", "drop", "evidence-first", "truncate-middle"] = "error"
    """Longer pages: refuse the plan (error), drop and count the record (drop), sort sentences and
    rows by the words they share with the question and then cut (evidence-first), or cut out the
    middle (truncate-middle)."""
    words: Count | None = None
    """Maximum length of a page in words, split at white space; null is no limit."""


class Flaws(Frozen):
    """Mistakes of published studies, each off by default: switch one on to see its effect."""

    packing_leaks: bool = False
    """Rows are packed into sequences of train.max_length tokens and attend to the rows before them;
    a step has examples_per_step sequences."""
    label_case: bool = False
    """Training answers are labels in lower case, whatever the prompt asks for."""
    select_on_test: bool = False
    """Choices, such as the best cocktail of a task, are made on the test split."""


class Study(Frozen):
    """A study file: base models, tasks to be good at, ingredients to train on."""

    name: Name
    """Name of the study's folder of results: small letters, digits, "-" and "_"."""
    model: Annotated[Text, Field(max_length=400)]
    """Base model: a name of the catalogue, a hub id, or a folder relative to the study file. A list
    makes a study, with a folder of results, for each."""
    tasks: Annotated[Names, Distinct]
    """Target tasks: every system answers them."""
    ingredients: Annotated[dict[Name, Ingredient], Field(min_length=1)]
    """Datasets to train on, with amounts. Also a list or one text of short amounts, such as
    `headline:10000, fpb, ner*3, 0.2*orca`."""
    task_files: tuple[Text, ...] = ()
    """Files with your own tasks and ingredients; paths are relative to the study file."""
    design: Design = Design(families=("incremental",))
    """Cocktails to train; also a list of families."""
    budget: Budget = Budget()
    """The cost of one run."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Distinct] = (1,)
    """Each cocktail is trained once for each seed."""
    train: TrainSpec = TrainSpec()
    """Training of adapters."""
    evaluate: EvalSpec = EvalSpec()
    """Items to answer, and the form of answers."""
    baselines: Annotated[tuple[Literal["majority", "base"], ...], Distinct] = ("majority", "base")
    """Floors to compare with: the most common label, and the untuned base."""
    contexts: dict[Name, LongContext] = Field(default_factory=dict)
    """Task with long pages, such as finqa → policy that replaces the one in its file."""
    flaws: Flaws = Flaws()
    """Mistakes of published studies to switch on."""
    api_models: ApiEntries = ()
    """Models behind OpenAI-compatible APIs that answer the same items: names of presets, such as
    gpt-4o, or mappings."""
    api: ApiSpec = ApiSpec()
    """Requests to models behind APIs, and their cost limit."""
    judged: Annotated[tuple[Name, ...], Distinct] = ()
    """Datasets of free answers that no parser scores, such as financebench: every system answers
    their test splits in free text, and `mixtune judge --split test` scores them."""
    probes: Annotated[tuple[Name, ...], Distinct] = ()
    """Tasks that are never used for selection, such as gsm8k: `mixtune probe` reports what training
    improved or damaged on them."""
    groups: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    """Named groups of ingredients, such as general: [alpaca, lima]; questions are asked about the
    whole group. Dose series are groups too."""
    general: Name | None = None
    """Dataset whose held-out answers `mixtune probe` uses as general text, such as alpaca."""
    gate: Gate = Gate()
    """Limits that `mixtune probe` checks."""
    claims: Claims = Claims()
    """Requirements for claims."""

    @field_validator("design", mode="before")
    @classmethod
    def _design(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        return {"families": value} if isinstance(value, list | tuple) else value

    @field_validator("ingredients")
    @classmethod
    def _shares(cls, ingredients: dict[str, Ingredient]) -> dict[str, Ingredient]:
        shares = {name: i.share for name, i in ingredients.items() if i.share is not None}
        units = sorted({i.unit for i in ingredients.values() if i.unit is not None})
        if len(units) > 1:
            problem = f"shares are measured in {' and '.join(units)}"
            raise contradiction(problem, "give every share the same unit")
        total = sum((exact(share) for share in shares.values()), Fraction(0))
        if len(shares) < len(ingredients) and total >= 1:
            without = sorted(set(ingredients) - set(shares))
            raise contradiction(
                f"the shares of {', '.join(sorted(shares))} add up to {float(total):g}, which "
                f"leaves nothing for {', '.join(without)}",
                "lower the shares, or give every ingredient one",
            )
        return ingredients

    @model_validator(mode="after")
    def _known_ingredients(self) -> "Study":
        lists = {f"explicit cocktail {list(names)}": names for names in self.design.explicit}
        lists |= {f"levels {level.name}": (*level.add, *level.to) for level in self.design.levels}
        lists |= {f"group {group}": names for group, names in self.groups.items()}
        for title, names in lists.items():
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{title} is empty or repeats a name")
            for name in names:
                if name not in self.ingredients:
                    hint = did_you_mean(name, self.ingredients)
                    raise ValueError(f"{title} names {name!r}, no ingredient; {hint}")
        return self

    @model_validator(mode="after")
    def _shares_fit_the_budget(self) -> "Study":
        shared = sorted(name for name, i in self.ingredients.items() if i.share is not None)
        if self.design.levels and self.unit != "rows":
            problem = f"levels are parts of the examples of a step, and shares of {self.unit}"
            raise contradiction(problem, "set their unit to rows")
        if self.budget.kind != "as-published":
            return self
        if shared or self.design.levels:
            shares = ", ".join(shared) or "levels"
            problem = f"as-published trains on all rows, so there are no shares ({shares})"
            raise contradiction(problem, "give rows, or choose kind equal-steps")
        if self.train.warmup or self.train.warmup_steps is not None:
            problem = "as-published sets the warm-up (none in 3 epochs, 10 steps in 2)"
            raise contradiction(problem, "set train.warmup to 0 and remove train.warmup_steps")
        return self

    @model_validator(mode="after")
    def _controls_fit_the_training(self) -> "Study":
        if self.budget.merged and self.train.method == "full":
            problem = "budget.merged adds up adapters, and train.method full has none"
            raise contradiction(problem, "set budget.merged to false, or train.method to lora")
        if self.train.lr in self.claims.tune_lr:
            problem = f"claims.tune_lr names {self.train.lr:g}, which every cell is trained with"
            raise contradiction(problem, "remove it from claims.tune_lr")
        return self

    @model_validator(mode="after")
    def _names_of_systems(self) -> "Study":
        names = [entry.name for entry in self.api_models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"api_models: two models are called {name!r}; rename one")
            if name in ("majority", "base", *self.ingredients):
                raise ValueError(f"api_models: {name!r} is the name of another system; rename it")
        return self

    @property
    def grouped(self) -> dict[str, tuple[str, ...]]:
        """Groups of ingredients, including the additions of dose series."""
        return {level.name: level.add for level in self.design.levels} | self.groups

    @property
    def unit(self) -> UnitName:
        """Unit of the study's shares; rows where there are none."""
        return next((i.unit for i in self.ingredients.values() if i.unit), "rows")


def exact(number: float) -> Fraction:
    """The number as it was written: 0.1 is one tenth."""
    return Fraction(repr(number))


FLAWS = {
    "packing_leaks": "rows packed together see one another",
    "label_case": "trained on labels in lower case",
    "select_on_test": "what is best is chosen on test",
}
"""Flaw → its meaning in results."""


def prompt_note(study: Study, system: str) -> str:
    """The shots and instruction of an API model, in words; "" for any other system."""
    notes = []
    for entry in (entry for entry in study.api_models if entry.name == system):
        if entry.shots:
            notes.append(f"{entry.shots} train rows shown before each question")
        if (variants := len(entry.variants)) > 1:
            notes.append(f"instruction chosen from {variants} by its score on validation")
    return "; ".join(notes)


def training_note(train: TrainSpec, flaws: Flaws) -> str:
    """Unusual ways of training, in words; numbers such as the rank are not mentioned."""
    notes = [f"{note} (flaws.{name})" for name, note in FLAWS.items() if getattr(flaws, name)]
    if train.method == "full":
        notes.append("all weights trained, no adapters (train.method full)")
    if train.top_layers is not None:
        layers = "layer" if train.top_layers == 1 else f"{train.top_layers} layers"
        notes.append(f"adapters in the top {layers} only (train.top_layers)")
    if train.loss != "example-mean":
        notes.append(f"long answers weigh more than short ones (train.loss {train.loss})")
    return "; ".join(notes)
