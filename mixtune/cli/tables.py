"""Tables of what verbs on a study show: plans, outlines, states, results, estimates, APIs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from mixtune.analysis.effects import TO_SINGLE
from mixtune.api.ledger import FILE, Ledger, dollars
from mixtune.cli import show as terminal
from mixtune.cli.show import (
    Columns,
    fields,
    interval,
    interval_of,
    print_json,
    say,
    show,
    show_cells,
)
from mixtune.errors import shorten
from mixtune.planning.api import Estimate as ApiEstimate
from mixtune.planning.outline import Outline, OutlineRow
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan
from mixtune.planning.summary import size_lines
from mixtune.records import Estimate, MixRow, Result
from mixtune.report.wording import p_value
from mixtune.results.study_results import RunRow, SplitResults, StudyFacts, run_rows
from mixtune.store.folder import EXTRA_KINDS, Store
from mixtune.store.states import Unit
from mixtune.tasks.metrics import METRICS

# ---- plans ---------------------------------------------------------------------------------------


def show_plan(plan: Plan, planner: Planner) -> None:
    """Cells with rows and tokens, asked and got, then totals."""
    study = plan.study
    unit = study.unit.replace("_", " ")
    columns: Columns = {
        "id": lambda run: run.system or "(unresolved)",
        "cocktail": "name",
        "seed": "seed",
        "rows used": lambda run: ", ".join(map(_rows_got, run.mix)) or "–",
        f"part of {unit}: requested → used": lambda run: "; ".join(map(_share_got, run.mix)) or "–",
        "supervised tokens": lambda run: sum(row.supervised_tokens for row in run.mix) or "–",
        "answers": lambda run: sum(answer.items for answer in run.answers),
    }
    show(plan.runs, columns, f"{study.name}: {len(plan.runs)} systems on {study.model}")
    _show_mixes(plan)
    for (task, split), items in planner.corpus.items.items():
        dropped = planner.corpus.leaked_validation.get(task, 0) if split == "validation" else 0
        note = f"; {dropped} dropped, they stand in a test split" if dropped else ""
        say(f"{task}/{split}: {len(items)} items{note}")
    tokens = sum(run.tokens for run in plan.runs)
    answers = sum(answer.tokens for run in plan.runs for answer in run.answers)
    say(
        "\n".join([f"tokens: {tokens:,} in training, {answers:,} in scoring", *size_lines(planner)])
    )
    if plan.files is None:
        say("the base model is not prepared yet, so ids and tokens are open; mixtune run does it")
        if study.unit != "rows":
            say(f"shares of {unit} need the base model's tokenizer, so the mixes are open, too")
    show_api_plan(planner)


def _rows_got(row: MixRow) -> str:
    passes = f" (×{row.repeats:.3g})" if row.repeats > 1 else ""
    return f"{row.ingredient}:{row.rows_got}{passes}"


def _share_got(row: MixRow) -> str:
    """Its part of the mix as asked and got; both are there in a plan that has just been made."""
    stopped = ", used up" if row.exhausted == "stopped" else ""
    return f"{row.ingredient} {row.share_asked or 0:.1%} → {row.share_got or 0:.1%}{stopped}"


def _show_mixes(plan: Plan) -> None:
    """Per ingredient: what the pools hold, once, and what happens at their end."""
    first = {row.ingredient: row for run in reversed(plan.runs) for row in reversed(run.mix)}
    columns: Columns = {
        "ingredient": "ingredient",
        "rows requested": "rows_asked",
        "rows available": "rows_available",
        "dropped: leaked": "dropped_leaked",
        "dropped: too long": "dropped_overlong",
        "when exhausted": lambda row: plan.study.ingredients[row.ingredient].when_exhausted,
    }
    show([row for _, row in sorted(first.items())], columns, "Ingredients")


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "study": plan.study.model_dump(mode="json"),
        "model": None if plan.files is None else {"digest": plan.files.digest},
        "runs": [{**asdict(run), "name": run.name} for run in plan.runs],
    }


UNRESOLVED = (
    "An outline: cells without ids. Rows that are declared are unverified until the data is there; "
    "tokens and all that follows from them are estimates. mixtune plan with one model (model=NAME) "
    "gives ids."
)
OUTLINE: Columns = {
    **fields("model cell seed"),
    "rows": "rows:,",
    "steps": "steps:,",
    "tokens": "training_tokens:,",
    "GPU hours": "gpu_hours:.2f",
    "USD": "dollars:.2f",
    "GB on disk": "disk_gb:.1f",
}
DATASETS: Columns = {
    "dataset": "name",
    "rows": "rows:,",
    "items": "items:,",
    "tokens of prompt + answer": lambda row: f"{row.prompt:.0f} + {row.answer:.0f}",
    "rows are": "rows_from",
    "tokens are": "tokens_from",
}


def show_outline(outline: Outline, as_json: bool) -> None:
    """Cells, then datasets, then totals by model; or cells, datasets, rates and totals as JSON."""
    if as_json:
        totals = {"cells": len(outline.rows)} | _totals(outline.rows)
        rates = asdict(outline.rates) | {"about": outline.rates.about}
        head = {"study": outline.name, "note": UNRESOLVED, "rates": rates, "totals": totals}
        print_json({**head, "cells": outline.rows, "datasets": dict(outline.datasets)})
        return
    show(outline.rows, OUTLINE, f"{outline.name}: {len(outline.rows)} cells")
    for model, datasets in outline.datasets.items():
        show(datasets, DATASETS, f"Datasets, as {model} reads them")
    for model in outline.datasets:
        own = [row for row in outline.rows if row.model == model]
        say(f"{model}: {len(own)} cells, {_totals_text(own)}")
    say(f"together: {_totals_text(outline.rows)}, {outline.rates.about}\n{UNRESOLVED}")


def _totals(rows: Sequence[OutlineRow]) -> dict[str, float | int]:
    names = ("training_tokens", "scoring_tokens", "gpu_hours", "dollars")
    totals = {name: sum(getattr(row, name) for row in rows) for name in names}
    return {**totals, "disk_gb": sum(row.disk_gb or 0.0 for row in rows)}


def _totals_text(rows: Sequence[OutlineRow]) -> str:
    total = _totals(rows)
    memory = max((row.memory_gb or 0.0 for row in rows), default=0.0)
    return (
        f"{total['training_tokens']:,} tokens in training, {total['scoring_tokens']:,} in scoring, "
        f"{total['gpu_hours']:,.0f} GPU hours, {total['dollars']:,.0f} USD, "
        f"{total['disk_gb']:,.0f} GB on disk, weights and what is kept of them {memory:,.0f} GB"
    )


# ---- models behind APIs --------------------------------------------------------------------------


def api_json(planner: Planner) -> dict[str, Any]:
    """Requests and cost of API models, as a part of a plan's JSON; {} where there are none."""
    rows = planner.remote.estimates()
    return {"api": rows, "api_max_cost": planner.study.api.max_cost} if rows else {}


