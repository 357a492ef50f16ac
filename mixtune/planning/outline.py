"""What a study would be and cost before its data and weights are there: an outline of its plan.

Rows are declared by the study, or read where the data is at hand; tokens come from the model's own
tokenizer if it is on this machine, else from another one, else from what is known of each dataset
(rows.yaml). Each part says where it comes from. No ids: an outline cannot be run.

Knows: cells, sizes, tokenizers on this machine, arithmetic of cost. Does not know: torch, GPUs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, MixtuneError, SpecError
from mixtune.models.catalog import catalogue, locate
from mixtune.models.files import BaseModelFiles
from mixtune.models.memory import shape_of
from mixtune.planning.cells import Cell, cells
from mixtune.planning.corpus import answered
from mixtune.planning.mixing import portions
from mixtune.planning.names import canonical
from mixtune.records import Example
from mixtune.study.fields import Frozen
from mixtune.study.spec import Study
from mixtune.study.yaml import read_yaml
from mixtune.tokens import Tokens

SAMPLE = 100
"""Rows of a dataset whose tokens are counted."""
FORWARD, BACKWARD = 2, 2
"""Floating-point operations for each weight and token: forward, and backward to the inputs. All
weights trained take as much again for their gradients."""
STATE_BYTES = 16
"""For each weight that is trained: itself, its gradient and two moments in float32."""
TERAFLOPS, DOLLARS = 400.0, 2.5
"""Rates where none are given: about 40 % of an H100's data sheet in bfloat16, and a price."""


class Known(Frozen):
    """What is known of a dataset without reading it."""

    train: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 0
    prompt: Annotated[float, Field(gt=0)]
    answer: Annotated[float, Field(gt=0)]
    origin: Annotated[Literal["measured", "assumed"], Field(alias="from")]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the estimate of cost rests on; `teraflops` is what a GPU reaches, not its data sheet."""

    teraflops: float
    dollars_per_hour: float

    @property
    def about(self) -> str:
        """For people: a stated rate, no measurement."""
        return (
            f"at {self.teraflops:g} TFLOP/s and {self.dollars_per_hour:g} USD an hour a GPU "
            "(stated, not measured)"
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows and tokens of one dataset, with where they come from."""

    name: str
    rows: int
    items: int
    prompt: float
    answer: float
    rows_from: str
    tokens_from: str


@dataclass(frozen=True, slots=True)
class OutlineRow:
    """One cell with one seed on one model: what it trains on, and what it would cost.

    `rows`: distinct rows at most; `examples`: with repeats. Tokens of prompts and answers, shared
    headers counted each time. `disk_gb`: of its weights; None for adapters of a model whose shapes
    are not here.
    """

    model: str
    cell: str
    seed: int
    ingredients: tuple[str, ...]
    rows: int
    examples: int
    steps: int
    training_tokens: int
    scoring_tokens: int
    gpu_hours: float
    dollars: float
    memory_gb: float | None
    disk_gb: float | None
    resolved: bool = False


@dataclass(frozen=True, slots=True)
class Outline:
    """All rows of a study on one or several models, the datasets they rest on, the rates."""

    name: str
    rows: tuple[OutlineRow, ...]
    datasets: Mapping[str, tuple[Dataset, ...]]
    rates: Rates


def outline(studies: Sequence[Study], registry: Registry, rates: Rates) -> Outline:
    """An outline of one study on each of its models.

    Raises:
        SpecError: a name that does not exist; an amount without rows of a dataset that is neither
            here nor known.
    """
    rows: list[OutlineRow] = []
    datasets = {}
    for given in studies:
        study = canonical(given, registry)
        found = _datasets(study, registry)
        datasets[study.model] = tuple(found.values())
        rows += _rows(study, found, rates)
    return Outline(studies[0].name, tuple(rows), datasets, rates)


def _rows(study: Study, datasets: Mapping[str, Dataset], rates: Rates) -> list[OutlineRow]:
    available = {name: datasets[name].rows for name in study.ingredients}
    made = cells(study, available)
    return [_row(study, cell, seed, datasets, rates) for seed in study.seeds for cell in made]


def _row(
    study: Study, cell: Cell, seed: int, datasets: Mapping[str, Dataset], rates: Rates
) -> OutlineRow:
    parts = _examples(cell, datasets)
    training = sum(n * (datasets[k].prompt + datasets[k].answer) for k, n in parts.items())
    asked = [datasets[name] for name in (*study.tasks, *study.judged)]
    scoring = sum(one.items * one.prompt for one in asked)
    weights = parameters(study.model)
    full = study.train.method == "full"
    each = FORWARD + BACKWARD + (BACKWARD if full else 0)
    hours = weights * (training * each + scoring * FORWARD) / (rates.teraflops * 1e12) / 3600
    number_bytes = 2 if study.train.compute == "bfloat16" else 4
    return OutlineRow(
        model=study.model,
        cell=cell.name,
        seed=seed,
        ingredients=cell.cocktail,
        rows=sum(min(n, _pool(cell, datasets, name)) for name, n in parts.items()),
        examples=cell.course.examples,
        steps=cell.course.steps,
        training_tokens=round(training),
        scoring_tokens=round(scoring),
        gpu_hours=hours,
        dollars=hours * rates.dollars_per_hour,
        memory_gb=weights * (STATE_BYTES if full else number_bytes) / 1e9,
        disk_gb=weights * number_bytes / 1e9 if full else None,
    )


