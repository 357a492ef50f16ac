"""Log-likelihood of given answers under a system and its base, and how far the two diverge.

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

from mixtune.engine.batching import (
    PASS_TOKENS,
    Pass,
    answer_indices,
    make_passes,
    training_sequence,
)
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE
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

    def answer_states(self, work: Pass, rows: Sequence[Row]) -> Tensor:
        """[answer tokens of all rows of a pass, width]: the states that predict them."""
        branches = tuple(replace(branch, slot=self.slot) for branch in work.branches)
        forest = replace(work, branches=branches).pack(self.decoder.device)
        indices = [i for row in work.rows for i in answer_indices(forest, row, rows[row.index])]
        return self.decoder.forward(forest)[torch.tensor(indices, device=self.decoder.device)]


@torch.inference_mode()
def read_answers(
    system: Reader, base: Reader, rows: Sequence[Row], max_tokens: int = PASS_TOKENS
) -> list[Reading]:
    """One reading per row, in order; a function of the rows, not of their order.

    Args:
        system: the system to be probed.
        base: its base; the same decoder or another of the same vocabulary.
        rows: prompts with the answers to read.
        max_tokens: tokens of one pass.

    Raises:
        ModelError: a row is longer than the model's context.
        RunFailed: a number that is not finite, as of an adapter that diverged.
        ValueError: a row without prompt or answer.
    """
    sequences = [training_sequence(row) for row in rows]
    readings: dict[int, Reading] = {}
    for work in make_passes(sequences, max_tokens, system.decoder.packing_limit):
        indices = (row.index for row in work.rows)
        readings |= zip(indices, _read_pass(system, base, work, rows), strict=True)
    for index, reading in readings.items():
        if not all(map(math.isfinite, (reading.logprob, reading.base_logprob, reading.kl))):
            row = rows[index]
            raise RunFailed(f"{row.ingredient}/{row.example_id} reads as {reading}")
    return [readings[index] for index in range(len(rows))]


def _read_pass(system: Reader, base: Reader, work: Pass, rows: Sequence[Row]) -> Iterator[Reading]:
    """Readings of a pass, row by row."""
    counts = [len(rows[row.index].answer) for row in work.rows]
    targets = [token for row in work.rows for token in rows[row.index].answer]
    states = [reader.answer_states(work, rows) for reader in (system, base)]
    by_token = _compare((system.decoder, base.decoder), states, targets)
    for count, part in zip(counts, torch.split(by_token, counts), strict=True):
        logprob, base_logprob, kl = part.sum(0).tolist()
        yield Reading(count, logprob, base_logprob, kl)


def _compare(
    decoders: Sequence[Decoder], states: Sequence[Tensor], targets: Sequence[int]
) -> Tensor:
    """[tokens, 3] float64: log-probability by the system, by the base, and the divergence.

    Args:
        decoders: the system's and the base's.
        states: of each, [tokens, width].
        targets: token ids.
    """
    column = torch.tensor(targets, device=states[0].device).unsqueeze(1)
    out = torch.empty(len(targets), 3, dtype=torch.float64)
    rows = max(1, BLOCK // next(decoders[0].head.parameters()).shape[0])
    for start in range(0, len(targets), rows):
        block = slice(start, start + rows)
        system, base = (
            decoder.logits(state[block]).log_softmax(dim=-1)
            for decoder, state in zip(decoders, states, strict=True)
        )
        out[block, 0] = system.gather(1, column[block]).squeeze(1).double().cpu()
        out[block, 1] = base.gather(1, column[block]).squeeze(1).double().cpu()
        # Never negative; rounding may make it so where the two are all but equal.
        kl = (system - base).mul_(system.exp_()).sum(dim=-1).clamp_(min=0)
        out[block, 2] = kl.double().cpu()
    return out
