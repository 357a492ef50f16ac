"""Verbs on a study: plan, run, status, results, score, analyze, eval, compare, report, open."""

import json
import math
import shlex
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixtune.analysis.readings import published
from mixtune.cli import remote
from mixtune.cli import show as terminal
from mixtune.cli.app import (
    RUNS,
    Bank,
    CheckpointEvery,
    DataDir,
    DryRun,
    FormChoice,
    Json,
    Limit,
    Overrides,
    RunsDir,
    SplitName,
    StudyFile,
    Workers,
    app,
    heavy,
    in_form,
    look_at,
    print_rows,
    stored_facts,
    studies_of,
    study_of,
)
from mixtune.cli.leaks import show_clean
from mixtune.cli.tables import outline_json, show_estimates, show_outline
from mixtune.datasets.registry import Registry
from mixtune.errors import UserError
from mixtune.execution.portion import CHECKPOINT_EVERY, Options
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.corpus import changed_by_tasks, leak_lines
from mixtune.planning.outline import DOLLARS, TERAFLOPS, Rates, outline
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.planning.summary import content_of, sizes_of
from mixtune.records import Result
from mixtune.report.gather import gather
from mixtune.report.page import as_json, as_markdown, page_path, write_report
from mixtune.results.compare import Comparison, compare_studies, compare_systems
from mixtune.results.questions import question_estimates
from mixtune.results.study_results import (
    StudyFacts,
    measure_split,
    score_study,
    unscored,
    write_estimates,
)
from mixtune.store.folder import Folders, Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


@app.command(rich_help_panel="Run")
def plan(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    sketch: Annotated[
        bool,
        typer.Option(
            "--outline",
            help="Rows, tokens, hours and cost without ids: needs neither data nor weights.  "
            "Always used for a study of several base models.",
        ),
    ] = False,
    teraflops: Annotated[
        float,
        typer.Option("--gpu-tflops", min=0.1, help="For an outline: achieved TFLOP/s of a GPU."),
    ] = TERAFLOPS,
    price: Annotated[
        float, typer.Option("--gpu-price", min=0, help="For an outline: USD per GPU hour.")
    ] = DOLLARS,
    as_json: Json = False,
) -> None:
    """Show cells, runs, ids, rows and tokens before anything is trained. Next: mixtune run."""
    studies = studies_of(study_file, overrides, limit)
    if sketch or len(studies) > 1:
        registry = Registry.of(studies[0], data_dir)
        sketch_ = outline(studies, registry, Rates(teraflops, price))
        if as_json:
            print(json.dumps(outline_json(sketch_), indent=1))
        else:
            show_outline(terminal.console(), sketch_)
        return
    _plan(study_file, studies[0], Folders(data_dir, runs_dir), as_json)


