"""Terminal output on models behind APIs, and on figures that others published.

Knows: tables. Does not know: how anything is asked, counted or measured.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mixtune.analysis.readings import NOTE, Published
from mixtune.api.ledger import FILE, Ledger, dollars
from mixtune.cli.show import table
from mixtune.planning.api import Estimate
from mixtune.planning.plan import Planner
from mixtune.records import Result
from mixtune.results.study_results import SplitResults, StudyFacts
from mixtune.store.folder import Store


def api_json(planner: Planner) -> dict[str, Any]:
    """Requests and cost of API models, as a part of a plan's JSON; {} where there are none."""
    rows = [asdict(row) for row in planner.remote.estimates()]
    return {"api": rows, "api_max_cost": planner.study.api.max_cost} if rows else {}


def show_api_plan(out: Console, planner: Planner) -> None:
    """Requests, tokens and money of each API model, before anything is asked."""
    estimates = planner.remote.estimates()
    if not estimates:
        return
    columns = ("system", "model", "requests", "on this machine", "tokens in", "tokens out", "cost")
    rows = [
        (
            row.name,
            f"{row.model} at {row.host}",
            row.requests,
            row.kept,
            row.tokens_in,
            row.tokens_out,
            _cost(row),
        )
        for row in estimates
    ]
    out.print(table("Models behind APIs: what is left to ask", columns, rows))
    out.print(f"tokens estimated: {estimates[0].estimated_with}", markup=False)
    for row in estimates:
        for line in _notes(row):
            out.print(f"{row.name}: {line}", markup=False)
    if planner.study.api.max_cost is not None:
        ceiling = planner.study.api.max_cost
        out.print(f"asking stops before ${ceiling:g} are passed (api.max_cost)", markup=False)


def _cost(row: Estimate) -> str:
    if row.cost_about is None or row.cost_most is None:
        return "price not stated"
    return f"about ${row.cost_about:.4f}, at most ${row.cost_most:.4f}"


def _notes(row: Estimate) -> list[str]:
    notes = [f"price: {row.price_source}"] if row.price_source else []
    if row.shots:
        notes.append(f"{row.shots} train rows shown before each question")
    if row.variants > 1:
        notes.append(f"{row.variants} instructions, each tried on all validation items of a task")
    return notes


def show_api_systems(out: Console, facts: StudyFacts, measured: SplitResults) -> None:
    """API models on each task's main metric: text, and labels that the endpoint was held to.

    A table of their own: a label by schema is in no column with one by likelihood.
    """
    names = {entry.name for entry in facts.study.api_models}
    tasks = facts.tasks
    main = {(name, task.metrics[0]) for name, task in tasks.items() if task.metrics}
    rows = [r for r in measured.results if r.cocktail in names and (r.task, r.metric) in main]
    if not rows:
        return
    by_system: dict[tuple[str, str], dict[str, Result]] = {}
    for row in rows:
        by_system.setdefault((row.cocktail, row.form), {})[row.task] = row
    cells = [
        (name, _FORMS[form], *(_cell(results.get(task)) for task in tasks))
        for (name, form), results in by_system.items()
    ]
    title = f"Models behind APIs, {measured.split}: value [95 %], unparsed answers count as wrong"
    out.print(table(title, ("system", "answers", *tasks), cells))
    for note in dict.fromkeys(f"{row.cocktail}: {row.training}" for row in rows if row.training):
        out.print(note, markup=False)


_FORMS = {"strict": "text (strict)", "lenient": "text (lenient)", "schema": "label by JSON schema"}


def _cell(row: Result | None) -> str:
    if row is None:
        return "–"
    ends = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
    unparsed = f", {row.unparsed:.1%} unparsed" if row.unparsed else ""
    return f"{row.value:.3f}{ends}{unparsed}"


def show_spent(out: Console, store: Store) -> None:
    """The cost of the study's requests so far, if there were any."""
    paid, open_ = Ledger(store.folder / FILE, None).spent()
    if paid or open_:
        lost = f"; up to ${dollars(open_):.4f} for requests without an answer" if open_ else ""
        out.print(f"API models of this study have cost ${dollars(paid):.4f}{lost}", markup=False)


def show_published(out: Console, rows: Sequence[Published]) -> None:
    """Others' figures on the study's tasks."""
    columns = ("task", "system", "metric", "value", "source", "items", "scorer")
    cells = [
        (r.task, r.system, r.metric, f"{r.value:.3f}", r.source, r.split, r.scorer) for r in rows
    ]
    out.print(table(f"{NOTE}: other items, prompts and scorers", columns, cells))
