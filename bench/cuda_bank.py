"""One bank of adapters trained for a few steps: how fast, with how much memory, by what products.

Knows: the engine's trainer, how many tokens of a pass fit in memory. Does not know: what the
figures are compared with.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.cuda_device import Peak, free_memory, matmul_rates, release, timed
from bench.cuda_made import Lengths, rows_of
from bench.cuda_plain import ALPHA, RANK, RATE
from bench.work import Counts, Shape, counts, training_flops
from mixtune.engine.bank import batched_slots
from mixtune.engine.batching import PASS_TOKENS, Pass, make_passes, training_sequence
from mixtune.engine.decoder import LOGIT_ROWS
from mixtune.engine.forest import pack_forest
from mixtune.engine.loss import token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.train import Job, Trainer, accumulate
from mixtune.study.spec import Budget, TrainSpec
from mixtune.tokens import Row

STEP = 16
"""Examples of an adapter's optimiser step."""

SHARE = 0.7
"""Of the free memory, what a pass's activations may take."""

_PROBE = 2048
"""Tokens of the pass that shows what a token costs."""

_LOGIT_COPIES = 4
_TOP = 12


@dataclass(frozen=True, slots=True)
class Steps:
    """How much is measured: steps before the clock runs, steps timed, tokens of a pass.

    `pass_tokens` None: as many as fit in memory. `matmul`: seconds of each measured format.
    `held`: bytes on the device that are not the model's.
    """

    warm: int = 2
    timed: int = 5
    pass_tokens: int | None = None
    matmul: float = 0.3
    held: int = 0


def jobs_of(bank: int, steps: Steps, lengths: Lengths, vocabulary: int) -> list[Job]:
    """Jobs with rows, seeds and learning rates of their own."""
    budget = Budget(steps=steps.warm + steps.timed, examples_per_step=STEP)
    spec = TrainSpec(rank=RANK, alpha=ALPHA, compute="bfloat16")
    return [
        Job(
            f"job{number}",
            rows_of(number, budget.examples, lengths, vocabulary),
            spec.model_copy(update={"lr": RATE * (1 + number % 4)}),
            budget,
            seed=number,
        )
        for number in range(bank)
    ]


def measure(model: LocalModel, lengths: Lengths, steps: Steps) -> dict[str, Any]:
    """Fill a model's bank with jobs, train them, and say how that went.

    Args:
        model: with all its slots free; its bank is changed.
        lengths: of the jobs' rows.
        steps: how much is measured.

    Raises:
        torch.OutOfMemoryError: a step does not fit.
    """
    device = model.decoder.device.type
    trainer = Trainer(model)
    jobs = jobs_of(model.bank.slots, steps, lengths, _vocabulary(model))
    for job in jobs:
        trainer.assign_slot(job)
    model.pass_tokens = steps.pass_tokens or _fitting(model, jobs)
    batches = [job.batch() for job in jobs]
    for _ in range(steps.warm):
        trainer.step()
    shape = shape_of(model)
    tokens = min(model.pass_tokens, sum(map(_most, batches)))
    before = matmul_rates(device, shape.linears, tokens, steps.matmul)
    peak = Peak(device, steps.held)
    measured = [_step(device, trainer, jobs) for _ in range(steps.timed)]
    used = peak.bytes()
    after = matmul_rates(device, shape.linears, tokens, steps.matmul)
    rates = {key: (before[key] + after[key]) / 2 for key in before}
    return {
        **_figures(measured, shape, rates),
        "pass_tokens": model.pass_tokens,
        "batched_products": _batched(model, batches),
        "host": _host(model, batches),
        "peak_bytes": used,
        "matmul_flops_per_second": {"before": before, "after": after},
        "losses": [[step.loss for step in job.log] for job in jobs[:2]],
    }


def _step(device: str, trainer: Trainer, jobs: Sequence[Job]) -> tuple[float, Counts]:
    """Seconds of a step of the whole bank, and what it had to compute at least."""
    whole = Counts(0, 0, 0)
    for job in jobs:
        whole += counts(job.batch())
    return timed(device, trainer.step), whole


def _figures(
    measured: Sequence[tuple[float, Counts]], shape: Shape, rates: dict[str, float]
) -> dict[str, Any]:
    """Rates by the median step; `useful_share` of the bf16 rate, as METHOD.md counts work."""
    per_second = [
        {
            "tokens": work.tokens / seconds,
            "unique": work.unique / seconds,
            "useful": training_flops(shape, RANK, work.unique, work.supervised) / seconds,
            "every": training_flops(shape, RANK, work.tokens, work.supervised) / seconds,
            "steps": 1 / seconds,
        }
        for seconds, work in measured
    ]
    middle = {key: median(one[key] for one in per_second) for key in per_second[0]}
    return {
        "step_seconds": [seconds for seconds, _ in measured],
        "tokens_per_second": middle["tokens"],
        "computed_tokens_per_second": middle["unique"],
        "useful_flops_per_second": middle["useful"],
        "useful_share": middle["useful"] / rates["bfloat16"],
        "useful_share_every_token": middle["every"] / rates["bfloat16"],
        "steps_per_second": middle["steps"],
    }


