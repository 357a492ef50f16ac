"""Greedy text: many prompts at once, each until its end of turn.

Knows: rows that go on token by token, when one is finished. Does not know: tasks, parsing, LoRA.
"""

import time
from collections.abc import Collection, Sequence
from itertools import chain

import torch

from mixtune.engine.batching import Text, seat
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Past, plant
from mixtune.engine.kv_cache import Memory
from mixtune.records import Answer
from mixtune.tokens import Tokens


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    tokens: Tokens,
    max_new_tokens: int,
    how: tuple[int, Past | None],
) -> list[Answer]:
    """An adapter's answers to one chunk of prompts, in their order; latency is shared equally.

    `how`: the adapter, and what all prompts begin with, computed under it.

    A row that does not end its turn within `max_new_tokens` has the finish "length".
    """
    began = time.perf_counter()
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    # Beyond the span a row must stand alone to be exact.
    groups = [[prompt] for prompt in prompts] if decoder.alone(longest) else [prompts]
    stops = tokens.eos_ids
    with torch.inference_mode():
        rows = [_greedy(decoder, group, (stops, max_new_tokens), how) for group in groups]
    latency = (time.perf_counter() - began) / len(prompts)
    return [answer_of(ids, tokens, latency) for ids in chain.from_iterable(rows)]


def _greedy(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    until: tuple[Collection[int], int],
    how: tuple[int, Past | None],
) -> list[list[int]]:
    """Likeliest next tokens of each prompt, up to and including its stop token."""
    (stops, limit), (slot, past) = until, how
    # The last token is only ever read out.
    decoder.check_length(max(map(len, prompts)) + limit - 1)
    texts = [Text(slot, prompt[past.length if past else 0 :]) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda i: tuple(texts[i].prompt))
    work = seat(texts, order, levels=1)
    # Stacked: the rows are one block, and they are its last one.
    forest = plant(work.branches, decoder.device, stacked=True, past=past)
    memory = Memory(forest, limit, ((slot, 0, len(prompts)),))
    hidden = decoder.run(forest, memory)
    ends = [
        forest.starts[each.branch] + texts[each.row].size - each.skip - 1 for each in work.seats
    ]
    last = hidden[torch.tensor(ends, device=decoder.device)]
    found: list[list[int]] = [[] for _ in prompts]
    rows = [found[each.row] for each in work.seats]
    for step in range(limit):
        following = decoder.logits(last).argmax(dim=-1)
        for row, token in zip(rows, following.tolist(), strict=True):
            if not row or row[-1] not in stops:
                row.append(token)
        if step + 1 == limit or all(row[-1] in stops for row in rows):
            break
        last = decoder.follow(following, memory)
    return found


def answer_of(ids: Sequence[int], tokens: Tokens, latency: float) -> Answer:
    """Text of the generated ids without the end of turn (which may be several tokens)."""
    if not ids or ids[-1] not in tokens.eos_ids:
        return Answer(output=tokens.decode(ids), finish="length", latency=latency)
    end = list(tokens.end_of_turn)
    whole = list(ids)
    text = whole[: -len(end)] if whole[-len(end) :] == end else whole[:-1]
    return Answer(output=tokens.decode(text), finish="stop", latency=latency)
