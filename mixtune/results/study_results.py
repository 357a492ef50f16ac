"""Facts of a study → scores → measured split → estimates.

Scores and estimates can be deleted on disk and are made again without torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from mixtune.analysis.effects import detectable, differences, ties
from mixtune.analysis.measures import (
    Measured,
    PanelMetric,
    SystemInfo,
    cocktail_means,
    main_only,
    measure,
    results,
    without,
)
from mixtune.analysis.selection import best_cell, best_of_n, tuning_curves
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, StoreError
from mixtune.evaluation.answers import score, score_version
from mixtune.identity import make_id
from mixtune.planning.mixing import select_evaluation
from mixtune.records import (
    Estimate,
    Example,
    MixRow,
    Prediction,
    Result,
    Score,
    Selection,
    Split,
    TrainStep,
    schema_of,
)
from mixtune.store.folder import EXTRA_KINDS, PlanRow, Store, claimed_seeds
from mixtune.store.states import Unit
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study, prompt_note, training_note
from mixtune.tasks.examples import fingerprint
from mixtune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as the page lists it: state, attempts, seconds in training and evaluation."""

    id: str
    system: str
    cocktail: str
    seed: int | None
    state: str
    error: str | None
    attempts: int
    seconds: float | None
    folder: str


class _ModelFacts(BaseModel, strict=True):
    name: str
    source: str
    note: str


class RunFacts(BaseModel):
    """The keys of `run.json` that are read; it holds more."""

    model: _ModelFacts
    mix: list[MixRow]


@dataclass(frozen=True)
class StudyFacts:
    """A study as its folder holds it: settings, plan, states and facts of runs.

    `plan`: units of the study itself; `claimed`: those of fresh seeds, which only claims read;
    `extra`: those of `mixtune probe` and `mixtune strength`, which are in no table of results.
    `cut_off`: units that were running when their process ended; they are planned again.
    """

    store: Store
    registry: Registry
    study: Study
    plan: tuple[PlanRow, ...]
    claimed: tuple[PlanRow, ...]
    extra: tuple[PlanRow, ...]
    units: Mapping[str, Unit]
    selection: Selection | None
    cut_off: tuple[Unit, ...] = ()

    def state(self, unit: str) -> str:
        """State of a unit by its id; planned where it was never begun."""
        return self.units[unit].state if unit in self.units else "planned"

    def is_done(self, row: PlanRow) -> bool:
        """True for a unit that is finished."""
        return self.state(row.id) == "done"

    def answered(self) -> list[PlanRow]:
        """Sets of answers that are done."""
        return [r for r in (*self.plan, *self.claimed) if r.kind == "answer" and self.is_done(r)]

    def finished(self, claimed: bool = False) -> list[PlanRow]:
        """Sets of answers of finished runs; a failed or half-done run is in no table or mean.

        `claimed`: those of the fresh seeds, instead of all others.
        """
        rows = self.claimed if claimed else self.plan
        unfinished = {row.system for row in rows if not self.is_done(row)}
        return [row for row in rows if row.kind == "answer" and row.system not in unfinished]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks that have answers and are scored, in the study's order."""
        return {name: task for name, task in self._answered_tasks.items() if not task.judged}

    @cached_property
    def free_text_tasks(self) -> dict[str, Task]:
        """Tasks and judged datasets whose answers are free text, in the study's order."""
        return {name: task for name, task in self._answered_tasks.items() if task.kind == "open"}

    @cached_property
    def _answered_tasks(self) -> dict[str, Task]:
        names = {row.task for row in self.plan if row.kind == "answer"}
        listed = [*self.study.tasks, *self.study.judged]
        ordered = [*listed, *sorted(names - set(listed))]
        return {name: self.registry.get(name) for name in ordered if name in names}

    def main_metric(self, task: Task) -> PanelMetric:
        """The form and metric that a task is compared by: constrained where it has labels."""
        constrained = task.labels and "constrained" in self.study.evaluate.forms
        form = "constrained" if constrained else "strict"
        return PanelMetric(task.name, form, task.metrics[0] if task.metrics else "")

    @cached_property
    def main_metrics(self) -> dict[str, PanelMetric]:
        """Task → the form and metric that it is compared by."""
        return {name: self.main_metric(task) for name, task in self.tasks.items()}

    @cached_property
    def run_facts(self) -> dict[str, RunFacts]:
        """The keys of `run.json` that are read, of every finished run by its id.

        Raises:
            StoreError: a key is missing, or its value is of another type.
        """
        rows = [row for row in (*self.plan, *self.claimed) if row.kind == "train"]
        return {
            row.system: _run_facts(self.store, f"{row.folder}/run.json")
            for row in rows
            if self.is_done(row) and (self.store.folder / row.folder / "run.json").is_file()
        }

    @property
    def mixes(self) -> list[tuple[str, MixRow]]:
        """Each run's id with a row per ingredient, in the order of the runs."""
        return [(system, row) for system, facts in self.run_facts.items() for row in facts.mix]

    @property
    def training_note(self) -> str:
        """Unusual settings of training, in words; often nothing."""
        return training_note(self.study.train, self.study.flaws)

    @property
    def model_note(self) -> str:
        """Origin of the base model, as the first finished run recorded it."""
        for facts in self.run_facts.values():
            model = facts.model
            return f"{model.name}, {model.source}: {model.note or 'as published'}"
        return self.study.model


