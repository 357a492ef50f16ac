"""Verbs on a study: plan, run, status, results, score, analyze, eval, compare, report, open."""

import math
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixtune.analysis.readings import NOTE, published
from mixtune.cli import tables
from mixtune.cli.app import RUNS, Request, execute, exit_unless_met, look_at, verb
from mixtune.cli.show import complain, print_json, printable, say, show
from mixtune.errors import UserError
from mixtune.execution.portion import CHECKPOINT_EVERY, Options
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.corpus import changed_by_tasks, leak_lines, reading_lines
from mixtune.planning.outline import DOLLARS, TERAFLOPS, Rates, outline
from mixtune.planning.plan import Planner
from mixtune.planning.summary import content_of, sizes_of
from mixtune.records import Result
from mixtune.report.gather import gather
from mixtune.report.page import as_json, as_markdown, page_path, write_report
from mixtune.results.compare import compare_studies, compare_systems
from mixtune.results.questions import question_estimates
from mixtune.results.study_results import (
    StudyFacts,
    measure_split,
    score_study,
    unscored,
    write_estimates,
)
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


@verb("Run", "study_file overrides data_dir runs_dir limit * as_json")
def plan(
    request: Request,
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
) -> None:
    """Show cells, runs, ids, rows and tokens before anything is trained. Next: mixtune run."""
    studies = request.studies()
    if sketch or len(studies) > 1:
        sketch_ = outline(studies, request.registry(studies[0]), Rates(teraflops, price))
        tables.show_outline(sketch_, request.as_json)
    else:
        _plan(request, studies[0])


def _plan(request: Request, study: Study) -> None:
    """The plan of one study with its ids, as far as there are data and weights."""
    located = locate(study.model, download=False)
    files = located if isinstance(located, BaseModelFiles) else None
    store = request.folders.store(study.name)
    planner = Planner(study, request.registry(study), files, store.selection())
    planned = planner.plan()
    data = planner.leaks.data_rows()
    changed = changed_by_tasks(store, planner.study, data)
    todo = None
    if files:  # refused where the run would be
        content = {"content": content_of(planner)}
        todo = store.preview(planned.rows(), dump_study(planner.study), content, changed)
    if request.as_json:
        facts = {**tables.plan_json(planned), **sizes_of(planner), **tables.api_json(planner)}
        print_json(facts | {"data": data, "changed_by_tasks": changed, "todo": todo})
        return
    tables.show_plan(planned, planner)
    read = reading_lines(planner.corpus, data)
    for line in [*read, *leak_lines(data), *planner.leaks.first_pairs(), *changed]:
        say(line, whole=True)
    todo_text = "" if todo is None else f"{todo} of {len(planned.rows())} units of work to do; "
    say(f"{todo_text}next: mixtune run {request.study_file}")


@verb("Run", "study_file overrides data_dir runs_dir limit dry_run * as_json")
def run(
    request: Request,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Worker processes. Default: one per core, as far as memory allows."
        ),
    ] = None,
    bank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Adapters trained side by side in each process; by default one on a CPU, on a GPU "
            "as many as fit into its memory, up to 64.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds between checkpoints, from which training resumes after a kill; 0: "
            "every step.",
        ),
    ] = CHECKPOINT_EVERY,
) -> None:
    """Train and score what is missing or failed, then write the report. Next: mixtune results."""
    studies = request.studies()
    if request.dry_run:
        plan(request)
        return
    options = Options(workers, bank, checkpoint_every)
    failed, summaries = 0, []
    for study in studies:
        folders = (request.data_dir, request.runs_dir)
        failed += len(execute("run_study", "run_study", "training", study, *folders, options))
        facts = request.facts(study)
        with facts.store.lock():
            score_study(facts)
            page = write_report(facts, "validation")
        summaries.append({**tables.status_json(facts), "report": str(page)})
        if not request.as_json:
            _show_end(request, facts, page, model=len(studies) > 1)
    if request.as_json:
        print_json(summaries if len(summaries) > 1 else summaries[0])
    if failed:
        complain(f"{failed} runs are not done; the same command tries them again")
        raise typer.Exit(1)


