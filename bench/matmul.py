"""The machine's rate at plain products of the model's shapes: the ceiling of every other number.

Knows: torch's linear, shapes. Does not know: models, training.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.machine import use_threads
from bench.pipe import Channel
from bench.work import Shape

TOKENS = 1024
SECONDS = 0.7


def measure_matmul(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go multiplies for a while and replies with GFLOP/s."""
    use_threads()
    device = arguments["device"]
    shape = Shape.of(Path(arguments["folder"]))
    pairs = _operands(shape, getattr(torch, arguments["compute"]), device)
    _passes(pairs, device, 0.2)
    channel.ready(dtype=arguments["compute"], tokens=TOKENS)
    while channel.next() is not None:
        flops = 2.0 * TOKENS * sum(ins * outs for ins, outs in shape.linears)
        passes, seconds = _passes(pairs, device, SECONDS)
        channel.reply(gflops=passes * flops / seconds / 1e9)


def _operands(
    shape: Shape, dtype: torch.dtype, device: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device=device, dtype=dtype)

    return [(random(TOKENS, ins), random(outs, ins)) for ins, outs in shape.linears]


def _passes(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], device: str, seconds: float
) -> tuple[int, float]:
    """Multiply one layer's shapes until the time is over: how often, how long."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for inputs, weights in pairs:
            functional.linear(inputs, weights)
        if device != "cpu":
            torch.cuda.synchronize()
        done += 1
    return done, time.perf_counter() - began
