"""What an adapter looks like, and whether one made elsewhere is plain LoRA.

Knows: the keys of PEFT's adapter_config.json. Does not know: networks, arithmetic.
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mixtune.errors import ModelError, shorten
from mixtune.store.files import read_object

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
            raise unreadable(path, "there is nothing in it")
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


def peft_config(form: Form, targets: list[str] | str, base_name: str) -> dict[str, object]:
    """PEFT's description of an adapter (its LoraConfig, the fields that matter).

    Args:
        form: rank, alpha and how it is scaled.
        targets: the layers, as PEFT is to name them.
        base_name: the base model that it names.
    """
    alpha = form.alpha
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
        "r": form.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": form.rslora,
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
        raise unreadable(path, error) from error
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


def unreadable(path: Path, error: object) -> ModelError:
    """The error for a file of an adapter that cannot be read."""
    return ModelError(
        f"the adapter has no readable {path.name}: {error}",
        where=str(path),
        remedy="train this run again, or name the folder of a whole PEFT adapter",
    )