def show_api_plan(planner: Planner) -> None:
    """Requests, tokens and money of each API model, before anything is asked."""
    estimates = planner.remote.estimates()
    if not estimates:
        return
    columns: Columns = {
        "system": "name",
        "model": lambda row: f"{row.model} at {row.host}",
        "requests": "requests",
        "on this machine": "kept",
        "tokens in": "tokens_in",
        "tokens out": "tokens_out",
        "cost": _cost,
    }
    show(estimates, columns, "Models behind APIs: what is left to ask")
    say(f"tokens estimated: {estimates[0].estimated_with}")
    for row in estimates:
        if row.price_source:
            say(f"{row.name}: price: {row.price_source}")
        if row.shots:
            say(f"{row.name}: {row.shots} train rows shown before each question")
        if row.variants > 1:
            tried = f"{row.variants} instructions, each tried on all validation items of a task"
            say(f"{row.name}: {tried}")
    if planner.study.api.max_cost is not None:
        ceiling = planner.study.api.max_cost
        say(f"asking stops before ${ceiling:g} are passed (api.max_cost)")


def _cost(row: ApiEstimate) -> str:
    if row.cost_about is None or row.cost_most is None:
        return "price not stated"
    return f"about ${row.cost_about:.4f}, at most ${row.cost_most:.4f}"