def shape_of(model: LocalModel) -> Shape:
    """The sizes of a network whose linear layers are in a bank."""
    layers = model.decoder.layers
    inside = {id(module) for module in layers[0].modules()}
    linears = tuple(
        (layer.base.in_features, layer.base.out_features)
        for layer in model.bank.layers.values()
        if id(layer) in inside
    )
    config = model.decoder.network.config
    return Shape(linears, len(layers), config.hidden_size, config.vocab_size)


def _vocabulary(model: LocalModel) -> int:
    return int(model.decoder.network.config.vocab_size)


# ---- how many tokens fit ------------------------------------------------------------------------


def _fitting(model: LocalModel, jobs: Sequence[Job]) -> int:
    """Tokens of a pass: a step's whole, or as many adapters as fit in memory (on a CPU, 4096)."""
    room = free_memory(model.decoder.device.type)
    if room is None:
        return PASS_TOKENS
    logits = _LOGIT_COPIES * 4 * LOGIT_ROWS * _vocabulary(model)
    most = max(1, int((SHARE * room - logits) / _bytes_per_token(model, jobs[0].rows)))
    needs = [_most(job.batch()) for job in jobs]
    # Adapters are filled up to the longest.
    if len(needs) * max(needs) <= most:
        return most
    # A multiple of what an adapter needs, so that equally long adapters stay whole.
    return most // max(needs) * max(needs) or most


def _most(rows: Sequence[Row]) -> int:
    """What `make_passes` counts at most for a step of one adapter, headers shared."""
    return counts(rows).unique


def _bytes_per_token(model: LocalModel, rows: Sequence[Row]) -> float:
    """What a pass's peak memory is, per token, by one pass; gradients are cleared again."""
    device, longest = model.decoder.device.type, max(row.length for row in rows)
    some = rows[: max(1, min(len(rows), _PROBE // longest))]
    accumulate(model, some[:1], [0], [1.0])  # what is allocated once and kept
    release(device)
    peak = Peak(device)
    accumulate(model, some, [0] * len(some), token_weights(some, "example-mean"))
    model.bank.gradients.zero_()
    used = peak.bytes()
    assert used is not None
    return used / counts(some).unique


# ---- where the time goes ------------------------------------------------------------------------


def _batched(model: LocalModel, batches: Sequence[Sequence[Row]]) -> list[bool]:
    """For each pass of a step: whether low-rank products are batched, or a loop over adapters."""
    return [
        batched_slots(
            pack_forest(work.branches, torch.device("cpu"), stacked=_stacked(model)).slices
        )
        is not None
        for work in _passes(model, batches)
    ]


def _stacked(model: LocalModel) -> bool:
    """Whether the engine packs stacked forests on this device."""
    return model.decoder.device.type != "cpu"


def _passes(model: LocalModel, batches: Sequence[Sequence[Row]]) -> list[Pass]:
    sequences = [
        training_sequence(row, slot) for slot, batch in enumerate(batches) for row in batch
    ]
    return make_passes(sequences, model.pass_tokens, model.decoder.packing_limit)


def _host(model: LocalModel, batches: Sequence[Sequence[Row]]) -> dict[str, float]:
    """Seconds that Python needs for a step's passes and forests, while the device waits.

    `filling`: share of the packed tokens that only make adapters equally long.
    """
    began = time.perf_counter()
    passes = _passes(model, batches)
    grouped = time.perf_counter()
    forests = [work.pack(model.decoder.device) for work in passes]
    packed = sum(forest.num_tokens for forest in forests)
    return {
        "passes": len(passes),
        "packed_tokens": packed,
        "filling": 1 - sum(work.num_tokens for work in passes) / packed,
        "seat_seconds": grouped - began,
        "plant_seconds": time.perf_counter() - grouped,
    }


def profile(model: LocalModel, lengths: Lengths, pass_tokens: int) -> dict[str, Any]:
    """One step under torch's profiler: its kernels and operators by their own time."""
    device = model.decoder.device.type
    steps = Steps(warm=1, timed=1)
    trainer = Trainer(model)
    for job in jobs_of(model.bank.slots, steps, lengths, _vocabulary(model)):
        trainer.assign_slot(job)
    model.pass_tokens = pass_tokens
    trainer.step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        seconds = timed(device, trainer.step)
    events = profiler.key_averages()

    clock = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"

    def own(event: object) -> float:
        return float(getattr(event, clock)) / 1e6

    top = sorted(events, key=own, reverse=True)[:_TOP]
    return {
        "seconds_profiled": seconds,
        "device_seconds": sum(map(own, events)),
        "launches": sum(event.count for event in events if "LaunchKernel" in event.key),
        "top": [{"name": e.key[:90], "count": e.count, "seconds": own(e)} for e in top],
    }
