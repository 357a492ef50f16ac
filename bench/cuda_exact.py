"""Case `exact`: the engine beside the plain path, one example at a time, in float32.

Loss and gradients of banks of several adapters with data of their own, log-probabilities of
choices, greedy text: on a tiny random Llama, on the device that is asked for. On a CPU everything
is done twice: as a CPU does it, and by the paths that a GPU takes. On a GPU the forests are planted
as on a CPU once more, so that low-rank products of slices of different lengths are run there too.

Knows: tolerances, both sides. Does not know: time, memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cuda_device import strict_float32
from bench.cuda_made import Lengths, rows_of, write_tiny
from bench.cuda_plain import (
    PlainLora,
    plain_greedy,
    plain_log_probability,
    plain_loss,
    plain_network,
    wrap,
)
from mixtune.engine import attention, batching
from mixtune.engine.bank import batched_slots
from mixtune.engine.forest import pack_forest
from mixtune.engine.loss import token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.train import accumulate
from mixtune.records import Answer, Message, Query
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

BANKS = (1, 3, 8)
LIMITS = {"loss": 1e-5, "gradient": 1e-4, "log_probability": 1e-4, "texts_that_differ": 0}
"""Largest distances: gradients relative to their norm, the others as they are."""

SPLIT = 150
"""Tokens of a pass where a step is to be cut into several."""

_RANK, _ALPHA = 4, 6.0
_RAGGED = Lengths(header=40, text=12, spread=0.5, longest=40, answer=3)
_ANSWERING = 3
_QUERIES = 8
_NEW_TOKENS = 10
_CHOICES = ("up", "up a lot", "upper", "down", "d")


@dataclass(slots=True)
class _Sides:
    """The bank, and one plain network that takes any of its adapters."""

    model: LocalModel
    network: Any
    layers: dict[str, PlainLora]

    def put_on(self, slot: int) -> None:
        """Copy an adapter of the bank to the plain network, its gradients cleared."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                mine = self.model.bank.layers[name]
                layer.A.copy_(mine.A[slot])
                layer.B.copy_(mine.B[slot])
                layer.A.grad = layer.B.grad = None


def exact(device: str, folder: Path) -> dict[str, Any]:
    """Largest distance between the engine and the plain path, for every way of computing.

    Args:
        device: where both compute.
        folder: an empty folder for the tiny base model.
    """
    write_tiny(folder)
    with strict_float32():
        found = [_bank(device, folder, bank, way) for bank in BANKS for way in _ways(device)]
        found += _answers(device, folder)
    return {
        "passed": all(each["passed"] for each in found),
        "limits": LIMITS,
        "base": "random Llama, 2 layers, width 64, float32, TF32 off",
        "checks": found,
    }


def _ways(device: str) -> tuple[str, ...]:
    return ("cpu", "cpu, by a GPU's paths") if device == "cpu" else (device, f"{device}, unstacked")


def _bank(device: str, folder: Path, bank: int, way: str) -> dict[str, Any]:
    """Losses and gradients of a bank: rows of any lengths, equal ones, a step in many passes."""
    sides = _load(device, folder, bank)
    worst = {"loss": 0.0, "gradient": 0.0}
    with _paths(way):
        for lengths, budget in ((_RAGGED, None), (_RAGGED.equal, None), (_RAGGED, SPLIT)):
            # Ragged banks differ in their numbers of rows too.
            extra = 3 if lengths.spread else 1
            batches = [
                rows_of(slot, 2 + slot % extra, lengths, _vocabulary(sides)) for slot in range(bank)
            ]
            _compare(sides, batches, budget, worst)
        batched = _is_batched(sides, bank)
    passed = batched is not False and all(worst[key] <= LIMITS[key] for key in worst)
    return {
        "what": f"loss and gradients, K = {bank}",
        "way": way,
        **worst,
        "batched_products": batched,
        "passed": passed,
    }


def _load(device: str, folder: Path, bank: int) -> _Sides:
    spec = TrainSpec(rank=_RANK, alpha=_ALPHA)
    asked = EvalSpec(batch_size=4, max_prompt_length=400)
    tokens = Tokens.load(folder)
    model = LocalModel.load(folder, tokens, spec, asked, slots=bank, device=device)
    for slot in range(bank):
        model.bank.reset(slot, slot)
        drawn = torch.Generator().manual_seed(slot)
        with torch.no_grad():
            for layer in model.bank.layers.values():
                # B is zero after a reset, which would leave half of the gradients untested.
                layer.B[slot].copy_(0.1 * torch.randn(layer.B[slot].shape, generator=drawn))
    network = plain_network(folder, device, torch.float32, "eager")
    layers = wrap(network, _RANK, _ALPHA / _RANK, torch.float32)
    return _Sides(model, network, layers)


def _vocabulary(sides: _Sides) -> int:
    return int(sides.network.config.vocab_size)


@contextmanager
def _paths(way: str) -> Iterator[None]:
    """What the engine does on the other kind of device.

    On a GPU: one block for all rows, adapters filled up to one length, torch's fused attention. On
    a CPU: blocks of similar rows, slices as they are.
    """
    if "," not in way:
        yield
        return
    most, stacked = attention.MAX_EAGER_KEYS, "GPU" in way
    batching.pack_forest = lambda branches, device, prefix=None, **_: pack_forest(
        branches, device, stacked=stacked, prefix=prefix
    )
    attention.MAX_EAGER_KEYS = 0
    try:
        yield
    finally:
        batching.pack_forest = pack_forest
        attention.MAX_EAGER_KEYS = most


