"""What was asked: a study, validated, frozen, with every default visible.

Knows: the fields of a study, their limits, which settings contradict each other. Does not know:
files and other spellings (study_file.py, shorthand.py), which tasks or models exist (tasks/,
models/catalog.py), which cells a design gives (design.py, planning/cells.py).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixtune.errors import did_you_mean
from mixtune.study.api_spec import ApiEntries, ApiSpec, refuse_taken
from mixtune.study.fields import Count, Float, Frozen, Int, Name, Seed, Text

MAX_EXAMPLES = 10_000_000
"""Examples that one run may see: its training list is held in memory."""


DesignName = Literal["singles", "pairs", "leave-one-out", "all", "incremental"]
FormName = Literal["strict", "constrained"]
LossName = Literal["example-mean", "batch-token-mean"]
UnitName = Literal["rows", "tokens", "supervised_tokens"]


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


class Level(Frozen):
    """A series of doses: an addition in growing shares of each step, to a mix that stays the same.

    Called `name` in results. Inside the mix and inside the addition the proportions stay.
    """

    name: Name
    """What the addition is called, such as general or maths."""
    add: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The ingredients that are added."""
    to: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The ingredients of the mix that they are added to."""
    shares: Annotated[tuple[Annotated[Float, Field(ge=0, lt=1)], ...], Field(min_length=1)]
    """The addition's parts of the examples of each step, such as [0, 0.01, 0.1]."""

    @model_validator(mode="after")
    def _apart(self) -> "Level":
        listed = [*self.add, *self.to]
        if len(set(listed)) != len(listed):
            raise ValueError("names an ingredient twice, in add and to together")
        if len(set(self.shares)) != len(self.shares):
            raise ValueError("names a share twice")
        return self


class Design(Frozen):
    """Which cocktails: named families over the ingredients, doses, and any listed by hand."""

    families: tuple[DesignName, ...] = ()
    """singles, pairs, leave-one-out, all; incremental is the four together."""
    explicit: tuple[tuple[Name, ...], ...] = ()
    """Cocktails by hand: lists of ingredients."""
    levels: tuple[Level, ...] = ()
    """Series of doses, such as 0, 1, 2, 10 and 50 % of the examples of each step."""

    @model_validator(mode="after")
    def _something(self) -> "Design":
        if not self.families and not self.explicit and not self.levels:
            raise ValueError(
                "a design needs at least one family, one explicit cocktail or one series of levels"
            )
        if len({level.name for level in self.levels}) != len(self.levels):
            raise ValueError("levels: two have one name")
        return self


class Budget(Frozen):
    """What a run may cost, and which single-task controls stand beside the cocktails."""

    kind: Literal["equal-steps", "equal-exposure", "as-published"] = "equal-steps"
    """How cells are made comparable. The same steps × examples for each (equal-steps); beside that,
    for each cocktail and target, the single task trained on exactly the target's rows that the
    cocktail sees, in their order (equal-exposure); or, as the original study did, all rows of a
    cocktail, 3 times (up to 3 ingredients) or 2 times with 10 steps of warm-up, so that more
    ingredients are more steps (as-published)."""
    steps: Count = 100
    """Optimiser steps of one run; as-published takes them from the rows."""
    examples_per_step: Annotated[Int, Field(gt=0, le=65_536)] = 16
    """Examples of one optimiser step, all devices and accumulation together."""
    more_epochs: Annotated[Int, Field(ge=2, le=1000)] | None = None
    """One more control: each single task trained for so many times the steps."""
    merged: bool = False
    """One more control, which trains nothing: beside each cocktail the sum of its single tasks'
    adapters, weighed as its rows are."""

    @model_validator(mode="after")
    def _bounded(self) -> "Budget":
        if self.examples > MAX_EXAMPLES:
            raise ValueError(f"steps × examples_per_step is more than {MAX_EXAMPLES:,} examples")
        if self.kind == "as-published" and "steps" in self.model_fields_set and self.steps != 100:
            raise ValueError(
                "contradictory settings: as-published takes its steps from the rows, and steps is "
                "set; remove steps, or choose kind equal-steps"
            )
        if self.kind == "as-published" and self.more_epochs is not None:
            raise ValueError(
                "contradictory settings: as-published sets the epochs; remove more_epochs, or "
                "choose kind equal-steps"
            )
        return self

    @property
    def examples(self) -> int:
        """Examples seen by one run under equal steps."""
        return self.steps * self.examples_per_step


