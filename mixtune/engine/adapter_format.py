"""LoRA adapters in PEFT's two files; refuses whatever is more than plain LoRA.

Knows: the keys of adapter_config.json, names of tensors. Does not know: networks, arithmetic.
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtune.errors import ModelError, shorten
from mixtune.store.files import read_object

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

KEY_PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""A tensor's key is the prefix, the name of its layer and one of the two ends."""

_PLAIN_VALUES = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Values under which PEFT computes what `LoraLinear` computes. Other initialisations (PiSSA, OLoRA,
CorDA, LoftQ and more) change the base model's weights, also when the adapter is loaded."""

_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("eva_config", "layers_pattern", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("runtime_config", "task_type"),
}
"""Keys that do not change what is computed, or only together with a key that is refused."""

_MATCH_SECONDS = 2.0
MAX_PATTERN = 4000
"""Characters of a regular expression over names of modules."""

_USED = {"r", "lora_alpha", "target_modules", "use_rslora"}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Rank, alpha and layers of a plain LoRA adapter: what PEFT's LoraConfig says of it.

    `target_modules`: None for every linear layer but the head; names or last parts of names; or one
    regular expression over whole names. `use_rslora`: alpha / √rank instead of alpha / rank (arXiv
    2312.03732).
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str | None = None
    use_rslora: bool = False

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """The configuration of an adapter in PEFT's format, whoever wrote it.

        Raises:
            ModelError: a file that cannot be read, more than plain LoRA, a value that is missing,
                or a rank that is not that of the weights.
        """
        path = folder / CONFIG_FILE
        config = read_object(path, ModelError)
        if not config:
            raise unreadable(path, "it is missing or empty")
        _refuse_more_than_lora(config, path)
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        targets: Any = config.get("target_modules")
        if type(rank) is not int or rank < 1:
            raise _bad_value(path, "r", rank, "a whole number from 1")
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise _bad_value(path, "lora_alpha", alpha, "a number")
        if not _is_target_modules(targets):
            expected = "names of modules, or one regular expression"
            raise _bad_value(path, "target_modules", targets, expected)
        _check_rank(folder / WEIGHTS_FILE, rank)
        if isinstance(targets, list):
            targets = tuple(targets)
        elif targets.lower() == "all-linear":
            targets = None
        return cls(rank, float(alpha), targets, bool(config.get("use_rslora")))

    @property
    def scaling(self) -> float:
        """The factor of the product of B and A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def wraps(self, name: str) -> bool:
        """True where a linear layer of that name gets an adapter."""
        if self.target_modules is None:
            return True
        if isinstance(self.target_modules, str):
            return _matches(self.target_modules, name)
        return any(name == target or name.endswith(f".{target}") for target in self.target_modules)


def _matches(pattern: str, name: str) -> bool:
    """`re.fullmatch` with a limit of time: a pattern of a stranger may backtrack without end."""
    try:
        return regex.fullmatch(pattern, name, timeout=_MATCH_SECONDS) is not None
    except TimeoutError as error:
        raise ModelError(
            f"the regular expression of target_modules takes more than {_MATCH_SECONDS} s",
            found=f"{shorten(pattern)} on {name}",
            wanted="names of modules, or a simple expression such as .*_proj",
            remedy="list the modules by name in adapter_config.json",
        ) from error


def write_adapter(
    folder: Path,
    config: AdapterConfig,
    target_modules: list[str] | str,
    tensors: Mapping[str, Tensor],
    base_name: str,
) -> None:
    """Write the two files that `peft.PeftModel.from_pretrained` reads.

    Args:
        folder: created if need be.
        config: rank, alpha and how it is scaled.
        target_modules: the layers, as PEFT is to name them.
        tensors: by PEFT's keys.
        base_name: the base model that the adapter names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    alpha = config.alpha
    written = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """An adapter's tensors by PEFT's keys.

    Raises:
        ModelError: the file is missing or broken.
    """
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _refuse_more_than_lora(config: Mapping[str, Any], path: Path) -> None:
    """Refuse all that would compute something else than `LoraLinear`, unknown keys included."""
    beyond = [key for key, plain in _PLAIN_VALUES.items() if config.get(key) not in plain]
    for key in sorted(config.keys() - _PLAIN_VALUES.keys() - _HARMLESS - _USED):
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


def _is_target_modules(value: object) -> bool:
    """True for a list of names, and for a regular expression that compiles."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(name, str) for name in value)
    try:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
            return False
        return bool(re.compile(value)) and bool(regex.compile(value))
    except (re.error, regex.error, OverflowError, RecursionError):
        return False


def _check_rank(path: Path, rank: int) -> None:
    """Refuse weights of another rank, before memory is taken for what the configuration says."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if ".lora_A." in key]  # noqa: SIM118 - no mapping
            ranks = sorted({tuple(file.get_slice(key).get_shape()[:1]) for key in keys})
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    if ranks != [(rank,)]:
        raise ModelError(
            "the adapter differs in r from its weights",
            where=str(path),
            found=", ".join(str(size) for shape in ranks for size in shape),
            wanted=f"{shorten(rank)}, as {CONFIG_FILE} says",
            remedy="use the configuration and the weights of one adapter",
        )


def _bad_value(path: Path, key: str, value: object, expected: str) -> ModelError:
    return ModelError(
        f"the adapter does not say what it is: {key}",
        where=str(path),
        found=value if value is not None else "null, or no such key",
        wanted=expected,
        remedy="save the adapter again with PEFT's save_pretrained",
    )


def unreadable(path: Path, error: object) -> ModelError:
    """The error for a file of an adapter that cannot be read."""
    return ModelError(
        f"the adapter has no readable {path.name}: {error}",
        where=str(path),
        remedy="train this run again, or name the folder of a whole PEFT adapter",
    )
