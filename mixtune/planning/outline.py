"""An estimate of a study's size and cost before its data and weights are on this machine.

Rows are those declared by the study, or read where the data is available; tokens come from the
model's own tokenizer if it is here, else from another one, else from rows.yaml. Each number names
its source. There are no ids: an outline cannot be run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, MixtuneError, SpecError
from mixtune.models.catalog import catalogue, locate
from mixtune.models.files import BaseModelFiles
from mixtune.models.memory import shape_of
from mixtune.planning.cells import Cell, cells
from mixtune.planning.corpus import answered
from mixtune.planning.mixing import portions
from mixtune.planning.runs import canonical
from mixtune.records import Example
from mixtune.study.fields import Frozen
from mixtune.study.spec import Study
from mixtune.study.yaml import read_yaml
from mixtune.tokens import Tokens

SAMPLE = 100
"""Rows per dataset whose tokens are counted."""
FORWARD, BACKWARD = 2, 2
"""FLOPs per weight and token: forward, and backward to the inputs. Full fine-tuning needs as much
again for the weight gradients."""
STATE_BYTES = 16
"""Bytes per trained weight: weight, gradient and two moments in float32."""
TERAFLOPS, DOLLARS = 400.0, 2.5
"""Default rates: about 40 % of an H100's data sheet in bfloat16, and a price per hour."""


