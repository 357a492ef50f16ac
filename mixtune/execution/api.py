"""Answer with models behind APIs what a plan lists for them and is missing.

They are asked before anything is trained: a wrong key or endpoint shows at once, and nothing heavy
is loaded for them. Answers stay in the cache, so a study that is stopped, by its cost ceiling or by
a kill, goes on where it was.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mixtune.api.client import Endpoint, Patience
from mixtune.api.ledger import FILE, CeilingReached, Ledger
from mixtune.api.model import ApiModel, Asking, Prompting
from mixtune.evaluation.answers import predict, score
from mixtune.execution.worker import error_text, fails_alone, unit_of_work
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, Events, Plan, RunPlan
from mixtune.records import Prediction, Usage
from mixtune.store.folder import Store

NOTE_EVERY = 20.0
"""Seconds between two notes on the progress of a set of answers."""


def answer_remote(
    plan: Plan, planner: Planner, store: Store, events: Events, patience: Patience | None = None
) -> list[RunPlan]:
    """Ask the API models of a plan for what is missing; returns the runs that are not done.

    The caller has entered `started`.

    Raises:
        ModelError: before anything is asked: a key that is not set, no official client.
        StoreError: results cannot be written.
    """
    undone = store.undone(a.id for run in plan.runs if run.kind == "api" for a in run.answers)
    unfinished = [run for run in plan.runs if any(a.id in undone for a in run.answers)]
    if not unfinished:
        return []
    worker = _ApiWorker(planner, store, events)
    for run in unfinished:
        worker.open(run, patience)
    for run in unfinished:
        began = time.monotonic()
        events.run_started(run)
        with fails_alone(run, worker.fail):
            worker.answer(run, [a for a in run.answers if a.id in undone])
            events.run_finished(run, time.monotonic() - began)
    return worker.failed


class _ApiWorker:
    """State of asking a study's API models: endpoints, one ledger, the store."""

    def __init__(self, planner: Planner, store: Store, events: Events) -> None:
        self.planner = planner
        self.store = store
        self.events = events
        self.failed: list[RunPlan] = []
        self.ledger = Ledger(store.folder / FILE, planner.study.api.max_cost)
        self._endpoints: dict[str, Endpoint] = {}

    def open(self, run: RunPlan, patience: Patience | None) -> None:
        """Open an endpoint; refused here rather than after other models were paid for."""
        api = self.planner.study.api
        patience = patience or Patience(timeout=api.timeout, retries=api.retries)
        self._endpoints[run.system] = Endpoint(self.planner.remote[run.system], patience)

    def fail(self, run: RunPlan, error: Exception) -> None:
        """A run failed; the others go on."""
        self.events.run_failed(run, error_text(error))
        self.failed.append(run)

    def answer(self, run: RunPlan, missing: Sequence[AnswerPlan]) -> None:
        for answer in missing:
            with unit_of_work(self.store, answer.id, stops=(CeilingReached,)) as paths:
                instruction, chosen = self._instruction(run, answer.task)
                model = self._model(run, answer, instruction)
                paths += [*chosen, *self._write(run, answer, model)]
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
            on_note=lambda text: self.events.note(f"{run.name}, {_items(answer)}: {text}"),
        )
        shots = self.planner.remote.shots(system, answer.task)
        return ApiModel(system, asking, Prompting(shots, instruction))

    def _instruction(self, run: RunPlan, task: str) -> tuple[str, list[Path]]:
        """The instruction for a task, and the file of the choice, if there was one.

        Each instruction is tried on all validation items, in the first of the study's forms. The
        one with the most right answers is used, of equals the first. A judged dataset has no right
        answers to choose by: the first is used.
        """
        system = self.planner.remote[run.system]
        if len(system.variants) == 1 or self.planner.registry.get(task).judged:
            return system.variants[0], []
        trial = next(a for a in run.answers if (a.task, a.split) == (task, "validation"))
        name = f"{run.folder}/instruction-{task}.json"
        path = self.store.folder / name
        if path.is_file():
            stored = self.store.read_value(name)
            if stored["items_digest"] == trial.items_digest:
                return system.variants[stored["chosen"]], [path]
        right = [self._right(run, trial, instruction) for instruction in system.variants]
        best = max(range(len(right)), key=right.__getitem__)
        self.events.note(
            f"{run.name}, {task}: instruction {best + 1} of {len(right)} is used, with "
            f"{right[best]} of {trial.items} right on validation"
        )
        choice = {
            "task": task,
            "form": trial.form,
            "items_digest": trial.items_digest,
            "items": trial.items,
            "right": right,
            "chosen": best,
            "variants": system.variants,
        }
        return system.variants[best], [self.store.write_json(name, choice)]

    def _right(self, run: RunPlan, trial: AnswerPlan, instruction: str) -> int:
        """Right answers under an instruction."""
        predictions = self._predict(self._model(run, trial, instruction), trial)
        task = self.planner.registry.get(trial.task)
        scores = score(predictions, self.planner.items(trial), task)
        return sum(row.value == 1.0 for row in scores if row.form == trial.form)


def _items(answer: AnswerPlan) -> str:
    return f"{answer.task}/{answer.split}/{answer.form}"


def _progress(run: RunPlan, answer: AnswerPlan, events: Events) -> Callable[[int, int], None]:
    """A callback that notes progress now and then."""
    last = time.monotonic()

    def note(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > NOTE_EVERY:
            last = time.monotonic()
            events.note(f"{run.name}, {_items(answer)}: {done} of {total} answered")

    return note
