"""Speed of this machine's matrix products, of a model's shapes, in each number format.

Knows: a stopwatch. Does not know: studies, which format one asks for.
"""

import json
import time
from pathlib import Path

import torch
from torch.nn import functional

from mixtune.engine.model import DTYPES

TOKENS = 1024

MIN_SPEEDUP = 1.3
"""How many times faster the other format must be to be mentioned."""


def matmul_rates(folder: Path, seconds: float = 0.15, device: str = "cpu") -> dict[str, float]:
    """FLOP/s of a base model's linear layers, by number format.

    Args:
        folder: the model's; its config.json has the shapes.
        seconds: time spent on each format, beside warming up.
        device: where, in torch's words.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = int(config["hidden_size"])
    inner = int(config.get("intermediate_size") or 4 * width)
    rates = {}
    for name, dtype in DTYPES.items():
        x = torch.ones(TOKENS, width, dtype=dtype, device=device)
        weight = torch.ones(inner, width, dtype=dtype, device=device)
        products = _products_per_second(x, weight, seconds)
        rates[name] = products * 2 * TOKENS * width * inner  # a multiplication and an addition
    return rates


def _products_per_second(x: torch.Tensor, weight: torch.Tensor, seconds: float) -> float:
    functional.linear(x, weight)
    _synchronize(x.device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        functional.linear(x, weight)
        _synchronize(x.device)
        count += 1
    return count / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def describe_rates(rates: dict[str, float], compute: str) -> str:
    """The rates in words, and whether another format than the study's would be much faster."""
    listed = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    fastest = max(rates, key=rates.__getitem__)
    text = f"matrix products here: {listed}; this study computes in {compute}"
    if rates[fastest] > MIN_SPEEDUP * rates[compute]:
        text += f"; train.compute={fastest} would be faster (and gives results other ids)"
    return text