def show_api_systems(facts: StudyFacts, measured: SplitResults) -> None:
    """API models on each task's main metric: text, and labels that the endpoint was held to.

    A table of their own: a label by schema is in no column with one by likelihood.
    """
    names = {entry.name for entry in facts.study.api_models}
    main = {(name, task.metrics[0]) for name, task in facts.tasks.items() if task.metrics}
    rows = [r for r in measured.results if r.cocktail in names and (r.task, r.metric) in main]
    by_system: dict[tuple[str, str], dict[str, Result]] = {}
    for row in rows:
        by_system.setdefault((row.cocktail, row.form), {})[row.task] = row
    if rows:
        cells = [
            (name, _FORMS[form], *(_cell(results.get(task)) for task in facts.tasks))
            for (name, form), results in by_system.items()
        ]
        title = f"Models behind APIs, {measured.split}: value [95 %], "
        columns = ("system", "answers", *facts.tasks)
        show_cells(title + "unparsed answers count as wrong", columns, cells)
    for note in dict.fromkeys(f"{row.cocktail}: {row.training}" for row in rows if row.training):
        say(note)


_FORMS = {"strict": "text (strict)", "lenient": "text (lenient)", "schema": "label by JSON schema"}


def _cell(row: Result | None) -> str:
    if row is None:
        return "–"
    ends = "" if row.low is None else f" [{interval_of(row)}]"
    unparsed = f", {row.unparsed:.1%} unparsed" if row.unparsed else ""
    return f"{row.value:.3f}{ends}{unparsed}"


def show_spent(store: Store) -> None:
    """The cost of the study's requests so far, if there were any."""
    paid, open_ = Ledger(store.folder / FILE, None).spent()
    if paid or open_:
        lost = f"; up to ${dollars(open_):.4f} for requests without an answer" if open_ else ""
        say(f"API models of this study have cost ${dollars(paid):.4f}{lost}")


PUBLISHED: Columns = {
    **fields("task system metric"),
    "value": "value:.3f",
    "source": "source",
    "items": "split",
    "scorer": "scorer",
}


# ---- states and results --------------------------------------------------------------------------


def status_json(facts: StudyFacts) -> dict[str, Any]:
    """States of all runs and units as one JSON object."""
    return {
        "study": facts.study.name,
        "runs": run_rows(facts),
        "units": list(facts.units.values()),
        "changes": facts.store.changes(),
        "test_reads": facts.store.test_reads(),
        "looks_lost": facts.store.looks_lost() is not None,
        "cut_off": [unit.label for unit in facts.cut_off],
    }