@dataclass(frozen=True, slots=True)
class Course:
    """How long one run is: its examples, and how many of them make an optimiser step.

    The last step has what is left. `warmup_steps`, `lr`: instead of the study's. `sizes`: examples
    of each step, where they differ.
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
    warmup_steps: Annotated[Int, Field(ge=0, le=10**9)] | None = None
    """Steps over which it rises, instead of a share of them."""
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
    """How a task is answered: text as asked for (strict, also scored as lenient), the likeliest
    label (constrained)."""
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
    leaked: Literal["drop", "error", "report"] = "drop"
    """Train rows whose text, document or page stands in an evaluation split: drop and count, stop,
    or count only."""

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


class Claims(Frozen):
    """What `mixtune confirm` and `mixtune claims` hold a gain to."""

    targets: tuple[Name, ...] = ()
    """Tasks that something is claimed of; none named: all that are also trained on."""
    margin: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Differences below it do not matter: a tie is shown to lie within it."""
    fresh_seeds: Annotated[Int, Field(ge=2, le=100)] = 5
    """Fresh seeds of both arms, which nothing was chosen by."""
    single_runs: Annotated[Int, Field(ge=1, le=100_000)] = 6
    """Tuning runs that a single task is owed, if the cocktails had as many; with fewer there is no
    claim. Seeds, claims.tune_lr and budget.more_epochs make them."""
    tune_lr: Annotated[tuple[Annotated[Float, Field(gt=0, le=1)], ...], Field(max_length=100)] = ()
    """Learning rates that single tasks are tuned with, beside train.lr."""

    @field_validator("tune_lr", "targets")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names the same thing twice")
        return value


class LongContext(Frozen):
    """What is done with pages of more words than a task's prompt shall show."""

    policy: Literal["error", "drop", "evidence-first", "truncate-middle"] = "error"
    """Refuse them; drop and count the record; show what shares the rarest words with the question
    first and cut; or leave the middle out."""
    words: Count | None = None
    """The most words, parted by white space, that a page is shown with; null is any number."""


class Flaws(Frozen):
    """Mistakes of published studies, each off by default: to see what it changes, switch it on."""

    packing_leaks: bool = False
    """Rows are packed into sequences of train.max_length tokens, and each row attends to those in
    front of it; a step has examples_per_step sequences."""
    label_case: bool = False
    """Training answers are labels in lower case, whatever the prompt asks for."""
    select_on_test: bool = False
    """What is chosen, such as the best cocktail of a task, is chosen on the test split."""


