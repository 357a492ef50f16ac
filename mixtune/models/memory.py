"""Memory that training takes, estimated before anything is loaded, and what fits this machine.

    bytes = weights + K × (adapter, its gradient, two moments) + activations of a pass + logits

The first two terms are exact: shapes are read from the headers of the weight files. The others
follow from the tokens of a pass and were fitted to measurements.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mixtune.errors import ModelError
from mixtune.models.catalog import Entry, cached, catalogue, offline, prepared_folder
from mixtune.models.files import MANIFEST, read_object, tensor_shapes, weight_files
from mixtune.study.spec import TrainSpec

BYTES_PER_PARAMETER = 16
"""Memory of a training process in float32 per parameter of its base, before shapes are known:
weights, optimizer state and activations."""

COPIES = 4
"""float32 values per adapter weight: weight, gradient, Adam's two moments."""

SAVED_ACTIVATIONS = 1.3
"""Values saved for the backward pass per input or output value of a linear layer and per attention
weight. Measured on SmolLM2's shapes: 1.1 to 1.35."""

LOGIT_COPIES = 3
"""float32 copies of the logits: themselves (overwritten by their gradient), the terms of their
log-sum-exp, and half a copy each in the base's number format of logits and gradient."""

_BYTES = {"float32": 4, "bfloat16": 2}
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "output.weight")
"""Substrings of the names of 2-D weights that get no adapter."""


class Linear(NamedTuple):
    """A linear layer other than the head: its decoder layer, input and output width."""

    layer: int
    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a base model that memory depends on; `width`: of hidden states."""

    parameters: int
    linears: tuple[Linear, ...]
    layers: int
    heads: int
    width: int
    vocabulary: int

    def adapted(self, train: TrainSpec) -> list[Linear]:
        """The linear layers that get an adapter."""
        lowest = 0 if train.top_layers is None else self.layers - train.top_layers
        return [linear for linear in self.linears if linear.layer >= lowest]

    def trainable(self, train: TrainSpec) -> int:
        """Trainable parameters of one run: its adapter, or all weights."""
        if train.method == "full":
            return self.parameters
        return sum(train.rank * (linear.d_in + linear.d_out) for linear in self.adapted(train))


@dataclass(frozen=True, slots=True)
class Load:
    """The largest pass: its tokens, rows of logits, and tokens that one row attends to (`span`).

    `step`: tokens of one optimiser step of one adapter; a small bank does not fill a pass.
    """

    tokens: int
    logits: int
    step: int
    span: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a worker process, by use."""

    weights: int
    adapters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.adapters + self.activations + self.logits


def shape_of(folder: Path) -> Shape:
    """The shape of a base model from its config.json and the headers of its weights."""
    config = read_object(folder / "config.json")
    files = [tensor_shapes(path) for path in weight_files(folder)]
    shapes = dict(item for shapes in files for item in shapes.items())
    flat = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    linears = [
        Linear(_layer(name), d_in, d_out)
        for name, (d_out, d_in) in sorted(flat.items())
        if not any(part in name for part in _NOT_ADAPTED)
    ]
    return Shape(
        parameters=sum(map(math.prod, shapes.values())),
        linears=tuple(linears),
        layers=max((linear.layer for linear in linears), default=0) + 1,
        heads=_count(config.get("num_attention_heads")),
        width=_count(config.get("hidden_size")),
        vocabulary=max((out for out, _ in flat.values()), default=0),
    )


