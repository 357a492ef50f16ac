"""Study → cells → runs with ids, rows and tokens: what will be done, by name, before it is done.

Three chained ids, each a hash of what can change that result and of nothing else: `train_id`
(base weights, rows in order, budget, settings, seed) → `answer_id` (system, prompts,
items, decoding, number format) → `score_id` (parser, metrics: derive.py). Device, workers, paths
and the study's name are in none of them.

Knows: ids, mixes, token counts. Does not know: torch, GPUs, where results are kept.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

from mixtune.design import cocktails
from mixtune.errors import DataError, SpecError
from mixtune.identity import digest, make_id
from mixtune.mixing import Mixture, mix
from mixtune.models.catalog import BaseModelFiles
from mixtune.planning.corpus import EVALUATED, Corpus, data_rows, gold_answers, load_corpus
from mixtune.planning.lengths import longest_answer
from mixtune.planning.names import answerable, canonical
from mixtune.records import Example, MixRow, Query, Split
from mixtune.spec import FormName, Study, UnitName
from mixtune.store import PlanRow, slug
from mixtune.tasks.base import Task, fingerprint, query_of
from mixtune.tasks.registry import Registry
from mixtune.tokens import Row, Tokens, encode_rows

SystemKind = Literal["trained", "base", "majority", "adapter", "model"]
"""The last two were made elsewhere and brought in to be scored."""
LIMITS = {"max_length", "over_long", "gradient_checkpointing"}
"""Training settings that are in no id: they refuse or drop rows, and the rows are in the id; or
they trade memory for time, and the result is the same."""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """One set of answers: a system on the items of one task and split, in one form.

    `likelihood`: gold answers are read to it, and it gives none (planning/probes.py).
    """

    id: str
    task: str
    split: Split
    form: FormName | Literal["likelihood"]
    items: int
    tokens: int
    items_digest: str
    max_new_tokens: int
    """Of a generated answer; 0 where none is generated, or how long one may be is open."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One system: a cell with a seed, or a baseline. `system` is its train_id, "" if unresolved.

    `tokens`: tokens that pass through the model in training, shared headers counted each time.
    `label` and `origin`: what a system that was brought in is called, and where it came from.
    `of` and `strength`: the folder of the run whose adapter answers, where that is not its own, and
    how strongly.
    """

    system: str
    kind: SystemKind
    cocktail: tuple[str, ...]
    seed: int | None
    mix: tuple[MixRow, ...]
    answers: tuple[AnswerPlan, ...]
    tokens: int
    label: str = ""
    origin: str = ""
    of: str = ""
    strength: float = 1.0

    @property
    def name(self) -> str:
        """The cocktail, what the baseline is called, or the label of a system brought in."""
        return "+".join(self.cocktail) if self.kind == "trained" else self.label or self.kind

    @property
    def folder(self) -> str:
        """Its folder below the study's."""
        seed = "" if self.seed is None else f" s{self.seed}"
        return f"cells/{self.system}-{slug(f'{slug(self.name)}{seed}')}"

    def answers_folder(self, answer: AnswerPlan) -> str:
        """Folder of one set of answers."""
        return f"{self.folder}/answers/{answer.id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a study, in the order in which they are done. `files` is None when unresolved."""

    study: Study
    files: BaseModelFiles | None
    runs: tuple[RunPlan, ...]

    def rows(self) -> list[PlanRow]:
        """One row per unit of work: adapters and sets of answers."""
        found = []
        for run in self.runs:
            if run.kind == "trained":
                found.append(plan_row(run, None))
            found += [plan_row(run, answer) for answer in run.answers]
        return found


