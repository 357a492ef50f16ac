"""Place a study on this machine: device, processes, threads, adapters side by side.

On a CPU, a process per core with one thread each does more than one process with all cores (small
matrices, no barriers between threads), and a busy neighbour slows one run and not all. An adapter
has its process for itself: sharing a pass with others gains nothing there. A GPU belongs to one
process, and many adapters side by side fill it.

All of it follows from the whole plan and not from its unfinished part: the number of threads
decides the order of sums, and a resumed study has to give the bits of an undisturbed one.

Knows: this machine's cores and memory, estimates. Does not know: processes, what a run does.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixtune.engine.batching import PASS_TOKENS
from mixtune.engine.decoder import LOGIT_ROWS
from mixtune.errors import SpecError
from mixtune.execution.bank_training import Head
from mixtune.execution.portion import Options
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

WORKERS_SHARE = 0.5
"""Of main memory that workers may take together; weights are counted as if in bfloat16."""

BANKS_SHARE = 0.9
"""Of free memory that banks may take together."""

MOST_SLOTS = 64
"""Adapters side by side that are chosen at most; more gain little and answer late."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, processes and threads of a run.

    `slots`: of a bank, part of the setting that bits depend on; `used`: as many of them as a worker
    can fill.
    """

    device: str
    workers: int
    threads: int
    slots: int
    used: int


def place(plan: Plan, options: Options, checkpoints: Sequence[Head], events: Events) -> Placement:
    """Choose where a plan is computed; a note says how much memory that takes.

    Args:
        plan: resolved.
        options: of the user.
        checkpoints: of banks that may be resumed; the default for slots is theirs.
        events: listener.

    Raises:
        SpecError: the bank that was asked for does not fit into free memory.
    """
    assert plan.files is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    local = sum(run.kind not in ("api", "merged") for run in plan.runs)
    workers = options.workers or (
        default_workers(_weights_bytes(plan.files), local) if device == "cpu" else 1
    )
    free = free_memory() if device == "cpu" else torch.cuda.mem_get_info()[0]
    banks = _Banks(plan, workers, free)
    slots = banks.slots(options.bank, checkpoints, device)
    used = min(slots, banks.largest_useful)
    events.note(banks.note(used))
    return Placement(device, workers, max(1, available_cores() // workers), slots, used)


class _Banks:
    """Memory of a plan's banks, one in each worker, against what is free."""

    def __init__(self, plan: Plan, workers: int, free: int) -> None:
        assert plan.files is not None
        scheduled = [(run.tokens, run.course) for run in plan.runs if run.course is not None]
        trained = sum(run.kind == "trained" for run in plan.runs)
        self.workers, self.free = workers, free
        self.free_each = int(free * BANKS_SHARE) // workers
        self.largest_useful = max(1, -(-trained // workers))
        """Slots that a worker can fill."""
        self._train = plan.study.train
        self._shape = shape_of(plan.files.folder)
        self._load = Load(
            tokens=PASS_TOKENS,
            logits=LOGIT_ROWS,
            step=max((-(-tokens // schedule.steps) for tokens, schedule in scheduled), default=0),
            span=max(
                (-(-tokens // schedule.examples) for tokens, schedule in scheduled), default=0
            ),
        )

    def need(self, slots: int) -> Need:
        """Memory of a bank with this number of slots."""
        return need(self._shape, self._train, slots, self._load)

    def slots(self, requested: int | None, checkpoints: Sequence[Head], device: str) -> int:
        """Slots as requested, as in the checkpoints, or as many as pay and fit."""
        if self._train.method == "full":
            if requested is not None and requested > 1:
                raise SpecError(
                    "full fine-tuning trains one run at a time",
                    found=f"--bank {requested}",
                    wanted="train.method lora, or a bank of 1",
                    remedy="--bank 1",
                )
            return 1
        if requested is not None:
            self._refuse_too_large(min(requested, self.largest_useful))
            return requested
        if checkpoints:
            return int(checkpoints[0].setting["slots"])
        return 1 if device == "cpu" else self._largest(min(MOST_SLOTS, self.largest_useful))

    def _largest(self, most: int) -> int:
        return max(1, largest(self._shape, self._train, self._load, self.free_each, most))

    def _refuse_too_large(self, slots: int) -> None:
        """One adapter at a time is never refused: there is no smaller bank."""
        needed = self.need(slots).total
        if slots == 1 or needed <= self.free_each:
            return
        fewer = ", or fewer --workers" if self.workers > 1 else ""
        raise SpecError(
            f"{self._title(slots)} does not fit into memory",
            found=f"about {gigabytes(needed * self.workers)}, estimated",
            wanted=f"at most {gigabytes(self.free_each * self.workers)} of the "
            f"{gigabytes(self.free)} that are free",
            remedy=f"--bank {self._largest(slots)}{fewer}; or end other programs",
        )

    def note(self, slots: int) -> str:
        """Size and memory of the banks in words."""
        each = " each" if self.workers > 1 else ""
        total = gigabytes(self.need(slots).total)
        return f"{self._title(slots)}: about {total}{each} of {gigabytes(self.free)} free"

    def _title(self, slots: int) -> str:
        processes = f" in each of {self.workers} processes" if self.workers > 1 else ""
        return f"bank of {slots} adapter{'s' if slots > 1 else ''}{processes}"


def default_workers(weights_bytes: int, runs: int) -> int:
    """Worker processes for this machine: at most one per core and per run, as memory allows."""
    each = weights_bytes / 2 * BYTES_PER_PARAMETER
    fit = int(main_memory() * WORKERS_SHARE / each)
    return max(1, min(available_cores(), fit, runs))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _weights_bytes(files: BaseModelFiles) -> int:
    return sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))
