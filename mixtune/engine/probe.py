"""How a system reads answers that are given to it, beside its base: likelihood and divergence.

For every token of an answer, its end of turn among them, both networks give a distribution over
the whole vocabulary, from the same tokens in the same passes. Of one answer of T tokens, in nats:

    logprob, base_logprob   Σ log p(token)                        of the system, of the base
    kl                      Σ Σ_v p(v) · log(p(v) / p_base(v))    first over tokens, then over v

The sum over the vocabulary is whole, nothing is sampled. Logits exist for a block of positions at
a time, of both networks.

Knows: token rows, hidden states, logits. Does not know: LoRA, tasks, files.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixtune.engine.batching import PASS_TOKENS, Pass, passes, text_of
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE, plant
from mixtune.errors import RunFailed
from mixtune.tokens import Row

BLOCK = 2**24
"""Logits of one network that exist at once: 64 MiB in float32, and a few copies of them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer as two networks see it; sums over its `tokens`, in nats."""

    tokens: int
    logprob: float
    base_logprob: float
    kl: float


@dataclass(frozen=True, slots=True)
class Reader:
    """A network, and the adapter that is on; BASE for none."""

    decoder: Decoder
    slot: int = BASE


@torch.inference_mode()
def read(
    system: Reader, base: Reader, rows: Sequence[Row], budget: int = PASS_TOKENS
) -> list[Reading]:
    """One reading per row, in order; a function of the rows, not of their order.

    Args:
        system: what is probed.
        base: what it is held against; the same decoder or another of the same vocabulary.
        rows: prompts with the answers to read.
        budget: tokens of one pass.

    Raises:
        ModelError: a row is longer than the model's context.
        RunFailed: a number that is not finite, as of an adapter that diverged.
        ValueError: a row without prompt or answer.
    """
    texts = [text_of(row) for row in rows]
    found: dict[int, Reading] = {}
    for work in passes(texts, budget, system.decoder.span):
        found |= zip(
            (seat.row for seat in work.seats), _read(system, base, work, rows), strict=True
        )
    for row, reading in ((rows[number], reading) for number, reading in found.items()):
        if not all(map(math.isfinite, (reading.logprob, reading.base_logprob, reading.kl))):
            raise RunFailed(f"{row.ingredient}/{row.example_id} reads as {reading}")
    return [found[number] for number in range(len(rows))]


def _read(system: Reader, base: Reader, work: Pass, rows: Sequence[Row]) -> Iterator[Reading]:
    """Readings of a pass, seat by seat."""
    counts = [len(rows[seat.row].answer) for seat in work.seats]
    targets = [token for seat in work.seats for token in rows[seat.row].answer]
    states = [_states(reader, work, rows) for reader in (system, base)]
    each = _compare((system.decoder, base.decoder), states, targets)
    for count, part in zip(counts, torch.split(each, counts), strict=True):
        logprob, base_logprob, kl = part.sum(0).tolist()
        yield Reading(count, logprob, base_logprob, kl)


def _states(reader: Reader, work: Pass, rows: Sequence[Row]) -> Tensor:
    """[answer tokens of all seats, width]: the states that predict them."""
    device = reader.decoder.device
    branches = [replace(branch, adapter=reader.slot) for branch in work.branches]
    forest = plant(branches, device, stacked=device.type != "cpu")
    spots: list[int] = []
    for seat in work.seats:
        row = rows[seat.row]
        first = len(row.prompt) - 1 - seat.skip
        spots += forest.spots(seat.branch, range(first, first + len(row.answer)))
    return reader.decoder.run(forest)[torch.tensor(spots, device=device)]


def _compare(
    decoders: tuple[Decoder, Decoder], states: Sequence[Tensor], targets: Sequence[int]
) -> Tensor:
    """[tokens, 3] float64: log-probability by the system, by the base, and the divergence."""
    wanted = torch.tensor(targets, device=states[0].device).unsqueeze(1)
    found = torch.empty(len(targets), 3, dtype=torch.float64)
    rows = max(1, BLOCK // next(decoders[0].head.parameters()).shape[0])
    for start in range(0, len(targets), rows):
        block = slice(start, start + rows)
        own, base = (
            decoder.logits(state[block]).log_softmax(dim=-1)
            for decoder, state in zip(decoders, states, strict=True)
        )
        found[block, 0] = own.gather(1, wanted[block]).squeeze(1).double().cpu()
        found[block, 1] = base.gather(1, wanted[block]).squeeze(1).double().cpu()
        # It is never negative; rounding may make it so where the two are all but equal.
        apart = (own - base).mul_(own.exp_()).sum(dim=-1).clamp_(min=0)
        found[block, 2] = apart.double().cpu()
    return found
