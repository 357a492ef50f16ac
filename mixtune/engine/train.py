"""The training loop: rows in, an adapter trained in place, a record of every step out.

Knows: the loss (mean over an example's supervised tokens, then over examples), AdamW, the learning
rate's course. Does not know: where rows come from, tasks, files.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from mixtune.engine.batching import MicroBatch, micro_batches
from mixtune.engine.forward import Decoder
from mixtune.engine.model import LocalModel
from mixtune.errors import RunFailed
from mixtune.records import TrainStep
from mixtune.spec import Budget, TrainSpec
from mixtune.tokens import Row

LOGIT_ROWS = 512
"""Positions whose logits exist at once: bounds memory at 512 x vocabulary x 4 bytes."""


def train(
    model: LocalModel,
    rows: Sequence[Row],
    spec: TrainSpec,
    budget: Budget,
    on_step: Callable[[TrainStep], None] | None = None,
) -> list[TrainStep]:
    """Train the model's adapter on `rows` in their order; step k takes rows[k·b : (k+1)·b].

    Starts from the adapter as it is (see `LocalModel.reset`). The same rows and adapter give the
    same bits on one machine with one number of threads.

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
    if len(rows) != budget.examples:
        raise ValueError(f"{len(rows)} rows for a budget of {budget.examples} examples")
    model.forget()
    model.adapter.enable(True)
    parameters = list(model.adapter.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=spec.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=spec.weight_decay
    )
    steps: list[TrainStep] = []
    for step in range(budget.steps):
        began = time.perf_counter()
        size = budget.examples_per_step
        batch = rows[step * size : (step + 1) * size]
        rate = learning_rate(step, spec, budget.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = accumulate(model.decoder, batch)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, spec.clip))
        _check_finite(step, loss, norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        steps.append(_record(step, (loss, rate, norm), batch, time.perf_counter() - began))
        if on_step is not None:
            on_step(steps[-1])
    return steps


def learning_rate(step: int, spec: TrainSpec, steps: int) -> float:
    """The rate of a step (from 0): a linear rise over ceil(warmup·steps) steps, then the schedule.

    Decay reaches zero one step after the last one, so that no step is wasted on a rate of zero.
    """
    rise = math.ceil(spec.warmup * steps)
    if step < rise:
        return spec.lr * (step + 1) / (rise + 1)
    done = (step - rise) / (steps - rise)
    if spec.schedule == "linear":
        return spec.lr * (1 - done)
    if spec.schedule == "cosine":
        return spec.lr * (1 + math.cos(math.pi * done)) / 2
    return spec.lr


def accumulate(decoder: Decoder, rows: Sequence[Row]) -> float:
    """Add the gradient of the rows' mean loss to the adapter's parameters; return the loss."""
    return sum(
        _accumulate(decoder, batch, len(rows)) for batch in micro_batches(rows, decoder.span)
    )


def _accumulate(decoder: Decoder, batch: MicroBatch, examples: int) -> float:
    """One pass forward and back; its share of a loss that is a mean over `examples`."""
    # The last token of an answer is only ever a target.
    hidden = decoder.hidden([row.prompt + row.answer[:-1] for row in batch.rows], batch.header)
    spots = [
        (index, len(row.prompt) - 1 - batch.header + offset)
        for index, row in enumerate(batch.rows)
        for offset in range(len(row.answer))
    ]
    targets = list(chain.from_iterable(row.answer for row in batch.rows))
    weights = [1 / (len(row.answer) * examples) for row in batch.rows for _ in row.answer]
    index, position = torch.tensor(spots, device=decoder.device).unbind(1)
    return _backward(
        decoder,
        hidden[index, position],
        torch.tensor(targets, device=decoder.device),
        torch.tensor(weights, device=decoder.device),
    )


def _backward(decoder: Decoder, hidden: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Weighted cross-entropy of [positions, width] states, sent back through the network.

    The head is frozen, so the gradient at its input is all that is needed from it: it is taken
    block by block, and no more than a block's logits exist at once.
    """
    top = hidden.detach().requires_grad_()
    total = 0.0
    for start in range(0, len(targets), LOGIT_ROWS):
        block = slice(start, start + LOGIT_ROWS)
        each = functional.cross_entropy(
            decoder.logits(top[block]), targets[block], reduction="none"
        )
        loss = (each * weights[block]).sum()
        torch.autograd.backward(loss)
        total += float(loss.detach())
    torch.autograd.backward(hidden, top.grad)
    return total


def _check_finite(step: int, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RunFailed(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm}; "
            "a lower train.lr or a longer train.warmup may help"
        )


def _record(
    step: int, measured: tuple[float, float, float], rows: Sequence[Row], seconds: float
) -> TrainStep:
    loss, rate, norm = measured
    return TrainStep(
        step=step,
        loss=loss,
        lr=rate,
        grad_norm=norm,
        examples=len(rows),
        supervised_tokens=sum(len(row.answer) for row in rows),
        tokens=sum(row.length for row in rows),
        seconds=seconds,
    )