def _show_end(request: Request, facts: StudyFacts, page: Path, model: bool) -> None:
    """The table at the end of a run, and where to look further; `model`: the study has several."""
    look = ["mixtune", "results", str(request.study_file), *(request.overrides or ())]
    look += [f"model={facts.study.model}"] if model else []
    look += ["--runs-dir", str(request.runs_dir)] if request.runs_dir != RUNS else []
    look += ["--limit", str(request.limit)] if request.limit else []
    tables.show_summary(facts, measure_split(facts, "validation"))
    tables.show_spent(facts.store)
    say(f"every system, metric and interval: {shlex.join(look)}\nreport: {page}", whole=True)


@verb("Run", "study_file overrides runs_dir limit as_json")
def status(request: Request) -> None:
    """Show the state of every run, also while another process runs it. Next: mixtune results."""
    facts_of = [request.facts(study) for study in request.studies()]
    if request.as_json:
        rows = [tables.status_json(facts) for facts in facts_of]
        print_json(rows if len(rows) > 1 else rows[0])
        return
    for facts in facts_of:
        tables.show_status(facts)


@verb("Read", "study_file overrides runs_dir split limit summary form * as_json")
def results(
    request: Request,
    summary: Annotated[
        bool, typer.Option("--summary", help="Cocktail × task on each task's main metric only.")
    ] = False,
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
) -> None:
    """Show every system × task × form × metric with interval and floor. Next: mixtune report."""
    if clean and summary:
        raise UserError("--summary and --clean are two views", remedy="leave one of them out")
    facts = request.facts()
    if published_only:
        title = f"{NOTE}: other items, prompts and scorers"
        show(published(facts.tasks), tables.PUBLISHED, title, request.as_json)
        return
    look_at(request.split, facts.store, "results")
    measured = measure_split(facts, request.split)
    if clean:
        tables.show_clean(facts, measured, request.as_json)
    elif summary and not request.as_json:
        if request.form == "all":
            raise UserError("a summary has one value for each task", found="--form all")
        tables.show_summary(facts, measured, request.form)
    else:
        synthetic = any(task.synthetic for task in facts.tasks.values())
        title = f"{facts.study.name}, {request.split}{' (synthetic data)' if synthetic else ''}"
        rows = request.in_form(measured.results, facts.study)
        show(rows, tables.RESULTS, title, request.as_json)
        if not request.as_json:
            tables.show_training(facts)


@verb("Read", "study_file overrides data_dir runs_dir limit dry_run as_json")
def score(request: Request) -> None:
    """Score stored answers with this version's parsers; needs no model. Next: mixtune results."""
    facts = request.facts()
    if request.dry_run:
        print(f"{len(unscored(facts))} sets of answers would be scored")
        return
    with facts.store.lock():
        done = score_study(facts)
    if request.as_json:
        print_json(done, indent=None)
        return
    print(f"scored {done.scored}, kept {done.kept}, not answered yet {done.unanswered}")


@verb("Read", "study_file overrides runs_dir split limit dry_run * data_dir")
def report(
    request: Request,
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
) -> None:
    """Write the report, one HTML file that needs no network. Next: mixtune open."""
    facts = request.facts()
    if kind == "html" and request.dry_run:
        print(printable(f"would write {page_path(facts.store, request.split)}"))
        return
    look_at(request.split, facts.store, "report")
    if kind == "html":
        print(printable(write_report(facts, request.split, with_text)))
    else:
        render = as_markdown if kind == "md" else as_json
        print(printable(render(gather(facts, request.split, with_text))))


@verb("Read", "study_file overrides runs_dir split limit form as_json")
def analyze(request: Request) -> None:
    """Write every mean and difference with its interval as rows. Next: mixtune report."""
    facts = request.facts_for("analyze")
    measured = measure_split(facts, request.split)
    rows, path = write_estimates(facts, measured, question_estimates(facts, measured).rows)
    shown = request.in_form(rows, facts.study)
    show(shown, tables.ESTIMATES, f"{facts.study.name}, {request.split}", request.as_json)
    if not request.as_json:
        print(printable(path))


