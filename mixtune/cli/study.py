"""Verbs on a study: plan, run, status, results, score, report."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
from mixtune.cli.app import (
    RUNS,
    DataDir,
    DryRun,
    Json,
    Limit,
    Overrides,
    RunsDir,
    SplitName,
    StudyFile,
    Workers,
    app,
    derived_of,
    look_at,
    stopping,
    study_of,
)
from mixtune.errors import UserError
from mixtune.models.catalog import BaseModelFiles, locate
from mixtune.planning.plan import Plan, Planner, RunPlan
from mixtune.spec import Study
from mixtune.tasks.registry import Registry


@app.command()
def plan(
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show cells, runs, ids, rows and tokens before anything is trained. Next: mixtune run."""
    study = study_of(study_file, overrides, limit)
    planner, made = _plan(study, data_dir, _located(study))
    if as_json:
        print(json.dumps(terminal.plan_json(made), indent=1))
        return
    out = terminal.console()
    terminal.show_plan(out, made, planner)


@app.command()
def run(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    workers: Workers = None,
) -> None:
    """Train and score what is missing or failed, then write the report. Next: mixtune results."""
    study = study_of(study_file, overrides, limit)
    if dry_run:
        planner, made = _plan(study, data_dir, _located(study))
        terminal.show_plan(terminal.console(), made, planner)
        return
    run_study = _heavy()
    out = terminal.console()
    with terminal.progress(out) as events, stopping():
        failed = run_study(study, data_dir, runs_dir, workers, events)
    derived = derived_of(study, runs_dir, data_dir)
    with derived.store.lock():
        derived.score()
        page = derived.report("validation")
    terminal.show_summary(out, derived, "validation")
    look = ["mixtune", "results", str(study_file), *(overrides or ())]
    look += ["--runs-dir", str(runs_dir)] if runs_dir != RUNS else []
    look += ["--limit", str(limit)] if limit else []
    hint = f"every system, metric and interval: {shlex.join(look)}"
    out.print(hint, soft_wrap=True, markup=False)
    out.print(f"report: {page}", soft_wrap=True, markup=False)
    if failed:
        out.print(f"{len(failed)} runs failed; the same command tries them again", markup=False)
        raise typer.Exit(1)


@app.command()
def status(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show the state of every run; works while another process runs the study."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    if as_json:
        print(json.dumps(terminal.status_json(derived), indent=1))
        return
    terminal.show_status(terminal.console(), derived)


@app.command()
def results(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Cocktail × task on each task's main metric only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every system × task × form × metric with interval and floor. Next: mixtune report."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, derived.store, "results")
    if as_json:
        print(json.dumps([asdict(row) for row in derived.results(split)], indent=1))
        return
    show = terminal.show_summary if summary else terminal.show_results
    show(terminal.console(), derived, split)


@app.command()
def score(
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
) -> None:
    """Score kept answers with the current parsers and metrics; needs no model and no torch."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir, data_dir)
    if dry_run:
        print(f"{len(derived.unscored())} sets of answers would be scored")
        return
    with derived.store.lock():
        done = derived.score()
    print(f"scored {done.scored}, kept {done.kept}, not answered yet {done.unanswered}")


@app.command()
def report(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    dry_run: DryRun = False,
) -> None:
    """Write the report, one HTML file without network access."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    if dry_run:
        print(f"would write {derived.report_path(split)}")
        return
    look_at(split, derived.store, "report")
    print(derived.report(split))


def _located(study: Study) -> BaseModelFiles | None:
    """The base model's files if they are ready; a plan can be shown without them."""
    found = locate(study.model, download=False)
    return found if isinstance(found, BaseModelFiles) else None


def _plan(
    study: Study, data_dir: Path | None, files: BaseModelFiles | None
) -> tuple[Planner, Plan]:
    planner = Planner(study, Registry.open(study.task_files, data_dir), files)
    return planner, planner.plan()


def _heavy() -> Callable[..., list[RunPlan]]:
    """What trains; torch is loaded for `run` only."""
    try:
        from mixtune.execution.start import run_study
    except ModuleNotFoundError as error:
        raise UserError(
            f"training needs a package that is not installed: {error.name}",
            remedy="pip install 'mixtune[train]'",
        ) from error
    return run_study
