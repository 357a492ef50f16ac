"""Estimates as a table for people, each difference with what it says in words.

Knows: rows, words. Does not know: how a number was computed.
"""

from collections.abc import Sequence

from rich.console import Console

from mixtune import terminal
from mixtune.metrics import METRICS
from mixtune.records import Estimate
from mixtune.report.wording import p_value

COLUMNS = ("task", "form", "metric", "system", "minus", "value", "95 %", "p", "n", "seeds", "reads")


def show_estimates(out: Console, found: Sequence[Estimate], title: str) -> None:
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
        for row in found
    ]
    out.print(terminal.table(title, COLUMNS, rows))


def reading(row: Estimate) -> str:
    """What a difference says: better or worse where its interval lies beside 0; ties by test.

    Empty for what is no difference. A difference may be better and yet a tie: surely there, and
    surely smaller than the margin.
    """
    if not row.reference:
        return ""
    if row.low is None or row.high is None:
        return "too few"
    tied = row.method.partition(";")[0] if row.method.startswith("tie ") else ""
    if row.low <= 0 <= row.high:
        return tied or "not told apart"
    metric = METRICS.get(row.metric)
    higher_is_better = metric is None or metric.higher_is_better
    side = "better" if (row.low > 0) == higher_is_better else "worse"
    return f"{side}, {tied}" if tied else side
