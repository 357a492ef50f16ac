"""AdamW for a bank: every adapter with its own step count, learning rate and clipping.

Adapters are rows of flat buffers, so a step is a few operations on long parts of rows.

Knows: Adam's arithmetic with decoupled weight decay (arXiv 1711.05101), clipping by the global
norm. Does not know: networks, schedules, data.
"""

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
PART = 1 << 20
"""Numbers that are stepped at once, so that what is computed on the way needs no memory to speak
of, and no fresh memory from the system in every step."""


class AdamW:
    """Optimiser of rows of `weights` by the same rows of `gradients`; both [K, P] float32."""

    def __init__(self, weights: Tensor, gradients: Tensor) -> None:
        """Begin with empty moments for every row."""
        self.weights, self.gradients = weights, gradients
        self.first = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)
        self._spread = torch.empty_like(weights[0, :PART])
        self.steps = [0] * len(weights)

    def reset(self, row: int) -> None:
        """Forget a row's moments: another adapter has moved in."""
        self.first[row].zero_()
        self.second[row].zero_()
        self.steps[row] = 0

    def norms(self) -> list[float]:
        """Global gradient norm of every row; the one place that waits for the device."""
        found: list[float] = torch.linalg.vector_norm(self.gradients, dim=1).tolist()
        return found

    @torch.no_grad()
    def step(self, row: int, norm: float, how: tuple[float, float, float]) -> None:
        """Clip a row's gradient, step, and clear the gradient.

        Args:
            row: which.
            norm: of its gradient.
            how: learning rate, weight decay, the norm to clip at.
        """
        lr, decay, clip = how
        self.steps[row] += 1
        count = self.steps[row]
        for start in range(0, self.weights.shape[1], PART):
            part = (row, slice(start, start + PART))
            gradient, weight = self.gradients[part], self.weights[part]
            first, second = self.first[part], self.second[part]
            if norm > clip:
                gradient.mul_(clip / (norm + 1e-6))
            weight.mul_(1 - lr * decay)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            spread = torch.sqrt(second, out=self._spread[: len(second)])
            spread.div_((1 - BETAS[1] ** count) ** 0.5).add_(EPSILON)
            weight.addcdiv_(first, spread, value=-lr / (1 - BETAS[0] ** count))
            gradient.zero_()

    def state(self, row: int) -> dict[str, Tensor]:
        """What a row needs to go on, by name."""
        return {"first": self.first[row], "second": self.second[row]}