class Planner:
    """Resolves a study against its data and base model; also gives each run its token rows."""

    def __init__(self, study: Study, registry: Registry, files: BaseModelFiles | None) -> None:
        self.study = study = canonical(study, registry)
        self.registry = registry
        self.files = files
        self.tokens = Tokens.load(files.folder) if files else None
        self.corpus: Corpus = load_corpus(study, registry)
        self.dropped: dict[str, int] = {}
        self._digests: dict[int, str] = {}
        self._item_facts: dict[tuple[str, Split], tuple[int, str]] = {}
        self._limits: dict[str, int] = {}
        self._drop_over_long()

    def plan(self) -> Plan:
        """Every run of the study: seed by seed, baselines first.

        Raises:
            SpecError: more rows asked than an ingredient has.
            DataError: an example longer than `max_length` under `over_long: error`.
        """
        runs = [self.baseline(kind) for kind in self.study.baselines]
        runs += [self._trained(cocktail, seed) for cocktail, seed in self._cells()]
        return Plan(self.study, self.files, tuple(runs))

    def _cells(self) -> list[tuple[tuple[str, ...], int]]:
        """Cocktail and seed of every run that is trained."""
        names = cocktails(self.study.design, sorted(self.study.ingredients))
        return [(name, seed) for seed in self.study.seeds for name in names]

    def training_rows(self, run: RunPlan) -> list[Row]:
        """Token rows of a run, in training order.

        Raises:
            SpecError: the base model is not resolved.
            DataError: the data is no longer what the run was planned with.
        """
        if self.tokens is None or run.seed is None:
            raise _unresolved()
        mixture = self._mixture(run.cocktail, run.seed)
        if self._train_id(run.seed, mixture) != run.system:
            raise _moved(run.name)
        return self._encode(mixture.order)

    def distinct_rows(self) -> list[Row]:
        """Token rows of each example that some run of the study trains on, once.

        Raises:
            SpecError: the base model is not resolved.
        """
        if self.tokens is None:
            raise _unresolved()
        used: dict[int, tuple[str, Example]] = {}
        for cocktail, seed in self._cells():
            order = self._mixture(cocktail, seed).order
            used |= {id(example): (name, example) for name, example in order}
        return self._encode(list(used.values()))

    def max_new_tokens(self, task: str) -> int:
        """Tokens, end of turn included, of the longest answer to a task that is not cut off.

        Raises:
            SpecError: it follows from gold answers, and the base model is not resolved.
        """
        given = self.study.evaluate.max_new_tokens
        if given is not None:
            return given
        if self.tokens is None:
            raise _unresolved()
        if task not in self._limits:
            gold = gold_answers(task, self.registry, self.study.evaluate.carve)
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

    def prompt_hash(self, query: Query) -> str:
        """Names the prompt that a query is put as; of its messages where there is no tokenizer."""
        if self.tokens is None:
            return digest([[message.role, message.content] for message in query.messages])
        return self.tokens.prompt_hash(query.messages)

    # ---- training -----------------------------------------------------------------------------

    def _mixture(self, cocktail: Sequence[str], seed: int) -> Mixture:
        amounts = {name: self.study.ingredients[name] for name in cocktail}
        budget = self.study.budget.examples
        try:
            return mix(self.corpus.pools, amounts, budget, seed, self._costs)
        except SpecError as error:
            raise SpecError(str(error), where=f"cocktail {'+'.join(cocktail)}") from error

    @cached_property
    def _costs(self) -> dict[str, Fraction]:
        """Tokens of an example of each ingredient, as shares count them; {} where rows are counted.

        The mean is over all rows that are left, not over those that a seed draws, so that every
        seed gets the same mix. Over-long rows count too: whether one may be drawn is checked when
        it is.
        """
        unit = self.study.unit
        if unit == "rows" or self.tokens is None:
            return {}
        costs = {}
        for name, pool in self.corpus.pools.items():
            named = [(name, example) for example in pool]
            rows = encode_rows(named, self.tokens, sys.maxsize, "error").rows
            costs[name] = Fraction(sum(_size(row, unit) for row in rows), max(len(rows), 1))
        return costs

    def _encode(self, order: Sequence[tuple[str, Example]]) -> list[Row]:
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
        assert self.tokens is not None
        named = [(name, example) for example in pool]
        encoded = encode_rows(named, self.tokens, self.study.train.max_length, "drop")
        kept = {row.example_id for row in encoded.rows}
        return [example for example in pool if example.id in kept]

    def _trained(self, cocktail: tuple[str, ...], seed: int) -> RunPlan:
        if self.tokens is None and self.study.unit != "rows":
            return RunPlan("", "trained", cocktail, seed, (), self._answers(""), 0)
        mixture = self._mixture(cocktail, seed)
        rows = self._encode(mixture.order) if self.tokens else []
        system = self._train_id(seed, mixture) if self.files else ""
        return RunPlan(
            system=system,
            kind="trained",
            cocktail=cocktail,
            seed=seed,
            mix=self._mix_rows(cocktail, mixture, rows),
            answers=self._answers(system),
            tokens=sum(row.length for row in rows),
        )

    def _train_id(self, seed: int, mixture: Mixture) -> str:
        assert self.files is not None
        study = self.study
        return make_id(
            "train",
            {
                "model": self.files.digest,
                "rows": [[name, self._digest(example)] for name, example in mixture.order],
                "budget": study.budget.model_dump(mode="json"),
                "train": study.train.model_dump(mode="json", exclude=LIMITS, exclude_none=True),
                "seed": seed,
            },
        )

    def _digest(self, example: Example) -> str:
        """Fingerprint of one example; by identity, since the pools outlive the planner."""
        if id(example) not in self._digests:
            self._digests[id(example)] = fingerprint([example])
        return self._digests[id(example)]

    def _mix_rows(
        self, cocktail: Sequence[str], mixture: Mixture, rows: Sequence[Row]
    ) -> tuple[MixRow, ...]:
        """Asked against got of every ingredient of a run."""
        unit, counts = self.study.unit, mixture.counts
        own = {name: [row for row in rows if row.ingredient == name] for name in cocktail}
        got = {
            name: counts[name].got if unit == "rows" else sum(_size(row, unit) for row in own[name])
            for name in cocktail
        }
        return tuple(
            MixRow(
                ingredient=name,
                rows_asked=counts[name].asked,
                rows_available=counts[name].available,
                rows_got=counts[name].got,
                rows_distinct=counts[name].distinct,
                repeats=counts[name].got / counts[name].distinct,
                supervised_tokens=sum(len(row.answer) for row in own[name]),
                tokens=sum(row.length for row in own[name]),
                dropped_overlong=self.dropped.get(name, 0),
                dropped_leaked=self.corpus.leaked_train.get(name, 0),
                unit=unit,
                share_asked=float(counts[name].share),
                share_got=got[name] / sum(got.values()),
                exhausted=counts[name].exhausted,
            )
            for name in cocktail
        )

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

    def brought_in(self, kind: SystemKind, system: str, label: str, origin: str) -> RunPlan:
        """A system made elsewhere, to be scored on this study's items."""
        answers = self._answers(system, kind)
        return RunPlan(system, kind, (), None, (), answers, 0, label, origin)

    def _known(self, task: str) -> list[list[str]]:
        """What the majority floor depends on: stratum and target of every train row."""
        return [[row.stratum, row.target] for row in self.corpus.known[task]]

    def data_rows(self) -> list[dict[str, object]]:
        """What was read and dropped of each dataset, as JSON rows."""
        return data_rows(self.study, self.registry, self.corpus)

    def _answers(self, system: str, kind: SystemKind = "trained") -> tuple[AnswerPlan, ...]:
        found = []
        for name in self.study.tasks:
            task = self.registry.get(name)
            for split in EVALUATED:
                for form in self.study.evaluate.forms:
                    if answerable(task, form, kind):
                        found.append(self.answer(system, kind, task, split, form))
        return tuple(found)

    def answer(
        self, system: str, kind: SystemKind, task: Task, split: Split, form: FormName
    ) -> AnswerPlan:
        """One set of answers of a system, on items of the corpus."""
        items = self.corpus.items[task.name, split]
        generated = kind != "majority" and form == "strict" and self.tokens is not None
        longest = self.max_new_tokens(task.name) if generated else 0
        answer_id = self._answer_id(system, kind, (task, split, form), longest) if system else ""
        tokens, digest_ = self.item_facts(task.name, split)
        tokens = 0 if kind == "majority" else tokens
        return AnswerPlan(answer_id, task.name, split, form, len(items), tokens, digest_, longest)

    def _answer_id(
        self, system: str, kind: SystemKind, what: tuple[Task, Split, FormName], longest: int
    ) -> str:
        task, split, form = what
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
            tokens = sum(self._prompt_length(e) for e in items) if self.tokens else 0
            self._item_facts[task, split] = (tokens, fingerprint(items))
        return self._item_facts[task, split]

    def _prompt_length(self, example: Example) -> int:
        """Tokens of an item's prompt, refused before anything runs when it is too long."""
        assert self.tokens is not None
        length = len(self.tokens.prompt_ids(query_of(example).messages))
        limit = self.study.evaluate.max_prompt_length
        if length > limit:
            raise DataError(
                "an evaluation prompt is too long",
                where=f"{example.task}, {example.split} {example.id}",
                found=f"{length} tokens",
                wanted=f"at most {limit} (evaluate.max_prompt_length)",
                remedy="raise evaluate.max_prompt_length",
            )
        return length


def _size(row: Row, unit: UnitName) -> int:
    """What a row counts for where shares are of tokens."""
    return row.length if unit == "tokens" else len(row.answer)


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


def plan_row(run: RunPlan, answer: AnswerPlan | None) -> PlanRow:
    """A unit of work as the store keeps it: an adapter (None), or a set of answers."""
    return PlanRow(
        kind="answer" if answer else "train",
        id=answer.id if answer else run.system,
        system=run.system,
        folder=run.folder,
        cocktail=run.name,
        seed=run.seed,
        task=answer.task if answer else "",
        split=answer.split if answer else "",
        form=answer.form if answer else "",
        items=answer.items if answer else sum(row.rows_got for row in run.mix),
        tokens=answer.tokens if answer else run.tokens,
        items_digest=answer.items_digest if answer else "",
        origin=run.origin,
    )
