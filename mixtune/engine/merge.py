"""Adapters merged: the weighted sum of LoRA products as one adapter, and one adapter made weaker.

A sum of products of low rank is a product of higher rank, and nothing has to be approximated:

    Σ wᵢ sᵢ Bᵢ Aᵢ  =  [w₁s₁B₁ … wₙsₙBₙ] · [A₁; …; Aₙ]        rank r₁ + … + rₙ, scale 1

(wᵢ: the weight asked for; sᵢ: the adapter's own scale, alpha / rank.) Of one adapter alone A and B
are kept to the bit and alpha is multiplied, so that its strength is an exact dial.

Knows: PEFT's two files, which base model a folder says that it is for. Does not know: networks,
what the adapters were trained on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, Form, peft_config, unreadable
from mixtune.errors import ModelError
from mixtune.store.files import Place, fingerprint, read_object, whole_folder

MERGE_FILE = "merge.json"
"""Beside PEFT's two files: the base and the parts that a merged adapter was made from."""

_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
_WRITING = Place(ModelError, "give another --out, or free space")


@dataclass(frozen=True, slots=True)
class Base:
    """The base model that an adapter is for: its name, and its digest where that is known."""

    name: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter that was read: layer → A [rank, in] and B [out, rank], float32.

    `targets`: the layers as its configuration names them.
    """

    folder: Path
    form: Form
    targets: list[str] | str
    base: Base
    layers: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: rank, layers, parts with their weights."""

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
        out: a folder that is not there yet, or is empty.

    Raises:
        ModelError: no adapter (a whole model), more than plain LoRA, another base model, other
            layers; the folder is taken.
        ValueError: not one finite weight for each adapter.
    """
    if not folders or len(folders) != len(weights) or not all(map(math.isfinite, weights)):
        raise ValueError(f"{len(folders)} adapters, weights {list(weights)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(
            "there is something already", where=str(out), remedy="give another --out, or remove it"
        )
    parts = [read(folder) for folder in folders]
    for first, other in combinations(parts, 2):
        _refuse_other(first, other)
    form, layers = _scaled(parts[0], weights[0]) if len(parts) == 1 else _sum(parts, weights)
    made = Merged(
        folder=str(out),
        base=parts[0].base.name,
        rank=form.rank,
        layers=len(layers),
        parts=[_said(part, weight) for part, weight in zip(parts, weights, strict=True)],
    )
    digests = [part.base.digest for part in parts if part.base.digest]
    base = {"name": made.base, "digest": digests[0] if digests else None}
    with whole_folder(out, _WRITING) as folder:
        save_file(_named(layers), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        _write(folder / CONFIG_FILE, peft_config(form, _targets(parts), made.base))
        _write(folder / MERGE_FILE, {"base": base, "parts": made.parts})
    return made


def read(folder: Path) -> Part:
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
    form = Form.read(folder)
    try:
        held = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise unreadable(folder / WEIGHTS_FILE, error) from error
    targets = read_object(folder / CONFIG_FILE, ModelError)["target_modules"]
    return Part(folder, form, targets, base_of(folder), _pairs(held, folder, form.rank))


def base_of(folder: Path) -> Base:
    """The base model that an adapter's folder says that it is for.

    A merged adapter and one that a study trained name its digest; any other has PEFT's
    `base_model_name_or_path` alone.

    Raises:
        ModelError: one of the files is there and cannot be read.
    """
    config = read_object(folder / CONFIG_FILE, ModelError)
    merged = read_object(folder / MERGE_FILE, ModelError).get("base")
    trained = read_object(folder.resolve().parent / "run.json", ModelError).get("model")
    known = next((facts for facts in (merged, trained) if isinstance(facts, dict)), {})
    digest = known.get("digest")
    name = str(config.get("base_model_name_or_path") or known.get("name") or "")
    return Base(name, digest if isinstance(digest, str) else None)


def _pairs(held: Mapping[str, Tensor], folder: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer → (A, B); refused where a tensor is no half of such a pair."""
    layers = sorted({key.removesuffix(_A).removesuffix(_B) for key in held})
    odd = held.keys() ^ {f"{layer}{half}" for layer in layers for half in (_A, _B)}
    if odd:
        raise ModelError(
            "the adapter's weights are not pairs of lora_A and lora_B",
            where=str(folder / WEIGHTS_FILE),
            found=f"{len(odd)} without the other or of another kind, such as {min(odd)}",
            wanted="lora_A.weight and lora_B.weight of every layer",
            remedy="use a whole adapter of plain LoRA",
        )
    pairs = {layer: (held[f"{layer}{_A}"], held[f"{layer}{_B}"]) for layer in layers}
    for layer, (down, up) in pairs.items():
        if down.dim() != 2 or up.dim() != 2 or (down.shape[0], up.shape[1]) != (rank, rank):
            raise ModelError(
                f"the adapter's weights are not of rank {rank}",
                where=f"{folder / WEIGHTS_FILE}, {layer}",
                found=f"A {tuple(down.shape)}, B {tuple(up.shape)}",
                wanted=f"[{rank}, in] and [out, {rank}], as {CONFIG_FILE} says",
                remedy="use the configuration and the weights of one adapter",
            )
    return {layer: (down.float(), up.float()) for layer, (down, up) in pairs.items()}


