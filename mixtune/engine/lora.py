"""The adapter: low-rank products beside every linear layer of a frozen network, on disk as PEFT's.

Knows: LoRA's arithmetic (arXiv 2106.09685), seeded initialisation, PEFT's two files. Does not
know: tokens, batches, optimisers.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mixtune.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """`base(x) + scale · x Aᵀ Bᵀ`; A is [rank, in], B is [out, rank], both float32."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        """Wrap a frozen linear layer with an adapter that starts at zero."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.enabled = True
        device = base.weight.device
        self.A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], in the dtype of `x`."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        low = functional.linear(x.flatten(0, -2), self.A.to(x.dtype))
        # addmm adds the product into the base's output in one pass over it.
        fused = torch.addmm(y.flatten(0, -2), low, self.B.to(x.dtype).t(), alpha=self.scale)
        return fused.view(y.shape)


class Adapter:
    """All LoRA layers of one network, by the name of the module that each one wraps."""

    def __init__(self, layers: Mapping[str, LoraLinear], rank: int, alpha: float) -> None:
        """Hold the layers in the order of their names."""
        self.layers = dict(sorted(layers.items()))
        self.rank = rank
        self.alpha = alpha

    @classmethod
    def install(cls, network: nn.Module, head: nn.Module, rank: int, alpha: float) -> "Adapter":
        """Freeze a network and wrap each of its linear layers except the output head.

        Raises:
            ModelError: the network has no linear layers.
        """
        network.requires_grad_(False)
        layers: dict[str, LoraLinear] = {}
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.Linear) and module is not head:
                parent, _, leaf = name.rpartition(".")
                layers[name] = LoraLinear(module, rank, alpha / rank)
                setattr(network.get_submodule(parent), leaf, layers[name])
        if not layers:
            raise ModelError(
                "the network has no linear layers to adapt",
                found=type(network).__name__,
                remedy="use a model of the Llama, Qwen, Mistral, Phi or Gemma families",
            )
        return cls(layers, rank, alpha)

    @property
    def targets(self) -> list[str]:
        """Last parts of the adapted modules' names, as PEFT's `target_modules`."""
        return sorted({name.rpartition(".")[2] for name in self.layers})

    def parameters(self) -> Iterator[nn.Parameter]:
        """A and B of every layer, in the order of the names."""
        for layer in self.layers.values():
            yield layer.A
            yield layer.B

    def enable(self, enabled: bool) -> None:
        """Switch the adapter on or off in every layer."""
        for layer in self.layers.values():
            layer.enabled = enabled

    def reset(self, seed: int) -> None:
        """Start anew: A uniform as PEFT draws it, from one generator in name order; B zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers.values():
                # Drawn on the CPU: the same numbers whatever the device is.
                drawn = torch.empty(layer.A.shape)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                layer.A.copy_(drawn)
                layer.B.zero_()
        for parameter in self.parameters():
            parameter.grad = None

    def save(self, folder: Path, base_name: str) -> None:
        """Write the two files that `peft.PeftModel.from_pretrained` reads, weights in float32."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self._named()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = json.dumps(self._config(base_name), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read an adapter that `save` wrote for a network of the same form.

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha, targets or shapes differ.
        """
        self._check_config(_read_config(folder / CONFIG_FILE), folder)
        held = _read_weights(folder / WEIGHTS_FILE)
        wanted = dict(self._named())
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

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the keys that PEFT gives them."""
        for name, layer in self.layers.items():
            yield f"{_PREFIX}{name}.lora_A.weight", layer.A
            yield f"{_PREFIX}{name}.lora_B.weight", layer.B

    def _config(self, base_name: str) -> dict[str, Any]:
        """PEFT's description of this adapter (its LoraConfig, the fields that matter)."""
        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return {
            "base_model_name_or_path": base_name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": self.targets,
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }

    def _check_config(self, config: Mapping[str, Any], folder: Path) -> None:
        """Refuse an adapter that would compute something else here than where it was trained."""
        wanted = self._config("")
        found = {**config, "target_modules": sorted(config.get("target_modules") or [])}
        # Absent keys have PEFT's defaults, which are the values wanted, but for these three.
        required = {"peft_type", "r", "lora_alpha"}
        for key in wanted.keys() - {"base_model_name_or_path", "inference_mode", "task_type"}:
            if key == "init_lora_weights" or (key not in found and key not in required):
                continue
            if found.get(key) != wanted[key] and not (key == "lora_dropout"):
                raise ModelError(
                    f"the adapter differs in {key}",
                    where=str(folder / CONFIG_FILE),
                    found=found.get(key),
                    wanted=str(wanted[key]),
                    remedy="load it under the training settings that it was made with",
                )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(config, dict):
        raise ModelError("not an adapter's configuration", where=str(path), found=config)
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the adapter has no readable {path.name}: {error}",
        where=str(path),
        remedy="train this run again, or name the folder of a whole PEFT adapter",
    )
