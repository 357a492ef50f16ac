"""A portion: one value, one file with a digest, and all that a worker needs."""

import os
import subprocess
import sys

import pytest
from execution_kit import portions_of, setting, through_file
from study_kit import registry, study, training_rows
from test_execution import Listener, run

from mixtune.errors import StoreError
from mixtune.execution.assign import Assignment, alone, assign, started
from mixtune.execution.portion import Portion
from mixtune.planning.plan import Planner
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study
from mixtune.tasks.examples import query_of


@pytest.fixture
def planner(data, files):
    return Planner(study(seeds=[1, 2]), registry(data), files)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "weather")


@pytest.fixture
def portion(planner, store):
    """A bank of all adapters, and the majority's answers beside them."""
    runs = planner.plan().runs
    trained = tuple(run for run in runs if run.kind == "trained")
    (made,) = portions_of([Assignment("bank", trained, trains=True)], planner, store)
    return made


def test_it_is_the_same_after_its_file(portion, store):
    read = through_file(portion, store)
    assert read == portion
    assert read.digest == portion.digest


def test_it_holds_the_rows_that_the_planner_gives_and_each_once(portion, planner):
    for member in portion.runs:
        assert portion.training_rows(member) == training_rows(planner, member)
    assert len({row.example_id for row in portion.rows}) == len(portion.rows) == 40
    assert sum(len(order) for order in portion.order.values()) == 6 * 12


def test_its_items_are_those_of_the_plan_without_their_answers(portion, planner):
    assert len(portion.queries) == 4, "two tasks, validation and test"
    for answer in (answer for member in portion.runs for answer in member.answers):
        questions = portion.questions(answer)
        assert (questions.task, questions.split) == (answer.task, answer.split)
        assert questions.queries == tuple(map(query_of, planner.items(answer)))
        assert not any(hasattr(query, "target") for query in questions.queries)


def test_what_is_answered_is_left_out(planner, data, files, store):
    run(data, files, store, seeds=[1, 2])
    for each in portions_of([alone(one) for one in planner.plan().runs], planner, store):
        assert (each.queries, each.train_answers, each.rows) == ({}, {}, ())


def test_another_content_has_another_digest(portion, planner, store):
    (one,) = portions_of([Assignment("bank", portion.runs[:1], trains=True)], planner, store)
    assert one.digest != portion.digest


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_an_altered_file_is_refused(portion, store, place):
    path = portion.write(store.portion_file("altered"))
    body = bytearray(path.read_bytes())
    body[int(len(body) * place)] ^= 1
    path.write_bytes(body)
    with pytest.raises(StoreError, match="a portion of work cannot be used") as error:
        Portion.read(path)
    assert "writes it again" in str(error.value)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be used"):
        Portion.read(path)


ELSEWHERE = """
import sys
for name in ("mixtune.planning.plan", "mixtune.planning.corpus"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
from mixtune.execution.bank_training import run_portion
from mixtune.execution.portion import Setting
from mixtune.execution.portion import Portion
from mixtune.execution.worker import Worker, WorkerOptions
from mixtune.planning.runs import Events
from mixtune.store.folder import Store
import mixtune.execution.pool
import torch
torch.set_num_threads(1)
options = WorkerOptions(Setting.here(1, 1, "cpu", "float32"))
worker = Worker(Store(Path(sys.argv[1])), Events(), options)
for path in sys.argv[2:]:
    run_portion(worker, Portion.read(Path(path)))
print(len(worker.failed))
"""


def test_a_process_without_a_planner_does_a_study_from_portion_files(planner, data, files, store):
    plan, listener = planner.plan(), Listener()
    with store.lock():
        store.save_plan(plan.rows(), dump_study(planner.study), {})
        with started(plan, store, listener):
            assignments = assign(plan, store, setting(planner), 1, listener)
            paths = [
                each.write(store.portion_file(each.name))
                for each in portions_of(assignments, planner, store)
            ]
            done = subprocess.run(
                [sys.executable, "-c", ELSEWHERE, store.folder, *paths],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert {unit.state for unit in store.units().values()} == {"done"}
    assert run(data, files, store, seeds=[1, 2]).ran == []
