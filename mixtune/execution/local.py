"""Run a plan on this machine, one run after another; only what is missing or failed.

A run is an adapter and its sets of answers, each a unit with its own state. A unit that was cut
off leaves nothing that counts: it is done again from its start. A failed run keeps its error and
the study goes on with the next one.

Knows: order, states, where facts go. Does not know: how training, answering or scoring work.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from mixtune.engine.model import LocalModel
from mixtune.engine.train import train
from mixtune.errors import MixtuneError, StoreError
from mixtune.evaluation.predict import predict
from mixtune.events import Events
from mixtune.identity import seed as named_seed
from mixtune.models.base import Model
from mixtune.models.constant import MajorityModel
from mixtune.planning.plan import AnswerPlan, Plan, Planner, RunPlan
from mixtune.records import Prediction, TrainStep
from mixtune.store import Store, Unit

BACKWARD = 2.0
"""Cost of a token's backward pass in forward passes, for the ETA only."""

FAILURES = (MixtuneError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What makes one run fail and lets the study go on; anything else, and a store that cannot be
written, stops the study."""


class Session:
    """One process working on one study."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        load_model: Callable[[], LocalModel],
        events: Events,
    ) -> None:
        self.planner = planner
        self.store = store
        self.events = events
        self._load_model = load_model
        self._model: LocalModel | None = None

    def run(self, plan: Plan) -> list[RunPlan]:
        """Do what is missing or failed; returns the runs that failed.

        The caller holds the store's lock, has saved the plan and has called `begin`.
        """
        units = self.store.units()
        failed = []
        for number, run in enumerate(plan.runs, start=1):
            if not missing(run, units) or not self.store.claim(run.system):
                continue
            self.events.run_started(run, number, len(plan.runs))
            begun = time.monotonic()
            try:
                self._run_one(run)
            except StoreError:
                raise
            except FAILURES as error:
                self.events.run_failed(run, f"{type(error).__name__}: {error}")
                failed.append(run)
            else:
                self.events.run_finished(run, time.monotonic() - begun)
        return failed

    def _run_one(self, run: RunPlan) -> None:
        units = self.store.units()
        if run.kind == "trained" and units[run.system].state != "done":
            with self._unit(run.system) as paths:
                paths += self._train(run)
        missing = [answer for answer in run.answers if units[answer.id].state != "done"]
        if not missing:
            return
        answering = self._answering(run)
        for answer in missing:
            with self._unit(answer.id) as paths:
                paths.append(self._answer(run, answer, answering(answer)))
            self.events.answered(run, answer, answer_cost(run, answer))

    @contextmanager
    def _unit(self, unit: str) -> Iterator[list[Path]]:
        """Running → done with the files listed, failed on an error, planned when stopped."""
        self.store.begin(unit)
        begun = time.monotonic()
        paths: list[Path] = []
        try:
            yield paths
        except (StoreError, OSError):
            # The disk failed, not the unit; if it cannot even be given back, the next start does.
            with suppress(StoreError):
                self.store.release(unit)
            raise
        except Exception as error:
            self.store.fail(unit, f"{type(error).__name__}: {error}", time.monotonic() - begun)
            raise
        except BaseException:
            self.store.release(unit)
            raise
        self.store.finish(unit, paths, time.monotonic() - begun)

    # ---- training -----------------------------------------------------------------------------

    @property
    def model(self) -> LocalModel:
        """The base model, loaded when first needed."""
        if self._model is None:
            self._model = self._load_model()
        return self._model

    def _train(self, run: RunPlan) -> list[Path]:
        study, store = self.planner.study, self.store
        assert run.seed is not None
        assert self.planner.files is not None
        rows = self.planner.training_rows(run)
        self.model.system = run.system
        self.model.reset(named_seed(run.seed, "init"))
        each = run.tokens / study.budget.steps * (1 + BACKWARD)

        def on_step(step: TrainStep) -> None:
            self.events.trained(run, step, study.budget.steps, each)
            store.beat(run.system, (step.step + 1) / study.budget.steps)

        log = train(self.model, rows, study.train, study.budget, on_step)
        with store.new_folder(f"{run.folder}/adapter") as adapter:
            self.model.save_adapter(adapter, self.planner.files.name)
        facts = json.dumps(self._facts(run), indent=1) + "\n"
        return [
            *(store.folder / run.folder / "adapter").iterdir(),
            store.write_rows(f"{run.folder}/train.parquet", TrainStep, log),
            store.write_text(f"{run.folder}/run.json", facts),
        ]

    def _facts(self, run: RunPlan) -> dict[str, object]:
        files = self.planner.files
        assert files is not None
        return {
            "train_id": run.system,
            "cocktail": list(run.cocktail),
            "seed": run.seed,
            "model": {
                "name": files.name,
                "source": files.source,
                "note": files.note,
                "revision": files.revision,
                "digest": files.digest,
            },
            "train": self.planner.study.train.model_dump(mode="json"),
            "budget": self.planner.study.budget.model_dump(mode="json"),
            "threads": torch.get_num_threads(),
            "mix": [asdict(row) for row in run.mix],
        }

    # ---- answering ----------------------------------------------------------------------------

    def _answering(self, run: RunPlan) -> Callable[[AnswerPlan], Model]:
        """What answers for this run, for a set of answers.

        A trained run answers with its adapter as it was written, whether trained just now or last
        week, so that a resumed study gives what an undisturbed one gives.
        """
        if run.kind == "majority":
            known = self.planner.corpus.known
            return lambda answer: MajorityModel(known[answer.task], run.system)
        model = self.model
        if run.kind in ("base", "model"):
            model.use_base()
        else:
            model.load_adapter(self.store.folder / run.folder / "adapter")
        model.system = run.system
        return lambda answer: model

    def _answer(self, run: RunPlan, answer: AnswerPlan, model: Model) -> Path:
        planner = self.planner
        predictions = predict(
            model,
            planner.items(answer),
            answer.form,
            answer.split,
            planner.study.evaluate.max_new_tokens,
            planner.prompt_hash,
        )
        self.store.drop_scores(run.folder)
        name = f"{run.answers_folder(answer)}/predictions.parquet"
        return self.store.write_rows(name, Prediction, predictions)


