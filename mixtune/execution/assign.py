"""Release what a dead process left, and cut a plan's unfinished runs into portions for workers.

A portion is one system to be answered, or a bank of adapters to be trained side by side and then
answered. The last bits of an adapter depend on its bank: more rows in a matrix product may be
summed in another order. So that a study that was killed ends with the bits of one that was not, who
shares a bank depends neither on timing nor on what was done before the kill:

- With one slot an adapter is alone. Every adapter is a portion, for whichever worker is free.
- With more slots, the plan's adapters are assigned to the workers in turn, and the adapters of one
  worker are one bank: they take slots in plan order, the next one as soon as a slot is free.
- A bank that was begun has a checkpoint with its members, their slots and its queue. Whichever
  worker takes it goes on from there. Adapters that were finished after the checkpoint was written
  are replayed for the bits of the others, and not saved again.
- What failed before, or was added to the study since, waits in a bank of its own.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

from mixtune.errors import StoreError
from mixtune.execution.bank_training import Head, Unusable, heads
from mixtune.execution.portion import AnswerCount, GoldItem, Portion, Setting, items_key
from mixtune.execution.worker import BACKWARD, answer_cost, missing, titles
from mixtune.identity import make_id
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events, Plan, RunPlan
from mixtune.signals import defer_signals
from mixtune.store.folder import EXTRA_KINDS, Store
from mixtune.store.states import Unit


@contextmanager
def started(plan: Plan, store: Store, events: Events) -> Iterator[int]:
    """Run a command's units in the body; the caller holds the store's lock and has saved the plan.

    Before the body, units of a dead process are released and finished files are checked. After it,
    however it ends, units that are still running are released: those of this process, and of
    workers that it ended.

    Yields:
        The number of unfinished runs.
    """
    unfinished = _recover(plan, store, events)
    try:
        yield unfinished
    finally:
        # If the disk refuses, the next start does it.
        with defer_signals(), suppress(StoreError):
            store.release_running()


def _recover(plan: Plan, store: Store, events: Events) -> int:
    interrupted, damaged = store.recover()
    planned = {row.id for row in plan.rows()}
    banks = [head for head in heads(store).values() if isinstance(head, Head)]
    resumable = {system for head in banks for system in head.members}
    for unit in [*interrupted, *damaged]:
        reason = "its files are missing or changed" if unit in damaged else "was cut off"
        verb = f"mixtune {unit.kind} does" if unit.kind in EXTRA_KINDS else "mixtune eval scores"
        remedy = "done again" if unit.id in planned else f"{verb} it again"
        if unit in damaged or unit.id not in resumable:
            events.note(f"{unit.label}: {reason}, {remedy}")
    units = store.units()
    unfinished = [run for run in plan.runs if missing(run, units)]
    steps = {run.system: run.course.steps for run in plan.runs if run.course is not None}
    trained = {
        adapter.system: len(adapter.log) / steps[adapter.system]
        for head in banks
        for adapter in head.adapters
        if adapter.system in steps
    }
    cost = sum(_cost(run, units, trained.get(run.system, 0.0)) for run in unfinished)
    events.started(plan, len(unfinished), cost)
    return len(unfinished)


def _cost(run: RunPlan, units: Mapping[str, Unit], trained: float) -> float:
    """Forward-pass tokens left to do, for the ETA; `trained`: part that a checkpoint holds."""
    cost = sum(answer_cost(run, a) for a in run.answers if units[a.id].state != "done")
    if run.kind == "trained" and units[run.system].state != "done":
        cost += run.tokens * (1 + BACKWARD) * (1 - trained)
    return cost


# ---- assignments --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assignment:
    """Runs that form one portion; `trains` and `resumes` as in `portion.Header`."""

    name: str
    runs: tuple[RunPlan, ...]
    trains: bool = False
    resumes: bool = False


def assign(
    plan: Plan, store: Store, setting: Setting, workers: int, events: Events
) -> list[Assignment]:
    """Assignments of all missing or failed units, in plan order; the caller holds the store's lock.

    Checkpoints that do not fit are removed, with a note that says why.
    """
    units = store.units()
    trained = [run for run in plan.runs if run.kind == "trained"]
    untrained = {run.system for run in trained if units[run.system].state != "done"}
    resumed = _resumed(trained, untrained, store, setting, events)
    waiting = untrained - {run.system for bank in resumed for run in bank.runs}
    step = workers if setting.slots > 1 else max(1, len(trained))
    banks = [tuple(run for run in trained[n::step] if run.system in waiting) for n in range(step)]
    fresh = [
        Assignment(make_id("bank", {"runs": [run.system for run in runs]}), runs, trains=True)
        for runs in banks
        if runs
    ]
    # Models behind APIs are asked by the process that holds the study, not by a worker, and merged
    # adapters wait for their parts (extra_systems.py).
    answers = [
        alone(run)
        for run in plan.runs
        if run.kind not in ("api", "merged") and run.system not in untrained and missing(run, units)
    ]
    position = {run.system: number for number, run in enumerate(plan.runs)}
    return sorted(
        [*answers, *resumed, *fresh],
        key=lambda each: min(
            position[run.system] for run in each.runs if not each.trains or run.system in untrained
        ),
    )


def alone(run: RunPlan) -> Assignment:
    """One system to be answered."""
    return Assignment(run.system, (run,))


def _resumed(
    trained: Sequence[RunPlan],
    untrained: Collection[str],
    store: Store,
    setting: Setting,
    events: Events,
) -> list[Assignment]:
    """Banks that go on from their checkpoints; unusable checkpoints are removed."""
    runs = {run.system: run for run in trained}
    banks = []
    for name, head in heads(store).items():
        if isinstance(head, Unusable):
            events.note(f"a checkpoint is not used, {head}; what it held is trained from its start")
            store.drop_bank(name)
            continue
        members = tuple(runs[system] for system in head.members if system in runs)
        again = [run for run in members if run.system in untrained]
        reason = setting.differs(head.setting)
        if len(members) < len(head.members):
            reason = "some of its runs are no longer in the plan"
        if again and not reason:
            banks.append(Assignment(name, members, trains=True, resumes=True))
            continue
        if again:  # else its process died between its last adapter and this
            events.note(
                f"a checkpoint is not used ({reason}); trained from their start: {titles(again)}"
            )
        store.drop_bank(name)
    return banks


# ---- portions -----------------------------------------------------------------------------------


def portion_of(assignment: Assignment, planner: Planner, undone: Collection[str]) -> Portion:
    """Everything that a worker needs for an assignment: token rows, and items to be answered.

    `undone`: ids of the sets of answers that are missing; items of others are left out.

    Raises:
        SpecError: the base model is not resolved.
        DataError: the data is no longer what was planned.
    """
    assert planner.files is not None
    study, runs = planner.study, assignment.runs
    pairs = [(run, answer) for run in runs for answer in run.answers if answer.id in undone]
    answered = {items_key(answer): answer for _, answer in pairs if answer.form != "likelihood"}
    read = {items_key(answer): answer for _, answer in pairs if answer.form == "likelihood"}
    floors = sorted({answer.task for run, answer in pairs if run.kind == "majority"})
    training = planner.training_rows(runs) if assignment.trains else {}
    gold = {key: planner.gold_rows(answer) for key, answer in read.items()}
    # By identity: the planner gives the same object for the same example of a bank.
    distinct = {id(row): row for row in chain(*training.values(), *gold.values())}
    position = {key: number for number, key in enumerate(distinct)}
    return Portion(
        name=assignment.name,
        trains=assignment.trains,
        resumes=assignment.resumes,
        base=planner.files,
        train=study.train,
        evaluate=study.evaluate,
        budget=study.budget,
        runs=runs,
        queries={key: planner.queries(answer) for key, answer in answered.items()},
        gold={
            key: tuple(
                GoldItem(item.group, position[id(row)])
                for item, row in zip(planner.items(read[key]), rows, strict=True)
            )
            for key, rows in gold.items()
        },
        train_answers={task: _train_answers(planner, task) for task in floors},
        rows=tuple(distinct.values()),
        order={
            system: array("i", [position[id(row)] for row in rows])
            for system, rows in training.items()
        },
    )


def _train_answers(planner: Planner, task: str) -> tuple[AnswerCount, ...]:
    counts = Counter((row.stratum, row.target, row.cue) for row in planner.corpus.known[task])
    return tuple(AnswerCount(*answer, count) for answer, count in counts.items())