def _pool(cell: Cell, datasets: Mapping[str, Dataset], name: str) -> int:
    return min(cell.amounts[name].rows or datasets[name].rows, datasets[name].rows)


def _examples(cell: Cell, datasets: Mapping[str, Dataset]) -> dict[str, int]:
    """Examples of each ingredient in one run."""
    available = {name: datasets[name].rows for name in cell.cocktail}
    counts = portions(available, cell.amounts, cell.course.examples)
    return {name: count.rows for name, count in counts.items()}


# ---- datasets ------------------------------------------------------------------------------------


def _datasets(study: Study, registry: Registry) -> dict[str, Dataset]:
    tokens, about = _tokenizer(study.model)
    names = dict.fromkeys([*study.ingredients, *study.tasks, *study.judged])
    return {name: _dataset(name, study, registry, (tokens, about)) for name in names}


def _dataset(
    name: str, study: Study, registry: Registry, tokenizer: tuple[Tokens | None, str]
) -> Dataset:
    known, absent = known_rows().get(name), _absent(registry, name, study.evaluate.carve)
    if absent is None:
        return _read(name, study, registry, tokenizer)
    amount = study.ingredients.get(name)
    declared = amount.rows if amount else None
    if known is None:
        raise SpecError(
            f"nothing is known of {name!r} before it is read",
            found=absent,
            remedy=f"give its data (--data-dir), or let mixtune data show {name} fetch it first",
        )
    evaluate = study.evaluate
    note = f", {known.note}" if known.note else ""
    items = sum(
        min(there, asked or there)
        for there, asked in (
            (known.validation, evaluate.validation_items),
            (known.test, evaluate.test_items),
        )
    )
    return Dataset(
        name,
        rows=declared or known.train,
        items=items,
        prompt=known.prompt,
        answer=known.answer,
        rows_from="declared by the study" if declared else known.origin,
        tokens_from=f"{known.origin} with another tokenizer{note}",
    )


def _absent(registry: Registry, name: str, carve: float) -> str | None:
    """Why a dataset cannot be read here; None where it can."""
    try:
        return registry.dataset(name, carve).unavailable
    except DataError as error:  # it lies in a data folder, and none was named
        return str(error)


def _read(
    name: str, study: Study, registry: Registry, tokenizer: tuple[Tokens | None, str]
) -> Dataset:
    """A dataset that is at hand; its rows are counted before the leakage gate."""
    dataset = registry.dataset(name, study.evaluate.carve)
    train = dataset.examples("train") if name in study.ingredients else []
    items = 0
    sample = list(train)
    limits = {
        "validation": study.evaluate.validation_items,
        "test": study.evaluate.test_items,
    }
    for task, split in answered(study):
        if task == name and split in dataset.splits:
            there = dataset.examples(split)
            items += min(len(there), limits[split] or len(there))
            sample = sample or there
    prompt, answer, tokens_from = _lengths(sample, tokenizer)
    return Dataset(name, len(train), items, prompt, answer, "read", tokens_from)


def _lengths(
    rows: Sequence[Example], tokenizer: tuple[Tokens | None, str]
) -> tuple[float, float, str]:
    """Mean tokens of prompt and answer over a sample of rows."""
    tokens, about = tokenizer
    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if tokens is None:
        prompt = fmean(sum(len(m.content) for m in row.messages) / 4 for row in chosen)
        return prompt, fmean(len(row.target) / 4 + 1 for row in chosen), about
    prompt = fmean(len(tokens.prompt_ids(row.messages)) for row in chosen)
    return prompt, fmean(len(tokens.answer_ids(row.target)) for row in chosen), about


def _tokenizer(model: str) -> tuple[Tokens | None, str]:
    """The model's own tokenizer, else another one on this machine, else none; and which."""
    for name in (model, *catalogue()):
        found = _at_hand(name)
        if found is not None:
            own = "the model's own tokenizer" if name == model else f"estimated with {name}'s"
            return Tokens.load(found.folder), own
    return None, "estimated, four characters a token"


@cache
def _at_hand(name: str) -> BaseModelFiles | None:
    try:
        found = locate(name, download=False)
    except MixtuneError:
        return None
    return found if isinstance(found, BaseModelFiles) else None


def parameters(model: str) -> int:
    """How many weights a base model has.

    Raises:
        SpecError: it is neither in the catalogue nor on this machine.
    """
    entry = catalogue().get(model)
    if entry is not None:
        return entry.parameters
    files = _at_hand(model)
    if files is None:
        raise SpecError(
            "how large the base model is is not known before it is here",
            found=model,
            wanted=f"one of {', '.join(catalogue())}, or a model on this machine",
            remedy=f"mixtune models --prepare {model}",
        )
    return shape_of(files.folder).parameters


@cache
def known_rows() -> dict[str, Known]:
    """What ships with the package: dataset → sizes and lengths."""
    text = (resources.files("mixtune.planning") / "rows.yaml").read_text(encoding="utf-8")
    raw = read_yaml(text, "mixtune/planning/rows.yaml", DataError).value or {}
    return {name: Known.model_validate(one) for name, one in raw.items()}
