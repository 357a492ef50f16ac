"""The peer that scores: lm-evaluation-harness, its transformers model asked for log-likelihoods.

Knows: HFLM, requests, how it cuts a prompt from its continuation. Does not know: mixtune's engine,
repeats, ratios.

A setting is {"dtype", "batch"}; {"dtype": "auto", "batch": 1} is how it starts by itself. Requests
go straight to `HFLM.loglikelihood`, without its tasks and metrics, which only helps it.
"""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.data import read_scoring
from bench.machine import Memory, synchronise, use_threads
from bench.pipe import Channel
from mixtune.records import Query
from mixtune.tokens import Tokens

Setting = dict[str, Any]


def measure_scoring(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go scores the choices of items `start` to `stop`.

    With {"check": n} it replies the log-probabilities of the first n items instead, as mixtune
    defines them.
    """
    use_threads()
    queries = read_scoring(Path(arguments["rows"]))
    tokens = Tokens.load(Path(arguments["folder"]))
    memory = Memory(arguments["device"])
    model = load(arguments, arguments["setting"])
    score(model, tokens, queries[: arguments["warm"]])
    channel.ready(choices=len(queries[0].choices), items=len(queries), weights=_dtype(model))
    while (order := channel.next()) is not None:
        if "check" in order:
            asked = queries[: order["check"]]
            channel.reply(logprobs=_comparable(model, tokens, asked))
            continue
        asked = queries[order["start"] : order["stop"]]
        seconds = _seconds(model, tokens, asked)
        channel.reply(seconds=seconds, examples=len(asked), peak_bytes=memory.peak())


def try_settings(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go is one setting, from loading to `items` items after a few first ones."""
    use_threads()
    queries = read_scoring(Path(arguments["rows"]))
    tokens = Tokens.load(Path(arguments["folder"]))
    channel.ready()
    while (order := channel.next()) is not None:
        model = load(arguments, order["setting"])
        channel.reply(**_try(model, tokens, queries, order["give_up_below"], arguments))
        del model
        gc.collect()


def _try(
    model: HFLM,
    tokens: Tokens,
    queries: Sequence[Query],
    give_up_below: float,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    first = queries[: arguments["warm"]]
    rate = len(first) / _seconds(model, tokens, first)
    if rate < give_up_below:
        return {"rate": rate, "stopped": True}
    asked = queries[: arguments["items"]]
    return {"rate": len(asked) / _seconds(model, tokens, asked)}


def load(arguments: dict[str, Any], setting: Setting) -> HFLM:
    """The base with an adapter, as its command line loads them."""
    return HFLM(
        pretrained=arguments["folder"],
        peft=arguments["adapter"],
        dtype=setting["dtype"],
        batch_size=setting["batch"],
        device=arguments["device"],
    )


def score(model: HFLM, tokens: Tokens, queries: Sequence[Query]) -> list[list[float]]:
    """Log-likelihood of each choice with its end of turn, by item."""
    found = iter(_ask(model, _pairs(model, tokens, queries)))
    return [[next(found) for _ in query.choices] for query in queries]


def _pairs(model: HFLM, tokens: Tokens, queries: Sequence[Query]) -> list[tuple[str, str]]:
    """Prompt and continuation of every choice, as text."""
    end = model.tokenizer.decode(list(tokens.end_of_turn), skip_special_tokens=False)
    return [(tokens.prompt(q.messages), choice + end) for q in queries for choice in q.choices]


def _comparable(model: HFLM, tokens: Tokens, queries: Sequence[Query]) -> list[list[float]]:
    """As mixtune defines it: without the white space that ends a prompt.

    The harness counts it as part of every continuation, so its own log-likelihood is taken off.
    """
    sums = score(model, tokens, queries)
    prompts = [tokens.prompt(query.messages) for query in queries]
    spaces = [prompt[len(prompt.rstrip()) :] for prompt in prompts]
    if not all(spaces):
        return sums
    pairs = [(prompt.rstrip(), space) for prompt, space in zip(prompts, spaces, strict=True)]
    taken = _ask(model, pairs)
    return [[value - less for value in row] for row, less in zip(sums, taken, strict=True)]


def _ask(model: HFLM, pairs: Sequence[tuple[str, str]]) -> list[float]:
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]


def _seconds(model: HFLM, tokens: Tokens, queries: Sequence[Query]) -> float:
    pairs = _pairs(model, tokens, queries)
    began = time.perf_counter()
    _ask(model, pairs)
    synchronise(str(model.device))
    return time.perf_counter() - began


def _dtype(model: HFLM) -> str:
    return str(next(model.model.parameters()).dtype)
