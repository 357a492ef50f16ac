"""The adapter: low-rank products beside every linear layer of a frozen network, on disk as PEFT's.

Knows: LoRA's arithmetic (arXiv 2106.09685), seeded initialisation, PEFT's two files. Does not
know: tokens, batches, optimisers.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mixtune.durable import read_object
from mixtune.errors import ModelError, shorten

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Values under which PEFT computes what `LoraLinear` computes. Other ways to begin (PiSSA, OLoRA,
CorDA, LoftQ and more) change the base model's weights, also when the adapter is loaded."""

_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("eva_config", "layers_pattern", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("runtime_config", "task_type"),
}
"""Keys that say nothing about the computation, or only beside a key that is refused."""

_FORM = {"r", "lora_alpha", "target_modules", "use_rslora"}


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
            ModelError: a file that cannot be read, more than plain LoRA, or a form that is not
                said or is not that of the weights.
        """
        path = folder / CONFIG_FILE
        config = read_object(path, ModelError)
        if not config:
            raise _unreadable(path, "there is nothing in it")
        _refuse_more_than_lora(config, path)
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        targets: Any = config.get("target_modules")
        if type(rank) is not int or rank < 1:
            raise _not_said(path, "r", rank, "a whole number from 1")
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise _not_said(path, "lora_alpha", alpha, "a number")
        if not _is_pattern(targets):
            wanted = "names of modules, or one regular expression"
            raise _not_said(path, "target_modules", targets, wanted)
        _check_rank(folder / WEIGHTS_FILE, rank)
        named = tuple(targets) if isinstance(targets, list) else targets
        every = None if isinstance(named, str) and named.lower() == "all-linear" else named
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
        """Read an adapter of the same form and base model, written by `save` or by PEFT.

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha, targets or shapes differ.
        """
        self._check_form(Form.read(folder), folder / CONFIG_FILE)
        try:
            held = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise _unreadable(folder / WEIGHTS_FILE, error) from error
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


def _refuse_more_than_lora(config: Mapping[str, Any], path: Path) -> None:
    """Whatever would compute something else than `LoraLinear`, known here or not."""
    beyond = [key for key, plain in _PLAIN.items() if config.get(key) not in plain]
    for key in sorted(config.keys() - _PLAIN.keys() - _HARMLESS - _FORM):
        if config[key] is not False and config[key] not in (None, [], {}):
            beyond.append(key)
    if beyond:
        raise ModelError(
            f"the adapter differs in {', '.join(beyond)}: more than plain LoRA",
            where=str(path),
            found={key: config.get(key) for key in beyond},
            wanted="plain LoRA (rank-stabilised or not) on linear layers",
            remedy="merge it into its base (PEFT's merge_and_unload, save_pretrained) and score "
            "the merged model's folder",
        )


def _is_pattern(targets: object) -> bool:
    """Whether a value is one of the forms of `target_modules`."""
    if isinstance(targets, list):
        return bool(targets) and all(isinstance(target, str) for target in targets)
    try:
        return isinstance(targets, str) and targets != "" and bool(re.compile(targets))
    except (re.error, OverflowError, RecursionError):
        return False


def _check_rank(path: Path, rank: int) -> None:
    """Refuse weights of another rank, before memory is taken for what the configuration says."""
    try:
        with safe_open(path, framework="pt") as held:
            keys = [key for key in held.keys() if ".lora_A." in key]  # noqa: SIM118 - no mapping
            ranks = sorted({tuple(held.get_slice(key).get_shape()[:1]) for key in keys})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    if ranks != [(rank,)]:
        raise ModelError(
            "the adapter differs in r from its weights",
            where=str(path),
            found=", ".join(str(one) for shape in ranks for one in shape),
            wanted=f"{shorten(rank)}, as {CONFIG_FILE} says",
            remedy="use the configuration and the weights of one adapter",
        )


def _not_said(path: Path, key: str, found: object, wanted: str) -> ModelError:
    return ModelError(
        f"the adapter does not say what it is: {key}",
        where=str(path),
        found=found if found is not None else "null, or no such key",
        wanted=wanted,
        remedy="save the adapter again with PEFT's save_pretrained",
    )


def _unreadable(path: Path, error: object) -> ModelError:
    return ModelError(
        f"the adapter has no readable {path.name}: {error}",
        where=str(path),
        remedy="train this run again, or name the folder of a whole PEFT adapter",
    )