@verb("Run", "study_file system overrides * data_dir runs_dir limit as_json", name="eval")
def evaluate(
    request: Request,
    system: Annotated[
        str, typer.Argument(metavar="ADAPTER|MODEL", help="A PEFT adapter's folder, or a model.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name in tables. Default: the folder's name.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="TASK=VALUE: exit 3 unless the main metric on validation is at least VALUE."
        ),
    ] = None,
) -> None:
    """Score an external adapter or model as a system of the study. Next: mixtune compare."""
    study = request.study()
    registry = request.registry(study)
    gates = [_gate(text, [registry.get(task).name for task in study.tasks]) for text in gate or ()]
    label = name or Path(system).name or system
    answered = (study, system, label, request.folders)
    failed = execute("extra_systems", "evaluate", "training", *answered)
    facts = request.facts(study)
    with facts.store.lock():
        score_study(facts)
    measured = measure_split(facts, "validation")
    rows = [row for row in measured.results if row.cocktail == label]
    shown = rows if request.as_json else request.in_form(rows, study)
    show(shown, tables.RESULTS, f"{label}, validation", request.as_json)
    if failed:
        raise typer.Exit(1)
    exit_unless_met([text for task, least, text in gates if _main(facts, rows, task) < least])


def _gate(text: str, tasks: Sequence[str]) -> tuple[str, float, str]:
    """TASK=VALUE as task, value and text."""
    task, equals, value = text.partition("=")
    try:
        least = float(value)
    except ValueError:
        least = math.nan
    if not equals or task not in tasks or not math.isfinite(least):
        wanted = f"TASK=VALUE, TASK one of {', '.join(tasks)}"
        raise UserError("not a gate", found=text, wanted=wanted)
    return task, least, text


def _main(facts: StudyFacts, rows: Sequence[Result], task: str) -> float:
    """A system's main metric in the task's main form."""
    main = facts.main_metrics[task]
    return next(row.value for row in rows if (row.task, row.form, row.metric) == main)


@verb("Read", "study_file systems runs_dir split limit no_worse_than form as_json")
def compare(
    request: Request,
    systems: Annotated[
        list[str],
        typer.Argument(metavar="SYSTEM SYSTEM | STUDY.yaml", help="Two systems, or another study."),
    ],
    no_worse_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Exit 3 unless, on every task's main metric, the interval of the difference lies "
            "above -X.",
        ),
    ] = None,
) -> None:
    """Show the paired difference of two systems, or of two studies. Next: mixtune report."""
    facts = request.facts_for("compare")
    compared = [facts]
    if len(systems) == 2:
        comparison = compare_systems(facts, measure_split(facts, request.split), *systems)
    elif len(systems) == 1:
        reference = replace(request, study_file=Path(systems[0])).facts_for("compare")
        comparison = compare_studies(facts, reference, request.split)
        compared.append(reference)
    else:
        raise UserError("compare takes two systems of a study, or two studies", found=systems)
    for task, why in comparison.left_out.items():
        print(f"{task} is left out: {why}", file=sys.stderr)
    rows = request.in_form(comparison.rows, facts.study)
    show(rows, tables.ESTIMATES, f"{facts.study.name}, {request.split}", request.as_json)
    if not request.as_json:
        for study in compared:
            tables.show_training(study)
    if no_worse_than is not None:
        holds = comparison.holds(facts.main_metrics.values(), -no_worse_than)
        met = holds and not comparison.left_out
        exit_unless_met([] if met else [f"not shown to be within {no_worse_than} everywhere"])


@verb("Read", "study_file overrides runs_dir split limit", name="open")
def open_page(request: Request) -> None:
    """Write the report and open it in a browser. Next: mixtune compare."""
    path = write_report(request.facts_for("open"), request.split)
    print(printable(path))
    if not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be started: open the file yourself", file=sys.stderr)
