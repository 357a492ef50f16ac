"""One device: what it is, how fast it multiplies, what it has allocated, when it is done.

Knows: torch's clocks and counters, nvidia-smi's driver version. Does not know: models, adapters,
cases. On a CPU the same calls work; memory is then not counted (None).
"""

import gc
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

MATMUL_TOKENS = 16384
"""Rows of the measured products at most: beyond it products get no faster."""

MATMUL_SECONDS = 0.3
GIB = 2**30


def hardware(device: str) -> dict[str, Any]:
    """What a device calls itself, its memory, driver and CUDA version."""
    if device == "cpu":
        return {"name": "cpu", "memory_gib": None, "capability": None, "driver": None, "cuda": None}
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "memory_gib": round(facts.total_memory / GIB, 1),
        "capability": f"{facts.major}.{facts.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    """The driver's version, where nvidia-smi is there to say it."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(found.stdout.split()), None)


def timed(device: str, run: Callable[[], object]) -> float:
    """Seconds of a call, with all that the device still has to do before and behind it."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def free_memory(device: str) -> int | None:
    """Bytes that can still be allocated, cached blocks included; None on a CPU."""
    if device == "cpu":
        return None
    release(device)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def allocated(device: str) -> int:
    """Bytes that torch has allocated now; 0 on a CPU."""
    return 0 if device == "cpu" else int(torch.cuda.memory_allocated(device))


class Peak:
    """Bytes allocated at most since the start, beyond what was allocated then (or was `held`)."""

    def __init__(self, device: str, held: int | None = None) -> None:
        self._device = device
        self._start = allocated(device) if held is None else held
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """The peak so far; None on a CPU."""
        if self._device == "cpu":
            return None
        return int(torch.cuda.max_memory_allocated(self._device) - self._start)


def matmul_rates(
    device: str, linears: Sequence[tuple[int, int]], tokens: int, seconds: float = MATMUL_SECONDS
) -> dict[str, float]:
    """FLOP/s of plain products of a layer's shapes, in bf16 and in fp32 without TF32.

    Args:
        device: where.
        linears: (inputs, outputs) of one layer's linear parts.
        tokens: rows of each product; MATMUL_TOKENS at most.
        seconds: about how long each format is measured.
    """
    rows = min(tokens, MATMUL_TOKENS)
    with strict_float32():
        return {
            name: _rate(device, linears, (rows, dtype), seconds)
            for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
        }


def _rate(
    device: str,
    linears: Sequence[tuple[int, int]],
    form: tuple[int, torch.dtype],
    seconds: float,
) -> float:
    rows, dtype = form
    made = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made, device=device, dtype=torch.float32).to(dtype)

    pairs = [(random(rows, ins), random(outs, ins)) for ins, outs in linears]

    def layer() -> None:
        for inputs, weights in pairs:
            functional.linear(inputs, weights)

    for _ in range(3):
        layer()
    once = timed(device, layer)
    times = max(1, min(1000, int(seconds / max(once, 1e-6))))
    spent = _measured(device, layer, times)
    return times * 2.0 * rows * sum(ins * outs for ins, outs in linears) / spent


def _measured(device: str, run: Callable[[], object], times: int) -> float:
    """Seconds of so many calls, by the device's own clock where it has one."""
    if device == "cpu":
        return timed(device, lambda: [run() for _ in range(times)])
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(times):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


@contextmanager
def strict_float32() -> Iterator[None]:
    """Products of float32 in float32: no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