def _run_facts(store: Store, name: str) -> RunFacts:
    try:
        return RunFacts.model_validate(store.read_value(name))
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"not what a finished run has written: {first['msg']}",
            where=f"{store.folder / name}, {'.'.join(map(str, first['loc']))}",
            remedy="restore the file; or mixtune run, which trains the run again, because its "
            "checksum is another one",
        ) from error


def read_facts(store: Store, registry: Registry) -> StudyFacts:
    """Load a study from its folder.

    Raises:
        StoreError: there is no study, or its files cannot be read.
    """
    store.require()
    study = parse_study(store.read_value("study.yaml"), str(store.folder / "study.yaml"))
    selection = store.selection()
    fresh = claimed_seeds(selection)
    rows = store.plan()
    own = [row for row in rows if row.kind not in EXTRA_KINDS]
    units, cut_off = store.current_units()
    return StudyFacts(
        store=store,
        registry=registry,
        study=study,
        plan=tuple(row for row in own if row.seed not in fresh),
        claimed=tuple(row for row in own if row.seed in fresh),
        extra=tuple(row for row in rows if row.kind in EXTRA_KINDS),
        units=units,
        selection=selection,
        cut_off=tuple(cut_off),
    )


def system_infos(facts: StudyFacts, claimed: bool = False) -> list[SystemInfo]:
    """All finished systems, in the order of the plan; `claimed`: as in `StudyFacts.finished`."""
    rows_of: dict[str, dict[str, int]] = {}
    for system, mix in facts.mixes:
        rows_of.setdefault(system, {})[mix.ingredient] = mix.rows_got
    infos = []
    for info in infos_of(facts.finished(claimed)):
        trained = info.seed is not None
        note = facts.training_note if trained else prompt_note(facts.study, info.cocktail)
        infos.append(replace(info, training=note, rows=rows_of.get(info.system, {})))
    return infos


def infos_of(rows: Sequence[PlanRow]) -> list[SystemInfo]:
    """Systems of some units, in the order of the units."""
    return [
        SystemInfo(
            system=row.system,
            cocktail=row.cocktail,
            seed=row.seed,
            ingredients=row.ingredients,
            kind=row.system_kind,
            note=row.note,
            lr=row.lr,
        )
        for row in {row.system: row for row in rows}.values()
    ]


# ---- runs ----------------------------------------------------------------------------------------