def local_model(planner: Planner) -> LocalModel:
    """The study's base model, loaded, with fresh adapters to train."""
    assert planner.files is not None
    assert planner.tokens is not None
    study = planner.study
    return LocalModel.load(planner.files.folder, planner.tokens, study.train, study.evaluate)


def begin(plan: Plan, store: Store, events: Events) -> int:
    """Once per `mixtune run`: give back what a dead process left, recheck finished files.

    Returns:
        How many runs are not finished.
    """
    stale, broken = store.recover()
    planned = {row.id for row in plan.rows()}
    for unit in [*stale, *broken]:
        what = "its files are missing or changed" if unit in broken else "was cut off"
        then = "done again" if unit.id in planned else "mixtune eval scores it again"
        events.note(f"{unit.label}: {what}, {then}")
    units = store.units()
    todo = [run for run in plan.runs if missing(run, units)]
    events.started(plan, len(todo), sum(_cost(run, units) for run in todo))
    return len(todo)


def missing(run: RunPlan, units: dict[str, Unit]) -> bool:
    """Whether any unit of a run is not done."""
    ids = [answer.id for answer in run.answers]
    ids += [run.system] if run.kind == "trained" else []
    return any(units[unit].state != "done" for unit in ids)


def answer_cost(run: RunPlan, answer: AnswerPlan) -> float:
    """Forward-pass tokens of a set of answers: both forms of the same items share one pass."""
    first = next(a for a in run.answers if (a.task, a.split) == (answer.task, answer.split))
    return float(answer.tokens) if answer.id == first.id else 0.0


def _cost(run: RunPlan, units: dict[str, Unit]) -> float:
    """Forward-pass tokens that are left to do, for the ETA."""
    cost = sum(answer_cost(run, a) for a in run.answers if units[a.id].state != "done")
    if run.kind == "trained" and units[run.system].state != "done":
        cost += run.tokens * (1 + BACKWARD)
    return cost
