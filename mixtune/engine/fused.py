"""Norms and gated activations in fewer passes over memory, keeping less for the backward pass.

Written for a frozen base. Each replacement is compared with the module's own forward, on random
numbers in the network's format, when a network is loaded; one that differs is not used.

Knows: root-mean-square norms, gated linear units with SiLU. Does not know: attention, adapters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_PROBE_ROWS = 8
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""Relative distance up to which a replacement computes the same. In the half formats one rounding
more or less makes more (2e-3 and 3e-4): replacements round where the network does."""


class _Norm(torch.autograd.Function):
    """`weight · x / rms(x)` over the last dimension, computed in float32; the weight is frozen.

    The weight's own format says where numbers are rounded to that of `x`: a weight in float32
    counts before, one in the format of `x` after.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """[..., width] → [..., width]."""
        wide = _at_least_float32(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        # Rounded to the weight's format before it is multiplied by it, as the network's own norm.
        out: Tensor = (wide * inverse_rms).to(weight.dtype).mul_(weight)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x`: g / rms - x · (g · x) / (width · rms³), with g the scaled gradient."""
        x, weight, inverse_rms = ctx.saved_tensors
        wide, scaled = _at_least_float32(x), _at_least_float32(grads[0] * weight)
        dot = (scaled * wide).sum(dim=-1, keepdim=True)
        factor = inverse_rms.pow(3).mul_(dot).div_(-x.shape[-1])
        return scaled.mul_(inverse_rms).addcmul_(wide, factor).to(x.dtype), None, None


def _at_least_float32(x: Tensor) -> Tensor:
    """Numbers in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Gated(torch.autograd.Function):
    """`silu(gate) · up`; silu is computed again in the backward pass rather than kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Twice [..., width] → [..., width]."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `gate` and `up`."""
        gate, up = ctx.saved_tensors
        (grad,) = grads
        return (
            torch.ops.aten.silu_backward(grad * up, gate),
            functional.silu(gate).mul_(grad),
        )


def fuse(network: nn.Module) -> int:
    """Give every norm and gated unit of a network a faster `forward`, where it computes the same.

    Returns:
        How many modules were changed.
    """
    count = 0
    for module in network.modules():
        replacement = _replacement(module)
        if replacement is not None and _computes_the_same(module, replacement):
            module.forward = replacement
            count += 1
    return count


def _replacement(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if type(module).__name__.endswith("RMSNorm"):
        return _norm_of(module)
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    # Units with another activation than SiLU fail the comparison.
    return _gated_of(module) if all(isinstance(part, nn.Module) for part in parts) else None


def _norm_of(module: Any) -> Callable[[Tensor], Tensor] | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if epsilon is None or weight is None:
        return None
    # Gemma's families keep the weight's distance from one, and multiply before they round.
    gemma = "Gemma" in type(module).__name__
    factor = (1.0 + weight.float() if gemma else weight).detach()

    def forward(x: Tensor) -> Tensor:
        out: Tensor = _Norm.apply(x, factor, float(epsilon))  # type: ignore[no-untyped-call]
        return out

    return forward


def _gated_of(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        inner = _Gated.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
        out: Tensor = module.down_proj(inner)
        return out

    return forward


@torch.no_grad()
def _computes_the_same(module: nn.Module, replacement: Callable[[Tensor], Tensor]) -> bool:
    """Compare on random numbers, in the module's own format."""
    weight: Any = getattr(module, "weight", None)
    gate: Any = getattr(module, "gate_proj", None)
    width = len(weight) if weight is not None else gate.weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    like = next(module.parameters())
    probe = torch.randn(1, _PROBE_ROWS, width, generator=generator).to(like.device, like.dtype)
    replaced, expected = replacement(probe).float(), module(probe).float()
    return bool((replaced - expected).norm() <= _TOLERANCE[like.dtype] * expected.norm())
