"""One bank of adapters, from its first seat to its last adapter.

    fill free slots from the queue → one step of all → write what is done → … → answer, when empty

Every so often a checkpoint (checkpoint.py) says where the bank is; whoever takes the bank up after
its process has died does from there exactly what would have been done. Adapters are answered when
nothing is in training, since an adapter that answers takes the first slot.

Knows: seats, queue, checkpoints, states of adapters in training. Does not know: how a step is
computed, what is in an adapter's files.
"""

import time
from contextlib import suppress
from dataclasses import asdict

from mixtune.engine.train import Diverged, Job, Trainer
from mixtune.errors import MixtuneError, StoreError, shorten
from mixtune.execution import checkpoint
from mixtune.execution.assign import Portion, Setting, title, titles
from mixtune.execution.checkpoint import Head, Seated, Unusable
from mixtune.execution.units import FAILURES, Desk, said
from mixtune.identity import seed as named_seed
from mixtune.planning.plan import Planner
from mixtune.planning.runs import RunPlan
from mixtune.signals import held_back

BACKWARD = 2.0
"""Cost of a token's backward pass in forward passes, for the ETA only."""

BEAT = 0.5
"""Seconds between two entries of how far adapters are."""

SHARE = 20
"""Checkpoints take at most one part in so many of the time: large banks write them less often."""

QUICK = 5.0
"""Seconds that the last checkpoint may have taken for one more to be written on the way out."""


