"""Run a plan on this machine, portion after portion; only what is missing or failed.

A run is an adapter and its sets of answers, each a unit with its own state (desk.py). A portion
(deal.py) is one system to be answered, or a bank of adapters to be trained (training.py).

Knows: which portions this process takes, what there is to do at a start. Does not know: how
training, answering or scoring work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.model import LocalModel
from mixtune.errors import StoreError
from mixtune.execution.assign import Portion, Setting, heads, missing
from mixtune.execution.bank_training import BACKWARD, Training
from mixtune.execution.checkpoint import Head
from mixtune.execution.options import CHECKPOINT_EVERY
from mixtune.execution.units import FAILURES, Desk, answer_cost, said
from mixtune.planning.events import Events
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.signals import held_back
from mixtune.store.folder import ASIDE, Store
from mixtune.store.states import Unit


class Session:
    """One process working on one study."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        load_model: Callable[[], LocalModel],
        events: Events,
        setting: Setting | None = None,
        every: float = CHECKPOINT_EVERY,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            planner: gives training rows and items.
            store: where results go.
            load_model: the base model with as many slots as a bank may need.
            events: told of progress.
            setting: of the banks; by default one adapter at a time with this process's threads.
            every: seconds between two checkpoints of a bank; 0 is after every step.
        """
        self.desk = Desk(planner, store, load_model, events)
        self.setting = setting or alone(planner)
        self.every = every

    def run(self, plan: Plan, portions: Sequence[Portion]) -> list[RunPlan]:
        """Do the portions that nobody else has taken; returns the runs that failed.

        The caller holds the store's lock, has saved the plan, has called `begin` and has dealt.
        """
        places = {run.system: place for place, run in enumerate(plan.runs, start=1)}
        for portion in portions:
            if self.desk.store.claim(portion.name):
                self._do(portion, places)
        return self.desk.failed

    def _do(self, portion: Portion, places: dict[str, int]) -> None:
        if portion.trains:
            self._train(portion, places)
            return
        (run,) = portion.runs
        self.desk.announce(run, places[run.system], len(places))
        self.desk.answer(run)

    def _train(self, portion: Portion, places: dict[str, int]) -> None:
        try:
            training = Training(self.desk, portion, self.setting, self.every, places)
        except StoreError:
            raise
        except FAILURES as error:  # the base model cannot be loaded
            undone = self.desk.store.undone(run.system for run in portion.runs)
            for run in portion.runs:
                if run.system in undone:
                    self.desk.announce(run, places[run.system], len(places))
                    self.desk.store.fail(run.system, said(error), 0.0)
                    self.desk.fail(run, error)
            return
        training.run()


def alone(planner: Planner) -> Setting:
    """The setting of one adapter at a time, on the CPU, in this process."""
    return Setting.here(1, torch.get_num_threads(), "cpu", planner.study.train.compute)


def local_model(
    planner: Planner, slots: int = 1, device: str = "cpu", states: Path | None = None
) -> LocalModel:
    """The study's base model, loaded, with fresh adapters to train.

    `states`: where what the layers below the adapters compute is kept, if the study is of such.
    """
    assert planner.files is not None
    assert planner.tokens is not None
    study = planner.study
    model = LocalModel.load(
        planner.files.folder,
        planner.tokens,
        study.train,
        study.evaluate,
        slots=slots,
        device=device,
    )
    if states is not None and study.train.top_layers is not None:
        model.activation_cache = ActivationCache(model.decoder, states, planner.files.digest)
    return model


@contextmanager
def begin(plan: Plan, store: Store, events: Events) -> Iterator[int]:
    """Once per command that does a plan's units, in the body; the caller holds the store's lock.

    Before the body, give back what a dead process left and recheck finished files; after it,
    however it ends, give back what it left running: in this process, or in workers that it ended.

    Yields:
        How many runs are not finished.
    """
    unfinished = _take_up(plan, store, events)
    try:
        yield unfinished
    finally:
        # If the disk refuses, the next start does it.
        with held_back(), suppress(StoreError):
            store.release_running()


def _take_up(plan: Plan, store: Store, events: Events) -> int:
    stale, broken = store.recover()
    planned = {row.id for row in plan.rows()}
    kept = {name: head for name, head in heads(store).items() if isinstance(head, Head)}
    held = {system for head in kept.values() for system in head.members}
    for unit in [*stale, *broken]:
        what = "its files are missing or changed" if unit in broken else "was cut off"
        later = f"mixtune {unit.kind} does" if unit.kind in ASIDE else "mixtune eval scores"
        then = "done again" if unit.id in planned else f"{later} it again"
        if unit in broken or unit.id not in held:
            events.note(f"{unit.label}: {what}, {then}")
    units = store.units()
    todo = [run for run in plan.runs if missing(run, units)]
    made = {one.system: len(one.log) for head in kept.values() for one in head.seated}
    courses = {run.system: run.course for run in plan.runs if run.course is not None}
    parts = {s: steps / courses[s].steps for s, steps in made.items() if s in courses}
    events.started(plan, len(todo), sum(_cost(run, units, parts) for run in todo))
    return len(todo)


def _cost(run: RunPlan, units: Mapping[str, Unit], parts: Mapping[str, float]) -> float:
    """Forward-pass tokens that are left to do, for the ETA; `parts`: what checkpoints hold."""
    cost = sum(answer_cost(run, a) for a in run.answers if units[a.id].state != "done")
    if run.kind == "trained" and units[run.system].state != "done":
        cost += run.tokens * (1 + BACKWARD) * (1 - parts.get(run.system, 0.0))
    return cost
