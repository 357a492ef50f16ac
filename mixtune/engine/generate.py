"""Greedy text: many prompts at once, each until its end of turn.

Knows: rows decoded token by token, when one is finished. Does not know: tasks, parsing, LoRA.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from mixtune.engine.batching import InputSequence, make_pass
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import pack_forest
from mixtune.engine.kv_cache import PrefixCache
from mixtune.records import Answer
from mixtune.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Generator:
    """A network with one adapter that continues prompts; `slot`: the adapter."""

    decoder: Decoder
    slot: int
    tokens: Tokens

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, prefix: PrefixCache | None
    ) -> list[Answer]:
        """Answers to one chunk of prompts, in their order; latency is shared equally.

        A row that does not end its turn within `max_new_tokens` has the finish "length".

        Args:
            prompts: token ids.
            max_new_tokens: at least one.
            prefix: common start of all prompts, computed under this adapter.
        """
        started = time.perf_counter()
        longest = max(len(prompt) for prompt in prompts) + max_new_tokens
        alone = self.decoder.must_run_alone(longest)
        groups = [[prompt] for prompt in prompts] if alone else [prompts]
        with torch.inference_mode():
            rows = [self._greedy(group, max_new_tokens, prefix) for group in groups]
        latency = (time.perf_counter() - started) / len(prompts)
        return [answer_of(ids, self.tokens, latency) for ids in chain.from_iterable(rows)]

    def _greedy(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, prefix: PrefixCache | None
    ) -> list[list[int]]:
        """Likeliest next tokens of each prompt, up to and including its stop token."""
        decoder, stops = self.decoder, self.tokens.eos_ids
        # The last token is never an input.
        decoder.check_length(max(map(len, prompts)) + max_new_tokens - 1)
        start = prefix.length if prefix else 0
        sequences = [InputSequence(self.slot, prompt[start:]) for prompt in prompts]
        order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i].prompt))
        work = make_pass(sequences, order, max_headers=1)
        # Stacked: all rows are one block, the last one, whose keys the cache takes.
        forest = pack_forest(work.branches, decoder.device, stacked=True, prefix=prefix)
        cache = forest.decode_cache(max_new_tokens)
        hidden = decoder.forward(forest, cache)
        last = [
            forest.branch_starts[row.branch] + sequences[row.index].length - row.shared - 1
            for row in work.rows
        ]
        hidden = hidden[torch.tensor(last, device=decoder.device)]
        answers: list[list[int]] = [[] for _ in prompts]
        rows = [answers[row.index] for row in work.rows]  # in the cache's order
        for step in range(max_new_tokens):
            next_ids = decoder.logits(hidden).argmax(dim=-1)
            for row, token in zip(rows, next_ids.tolist(), strict=True):
                if not row or row[-1] not in stops:
                    row.append(token)
            if step + 1 == max_new_tokens or all(row[-1] in stops for row in rows):
                break
            hidden = decoder.decode(next_ids, cache, self.slot)
        return answers


def answer_of(ids: Sequence[int], tokens: Tokens, latency: float) -> Answer:
    """Text of the generated ids without the end of turn (which may be several tokens)."""
    if not ids or ids[-1] not in tokens.eos_ids:
        return Answer(output=tokens.decode(ids), finish="length", latency=latency)
    end = list(tokens.end_of_turn)
    length = len(end) if list(ids[-len(end) :]) == end else 1
    return Answer(output=tokens.decode(ids[:-length]), finish="stop", latency=latency)
