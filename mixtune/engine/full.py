"""Full fine-tuning: all weights of the network in one flat buffer, trained as a bank's one adapter.

The buffer holds float32 masters. Where the network computes in float32 its parameters are views of
the buffer; in another format they are copies, renewed before they are used.

Knows: parameters, a whole model's files. Does not know: tokens, batches, optimisers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE
from mixtune.errors import ModelError

WEIGHTS_FILE = "model.safetensors"


class _Views(NamedTuple):
    """A parameter's part of the two flat buffers, in its shape."""

    weight: Tensor
    gradient: Tensor


class FullWeights:
    """All weights of one network: a bank with a single slot."""

    slots = 1
    config = None

    def __init__(self, decoder: Decoder, folder: Path) -> None:
        """Make every parameter trainable.

        Args:
            decoder: the network.
            folder: the base model's files, for its weights and for what is copied beside them.
        """
        self.decoder, self.folder = decoder, folder
        network: nn.Module = decoder.network
        self.parameters = dict(network.named_parameters())  # tied weights once
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.weights = torch.empty(1, size, device=decoder.device)
        self.gradients = torch.zeros(1, size, device=decoder.device)
        self._views: dict[str, _Views] = {}
        start = 0
        for name, parameter in self.parameters.items():
            columns = slice(start, start := start + parameter.numel())
            buffers = (self.weights, self.gradients)
            weight, gradient = (buffer[0, columns].view_as(parameter) for buffer in buffers)
            weight.copy_(parameter.detach())
            self._views[name] = _Views(weight, gradient)
            parameter.requires_grad_(True)
            if decoder.dtype == torch.float32:
                parameter.data = weight
                parameter.grad = gradient
            else:
                hook = _accumulate_into(gradient)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def named_parameters(
        self, slot: int = 0, *, gradients: bool = False
    ) -> list[tuple[str, Tensor]]:
        """Weights (or gradients) under the network's own names."""
        return [
            (name, views.gradient if gradients else views.weight)
            for name, views in self._views.items()
        ]

    def sync_to_compute_dtype(self, slot: int) -> None:
        """Let the network compute with the weights as they are now; BASE: with the base's own."""
        if slot == BASE:
            self._read_weights(self.folder)
        if self.decoder.dtype != torch.float32:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self._views[name].weight)

    def set_scaling(self, strength: float) -> None:
        """Refuse any strength but 1: there is no low-rank product to scale.

        Raises:
            ModelError: another strength than 1.
        """
        if strength != 1:
            raise ModelError(
                "full fine-tuning has no adapter strength",
                found=strength,
                wanted="1",
                remedy="train adapters (train.method: lora) to choose their strength",
            )

    def reset(self, slot: int, seed: int) -> None:
        """Start anew from the base's weights; nothing is drawn, so that the seed plays no part."""
        self._read_weights(self.folder)
        self.gradients.zero_()
        self.sync_to_compute_dtype(slot)

    def save(self, slot: int, folder: Path, base_name: str) -> None:
        """Write a whole model in the base's number format, the base's other files beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: views.weight.to("cpu", self.decoder.dtype).contiguous().clone()
            for name, views in self._views.items()
        }
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        for file in self.folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and "index" not in file.name:
                shutil.copyfile(file, folder / file.name)

    def load(self, slot: int, folder: Path) -> None:
        """Read weights that `save` wrote.

        Raises:
            ModelError: a file is missing, broken, or of another model.
        """
        self._read_weights(folder)
        self.sync_to_compute_dtype(slot)

    def _read_weights(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        try:
            for file in sorted(folder.glob("*.safetensors")):
                tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise _unusable(folder, str(error)) from error
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        misfits = [n for n, views in self._views.items() if shapes.get(n) != views.weight.shape]
        if misfits:
            raise _unusable(folder, f"{len(misfits)} missing or misshapen, such as {misfits[0]}")
        with torch.no_grad():
            for name, views in self._views.items():
                views.weight.copy_(tensors[name])


def _accumulate_into(total: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to a float32 buffer and frees it."""

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad)
        parameter.grad = None

    return hook


def _unusable(folder: Path, problem: str) -> ModelError:
    return ModelError(
        "the model's weights cannot be used",
        where=str(folder),
        found=problem,
        wanted="safetensors of the base model's architecture",
        remedy="train this run again",
    )
