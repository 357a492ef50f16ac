"""How fast this machine multiplies matrices of a model's shapes, in each number format.

Knows: a stopwatch. Does not know: studies, which format one asks for.
"""

import json
import time
from pathlib import Path

import torch
from torch.nn import functional

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENS = 1024
CLEARLY = 1.3
"""How many times faster the other format must be to be worth a word."""


def matmul_rates(folder: Path, seconds: float = 0.15, device: str = "cpu") -> dict[str, float]:
    """Products a second of a base model's linear layers, in FLOP/s by number format.

    Args:
        folder: the model's; its config.json has the shapes.
        seconds: time spent on each format, beside warming up.
        device: where, in torch's words.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = int(config["hidden_size"])
    inner = int(config.get("intermediate_size") or 4 * width)
    return {name: _rate(dtype, (width, inner), seconds, device) for name, dtype in FORMATS.items()}


def _rate(dtype: torch.dtype, shape: tuple[int, int], seconds: float, device: str) -> float:
    width, inner = shape
    x = torch.ones(TOKENS, width, dtype=dtype, device=device)
    weight = torch.ones(inner, width, dtype=dtype, device=device)
    functional.linear(x, weight)
    _wait(device)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        functional.linear(x, weight)
        _wait(device)
        done += 1
    return done * 2 * TOKENS * width * inner / (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def worded(rates: dict[str, float], compute: str) -> str:
    """What was measured, and whether another format than the study's would be clearly faster."""
    said = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    other = max(rates, key=rates.__getitem__)
    text = f"matrix products here: {said}; this study computes in {compute}"
    if rates[other] > CLEARLY * rates[compute]:
        text += f"; train.compute={other} would be faster (and gives results other ids)"
    return text