def _plan(study_file: Path, study: Study, folders: Folders, as_json: bool) -> None:
    """The plan of one study with its ids, as far as there are data and weights."""
    located = locate(study.model, download=False)
    files = located if isinstance(located, BaseModelFiles) else None
    store = folders.store(study.name)
    planner = Planner(study, Registry.of(study, folders.data), files, store.selection())
    planned = planner.plan()
    data = planner.leaks.data_rows()
    changed = changed_by_tasks(store, planner.study, data)
    todo = _todo(store, planner, planned, changed) if files else None
    if as_json:
        facts = {**sizes_of(planner), **remote.api_json(planner)}
        facts |= {"data": data, "changed_by_tasks": changed}
        print(json.dumps({**terminal.plan_json(planned), **facts, "todo": todo}, indent=1))
        return
    out = terminal.console()
    terminal.show_plan(out, planned, planner)
    remote.show_api_plan(out, planner)
    for line in [*leak_lines(data), *changed]:
        out.print(line, markup=False, soft_wrap=True)
    todo_text = "" if todo is None else f"{todo} of {len(planned.rows())} units of work to do; "
    out.print(f"{todo_text}next: mixtune run {study_file}", markup=False)


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
    studies = studies_of(study_file, overrides, limit)
    if dry_run:
        plan(study_file, overrides, data_dir, runs_dir, limit, as_json=as_json)
        return
    run_study = _heavy("run_study")
    options = Options(workers, bank, checkpoint_every)
    failed, summaries = 0, []
    for study in studies:
        with terminal.progress(terminal.console(stderr=True)) as events:
            failed += len(run_study(study, data_dir, runs_dir, options, events))
        facts = stored_facts(study, runs_dir, data_dir)
        with facts.store.lock():
            score_study(facts)
            page = write_report(facts, "validation")
        summaries.append({**terminal.status_json(facts), "report": str(page)})
        if not as_json:
            look = ["mixtune", "results", str(study_file), *(overrides or ())]
            look += [f"model={study.model}"] if len(studies) > 1 else []
            look += ["--runs-dir", str(runs_dir)] if runs_dir != RUNS else []
            look += ["--limit", str(limit)] if limit else []
            _show_end(facts, shlex.join(look), page)
    if as_json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0], indent=1))
    if failed:
        terminal.complain(f"{failed} runs are not done; the same command tries them again")
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
    studies = studies_of(study_file, overrides, limit)
    studies_facts = [stored_facts(study, runs_dir) for study in studies]
    if as_json:
        rows = [terminal.status_json(facts) for facts in studies_facts]
        print(json.dumps(rows if len(rows) > 1 else rows[0], indent=1))
        return
    for facts in studies_facts:
        terminal.show_status(terminal.console(), facts)
        remote.show_spent(terminal.console(), facts.store)


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
    form: FormChoice = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean", help="Add the score on clean items, which share no text with a training row."
        ),
    ] = False,
    published_only: Annotated[
        bool,
        typer.Option(
            "--published", help="Only published figures on these tasks; not measured here."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every system × task × form × metric with interval and floor. Next: mixtune report."""
    if clean and summary:
        raise UserError("--summary and --clean are two views", remedy="leave one of them out")
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir)
    if published_only:
        figures = published(facts.tasks)
        if as_json:
            print_rows(figures)
        else:
            remote.show_published(terminal.console(), figures)
        return
    look_at(split, facts.store, "results")
    measured = measure_split(facts, split)
    if clean:
        show_clean(facts, measured, as_json)
        return
    if as_json:
        print_rows(in_form(measured.results, form or "all", facts.study))
        return
    if not summary:
        rows = in_form(measured.results, form, facts.study)
        terminal.show_results(terminal.console(), facts, rows, split)
        return
    if form == "all":
        raise UserError("a summary has one value for each task", found="--form all")
    terminal.show_summary(terminal.console(), facts, measured, form)
    remote.show_api_systems(terminal.console(), facts, measured)


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
    """Score stored answers with this version's parsers; needs no model. Next: mixtune results."""
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir, data_dir)
    if dry_run:
        print(f"{len(unscored(facts))} sets of answers would be scored")
        return
    with facts.store.lock():
        done = score_study(facts)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(f"scored {done.scored}, kept {done.kept}, not answered yet {done.unanswered}")


@app.command(rich_help_panel="Read")
def report(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    dry_run: DryRun = False,
    kind: Annotated[
        Literal["html", "md", "json"],
        typer.Option("--format", help="md and json print the report's numbers, without figures."),
    ] = "html",
    with_text: Annotated[
        bool,
        typer.Option(
            "--with-text",
            help="Add items on which two systems disagree, up to 20 per pair: dataset text.",
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Write the report, one HTML file that needs no network. Next: mixtune open."""
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir, data_dir)
    if kind != "html":
        look_at(split, facts.store, "report")
        render = as_markdown if kind == "md" else as_json
        print(terminal.printable(render(gather(facts, split, with_text))))
        return
    if dry_run:
        print(terminal.printable(f"would write {page_path(facts.store, split)}"))
        return
    look_at(split, facts.store, "report")
    print(terminal.printable(write_report(facts, split, with_text)))


@app.command(rich_help_panel="Read")
def analyze(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    form: FormChoice = None,
    as_json: Json = False,
) -> None:
    """Write every mean and difference with its interval as rows. Next: mixtune report."""
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, facts.store, "analyze")
    measured = measure_split(facts, split)
    rows, path = write_estimates(facts, measured, question_estimates(facts, measured).rows)
    if as_json:
        print_rows(in_form(rows, form or "all", facts.study))
        return
    shown = in_form(rows, form, facts.study)
    show_estimates(terminal.console(), shown, f"{facts.study.name}, {split}")
    print(terminal.printable(path))


@app.command(name="eval", rich_help_panel="Run")
def evaluate(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    system: Annotated[
        str, typer.Argument(metavar="ADAPTER|MODEL", help="A PEFT adapter's folder, or a model.")
    ],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Name in tables. Default: the folder's name.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="TASK=VALUE: exit 3 unless the main metric on validation is at least VALUE."
        ),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Score an external adapter or model as a system of the study. Next: mixtune compare."""
    study = study_of(study_file, overrides, limit)
    registry = Registry.of(study, data_dir)
    gates = [_gate(text, [registry.get(task).name for task in study.tasks]) for text in gate or ()]
    answer_external = _heavy("extra_systems")
    label = name or Path(system).name or system
    with terminal.progress(terminal.console(stderr=True)) as events:
        failed = answer_external(study, system, label, Folders(data_dir, runs_dir), events)
    facts = stored_facts(study, runs_dir, data_dir)
    with facts.store.lock():
        score_study(facts)
    measured = measure_split(facts, "validation")
    rows = [row for row in measured.results if row.cocktail == label]
    if as_json:
        print_rows(rows)
    else:
        shown = in_form(rows, None, study)
        terminal.show_rows(terminal.console(), shown, f"{label}, validation")
    if failed:
        raise typer.Exit(1)
    unmet = [text for task, least, text in gates if _main(facts, rows, task) < least]
    for text in unmet:
        print(terminal.printable(f"gate not met: {text}"), file=sys.stderr)
    if unmet:
        raise typer.Exit(3)


@app.command(rich_help_panel="Read")
def compare(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    systems: Annotated[
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
            help="Exit 3 unless, on every task's main metric, the interval of the difference lies "
            "above -X.",
        ),
    ] = None,
    form: FormChoice = None,
    as_json: Json = False,
) -> None:
    """Show the paired difference of two systems, or of two studies. Next: mixtune report."""
    facts = stored_facts(study_of(study_file, None, limit), runs_dir)
    look_at(split, facts.store, "compare")
    if len(systems) == 2:
        comparison = compare_systems(facts, measure_split(facts, split), systems[0], systems[1])
    elif len(systems) == 1:
        reference = stored_facts(study_of(Path(systems[0]), None, limit), runs_dir)
        look_at(split, reference.store, "compare")
        comparison = compare_studies(facts, reference, split)
    else:
        raise UserError("compare takes two systems of a study, or two studies", found=systems)
    for task, why in comparison.left_out.items():
        print(f"{task} is left out: {why}", file=sys.stderr)
    if as_json:
        print_rows(in_form(comparison.rows, form or "all", facts.study))
    else:
        shown = in_form(comparison.rows, form, facts.study)
        show_estimates(terminal.console(), shown, f"{facts.study.name}, {split}")
        for study in [facts] if len(systems) == 2 else [facts, reference]:
            terminal.show_training(terminal.console(), study)
    if no_worse_than is not None and not _no_worse(facts, comparison, no_worse_than):
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
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, facts.store, "open")
    path = write_report(facts, split)
    print(terminal.printable(path))
    if not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be started: open the file yourself", file=sys.stderr)


def _no_worse(facts: StudyFacts, comparison: Comparison, margin: float) -> bool:
    """True if nothing is left out and no difference may be below minus a margin."""
    return not comparison.left_out and comparison.holds(facts.main_metrics.values(), -margin)


def _show_end(facts: StudyFacts, look: str, page: Path) -> None:
    """The table at the end of a run, and where to look further."""
    out = terminal.console()
    measured = measure_split(facts, "validation")
    terminal.show_summary(out, facts, measured)
    remote.show_api_systems(out, facts, measured)
    remote.show_spent(out, facts.store)
    out.print(f"every system, metric and interval: {look}", soft_wrap=True, markup=False)
    out.print(f"report: {page}", soft_wrap=True, markup=False)


def _todo(store: Store, planner: Planner, planned: Plan, changed: Sequence[str]) -> int:
    """Units that a run would do; refused where the run would be."""
    content = {"content": content_of(planner)}
    return store.preview(planned.rows(), dump_study(planner.study), content, changed)


def _heavy(name: str) -> Callable[..., list[RunPlan]]:
    """The function that trains or answers, by its module; torch is loaded for these verbs only."""
    entry: Callable[..., list[RunPlan]] = getattr(
        heavy(f"execution.{name}", "training"), _ENTRY[name]
    )
    return entry


_ENTRY = {"run_study": "run_study", "extra_systems": "evaluate"}


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


def _main(facts: StudyFacts, rows: Sequence[Result], task: str) -> float:
    """A system's main metric in the task's main form."""
    main = facts.main_metrics[task]
    return next(row.value for row in rows if (row.task, row.form, row.metric) == main)