def show_status(facts: StudyFacts) -> None:
    """One line per run, and counts of states."""
    by_system: dict[str, list[Unit]] = {}
    for unit in (unit for unit in facts.units.values() if unit.kind not in EXTRA_KINDS):
        by_system.setdefault(unit.system, []).append(unit)

    def done(run: RunRow) -> str:
        units = by_system.get(run.system, [])
        return f"{sum(unit.progress for unit in units) / max(len(units), 1):.0%}"

    columns: Columns = {
        **fields("id cocktail seed state"),
        "done": done,
        "took": lambda run: terminal.span(run.seconds) if run.seconds else "–",
        "error": "error",
    }
    rows = run_rows(facts)
    show(rows, columns, facts.study.name)
    for change in facts.store.changes():
        when = datetime.fromtimestamp(change["at"], UTC)
        added = f": {', '.join(change['added'])}" if change["added"] else ""
        line = f"{change['what']} {when:%Y-%m-%d %H:%M} UTC, {change['units']} units{added}"
        say(shorten(line, terminal.LONGEST))
    counts = Counter(run.state for run in rows)
    say(", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    if facts.cut_off:
        units = f"{len(facts.cut_off)} units" if len(facts.cut_off) > 1 else "1 unit"
        say(f"{units} cut off: no process runs this study; the same mixtune run goes on")
    show_spent(facts.store)


def show_summary(facts: StudyFacts, measured: SplitResults, form: str | None = None) -> None:
    """Cocktail × task in main metric and form (or `form`), with the difference to the single."""
    main = {
        (metric.task, form or metric.form, metric.metric) for metric in facts.main_metrics.values()
    }
    cells: dict[str, dict[str, str]] = {}
    for row in measured.results:
        if row.seed is None and (row.task, row.form, row.metric) in main:
            cells.setdefault(row.cocktail, {})[row.task] = f"{row.value:.3f}"
    for mean in measured.means:
        if (mean.target, mean.form, mean.metric) in main:
            cells.setdefault(mean.subject, {})[mean.target] = f"{mean.value:.3f}"
    for change in measured.differences:
        place = (change.target, change.form, change.metric)
        if place in main and change.quantity == TO_SINGLE:
            cells[change.subject][change.target] += f"  {change.value:+.3f} [{interval_of(change)}]"
    rows = [(name, *(row.get(task, "–") for task in facts.tasks)) for name, row in cells.items()]
    note = f", {form} answers" if form else ""
    note += ", synthetic data" if any(task.synthetic for task in facts.tasks.values()) else ""
    title = f"{facts.study.name}, {measured.split}{note}: value, difference to the single task "
    show_cells(f"{title}[95 %]", ("system", *facts.tasks), rows)
    say(f"base model: {facts.model_note}", whole=True)
    show_training(facts)
    show_api_systems(facts, measured)


def show_training(facts: StudyFacts) -> None:
    """Unusual training settings of a study, if there are any."""
    if facts.training_note:
        say(f"{facts.study.name}: {facts.training_note}")


RESULTS: Columns = {
    **fields("task form metric"),
    "system": "cocktail",
    "seed": "seed",
    "value": "value:.3f",
    "95 %": interval_of,
    "n": "n",
    "floor": "floor:.3f",
    "unparsed": "unparsed:.1%",
}


def show_clean(facts: StudyFacts, measured: SplitResults, as_json: bool) -> None:
    """Results on all items next to those on items that no training row repeats."""
    values = ("value", "low", "high", "n", "clusters")
    none = {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    clean = {
        (row.system, row.task, row.form, row.metric): {key: getattr(row, key) for key in values}
        for row in measured.without_items(facts.store.read_value("flagged.json"))
    }
    rows = [
        {**asdict(row), "clean": clean.get((row.system, row.task, row.form, row.metric), none)}
        for row in measured.results
    ]
    if as_json:
        print_json(rows, indent=None)
        return

    def ends(row: Mapping[str, Any]) -> str:
        return interval(row["low"], row["high"]) if row["value"] is not None else "no clean item"

    columns: Columns = {
        **fields("task form metric"),
        "system": "cocktail",
        "seed": "seed",
        "value": "value:.3f",
        "95 %": ends,
        "n": "n",
        "clean": lambda row: (
            "–" if row["clean"]["value"] is None else f"{row['clean']['value']:.3f}"
        ),
        "clean 95 %": lambda row: ends(row["clean"]),
        "clean n": lambda row: row["clean"]["n"],
    }
    title = "all items, and those that no training row repeats"
    show(rows, columns, f"{facts.study.name}, {measured.split}: {title}")
    show_training(facts)


# ---- estimates -----------------------------------------------------------------------------------


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


ESTIMATES: Columns = {
    "task": "target",
    **fields("form metric"),
    "system": "subject",
    "minus": lambda row: row.reference or "–",
    "value": lambda row: f"{row.value:+.3f}" if row.reference else f"{row.value:.3f}",
    "95 %": interval_of,
    "p": lambda row: p_value(row.p),
    **fields("n seeds"),
    "reads": reading,
}
