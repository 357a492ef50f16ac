"""Models behind APIs answer what a plan lists for them; only what is missing or failed.

They are asked before anything is trained: a wrong key or endpoint shows at once, and nothing heavy
is loaded for them. What was answered stays in the cache, so a study that is stopped, by its ceiling
or by a kill, goes on where it was.

Knows: units, instructions to choose from, a study's ledger. Does not know: torch, HTTP, trained
systems.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mixtune.api.client import Endpoint, Patience
from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import FILE, CeilingReached, Ledger
from mixtune.api.model import ApiModel, Asking, Prompting
from mixtune.errors import StoreError
from mixtune.evaluation.predict import predict
from mixtune.evaluation.score import score
from mixtune.execution.units import FAILURES, said, unit_of_work
from mixtune.planning.events import Events
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, Plan, RunPlan
from mixtune.records import Prediction, Usage
from mixtune.store.folder import Store

SAY_EVERY = 20.0
"""Seconds between two notes on how far a set of answers is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which instruction did best on a task's validation items, and what each got right there."""

    task: str
    form: str
    items_digest: str
    items: int
    right: tuple[int, ...]
    chosen: int


def answer_remote(
    plan: Plan, planner: Planner, store: Store, events: Events, patience: Patience | None = None
) -> list[RunPlan]:
    """Ask the API models of a plan for what is missing; returns the runs that are not done.

    The caller holds the store's lock, has saved the plan and is within `worker.begin`.

    Raises:
        ModelError: before anything is asked: a key that is not set, no official client.
        StoreError: results cannot be written.
    """
    undone = store.undone(a.id for run in plan.runs if run.kind == "api" for a in run.answers)
    todo = [run for run in plan.runs if any(a.id in undone for a in run.answers)]
    if not todo:
        return []
    desk = _RemoteDesk(planner, store, events)
    for run in todo:
        desk.open(run, patience)
    places = {run.system: place for place, run in enumerate(plan.runs, start=1)}
    failed = []
    for run in todo:
        begun = time.monotonic()
        events.run_started(run, places[run.system], len(places))
        try:
            desk.answer(run, [a for a in run.answers if a.id in undone])
        except StoreError:
            raise
        except FAILURES as error:
            events.run_failed(run, said(error))
            failed.append(run)
        else:
            events.run_finished(run, time.monotonic() - begun)
    return failed


class _RemoteDesk:
    """A study's means to ask: endpoints, one ledger, where answers go."""

    def __init__(self, planner: Planner, store: Store, events: Events) -> None:
        self.planner = planner
        self.store = store
        self.events = events
        self.ledger = Ledger(store.folder / FILE, planner.study.api.max_cost)
        self._endpoints: dict[str, Endpoint] = {}

    def open(self, run: RunPlan, patience: Patience | None) -> None:
        """Get ready to ask; refused here rather than after other models were paid for."""
        api = self.planner.study.api
        patience = patience or Patience(timeout=api.timeout, retries=api.retries)
        self._endpoints[run.system] = Endpoint(self.planner.remote[run.system], patience)

    def answer(self, run: RunPlan, missing: Sequence[AnswerPlan]) -> None:
        """Make the sets of answers that are missing."""
        for answer in missing:
            with unit_of_work(self.store, answer.id, stops=(CeilingReached,)) as paths:
                instruction, kept = self._instruction(run, answer.task)
                model = self._model(run, answer, instruction)
                paths += [*kept, *self._write(run, answer, model)]
            self.events.answered(run, answer, 0.0)

    def _write(self, run: RunPlan, answer: AnswerPlan, model: ApiModel) -> list[Path]:
        predictions = self._predict(model, answer)
        folder = run.answers_folder(answer)
        self.store.drop_scores(run.folder)
        return [
            self.store.write_rows(f"{folder}/predictions.parquet", Prediction, predictions),
            self.store.write_rows(f"{folder}/usage.parquet", Usage, model.usage),
        ]

    def _predict(self, model: ApiModel, answer: AnswerPlan) -> list[Prediction]:
        assert answer.form != "likelihood", "gold answers are read to local models only"
        items, longest = self.planner.items(answer), answer.max_new_tokens
        return predict(model, items, answer.form, answer.split, longest, model.prompt_hash)

    def _model(self, run: RunPlan, answer: AnswerPlan, instruction: str) -> ApiModel:
        system = self.planner.remote[run.system]
        asking = Asking(
            self._endpoints[run.system],
            self.ledger,
            concurrency=self.planner.study.api.concurrency,
            on_progress=_progress(run, answer, self.events),
        )
        shots = self.planner.remote.shots(system, answer.task)
        return ApiModel(system, asking, Prompting(shots, instruction))

    # ---- instructions ---------------------------------------------------------------------------

    def _instruction(self, run: RunPlan, task: str) -> tuple[str, list[Path]]:
        """The instruction for a task, and the file that says how it was chosen, if it was.

        Each is tried on all validation items, in the first of the forms that are asked for. The one
        with the most right answers is taken, of equals the first. A judged dataset has no right
        answers to choose by: the first.
        """
        system = self.planner.remote[run.system]
        if len(system.variants) == 1 or self.planner.registry.get(task).judged:
            return system.variants[0], []
        trial = next(a for a in run.answers if (a.task, a.split) == (task, "validation"))
        name = f"{run.folder}/instruction-{task}.json"
        path = self.store.folder / name
        if path.is_file():
            kept = self.store.read_value(name)
            if kept["items_digest"] == trial.items_digest:
                return system.variants[kept["chosen"]], [path]
        choice = self._chosen(run, system, trial)
        text = json.dumps({**asdict(choice), "variants": list(system.variants)}, indent=1) + "\n"
        return system.variants[choice.chosen], [self.store.write_text(name, text)]

    def _chosen(self, run: RunPlan, system: ApiSystem, trial: AnswerPlan) -> Choice:
        task = self.planner.registry.get(trial.task)
        items = self.planner.items(trial)
        right = []
        for instruction in system.variants:
            found = self._predict(self._model(run, trial, instruction), trial)
            scores = [row for row in score(found, items, task) if row.form == trial.form]
            right.append(sum(row.value == 1.0 for row in scores))
        best = max(range(len(right)), key=right.__getitem__)
        tried = len(right)
        self.events.note(
            f"{run.name}, {task.name}: instruction {best + 1} of {tried} is used, with "
            f"{right[best]} of {len(items)} right on validation"
        )
        return Choice(task.name, trial.form, trial.items_digest, len(items), tuple(right), best)


def _progress(run: RunPlan, answer: AnswerPlan, events: Events) -> Callable[[int, int], None]:
    """A note now and then."""
    last = time.monotonic()

    def say(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > SAY_EVERY:
            last = time.monotonic()
            what = f"{answer.task}/{answer.split}/{answer.form}"
            events.note(f"{run.name}, {what}: {done} of {of} answered")

    return say