def _compare(
    sides: _Sides, batches: Sequence[Sequence[Row]], budget: int | None, worst: dict[str, float]
) -> None:
    """One step of a bank on both sides; raises `worst` to the distances that are found."""
    losses = _engine(sides.model, batches, budget)
    for slot, batch in enumerate(batches):
        sides.put_on(slot)
        wanted = plain_loss(sides.network, batch)
        worst["loss"] = max(worst["loss"], abs(losses[slot] - wanted))
        worst["gradient"] = max(worst["gradient"], _distance(sides, slot))


def _engine(model: LocalModel, batches: Sequence[Sequence[Row]], budget: int | None) -> list[float]:
    """Each adapter's loss, by common passes; gradients are in the bank."""
    model.bank.gradients.zero_()
    rows = [row for batch in batches for row in batch]
    slots = [slot for slot, batch in enumerate(batches) for _ in batch]
    weights = [w for batch in batches for w in token_weights(batch, "example-mean")]
    before, losses = model.pass_tokens, [0.0] * len(batches)
    model.pass_tokens = budget or before
    for slot, part in accumulate(model, rows, slots, weights):
        losses[slot] += part
    model.pass_tokens = before
    return losses


def _distance(sides: _Sides, slot: int) -> float:
    """Largest relative distance of a matrix's gradient.

    Gradients that are zero in exact arithmetic differ by rounding, so that a thousandth of the
    whole gradient's norm is added to what is divided by.
    """
    pairs = list(_gradients(sides, slot))
    floor = 1e-3 * float(torch.stack([theirs.norm() for _, theirs in pairs]).norm())
    return max(
        float((mine - theirs).norm()) / (float(theirs.norm()) + floor) for mine, theirs in pairs
    )


def _gradients(sides: _Sides, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The engine's and the plain path's gradient of every A and B."""
    for name, layer in sides.layers.items():
        mine = sides.model.bank.layers[name]
        assert layer.A.grad is not None
        assert layer.B.grad is not None
        yield mine.grad_A[slot], layer.A.grad
        yield mine.grad_B[slot], layer.B.grad


def _is_batched(sides: _Sides, bank: int) -> bool | None:
    """Whether equally long rows of several adapters become batched products; None for one."""
    if bank == 1:
        return None
    lengths = _RAGGED.equal
    _engine(sides.model, [rows_of(s, 4, lengths, _vocabulary(sides)) for s in range(bank)], None)
    return batched_slots(sides.model.decoder.routing.slices) is not None


def _answers(device: str, folder: Path) -> list[dict[str, Any]]:
    """Log-probabilities of choices and greedy text of three adapters, in every way."""
    sides = _load(device, folder, _ANSWERING)
    queries = [_query(number, _CHOICES) for number in range(_QUERIES)]
    wanted: list[tuple[list[list[float]], list[str]]] = []
    for slot in range(_ANSWERING):
        sides.put_on(slot)
        sums = [_sums(sides, query) for query in queries]
        wanted.append((sums, [_text(sides, query) for query in queries]))
    return [_answered(sides.model, queries, wanted, way) for way in _ways(device)]


def _answered(
    model: LocalModel,
    queries: Sequence[Query],
    wanted: Sequence[tuple[list[list[float]], list[str]]],
    way: str,
) -> dict[str, Any]:
    """One way: log-probabilities of each adapter; texts with choices to follow and without."""
    open_ones = [replace(query, choices=()) for query in queries]
    worst, differing = 0.0, 0
    with _paths(way):
        for slot, (sums, texts) in enumerate(wanted):
            model.use_adapter(slot)
            worst = max(worst, _apart(model.rank(queries), sums))
            for asked in (open_ones, queries):
                said = model.generate(asked, _NEW_TOKENS)
                differing += sum(a.output != text for a, text in zip(said, texts, strict=True))
    return {
        "what": f"ranking and greedy text, K = {_ANSWERING}",
        "way": way,
        "log_probability": worst,
        "texts": 2 * _ANSWERING * len(queries),
        "texts_that_differ": differing,
        "passed": worst <= LIMITS["log_probability"] and differing == 0,
    }


def _query(number: int, choices: tuple[str, ...]) -> Query:
    text = f"Which way does it go? Say up or down.{' So' * (number % 4)} it went {number * number}."
    return Query(f"q{number:02}", "", (Message("user", text),), choices)


def _sums(sides: _Sides, query: Query) -> list[float]:
    tokens = sides.model.tokens
    prompt = tokens.prompt_ids(query.messages)
    return [
        plain_log_probability(sides.network, prompt, tokens.answer_ids(text))
        for text in query.choices
    ]


def _apart(answers: Sequence[Answer], wanted: Sequence[Sequence[float]]) -> float:
    """Largest distance of any log-probability."""
    return max(
        abs(mine - theirs)
        for answer, sums in zip(answers, wanted, strict=True)
        for mine, theirs in zip(answer.logprobs or (), sums, strict=True)
    )


def _text(sides: _Sides, query: Query) -> str:
    """Greedy text by the plain path."""
    tokens = sides.model.tokens
    prompt = tokens.prompt_ids(query.messages)
    return tokens.decode(plain_greedy(sides.network, prompt, tokens.eos_ids, _NEW_TOKENS))
