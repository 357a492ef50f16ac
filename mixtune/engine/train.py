"""The training loop: jobs in, adapters trained side by side in one bank, records of steps out.

A job is one adapter's whole training: its rows in their order, its learning rate, its seed. Jobs
take slots of the bank; each step takes the next batch of every job, computes the rows of all of
them in common passes, and steps each adapter by itself. When a job ends, its slot is free.

Knows: batches, learning-rate schedules, slots, how to resume. Does not know: where rows come from,
tasks, files.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from mixtune.engine.activation_cache import forward_pass
from mixtune.engine.batching import PASS_TOKENS, make_passes, training_sequence
from mixtune.engine.loss import backward, token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.optimizer import AdamW, StepSettings
from mixtune.errors import RunFailed
from mixtune.records import TrainStep
from mixtune.study.spec import Budget, RunLength, TrainSpec
from mixtune.tokens import Row


@dataclass(slots=True)
class Job:
    """One adapter to train: step k takes rows[k·b : (k+1)·b], the last one the rest.

    `budget`: how many rows and steps; steps of a RunLength may differ in size. `seed`: of the
    adapter's first weights; None leaves those in the slot. `log`: one record a step; it grows.
    """

    name: str
    rows: Sequence[Row]
    spec: TrainSpec
    budget: Budget | RunLength
    seed: int | None
    log: list[TrainStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check that the rows are those of the budget.

        Raises:
            ValueError: another number of rows, or a row with nothing to learn.
        """
        if len(self.rows) != self.budget.examples:
            raise ValueError(f"{len(self.rows)} rows for {self.budget.examples} examples")
        for row in self.rows:
            training_sequence(row)

    @property
    def done(self) -> bool:
        """True once every step has been made."""
        return len(self.log) == self.budget.steps

    def batch(self) -> Sequence[Row]:
        """The rows of the next step."""
        step, size = len(self.log), self.budget.examples_per_step
        if isinstance(self.budget, RunLength) and self.budget.sizes:
            start = sum(self.budget.sizes[:step])
            return self.rows[start : start + self.budget.sizes[step]]
        return self.rows[step * size : (step + 1) * size]


class Trainer:
    """Jobs in the slots of a model's bank.

    The same jobs in the same slots give the same bits on one machine with one number of threads.
    """

    def __init__(self, model: LocalModel) -> None:
        """Begin with every slot free; the model's bank is trained."""
        self.model = model
        self.optimizer = AdamW(model.bank.weights, model.bank.gradients)
        self.jobs: dict[int, Job] = {}

    @property
    def free_slots(self) -> list[int]:
        """Slots without a job."""
        return [slot for slot in range(self.model.bank.slots) if slot not in self.jobs]

    def assign_slot(self, job: Job) -> int:
        """Put a job into the first free slot; returns the slot.

        Raises:
            ValueError: no slot is free, or rank or alpha are not those of the bank.
        """
        config, spec = self.model.bank.config, job.spec
        if config is not None and (spec.rank, spec.alpha) != (config.rank, config.alpha):
            raise ValueError(
                f"{job.name} has rank {spec.rank} and alpha {spec.alpha:g}, its bank rank "
                f"{config.rank} and alpha {config.alpha:g}; all adapters of a bank have the same"
            )
        if not self.free_slots:
            raise ValueError(f"no slot for {job.name}: {len(self.jobs)} jobs in the bank")
        slot = self.free_slots[0]
        self.model.clear_answers()
        self.optimizer.reset(slot)
        if job.seed is not None:
            self.model.bank.reset(slot, job.seed)
        self.jobs[slot] = job
        return slot

    def step(self) -> list[tuple[int, Job]]:
        """One optimiser step of every job; returns those that are done with it, by slot.

        Raises:
            Diverged: the loss or the gradient of a job is not a finite number; the job has lost its
                slot (`error.job` names it, `error.also` any more of them), the rest have made
                their step (`error.finished` is what would have been returned).
        """
        started = time.perf_counter()
        self.model.clear_answers()
        self.model.bank.set_scaling(1.0)
        losses = self._accumulate_batches()
        grad_norms = self.optimizer.grad_norms()
        finished: list[tuple[int, Job]] = []
        diverged: dict[int, Diverged] = {}
        for slot, job in sorted(self.jobs.items()):
            number, spec = len(job.log), job.spec
            loss, grad_norm = losses[slot], grad_norms[slot]
            lr = learning_rate(number, spec, job.budget.steps)
            self.optimizer.step(slot, grad_norm, StepSettings(lr, spec.weight_decay, spec.clip))
            self.model.bank.sync_to_compute_dtype(slot)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                diverged[slot] = Diverged(job, number, loss, grad_norm)
                continue
            seconds = (time.perf_counter() - started) / len(self.jobs)
            job.log.append(_record(job, loss=loss, lr=lr, grad_norm=grad_norm, seconds=seconds))
            if job.done:
                finished.append((slot, job))
        for slot in (*diverged, *(slot for slot, _ in finished)):
            del self.jobs[slot]
        if diverged:
            error, *also = diverged.values()
            error.also, error.finished = also, finished
            raise error
        return finished

    def _accumulate_batches(self) -> dict[int, float]:
        """Add the gradient of every job's next batch to its slot; returns each slot's loss."""
        batches = {slot: job.batch() for slot, job in sorted(self.jobs.items())}
        rows = list(chain.from_iterable(batches.values()))
        slots = [slot for slot, batch in batches.items() for _ in batch]
        weights = [
            weight
            for slot, batch in batches.items()
            for weight in token_weights(batch, self.jobs[slot].spec.loss)
        ]
        losses = dict.fromkeys(batches, 0.0)
        for slot, loss in self._accumulate_within_memory(rows, slots, weights):
            losses[slot] += loss
        return losses

    def _accumulate_within_memory(
        self, rows: Sequence[Row], slots: Sequence[int], weights: Sequence[float]
    ) -> list[tuple[int, float]]:
        """`accumulate`, with passes half as large from now on if they do not fit in memory."""
        model = self.model
        try:
            return accumulate(model, rows, slots, weights)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or model.pass_tokens != PASS_TOKENS:
                raise
            model.pass_tokens = PASS_TOKENS // 2
            model.on_note(
                f"a pass of {PASS_TOKENS} tokens does not fit in memory; from now on "
                f"{model.pass_tokens} tokens a pass"
            )
        # Gradients from before memory ran out are computed again.
        model.bank.gradients[sorted(set(slots))] = 0
        return accumulate(model, rows, slots, weights)

    # ---- resuming -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and moments of every adapter in training, as tensors by name."""
        tensors: dict[str, Tensor] = {}
        for slot in self.jobs:
            tensors[f"{slot}.weights"] = self.model.bank.weights[slot]
            moments = self.optimizer.state_dict(slot)
            tensors |= {f"{slot}.{name}": moment for name, moment in moments.items()}
        return tensors

    def resume(self, jobs: Mapping[int, Job], tensors: Mapping[str, Tensor]) -> None:
        """Put jobs into the slots that they had; their logs are as long as the state is old."""
        self.model.clear_answers()
        with torch.no_grad():
            for slot, job in jobs.items():
                self.model.bank.weights[slot].copy_(tensors[f"{slot}.weights"])
                self.model.bank.gradients[slot].zero_()
                for name, moment in self.optimizer.state_dict(slot).items():
                    moment.copy_(tensors[f"{slot}.{name}"])
                self.optimizer.steps[slot] = len(job.log)
                self.model.bank.sync_to_compute_dtype(slot)
        self.jobs = dict(jobs)


