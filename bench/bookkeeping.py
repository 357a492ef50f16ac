"""The case of everything but the model: what a run costs in planning, states, files and results.

Knows: a study of any number of runs, mixtune's planner, store and worker. Does not know: engines,
peers.

Ingredients and items are few and the same in every study; only the number of seeds grows. The
model is a stand-in that answers at once, so that what is timed is mixtune's own work. A study of
10,000 runs is planned and saved whole; carried through (begun, logged, written, answered, done)
are as many of its runs as `CARRIED` says, in the folder of the whole study.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, cast

from bench.pipe import Channel
from bench.results import Outcome
from bench.run import Run
from mixtune.datasets.registry import Registry
from mixtune.engine.convert import prepare
from mixtune.engine.model import LocalModel
from mixtune.execution.assign import Assignment, portion_of, started
from mixtune.execution.portion import Setting
from mixtune.execution.worker import Worker, WorkerOptions
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events, Plan, RunPlan
from mixtune.records import Answer, Query, TrainStep
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import Study

T = TypeVar("T")

INGREDIENTS = ("toy-sentiment", "toy-mood", "toy-topic", "toy-general", "toy-maths")
CARRIED = 50
"""Runs that are carried through of each study."""


def bookkeeping(run: Run) -> Outcome:
    """Planning and bookkeeping of 10 to 10,000 runs with a model that costs nothing."""
    worker = run.start("bookkeeping", model=run.model, scratch=str(run.scratch))
    repeats: list[dict[str, Any]] = []
    for repeat in range(run.repeats):
        row = {str(n): worker.go(runs=n, repeat=repeat) for n in run.sizes.bookkeeping}
        repeats.append(row)
        for runs, found in row.items():
            parts = ", ".join(f"{what} {1000 * s:.1f}" for what, s in found.items())
            run.say(f"  {repeat + 1}/{run.repeats} {runs} runs, ms a run: {parts}")
    return Outcome(
        repeats=repeats,
        extras={"milliseconds_per_run": _medians(repeats), "carried": CARRIED},
        settings={"ingredients": list(INGREDIENTS)},
    )


def _medians(repeats: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        runs: {what: round(1000 * median(r[runs][what] for r in repeats), 3) for what in found}
        for runs, found in repeats[0].items()
    }


def measure_bookkeeping(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go makes a study of `runs` runs and replies with seconds a run of each part."""
    prepare(arguments["model"])
    channel.ready()
    while (order := channel.next()) is not None:
        folder = Path(arguments["scratch"]) / f"dry-{order['repeat']}-{order['runs']}"
        channel.reply(**_seconds(arguments["model"], order["runs"], folder))


def _seconds(model: str, runs: int, folder: Path) -> dict[str, float]:
    """Seconds a run of each part."""
    study = _study(model, runs)
    registry = Registry.builtin(None)
    planner = Planner(study, registry, prepare(model))
    plan, planned = _timed(planner.plan)
    store = Store(folder)
    facts = {"data": planner.leaks.data_rows()}
    _, saved = _timed(lambda: store.save_plan(plan.rows(), dump_study(study), facts))
    _, begun = _timed(lambda: _start(plan, store))
    carried = plan.runs[:CARRIED]
    _, done = _timed(lambda: _carry(planner, store, carried))
    _, looked = _timed(store.units)
    return {
        "plan": planned / runs,
        "save": saved / runs,
        "start": begun / runs,
        "carry": done / len(carried),
        "look": looked / runs,
    }


def _start(plan: Plan, store: Store) -> None:
    with started(plan, store, Events()):
        pass


def _timed(do: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    found = do()
    return found, time.perf_counter() - began


def _study(model: str, runs: int) -> Study:
    return parse_study(
        {
            "name": "bench-dry",
            "model": model,
            "tasks": ["toy-sentiment"],
            "ingredients": {name: {} for name in INGREDIENTS},
            "design": ["singles"],
            "budget": {"steps": 4, "examples_per_step": 4},
            "seeds": list(range(1, runs // len(INGREDIENTS) + 1)),
            "evaluate": {"validation_items": 10, "test_items": 10, "forms": ["constrained"]},
            "baselines": [],
        }
    )


def _carry(planner: Planner, store: Store, runs: Sequence[RunPlan]) -> None:
    """What `mixtune run` writes for each run, from planned to done."""
    setting = Setting.here(1, 1, "cpu", planner.study.train.compute)
    worker = Worker(store, Events(), WorkerOptions(setting), lambda *_: cast(LocalModel, Dry()))
    log = [
        TrainStep(step, 1.0, 1e-4, 1.0, 4, 10, 100, 0.1)
        for step in range(planner.study.budget.steps)
    ]
    for run in runs:
        undone = store.undone(answer.id for answer in run.answers)
        portion = portion_of(Assignment(run.system, (run,), trains=True), planner, undone)
        worker.start(run)
        store.begin(run.system)
        store.beat({run.system: 0.5})
        worker.save_adapter(portion, run, 0, log, {})
        worker.answer(portion, run)


class Dry:
    """Stands where the model stands: adapters of no size, the first choice always."""

    system = ""
    pass_tokens = 0
    on_note: Callable[[str], None] | None = None

    def save_adapter(self, folder: Path, base: str, slot: int) -> None:
        """A file where the adapter would be."""
        (folder / "adapter_config.json").write_text("{}\n", encoding="utf-8")

    def load_adapter(self, folder: Path, slot: int = 0, strength: float = 1.0) -> None:
        """Nothing to load."""

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """The first choice, for sure."""
        return [
            Answer(query.choices[0], (0.0, *[-9.0] * (len(query.choices) - 1))) for query in queries
        ]
