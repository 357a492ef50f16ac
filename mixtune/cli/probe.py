"""The verb on what a study's systems kept of their base: probe."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
from mixtune.analysis.readings import KL, PER_TOKEN, QUANTITY
from mixtune.analysis.results import BASE
from mixtune.cli.app import (
    RUNS,
    DataDir,
    DryRun,
    Json,
    Limit,
    Overrides,
    RunsDir,
    StudyFile,
    app,
    derived_of,
    heavy,
    study_of,
)
from mixtune.errors import UserError
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.facts import content_of
from mixtune.planning.probes import plan_probes
from mixtune.planning.runs import RunPlan
from mixtune.records import Estimate
from mixtune.retention import RETENTION, SCORE, Retention
from mixtune.spec import Study
from mixtune.store import Store
from mixtune.study_file import dump_study
from mixtune.tasks.registry import Registry


@app.command(rich_help_panel="Run")
def probe(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="Only this cocktail or adapter, beside the base. Repeatable."),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Say what the trained adapters kept of their base, on the study's probes.

    Scores on `probes` minus the base's; divergence from the base and log-likelihood of the gold
    answers and of the `general` text. Exit 3 where a system falls below the study's `gate`.
    Next: mixtune report.
    """
    study = study_of(study_file, overrides, limit)
    if dry_run:
        _preview(study, data_dir, runs_dir, system or ())
        return
    with terminal.progress(terminal.console(stderr=True)) as events:
        failed = _probe()(study, (data_dir, runs_dir), system or (), events)
    derived = derived_of(study, runs_dir, data_dir)
    found = Retention(derived, study)
    with derived.store.lock():
        derived.score()
        found.score()
        rows = found.estimates()
    below = found.below(rows)
    if as_json:
        gate = {**study.gate.model_dump(mode="json"), "below": below}
        print(json.dumps({"estimates": [asdict(row) for row in rows], "gate": gate}, indent=1))
    else:
        _show(study, rows)
    if found.unfinished:
        terminal.complain(f"{found.unfinished} systems are not probed to their end and left out")
    if failed:
        raise typer.Exit(1)
    for text in below:
        terminal.complain(f"gate not met: {text}")
    if below:
        raise typer.Exit(3)


def _preview(study: Study, data_dir: Path | None, runs_dir: Path, only: Sequence[str]) -> None:
    """Units that are not done; refused where the probing would be."""
    files = locate(study.model, download=False)
    if not isinstance(files, BaseModelFiles):
        raise UserError(
            "the base model is not prepared", found=study.model, remedy="mixtune models --prepare"
        )
    store = Store(runs_dir / study.name)
    found = plan_probes(study, store, Registry.of(study, data_dir), files, only)
    content = {"content": content_of(found.planner)}
    store.preview(found.rows, dump_study(found.planner.study), content)
    asked = [answer.id for run in found.runs for answer in run.answers]
    todo = len(store.undone(asked))
    print(f"{len(found.runs)} systems, {todo} of {len(asked)} sets of answers and readings to do")


def _probe() -> Callable[..., list[RunPlan]]:
    """What answers and reads; torch is loaded here."""
    found: Callable[..., list[RunPlan]] = heavy("execution.aside", "probing").probe
    return found


def _show(study: Study, rows: Sequence[Estimate]) -> None:
    """What was kept, probe by probe; then how gold answers are read."""
    out = terminal.console()
    base = {row.target: row for row in rows if row.quantity == SCORE and row.subject == BASE}
    kept = [
        (*_names(row), row.metric, f"{base[row.target].value:.3f}", *_numbers(row))
        for row in rows
        if row.quantity == RETENTION
    ]
    scores = ("probe", "system", "seeds", "metric", "base", "minus base", "95 %", "items")
    if kept:
        out.print(terminal.table(f"{study.name}: scores on probes", scores, kept))
    read = [row for row in rows if row.quantity == QUANTITY and row.reference]
    apart = {(row.target, row.subject): f"{row.value:.4f}" for row in read if row.metric == KL}
    gained = [
        (*_names(row), apart[row.target, row.subject], *_numbers(row))
        for row in read
        if row.metric == PER_TOKEN
    ]
    columns = ("gold answers", "system", "seeds", "KL to base", "minus base", "95 %", "items")
    title = f"{study.name}: divergence and log-likelihood, nats per token"
    out.print(terminal.table(title, columns, gained))


def _names(row: Estimate) -> tuple[str, str, int]:
    return row.target, row.subject, row.seeds


def _numbers(row: Estimate) -> tuple[str, str, int]:
    """A difference, its interval, how many items."""
    few = row.low is None or row.high is None
    ends = "too few" if few else f"{row.low:+.3f}, {row.high:+.3f}"
    return f"{row.value:+.3f}", ends, row.n
