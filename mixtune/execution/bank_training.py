"""One bank of adapters, from the first step to the last adapter's answers.

    fill free slots from the queue → one step of all → write finished ones → … → answer, when empty

Now and then a checkpoint records where the bank is; whichever worker takes the bank after its
process has died does exactly what would have been done. Adapters answer when nothing is in
training, since an adapter that answers takes the first slot.

    banks/<bank>.safetensors
      tensors    weights and moments of each adapter in a slot, as `Trainer.state` names them
      metadata   `bank`: the head as JSON; `sha256`: of that JSON and of every tensor

One file and not two, so that tensors and steps are never of different moments. Without the checksum
a changed number would change a result, and nothing would show it.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixtune.engine.train import Diverged, Job, Trainer
from mixtune.errors import MixtuneError, StoreError, shorten
from mixtune.execution.portion import Portion
from mixtune.execution.worker import BACKWARD, FAILURES, Worker, error_text, titles
from mixtune.identity import digest_of_arrays
from mixtune.identity import seed as named_seed
from mixtune.models.files import check_unchanged
from mixtune.planning.runs import RunPlan
from mixtune.records import TrainStep
from mixtune.signals import defer_signals
from mixtune.store.files import write_whole
from mixtune.store.folder import Store

SCHEME = 1
"""Version of a checkpoint; another one is not read."""

HEARTBEAT_EVERY = 0.5
"""Seconds between two entries of progress in the store."""

CHECKPOINT_SHARE = 20
"""Checkpoints take at most 1/20 of the time: large banks write them less often."""

QUICK_CHECKPOINT = 5.0
"""Seconds that the last checkpoint may have taken for one more to be written on the way out."""


class Unusable(Exception):
    """A checkpoint that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter in training: id of its run, its slot and its steps so far.

    `peers`: ids of the runs that ever shared the bank with it.
    """

    system: str
    slot: int
    log: tuple[TrainStep, ...]
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint without its tensors.

    `setting`: all that bits depend on beside the members (`portion.Setting`). `adapters` in the
    order of slots; `queue`: ids of the runs that wait for a slot, in their order. `pass_tokens`:
    tokens of one pass that fit into memory, as the engine has found.
    """

    setting: dict[str, Any]
    adapters: tuple[AdapterState, ...]
    queue: tuple[str, ...]
    pass_tokens: int

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of all runs that the bank is not done with."""
        return (*(adapter.system for adapter in self.adapters), *self.queue)


def run_portion(worker: Worker, portion: Portion) -> None:
    """Train a portion's bank, or answer its system.

    Raises:
        StoreError, OSError: the study's folder cannot be written.
        ModelError: the base model's files changed since the study was planned; no unit was begun.
    """
    check_unchanged(portion.base)
    if not portion.trains:
        (run,) = portion.runs
        worker.start(run)
        worker.answer(portion, run)
        return
    try:
        training = BankTraining(worker, portion)
    except StoreError:
        raise
    except FAILURES as error:  # the base model cannot be loaded
        undone = worker.store.undone(run.system for run in portion.runs)
        for run in portion.runs:
            if run.system in undone:
                worker.start(run)
                worker.store.fail(run.system, error_text(error), 0.0)
                worker.fail(run, error)
        return
    training.run()


class BankTraining:
    """A bank in training. `peers`: by run, the runs that ever shared the bank with it."""

    def __init__(self, worker: Worker, portion: Portion) -> None:
        self.worker = worker
        self.store = worker.store
        self.portion = portion
        self.setting = worker.options.setting
        self.model = worker.model(portion)
        self.trainer = Trainer(self.model)
        self.runs = {run.system: run for run in portion.runs}
        self.replayed = set(self.runs) - self.store.undone(self.runs)
        """Finished since the checkpoint was written: trained again for the bits of the others."""
        self.queue: list[RunPlan] = []
        self.peers: dict[str, set[str]] = {system: set() for system in self.runs}
        self._unanswered: list[RunPlan] = []
        self._began: dict[str, float] = {}
        self._heartbeat_at = 0.0
        self._saved_at, self._save_seconds = time.monotonic(), 0.0
        self._consistent = False
        """True if a checkpoint may be written: the bank is open, and no step is half done."""

    def run(self) -> None:
        """Train all of the portion's adapters and make their answers."""
        try:
            self._open()
            self._consistent = True
            while self.queue or self.trainer.jobs:
                self._fill()
                if self.trainer.jobs:
                    self._step()
                if not self.trainer.jobs:
                    self._answer()
                elif self._checkpoint_due:
                    self.save()
        except BaseException as error:
            self._leave(error)
            raise

    # ---- slots ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Go on from the checkpoint, or begin with all runs in the queue."""
        if self.portion.resumes:
            try:
                self._restore()
                return
            except Unusable as error:
                again = titles([run for s, run in self.runs.items() if s not in self.replayed])
                self.worker.events.note(
                    f"a checkpoint is not used, {error}; trained from their start: {again}"
                )
        self.queue = [run for system, run in self.runs.items() if system not in self.replayed]
        self.replayed = set()
        if self.setting.slots > 1:
            self.save()  # who shares the bank is settled before anything is finished

    def _fill(self) -> None:
        """Start the next runs of the queue wherever a slot is free."""
        while self.queue and self.trainer.free_slots:
            # Out of the queue last: a signal may come in between, and no run may be lost.
            self._assign_slot(self.queue[0])
            self.queue.pop(0)

    def _assign_slot(self, run: RunPlan) -> None:
        self._begin(run)
        try:
            job = job_of(self.portion, run)
            with defer_signals():  # a checkpoint of the members names their peers
                self.trainer.assign_slot(job)
                members = {each.name for each in self.trainer.jobs.values()}
                for system in members:
                    self.peers[system] |= members - {system}
        except FAILURES as error:
            self._fail(run, error)

    def _begin(self, run: RunPlan) -> None:
        if run.system in self.replayed:
            return
        self.worker.start(run)
        self._began[run.system] = time.monotonic()
        self.store.begin(run.system)

    # ---- steps ----------------------------------------------------------------------------------

    def _step(self) -> None:
        """One step of all, with finished adapters written: whole, whatever signal comes."""
        with defer_signals():
            self._consistent = False
            finished = self._finished_by_step()
            self._report([*self.trainer.jobs.values(), *(job for _, job in finished)])
            for slot, job in finished:
                self._save_adapter(slot, job)
            self._consistent = True

    def _finished_by_step(self) -> list[tuple[int, Job]]:
        """Step; slots and jobs that are done. A failed job leaves the bank, the others go on."""
        jobs = self.trainer.jobs
        try:
            return self.trainer.step()
        except Diverged as error:
            for each in (error, *error.also):
                self._fail(self.runs[each.job.name], each)
            return error.finished
        except FAILURES as error:
            # No run's own fault, such as too little memory.
            for job in jobs.values():
                self._fail(self.runs[job.name], error)
            jobs.clear()
            return []

    def _report(self, jobs: list[Job]) -> None:
        """Report progress to the listener and, now and then, to the store."""
        new = [job for job in jobs if job.log and job.name not in self.replayed]
        for job in new:
            run, steps = self.runs[job.name], job.budget.steps
            cost = run.tokens / steps * (1 + BACKWARD)
            self.worker.events.trained(run, job.log[-1], steps, cost)
        if time.monotonic() - self._heartbeat_at >= HEARTBEAT_EVERY:
            self.store.beat({job.name: len(job.log) / job.budget.steps for job in new})
            self._heartbeat_at = time.monotonic()

    def _save_adapter(self, slot: int, job: Job) -> None:
        if job.name in self.replayed:
            return
        run = self.runs[job.name]
        bank = {"slots": self.setting.slots, "with": sorted(self.peers[job.name])}
        self.worker.save_adapter(self.portion, run, slot, job.log, bank)
        del self._began[job.name]
        self._unanswered.append(run)

    def _fail(self, run: RunPlan, error: Exception) -> None:
        if run.system in self.replayed:
            return
        seconds = time.monotonic() - self._began.pop(run.system)
        self.store.fail(run.system, error_text(error), seconds)
        self.worker.fail(run, error)

    def _answer(self) -> None:
        """The bank is empty: trained adapters give their answers."""
        if self.queue:
            self.save()
        else:
            self.store.drop_bank(self.portion.name)
        unanswered, self._unanswered = self._unanswered, []
        for run in unanswered:
            self.worker.answer(self.portion, run)

    # ---- checkpoints ----------------------------------------------------------------------------

    @property
    def _checkpoint_due(self) -> bool:
        every = self.worker.options.checkpoint_every
        elapsed = time.monotonic() - self._saved_at
        return every == 0 or elapsed >= max(every, CHECKPOINT_SHARE * self._save_seconds)

    def save(self) -> None:
        """Write a checkpoint; where that fails, the one before is still there."""
        began = time.monotonic()
        path = self.store.bank_file(self.portion.name)
        save_checkpoint(path, self._head(), self.trainer.state_dict())
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def _head(self) -> Head:
        adapters = tuple(
            AdapterState(job.name, slot, tuple(job.log), tuple(sorted(self.peers[job.name])))
            for slot, job in sorted(self.trainer.jobs.items())
        )
        in_slots = {adapter.system for adapter in adapters}
        return Head(
            setting=asdict(self.setting),
            adapters=adapters,
            queue=tuple(run.system for run in self.queue if run.system not in in_slots),
            pass_tokens=self.model.pass_tokens,
        )

    def _restore(self) -> None:
        """Put every adapter into the slot that the checkpoint names, or raise `Unusable`."""
        head, tensors = read_checkpoint(self.store.bank_file(self.portion.name))
        bank = self.model.bank
        shapes = {tensor.shape for tensor in tensors.values()} - {bank.weights[0].shape}
        if shapes or any(adapter.slot >= bank.slots for adapter in head.adapters):
            raise Unusable("its adapters are of another form")
        try:
            jobs = {a.slot: job_of(self.portion, self.runs[a.system]) for a in head.adapters}
        except MixtuneError as error:
            raise Unusable(str(error)) from error
        for adapter in head.adapters:
            jobs[adapter.slot].log.extend(adapter.log)
            self._begin(self.runs[adapter.system])
            self.peers[adapter.system] = set(adapter.peers)
        self.trainer.resume(jobs, tensors)
        self.queue = [self.runs[system] for system in head.queue]
        self.model.pass_tokens = head.pass_tokens
        self._note_restored(jobs)

    def _note_restored(self, jobs: dict[int, Job]) -> None:
        resumed = [
            f"{self.runs[job.name].title} at step {len(job.log)} of {job.budget.steps}"
            for job in jobs.values()
            if job.name not in self.replayed
        ]
        if resumed:
            text = shorten(", ".join(resumed), 300)
            self.worker.events.note(f"goes on from its checkpoint: {text}")
        if self.replayed:
            names = titles([run for system, run in self.runs.items() if system in self.replayed])
            self.worker.events.note(
                f"trained along, though done, for the bits of those they share a bank with: {names}"
            )

    def _leave(self, error: BaseException) -> None:
        """On the way out: a last checkpoint if it is quick, and running units released."""
        stepped = any(job.log for job in self.trainer.jobs.values())
        disk = isinstance(error, StoreError | OSError)
        if self._consistent and stepped and not disk and self._save_seconds < QUICK_CHECKPOINT:
            with suppress(StoreError):
                self.save()
        for system in self._began:
            with suppress(StoreError):
                self.store.release(system)


