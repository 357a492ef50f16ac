"""The bank: low-rank products of several adapters beside every linear layer of one frozen network.

K adapters of one configuration live in two flat buffers, weights [K, P] and gradients [K, P] (P
numbers of an adapter); every layer's A and B are views of them. A pass says which packed tokens
belong to which adapter, and each layer multiplies each adapter's slice by that adapter's A and B.

Knows: LoRA's arithmetic (arXiv 2106.09685), seeded initialisation. Does not know: tokens, batches,
optimisers.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtune.engine.adapter_format import (
    CONFIG_FILE,
    KEY_PREFIX,
    LORA_A,
    LORA_B,
    WEIGHTS_FILE,
    AdapterConfig,
    read_weights,
    write_adapter,
)
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE, AdapterSlice
from mixtune.engine.fused import fuse
from mixtune.errors import ModelError, shorten


class BatchedSlots(NamedTuple):
    """Consecutive slots with equally many tokens each, so that their products can be batched."""

    slots: slice
    num_slots: int

    def batch(self, tensor: Tensor) -> Tensor:
        """[tokens, n] → [slots, tokens of a slot, n], a view."""
        return tensor.view(self.num_slots, -1, tensor.shape[-1])


def batched_slots(slices: Sequence[AdapterSlice]) -> BatchedSlots | None:
    """Slots whose products can be one batched product; None where they have to be a loop."""
    slots = [each.slot for each in slices]
    lengths = {each.stop - each.start for each in slices}
    consecutive = slots == list(range(slots[0], slots[0] + len(slots)))
    if len(slots) < 2 or len(lengths) > 1 or not consecutive or slots[0] == BASE:
        return None
    return BatchedSlots(slice(slots[0], slots[-1] + 1), len(slots))


class _BankedLora(torch.autograd.Function):
    """`x Wᵀ + b + scaling · x Aᵀ Bᵀ`, the product of each slice with its own adapter's A and B.

    The gradients of A and B are added to the layer's buffers in place; the function returns that
    of `x` alone, and `A` is an argument only so that autograd knows that something is to be learnt.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, layer: "LoraLinear", slices: Sequence[AdapterSlice]
    ) -> Tensor:
        """[tokens, in] → [tokens, out]."""
        # Adapters are float32; products are computed in the base's format.
        down, up = layer.A.to(x.dtype), layer.B.to(x.dtype)
        out = functional.linear(x, layer.base.weight, layer.base.bias)
        # Kept for the backward pass, and zero at tokens of the base.
        low = torch.zeros(len(x), down.shape[1], dtype=x.dtype, device=x.device)
        batched = batched_slots(slices)
        if batched is not None:
            slots, batch = batched.slots, batched.batch
            torch.bmm(batch(x), down[slots].mT, out=batch(low))
            batch(out).baddbmm_(batch(low), up[slots].mT, alpha=layer.scaling)
        else:
            for slot, start, stop in slices:
                if slot != BASE:
                    torch.mm(x[start:stop], down[slot].t(), out=low[start:stop])
                    out[start:stop].addmm_(low[start:stop], up[slot].t(), alpha=layer.scaling)
        ctx.save_for_backward(x, low, layer.base.weight)
        ctx.layer, ctx.slices, ctx.factors = layer, slices, (down, up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x`; those of A and B go to the layer's buffers.

        With low = x Aᵀ: grad_B = scaling · gradᵀ low, grad_low = scaling · grad B,
        grad_A = grad_lowᵀ x, grad_x = grad W + grad_low A.
        """
        (grad,) = grads
        x, low, weight = ctx.saved_tensors
        layer, slices, (down, up) = ctx.layer, ctx.slices, ctx.factors
        grad_input = grad @ weight if ctx.needs_input_grad[0] else None
        batched = batched_slots(slices)
        if batched is not None:
            slots, batch = batched.slots, batched.batch
            grad_low = torch.bmm(batch(grad), up[slots]).mul_(layer.scaling)
            _add_product(layer.grad_B[slots], batch(grad).mT, batch(low), layer.scaling)
            _add_product(layer.grad_A[slots], grad_low.mT, batch(x), 1.0)
            if grad_input is not None:
                batch(grad_input).baddbmm_(grad_low, down[slots])
            return grad_input, None, None, None
        for slot, start, stop in slices:
            if slot == BASE:
                continue
            tokens = slice(start, stop)
            grad_low = torch.mm(grad[tokens], up[slot]).mul_(layer.scaling)
            _add_product(layer.grad_B[slot], grad[tokens].t(), low[tokens], layer.scaling)
            _add_product(layer.grad_A[slot], grad_low.t(), x[tokens], 1.0)
            if grad_input is not None:
                grad_input[tokens].addmm_(grad_low, down[slot])
        return grad_input, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, scaling: float) -> None:
    """Total += scaling · a @ b, in the total's float32; of matrices or batches of them."""
    if a.dtype != total.dtype:
        # A half format: the product is rounded once, the sum is not.
        total.add_(torch.matmul(a, b), alpha=scaling)
    elif total.dim() == 2:
        total.addmm_(a, b, alpha=scaling)
    else:
        total.baddbmm_(a, b, alpha=scaling)


class LoraLinear(nn.Module):
    """A frozen linear layer and its part of the bank: A [K, rank, in], B [K, out, rank]."""

    A: Tensor
    B: Tensor
    grad_A: Tensor
    grad_B: Tensor

    def __init__(self, base: nn.Linear, bank: "Bank") -> None:
        """Wrap a layer; the bank sets A, B and their gradients."""
        super().__init__()
        self.base = base
        self.bank = bank
        self.scaling = bank.config.scaling

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], in the dtype of `x`."""
        slices = self.bank.routing.slices
        if all(each.slot == BASE for each in slices):
            out: Tensor = self.base(x)
            return out
        flat = x.reshape(-1, x.shape[-1])
        out = _BankedLora.apply(flat, self.A, self, slices)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)


class Bank:
    """The adapters of one network: K slots of one configuration."""

    def __init__(self, decoder: Decoder, config: AdapterConfig, slots: int = 1) -> None:
        """Freeze a network and wrap its linear layers, but not the output head.

        Raises:
            ModelError: the network has no linear layers that the configuration names.
        """
        network, head = decoder.network, decoder.head
        network.requires_grad_(False)
        fuse(network)
        self.config, self.slots, self.routing = config, slots, decoder.routing
        self.layers: dict[str, LoraLinear] = {}
        for name, module in sorted(network.named_modules()):
            is_linear = isinstance(module, nn.Linear) and module is not head
            if is_linear and config.wraps(name):
                parent, _, leaf = name.rpartition(".")
                self.layers[name] = LoraLinear(module, self)
                setattr(network.get_submodule(parent), leaf, self.layers[name])
        if not self.layers:
            named = config.target_modules is not None
            raise ModelError(
                "the network has no linear layers to adapt",
                found=type(network).__name__,
                wanted="the layers that the adapter names" if named else "linear layers",
                remedy="use a model of the Llama, Qwen, Mistral, Phi or Gemma families",
            )
        self._allocate(decoder.device)

    def _allocate(self, device: torch.device) -> None:
        """Make the two flat buffers, and each layer's A and B views of them."""
        rank = self.config.rank
        parameters = [
            (layer, name, shape)
            for layer in self.layers.values()
            for name, shape in (
                ("A", (rank, layer.base.in_features)),
                ("B", (layer.base.out_features, rank)),
            )
        ]
        size = sum(math.prod(shape) for _, _, shape in parameters)
        self.weights = torch.zeros(self.slots, size, device=device)
        self.gradients = torch.zeros(self.slots, size, device=device)
        start = 0
        for layer, name, shape in parameters:
            columns = slice(start, start := start + math.prod(shape))
            setattr(layer, name, self.weights[:, columns].view(-1, *shape).requires_grad_())
            setattr(layer, f"grad_{name}", self.gradients[:, columns].view(-1, *shape))

    def sync_to_compute_dtype(self, slot: int) -> None:
        """Nothing to do: passes name the adapter of every token, layers cast it."""

    def set_scaling(self, strength: float) -> None:
        """Multiply every adapter's product by `strength`; 1 is as it was trained."""
        for layer in self.layers.values():
            layer.scaling = self.config.scaling * strength

    def reset(self, slot: int, seed: int) -> None:
        """Start anew: A uniform as PEFT draws it, from one generator in name order; B zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers.values():
                # Drawn on the CPU: the same numbers on every device.
                drawn = torch.empty(layer.A.shape[1:])
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                layer.A[slot].copy_(drawn)
                layer.B[slot].zero_()
        self.gradients[slot].zero_()

    def save(self, slot: int, folder: Path, base_name: str) -> None:
        """Write the adapter of a slot in PEFT's format, weights in float32."""
        targets = self.config.target_modules
        # Last parts of names, as PEFT has them. A tuple stays as it is: with `train.top_layers` it
        # has whole names, because last parts would name the layers below too.
        names = targets if isinstance(targets, tuple) else {n.split(".")[-1] for n in self.layers}
        tensors = {
            key: tensor.detach().cpu().contiguous().clone()
            for key, tensor in self.named_parameters(slot)
        }
        write_adapter(folder, self.config, sorted(names), tensors, base_name)

    def load(self, slot: int, folder: Path) -> None:
        """Read an adapter of the same configuration and base model, written by `save` or by PEFT.

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha, targets or shapes differ.
        """
        self._check_config(AdapterConfig.read(folder), folder / CONFIG_FILE)
        tensors = read_weights(folder)
        parameters = dict(self.named_parameters(slot))
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        differing = shapes.items() ^ {(key, tuple(p.shape)) for key, p in parameters.items()}
        if differing:
            raise ModelError(
                "the adapter's weights do not fit the base model",
                where=str(folder / WEIGHTS_FILE),
                found=f"{len(differing)} differing tensors, such as {min(differing)}",
                wanted=f"{len(parameters)} tensors of the base model's shapes",
                remedy="load it with the base model that it was trained on",
            )
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])

    def _check_config(self, config: AdapterConfig, path: Path) -> None:
        """Refuse an adapter that would compute something else here than where it was trained."""
        # Compared by the layers that they reach: targets may be names or regular expressions.
        reached = [name for name in self.layers if config.wraps(name)]
        for key, value, expected in (
            ("r", config.rank, self.config.rank),
            ("lora_alpha", config.alpha, self.config.alpha),
            ("use_rslora", config.use_rslora, self.config.use_rslora),
            ("target_modules", reached, list(self.layers)),
        ):
            if value != expected:
                raise ModelError(
                    f"the adapter differs in {key}",
                    where=str(path),
                    found=value,
                    wanted=shorten(expected),
                    remedy="load it under the training settings that it was made with",
                )

    def named_parameters(
        self, slot: int, *, gradients: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """One adapter's weights (or gradients) under the keys that PEFT gives them."""
        for name, layer in self.layers.items():
            A, B = (layer.grad_A, layer.grad_B) if gradients else (layer.A, layer.B)
            yield f"{KEY_PREFIX}{name}{LORA_A}", A[slot]
            yield f"{KEY_PREFIX}{name}{LORA_B}", B[slot]
