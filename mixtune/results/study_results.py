"""Facts → derived: predictions to scores, scores to results, results to the report's input.

Everything here can be deleted on disk and made again without torch.

Knows: where facts and derived files stand, which score belongs to which answer. Does not know:
models, tokens, how a number is computed or shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixtune.analysis.effects import compare, detectable, differences, select, ties
from mixtune.analysis.measures import (
    BASE,
    MAJORITY,
    Measured,
    SystemInfo,
    cocktail_means,
    measure,
    results,
    without,
)
from mixtune.analysis.selection import best_of_n, shrunken, tuning_curves
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError, StoreError, did_you_mean
from mixtune.evaluation.score import score, score_version
from mixtune.identity import make_id
from mixtune.planning.mixing import select_evaluation
from mixtune.records import (
    Estimate,
    Example,
    MixRow,
    Prediction,
    Result,
    RunRow,
    Score,
    Split,
    TrainStep,
    schema_of,
)
from mixtune.store.folder import ASIDE, PlanRow, Store
from mixtune.store.selection import read_selection
from mixtune.store.states import Unit
from mixtune.study.design import members
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study, prompt_note, training_note
from mixtune.tasks.task import Task, fingerprint


def score_id(answer_id: str, task: Task, form: str) -> str:
    """Id of the scores of a set of answers: changes with the parser and the metrics only."""
    return make_id("score", {"answer": answer_id, "version": score_version(task, form)})


@dataclass(frozen=True, slots=True)
class Scoring:
    """What `score_study` did, in sets of answers."""

    scored: int
    kept: int
    unanswered: int


class Derived:
    """Reads a study's facts and keeps what follows from them."""

    def __init__(self, store: Store, registry: Registry) -> None:
        store.require()
        self.store = store
        self.registry = registry
        raw = store.read_value("study.yaml")
        self.study: Study = parse_study(raw, str(store.folder / "study.yaml"))
        units = store.plan()
        self.selection = read_selection(store)
        chosen = self.selection
        fresh = {*chosen.fresh, *chosen.spent} if chosen else set()
        own = [row for row in units if row.kind not in ASIDE]
        self.plan = [row for row in own if row.seed not in fresh]
        self.claimed = [row for row in own if row.seed in fresh]
        """Units of fresh seeds, which claims alone are read on: they are in no other table."""
        self.aside = [row for row in units if row.kind in ASIDE]
        """Units of verbs of their own, in no table of results (retention.py, strength.py)."""
        self.units = store.units()
        self._measured: dict[str, list[Measured]] = {}

    # ---- scores -------------------------------------------------------------------------------

    def answered(self) -> list[PlanRow]:
        """Sets of answers that are done."""
        rows = [*self.plan, *self.claimed]
        return [r for r in rows if r.kind == "answer" and self.state(r.id) == "done"]

    def finished(self, claimed: bool = False) -> list[PlanRow]:
        """Sets of answers of finished runs; a failed or half-done one is in no table or mean.

        `claimed`: those of the fresh seeds, instead of all others.
        """
        rows = self.claimed if claimed else self.plan
        unfinished = {row.system for row in rows if self.state(row.id) != "done"}
        return [row for row in rows if row.kind == "answer" and row.system not in unfinished]

    def state(self, unit: str) -> str:
        """State of a unit; planned where nobody has begun it."""
        return self.units[unit].state if unit in self.units else "planned"

    def score_file(self, row: PlanRow) -> str:
        """Where the scores of a set of answers are kept."""
        found = score_id(row.id, self.registry.get(row.task), row.form)
        return f"{row.folder}/scores/{found}.parquet"

    def unscored(self) -> list[PlanRow]:
        """Sets of answers that are done and not scored by the current parser and metrics."""
        return [
            row
            for row in self.answered()
            if not (self.store.folder / self.score_file(row)).exists()
        ]

    def score(self) -> Scoring:
        """Score what is not scored yet; needs the datasets, no model.

        Raises:
            DataError: the dataset no longer holds the items that were answered.
        """
        todo = self.unscored()
        todo += [row for row in self.answered() if row not in todo and self.damaged(row)]
        self._measured.clear()
        for row in todo:
            self.score_one(row)
        done = len(self.answered())
        total = sum(1 for row in (*self.plan, *self.claimed) if row.kind == "answer")
        return Scoring(len(todo), done - len(todo), total - done)

    def damaged(self, row: PlanRow) -> bool:
        """Whether the scores of a set of answers are missing or cannot be read."""
        try:
            self.store.read_table(self.score_file(row))
        except StoreError:
            return True
        return False

    def score_one(self, row: PlanRow) -> None:
        """Score one set of answers.

        Raises:
            DataError: the dataset no longer holds the items that were answered.
        """
        scores = score(*self.answers(row), self.registry.get(row.task))
        self.store.write_rows(self.score_file(row), Score, scores)

    def answers(self, row: PlanRow) -> tuple[list[Prediction], list[Example]]:
        """A set of answers, and the examples that were answered.

        Raises:
            DataError: the dataset no longer holds them.
        """
        predictions = [
            _prediction(raw)
            for raw in self.store.read_rows(f"{row.folder}/answers/{row.id}/predictions.parquet")
        ]
        split: Split = "test" if row.split == "test" else "validation"
        asked = {prediction.example for prediction in predictions}
        rows = self.registry.dataset(row.task, self.study.evaluate.carve).examples(split)
        examples = [example for example in rows if example.id in asked]
        if fingerprint(select_evaluation(examples, None)) != row.items_digest:
            raise DataError(
                "the dataset does not hold the items that were answered",
                where=f"{row.task}/{row.split}",
                found=f"{len(examples)} of {row.items} ids, or other texts or labels under them",
                wanted="the data that the study ran with",
                remedy="give the --data-dir that the study ran with",
            )
        return predictions, examples

    def scores(self, split: str | None = None, claimed: bool = False) -> pa.Table:
        """Scores of all finished runs, of one split or all; `claimed`: as in `finished`.

        Raises:
            StoreError: some answers are not scored by the current parser and metrics.
        """
        missing = self.unscored()
        if missing:
            raise StoreError(
                f"{len(missing)} sets of answers are not scored by this version's parsers",
                where=str(self.store.folder),
                remedy="read the pack with the version that its README names"
                if self.store.packed
                else "mixtune score STUDY.yaml; a running mixtune run does it at its end",
            )
        asked = [row for row in self.finished(claimed) if split in (None, row.split)]
        rows = [row for row in asked if not self.registry.get(row.task).judged]
        tables = [self.store.read_table(self.score_file(row)) for row in rows]
        return pa.concat_tables(tables) if tables else schema_of(Score).empty_table()

    # ---- results ------------------------------------------------------------------------------

    def systems(self, claimed: bool = False) -> list[SystemInfo]:
        """All finished systems, in the order of the plan; `claimed`: as in `finished`."""
        mixes: dict[str, dict[str, int]] = {}
        for system, mix in mixes_of(self.run_facts()):
            mixes.setdefault(system, {})[mix.ingredient] = mix.rows_got
        found: dict[str, SystemInfo] = {}
        for row in self.finished(claimed):
            here = row.seed is not None
            parts = members(row.cocktail) if here else ()
            note = self.training_note() if here else prompt_note(self.study, row.cocktail)
            rows = mixes.get(row.system, {})
            found[row.system] = SystemInfo(row.system, row.cocktail, row.seed, parts, note, rows)
        return list(found.values())

    def tasks(self) -> dict[str, Task]:
        """The study's tasks that have answers and are scored, in the study's order."""
        return {name: task for name, task in self._answered_tasks().items() if not task.judged}

    def free(self) -> dict[str, Task]:
        """Tasks and judged datasets whose answers are free text, in the study's order."""
        return {name: task for name, task in self._answered_tasks().items() if task.kind == "open"}

    def _answered_tasks(self) -> dict[str, Task]:
        names = {row.task for row in self.plan if row.kind == "answer"}
        asked = [*self.study.tasks, *self.study.judged]
        ordered = [*asked, *sorted(names - set(asked))]
        return {name: self.registry.get(name) for name in ordered if name in names}

    def measured(self, split: str) -> list[Measured]:
        """Every metric on every task and form of a split, resampled once."""
        if split not in self._measured:
            table = self.scores(split)
            found = measure(table, self.systems(), self.tasks()) if table.num_rows else []
            self._measured[split] = found
        return self._measured[split]

    def measured_claimed(self, split: str) -> list[Measured]:
        """The main metric and form of each task, over the runs of fresh seeds."""
        table = self.scores(split, claimed=True)
        found = measure(table, self.systems(claimed=True), self.tasks()) if table.num_rows else []
        return self._main(found)

    def measured_main(self, split: str) -> list[Measured]:
        """`measured`, of each task's main metric and form only."""
        return self._main(self.measured(split))

    def _main(self, found: Sequence[Measured]) -> list[Measured]:
        tasks = self.tasks()
        main = {(n, self.main_form(t), t.metrics[0]) for n, t in tasks.items() if t.metrics}
        return [m for m in found if (m.panel.task, m.panel.form, m.metric.name) in main]

    def results(self, split: str) -> list[Result]:
        """One row per system × task × form × metric of a split."""
        return results(self.measured(split))

    def clean_results(self, split: str) -> list[Result]:
        """`results` on the items whose text no row that the study trains on has, even in part.

        Which these are was found when the study was planned; a task without any has no row.

        Raises:
            StoreError: the study was planned before this was kept.
        """
        table = without(self.scores(split), self.store.read_value("flagged.json"))
        found = measure(table, self.systems(), self.tasks()) if table.num_rows else []
        return results(found)

    def means(self, split: str) -> list[Estimate]:
        """Each cocktail's mean over its seeds."""
        return cocktail_means(self.measured(split))

    def differences(self, split: str) -> list[Estimate]:
        """Each cocktail against the step-matched single task, and against the base."""
        return differences(self.measured(split))

    def analyze(self, split: str, more: Sequence[Estimate] = ()) -> tuple[list[Estimate], Path]:
        """Every estimate of a split, and the file that they were written to; `more`: other rows."""
        rows = [*self.estimates(split), *more]
        return rows, self.store.write_rows(f"estimates-{split}.parquet", Estimate, rows)

    def estimates(self, split: str) -> list[Estimate]:
        """Means and differences, ties, what can be detected, what the best of many is worth."""
        measured = self.measured(split)
        rows = [*self.means(split), *self.differences(split)]
        rows += [*ties(measured, self.study.claims.margin), *detectable(measured)]
        main = self.measured_main(split)
        return [*rows, *best_of_n(main), *shrunken(main), *tuning_curves(main)]

    def compare(self, subject: str, reference: str, split: str) -> list[Estimate]:
        """One system minus another, each named by its cocktail or its id.

        Raises:
            SpecError: no such system, or one system twice.
        """
        names = [self._named(name) for name in (subject, reference)]
        if names[0] == names[1]:
            raise SpecError("a system compared with itself", found=subject, remedy="name two")
        rows = compare(self.measured(split), names[0], names[1], self.study.claims.margin)
        if not rows:
            raise SpecError(
                "the two systems share no seed, or no task that both have answered",
                found=" and ".join(names),
                remedy="mixtune status STUDY.yaml shows what each has; run the seeds that lack",
            )
        return rows

    def holds(self, rows: Sequence[Estimate], least: float) -> bool:
        """Whether each difference on a task's main metric and form has its interval above `least`.

        Without an interval ("too few") it does not hold; without a row neither. Pairs of untrained
        floors do not count: nobody made them better or worse.
        """
        tasks = self.tasks()
        main = {(n, self.main_form(t), t.metrics[0]) for n, t in tasks.items() if t.metrics}
        judged = [
            row.low
            for row in rows
            if (row.target, row.form, row.metric) in main
            and not row.subject.endswith((f": {MAJORITY}", f": {BASE}"))
        ]
        return bool(judged) and all(low is not None and low > least for low in judged)

    def _named(self, name: str) -> str:
        systems = self.systems()
        parts = "+".join(sorted(name.split("+")))
        for system in systems:
            if system.cocktail in (name, parts) or system.system == name:
                return system.cocktail
        known = sorted({system.cocktail for system in systems})
        raise SpecError(
            "no finished system of this study has that name",
            where=self.study.name,
            found=name,
            wanted=did_you_mean(name, known) if known else "nothing is finished yet",
            remedy="mixtune status STUDY.yaml lists them",
        )

    # ---- report -------------------------------------------------------------------------------

    def report_path(self, split: str) -> Path:
        """Where the report of a split is written."""
        return self.store.folder / "report" / _page(split)

    def chosen(self) -> dict[str, str]:
        """Task → the cocktail with the best mean on validation, by the task's main metric.

        Nothing under `flaws.select_on_test`: the best on test is then what the page of test shows.
        """
        if self.study.flaws.select_on_test:
            return {}
        rows = self.results("validation")
        forms = {(row.task, row.form) for row in rows if row.seed is not None}
        found = {}
        for name, task in self.tasks().items():
            form = self.main_form(task)
            if (name, form) not in forms:
                continue
            try:
                found[name] = select(rows, name, task.metrics[0], form)
            except DataError:
                continue  # the cocktails share no seed: nothing can be chosen, and the page says so
        return found

    def main_form(self, task: Task) -> str:
        """The form a task is compared in: constrained, where there are labels and it was asked."""
        forms = self.study.evaluate.forms
        return "constrained" if task.labels and "constrained" in forms else "strict"

    def training_note(self) -> str:
        """What is unusual in how the study's systems were trained, in words; often nothing."""
        return training_note(self.study.train, self.study.flaws)

    def model_note(self) -> str:
        """Where the base model came from, as kept with the first finished run."""
        for facts in self.run_facts().values():
            model = facts["model"]
            assert isinstance(model, dict)
            return f"{model['name']}, {model['source']}: {model['note'] or 'as published'}"
        return self.study.model

    def planned_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows written when the study was planned; none in a study older than their kind."""
        kept = (self.store.folder / f"{name}.json").is_file()
        found: list[dict[str, Any]] = self.store.read_value(f"{name}.json") if kept else []
        return found

    def run_facts(self) -> dict[str, dict[str, object]]:
        """Contents of `run.json` of every finished run, by its id."""
        found = {}
        for row in (*self.plan, *self.claimed):
            path = self.store.folder / row.folder / "run.json"
            if row.kind == "train" and path.is_file() and self.state(row.id) == "done":
                found[row.system] = self.store.read_value(f"{row.folder}/run.json")
        return found

    def curves(self) -> dict[str, list[TrainStep]]:
        """Training steps of every finished run, by its id."""
        found = {}
        for row in self.plan:
            if row.kind == "train" and self.state(row.id) == "done":
                steps = self.store.read_rows(f"{row.folder}/train.parquet")
                found[row.system] = [TrainStep(**step) for step in steps]
        return found

    def run_rows(self) -> list[RunRow]:
        """Every system with its state, in the order of the plan."""
        by_system: dict[str, list[PlanRow]] = {}
        for row in (*self.plan, *self.claimed):
            by_system.setdefault(row.system, []).append(row)
        return [self._run_row(rows) for rows in by_system.values()]

    def _run_row(self, rows: Sequence[PlanRow]) -> RunRow:
        units = [self.units[row.id] for row in rows if row.id in self.units]
        first = rows[0]
        return RunRow(
            id=first.system,
            system=first.system,
            cocktail=first.cocktail,
            seed=first.seed,
            state=run_state(units),
            error="; ".join(unit.error for unit in units if unit.error),
            attempts=max((unit.attempts for unit in units), default=0),
            seconds=sum(unit.seconds for unit in units),
            folder=first.folder,
        )


def run_state(units: Sequence[Unit]) -> str:
    """State of a run from those of its units: failed if one is, done if all are."""
    states = {unit.state for unit in units}
    if "failed" in states:
        return "failed"
    if states == {"done"}:
        return "done"
    return "planned" if states <= {"planned"} else "running" if "running" in states else "partial"


def _page(split: str) -> str:
    return "index.html" if split == "validation" else f"{split}.html"


def _prediction(raw: dict[str, object]) -> Prediction:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Prediction(**fields)  # type: ignore[arg-type]


def mixes_of(facts: Mapping[str, dict[str, object]]) -> list[tuple[str, MixRow]]:
    """Rows of what each run asked for and got, in the order of the runs."""
    found = []
    for name, fact in facts.items():
        rows = fact["mix"]
        assert isinstance(rows, list)
        found += [(name, MixRow(**row)) for row in rows]
    return found