class DatasetFacts(Frozen):
    """Sizes of a dataset and mean tokens of its rows, known without reading it (rows.yaml)."""

    train: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 0
    prompt: Annotated[float, Field(gt=0)]
    answer: Annotated[float, Field(gt=0)]
    origin: Annotated[Literal["measured", "assumed"], Field(alias="from")]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rates:
    """Assumptions of the cost estimate; `teraflops` as achieved, not as in the data sheet."""

    teraflops: float
    dollars_per_hour: float

    @property
    def about(self) -> str:
        """The rates in words."""
        return (
            f"at {self.teraflops:g} TFLOP/s and {self.dollars_per_hour:g} USD an hour a GPU "
            "(stated, not measured)"
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows and mean tokens of one dataset, with their sources."""

    name: str
    rows: int
    items: int
    prompt: float
    answer: float
    rows_from: str
    tokens_from: str


@dataclass(frozen=True, slots=True)
class OutlineRow:
    """Size and estimated cost of one cell with one seed on one model.

    `rows`: distinct rows at most; `examples`: with repeats. Tokens include shared headers each
    time. `disk_gb`: of full weights; None for adapters.
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
    """All rows of a study on one or several models, its datasets and the rates."""

    name: str
    rows: tuple[OutlineRow, ...]
    datasets: Mapping[str, tuple[Dataset, ...]]
    rates: Rates


def outline(studies: Sequence[Study], registry: Registry, rates: Rates) -> Outline:
    """Outline one study on each of its models.

    Raises:
        SpecError: an unknown name, or a dataset without declared rows that is neither on this
            machine nor in rows.yaml.
    """
    rows: list[OutlineRow] = []
    datasets = {}
    for spec in studies:
        study = canonical(spec, registry)
        tokenizer = _tokenizer(study.model, study.train.reasoning == "keep")
        names = dict.fromkeys([*study.ingredients, *study.tasks, *study.judged])
        by_name = {name: _dataset(name, study, registry, tokenizer) for name in names}
        datasets[study.model] = tuple(by_name.values())
        planned = cells(study, {name: by_name[name].rows for name in study.ingredients})
        rows += [
            _row(study, cell, seed, by_name, rates) for seed in study.seeds for cell in planned
        ]
    return Outline(studies[0].name, tuple(rows), datasets, rates)


def _row(
    study: Study, cell: Cell, seed: int, datasets: Mapping[str, Dataset], rates: Rates
) -> OutlineRow:
    available = {name: datasets[name].rows for name in cell.cocktail}
    counts = portions(available, cell.amounts, cell.course.examples)
    training = sum(
        count.rows * (datasets[name].prompt + datasets[name].answer)
        for name, count in counts.items()
    )
    evaluated = [datasets[name] for name in (*study.tasks, *study.judged)]
    scoring = sum(dataset.items * dataset.prompt for dataset in evaluated)
    weights = parameters(study.model)
    full = study.train.method == "full"
    flops = FORWARD + BACKWARD + (BACKWARD if full else 0)
    hours = weights * (training * flops + scoring * FORWARD) / (rates.teraflops * 1e12) / 3600
    number_bytes = 2 if study.train.compute == "bfloat16" else 4
    return OutlineRow(
        model=study.model,
        cell=cell.name,
        seed=seed,
        ingredients=cell.cocktail,
        rows=sum(count.distinct for count in counts.values()),
        examples=cell.course.examples,
        steps=cell.course.steps,
        training_tokens=round(training),
        scoring_tokens=round(scoring),
        gpu_hours=hours,
        dollars=hours * rates.dollars_per_hour,
        memory_gb=weights * (STATE_BYTES if full else number_bytes) / 1e9,
        disk_gb=weights * number_bytes / 1e9 if full else None,
    )


# ---- datasets ------------------------------------------------------------------------------------


class _Tokenizer(NamedTuple):
    """A tokenizer, or None for an estimate from characters; `source` in words."""

    tokens: Tokens | None
    source: str


def _dataset(name: str, study: Study, registry: Registry, tokenizer: _Tokenizer) -> Dataset:
    evaluate = study.evaluate
    try:
        reason = registry.dataset(name, evaluate.carve).unavailable
    except DataError as error:  # it is in a data folder, and none is given
        reason = str(error)
    if reason is None:
        return _read(name, study, registry, tokenizer)
    declared = study.ingredients[name].rows if name in study.ingredients else None
    facts = dataset_facts().get(name)
    if facts is None:
        raise SpecError(
            f"the size of {name!r} is not known before it is read",
            found=reason,
            remedy=f"give its data (--data-dir), or let mixtune data show {name} fetch it first",
        )
    note = f", {facts.note}" if facts.note else ""
    items = min(facts.validation, evaluate.validation_items or facts.validation)
    items += min(facts.test, evaluate.test_items or facts.test)
    return Dataset(
        name,
        rows=declared or facts.train,
        items=items,
        prompt=facts.prompt,
        answer=facts.answer,
        rows_from="declared by the study" if declared else facts.origin,
        tokens_from=f"{facts.origin} with another tokenizer{note}",
    )


def _read(name: str, study: Study, registry: Registry, tokenizer: _Tokenizer) -> Dataset:
    """A dataset that can be read; rows are counted before the leakage gate."""
    dataset = registry.dataset(name, study.evaluate.carve)
    train = dataset.examples("train") if name in study.ingredients else []
    items, sample = 0, list(train)
    limits = {"validation": study.evaluate.validation_items, "test": study.evaluate.test_items}
    for task, split in answered(study):
        if task == name and split in dataset.splits:
            examples = dataset.examples(split)
            items += min(len(examples), limits[split] or len(examples))
            sample = sample or examples
    prompt, answer, tokens_from = _lengths(sample, tokenizer)
    return Dataset(name, len(train), items, prompt, answer, "read", tokens_from)


def _lengths(rows: Sequence[Example], tokenizer: _Tokenizer) -> tuple[float, float, str]:
    """Mean tokens of prompt and answer over a sample of rows."""
    tokens, source = tokenizer
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if tokens is None:
        prompt = fmean(sum(len(m.content) for m in row.messages) / 4 for row in sample)
        return prompt, fmean(len(row.target) / 4 + 1 for row in sample), source
    prompt = fmean(len(tokens.prompt_ids(row.messages)) for row in sample)
    answer = fmean(len(tokens.answer_ids(row.target, row.reasoning)) for row in sample)
    return prompt, answer, source


def _tokenizer(model: str, reasoning: bool) -> _Tokenizer:
    """The model's own tokenizer, else another one on this machine, else none."""
    for name in (model, *catalogue()):
        files = _local_files(name)
        if files is not None:
            own = "the model's own tokenizer" if name == model else f"estimated with {name}'s"
            return _Tokenizer(Tokens.load(files.folder, reasoning), own)
    return _Tokenizer(None, "estimated, four characters a token")


@cache
def _local_files(name: str) -> BaseModelFiles | None:
    try:
        located = locate(name, download=False)
    except MixtuneError:
        return None
    return located if isinstance(located, BaseModelFiles) else None


def parameters(model: str) -> int:
    """Number of parameters of a base model.

    Raises:
        SpecError: the model is neither in the catalogue nor on this machine.
    """
    entry = catalogue().get(model)
    if entry is not None:
        return entry.parameters
    files = _local_files(model)
    if files is None:
        raise SpecError(
            "the size of the base model is not known before it is on this machine",
            found=model,
            wanted=f"one of {', '.join(catalogue())}, or a model on this machine",
            remedy=f"mixtune models --prepare {model}",
        )
    return shape_of(files.folder).parameters


@cache
def dataset_facts() -> dict[str, DatasetFacts]:
    """Dataset → sizes and lengths, as they ship with the package."""
    text = (resources.files("mixtune.planning") / "rows.yaml").read_text(encoding="utf-8")
    raw = read_yaml(text, "mixtune/planning/rows.yaml", DataError).value or {}
    return {name: DatasetFacts.model_validate(facts) for name, facts in raw.items()}
