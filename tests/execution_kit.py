"""Portions done in this process, each through its file as a worker process gets it."""

import torch

from mixtune.execution.assign import portion_of
from mixtune.execution.bank_training import run_portion
from mixtune.execution.portion import Portion, Setting
from mixtune.execution.worker import Worker, WorkerOptions


def setting(planner):
    """One adapter at a time, on the CPU."""
    return Setting.here(1, torch.get_num_threads(), "cpu", planner.study.train.compute)


def portions_of(assignments, planner, store):
    """Made one at a time, as in `run_study`."""
    for each in assignments:
        undone = store.undone(answer.id for run in each.runs for answer in run.answers)
        yield portion_of(each, planner, undone)


def run_here(assignments, planner, store, events, load=None):
    """What worker processes do with a study's assignments."""
    worker = Worker(store, events, WorkerOptions(setting(planner)), load)
    for portion in portions_of(assignments, planner, store):
        run_portion(worker, through_file(portion, store))
    return worker.failed


def pool_here(portions, store, options, workers, events):
    """Stands in for `run_pool`."""
    torch.set_num_threads(options.setting.threads)
    worker = Worker(store, events, options)
    for portion in portions:
        run_portion(worker, through_file(portion, store))
    return worker.failed


def through_file(portion, store):
    path = portion.write(store.portion_file(portion.name))
    read = Portion.read(path)
    path.unlink()
    return read
