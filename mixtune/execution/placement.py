"""Where a study is computed on this machine: device, processes, threads, adapters side by side.

On a CPU a process per core with one thread each does more than one process with all cores (small
matrices, no barriers between threads), and a busy neighbour slows one run and not all. There an
adapter has its process for itself: sharing a pass with others gains nothing. A GPU is one process's
alone, and many adapters side by side are what fills it.

All of it follows from the whole plan and not from what is left of it: the number of threads decides
the order of sums, and a resumed study has to give the bits of an undisturbed one.

Knows: this machine's cores and memory, estimates. Does not know: processes, what a run does.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixtune.engine.batching import PASS_TOKENS
from mixtune.engine.decoder import LOGIT_ROWS
from mixtune.errors import SpecError
from mixtune.execution.checkpoint import Head
from mixtune.execution.options import Options
from mixtune.models.files import BaseModelFiles
from mixtune.models.memory import (
    BYTES_PER_PARAMETER,
    Load,
    Need,
    free_memory,
    gigabytes,
    largest,
    main_memory,
    need,
    shape_of,
)
from mixtune.planning.events import Events
from mixtune.planning.runs import Plan

SHARE_OF_MEMORY = 0.5
"""Of main memory that workers may take together; weights are counted as if in bfloat16."""

ROOM = 0.9
"""Of free memory that banks may take together."""

MOST = 64
"""Adapters side by side that are chosen at most; more gain little and answer late."""


@dataclass(frozen=True, slots=True)
class Placement:
    """`slots` are those of a bank as asked for; `used` as many as a worker can fill."""

    device: str
    workers: int
    threads: int
    slots: int
    used: int


@dataclass(frozen=True, slots=True)
class _Room:
    """What banks have to fit into: bytes, `free` of them, for each worker `each`."""

    free: int
    each: int
    workers: int


def place(plan: Plan, options: Options, kept: Sequence[Head], events: Events) -> Placement:
    """Where a plan is computed, said in notes.

    Args:
        plan: resolved.
        options: what was asked for.
        kept: checkpoints that may be gone on from; their slots are taken where none are asked for.
        events: told.

    Raises:
        SpecError: the bank that was asked for does not fit into free memory.
    """
    assert plan.files is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    local = sum(run.kind not in ("api", "merged") for run in plan.runs)
    workers = options.workers or (
        default_workers(_weights_bytes(plan.files), local) if device == "cpu" else 1
    )
    threads = max(1, available_cores() // workers)
    free = free_memory() if device == "cpu" else torch.cuda.mem_get_info()[0]
    room = _Room(free, int(free * ROOM) // workers, workers)
    trained = sum(run.kind == "trained" for run in plan.runs)
    fill = max(1, -(-trained // workers))
    estimate = _Estimate(plan)
    slots = _slots(options.bank, kept, device, (estimate, room, fill))
    used = min(slots, fill)
    events.note(_said(used, estimate.need(used), room))
    return Placement(device, workers, threads, slots, used)


class _Estimate:
    """Memory of a bank of this plan, by its slots."""

    def __init__(self, plan: Plan) -> None:
        assert plan.files is not None
        courses = [(run.tokens, run.course) for run in plan.runs if run.course is not None]
        self.shape = shape_of(plan.files.folder)
        self.train = plan.study.train
        self.load = Load(
            tokens=PASS_TOKENS,
            logits=LOGIT_ROWS,
            step=max((-(-tokens // course.steps) for tokens, course in courses), default=0),
            span=max((-(-tokens // course.examples) for tokens, course in courses), default=0),
        )

    def need(self, slots: int) -> Need:
        """Of so many slots."""
        return need(self.shape, self.train, slots, self.load)

    def largest(self, room: int, most: int) -> int:
        """As many slots as fit."""
        return largest(self.shape, self.train, self.load, room, most)


def _slots(
    asked: int | None, kept: Sequence[Head], device: str, limits: tuple[_Estimate, _Room, int]
) -> int:
    """Slots of a bank: as asked for, as they were, or as many as pay and fit."""
    estimate, room, fill = limits
    if estimate.train.method == "full":
        _refuse_several(asked)
        return 1
    if asked is not None:
        _refuse_too_large(asked, *limits)
        return asked
    before = [int(head.setting.get("slots", 1)) for head in kept]
    if before:
        return before[0]
    return 1 if device == "cpu" else max(1, estimate.largest(room.each, min(MOST, fill)))


def _refuse_several(asked: int | None) -> None:
    if asked is not None and asked > 1:
        raise SpecError(
            "full fine-tuning trains one run at a time",
            found=f"--bank {asked}",
            wanted="train.method lora, or a bank of 1",
            remedy="--bank 1",
        )


def _refuse_too_large(asked: int, estimate: _Estimate, room: _Room, fill: int) -> None:
    """One adapter at a time is never refused: there is nothing smaller to be had."""
    used = min(asked, fill)
    wanted = estimate.need(used).total
    if used == 1 or wanted <= room.each:
        return
    fits = max(1, estimate.largest(room.each, used))
    fewer = ", or fewer --workers" if room.workers > 1 else ""
    raise SpecError(
        f"{_bank(used, room.workers)} does not fit into memory",
        found=f"about {gigabytes(wanted * room.workers)}, estimated",
        wanted=f"at most {gigabytes(room.each * room.workers)} of the "
        f"{gigabytes(room.free)} that are free",
        remedy=f"--bank {fits}{fewer}; or end other programs",
    )


def _said(slots: int, of: Need, room: _Room) -> str:
    each = " each" if room.workers > 1 else ""
    return (
        f"{_bank(slots, room.workers)}: about {gigabytes(of.total)}{each} "
        f"of {gigabytes(room.free)} free"
    )


def _bank(slots: int, workers: int) -> str:
    where = f" in each of {workers} processes" if workers > 1 else ""
    return f"bank of {slots} adapter{'s' if slots > 1 else ''}{where}"


def default_workers(weights_bytes: int, runs: int) -> int:
    """Worker processes for this machine: at most one per core and per run, as memory allows."""
    each = weights_bytes / 2 * BYTES_PER_PARAMETER
    fit = int(main_memory() * SHARE_OF_MEMORY / each)
    return max(1, min(available_cores(), fit, runs))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _weights_bytes(files: BaseModelFiles) -> int:
    return sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))
