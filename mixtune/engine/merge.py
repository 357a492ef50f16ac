"""Adapters merged: the weighted sum of LoRA products as one adapter, and one adapter scaled.

A sum of products of low rank is a product of higher rank, and nothing has to be approximated:

    Σ wᵢ sᵢ Bᵢ Aᵢ  =  [w₁s₁B₁ … wₙsₙBₙ] · [A₁; …; Aₙ]        rank r₁ + … + rₙ, scaling 1

(wᵢ: the given weight; sᵢ: the adapter's own scaling, alpha / rank.) Of a single adapter A and B
stay as they are, to the bit, and alpha is multiplied.

Knows: PEFT's two files, the base model that a folder names. Does not know: networks, training data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
from mixtune.errors import ModelError
from mixtune.store.files import Place, fingerprint, read_object, whole_folder

MERGE_FILE = "merge.json"
"""Beside PEFT's two files: the base and the parts that a merged adapter was made from."""

_OUT = Place(ModelError, "give another --out, or free space")


@dataclass(frozen=True, slots=True)
class BaseReference:
    """The base model that an adapter is for: its name, and its digest where that is known."""

    name: str
    digest: str | None

    def __str__(self) -> str:
        return self.name + (f", digest {self.digest}" if self.digest else ", digest not known")