class Study(Frozen):
    """A study file: base models, tasks to be good at, ingredients to train on."""

    name: Name
    """Name of the study's folder of results: small letters, digits, "-" and "_"."""
    model: Annotated[Text, Field(max_length=400)]
    """Base model: a name of the catalogue, a hub id, or a folder as seen from the study file. A
    list is a study for each, with a folder of results for each."""
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
    contexts: dict[Name, LongContext] = Field(default_factory=dict)
    """Task with long pages, such as finqa → another policy for them than its file has."""
    flaws: Flaws = Flaws()
    """Mistakes of published studies to switch on."""
    api_models: ApiEntries = ()
    """Models behind OpenAI-compatible APIs that answer the same items: names of presets, such as
    gpt-4o, or mappings."""
    api: ApiSpec = ApiSpec()
    """How models behind APIs are asked, and what they may cost."""
    judged: tuple[Name, ...] = ()
    """Datasets of free answers that no parser scores, such as financebench: every system answers
    their test splits in free text, and `mixtune judge --split test` scores them."""
    probes: tuple[Name, ...] = ()
    """Tasks that nothing is chosen for, such as gsm8k: `mixtune probe` says what was lost there."""
    groups: dict[Name, tuple[Name, ...]] = Field(default_factory=dict)
    """Ingredients that belong together, such as general: [alpaca, lima]; questions are asked of the
    whole group. Series of levels are groups too."""
    general: Name | None = None
    """Dataset whose held-out answers `mixtune probe` reads as general text, such as alpaca."""
    gate: Gate = Gate()
    """What `mixtune probe` must find."""
    claims: Claims = Claims()
    """What a gain is held to before it is called one."""

    @field_validator("design", mode="before")
    @classmethod
    def _design(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        return {"families": value} if isinstance(value, list | tuple) else value

    @field_validator("tasks", "seeds", "baselines", "probes", "judged")
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
    def _listed_known(self) -> "Study":
        named = [(f"explicit cocktail {list(c)}", c) for c in self.design.explicit]
        named += [(f"levels {one.name}", (*one.add, *one.to)) for one in self.design.levels]
        named += [(f"group {group}", listed) for group, listed in self.groups.items()]
        for what, cocktail in named:
            if not cocktail or len(set(cocktail)) != len(cocktail):
                raise ValueError(f"{what} is empty or repeats a name")
            for name in cocktail:
                if name not in self.ingredients:
                    hint = did_you_mean(name, self.ingredients)
                    raise ValueError(f"{what} names {name!r}, no ingredient; {hint}")
        return self

    @model_validator(mode="after")
    def _shares_as_the_budget_allows(self) -> "Study":
        shared = sorted(name for name, one in self.ingredients.items() if one.share is not None)
        if self.design.levels and self.unit != "rows":
            raise ValueError(
                "contradictory settings: levels are parts of the examples of a step, and shares "
                f"are measured in {self.unit}; set their unit to rows"
            )
        if self.budget.kind != "as-published":
            return self
        if shared or self.design.levels:
            raise ValueError(
                "contradictory settings: as-published trains on all rows of a cocktail, so there "
                f"are no shares ({', '.join(shared) or 'levels'}); give rows, or choose kind "
                "equal-steps"
            )
        if self.train.warmup or self.train.warmup_steps is not None:
            raise ValueError(
                "contradictory settings: as-published sets the warm-up (none in 3 epochs, 10 steps "
                "in 2); set train.warmup to 0 and remove train.warmup_steps"
            )
        return self

    @model_validator(mode="after")
    def _adapters_to_merge(self) -> "Study":
        if self.budget.merged and self.train.method == "full":
            raise ValueError(
                "contradictory settings: budget.merged adds adapters up, and train.method full "
                "leaves none; set one of them otherwise"
            )
        return self

    @model_validator(mode="after")
    def _other_rates(self) -> "Study":
        if self.train.lr in self.claims.tune_lr:
            raise ValueError(
                f"contradictory settings: claims.tune_lr names {self.train.lr:g}, train.lr itself; "
                "single tasks are trained with it in any case, so remove it from claims.tune_lr"
            )
        return self

    @model_validator(mode="after")
    def _api_names(self) -> "Study":
        refuse_taken(self.api_models, self.ingredients)
        return self

    @property
    def grouped(self) -> dict[str, tuple[str, ...]]:
        """Groups of ingredients, those of the levels among them."""
        return {level.name: level.add for level in self.design.levels} | self.groups

    @property
    def unit(self) -> UnitName:
        """What the study's shares are measured in; rows where there are none."""
        return next((one.unit for one in self.ingredients.values() if one.unit), "rows")


def exact(number: float) -> Fraction:
    """A number as it was written: 0.1 is one tenth."""
    return Fraction(repr(number))


FLAWS = {
    "packing_leaks": "rows packed together see one another",
    "label_case": "trained on labels in lower case",
    "select_on_test": "what is best is chosen on test",
}
"""Flaw → what it means in results."""


def prompt_note(study: Study, system: str) -> str:
    """What stands before a question to an API model, in words; "" for any other system."""
    said = []
    for entry in study.api_models:
        if entry.name == system and entry.shots:
            said.append(f"{entry.shots} train rows shown before each question")
        if entry.name == system and len(entry.variants) > 1:
            said.append(f"instruction chosen from {len(entry.variants)} by its score on validation")
    return "; ".join(said)


def training_note(train: TrainSpec, flaws: Flaws) -> str:
    """What is unusual in how adapters were trained; "" where nothing is but numbers."""
    said = [f"{what} (flaws.{name})" for name, what in FLAWS.items() if getattr(flaws, name)]
    if train.method == "full":
        said.append("all weights trained, no adapters (train.method full)")
    if train.top_layers is not None:
        layers = "layer" if train.top_layers == 1 else f"{train.top_layers} layers"
        said.append(f"adapters in the top {layers} only (train.top_layers)")
    if train.loss != "example-mean":
        said.append(f"long answers weigh more than short ones (train.loss {train.loss})")
    return "; ".join(said)