def _layer(name: str) -> int:
    """The decoder layer of a weight: the first number in its name."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else 0


def _count(value: object) -> int:
    """A count in config.json; 1 where the architecture has no such key."""
    return value if isinstance(value, int) else 1


def need(shape: Shape, train: TrainSpec, slots: int, load: Load) -> Need:
    """Bytes that a process takes while it trains a bank of `slots` adapters."""
    size = _BYTES.get(train.compute, 4)
    tokens = min(load.tokens, slots * load.step)
    return Need(
        weights=shape.parameters * size,
        adapters=slots * shape.trainable(train) * COPIES * 4,
        activations=int(tokens * size * _saved_per_token(shape, train, load.span)),
        logits=min(load.logits, tokens) * shape.vocabulary * LOGIT_COPIES * 4,
    )


def _saved_per_token(shape: Shape, train: TrainSpec, span: int) -> float:
    """Values saved for the backward pass per token."""
    linears = sum(linear.d_in + linear.d_out for linear in shape.adapted(train))
    layers = min(shape.layers, train.top_layers or shape.layers)
    saved = SAVED_ACTIVATIONS * (linears + layers * shape.heads * span)
    # With checkpointing every layer saves its input, and one layer at a time all of it.
    return layers * shape.width + saved / layers if train.gradient_checkpointing else saved


def largest(shape: Shape, train: TrainSpec, load: Load, room: int, most: int) -> int:
    """The most slots, up to `most`, whose bank fits into `room` bytes; 0 where none does."""
    sizes = range(most, 0, -1)
    return next((k for k in sizes if need(shape, train, k, load).total <= room), 0)


def free_memory() -> int:
    """Available main memory in bytes (MemAvailable on Linux, elsewhere all of it)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return main_memory()
    values = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(values["MemAvailable"]) * 1024 if "MemAvailable" in values else main_memory()


def main_memory() -> int:
    """Main memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gigabytes(size: int) -> str:
    """A size for people: 3.1 GB, 25 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"


# ---- the catalogue on this machine --------------------------------------------------------------

MIN_BYTES_PER_PARAMETER = 5
"""The weights in float32 and a quarter more."""

COMFORTABLE_SHARE = 0.8
"""Share of main memory up to which training fits comfortably; the system, the page cache and other
programs need the rest."""

State = Literal["prepared", "package", "hub cache", "download", "licence", "offline", "damaged"]
Fit = Literal["yes", "tight", "no"]

LOCAL: tuple[State, ...] = ("prepared", "package", "hub cache")
"""States of models that can be used without a network."""

_MEANING: dict[State, str] = {
    "prepared": "ready in mixtune's cache",
    "package": "installed package, converted at first use",
    "hub cache": "ready in the hub's cache",
    "download": "would be downloaded from the hub",
    "licence": "from the hub, once its licence is accepted there and HF_TOKEN set",
    "offline": "not here, and HF_HUB_OFFLINE is set",
    "damaged": "damaged or unusable: delete it",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """One catalogue model on this machine; sizes in bytes.

    `disk`: size of the files on this machine, or 0. `memory`: of one training process (LoRA,
    float32). `fits`: "tight" where training takes nearly all memory.
    """

    name: str
    hub: str
    parameters: int
    licence: str
    gated: bool
    state: State
    disk: int
    memory: int
    fits: Fit
    install: str
    note: str

    @property
    def here(self) -> bool:
        """True if the model can be used without a network."""
        return self.state in LOCAL

    @property
    def meaning(self) -> str:
        """The state in words, and how to install a model that is missing."""
        text = _MEANING[self.state]
        return text if self.here or not self.install else f"{text}; or: {self.install}"


def overview(total_memory: int | None = None) -> list[Overview]:
    """Every catalogue model in the catalogue's order; fetches, converts and imports nothing."""
    total = main_memory() if total_memory is None else total_memory
    return [_overview_of(name, entry, total) for name, entry in catalogue().items()]


def _overview_of(name: str, entry: Entry, total: int) -> Overview:
    state, disk = _state(name, entry)
    memory = entry.parameters * BYTES_PER_PARAMETER
    fits: Fit = "yes" if memory <= COMFORTABLE_SHARE * total else "tight"
    return Overview(
        name=name,
        hub=entry.hub,
        parameters=entry.parameters,
        licence=entry.licence,
        gated=entry.gated,
        state=state,
        disk=disk,
        memory=memory,
        fits=fits if entry.parameters * MIN_BYTES_PER_PARAMETER <= total else "no",
        install=entry.package.install if entry.package else "",
        note=entry.note,
    )


def _state(name: str, entry: Entry) -> tuple[State, int]:
    """The place that `locate` would take a model from, and the size of its files here."""
    folder = prepared_folder(name)
    if (folder / MANIFEST).is_file():
        return "prepared", _size(folder)
    files = entry.package.installed() if entry.package else []
    if files:
        return "package", sum(path.stat().st_size for path in files)
    try:
        snapshot = cached(entry.hub)
    except ModelError:
        return "damaged", 0
    if snapshot is not None:
        return "hub cache", _size(snapshot.folder)
    if offline():
        return "offline", 0
    return ("licence" if entry.gated else "download"), 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
