"""The training loop: jobs in, adapters trained side by side in one bank, records of steps out.

A job is one adapter's whole training: its rows in their order, its learning rate, its seed. Jobs
sit in slots of the bank; each step takes the next batch of every job, computes the rows of all of
them in common passes, and steps each adapter by itself. When a job ends, its slot is free.

Knows: batches, the learning rate's course, slots, how to go on from a checkpoint. Does not know:
where rows come from, tasks, files.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtune.engine.batching import PASS_TOKENS, Pass, passes, text_of
from mixtune.engine.forest import Forest
from mixtune.engine.loss import backward, token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.optimizer import AdamW
from mixtune.engine.spread import Spread
from mixtune.errors import RunFailed
from mixtune.records import TrainStep
from mixtune.study.spec import Budget, RunLength, TrainSpec
from mixtune.tokens import Row


@dataclass(slots=True)
class Job:
    """One adapter to train: step k takes rows[k·b : (k+1)·b], the last one what is left.

    `budget`: how many rows and steps; a course may have steps of other sizes. `seed`: of the
    adapter's first weights; None keeps what is in the slot. `log`: one record a step; it grows.
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
            text_of(row)

    @property
    def done(self) -> bool:
        """Whether every step has been made."""
        return len(self.log) == self.budget.steps

    def batch(self) -> Sequence[Row]:
        """The rows of the next step."""
        step, size = len(self.log), self.budget.examples_per_step
        if isinstance(self.budget, RunLength) and self.budget.sizes:
            first = sum(self.budget.sizes[:step])
            return self.rows[first : first + self.budget.sizes[step]]
        return self.rows[step * size : (step + 1) * size]


class Trainer:
    """Jobs in the slots of a model's bank.

    The same jobs in the same slots give the same bits on one machine with one number of threads.
    """

    def __init__(self, model: LocalModel, spread: Spread | None = None) -> None:
        """Begin with every slot free.

        Args:
            model: its bank is trained.
            spread: this process among several that hold the same model and jobs.
        """
        self.model, self.spread = model, spread
        self.optimiser = AdamW(model.bank.weights, model.bank.gradients)
        self.jobs: dict[int, Job] = {}

    @property
    def free(self) -> list[int]:
        """Slots without a job."""
        return [slot for slot in range(self.model.bank.slots) if slot not in self.jobs]

    def seat(self, job: Job) -> int:
        """Put a job into the first free slot; returns the slot.

        Raises:
            ValueError: no slot is free, or the adapter is of another form than the bank.
        """
        form, spec = self.model.bank.form, job.spec
        if form is not None and (spec.rank, spec.alpha) != (form.rank, form.alpha):
            raise ValueError(
                f"{job.name} has rank {spec.rank} and alpha {spec.alpha:g}, its bank rank "
                f"{form.rank} and alpha {form.alpha:g}; adapters of one bank are of one form"
            )
        if not self.free:
            raise ValueError(f"no slot for {job.name}: {len(self.jobs)} jobs in the bank")
        slot = self.free[0]
        self.model.forget()
        self.optimiser.reset(slot)
        if job.seed is not None:
            self.model.bank.reset(slot, job.seed)
        self.jobs[slot] = job
        return slot

    def step(self) -> list[tuple[int, Job]]:
        """One optimiser step of every job that is seated; returns those that are done with it.

        Raises:
            Diverged: the loss or the gradient of a job is not a finite number; the job is out of
                the bank (`error.job` names it, `error.also` the others of its kind), the rest have
                made their step (`error.finished` is what would have been returned).
        """
        began = time.perf_counter()
        self.model.forget()
        self.model.bank.dial(1.0)
        losses = self._accumulate()
        norms = self.optimiser.norms()
        finished: list[tuple[int, Job]] = []
        failed: dict[int, Diverged] = {}
        for slot, job in sorted(self.jobs.items()):
            number, spec = len(job.log), job.spec
            rate = learning_rate(number, spec, job.budget.steps)
            norm = norms[slot]
            self.optimiser.step(slot, norm, (rate, spec.weight_decay, spec.clip))
            self.model.bank.ready(slot)
            if not (math.isfinite(losses[slot]) and math.isfinite(norm)):
                failed[slot] = Diverged(job, number, losses[slot], norm)
                continue
            seconds = (time.perf_counter() - began) / len(self.jobs)
            job.log.append(_record(job, (losses[slot], rate, norm), seconds))
            if job.done:
                finished.append((slot, job))
        for slot in (*failed, *(slot for slot, _ in finished)):
            del self.jobs[slot]
        if failed:
            first, *also = failed.values()
            first.also, first.finished = also, finished
            raise first
        return finished

    def _accumulate(self) -> dict[int, float]:
        """Add every job's gradient to its slot; returns each job's loss."""
        rows: list[Row] = []
        slots: list[int] = []
        weights: list[float] = []
        for slot, job in sorted(self.jobs.items()):
            batch = job.batch()
            rows += batch
            slots += [slot] * len(batch)
            weights += token_weights(batch, job.spec.loss)
        losses = dict.fromkeys(sorted(self.jobs), 0.0)
        for slot, part in self._fitting(rows, slots, weights):
            losses[slot] += part
        return losses if self.spread is None else self._add_up(self.spread, losses)

    def _add_up(self, spread: Spread, losses: Mapping[int, float]) -> dict[int, float]:
        """Gradients and losses of all processes."""
        gradients = self.model.bank.gradients
        for slot in losses:
            gradients[slot] = spread.add_up(gradients[slot])
        parts = torch.tensor(list(losses.values()), dtype=torch.float64, device=gradients.device)
        return dict(zip(losses, spread.add_up(parts).tolist(), strict=True))

    def _fitting(
        self, rows: Sequence[Row], slots: Sequence[int], weights: Sequence[float]
    ) -> list[tuple[int, float]]:
        """`accumulate`, with passes half as large from now on if they do not fit in memory."""
        model = self.model
        try:
            return accumulate(model, rows, slots, weights, self.spread)
        except (RuntimeError, MemoryError) as error:
            if not _want_of_memory(error) or model.pass_tokens != PASS_TOKENS:
                raise
            model.pass_tokens = PASS_TOKENS // 2
            model.on_note(
                f"a pass of {PASS_TOKENS} tokens does not fit in memory; from now on "
                f"{model.pass_tokens} tokens a pass"
            )
        # What was added before memory ran out is added again.
        model.bank.gradients[sorted(set(slots))] = 0
        return accumulate(model, rows, slots, weights, self.spread)

    # ---- to go on where it was ------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every seated adapter's weights and moments, as tensors by name."""
        found: dict[str, Tensor] = {}
        for slot in self.jobs:
            found[f"{slot}.weights"] = self.model.bank.weights[slot]
            found |= {f"{slot}.{key}": value for key, value in self.optimiser.state(slot).items()}
        return found

    def restore(self, jobs: Mapping[int, Job], state: Mapping[str, Tensor]) -> None:
        """Seat jobs whose logs are as far as the state is, in the slots that they had."""
        self.model.forget()
        with torch.no_grad():
            for slot, job in jobs.items():
                self.model.bank.weights[slot].copy_(state[f"{slot}.weights"])
                self.model.bank.gradients[slot].zero_()
                for key, value in self.optimiser.state(slot).items():
                    value.copy_(state[f"{slot}.{key}"])
                self.optimiser.steps[slot] = len(job.log)
                self.model.bank.ready(slot)
        self.jobs = dict(jobs)