def _refuse_other(first: Part, other: Part) -> None:
    """Two adapters add up only on one base model and the same layers."""
    one, two = first.base, other.base
    by_digest = one.digest is not None and two.digest is not None
    if (one.digest != two.digest) if by_digest else (one.name != two.name):
        raise ModelError(
            "the adapters are for different base models",
            where=str(other.folder),
            found=_named_base(two),
            wanted=f"{_named_base(one)}, as {first.folder}",
            remedy="merge adapters of one base model"
            + ("" if by_digest else f"; if it is the same one, name it alike in {CONFIG_FILE}"),
        )
    shapes = [
        {layer: (down.shape[1], up.shape[0]) for layer, (down, up) in part.layers.items()}
        for part in (first, other)
    ]
    differing = sorted({layer for layer, _ in shapes[0].items() ^ shapes[1].items()})
    if differing:
        raise ModelError(
            "the adapters are on different layers",
            where=str(other.folder),
            found=f"{len(differing)} layers differ, such as {differing[0]}",
            wanted=f"the {len(first.layers)} layers of {first.folder}, of the same shapes",
            remedy="merge adapters that were trained with the same target_modules",
        )


def _named_base(base: Base) -> str:
    return base.name + (f", digest {base.digest}" if base.digest else ", digest not known")


_Layers = dict[str, tuple[Tensor, Tensor]]


def _sum(parts: Sequence[Part], weights: Sequence[float]) -> tuple[Form, _Layers]:
    """Form and layers of the sum: A's stacked, weights and scales folded into B's."""
    layers = {}
    for layer in parts[0].layers:
        downs = [part.layers[layer][0] for part in parts]
        ups = [
            part.layers[layer][1] * (weight * part.form.scale)
            for part, weight in zip(parts, weights, strict=True)
        ]
        layers[layer] = torch.cat(downs), torch.cat(ups, dim=1)
    rank = sum(part.form.rank for part in parts)
    return Form(rank, float(rank)), layers


def _scaled(part: Part, weight: float) -> tuple[Form, _Layers]:
    """One adapter with its scale multiplied: A and B stay as they are."""
    return replace(part.form, alpha=part.form.alpha * weight), dict(part.layers)


def _targets(parts: Sequence[Part]) -> list[str] | str:
    """PEFT's `target_modules`: as the parts name them, or whole names where they differ in it."""
    named = [sorted(p.targets) if isinstance(p.targets, list) else p.targets for p in parts]
    if all(one == named[0] for one in named):
        return named[0]
    return [layer.removeprefix(_PREFIX) for layer in parts[0].layers]


def _named(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    found = {}
    for layer, (down, up) in layers.items():
        found[f"{layer}{_A}"], found[f"{layer}{_B}"] = down.contiguous(), up.contiguous()
    return found


def _said(part: Part, weight: float) -> dict[str, object]:
    """A part as merge.json keeps it."""
    return {
        "adapter": str(part.folder),
        "weight": weight,
        "rank": part.form.rank,
        "scale": part.form.scale,
        "sha256": fingerprint(part.folder / WEIGHTS_FILE)[1],
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
