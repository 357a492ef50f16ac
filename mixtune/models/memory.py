"""How much memory a bank of adapters takes, told before anything is loaded.

    need = weights + K × (adapter, its gradient, two moments) + activations of a pass + logits

The first two are exact: shapes of the weights are read from the headers of their files. The
others follow from what a pass holds and were fitted to what was measured.

Knows: shapes of weights, what training keeps of them, free memory of this machine. Does not know:
torch, how a pass is computed.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mixtune.errors import ModelError
from mixtune.models.catalog import main_memory
from mixtune.models.files import read_object, weight_files
from mixtune.study.spec import TrainSpec

COPIES = 4
"""Numbers in float32 for each weight of an adapter: itself, its gradient, Adam's two moments."""

KEPT = 1.3
"""Numbers that the backward pass needs for each number that goes into or comes out of a linear
layer, and for each weight of attention. Measured on SmolLM2's shapes: 1.1 to 1.35."""

LOGIT_COPIES = 3
"""Logits, over which their gradient is written; what their sum is made of; their copy in the base's
number format, and the gradient's."""

_BYTES = {"float32": 4, "bfloat16": 2}
_TABLES = ("embed", "lm_head", "wte", "wpe", "output.weight")
"""Parts of the names of 2-D weights that get no adapter."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A base model as far as memory depends on it.

    `linears`: (layer, in, out) of every linear layer but the head; `width`: of hidden states.
    """

    parameters: int
    linears: tuple[tuple[int, int, int], ...]
    layers: int
    heads: int
    width: int
    vocabulary: int

    def adapted(self, train: TrainSpec) -> list[tuple[int, int]]:
        """(in, out) of the linear layers that get an adapter."""
        lowest = 0 if train.top_layers is None else self.layers - train.top_layers
        return [(into, out) for layer, into, out in self.linears if layer >= lowest]

    def trained(self, train: TrainSpec) -> int:
        """Numbers that one run trains: its adapter, or all weights."""
        if train.method == "full":
            return self.parameters
        return sum(train.rank * (into + out) for into, out in self.adapted(train))


@dataclass(frozen=True, slots=True)
class Load:
    """What one pass holds at most: tokens, logits' rows, and the tokens that a row looks back on.

    `step`: tokens of one optimiser step of one adapter, so that a small bank fills no pass.
    """

    tokens: int
    logits: int
    step: int
    span: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a worker process."""

    weights: int
    adapters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.activations + self.logits


def shape_of(folder: Path) -> Shape:
    """The shape of a base model from its config.json and the headers of its weights.

    Raises:
        ModelError: the folder holds no weights that could be loaded.
    """
    config = read_object(folder / "config.json")
    shapes = _shapes(folder)
    flat = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    linears = [
        (_layer(name), into, out)
        for name, (out, into) in sorted(flat.items())
        if not any(part in name for part in _TABLES)
    ]
    return Shape(
        parameters=sum(map(math.prod, shapes.values())),
        linears=tuple(linears),
        layers=max((layer for layer, _, _ in linears), default=0) + 1,
        heads=_count(config.get("num_attention_heads")),
        width=_count(config.get("hidden_size")),
        vocabulary=max((out for out, _ in flat.values()), default=0),
    )


def _layer(name: str) -> int:
    """Which layer a weight is of, by the first number in its name."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else 0


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every weight in a folder; only headers are read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as held:
                for name in held.keys():  # noqa: SIM118 - no mapping
                    found[name] = tuple(held.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"the weights cannot be read: {error}",
                where=str(path),
                remedy="fetch or save the model again",
            ) from error
    return found


def _count(value: object) -> int:
    """A number in config.json; 1 for one that the architecture calls otherwise."""
    return value if isinstance(value, int) else 1


def need(shape: Shape, train: TrainSpec, slots: int, load: Load) -> Need:
    """Bytes that a process with a bank of so many slots takes while it trains."""
    size = _BYTES.get(train.compute, 4)
    tokens = min(load.tokens, slots * load.step)
    return Need(
        weights=shape.parameters * size,
        adapters=slots * shape.trained(train) * COPIES * 4,
        activations=int(tokens * size * _kept_of_a_token(shape, train, load.span)),
        logits=min(load.logits, tokens) * shape.vocabulary * LOGIT_COPIES * 4,
    )


def _kept_of_a_token(shape: Shape, train: TrainSpec, span: int) -> float:
    """Numbers that the backward pass needs of one token."""
    through = sum(into + out for into, out in shape.adapted(train))
    layers = min(shape.layers, train.top_layers or shape.layers)
    kept = KEPT * (through + layers * shape.heads * span)
    # Where activations are computed twice, each layer keeps what goes into it, and one all.
    return layers * shape.width + kept / layers if train.gradient_checkpointing else kept


def largest(shape: Shape, train: TrainSpec, load: Load, room: int, most: int) -> int:
    """How many slots fit into so many bytes, from 0 to `most`."""
    sizes = range(most, 0, -1)
    return next((k for k in sizes if need(shape, train, k, load).total <= room), 0)


def free_memory() -> int:
    """Bytes of main memory that programs could take now, as Linux tells; else all there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return main_memory()
    told = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(told["MemAvailable"]) * 1024 if "MemAvailable" in told else main_memory()


def gigabytes(size: int) -> str:
    """Bytes as people say them: 3.1 GB, 25 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"
