"""Study → cells → runs with ids, rows and tokens: what will be done, by name, before it is done.

Each id is a hash of what can change that result and of nothing else: `train_id` (base weights, rows
in order, budget, settings, seed) → `answer_id` (system, prompts, items, decoding, number format).
Device, workers, paths and the study's name are in none of them.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.identity import make_id
from mixtune.models.files import BaseModelFiles, load_tokens
from mixtune.planning.api import Remote
from mixtune.planning.cells import Cell, cells, claimed_cells
from mixtune.planning.corpus import Leaks, answered, gold_answers, leaking_packs, load_corpus
from mixtune.planning.mixing import (
    Mixture,
    Sizes,
    longest_answer,
    longest_reasoning,
    mix,
    mix_rows,
    portions,
)
from mixtune.planning.runs import (
    AnswerPlan,
    Plan,
    RunPlan,
    SystemKind,
    answerable,
    canonical,
    merged_runs,
)
from mixtune.records import Example, Form, Query, Selection, Split, TrainExample
from mixtune.study.spec import RunLength, Study
from mixtune.tasks.examples import fingerprint, query_of
from mixtune.tokens import Row, Tokens, encode_rows

LIMITS = {"max_length", "over_long", "gradient_checkpointing"}
"""Training settings that are in no id: they refuse or drop rows, and the rows are in the id; or
they trade memory for time, and the result is the same."""


class Planner:
    """Resolves a study against its data and base model; also gives each run its token rows."""

    def __init__(
        self,
        study: Study,
        registry: Registry,
        files: BaseModelFiles | None,
        selection: Selection | None = None,
    ) -> None:
        """Reads the data. `files`: None leaves ids open. `selection`: its runs come last."""
        self.study = study = canonical(study, registry)
        self.selection = selection
        self.registry = registry
        self.files = files
        reasoning = study.train.reasoning == "keep"
        self.tokens = load_tokens(files, reasoning) if files else None
        self.sizes = Sizes(self.tokens) if self.tokens else None
        self.corpus = load_corpus(study, registry)
        self.remote = Remote(study, registry, self.corpus)
        self.dropped: dict[str, int] = {}
        self._digests: dict[int, str] = {}
        self._item_facts: dict[tuple[str, Split], tuple[int, str]] = {}
        self._control_items: dict[tuple[str, Split], bool] = {}
        self._limits: dict[str, int] = {}
        self._drop_over_long()

    def plan(self) -> Plan:
        """Every run of the study: seed by seed, baselines and API models first.

        Raises:
            SpecError: more rows asked than an ingredient has, or two cells that are one run.
            DataError: an example longer than `max_length` under `over_long: error`.
        """
        runs = [self.baseline(kind) for kind in self.study.baselines]
        runs += [
            RunPlan(
                system.id,
                "api",
                answers=self.remote.answers(system, self._items_digest),
                label=system.name,
                origin=system.origin,
            )
            for system in self.remote.systems
        ]
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
        study = self.study
        if self._open and study.budget.kind == "equal-exposure":
            equal = study.budget.model_copy(update={"kind": "equal-steps"})
            study = study.model_copy(update={"budget": equal})
        return {cell.name: cell for cell in cells(study, self._available, self._costs)}

    @property
    def _available(self) -> dict[str, int]:
        """Ingredient → rows of its pool."""
        return {name: len(pool) for name, pool in self.corpus.pools.items()}

    @property
    def _open(self) -> bool:
        """True if mixes are not known before there is a tokenizer."""
        return self.tokens is None and self.study.unit != "rows"

    def _seeded(self) -> list[tuple[Cell, int]]:
        """Cell and seed of every run that is trained."""
        own = [(cell, seed) for seed in self.study.seeds for cell in self.cells.values()]
        fresh = self.selection.fresh if self.selection else ()
        return own + [(cell, seed) for seed in fresh for cell in self._claimed.values()]

    @cached_property
    def _claimed(self) -> dict[str, Cell]:
        """Cells of the selection by name: what was chosen, and what it is compared with."""
        if self.selection is None:
            return {}
        return claimed_cells(self.study, self.selection, self.cells)

    def exposure_of(self, cell: str, target: str) -> int:
        """Examples of a target that a cell sees; 0 where it is not among its ingredients."""
        amounts, course = self.cells[cell].amounts, self.cells[cell].course
        counts = portions(self._available, amounts, course.examples, self._costs)
        return counts[target].rows if target in counts else 0

    def training_rows(self, runs: Sequence[RunPlan]) -> dict[str, list[Row]]:
        """Token rows of each run in training order, by system; an example's row is one object.

        Raises:
            SpecError: the base model is not resolved (here and below).
            DataError: the data is no longer what the runs were planned with.
        """
        encoded: dict[tuple[str, int], Row] = {}
        rows_of = {}
        for run in runs:
            assert run.seed is not None
            cell = (self._claimed | self.cells)[run.name]
            mixture = self._mixture(cell, run.seed)
            keys = [(name, id(example)) for name, example in mixture.order]
            pairs = zip(keys, mixture.order, strict=True)
            new = {key: each for key, each in pairs if key not in encoded}
            encoded |= zip(new, self._encode(new.values()), strict=True)
            rows, course = self._packed([encoded[key] for key in keys], cell.course)
            if self._train_id(run.seed, mixture, course) != run.system:
                raise _moved(run.name)
            rows_of[run.system] = rows
        return rows_of

    def gold_rows(self, answer: AnswerPlan) -> list[Row]:
        """Token rows of a set of items with their gold answers."""
        # The plan has checked prompts against their own limit; the model's context bounds the rest.
        examples = [TrainExample(answer.task, example) for example in self.items(answer)]
        return self._encode(examples, sys.maxsize)

    def distinct_rows(self) -> list[Row]:
        """Token rows of each example that some run of the study trains on, once."""
        used: dict[int, TrainExample] = {}
        for cell, seed in self._seeded():
            used |= {id(row.example): row for row in self._mixture(cell, seed).order}
        return self._encode(used.values())

    def max_new_tokens(self, task: str) -> int:
        """Tokens, end of turn included, of the longest answer to a task that is not cut off."""
        limit = self.study.evaluate.max_new_tokens
        if limit is not None:
            return limit
        if task not in self._limits:
            gold = gold_answers(self.corpus.datasets[task])
            self._limits[task] = longest_answer(gold, self._resolved()) + self._reasoning_limit
        return self._limits[task]

    @cached_property
    def _reasoning_limit(self) -> int:
        """Tokens that a system may write before its answer: as many as in what it trained on."""
        if not self._resolved().reasoning:
            return 0
        pools = self.corpus.pools.values()
        return longest_reasoning([e for pool in pools for e in pool], self._resolved())

    def items(self, answer: AnswerPlan) -> list[Example]:
        """The examples of one set of answers.

        Raises:
            DataError: the data is no longer what the answers were planned with.
        """
        items = self.corpus.items[answer.task, answer.split]
        if self._items_digest(answer.task, answer.split) != answer.items_digest:
            raise _moved(f"{answer.task}/{answer.split}")
        return items

    def queries(self, answer: AnswerPlan) -> tuple[Query, ...]:
        """The questions of one set of answers, as a model sees them."""
        return tuple(map(query_of, self.items(answer)))

    @cached_property
    def leaks(self) -> Leaks:
        """The result of the gate, and texts that still stand in two splits after it."""
        return Leaks(self.study, self.corpus)

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
            costs[name] = Fraction(sum(row.counted(unit) for row in rows), max(len(rows), 1))
        return costs

    def _resolved(self) -> Tokens:
        if self.tokens is None:
            raise SpecError("this cannot be resolved: the base model's files are not here")
        return self.tokens

    def _encode(self, order: Iterable[TrainExample], limit: int | None = None) -> list[Row]:
        # Over-long examples were dropped from the pools beforehand where the policy says so.
        limit = limit or self.study.train.max_length
        return encode_rows(list(order), self._resolved(), limit, "error").rows

    def _drop_over_long(self) -> None:
        """Take over-long examples out of the pools under `over_long: drop`, and count them."""
        train = self.study.train
        if train.over_long != "drop" or self.sizes is None:
            return
        pools, items = self.corpus.pools, self.corpus.items.items()
        general = [(name, rows) for (name, _), rows in items if name == self.study.general]
        for name, examples in [*pools.items(), *general]:
            sizes = self.sizes.rows([TrainExample(name, example) for example in examples])
            pairs = zip(examples, sizes, strict=True)
            fitting = [example for example, size in pairs if size.length <= train.max_length]
            if examples is pools.get(name):
                self.dropped[name] = len(examples) - len(fitting)
            examples[:] = fitting

    def _packed(self, rows: list[Row], course: RunLength) -> tuple[list[Row], RunLength]:
        """Rows as they are, or behind those that share their pack (`flaws.packing_leaks`)."""
        if not self.study.flaws.packing_leaks:
            return rows, course
        return leaking_packs(rows, course, self.study.train.max_length)

    def _trained(self, cell: Cell, seed: int) -> RunPlan:
        run = RunPlan("", "trained", cell.cocktail, seed, course=cell.course, note=cell.note)
        if self._open:
            return replace(run, answers=self._answers(""))
        mixture, course = self._mixture(cell, seed), cell.course
        limit = self.study.train.max_length
        sizes = self.sizes.rows(mixture.order, limit) if self.sizes else []
        tokens = sum(row.length for row in sizes)
        if self.sizes and self.study.flaws.packing_leaks:
            rows, course = self._packed(self._encode(mixture.order), course)
            tokens = sum(row.length for row in rows)
        system = self._train_id(seed, mixture, course) if self.files else ""
        dropped = self.dropped, self.corpus.leaked_train
        return replace(
            run,
            system=system,
            mix=mix_rows(mixture.counts, sizes, self.study.unit, *dropped),
            answers=self._answers(system),
            tokens=tokens,
            course=course,
        )

    def _train_id(self, seed: int, mixture: Mixture, course: RunLength) -> str:
        assert self.files is not None
        study = self.study
        train = study.train.model_dump(mode="json", exclude=LIMITS, exclude_none=True)
        if study.train.reasoning == "drop":  # it changes rows alone, and these are in the id
            del train["reasoning"]
        if course.warmup_steps is not None:
            train["warmup_steps"] = course.warmup_steps
        if course.lr is not None:
            train["lr"] = course.lr
        # The kind is constant, so that ids stay as they are.
        steps, per_step = course.steps, course.examples_per_step
        budget = {"kind": "equal-steps", "steps": steps, "examples_per_step": per_step}
        if course.examples != steps * per_step:
            budget["examples"] = course.examples
        parts = {
            "model": self.files.digest,
            "rows": [[name, self._digest(example)] for name, example in mixture.order],
            "budget": budget,
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
            own = fingerprint([example])
            # An earlier version read control tokens in prompts as such: other ids, other runs.
            marked = self._spells_control_tokens([example])
            self._digests[id(example)] = f"{own}, control tokens as text" if marked else own
        return self._digests[id(example)]

    def _items_spell_control_tokens(self, task: str, split: Split) -> bool:
        if (task, split) not in self._control_items:
            items = self.corpus.items[task, split]
            self._control_items[task, split] = self._spells_control_tokens(items)
        return self._control_items[task, split]

    def _spells_control_tokens(self, examples: Iterable[Example]) -> bool:
        tokens = self.tokens
        return tokens is not None and any(tokens.has_control_text(e.messages) for e in examples)

    # ---- baselines and answers ------------------------------------------------------------------

    def baseline(self, kind: Literal["majority", "base"]) -> RunPlan:
        """A floor: the commonest label, or the untuned base."""
        system = ""
        if kind == "majority":
            # One system for all tasks; what it says on a task depends on that task's train split,
            # which is in its answer ids, so that an added task changes none of them.
            system = make_id("majority", {})
        elif self.files:
            system = make_id("base", {"model": self.files.digest})
        return self.external(kind, system)

    def external(self, kind: SystemKind, system: str, label: str = "", origin: str = "") -> RunPlan:
        """A system that is not trained here, to be scored on this study's items."""
        answers = self._answers(system, kind)
        return RunPlan(system, kind, answers=answers, label=label, origin=origin)

    def _answers(self, system: str, kind: SystemKind = "trained") -> tuple[AnswerPlan, ...]:
        return self.answers_to(answered(self.study), system, kind)

    def answers_to(
        self, items: Iterable[tuple[str, Split]], system: str, kind: SystemKind
    ) -> tuple[AnswerPlan, ...]:
        """A system's sets of answers to items of the corpus: each task and split, in its forms."""
        evaluate = self.study.evaluate
        answers = []
        for name, split in items:
            task = self.registry.get(name)
            forms = (*evaluate.forms, *self.remote.floors(kind))
            for form in ("strict",) if task.judged else forms:
                if answerable(task, form, kind):
                    answers.append(self._answer(system, kind, name, split, form))
        return tuple(answers)

    def _answer(
        self, system: str, kind: SystemKind, task: str, split: Split, form: Form
    ) -> AnswerPlan:
        local = kind != "majority"
        generated = local and form == "strict" and self.tokens is not None
        longest = self.max_new_tokens(task) if generated else 0
        tokens, items_digest = self.item_facts(task, split)
        parts = {
            "system": system,
            "task": task,
            "split": split,
            "form": form,
            "prompt": self.registry.get(task).prompt_version,
            "items": items_digest,
            "decoding": {
                "batch_size": self.study.evaluate.batch_size if local else None,
                "max_new_tokens": longest or None,
            },
            "compute": self.study.train.compute if local else None,
            "known": None if local else self._known(task),
        }
        if local and self.study.train.reasoning == "keep":
            parts["reasoning"] = "before the answer"
        if local and self._items_spell_control_tokens(task, split):
            parts["control tokens"] = "as text"
        return AnswerPlan(
            make_id("answer", parts) if system else "",
            task,
            split,
            form,
            len(self.corpus.items[task, split]),
            tokens if local else 0,
            items_digest,
            longest,
        )

    def _known(self, task: str) -> list[list[str]]:
        """Stratum, target and cue of every train row: all that the majority floor depends on."""
        known = self.corpus.known[task]
        # A cue only where there is one: floors from before there were cues keep their ids.
        return [[row.stratum, row.target, *([row.cue] if row.cue else [])] for row in known]

    def _items_digest(self, task: str, split: Split) -> str:
        return self.item_facts(task, split)[1]

    def item_facts(self, task: str, split: Split) -> tuple[int, str]:
        """Prompt tokens and fingerprint of the items of a task and split; computed once.

        Raises:
            DataError: a prompt is too long; it is refused before anything runs.
        """
        if (task, split) not in self._item_facts:
            items, limit = self.corpus.items[task, split], self.study.evaluate.max_prompt_length
            lengths = self.sizes.prompts(items) if self.sizes else []
            for example, length in zip(items, lengths, strict=False):
                if length > limit:
                    raise DataError(
                        "an evaluation prompt is too long",
                        where=f"{example.task}, {example.split} {example.id}",
                        found=f"{length} tokens",
                        wanted=f"at most {limit} (evaluate.max_prompt_length)",
                        remedy="raise evaluate.max_prompt_length",
                    )
            self._item_facts[task, split] = (sum(lengths), fingerprint(items))
        return self._item_facts[task, split]


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
