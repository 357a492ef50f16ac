"""Full fine-tuning: all weights of the network in one flat buffer, trained as a bank's one adapter.

The buffer holds float32 masters. Where the network computes in float32 its parameters are views of
the buffer; in another format they are copies, renewed before they are used.

Knows: parameters, a whole model's files. Does not know: tokens, batches, optimisers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE
from mixtune.errors import ModelError

WEIGHTS_FILE = "model.safetensors"


class FullWeights:
    """All weights of one network: a bank with a single slot."""

    slots = 1
    form = None

    def __init__(self, decoder: Decoder, folder: Path) -> None:
        """Make every parameter trainable.

        Args:
            decoder: the network.
            folder: the base model's files, for its weights and for what is copied beside them.
        """
        self.decoder, self.folder = decoder, folder
        network: nn.Module = decoder.network
        self.parameters = dict(network.named_parameters())  # tied ones once
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.weights = torch.empty(1, size, device=decoder.device)
        self.gradients = torch.zeros(1, size, device=decoder.device)
        self._views: dict[str, tuple[Tensor, Tensor]] = {}
        first = 0
        for name, parameter in self.parameters.items():
            part = slice(first, first := first + parameter.numel())
            weight, gradient = (
                t[0, part].view_as(parameter) for t in (self.weights, self.gradients)
            )
            weight.copy_(parameter.detach())
            self._views[name] = (weight, gradient)
            parameter.requires_grad_(True)
            if decoder.dtype == torch.float32:
                parameter.data = weight
                parameter.grad = gradient
            else:
                parameter.register_post_accumulate_grad_hook(_into(gradient))  # type: ignore[no-untyped-call]

    def named(self, slot: int = 0, *, gradients: bool = False) -> list[tuple[str, Tensor]]:
        """Weights (or gradients) under the network's own names."""
        return [(name, views[gradients]) for name, views in self._views.items()]

    def ready(self, slot: int) -> None:
        """Let the network compute with the weights as they are now; BASE: with the base's own."""
        if slot == BASE:
            self._fill(self.folder)
        if self.decoder.dtype != torch.float32:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self._views[name][0])

    def dial(self, strength: float) -> None:
        """All of the weights, or the base's: there is no product to make stronger or weaker.

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
        self._fill(self.folder)
        self.gradients.zero_()
        self.ready(slot)

    def save(self, slot: int, folder: Path, base_name: str) -> None:
        """Write a whole model in the base's number format, the base's other files beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = self.decoder.dtype
        tensors = {name: view.to("cpu", dtype).contiguous().clone() for name, view in self.named()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        for file in self.folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and "index" not in file.name:
                shutil.copyfile(file, folder / file.name)

    def load(self, slot: int, folder: Path) -> None:
        """Read weights that `save` wrote.

        Raises:
            ModelError: a file is missing, broken, or of another model.
        """
        self._fill(folder)
        self.ready(slot)

    def _fill(self, folder: Path) -> None:
        held: dict[str, Tensor] = {}
        try:
            for file in sorted(folder.glob("*.safetensors")):
                held |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise _unfit(folder, str(error)) from error
        shapes = {name: tuple(view.shape) for name, (view, _) in self._views.items()}
        absent = [name for name, shape in shapes.items() if _shape(held.get(name)) != shape]
        if absent:
            raise _unfit(folder, f"{len(absent)} missing or misshapen, such as {absent[0]}")
        with torch.no_grad():
            for name, (view, _) in self._views.items():
                view.copy_(held[name])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _into(total: Tensor) -> Callable[[Tensor], None]:
    """What adds a parameter's gradient to a float32 buffer and lets go of it."""

    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad)
        parameter.grad = None

    return add


def _unfit(folder: Path, found: str) -> ModelError:
    return ModelError(
        "the model's weights cannot be used",
        where=str(folder),
        found=found,
        wanted="safetensors of the base model's architecture",
        remedy="train this run again",
    )
