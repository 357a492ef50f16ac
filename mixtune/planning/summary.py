"""Facts stored with a plan: data read, row lengths, sizes on disk, digests that identify its parts.

`train.top_layers` caches activations, one file per text, [tokens, width] in the study's number
format: for each distinct training row all but its last token (which is only a target); for each
distinct item with choices its prompt followed by the trie of its choices, without their last token.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mixtune.errors import ModelError
from mixtune.identity import environment
from mixtune.models.files import BaseModelFiles, read_object
from mixtune.models.memory import gigabytes
from mixtune.planning.plan import Planner
from mixtune.tasks.examples import fingerprint, query_of

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
"""Name → quantile; each is the length of a row that exists, nothing interpolated."""
MAX_MEASURED = 5000
"""Rows measured per ingredient, evenly spaced over its pool: seconds for the largest."""
_BYTES = {"float32": 4, "bfloat16": 2}


def facts_of(planner: Planner) -> dict[str, object]:
    """Facts stored with a plan: versions, data read, row lengths, digests."""
    return {
        "env": environment(),
        "data": planner.leaks.data_rows(),
        "flagged": planner.leaks.flagged,
        "lengths": length_rows(planner),
        "sizes": sizes_of(planner),
        "content": content_of(planner),
    }


def content_of(planner: Planner) -> dict[str, object]:
    """Digests of base model, prompts and rows, by which a changed study is recognised."""
    files, corpus, registry = planner.files, planner.corpus, planner.registry
    rows = {f"{name}/train": fingerprint(pool) for name, pool in corpus.pools.items()}
    for (name, split), items in corpus.items.items():
        rows[f"{name}/{'held out' if split == 'train' else split}"] = fingerprint(items)
    return {
        "base model": files and {"name": files.name, "digest": files.digest},
        "prompts": {name: registry.get(name).prompt_version for name in corpus.datasets},
        "rows": dict(sorted(rows.items())),
    }


# ---- lengths -------------------------------------------------------------------------------------


def length_rows(planner: Planner) -> list[dict[str, object]]:
    """One JSON row per ingredient: tokens per row of its pool, and the supervised part of them.

    Fields: ingredient; rows (of the pool); measured (of them); over_long (of those measured, longer
    than `train.max_length`; the pool holds none where the policy is to drop them); tokens and
    supervised (sums over those measured); `tokens_…` and `supervised_…` for each of `QUANTILES`, 0
    for an empty pool. Without a tokenizer there are no rows.
    """
    if planner.sizes is None:
        return []
    rows = []
    for ingredient, pool in planner.corpus.pools.items():
        chosen = pool[:: max(1, -(-len(pool) // MAX_MEASURED))]
        answers = np.array(planner.sizes.answers(chosen), dtype=int)
        totals = answers + np.array(planner.sizes.prompts(chosen), dtype=int)
        row: dict[str, object] = {
            "ingredient": ingredient,
            "rows": len(pool),
            "measured": len(chosen),
            "over_long": int((totals > planner.study.train.max_length).sum()),
        }
        for kind, values in (("tokens", totals), ("supervised", answers)):
            row[kind] = int(values.sum())
            for name, at in QUANTILES.items():
                quantile = np.quantile(values, at, method="inverted_cdf") if values.size else 0
                row[f"{kind}_{name}"] = int(quantile)
        rows.append(row)
    return rows


def sizes_of(planner: Planner) -> dict[str, object]:
    """Limits and sizes that follow from lengths in tokens, as a JSON object.

    `max_new_tokens`: task → longest strict answer; empty where none is asked for or there is no
    tokenizer yet. `top_layers`: texts, tokens and bytes that are kept on disk, or None.
    """
    cache = activation_cache_size(planner)
    return {"max_new_tokens": _limits(planner), "top_layers": cache and asdict(cache)}


def _limits(planner: Planner) -> dict[str, int]:
    study = planner.study
    if planner.tokens is None and study.evaluate.max_new_tokens is None:
        return {}
    tasks = study.tasks if "strict" in study.evaluate.forms else ()
    return {task: planner.max_new_tokens(task) for task in (*tasks, *study.judged)}


def size_lines(planner: Planner) -> list[str]:
    """`sizes_of` as lines for people."""
    lines = []
    if limits := _limits(planner):
        fixed = planner.study.evaluate.max_new_tokens is not None
        why = "evaluate.max_new_tokens" if fixed else "99th percentile of the gold answers"
        limits_text = ", ".join(f"{task} {tokens}" for task, tokens in limits.items())
        lines.append(f"longest answer in tokens: {limits_text} ({why})")
    if cache := activation_cache_size(planner):
        lines.append(
            f"kept on disk for train.top_layers: {cache.texts:,} texts, {cache.tokens:,} tokens, "
            f"{gigabytes(cache.bytes)}"
        )
    return lines


# ---- cached activations --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Number of cached texts, their tokens, and bytes of their activations.

    File headers (128 bytes each) not counted. An upper bound for models with sliding windows, which
    cache no prompt longer than the window.
    """

    texts: int
    tokens: int
    bytes: int


def activation_cache_size(planner: Planner) -> CacheSize | None:
    """Size of a study's activation cache; None without `train.top_layers` or a base model.

    Raises:
        ModelError: config.json does not say how wide hidden states are.
    """
    train = planner.study.train
    if train.top_layers is None or planner.files is None:
        return None
    sizes = {}
    for text in _cached_texts(planner):
        key = hashlib.blake2b(digest_size=16)
        for part in text:
            key.update(np.asarray([len(part), *part], dtype=np.int64).tobytes())
        sizes[key.digest()] = len(text[0]) + len(text[1])
    tokens = sum(sizes.values())
    return CacheSize(len(sizes), tokens, tokens * _width(planner.files) * _BYTES[train.compute])


def _cached_texts(planner: Planner) -> Iterator[Sequence[Sequence[int]]]:
    """Prompt, continuation and parents of each text; parents only where it continues in a trie.

    Items with choices are cached in any form: strict answers share the pass that ranks them.
    """
    assert planner.tokens is not None
    for row in planner.distinct_rows():
        yield row.prompt, row.answer[:-1], ()
    tries: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for items in planner.corpus.items.values():
        for example in items:
            if not example.choices:
                continue
            if example.choices not in tries:
                answers = [planner.tokens.answer_ids(choice) for choice in example.choices]
                tries[example.choices] = trie_of(answers)
            prompt = planner.tokens.prompt_ids(query_of(example).messages)
            yield prompt, *tries[example.choices]


def trie_of(choices: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Tokens of the trie of choices (given with their end of turn) and each one's parent, or −1."""
    nodes: dict[tuple[int, int], int] = {}
    for choice in choices:
        node = -1
        for token in choice[:-1]:
            node = nodes.setdefault((node, token), len(nodes))
    return [token for _, token in nodes], [parent for parent, _ in nodes]


def _width(files: BaseModelFiles) -> int:
    width = read_object(files.folder / "config.json").get("hidden_size")
    if not isinstance(width, int):
        raise ModelError(
            "the base model does not state the size of its hidden states",
            where=str(files.folder / "config.json"),
            found=width,
            wanted="a whole number as hidden_size",
            remedy="leave train.top_layers out",
        )
    return width