def _is_out_of_memory(error: Exception) -> bool:
    """True where memory ran out: torch has a type for it on GPUs only."""
    by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return by_type or "can't allocate memory" in str(error)


class Diverged(RunFailed):
    """A job whose loss or gradient is not a number."""

    def __init__(self, job: Job, step: int, loss: float, grad_norm: float) -> None:
        """Say at which step, and what may help."""
        super().__init__(
            f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; "
            "a lower train.lr or a longer train.warmup may help"
        )
        self.job = job
        self.also: list[Diverged] = []
        self.finished: list[tuple[int, Job]] = []


def train(
    model: LocalModel,
    rows: Sequence[Row],
    spec: TrainSpec,
    budget: Budget,
    on_step: Callable[[TrainStep], None] | None = None,
) -> list[TrainStep]:
    """Train the model's first adapter on `rows` in their order, from the weights that it has.

    Args:
        model: its adapter is changed in place.
        rows: exactly `budget.examples` of them.
        spec: learning rate and its schedule, weight decay, clipping.
        budget: steps and examples per step.
        on_step: called after every step with its record.

    Returns:
        One record per step.

    Raises:
        RunFailed: the loss or the gradient is not a finite number.
        ValueError: another number of rows than the budget has, or a row with nothing to learn.
    """
    job = Job("adapter", rows, spec, budget, seed=None)
    trainer = Trainer(model)
    trainer.assign_slot(job)
    model.use_adapter()
    while not job.done:
        trainer.step()
        if on_step is not None:
            on_step(job.log[-1])
    return job.log


def accumulate(
    model: LocalModel, rows: Sequence[Row], slots: Sequence[int], weights: Sequence[float]
) -> list[tuple[int, float]]:
    """Add the gradient of rows of any adapters to the bank.

    Args:
        model: its bank is changed.
        rows: training rows.
        slots: each row's adapter.
        weights: weight of each supervised token of each row.

    Returns:
        (slot, weighted loss) of every row, in the order of computing.
    """
    decoder = model.decoder
    sequences = [training_sequence(row, slot) for row, slot in zip(rows, slots, strict=True)]
    losses: list[tuple[int, float]] = []
    for work in make_passes(sequences, model.pass_tokens, decoder.packing_limit):
        forward = partial(forward_pass, decoder, model.activation_cache, work, sequences)
        row_losses = backward(forward, decoder, work, rows, weights)
        losses += zip((row.slot for row in work.rows), row_losses, strict=True)
    return losses


def learning_rate(step: int, spec: TrainSpec, steps: int) -> float:
    """The learning rate of a step (from 0): linear warm-up, then the schedule.

    Warm-up takes `warmup_steps` or ceil(warmup · steps) steps. It starts above zero, and decay
    reaches zero one step after the last one, so that no step is wasted on a rate of zero.
    """
    warmup_steps = spec.warmup_steps
    if warmup_steps is None:
        warmup_steps = math.ceil(spec.warmup * steps)
    if step < warmup_steps:
        return spec.lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    if spec.schedule == "linear":
        return spec.lr * (1 - progress)
    if spec.schedule == "cosine":
        return spec.lr * (1 + math.cos(math.pi * progress)) / 2
    return spec.lr


def _record(job: Job, *, loss: float, lr: float, grad_norm: float, seconds: float) -> TrainStep:
    rows = job.batch()
    return TrainStep(
        step=len(job.log),
        loss=loss,
        lr=lr,
        grad_norm=grad_norm,
        examples=len(rows),
        supervised_tokens=sum(len(row.answer) for row in rows),
        tokens=sum(row.length for row in rows),
        seconds=seconds,
    )
