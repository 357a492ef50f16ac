"""AdamW for a bank: every adapter with its own step count, learning rate and clipping.

Adapters are rows of flat buffers, so a step is a few operations on long parts of rows.

Knows: Adam's arithmetic with decoupled weight decay (arXiv 1711.05101), clipping by the global
norm. Does not know: networks, schedules, data.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
CHUNK = 1 << 20
"""Numbers that are stepped at once, so that intermediate results need little memory, and no fresh
memory from the system in every step."""


class StepSettings(NamedTuple):
    """An optimiser step: learning rate, weight decay, gradient norm to clip at."""

    lr: float
    weight_decay: float
    max_norm: float


class AdamW:
    """Optimiser of rows of `weights` by the same rows of `gradients`; both [K, P] float32."""

    def __init__(self, weights: Tensor, gradients: Tensor) -> None:
        """Begin with zero moments for every row."""
        self.weights, self.gradients = weights, gradients
        self.exp_avg = torch.zeros_like(weights)
        self.exp_avg_sq = torch.zeros_like(weights)
        self._denominator = torch.empty_like(weights[0, :CHUNK])
        self.steps = [0] * len(weights)

    def reset(self, row: int) -> None:
        """Clear a row's moments and step count, for another adapter."""
        self.exp_avg[row].zero_()
        self.exp_avg_sq[row].zero_()
        self.steps[row] = 0

    def grad_norms(self) -> list[float]:
        """Global gradient norm of every row; the one place that waits for the device."""
        norms: list[float] = torch.linalg.vector_norm(self.gradients, dim=1).tolist()
        return norms

    @torch.no_grad()
    def step(self, row: int, grad_norm: float, settings: StepSettings) -> None:
        """Clip a row's gradient, whose norm is given, step, and clear the gradient."""
        lr, weight_decay, max_norm = settings
        self.steps[row] += 1
        correction1, correction2 = (1 - beta ** self.steps[row] for beta in BETAS)
        for start in range(0, self.weights.shape[1], CHUNK):
            chunk = (row, slice(start, start + CHUNK))
            gradient, weight = self.gradients[chunk], self.weights[chunk]
            exp_avg, exp_avg_sq = self.exp_avg[chunk], self.exp_avg_sq[chunk]
            if grad_norm > max_norm:
                gradient.mul_(max_norm / (grad_norm + 1e-6))  # as torch's clip_grad_norm_
            weight.mul_(1 - lr * weight_decay)
            exp_avg.lerp_(gradient, 1 - BETAS[0])
            exp_avg_sq.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            denominator = torch.sqrt(exp_avg_sq, out=self._denominator[: len(exp_avg_sq)])
            denominator.div_(correction2**0.5).add_(EPSILON)
            weight.addcdiv_(exp_avg, denominator, value=-lr / correction1)
            gradient.zero_()

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """A row's moments, under their names in checkpoints."""
        return {"first": self.exp_avg[row], "second": self.exp_avg_sq[row]}
