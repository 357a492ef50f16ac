"""Study → cells → runs with ids, rows and tokens: what will be done, by name, before it is done.

Three chained ids, each a hash of what can change that result and of nothing else: `train_id`
(base weights, rows in order, budget, settings, seed) → `answer_id` (system, prompts,
items, decoding, number format) → `score_id` (parser, metrics: derive.py). Device, workers, paths
and the study's name are in none of them.

Knows: ids, mixes, token counts. Does not know: torch, GPUs, where results are kept.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple

from mixtune.api.entries import ApiSystem
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.identity import digest, make_id
from mixtune.models.files import BaseModelFiles
from mixtune.planning.api import Remote
from mixtune.planning.cells import Cell, budget_parts, cells, claimed_cells
from mixtune.planning.corpus import (
    Corpus,
    answered,
    data_rows,
    gold_answers,
    leaking_packs,
    load_corpus,
    lower_labels,
)
from mixtune.planning.leaks import Leaks
from mixtune.planning.mixing import Dropped, Mixture, mix, mix_rows, portions, size_of
from mixtune.planning.names import SystemKind, answerable, canonical
from mixtune.planning.runs import AnswerPlan, Plan, RunPlan
from mixtune.planning.sizes import RowSize, Sizes, longest_answer
from mixtune.planning.systems import merged_runs
from mixtune.records import Example, Form, Query, Selection, Split, TrainExample
from mixtune.study.spec import RunLength, Study
from mixtune.tasks.task import Task, fingerprint, query_of
from mixtune.tokens import Row, Tokens, encode_rows

LIMITS = {"max_length", "over_long", "gradient_checkpointing"}
"""Training settings that are in no id: they refuse or drop rows, and the rows are in the id; or
they trade memory for time, and the result is the same."""


class _AnswerSet(NamedTuple):
    """Identity of a set of answers of any system, with its length limit in tokens."""

    task: Task
    split: Split
    form: Form
    max_new_tokens: int


class Planner:
    """Resolves a study against its data and base model; also gives each run its token rows."""

    def __init__(
        self,
        study: Study,
        registry: Registry,
        files: BaseModelFiles | None,
        selection: Selection | None = None,
    ) -> None:
        """Reads the data.

        Args:
            study: what was asked.
            registry: where its tasks come from.
            files: the base model's; None leaves ids open.
            selection: what was chosen for claims: its runs are planned too, behind the study's own.
        """
        self.study = study = canonical(study, registry)
        self.selection = selection
        self.registry = registry
        self.files = files
        self.tokens = Tokens.load(files.folder) if files else None
        self.sizes = Sizes(self.tokens) if self.tokens else None
        self.corpus: Corpus = load_corpus(study, registry)
        if study.flaws.label_case:
            lower_labels(self.corpus.pools)
        self.remote = Remote(study, registry, self.corpus)
        self.dropped: dict[str, int] = {}
        self._digests: dict[int, str] = {}
        self._item_facts: dict[tuple[str, Split], tuple[int, str]] = {}
        self._limits: dict[str, int] = {}
        self._drop_over_long()

    def plan(self) -> Plan:
        """Every run of the study: seed by seed, baselines and API models first.

        Raises:
            SpecError: more rows asked than an ingredient has, or two cells that are one run.
            DataError: an example longer than `max_length` under `over_long: error`.
        """
        runs = [self.baseline(kind) for kind in self.study.baselines]
        runs += [self._api(system) for system in self.remote.systems]
        runs += [self._trained(cell, seed) for cell, seed in self._seeded()]
        if self.study.budget.merged:
            runs += merged_runs(runs, lambda system: self._answers(system, "merged"))
        _refuse_twins(runs)
        return Plan(self.study, self.files, tuple(runs))

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every cell by its name.

        Where shares are of tokens and there is no tokenizer yet, controls that follow from what a
        cocktail gets are open, and not among them.
        """
        available = {name: len(pool) for name, pool in self.corpus.pools.items()}
        study = self.study
        if self._open and study.budget.kind == "equal-exposure":
            equal = study.budget.model_copy(update={"kind": "equal-steps"})
            study = study.model_copy(update={"budget": equal})
        return {cell.name: cell for cell in cells(study, available, self._costs)}

    @property
    def _open(self) -> bool:
        """True if mixes are not known before there is a tokenizer."""
        return self.tokens is None and self.study.unit != "rows"

    def _seeded(self) -> list[tuple[Cell, int]]:
        """Cell and seed of every run that is trained."""
        own = [(cell, seed) for seed in self.study.seeds for cell in self.cells.values()]
        fresh = self.selection.fresh if self.selection else ()
        return own + [(cell, seed) for seed in fresh for cell in self.claimed.values()]

    @cached_property
    def claimed(self) -> dict[str, Cell]:
        """Cells of the selection by name: what was chosen, and what it is held against."""
        if self.selection is None:
            return {}
        return claimed_cells(self.study, self.selection, self.cells)

    def exposure_of(self, cell: str, target: str) -> int:
        """Examples of a target that a cell sees; 0 where it is not among its ingredients."""
        available = {name: len(pool) for name, pool in self.corpus.pools.items()}
        planned = self.cells[cell]
        counts = portions(available, planned.amounts, planned.course.examples, self._costs)
        return counts[target].rows if target in counts else 0

    def training_rows(self, run: RunPlan) -> list[Row]:
        """Token rows of a run, in training order.

        Raises:
            SpecError: the base model is not resolved.
            DataError: the data is no longer what the run was planned with.
        """
        return self.bank_rows([run])[run.system]

    def bank_rows(self, runs: Sequence[RunPlan]) -> dict[str, list[Row]]:
        """Token rows of each run in training order, by system; an example's row is one object.

        Raises:
            SpecError, DataError: as `training_rows`.
        """
        encoded: dict[tuple[str, int], Row] = {}
        return {run.system: self._run_rows(run, encoded) for run in runs}

    def _run_rows(self, run: RunPlan, encoded: dict[tuple[str, int], Row]) -> list[Row]:
        """`encoded`: rows by ingredient and identity of the example; it grows."""
        if self.tokens is None or run.seed is None:
            raise _unresolved()
        cell = {**self.claimed, **self.cells}[run.name]
        mixture = self._mixture(cell, run.seed)
        keys = [(name, id(example)) for name, example in mixture.order]
        new = {
            key: each for key, each in zip(keys, mixture.order, strict=True) if key not in encoded
        }
        encoded |= zip(new, self._encode(list(new.values())), strict=True)
        rows, course = self._packed([encoded[key] for key in keys], cell.course)
        if self._train_id(run.seed, mixture, course) != run.system:
            raise _moved(run.name)
        return rows

    def gold_rows(self, answer: AnswerPlan) -> list[Row]:
        """Token rows of a set of items with their gold answers.

        Raises:
            SpecError: the base model is not resolved.
            DataError: the data is no longer what the answers were planned with.
        """
        if self.tokens is None:
            raise _unresolved()
        examples = [TrainExample(answer.task, example) for example in self.items(answer)]
        # The plan has checked prompts against their own limit; the model's context bounds the rest.
        return encode_rows(examples, self.tokens, sys.maxsize, "error").rows

    def distinct_rows(self) -> list[Row]:
        """Token rows of each example that some run of the study trains on, once.

        Raises:
            SpecError: the base model is not resolved.
        """
        if self.tokens is None:
            raise _unresolved()
        used: dict[int, TrainExample] = {}
        for cell, seed in self._seeded():
            used |= {id(row.example): row for row in self._mixture(cell, seed).order}
        return self._encode(list(used.values()))

    def max_new_tokens(self, task: str) -> int:
        """Tokens, end of turn included, of the longest answer to a task that is not cut off.

        Raises:
            SpecError: it follows from gold answers, and the base model is not resolved.
        """
        limit = self.study.evaluate.max_new_tokens
        if limit is not None:
            return limit
        if self.tokens is None:
            raise _unresolved()
        if task not in self._limits:
            gold = gold_answers(self.corpus.datasets[task])
            self._limits[task] = longest_answer(gold, self.tokens)
        return self._limits[task]

    def items(self, answer: AnswerPlan) -> list[Example]:
        """The examples of one set of answers.

        Raises:
            DataError: the data is no longer what the answers were planned with.
        """
        items = self.corpus.items[answer.task, answer.split]
        if self.item_facts(answer.task, answer.split)[1] != answer.items_digest:
            raise _moved(f"{answer.task}/{answer.split}")
        return items

    def queries(self, answer: AnswerPlan) -> tuple[Query, ...]:
        """The questions of one set of answers, as a model sees them.

        Raises:
            DataError: as `items`.
        """
        return tuple(map(query_of, self.items(answer)))

    def prompt_hash(self, query: Query) -> str:
        """Names the prompt that a query is put as; of its messages where there is no tokenizer."""
        if self.tokens is None:
            return digest([[message.role, message.content] for message in query.messages])
        return self.tokens.prompt_hash(query.messages)

    # ---- training -----------------------------------------------------------------------------

    def _mixture(self, cell: Cell, seed: int) -> Mixture:
        try:
            return mix(self.corpus.pools, cell.amounts, cell.course.examples, seed, self._costs)
        except SpecError as error:
            raise SpecError(str(error), where=f"cocktail {cell.name}") from error

    @cached_property
    def _costs(self) -> dict[str, Fraction]:
        """Tokens of an example of each ingredient, as shares count them; {} where rows are counted.

        The mean is over all rows that are left, not over those that a seed draws, so that every
        seed gets the same mix. Over-long rows count too: whether one may be drawn is checked when
        it is.
        """
        unit = self.study.unit
        if unit == "rows" or self.sizes is None:
            return {}
        costs = {}
        for name, pool in self.corpus.pools.items():
            rows = self.sizes.rows([TrainExample(name, example) for example in pool])
            costs[name] = Fraction(sum(size_of(row, unit) for row in rows), max(len(rows), 1))
        return costs

    def _encode(self, order: Sequence[TrainExample]) -> list[Row]:
        assert self.tokens is not None
        # Over-long examples were dropped from the pools beforehand where the policy says so.
        return encode_rows(order, self.tokens, self.study.train.max_length, "error").rows

    def _drop_over_long(self) -> None:
        """Take over-long examples out of the pools under `over_long: drop`, and count them."""
        train = self.study.train
        if train.over_long != "drop" or self.tokens is None:
            return
        for name, pool in self.corpus.pools.items():
            before = len(pool)
            pool[:] = self._fitting(name, pool)
            self.dropped[name] = before - len(pool)
        for (name, _), items in self.corpus.items.items():
            if name == self.study.general:
                items[:] = self._fitting(name, items)

    def _fitting(self, name: str, pool: Sequence[Example]) -> list[Example]:
        """The examples that are not over-long."""
        assert self.sizes is not None
        sizes = self.sizes.rows([TrainExample(name, example) for example in pool])
        limit = self.study.train.max_length
        return [e for e, size in zip(pool, sizes, strict=True) if size.length <= limit]

    def _sized(
        self, order: Sequence[TrainExample], course: RunLength
    ) -> tuple[list[RowSize], int, RunLength]:
        """Sizes of a run's rows, all the tokens it trains on, and its steps; packs as they are."""
        if self.sizes is None:
            return [], 0, course
        plain = self.sizes.rows(order, self.study.train.max_length)
        if not self.study.flaws.packing_leaks:
            return plain, sum(row.length for row in plain), course
        rows, course = self._packed(self._encode(order), course)
        return plain, sum(row.length for row in rows), course

    def _packed(self, rows: list[Row], course: RunLength) -> tuple[list[Row], RunLength]:
        """Rows as they are, or behind those that share their pack (`flaws.packing_leaks`)."""
        if not self.study.flaws.packing_leaks:
            return rows, course
        return leaking_packs(rows, course, self.study.train.max_length)

    def _trained(self, cell: Cell, seed: int) -> RunPlan:
        if self._open:
            answers = self._answers("")
            return RunPlan(
                "", "trained", cell.cocktail, seed, (), answers, 0, "", "", cell.course, cell.note
            )
        mixture, unit = self._mixture(cell, seed), self.study.unit
        plain, tokens, course = self._sized(mixture.order, cell.course)
        system = self._train_id(seed, mixture, course) if self.files else ""
        return RunPlan(
            system=system,
            kind="trained",
            cocktail=cell.cocktail,
            seed=seed,
            mix=mix_rows(mixture, plain, unit, Dropped(self.dropped, self.corpus.leaked_train)),
            answers=self._answers(system),
            tokens=tokens,
            course=course,
            note=cell.note,
        )

    def _train_id(self, seed: int, mixture: Mixture, course: RunLength) -> str:
        assert self.files is not None
        study = self.study
        train = study.train.model_dump(mode="json", exclude=LIMITS, exclude_none=True)
        if course.warmup_steps is not None:
            train["warmup_steps"] = course.warmup_steps
        if course.lr is not None:
            train["lr"] = course.lr
        parts = {
            "model": self.files.digest,
            "rows": [[name, self._digest(example)] for name, example in mixture.order],
            "budget": budget_parts(course),
            "train": train,
            "seed": seed,
        }
        # Left out where they say nothing, so that runs from before there were flaws keep their ids.
        if study.flaws.packing_leaks:
            parts["packed"] = [study.train.max_length, *course.sizes]
        return make_id("train", parts)

    def _digest(self, example: Example) -> str:
        """Fingerprint of one example; by identity, since the pools outlive the planner."""
        if id(example) not in self._digests:
            self._digests[id(example)] = fingerprint([example])
        return self._digests[id(example)]

    # ---- baselines and answers ------------------------------------------------------------------

    def baseline(self, kind: Literal["majority", "base"]) -> RunPlan:
        """A floor: the commonest label, or the untuned base."""
        if kind == "majority":
            # One system for all tasks; what it says on a task depends on that task's train split,
            # which is in its answer ids, so that an added task changes none of them.
            system = make_id("majority", {})
        else:
            parts = {"model": self.files.digest} if self.files else {}
            system = make_id("base", parts) if self.files else ""
        return RunPlan(system, kind, (), None, (), self._answers(system, kind), 0)

    def _api(self, system: ApiSystem) -> RunPlan:
        answered_sets = self.remote.answers(system, self.item_facts)
        answers = tuple(AnswerPlan(**asdict(row)) for row in answered_sets)
        return RunPlan(system.id, "api", (), None, (), answers, 0, system.name, system.origin)

    def brought_in(self, kind: SystemKind, system: str, label: str, origin: str) -> RunPlan:
        """A system made elsewhere, to be scored on this study's items."""
        answers = self._answers(system, kind)
        return RunPlan(system, kind, (), None, (), answers, 0, label, origin)

    def _known(self, task: str) -> list[list[str]]:
        """Stratum, target and cue of every train row: all that the majority floor depends on."""
        known = self.corpus.known[task]
        # A cue only where there is one: floors from before there were cues keep their ids.
        return [[row.stratum, row.target, *([row.cue] if row.cue else [])] for row in known]

    def data_rows(self) -> list[dict[str, object]]:
        """Records read and dropped of each dataset, as JSON rows."""
        return data_rows(self.study, self.corpus, self.leaks.runs)

    @cached_property
    def leaks(self) -> Leaks:
        """Texts that still stand in two splits after the gate."""
        return Leaks(self.study, self.corpus)

    def _answers(self, system: str, kind: SystemKind = "trained") -> tuple[AnswerPlan, ...]:
        plans = []
        for name, split in answered(self.study):
            task = self.registry.get(name)
            forms = (*self.study.evaluate.forms, *self.remote.floors(kind))
            for form in ("strict",) if task.judged else forms:
                if answerable(task, form, kind):
                    plans.append(self.answer(system, kind, task, split, form))
        return tuple(plans)

    def answer(
        self, system: str, kind: SystemKind, task: Task, split: Split, form: Form
    ) -> AnswerPlan:
        """One set of answers of a system, on items of the corpus."""
        items = self.corpus.items[task.name, split]
        generated = kind != "majority" and form == "strict" and self.tokens is not None
        longest = self.max_new_tokens(task.name) if generated else 0
        answer_set = _AnswerSet(task, split, form, longest)
        answer_id = self._answer_id(system, kind, answer_set) if system else ""
        tokens, digest_ = self.item_facts(task.name, split)
        tokens = 0 if kind == "majority" else tokens
        return AnswerPlan(answer_id, task.name, split, form, len(items), tokens, digest_, longest)

    def _answer_id(self, system: str, kind: SystemKind, answer_set: _AnswerSet) -> str:
        task, split, form, longest = answer_set
        evaluate, local = self.study.evaluate, kind != "majority"
        decoding = {
            "batch_size": evaluate.batch_size if local else None,
            "max_new_tokens": longest or None,
        }
        return make_id(
            "answer",
            {
                "system": system,
                "task": task.name,
                "split": split,
                "form": form,
                "prompt": task.prompt_version,
                "items": self.item_facts(task.name, split)[1],
                "decoding": decoding,
                "compute": self.study.train.compute if local else None,
                "known": None if local else self._known(task.name),
            },
        )

    def item_facts(self, task: str, split: Split) -> tuple[int, str]:
        """Prompt tokens and fingerprint of the items of a task and split; computed once."""
        if (task, split) not in self._item_facts:
            items = self.corpus.items[task, split]
            tokens = self._prompt_tokens(items) if self.sizes else 0
            self._item_facts[task, split] = (tokens, fingerprint(items))
        return self._item_facts[task, split]

    def _prompt_tokens(self, items: Sequence[Example]) -> int:
        """Tokens of the items' prompts; one that is too long is refused before anything runs."""
        assert self.sizes is not None
        lengths, limit = self.sizes.prompts(items), self.study.evaluate.max_prompt_length
        for example, length in zip(items, lengths, strict=True):
            if length > limit:
                raise DataError(
                    "an evaluation prompt is too long",
                    where=f"{example.task}, {example.split} {example.id}",
                    found=f"{length} tokens",
                    wanted=f"at most {limit} (evaluate.max_prompt_length)",
                    remedy="raise evaluate.max_prompt_length",
                )
        return sum(lengths)


def _refuse_twins(runs: Sequence[RunPlan]) -> None:
    """Two cells that are one run, such as the same dose in two series, would share its files."""
    names: dict[str, str] = {}
    for run in runs:
        if run.system and run.system in names:
            raise SpecError(
                "two cells train on the same rows in the same way",
                found=f"{names[run.system]} and {run.name}",
                remedy="leave one of them out of the design",
            )
        names[run.system] = run.name


def _unresolved() -> SpecError:
    return SpecError("this cannot be resolved: the base model's files are not here")


def _moved(where: str) -> DataError:
    return DataError(
        "the data is no longer what was planned",
        where=where,
        found="other rows, or another order of them, than when the study was planned",
        wanted="files that stay as they are while a study runs, and code that gives the same rows "
        "each time",
        remedy="leave the files alone and type the command again; in a Python task, sort what has "
        "no order of its own, such as a set",
    )