def run_rows(facts: StudyFacts) -> list[RunRow]:
    """Every system with its state, in the order of the plan."""
    rows = (*facts.plan, *facts.claimed)
    units_of: dict[str, list[Unit]] = {row.system: [] for row in rows}
    for row in rows:
        units_of[row.system] += [facts.units[row.id]] if row.id in facts.units else []
    first = {row.system: row for row in reversed(rows)}
    return [
        RunRow(
            id=system,
            system=system,
            cocktail=first[system].cocktail,
            seed=first[system].seed,
            state=run_state(units),
            error="; ".join(unit.error for unit in units if unit.error),
            attempts=max((unit.attempts for unit in units), default=0),
            seconds=sum(unit.seconds for unit in units),
            folder=first[system].folder,
        )
        for system, units in units_of.items()
    ]


def run_state(units: Sequence[Unit]) -> str:
    """State of a run from those of its units: failed if one is, done if all are."""
    states = {unit.state for unit in units}
    if "failed" in states:
        return "failed"
    if states == {"done"}:
        return "done"
    return "planned" if states <= {"planned"} else "running" if "running" in states else "partial"


def training_curves(facts: StudyFacts) -> dict[str, list[TrainStep]]:
    """Training steps of every finished run, by its id."""
    return {
        row.system: facts.store.read_records(f"{row.folder}/train.parquet", TrainStep)
        for row in facts.plan
        if row.kind == "train" and facts.is_done(row)
    }


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scoring:
    """Counts of `score_study`, in sets of answers; `kept`: they had scores already."""

    scored: int
    kept: int
    unanswered: int


def score_id(answer_id: str, task: Task, form: str) -> str:
    """Id of the scores of a set of answers: changes with the parser and the metrics only."""
    return make_id("score", {"answer": answer_id, "version": score_version(task, form)})


def score_file(facts: StudyFacts, row: PlanRow) -> str:
    """File with the scores of a set of answers, below the study's folder."""
    scores = score_id(row.id, facts.registry.get(row.task), row.form)
    return f"{row.folder}/scores/{scores}.parquet"


def unscored(facts: StudyFacts) -> list[PlanRow]:
    """Sets of answers that are done and not scored by the current parser and metrics."""
    folder = facts.store.folder
    return [row for row in facts.answered() if not (folder / score_file(facts, row)).exists()]


def score_study(facts: StudyFacts) -> Scoring:
    """Score what is not scored yet, as `score_answers`; needs the datasets, no model."""
    answered = facts.answered()
    scored = score_answers(facts, answered)
    total = sum(1 for row in (*facts.plan, *facts.claimed) if row.kind == "answer")
    return Scoring(scored, len(answered) - scored, total - len(answered))


def score_answers(facts: StudyFacts, rows: Sequence[PlanRow]) -> int:
    """Score those sets of answers whose scores are missing or damaged; returns their number.

    Raises:
        DataError: the dataset no longer holds the items that were answered.
    """
    scored = 0
    for row in rows:
        file = score_file(facts, row)
        try:
            facts.store.read_table(file)
        except StoreError:
            scores = score(*read_answers(facts, row), facts.registry.get(row.task))
            facts.store.write_rows(file, Score, scores)
            scored += 1
    return scored


def read_answers(facts: StudyFacts, row: PlanRow) -> tuple[list[Prediction], list[Example]]:
    """A set of answers, and the examples that were answered.

    Raises:
        DataError: the dataset no longer holds them.
    """
    file = f"{row.folder}/answers/{row.id}/predictions.parquet"
    predictions = [
        Prediction(**{**raw, "choices": tuple(raw["choices"]), "logprobs": tuple(raw["logprobs"])})
        for raw in facts.store.read_rows(file)
    ]
    split: Split = "test" if row.split == "test" else "validation"
    answered = {prediction.example for prediction in predictions}
    items = facts.registry.dataset(row.task, facts.study.evaluate.carve).examples(split)
    examples = [example for example in items if example.id in answered]
    if fingerprint(select_evaluation(examples, None)) != row.items_digest:
        raise DataError(
            "the dataset does not hold the items that were answered",
            where=f"{row.task}/{row.split}",
            found=f"{len(examples)} of {row.items} ids, or other texts or labels under them",
            wanted="the data that the study ran with",
            remedy="give the --data-dir that the study ran with",
        )
    return predictions, examples


