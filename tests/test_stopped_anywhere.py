"""SIGTERM at every line where units change hands: none stays running, and what is done is whole."""

import contextlib
import shutil
import signal
import sys
from dataclasses import replace

import pytest
from study_kit import registry, study, write_data

from mixtune import signals
from mixtune.execution import api, assign, bank_training, worker
from mixtune.execution.assign import Assignment, alone, portion_of, started
from mixtune.execution.bank_training import run_portion
from mixtune.execution.portion import Setting
from mixtune.execution.worker import Worker, WorkerOptions, load_model
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events, Plan
from mixtune.store import files, states
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study

SMALL = {
    "tasks": ["north"],
    "ingredients": {"north": {"rows": 4}, "south": {"rows": 4}},
    "design": ["singles"],
    "budget": {"steps": 1, "examples_per_step": 4},
    "evaluate": {"validation_items": 2, "test_items": 2, "max_new_tokens": 2},
}
MODULES = (api, assign, bank_training, contextlib, signals, states, worker)
WATCHED = {module.__file__ for module in MODULES}


class Lines:
    """A trace function that notes the lines of watched files, each with the two calls around it.

    SIGTERM comes before the line `at`, the first time. Two calls tell one use of a context manager
    from another. Lines that a signal cannot reach, since it is held back, do not count.
    """

    def __init__(self, at=None):
        self.at, self.seen = at, {}

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line" and signal.getsignal(signal.SIGTERM) is ends:
            around = (frame.f_back, frame.f_back.f_back)
            line = (frame.f_code.co_name, frame.f_lineno, *(f.f_code.co_name for f in around))
            self.seen[line] = True
            if line == self.at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGTERM)
        return self


def ends(number, frame):
    """As workers and the command line do at a SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def traced(lines, plan, store, work):
    """Do a plan's work; whether the signal came."""
    before, handler = sys.gettrace(), signal.signal(signal.SIGTERM, ends)
    try:
        with store.lock(), started(plan, store, Events()):
            sys.settrace(lines)
            work(plan, store)
    except SystemExit:
        return True
    finally:
        sys.settrace(before)
        signal.signal(signal.SIGTERM, handler)
    return False


@pytest.fixture(scope="module")
def model(files, tmp_path_factory):
    """A planner and its base model with a bank of two, loaded once."""
    planner = Planner(study(**SMALL), registry(write_data(tmp_path_factory.mktemp("data"))), files)
    portion = portion_of(alone(planner.plan().runs[0]), planner, ())
    return planner, load_model(portion, None, planner.tokens, options(planner))


def options(planner):
    return WorkerOptions(Setting.here(2, 1, "cpu", planner.study.train.compute), slots=2)


@pytest.fixture
def everywhere(model, tmp_path, monkeypatch):
    """Call it with runs and their work: it is stopped at each line in turn, from the same start."""
    planner, _ = model
    finish, finished = states.States.finish, []

    def finishes(self, unit, *arguments):
        finish(self, unit, *arguments)
        finished.append(unit)

    connect = states.States._connect

    def connects(self):
        connection = connect(self)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(states.States, "finish", finishes)
    # The disk is flushed for a loss of power, which is not tried here.
    monkeypatch.setattr(states.States, "_connect", connects)
    monkeypatch.setattr(files, "_flush", lambda path: None)

    def call(runs, work):
        plan = Plan(planner.study, planner.files, tuple(runs))
        fresh = Store(tmp_path / "fresh")
        fresh.save_plan(plan.rows(), dump_study(planner.study), {})

        def stopped(at):
            store, lines = Store(tmp_path / "stopped"), Lines(at)
            shutil.copytree(fresh.folder, store.folder)
            finished.clear()
            came = traced(lines, plan, store, work)
            found = store.units()
            assert came == (at in lines.seen), f"the signal was lost: {at}"
            assert "running" not in {unit.state for unit in found.values()}, at
            assert {found[unit].state for unit in finished} <= {"done"}, at
            assert not any(store.damage(unit) for unit in found.values()), at
            shutil.rmtree(store.folder)
            return lines.seen

        lines = stopped(None)
        assert finished, "nothing was done"
        for line in lines:
            stopped(line)

    return call


def test_answers(model, everywhere):
    planner, _ = model
    majority = planner.plan().runs[0]
    run = replace(majority, answers=majority.answers[:2])

    portion = portion_of(alone(run), planner, [answer.id for answer in run.answers])

    def work(plan, store):
        load = lambda *_: pytest.fail("loaded a model")  # noqa: E731
        run_portion(Worker(store, Events(), options(planner), load), portion)

    everywhere([run], work)


def test_adapters_in_a_bank(model, everywhere):
    planner, base = model
    trained = [run for run in planner.plan().runs if run.kind == "trained"]
    runs = tuple(replace(run, answers=()) for run in trained)
    portion = portion_of(Assignment("bank", runs, trains=True), planner, ())

    def work(plan, store):
        run_portion(Worker(store, Events(), options(planner), lambda *_: base), portion)

    assert len(runs) == 2
    everywhere(runs, work)


def test_answers_of_an_api(model, everywhere, monkeypatch):
    planner, _ = model
    majority = planner.plan().runs[0]
    run = replace(majority, kind="api", answers=majority.answers[:2])

    def writes(self, run, answer, model):
        return [self.store.write_text(f"{run.answers_folder(answer)}/said.txt", "dry")]

    asking = api._ApiWorker
    monkeypatch.setattr(asking, "open", lambda *_: None)
    monkeypatch.setattr(asking, "_instruction", lambda *_: ("", []))
    monkeypatch.setattr(asking, "_model", lambda *_: None)
    monkeypatch.setattr(asking, "_write", writes)
    everywhere([run], lambda plan, store: api.answer_remote(plan, planner, store, Events()))
