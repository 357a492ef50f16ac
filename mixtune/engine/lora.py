"""The adapter: low-rank products beside every linear layer of a frozen network, on disk as PEFT's.

Knows: LoRA's arithmetic (arXiv 2106.09685), seeded initialisation, PEFT's two files. Does not
know: tokens, batches, optimisers.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
_BEYOND = (
    "alpha_pattern",
    "alora_invocation_tokens",
    "exclude_modules",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
)


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


@dataclass(frozen=True, slots=True)
class Form:
    """What an adapter looks like: its rank, alpha, which layers it wraps, how it is scaled.

    `targets`: None for every linear layer but the head; names or last parts of names; or one
    regular expression over whole names (PEFT's `target_modules`). `rslora`: alpha / √rank instead
    of alpha / rank (arXiv 2312.03732).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | str | None = None
    rslora: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Form":
        """The form of an adapter in PEFT's format, whoever made it.

        Raises:
            ModelError: no readable configuration, or one that is more than plain LoRA.
        """
        path = folder / CONFIG_FILE
        config = _read_config(path)
        _refuse_more_than_lora(config, path)
        targets: Any = config.get("target_modules")
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        numbers = type(rank) is int and rank > 0 and isinstance(alpha, int | float)
        if not numbers or not targets or not isinstance(targets, str | list):
            raise ModelError(
                "the adapter does not say what it is",
                where=str(path),
                found={
                    "r": rank,
                    "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
                    "target_modules": targets,
                },
                wanted="a rank, an alpha and the modules that it adapts",
            )
        named = tuple(map(str, targets)) if isinstance(targets, list) else targets
        every = None if named == "all-linear" else named
        return cls(rank, float(alpha), every, bool(config.get("use_rslora")))

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def wraps(self, name: str) -> bool:
        """Whether a linear layer of that name gets an adapter."""
        if self.targets is None:
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)


class Adapter:
    """All LoRA layers of one network, by the name of the module that each one wraps."""

    def __init__(self, layers: Mapping[str, LoraLinear], form: Form) -> None:
        """Hold the layers in the order of their names."""
        self.layers = dict(sorted(layers.items()))
        self.form = form

    @classmethod
    def install(cls, network: nn.Module, head: nn.Module, form: Form) -> "Adapter":
        """Freeze a network and wrap its linear layers, but not the output head.

        Raises:
            ModelError: the network has no linear layers of that form.
        """
        network.requires_grad_(False)
        layers: dict[str, LoraLinear] = {}
        for name, module in list(network.named_modules()):
            linear = isinstance(module, nn.Linear) and module is not head
            if linear and form.wraps(name):
                parent, _, leaf = name.rpartition(".")
                layers[name] = LoraLinear(module, form.rank, form.scale)
                setattr(network.get_submodule(parent), leaf, layers[name])
        if not layers:
            raise ModelError(
                "the network has no linear layers to adapt",
                found=type(network).__name__,
                remedy="use a model of the Llama, Qwen, Mistral, Phi or Gemma families",
            )
        return cls(layers, form)

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

    def _reached(self, targets: object) -> list[str]:
        """Last parts of the layers here that another adapter's targets name, as `targets`."""
        if isinstance(targets, list):
            return sorted(map(str, targets))
        every = Form(1, 1.0, None if targets == "all-linear" else str(targets))
        return sorted({name.rpartition(".")[2] for name in self.layers if every.wraps(name)})

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the keys that PEFT gives them."""
        for name, layer in self.layers.items():
            yield f"{_PREFIX}{name}.lora_A.weight", layer.A
            yield f"{_PREFIX}{name}.lora_B.weight", layer.B

    def _config(self, base_name: str) -> dict[str, Any]:
        """PEFT's description of this adapter (its LoraConfig, the fields that matter)."""
        alpha = self.form.alpha
        return {
            "base_model_name_or_path": base_name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.form.rank,
            "target_modules": self.targets,
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": self.form.rslora,
        }

    def _check_config(self, config: Mapping[str, Any], folder: Path) -> None:
        """Refuse an adapter that would compute something else here than where it was trained."""
        wanted = self._config("")
        _refuse_more_than_lora(config, folder / CONFIG_FILE)
        found = {**config, "target_modules": self._reached(config.get("target_modules"))}
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


def _refuse_more_than_lora(config: Mapping[str, Any], path: Path) -> None:
    """PEFT's options that would compute something else than `LoraLinear`."""
    plain = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    beyond = [key for key in _BEYOND if config.get(key)]
    if not plain or beyond:
        raise ModelError(
            f"the adapter differs in {', '.join(beyond) or 'peft_type or bias'}: more than LoRA",
            where=str(path),
            found={key: config.get(key) for key in ("peft_type", "bias", *beyond)},
            wanted="plain LoRA (rank-stabilised or not) on linear layers",
            remedy="merge it into its base (PEFT's merge_and_unload, save_pretrained) and score "
            "the merged model's folder",
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