class Training:
    """A bank at work. `mates`: for each run, whom it ever shared the bank with."""

    def __init__(
        self, desk: Desk, portion: Portion, setting: Setting, every: float, places: dict[str, int]
    ) -> None:
        """Take a portion; `every`: seconds between two checkpoints; `places`: runs' numbers."""
        self.desk = desk
        self.portion = portion
        self.setting = setting
        self.every = every
        self.places = places
        self.trainer = Trainer(desk.model)
        self.runs = {run.system: run for run in portion.runs}
        undone = desk.store.undone(self.runs)
        self.ghosts = set(self.runs) - undone
        """Finished since the checkpoint was written: trained along for the bits of the others."""
        self.queue: list[RunPlan] = []
        self.mates: dict[str, set[str]] = {system: set() for system in self.runs}
        self._waiting: list[RunPlan] = []
        self._begun: dict[str, float] = {}
        self._beaten = 0.0
        self._saved, self._took = time.monotonic(), 0.0
        self._whole = False
        """Whether a checkpoint may be written of the bank: it is open, and no step is half done."""

    def run(self) -> None:
        """Train all of the portion's adapters and make their answers.

        Raises:
            StoreError, OSError: the study's folder cannot be written.
        """
        try:
            self._open()
            self._whole = True
            while self.queue or self.trainer.jobs:
                self._fill()
                if self.trainer.jobs:
                    self._step()
                if not self.trainer.jobs:
                    self._answer()
                elif self._due:
                    self.save()
        except BaseException as error:
            self._leave(error)
            raise

    # ---- seats ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Go on from the checkpoint, or begin with all in the queue."""
        if self.portion.resumes:
            try:
                self._restore()
                return
            except Unusable as error:
                again = titles([run for s, run in self.runs.items() if s not in self.ghosts])
                self.desk.events.note(
                    f"a checkpoint is not used, {error}; trained from their start: {again}"
                )
        self.queue = [run for system, run in self.runs.items() if system not in self.ghosts]
        self.ghosts = set()
        if self.setting.slots > 1:
            self.save()  # who shares the bank is settled before anything is finished

    def _fill(self) -> None:
        """Seat the next in the queue wherever a slot is free."""
        while self.queue and self.trainer.free_slots:
            # Out of the queue last: a signal may come in between, and nobody may be lost.
            self._seat(self.queue[0])
            self.queue.pop(0)

    def _seat(self, run: RunPlan) -> None:
        self._begin(run)
        try:
            job = job_of(self.desk.planner, run)
            with held_back():  # a checkpoint of who is seated says with whom
                self.trainer.assign_slot(job)
                seated = {one.name for one in self.trainer.jobs.values()}
                for system in seated:
                    self.mates[system] |= seated - {system}
        except FAILURES as error:
            self._fail(run, error)

    def _begin(self, run: RunPlan) -> None:
        if run.system in self.ghosts:
            return
        self.desk.announce(run, self.places[run.system], len(self.places))
        self._begun[run.system] = time.monotonic()
        self.desk.store.begin(run.system)

    # ---- steps ----------------------------------------------------------------------------------

    def _step(self) -> None:
        """One step of all, and what is done with it written: whole, whatever signal comes."""
        with held_back():
            self._whole = False
            finished = self._stepped()
            self._report([*self.trainer.jobs.values(), *(job for _, job in finished)])
            for slot, job in finished:
                self._keep(slot, job)
            self._whole = True

    def _stepped(self) -> list[tuple[int, Job]]:
        """Step; returns who is done. Who fails is out of the bank, the others go on."""
        jobs = self.trainer.jobs
        try:
            return self.trainer.step()
        except Diverged as error:
            for one in (error, *error.also):
                self._fail(self.runs[one.job.name], one)
            return error.finished
        except FAILURES as error:
            # Nobody's fault in particular, such as want of memory.
            for job in jobs.values():
                self._fail(self.runs[job.name], error)
            jobs.clear()
            return []

    def _report(self, jobs: list[Job]) -> None:
        """Say how far adapters are, to the listener and, now and then, to the store."""
        told = [job for job in jobs if job.log and job.name not in self.ghosts]
        for job in told:
            run, steps = self.runs[job.name], job.budget.steps
            each = run.tokens / steps * (1 + BACKWARD)
            self.desk.events.trained(run, job.log[-1], steps, each)
        if time.monotonic() - self._beaten >= BEAT:
            self.desk.store.beat({job.name: len(job.log) / job.budget.steps for job in told})
            self._beaten = time.monotonic()

    def _keep(self, slot: int, job: Job) -> None:
        if job.name in self.ghosts:
            return
        run = self.runs[job.name]
        bank = {"slots": self.setting.slots, "with": sorted(self.mates[job.name])}
        self.desk.keep(run, slot, job.log, bank)
        del self._begun[job.name]
        self._waiting.append(run)

    def _fail(self, run: RunPlan, error: Exception) -> None:
        if run.system in self.ghosts:
            return
        seconds = time.monotonic() - self._begun.pop(run.system)
        self.desk.store.fail(run.system, said(error), seconds)
        self.desk.fail(run, error)

    def _answer(self) -> None:
        """The bank is empty: those that are trained give their answers."""
        if self.queue:
            self.save()
        else:
            self.desk.store.drop_bank(self.portion.name)
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            self.desk.answer(run)

    # ---- checkpoints ----------------------------------------------------------------------------

    @property
    def _due(self) -> bool:
        since = time.monotonic() - self._saved
        return self.every == 0 or since >= max(self.every, SHARE * self._took)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            StoreError: no space, no permission; the one before is still there.
        """
        began = time.monotonic()
        path = self.desk.store.bank_file(self.portion.name)
        checkpoint.save(path, self._head(), self.trainer.state_dict())
        self._saved = time.monotonic()
        self._took = self._saved - began

    def _head(self) -> Head:
        jobs = sorted(self.trainer.jobs.items())
        seated = [
            Seated(job.name, slot, tuple(job.log), tuple(sorted(self.mates[job.name])))
            for slot, job in jobs
        ]
        here = {one.system for one in seated}
        return Head(
            setting=asdict(self.setting),
            seated=tuple(seated),
            queue=tuple(run.system for run in self.queue if run.system not in here),
            pass_tokens=self.desk.model.pass_tokens,
        )

    def _restore(self) -> None:
        """Seat everyone as the checkpoint says.

        Raises:
            Unusable: it is damaged, or the data is no longer what it was.
        """
        path = self.desk.store.bank_file(self.portion.name)
        head, tensors = checkpoint.read(path)
        bank = self.desk.model.bank
        if any(tensor.shape != bank.weights[0].shape for tensor in tensors.values()) or any(
            one.slot >= bank.slots for one in head.seated
        ):
            raise Unusable("its adapters are of another form")
        try:
            jobs = {one.slot: self._job_at(one) for one in head.seated}
        except MixtuneError as error:
            raise Unusable(str(error)) from error
        for one in head.seated:
            self._begin(self.runs[one.system])
            self.mates[one.system] = set(one.mates)
        self.trainer.resume(jobs, tensors)
        self.queue = [self.runs[system] for system in head.queue]
        if head.pass_tokens is not None:
            self.desk.model.pass_tokens = head.pass_tokens
        self._say_restored(jobs)

    def _job_at(self, one: Seated) -> Job:
        job = job_of(self.desk.planner, self.runs[one.system])
        job.log.extend(one.log)
        return job

    def _say_restored(self, jobs: dict[int, Job]) -> None:
        shown = [
            f"{title(self.runs[job.name])} at step {len(job.log)} of {job.budget.steps}"
            for job in jobs.values()
            if job.name not in self.ghosts
        ]
        if shown:
            self.desk.events.note(f"goes on from its checkpoint: {shorten(', '.join(shown), 300)}")
        if self.ghosts:
            self.desk.events.note(
                "trained along, though done, for the bits of those they share a bank with: "
                + titles([self.runs[system] for system in self.runs if system in self.ghosts])
            )

    def _leave(self, error: BaseException) -> None:
        """On the way out: a last checkpoint if it is quick, and units in work given back."""
        made = any(job.log for job in self.trainer.jobs.values())
        disk = isinstance(error, StoreError | OSError)
        if self._whole and made and not disk and self._took < QUICK:
            with suppress(StoreError):
                self.save()
        for system in self._begun:
            with suppress(StoreError):
                self.desk.store.release(system)


def job_of(planner: Planner, run: RunPlan) -> Job:
    """A run's whole training.

    Raises:
        DataError: the data is no longer what the run was planned with.
    """
    assert run.seed is not None
    assert run.course is not None
    train, course = planner.study.train, run.course
    if course.warmup_steps is not None:
        train = train.model_copy(update={"warmup_steps": course.warmup_steps})
    if course.lr is not None:
        train = train.model_copy(update={"lr": course.lr})
    rows = planner.training_rows(run)
    return Job(run.system, rows, train, course, named_seed(run.seed, "init"))
