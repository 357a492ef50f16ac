"""Estimates as a table for people, each difference with what it says in words.

Knows: rows, words. Does not know: how a number was computed.

An outline as a table for people, and as JSON.

Knows: an outline's rows, how numbers are written. Does not know: where they come from.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mixtune.cli import show as terminal
from mixtune.planning.outline import Dataset, Outline, OutlineRow
from mixtune.records import Estimate
from mixtune.report.wording import p_value
from mixtune.tasks.metrics import METRICS

COLUMNS = ("task", "form", "metric", "system", "minus", "value", "95 %", "p", "n", "seeds", "reads")


def show_estimates(out: Console, estimates: Sequence[Estimate], title: str) -> None:
    """One row per estimate: what, of which system, against which, where, with its interval."""
    rows = [
        (
            row.target,
            row.form,
            row.metric,
            row.subject,
            row.reference or "–",
            f"{row.value:+.3f}" if row.reference else f"{row.value:.3f}",
            terminal.interval(row.low, row.high, "+" if row.reference else ""),
            p_value(row.p),
            row.n,
            row.seeds,
            reading(row),
        )
        for row in estimates
    ]
    out.print(terminal.table(title, COLUMNS, rows))


def reading(row: Estimate) -> str:
    """A difference in words: better or worse where its interval excludes 0; ties by test.

    Empty for a value that is no difference. A difference may be better and yet a tie: not 0, and
    smaller than the margin.
    """
    if not row.reference:
        return ""
    if row.low is None or row.high is None:
        return "too few"
    tied = f"tie within ±{row.margin:g}" if row.tied else ""
    if row.low <= 0 <= row.high:
        return tied or "not significantly different"
    metric = METRICS.get(row.metric)
    higher_is_better = metric is None or metric.higher_is_better
    side = "better" if (row.low > 0) == higher_is_better else "worse"
    return f"{side}, {tied}" if tied else side


UNRESOLVED = (
    "An outline: cells without ids. Rows that are declared are unverified until the data is there; "
    "tokens and all that follows from them are estimates. mixtune plan with one model (model=NAME) "
    "gives ids."
)


def outline_json(outline: Outline) -> dict[str, Any]:
    """Cells, datasets by model, rates and totals as one JSON object."""
    return {
        "study": outline.name,
        "note": UNRESOLVED,
        "rates": asdict(outline.rates) | {"about": outline.rates.about},
        "totals": {"cells": len(outline.rows), **_totals(outline.rows)},
        "cells": [asdict(row) for row in outline.rows],
        "datasets": {
            model: [asdict(dataset) for dataset in datasets]
            for model, datasets in outline.datasets.items()
        },
    }


def show_outline(out: Console, outline: Outline) -> None:
    """Cells, then datasets, then totals by model."""
    columns = ("model", "cell", "seed", "rows", "steps", "tokens", "GPU hours", "USD", "GB on disk")
    rows = [
        (
            row.model,
            row.cell,
            row.seed,
            f"{row.rows:,}",
            f"{row.steps:,}",
            f"{row.training_tokens:,}",
            f"{row.gpu_hours:.2f}",
            f"{row.dollars:.2f}",
            "–" if row.disk_gb is None else f"{row.disk_gb:.1f}",
        )
        for row in outline.rows
    ]
    out.print(terminal.table(f"{outline.name}: {len(outline.rows)} cells", columns, rows))
    for model, datasets in outline.datasets.items():
        _show_datasets(out, model, datasets)
    for model in outline.datasets:
        own = [row for row in outline.rows if row.model == model]
        out.print(f"{model}: {len(own)} cells, {_said(own)}", markup=False)
    out.print(f"together: {_said(outline.rows)}, {outline.rates.about}", markup=False)
    out.print(UNRESOLVED, markup=False)


def _show_datasets(out: Console, model: str, datasets: Sequence[Dataset]) -> None:
    columns = ("dataset", "rows", "items", "tokens of prompt + answer", "rows are", "tokens are")
    rows = [
        (
            dataset.name,
            f"{dataset.rows:,}",
            f"{dataset.items:,}",
            f"{dataset.prompt:.0f} + {dataset.answer:.0f}",
            dataset.rows_from,
            dataset.tokens_from,
        )
        for dataset in datasets
    ]
    out.print(terminal.table(f"Datasets, as {model} reads them", columns, rows))


def _totals(rows: Sequence[OutlineRow]) -> dict[str, float | int]:
    return {
        "training_tokens": sum(row.training_tokens for row in rows),
        "scoring_tokens": sum(row.scoring_tokens for row in rows),
        "gpu_hours": sum(row.gpu_hours for row in rows),
        "dollars": sum(row.dollars for row in rows),
        "disk_gb": sum(row.disk_gb or 0.0 for row in rows),
    }


def _said(rows: Sequence[OutlineRow]) -> str:
    total = _totals(rows)
    memory = max((row.memory_gb or 0.0 for row in rows), default=0.0)
    return (
        f"{total['training_tokens']:,} tokens in training, {total['scoring_tokens']:,} in scoring, "
        f"{total['gpu_hours']:,.0f} GPU hours, {total['dollars']:,.0f} USD, "
        f"{total['disk_gb']:,.0f} GB on disk, weights and what is kept of them {memory:,.0f} GB"
    )