def require_scores(facts: StudyFacts) -> None:
    """Refuse answers that are not scored by the current parser and metrics, as a StoreError."""
    if missing := unscored(facts):
        raise StoreError(
            f"{len(missing)} sets of answers are not scored by this version's parsers",
            where=str(facts.store.folder),
            remedy="read the pack with the version that its README names"
            if facts.store.packed
            else "mixtune score STUDY.yaml; a running mixtune run does it at its end",
        )


def read_scores(facts: StudyFacts, split: str, claimed: bool = False) -> pa.Table:
    """Scores of all finished runs on a split; as `require_scores`."""
    require_scores(facts)
    rows = [row for row in facts.finished(claimed) if row.split == split]
    scored = [row for row in rows if not facts.registry.get(row.task).judged]
    return score_table(facts, scored)


def score_table(facts: StudyFacts, rows: Sequence[PlanRow]) -> pa.Table:
    """Scores of some sets of answers as one table."""
    tables = [facts.store.read_table(score_file(facts, row)) for row in rows]
    return pa.concat_tables(tables) if tables else schema_of(Score).empty_table()


def with_column(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    """The table with other texts in one of its columns."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, pa.string()))


# ---- one split, measured once --------------------------------------------------------------------


@dataclass(frozen=True)
class SplitResults:
    """A split, measured: every metric on every task and form, resampled once.

    `main`: of each task's main form and metric only.
    """

    split: str
    scores: pa.Table
    systems: tuple[SystemInfo, ...]
    tasks: Mapping[str, Task]
    measured: Sequence[Measured]
    main: Sequence[Measured]

    @cached_property
    def results(self) -> list[Result]:
        """One row per system × task × form × metric."""
        return results(self.measured)

    @cached_property
    def means(self) -> list[Estimate]:
        """Each cocktail's mean over its seeds."""
        return cocktail_means(self.measured)

    @cached_property
    def differences(self) -> list[Estimate]:
        """Each cocktail against the step-matched single task, and against the base."""
        return differences(self.measured)

    def without_items(self, flagged: Mapping[str, Sequence[str]]) -> list[Result]:
        """`results` without some items (ids by task/split); no row for a task that loses all."""
        return results(measure(without(self.scores, flagged), self.systems, self.tasks))

    def estimates(self, margin: float) -> list[Estimate]:
        """Means, differences, ties within a margin, detectable differences, the best of many."""
        rows = [*self.means, *self.differences]
        rows += [*ties(self.measured, margin), *detectable(self.measured)]
        return [*rows, *best_of_n(self.main), *tuning_curves(self.main)]


def measure_split(facts: StudyFacts, split: str, claimed: bool = False) -> SplitResults:
    """Measure a split, as `require_scores`; `claimed`: runs of fresh seeds, not all others."""
    scores = read_scores(facts, split, claimed)
    systems = tuple(system_infos(facts, claimed))
    measured = measure(scores, systems, facts.tasks)
    main = main_only(measured, facts.main_metrics.values())
    return SplitResults(split, scores, systems, facts.tasks, measured, main)


def write_estimates(
    facts: StudyFacts, measured: SplitResults, more: Sequence[Estimate]
) -> tuple[list[Estimate], Path]:
    """Every estimate of a split with some more, and the file that they were written to."""
    rows = [*measured.estimates(facts.study.claims.margin), *more]
    file = f"estimates-{measured.split}.parquet"
    return rows, facts.store.write_rows(file, Estimate, rows)


def best_cocktails(facts: StudyFacts, validation: SplitResults) -> dict[str, str]:
    """Task → the cocktail with the best mean on validation, by the task's main metric.

    No task whose cells share no seed. Nothing under `flaws.select_on_test`: the page of test then
    shows the best on test.
    """
    if facts.study.flaws.select_on_test:
        return {}
    best = {m.panel.task: best_cell(m) for m in validation.main}
    return {task: cell for task, cell in best.items() if cell is not None}
