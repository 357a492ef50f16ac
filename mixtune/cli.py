"""The command line: one function per verb; what they show is put together in terminal.py.

Exit codes: 0 good, 1 a run failed, 2 usage, configuration or data, 130 stopped by Ctrl-C.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixtune import __version__, terminal
from mixtune.derive import Derived
from mixtune.errors import MixtuneError, UserError
from mixtune.models.catalog import BaseModelFiles, locate
from mixtune.planning.plan import Plan, Planner, RunPlan
from mixtune.spec import Study, load_study, trial
from mixtune.store import Store
from mixtune.tasks.registry import Registry

app = typer.Typer(
    help="Which datasets to fine-tune on together, and whether the gain is real.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Change keys of the study, e.g. seeds=[1,2]."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="MIXTUNE_DATA_DIR", help="Folder of datasets; without it, the hub."),
]
RunsDir = Annotated[
    Path, typer.Option(envvar="MIXTUNE_RUNS_DIR", help="Where studies' results are kept.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A trial: at most so many items per task and split, and so many steps; kept apart "
        "under <name>-limit<N>.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; by default one per core, as far as memory allows."),
]
SplitName = Annotated[
    str, typer.Option(help="validation, or test: a look at test is counted and reported.")
]
RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Which datasets to fine-tune on together, and whether the gain is real."""
    if version:
        print(f"mixtune {__version__}")
        raise typer.Exit


@app.command()
def tasks(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List tasks and ingredients. Next: mixtune plan STUDY.yaml."""
    registry = Registry.builtin(data_dir)
    rows = [terminal.task_row(registry, name) for name in registry.names()]
    _show(rows, as_json, "Tasks and ingredients")


@app.command()
def plan(
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show cells, runs, ids, rows and tokens before anything is trained. Next: mixtune run."""
    study = _study(study_file, overrides, limit)
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
    study = _study(study_file, overrides, limit)
    if dry_run:
        planner, made = _plan(study, data_dir, _located(study))
        terminal.show_plan(terminal.console(), made, planner)
        return
    run_study = _heavy()
    out, again = terminal.console(), _again()
    with terminal.progress(out) as events, _stopping(again):
        store, failed = run_study(study, data_dir, runs_dir, workers, events)
    derived = Derived(store, Registry.builtin(data_dir))
    with store.lock():
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
    derived = Derived(_store(runs_dir, _study(study_file, overrides, limit)), Registry.builtin())
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
    derived = Derived(_store(runs_dir, _study(study_file, overrides, limit)), Registry.builtin())
    _look_at(split, derived.store, "results")
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
    derived = Derived(
        _store(runs_dir, _study(study_file, overrides, limit)), Registry.builtin(data_dir)
    )
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
    derived = Derived(_store(runs_dir, _study(study_file, overrides, limit)), Registry.builtin())
    if dry_run:
        print(f"would write {derived.report_path(split)}")
        return
    _look_at(split, derived.store, "report")
    print(derived.report(split))


# ---- shared ---------------------------------------------------------------------------------


def _study(path: Path, overrides: list[str] | None, limit: int | None) -> Study:
    study = load_study(path, overrides or ())
    return study if limit is None else trial(study, limit)


def _store(runs_dir: Path, study: Study) -> Store:
    return Store(runs_dir / study.name)


def _located(study: Study) -> BaseModelFiles | None:
    """The base model's files if they are ready; a plan can be shown without them."""
    found = locate(study.model, download=False)
    return found if isinstance(found, BaseModelFiles) else None


def _plan(
    study: Study, data_dir: Path | None, files: BaseModelFiles | None
) -> tuple[Planner, Plan]:
    planner = Planner(study, Registry.builtin(data_dir), files)
    return planner, planner.plan()


def _look_at(split: str, store: Store, command: str) -> None:
    """Count a look at test scores; refuse an unknown split."""
    if split not in ("validation", "test"):
        raise UserError("no such split", found=split, wanted="validation or test")
    if split == "test":
        store.require()
        looks = store.count_test_read(command)
        print(f"test scores of this study were looked at {looks} times", file=sys.stderr)


def _show(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = list(rows[0]) if rows else []
    cells = [[row[name] for name in columns] for row in rows]
    terminal.console().print(terminal.table(title, columns, cells))


@contextmanager
def _stopping(again: str) -> Iterator[None]:
    """Ctrl-C ends between two units of work's writes; what is finished is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; finished work is kept. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _again() -> str:
    """The command as it was typed."""
    return shlex.join(["mixtune", *sys.argv[1:]])


def _heavy() -> Callable[..., tuple[Store, list[RunPlan]]]:
    """What trains; torch is loaded for `run` only."""
    try:
        from mixtune.execution.start import run_study
    except ModuleNotFoundError as error:
        raise UserError(
            f"training needs a package that is not installed: {error.name}",
            remedy="pip install 'mixtune[train]'",
        ) from error
    return run_study


def main() -> None:
    """Entry point: user errors are printed without a traceback and exit with 2."""
    try:
        app()
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except MixtuneError as error:
        _complain(error)
        sys.exit(1)


def _complain(error: MixtuneError) -> None:
    Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
