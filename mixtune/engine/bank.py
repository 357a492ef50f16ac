"""The bank: low-rank products of several adapters beside every linear layer of one frozen network.

K adapters of one form live in two flat buffers, weights [K, P] and gradients [K, P] (P numbers of
an adapter); every layer's A and B are views of them. A pass says which packed tokens belong to
which adapter, and each layer multiplies each adapter's slice by that adapter's A and B.

Knows: LoRA's arithmetic (arXiv 2106.09685), seeded initialisation, PEFT's two files. Does not
know: tokens, batches, optimisers.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, Form, peft_config, unreadable
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE, Slices
from mixtune.engine.fused import fuse
from mixtune.errors import ModelError, shorten

_PREFIX = "base_model.model."


class _LowRank(torch.autograd.Function):
    """`x Wᵀ + b + scale · x Aᵀ Bᵀ`, the product of each slice with its own adapter's A and B.

    The gradients of A and B are added to the layer's buffers in place; the function returns that
    of `x` alone, and `A` is an argument only so that autograd knows that something is to be learnt.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, layer: "LoraLinear", slices: Slices) -> Tensor:
        """[tokens, in] → [tokens, out]."""
        down, up = layer.A.to(x.dtype), layer.B.to(x.dtype)
        out = functional.linear(x, layer.base.weight, layer.base.bias)
        low = torch.zeros(len(x), down.shape[1], dtype=x.dtype, device=x.device)
        together = stack(slices)
        if together is not None:
            which, count = together
            mine = x.view(count, -1, x.shape[1])
            torch.bmm(mine, down[which].mT, out=low.view(count, -1, low.shape[1]))
            out.view(count, -1, out.shape[1]).baddbmm_(
                low.view(count, -1, low.shape[1]), up[which].mT, alpha=layer.scale
            )
        else:
            for slot, start, stop in slices:
                if slot != BASE:
                    torch.mm(x[start:stop], down[slot].t(), out=low[start:stop])
                    out[start:stop].addmm_(low[start:stop], up[slot].t(), alpha=layer.scale)
        ctx.save_for_backward(x, low, layer.base.weight)
        ctx.layer, ctx.slices, ctx.factors = layer, slices, (down, up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x`; those of A and B go to the layer's buffers."""
        (grad,) = grads
        x, low, weight = ctx.saved_tensors
        layer, (down, up) = ctx.layer, ctx.factors
        back = grad @ weight if ctx.needs_input_grad[0] else None
        together = stack(ctx.slices)
        if together is not None:
            which, count = together
            mine, x, low = (t.view(count, -1, t.shape[1]) for t in (grad, x, low))
            high = torch.bmm(mine, up[which]).mul_(layer.scale)
            _add(layer.grad_B[which], mine.mT, low, layer.scale)
            _add(layer.grad_A[which], high.mT, x, 1.0)
            if back is not None:
                back.view(count, -1, back.shape[1]).baddbmm_(high, down[which])
            return back, None, None, None
        for slot, start, stop in ctx.slices:
            if slot == BASE:
                continue
            mine = grad[start:stop]
            high = torch.mm(mine, up[slot]).mul_(layer.scale)
            _add(layer.grad_B[slot], mine.t(), low[start:stop], layer.scale)
            _add(layer.grad_A[slot], high.t(), x[start:stop], 1.0)
            if back is not None:
                back[start:stop].addmm_(high, down[slot])
        return back, None, None, None


def _add(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Total += scale · left @ right, in the total's float32."""
    if left.dtype == total.dtype:
        if total.dim() == 2:
            total.addmm_(left, right, alpha=scale)
        else:
            total.baddbmm_(left, right, alpha=scale)
    else:
        total.add_(torch.matmul(left, right), alpha=scale)


def stack(slices: Slices) -> tuple[slice, int] | None:
    """Slots as one range where several slices are equally long and their slots consecutive."""
    slots = [slot for slot, _, _ in slices]
    long = {stop - start for _, start, stop in slices}
    if len(slots) < 2 or len(long) > 1 or slots != list(range(slots[0], slots[0] + len(slots))):
        return None
    return None if slots[0] == BASE else (slice(slots[0], slots[-1] + 1), len(slots))


class LoraLinear(nn.Module):
    """A frozen linear layer and its part of the bank: A [K, rank, in], B [K, out, rank]."""

    A: Tensor
    B: Tensor
    grad_A: Tensor
    grad_B: Tensor

    def __init__(self, base: nn.Linear, bank: "Bank") -> None:
        """Wrap a layer; the bank hands out A, B and their gradients."""
        super().__init__()
        self.base = base
        self.bank = bank
        self.scale = bank.form.scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], in the dtype of `x`."""
        slices = self.bank.routes.slices
        if all(slot == BASE for slot, _, _ in slices):
            out: Tensor = self.base(x)
            return out
        flat = x.reshape(-1, x.shape[-1])
        out = _LowRank.apply(flat, self.A, self, slices)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)


class Bank:
    """The adapters of one network: K slots of one form."""

    def __init__(self, decoder: Decoder, form: Form, slots: int = 1) -> None:
        """Freeze a network and wrap its linear layers, but not the output head.

        Raises:
            ModelError: the network has no linear layers of that form.
        """
        network, head = decoder.network, decoder.head
        network.requires_grad_(False)
        fuse(network)
        self.form, self.slots, self.routes = form, slots, decoder.routes
        self.layers: dict[str, LoraLinear] = {}
        for name, module in sorted(network.named_modules()):
            linear = isinstance(module, nn.Linear) and module is not head
            if linear and form.wraps(name):
                parent, _, leaf = name.rpartition(".")
                self.layers[name] = LoraLinear(module, self)
                setattr(network.get_submodule(parent), leaf, self.layers[name])
        if not self.layers:
            raise ModelError(
                "the network has no linear layers to adapt",
                found=type(network).__name__,
                wanted="the layers that the adapter names" if form.targets else "linear layers",
                remedy="use a model of the Llama, Qwen, Mistral, Phi or Gemma families",
            )
        self._hand_out(next(iter(self.layers.values())).base.weight.device)

    def _hand_out(self, device: torch.device) -> None:
        """The two flat buffers, and each layer's views of them."""
        rank = self.form.rank
        shapes = [
            (layer, name, shape)
            for layer in self.layers.values()
            for name, shape in (
                ("A", (rank, layer.base.in_features)),
                ("B", (layer.base.out_features, rank)),
            )
        ]
        size = sum(math.prod(shape) for _, _, shape in shapes)
        self.weights = torch.zeros(self.slots, size, device=device)
        self.gradients = torch.zeros(self.slots, size, device=device)
        first = 0
        for layer, name, shape in shapes:
            part = slice(first, first := first + math.prod(shape))
            setattr(layer, name, self.weights[:, part].view(-1, *shape).requires_grad_())
            setattr(layer, f"grad_{name}", self.gradients[:, part].view(-1, *shape))

    @property
    def targets(self) -> list[str]:
        """PEFT's `target_modules`: last parts of names; whole names where only some are adapted."""
        if isinstance(self.form.targets, tuple):
            return sorted(self.form.targets)
        return sorted({name.rpartition(".")[2] for name in self.layers})

    def ready(self, slot: int) -> None:
        """Nothing to do: passes name the adapter of every token."""

    def dial(self, strength: float) -> None:
        """Let every adapter's product count `strength` times; 1 is as it was trained."""
        for layer in self.layers.values():
            layer.scale = self.form.scale * strength

    def reset(self, slot: int, seed: int) -> None:
        """Start anew: A uniform as PEFT draws it, from one generator in name order; B zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers.values():
                # Drawn on the CPU: the same numbers whatever the device is.
                drawn = torch.empty(layer.A.shape[1:])
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                layer.A[slot].copy_(drawn)
                layer.B[slot].zero_()
        self.gradients[slot].zero_()

    def save(self, slot: int, folder: Path, base_name: str) -> None:
        """Write the two files that `peft.PeftModel.from_pretrained` reads, weights in float32."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            key: tensor.detach().cpu().contiguous().clone() for key, tensor in self.named(slot)
        }
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = json.dumps(
            peft_config(self.form, self.targets, base_name), indent=2, sort_keys=True
        )
        (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    def load(self, slot: int, folder: Path) -> None:
        """Read an adapter of the same form and base model, written by `save` or by PEFT.

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha, targets or shapes differ.
        """
        self._check_form(Form.read(folder), folder / CONFIG_FILE)
        try:
            held = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise unreadable(folder / WEIGHTS_FILE, error) from error
        wanted = dict(self.named(slot))
        shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
        differing = shapes.items() ^ {(key, tuple(t.shape)) for key, t in wanted.items()}
        if differing:
            raise ModelError(
                "the adapter's weights do not fit the base model",
                where=str(folder / WEIGHTS_FILE),
                found=f"{len(differing)} differing tensors, such as {min(differing)}",
                wanted=f"{len(wanted)} tensors of the base model's shapes",
                remedy="load it with the base model that it was trained on",
            )
        with torch.no_grad():
            for key, parameter in wanted.items():
                parameter.copy_(held[key])

    def _check_form(self, theirs: Form, path: Path) -> None:
        """Refuse an adapter that would compute something else here than where it was trained."""
        mine = self.form
        reached = [name for name in self.layers if theirs.wraps(name)]
        for key, found, wanted in (
            ("r", theirs.rank, mine.rank),
            ("lora_alpha", theirs.alpha, mine.alpha),
            ("use_rslora", theirs.rslora, mine.rslora),
            ("target_modules", reached, list(self.layers)),
        ):
            if found != wanted:
                raise ModelError(
                    f"the adapter differs in {key}",
                    where=str(path),
                    found=found,
                    wanted=shorten(wanted),
                    remedy="load it under the training settings that it was made with",
                )

    def named(self, slot: int, *, gradients: bool = False) -> Iterator[tuple[str, Tensor]]:
        """One adapter's weights (or gradients) under the keys that PEFT gives them."""
        for name, layer in self.layers.items():
            pair = (layer.grad_A, layer.grad_B) if gradients else (layer.A, layer.B)
            yield f"{_PREFIX}{name}.lora_A.weight", pair[0][slot]
            yield f"{_PREFIX}{name}.lora_B.weight", pair[1][slot]
