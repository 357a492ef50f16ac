"""Facts stored with a plan: data read, row lengths, and digests that identify its parts.

Knows: pools and the tokenizer. Does not know: cocktails, budgets, where the numbers are shown.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mixtune.identity import environment
from mixtune.models.memory import gigabytes
from mixtune.planning.activation_cache import activation_cache_size
from mixtune.planning.plan import Planner
from mixtune.planning.sizes import Sizes
from mixtune.records import Example
from mixtune.tasks.task import fingerprint

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
"""Name → quantile; each is the length of a row that exists, nothing interpolated."""
MAX_MEASURED = 5000
"""Rows measured per ingredient, evenly spaced over its pool: seconds for the largest."""


def length_rows(planner: Planner) -> list[dict[str, object]]:
    """One JSON row per ingredient: tokens per row of its pool, and the supervised part of them.

    Fields: ingredient; rows (of the pool); measured (of them); over_long (of those measured, longer
    than `train.max_length`; the pool holds none where the policy is to drop them); tokens and
    supervised (sums over those measured); `tokens_…` and `supervised_…` for each of `QUANTILES`, 0
    for an empty pool. Each row is encoded once. Without a tokenizer there are no rows.
    """
    if planner.sizes is None:
        return []
    limit = planner.study.train.max_length
    pools = planner.corpus.pools.items()
    return [{"ingredient": name, **_measured(pool, planner.sizes, limit)} for name, pool in pools]


def _measured(pool: Sequence[Example], sizes: Sizes, limit: int) -> dict[str, object]:
    chosen = pool[:: max(1, -(-len(pool) // MAX_MEASURED))]
    answers = np.array(sizes.answers(chosen), dtype=int)
    totals = answers + np.array(sizes.prompts(chosen), dtype=int)
    row: dict[str, object] = {
        "rows": len(pool),
        "measured": len(chosen),
        "over_long": int((totals > limit).sum()),
    }
    for kind, values in (("tokens", totals), ("supervised", answers)):
        row[kind] = int(values.sum())
        row |= {f"{kind}_{name}": _quantile(values, at) for name, at in QUANTILES.items()}
    return row


def _quantile(values: np.ndarray, at: float) -> int:
    return int(np.quantile(values, at, method="inverted_cdf")) if values.size else 0


def facts_of(planner: Planner) -> dict[str, object]:
    """Facts stored with a plan: versions, data read, row lengths, digests."""
    facts = {
        "data": planner.data_rows(),
        "flagged": planner.leaks.flagged,
        "lengths": length_rows(planner),
        "sizes": sizes_of(planner),
    }
    return {"env": environment(), **facts, "content": content_of(planner)}


def sizes_of(planner: Planner) -> dict[str, object]:
    """Limits and sizes that follow from lengths in tokens, as a JSON object.

    `max_new_tokens`: task → longest strict answer; empty where none is asked for or there is no
    tokenizer yet. `top_layers`: texts, tokens and bytes that are kept on disk, or None.
    """
    cache = activation_cache_size(planner)
    return {"max_new_tokens": _limits(planner), "top_layers": cache and asdict(cache)}


def _limits(planner: Planner) -> dict[str, int]:
    study = planner.study
    resolved = planner.tokens is not None or study.evaluate.max_new_tokens is not None
    tasks = study.tasks if "strict" in study.evaluate.forms else ()
    tasks = (*tasks, *study.judged) if resolved else ()
    return {task: planner.max_new_tokens(task) for task in tasks}


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


def content_of(planner: Planner) -> dict[str, object]:
    """Digests of base model, prompts and rows, by which a changed study is recognised."""
    files, corpus, registry = planner.files, planner.corpus, planner.registry
    study = planner.study
    general = [] if study.general is None else [study.general]
    used = dict.fromkeys([*study.ingredients, *study.tasks, *study.judged, *study.probes, *general])
    rows = {f"{name}/train": fingerprint(pool) for name, pool in corpus.pools.items()}
    for (name, split), items in corpus.items.items():
        rows[f"{name}/{'held out' if split == 'train' else split}"] = fingerprint(items)
    return {
        "base model": files and {"name": files.name, "digest": files.digest},
        "prompts": {name: registry.get(name).prompt_version for name in used},
        "rows": dict(sorted(rows.items())),
    }
