"""Verbs on a study: plan, run, status, results, score, analyze, eval, compare, report, open."""

import importlib
import json
import math
import shlex
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
from mixtune.analysis.published import published
from mixtune.cli import remote
from mixtune.cli.app import (
    RUNS,
    Bank,
    CheckpointEvery,
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
    print_rows,
    study_of,
)
from mixtune.derive import Derived, compare_studies
from mixtune.errors import UserError
from mixtune.execution.options import CHECKPOINT_EVERY, Options
from mixtune.models.catalog import BaseModelFiles, locate
from mixtune.planning.facts import content_of, sizes_of
from mixtune.planning.plan import Plan, Planner, RunPlan
from mixtune.records import Result
from mixtune.spec import dump_study
from mixtune.store import Store
from mixtune.tasks.registry import Registry


@app.command(rich_help_panel="Run")
def plan(
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show cells, runs, ids, rows and tokens before anything is trained. Next: mixtune run."""
    study = study_of(study_file, overrides, limit)
    found = locate(study.model, download=False)
    files = found if isinstance(found, BaseModelFiles) else None
    planner = Planner(study, Registry.open(study.task_files, data_dir), files)
    made = planner.plan()
    todo = _todo(Store(runs_dir / study.name), planner, made) if files else None
    if as_json:
        sizes = {**sizes_of(planner), **remote.api_json(planner)}
        print(json.dumps({**terminal.plan_json(made), **sizes, "todo": todo}, indent=1))
        return
    out = terminal.console()
    terminal.show_plan(out, made, planner)
    remote.show_api_plan(out, planner)
    left = "" if todo is None else f"{todo} of {len(made.rows())} units of work to do; "
    out.print(f"{left}next: mixtune run {study_file}", markup=False)


@app.command(rich_help_panel="Run")
def run(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    workers: Workers = None,
    bank: Bank = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_EVERY,
    as_json: Json = False,
) -> None:
    """Train and score what is missing or failed, then write the report. Next: mixtune results."""
    study = study_of(study_file, overrides, limit)
    if dry_run:
        plan(study_file, overrides, data_dir, runs_dir, limit, as_json)
        return
    run_study = _heavy("start")
    with terminal.progress(terminal.console(stderr=True)) as events:
        options = Options(workers, bank, checkpoint_every)
        failed = run_study(study, data_dir, runs_dir, options, events)
    derived = derived_of(study, runs_dir, data_dir)
    with derived.store.lock():
        derived.score()
        page = derived.report("validation")
    if as_json:
        print(json.dumps({**terminal.status_json(derived), "report": str(page)}, indent=1))
    else:
        look = ["mixtune", "results", str(study_file), *(overrides or ())]
        look += ["--runs-dir", str(runs_dir)] if runs_dir != RUNS else []
        look += ["--limit", str(limit)] if limit else []
        _show_end(derived, shlex.join(look), page)
    if failed:
        terminal.complain(f"{len(failed)} runs are not done; the same command tries them again")
        raise typer.Exit(1)


@app.command(rich_help_panel="Run")
def status(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show the state of every run, also while another process runs it. Next: mixtune results."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    if as_json:
        print(json.dumps(terminal.status_json(derived), indent=1))
        return
    terminal.show_status(terminal.console(), derived)
    remote.show_spent(terminal.console(), derived.store)


@app.command(rich_help_panel="Read")
def results(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Cocktail × task on each task's main metric only.")
    ] = False,
    others: Annotated[
        bool,
        typer.Option(
            "--published", help="Only what others published on these tasks; not measured here."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every system × task × form × metric with interval and floor. Next: mixtune report."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    if others:
        found = published(derived.tasks())
        if as_json:
            print_rows(found)
        else:
            remote.show_published(terminal.console(), found)
        return
    look_at(split, derived.store, "results")
    if as_json:
        print_rows(derived.results(split))
        return
    show = terminal.show_summary if summary else terminal.show_results
    show(terminal.console(), derived, split)
    if summary:
        remote.show_api_systems(terminal.console(), derived, split)


@app.command(rich_help_panel="Read")
def score(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score kept answers with this version's parsers; needs no model. Next: mixtune results."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir, data_dir)
    if dry_run:
        print(f"{len(derived.unscored())} sets of answers would be scored")
        return
    with derived.store.lock():
        done = derived.score()
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(f"scored {done.scored}, kept {done.kept}, not answered yet {done.unanswered}")


@app.command(rich_help_panel="Read")
def report(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    dry_run: DryRun = False,
) -> None:
    """Write the report, one HTML file that needs no network. Next: mixtune open."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    if dry_run:
        print(terminal.printable(f"would write {derived.report_path(split)}"))
        return
    look_at(split, derived.store, "report")
    print(terminal.printable(derived.report(split)))


@app.command(rich_help_panel="Read")
def analyze(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Write every mean and difference with its interval as rows. Next: mixtune report."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, derived.store, "analyze")
    rows, path = derived.analyze(split)
    if as_json:
        print_rows(rows)
        return
    terminal.show_estimates(terminal.console(), rows, f"{derived.study.name}, {split}")
    print(terminal.printable(path))


@app.command(name="eval", rich_help_panel="Run")
def evaluate(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    what: Annotated[
        str, typer.Argument(metavar="ADAPTER|MODEL", help="A PEFT adapter's folder, or a model.")
    ],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="What tables call it; by default the folder's name.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="TASK=VALUE: exit 3 unless the main metric on validation is at least that."
        ),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Score an adapter or model made elsewhere, as a system of the study. Next: mixtune compare."""
    study = study_of(study_file, overrides, limit)
    registry = Registry.open(study.task_files, data_dir)
    gates = [_gate(text, [registry.get(task).name for task in study.tasks]) for text in gate or ()]
    brought = _heavy("brought")
    label = name or Path(what).name or what
    with terminal.progress(terminal.console(stderr=True)) as events:
        failed = brought(study, what, label, (data_dir, runs_dir), events)
    derived = derived_of(study, runs_dir, data_dir)
    with derived.store.lock():
        derived.score()
    rows = [row for row in derived.results("validation") if row.cocktail == label]
    if as_json:
        print_rows(rows)
    else:
        terminal.show_rows(terminal.console(), rows, f"{label}, validation")
    if failed:
        raise typer.Exit(1)
    unmet = [text for task, least, text in gates if _main(derived, rows, task) < least]
    for text in unmet:
        print(terminal.printable(f"gate not met: {text}"), file=sys.stderr)
    if unmet:
        raise typer.Exit(3)


@app.command(rich_help_panel="Read")
def compare(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    others: Annotated[
        list[str],
        typer.Argument(metavar="SYSTEM SYSTEM | STUDY.yaml", help="Two systems, or another study."),
    ],
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    no_worse_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Exit 3 unless on every task's main metric the interval of the difference lies "
            "above minus this.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the difference of two systems, or of two studies, paired. Next: mixtune report."""
    one = derived_of(study_of(study_file, None, limit), runs_dir)
    look_at(split, one.store, "compare")
    left_out: dict[str, str] = {}
    if len(others) == 2:
        rows = one.compare(others[0], others[1], split)
    elif len(others) == 1:
        other = derived_of(study_of(Path(others[0]), None, limit), runs_dir)
        look_at(split, other.store, "compare")
        rows, left_out = compare_studies(one, other, split)
    else:
        raise UserError("compare takes two systems of a study, or two studies", found=others)
    for task, why in left_out.items():
        print(f"{task} is left out: {why}", file=sys.stderr)
    if as_json:
        print_rows(rows)
    else:
        terminal.show_estimates(terminal.console(), rows, f"{one.study.name}, {split}")
        for study in [one] if len(others) == 2 else [one, other]:
            terminal.show_training(terminal.console(), study)
    if no_worse_than is not None and (left_out or not one.holds(rows, -no_worse_than)):
        print(f"gate not met: not shown to be within {no_worse_than} everywhere", file=sys.stderr)
        raise typer.Exit(3)


@app.command(name="open", rich_help_panel="Read")
def open_page(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
) -> None:
    """Write the report and open it in a browser. Next: mixtune compare."""
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, derived.store, "open")
    path = derived.report(split)
    print(terminal.printable(path))
    if not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be started: open the file yourself", file=sys.stderr)


def _show_end(derived: Derived, look: str, page: Path) -> None:
    """The table at the end of a run, and where to look further."""
    out = terminal.console()
    terminal.show_summary(out, derived, "validation")
    remote.show_api_systems(out, derived, "validation")
    remote.show_spent(out, derived.store)
    out.print(f"every system, metric and interval: {look}", soft_wrap=True, markup=False)
    out.print(f"report: {page}", soft_wrap=True, markup=False)


def _todo(store: Store, planner: Planner, made: Plan) -> int:
    """Units that a run would do; refused where the run would be."""
    content = {"content": content_of(planner)}
    return store.preview(made.rows(), dump_study(planner.study), content)


def _heavy(name: str) -> Callable[..., list[RunPlan]]:
    """What trains or answers, by its module's name; torch is loaded for these verbs only."""
    try:
        module = importlib.import_module(f"mixtune.execution.{name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"training needs a package that is not installed: {error.name}",
            remedy="pip install 'mixtune[train]'",
        ) from error
    found: Callable[..., list[RunPlan]] = getattr(module, _ENTRY[name])
    return found


_ENTRY = {"start": "run_study", "brought": "evaluate"}


def _gate(text: str, tasks: Sequence[str]) -> tuple[str, float, str]:
    """TASK=VALUE as task, value and text."""
    task, equals, value = text.partition("=")
    try:
        least = float(value)
    except ValueError:
        least = math.nan
    if not equals or task not in tasks or not math.isfinite(least):
        raise UserError(
            "not a gate", found=text, wanted=f"TASK=VALUE, TASK one of {', '.join(tasks)}"
        )
    return task, least, text


def _main(derived: Derived, rows: Sequence[Result], task: str) -> float:
    """A system's main metric in the task's main form."""
    wanted = derived.tasks()[task]
    form = derived.main_form(wanted)
    found = [r.value for r in rows if (r.task, r.form, r.metric) == (task, form, wanted.metrics[0])]
    return found[0]