def _want_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch has a type for it on GPUs only."""
    wants = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return wants or "can't allocate memory" in str(error)


class Diverged(RunFailed):
    """A job whose loss or gradient is not a number."""

    def __init__(self, job: Job, step: int, loss: float, norm: float) -> None:
        """Say at which step, and what may help."""
        super().__init__(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm}; "
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
        spec: learning rate and its course, weight decay, clipping.
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
    trainer.seat(job)
    model.use_adapter()
    while not job.done:
        trainer.step()
        if on_step is not None:
            on_step(job.log[-1])
    return job.log


def accumulate(
    model: LocalModel,
    rows: Sequence[Row],
    slots: Sequence[int],
    weights: Sequence[float],
    spread: Spread | None = None,
) -> list[tuple[int, float]]:
    """Add the gradient of rows of any adapters to the bank; (slot, part of its loss) per row.

    With a spread, of this process's share of the rows.
    """
    decoder, trunk = model.decoder, model.trunk
    texts = [text_of(row, slot) for row, slot in zip(rows, slots, strict=True)]

    def run(forest: Forest, work: Pass) -> Tensor:
        if trunk is None:
            return decoder.run(forest)
        return decoder.above(forest, trunk.states(work, texts, forest))

    found = []
    works = passes(texts, model.pass_tokens, decoder.span)
    for work in works if spread is None else spread.share(works):
        parts = backward(run, decoder, work, rows, weights)
        found += [(seat.slot, part) for seat, part in zip(work.seats, parts, strict=True)]
    return found


def learning_rate(step: int, spec: TrainSpec, steps: int) -> float:
    """The rate of a step (from 0): a linear rise, then the schedule.

    The rise takes `warmup_steps` or ceil(warmup·steps) steps. Decay reaches zero one step after the
    last one, so that no step is wasted on a rate of zero.
    """
    given = spec.warmup_steps
    rise = math.ceil(spec.warmup * steps) if given is None else given
    if step < rise:
        return spec.lr * (step + 1) / (rise + 1)
    done = (step - rise) / (steps - rise)
    if spec.schedule == "linear":
        return spec.lr * (1 - done)
    if spec.schedule == "cosine":
        return spec.lr * (1 + math.cos(math.pi * done)) / 2
    return spec.lr


def _record(job: Job, measured: tuple[float, float, float], seconds: float) -> TrainStep:
    loss, rate, norm = measured
    rows = job.batch()
    return TrainStep(
        step=len(job.log),
        loss=loss,
        lr=rate,
        grad_norm=norm,
        examples=len(rows),
        supervised_tokens=sum(len(row.answer) for row in rows),
        tokens=sum(row.length for row in rows),
        seconds=seconds,
    )
