"""Units of work of a plan: running, then done, failed, or planned again when stopped.

Knows: states, which errors fail one run and which stop the study, how much is left to do. Does not
know: how a unit is computed.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mixtune.errors import MixtuneError, StoreError, shorten
from mixtune.execution.checkpoint import Head, heads
from mixtune.planning.events import Events
from mixtune.planning.runs import AnswerPlan, Plan, RunPlan
from mixtune.signals import defer_signals
from mixtune.store.folder import EXTRA_KINDS, Store
from mixtune.store.states import Unit

FAILURES = (MixtuneError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""Errors that fail one run and let the study go on. Any other error, and a store that cannot be
written, stops the study."""

BACKWARD = 2.0
"""Cost of a token's backward pass in forward passes, for the ETA only."""


@contextmanager
def unit_of_work(
    store: Store, unit: str, stops: tuple[type[Exception], ...] = ()
) -> Iterator[list[Path]]:
    """Run a unit in the body, which lists its files; it ends done, failed, or planned when stopped.

    `stops`: errors that say nothing against the unit, after which it is planned again. A signal
    that comes on the way into the body, or while the unit is released, leaves it running;
    `started` releases it at the end.
    """
    began = time.monotonic()
    paths: list[Path] = []
    try:
        store.begin(unit)  # inside: a signal may come as soon as the unit is running
        yield paths
        store.finish(unit, paths, time.monotonic() - began)
    except (StoreError, OSError):
        # The disk failed, not the unit; if it cannot even be released, the next start does that.
        with suppress(StoreError):
            store.release(unit)
        raise
    except Exception as error:
        if isinstance(error, stops):
            store.release(unit)
        else:
            store.fail(unit, error_text(error), time.monotonic() - began)
        raise
    except BaseException:
        store.release(unit)
        raise


def missing(run: RunPlan, units: Mapping[str, Unit]) -> bool:
    """True where a unit of a run is not done."""
    ids = [answer.id for answer in run.answers]
    ids += [run.system] if run.kind == "trained" else []
    return any(units[unit].state != "done" for unit in ids)


def titles(runs: Sequence[RunPlan]) -> str:
    """Names and seeds of several runs, for messages."""
    return shorten(", ".join(run.title for run in runs), 300)


def error_text(error: BaseException) -> str:
    """Class and message of an error, as stored with the run that failed."""
    return f"{type(error).__name__}: {error}"


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


def answer_cost(run: RunPlan, answer: AnswerPlan) -> float:
    """Forward-pass tokens of a set of answers: both forms of the same items share one pass."""
    first = next(a for a in run.answers if (a.task, a.split) == (answer.task, answer.split))
    return float(answer.tokens) if answer.id == first.id else 0.0
