"""Where a study is computed: device, processes, threads, slots, and how that is shown."""

import io
import re

import pytest
import torch
from rich.console import Console
from study_kit import registry, study

from mixtune.cli.show import StudyProgress
from mixtune.errors import SpecError
from mixtune.execution import run_study
from mixtune.execution.bank_training import Head
from mixtune.execution.portion import Options
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events
from mixtune.records import TrainStep


class Notes(Events):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def plan(data, files):
    """Nine runs and two baselines."""
    return Planner(study(seeds=[1, 2, 3]), registry(data), files).plan()


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory, of a GPU if there is to be one."""

    def set_free(size, cuda=False):
        monkeypatch.setattr(run_study, "free_memory", lambda: size)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (size, size))
        monkeypatch.setattr(run_study, "available_cores", lambda: 4)

    return set_free


def test_a_cpu_has_a_process_per_core_and_one_adapter_in_each(plan, free):
    free(10**9)
    notes = Notes()
    where = run_study.place(plan, Options(), [], notes)
    assert where == run_study.Placement("cpu", 4, 1, 1, 1)
    (note,) = notes.said
    assert re.fullmatch(
        r"bank of 1 adapter in each of 4 processes: about \d+\.\d MB each of 1\.0 GB free", note
    )


def room_for(plan, slots):
    """Free memory that so many adapters just fit into."""
    return int(run_study._Banks(plan, 1, 0).need(slots).total / run_study.BANKS_SHARE) + 2


def test_a_gpu_has_one_process_and_as_many_adapters_as_fit(plan, free):
    for size, slots in ((10**12, 9), (room_for(plan, 5), 5), (10, 1)):
        free(size, cuda=True)
        where = run_study.place(plan, Options(), [], Events())
        assert (where.device, where.workers, where.slots) == ("cuda", 1, slots)


def test_what_does_not_fit_is_refused_with_the_number_that_does(plan, free):
    free(room_for(plan, 5))
    with pytest.raises(SpecError, match=r"(?s)bank of 9 adapters does not fit.*--bank 5;"):
        run_study.place(plan, Options(workers=1, bank=64), [], Events())
    assert run_study.place(plan, Options(1, 5), [], Events()).used == 5
    with pytest.raises(SpecError, match="--bank 5"):
        run_study.place(plan, Options(1, 6), [], Events())
    with pytest.raises(SpecError, match="or fewer --workers"):
        run_study.place(plan, Options(2, 5), [], Events())


def test_one_adapter_at_a_time_is_never_refused(plan, free):
    free(10)
    assert run_study.place(plan, Options(1, 1), [], Events()).slots == 1


def test_a_large_bank_takes_no_more_memory_than_its_runs(plan, free):
    free(10**12)
    where = run_study.place(plan, Options(workers=4, bank=64), [], Events())
    assert (where.slots, where.used) == (64, 3)


def test_banks_that_were_begun_keep_their_slots(plan, free):
    free(10**12)
    kept = [Head({"slots": 5}, (), (), 1)]
    assert run_study.place(plan, Options(), kept, Events()).slots == 5
    assert run_study.place(plan, Options(bank=2), kept, Events()).slots == 2


def test_several_at_work_are_shown_as_such(plan):
    first, second = plan.runs[2:4]
    bar = StudyProgress(Console(file=io.StringIO(), width=200))
    bar.started(plan, 2, 100.0)
    for run in (first, second):
        bar.run_started(run)
    step = TrainStep(0, 0.5, 1e-3, 1.0, 4, 8, 40, 0.1)
    bar.trained(first, step, 4, 25.0)
    assert bar.bar.tasks[0].description.endswith("step 1/4 loss 0.500, 1 more at work")
    assert bar.bar.tasks[0].completed == 25.0
    bar.run_finished(second, 1.0)
    bar.trained(first, step, 4, 25.0)
    assert bar.bar.tasks[0].description.endswith("loss 0.500")
    bar.close()