class _Pair(NamedTuple):
    """A layer's A [rank, in] and B [out, rank], float32."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True, slots=True)
class _Adapter:
    """An adapter that was read; `layers`: by PEFT's name of the layer."""

    folder: Path
    config: AdapterConfig
    base: BaseReference
    layers: Mapping[str, _Pair]

    @property
    def target_modules(self) -> list[str] | str:
        """The layers, as PEFT's configuration names them."""
        targets = self.config.target_modules
        return sorted(targets) if isinstance(targets, tuple) else targets or "all-linear"


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged adapter that was written: rank, layers, parts with their weights."""

    folder: str
    base: str
    rank: int
    layers: int
    parts: list[dict[str, object]]


def merge(folders: Sequence[Path], weights: Sequence[float], out: Path) -> Merged:
    """Write Σ weightᵢ · adapterᵢ as one adapter in PEFT's format, with `merge.json` beside it.

    Args:
        folders: plain LoRA adapters of one base model, on the same layers, of any rank and alpha.
        weights: one for each; 1 is the adapter as it was trained.
        out: a folder that does not exist yet, or is empty.

    Raises:
        ModelError: no adapter (a whole model), more than plain LoRA, another base model, other
            layers; the folder is not empty.
        ValueError: not one finite weight for each adapter.
    """
    if not folders or len(folders) != len(weights) or not all(map(math.isfinite, weights)):
        raise ValueError(f"{len(folders)} adapters, weights {list(weights)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(
            "there is something already", where=str(out), remedy="give another --out, or remove it"
        )
    adapters = [_read(folder) for folder in folders]
    for first, second in combinations(adapters, 2):
        _check_same_base(first, second)
        _check_same_layers(first, second)
    config, layers = _sum(adapters, weights)
    merged = Merged(
        folder=str(out),
        base=adapters[0].base.name,
        rank=config.rank,
        layers=len(layers),
        parts=[_describe(adapter, w) for adapter, w in zip(adapters, weights, strict=True)],
    )
    digests = [adapter.base.digest for adapter in adapters if adapter.base.digest]
    base = {"name": merged.base, "digest": digests[0] if digests else None}
    tensors: dict[str, Tensor] = {}
    for layer, (A, B) in layers.items():
        tensors |= {f"{layer}{LORA_A}": A.contiguous(), f"{layer}{LORA_B}": B.contiguous()}
    facts = json.dumps({"base": base, "parts": merged.parts}, indent=2, sort_keys=True) + "\n"
    with whole_folder(out, _OUT) as folder:
        write_adapter(folder, config, _target_modules(adapters), tensors, merged.base)
        (folder / MERGE_FILE).write_text(facts, encoding="utf-8")
    return merged


def base_of(folder: Path) -> BaseReference:
    """The base model that an adapter's folder names.

    A merged adapter and one that a study trained name its digest; any other has PEFT's
    `base_model_name_or_path` alone.

    Raises:
        ModelError: one of the files exists and cannot be read.
    """
    config = read_object(folder / CONFIG_FILE, ModelError)
    merged = read_object(folder / MERGE_FILE, ModelError).get("base")
    # A run has its adapter in a folder beside run.json; resolved, as "." has no parent otherwise.
    trained = read_object(folder.resolve().parent / "run.json", ModelError).get("model")
    facts = next((base for base in (merged, trained) if isinstance(base, dict)), {})
    digest = facts.get("digest")
    name = str(config.get("base_model_name_or_path") or facts.get("name") or "")
    return BaseReference(name, digest if isinstance(digest, str) else None)


def _read(folder: Path) -> _Adapter:
    """An adapter in PEFT's format, in float32.

    Raises:
        ModelError: a whole model, more than plain LoRA, or files that cannot be used.
    """
    if not (folder / CONFIG_FILE).is_file() and (folder / "config.json").is_file():
        raise ModelError(
            "this is a whole model, and only adapters can be merged",
            where=str(folder),
            wanted=f"a folder with {CONFIG_FILE}, such as one trained with train.method lora",
            remedy="full fine-tuning leaves no low-rank product: train the cell as an adapter",
        )
    config = AdapterConfig.read(folder)
    return _Adapter(folder, config, base_of(folder), _pairs(folder, config.rank))


def _pairs(folder: Path, rank: int) -> dict[str, _Pair]:
    """Layer → (A, B); refused where a tensor belongs to no such pair."""
    tensors = read_weights(folder)
    layers = sorted({key.removesuffix(LORA_A).removesuffix(LORA_B) for key in tensors})
    unpaired = tensors.keys() ^ {f"{layer}{end}" for layer in layers for end in (LORA_A, LORA_B)}
    if unpaired:
        raise ModelError(
            "the adapter's weights are not pairs of lora_A and lora_B",
            where=str(folder / WEIGHTS_FILE),
            found=f"{len(unpaired)} without the other or of another kind, such as {min(unpaired)}",
            wanted="lora_A.weight and lora_B.weight of every layer",
            remedy="use a whole adapter of plain LoRA",
        )
    pairs = {}
    for layer in layers:
        A, B = tensors[f"{layer}{LORA_A}"], tensors[f"{layer}{LORA_B}"]
        if A.dim() != 2 or B.dim() != 2 or (A.shape[0], B.shape[1]) != (rank, rank):
            raise ModelError(
                f"the adapter's weights are not of rank {rank}",
                where=f"{folder / WEIGHTS_FILE}, {layer}",
                found=f"A {tuple(A.shape)}, B {tuple(B.shape)}",
                wanted=f"[{rank}, in] and [out, {rank}], as {CONFIG_FILE} says",
                remedy="use the configuration and the weights of one adapter",
            )
        pairs[layer] = _Pair(A.float(), B.float())
    return pairs


def _check_same_base(first: _Adapter, second: _Adapter) -> None:
    """Compare digests where both are known, else names."""
    a, b = first.base, second.base
    by_digest = a.digest is not None and b.digest is not None
    if (a.digest != b.digest) if by_digest else (a.name != b.name):
        hint = "" if by_digest else f"; if it is the same one, name it alike in {CONFIG_FILE}"
        raise ModelError(
            "the adapters are for different base models",
            where=str(second.folder),
            found=str(b),
            wanted=f"{a}, as {first.folder}",
            remedy=f"merge adapters of one base model{hint}",
        )


def _check_same_layers(first: _Adapter, second: _Adapter) -> None:
    shapes = [
        {layer: (pair.A.shape[1], pair.B.shape[0]) for layer, pair in adapter.layers.items()}
        for adapter in (first, second)
    ]
    differing = sorted({layer for layer, _ in shapes[0].items() ^ shapes[1].items()})
    if differing:
        raise ModelError(
            "the adapters are on different layers",
            where=str(second.folder),
            found=f"{len(differing)} layers differ, such as {differing[0]}",
            wanted=f"the {len(first.layers)} layers of {first.folder}, of the same shapes",
            remedy="merge adapters that were trained with the same target_modules",
        )


def _sum(
    adapters: Sequence[_Adapter], weights: Sequence[float]
) -> tuple[AdapterConfig, Mapping[str, _Pair]]:
    """Configuration and layers of the weighted sum."""
    if len(adapters) == 1:
        config = adapters[0].config
        return replace(config, alpha=config.alpha * weights[0]), adapters[0].layers
    layers = {}
    for layer in adapters[0].layers:
        pairs = [adapter.layers[layer] for adapter in adapters]
        factors = [w * a.config.scaling for a, w in zip(adapters, weights, strict=True)]
        scaled = [pair.B * factor for pair, factor in zip(pairs, factors, strict=True)]
        layers[layer] = _Pair(torch.cat([pair.A for pair in pairs]), torch.cat(scaled, dim=1))
    rank = sum(adapter.config.rank for adapter in adapters)
    return AdapterConfig(rank, float(rank)), layers


def _target_modules(adapters: Sequence[_Adapter]) -> list[str] | str:
    """As the adapters name them, or whole names where they differ in it."""
    first = adapters[0]
    if all(adapter.target_modules == first.target_modules for adapter in adapters):
        return first.target_modules
    return [layer.removeprefix(KEY_PREFIX) for layer in first.layers]


def _describe(adapter: _Adapter, weight: float) -> dict[str, object]:
    """A part, as merge.json records it."""
    return {
        "adapter": str(adapter.folder),
        "weight": weight,
        "rank": adapter.config.rank,
        "scale": adapter.config.scaling,
        "sha256": fingerprint(adapter.folder / WEIGHTS_FILE)[1],
    }