def job_of(portion: Portion, run: RunPlan) -> Job:
    """A run's whole training."""
    assert run.seed is not None
    assert run.course is not None
    train, schedule = portion.train, run.course
    if schedule.warmup_steps is not None:
        train = train.model_copy(update={"warmup_steps": schedule.warmup_steps})
    if schedule.lr is not None:
        train = train.model_copy(update={"lr": schedule.lr})
    rows = portion.training_rows(run)
    return Job(run.system, rows, train, schedule, named_seed(run.seed, "init"))


# ---- checkpoint --------------------------------------------------------------------------------


def save_checkpoint(path: Path, head: Head, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; the one that was there stays until this one is complete."""
    # A step is a list without names: a bank has thousands of them.
    adapters = [
        {**asdict(adapter), "log": [astuple(step) for step in adapter.log]}
        for adapter in head.adapters
    ]
    text = json.dumps({**asdict(head), "scheme": SCHEME, "adapters": adapters})
    saved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"bank": text, "sha256": _digest(text, saved)}
    write_whole(path, lambda part: save_file(saved, part, metadata=metadata))


def read_head(path: Path) -> Head:
    """Read a checkpoint without its tensors, whose checksum is not tested; else `Unusable`."""
    with _unusable_on_error(), safe_open(path, framework="pt") as file:
        return _head(file.metadata()["bank"])


def read_checkpoint(path: Path) -> tuple[Head, dict[str, Tensor]]:
    """Read a whole checkpoint; `Unusable` if a bit of it has changed."""
    with _unusable_on_error(), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _digest(metadata["bank"], tensors) != metadata["sha256"]:
            raise Unusable("it is damaged")
        return _head(metadata["bank"]), tensors


def heads(store: Store) -> dict[str, Head | Unusable]:
    """Heads of the banks' checkpoints by name of the bank."""
    by_name: dict[str, Head | Unusable] = {}
    for name in store.banks():
        try:
            by_name[name] = read_head(store.bank_file(name))
        except Unusable as error:
            by_name[name] = error
    return by_name


def _head(text: str) -> Head:
    value = json.loads(text)
    if value.pop("scheme") != SCHEME:
        raise Unusable("another version of mixtune wrote it")
    adapters = tuple(
        AdapterState(
            each["system"],
            each["slot"],
            tuple(TrainStep(*step) for step in each["log"]),
            tuple(each["peers"]),
        )
        for each in value["adapters"]
    )
    return Head(value["setting"], adapters, tuple(value["queue"]), value["pass_tokens"])


@contextmanager
def _unusable_on_error() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"it cannot be read ({shorten(str(error), 100)})") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    return digest_of_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, text)
