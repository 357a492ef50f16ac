"""Greedy text: many prompts at once, each until its end of turn.

Knows: caches, padding, when a row is finished. Does not know: tasks, parsing, LoRA.

Layout of the keys and values (padding is masked, positions count a row's own tokens):

    header | rest of the prompt, right-padded to the longest | tokens generated so far
"""

import time
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from mixtune.engine.batching import shared_header
from mixtune.engine.forward import Decoder
from mixtune.records import Answer
from mixtune.tokens import Tokens


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: Tokens, max_new_tokens: int
) -> list[Answer]:
    """Answers of one chunk of prompts, in their order; latency is shared equally.

    A row that does not end its turn within `max_new_tokens` has the finish "length".
    """
    began = time.perf_counter()
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    # Beyond the span a row must stand alone and without padding to be exact.
    groups = [[prompt] for prompt in prompts] if decoder.alone(longest) else [prompts]
    with torch.inference_mode():
        rows = [_greedy(decoder, group, tokens.eos_ids, max_new_tokens) for group in groups]
    latency = (time.perf_counter() - began) / len(prompts)
    return [answer_of(ids, tokens, latency) for ids in chain.from_iterable(rows)]


def _greedy(
    decoder: Decoder, prompts: Sequence[Sequence[int]], stops: set[int], limit: int
) -> list[list[int]]:
    """Likeliest next tokens of each prompt, up to and including its stop token."""
    header = shared_header(prompts)
    rests = [prompt[header:] for prompt in prompts]
    lengths = torch.tensor([len(rest) for rest in rests], device=decoder.device)
    cache = decoder.prefill(prompts[0][:header], len(prompts))
    hidden = decoder.extend(decoder.pad(rests), cache, None, None)
    last = hidden[torch.arange(len(prompts), device=decoder.device), lengths - 1]
    seen = _seen(header, lengths, hidden.shape[1])
    found: list[list[int]] = [[] for _ in prompts]
    for step in range(limit):
        following = decoder.logits(last).argmax(dim=-1)
        for row, token in zip(found, following.tolist(), strict=True):
            if not row or row[-1] not in stops:
                row.append(token)
        if step + 1 == limit or all(row[-1] in stops for row in found):
            break
        ids = following.unsqueeze(1)
        if len(prompts) == 1:
            # Nothing is padded: the network's own masks hold, sliding windows among them.
            last = decoder.extend(ids, cache, None, None)[:, 0]
            continue
        seen = torch.cat([seen, seen.new_ones(len(prompts), 1)], dim=1)
        positions = (header + lengths + step).unsqueeze(1)
        last = decoder.extend(ids, cache, seen.unsqueeze(1), positions)[:, 0]
    return found


def _seen(header: int, lengths: Tensor, width: int) -> Tensor:
    """[rows, header + width] bool: whether a cached position holds a token or padding."""
    real = torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
    return torch.cat([real.new_ones(len(lengths), header), real], dim=1)


def answer_of(ids: Sequence[int], tokens: Tokens, latency: float) -> Answer:
    """Text of the generated ids without the end of turn (which may be several tokens)."""
    if not ids or ids[-1] not in tokens.eos_ids:
        return Answer(output=tokens.decode(ids), finish="length", latency=latency)
    end = list(tokens.end_of_turn)
    whole = list(ids)
    text = whole[: -len(end)] if whole[-len(end) :] == end else whole[:-1]
    return Answer(output=tokens.decode(text), finish="stop", latency=latency)
