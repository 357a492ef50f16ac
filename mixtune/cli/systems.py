"""The verb on what a study's systems kept of their base: probe.

The verb that chooses how strongly adapters answer: strength.

The verb on free answers: judge.

Verbs on adapters as files: merge.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mixtune.analysis.measures import BASE
from mixtune.analysis.readings import KL, PER_TOKEN, QUANTITY
from mixtune.api.ledger import Cache
from mixtune.cli import complete
from mixtune.cli import show as terminal
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
    app,
    heavy,
    look_at,
    stored_facts,
    study_of,
)
from mixtune.cli.tables import show_estimates
from mixtune.datasets.registry import Registry
from mixtune.errors import UserError
from mixtune.evaluation.judge import RUBRIC, Rubric, agreement, read_labels
from mixtune.models.base import Model
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles, cache_dir
from mixtune.planning.cells import sorted_title
from mixtune.planning.runs import RunPlan
from mixtune.planning.summary import content_of
from mixtune.planning.systems import STRENGTHS, plan_probes, plan_strengths
from mixtune.records import Estimate, Split
from mixtune.report.plots import JUDGED, verdicts
from mixtune.results.judgements import Outcome, free_answers, write_judged
from mixtune.results.retention import (
    RETENTION,
    SCORE,
    below_gate,
    choose_strengths,
    finished_probes,
    finished_strengths,
    read_strengths,
    retention_estimates,
    strength_gains,
)
from mixtune.results.study_results import StudyFacts, score_answers, score_study
from mixtune.store.files import write_text
from mixtune.store.folder import Folders, Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


@app.command(rich_help_panel="Run")
def probe(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="Only this cocktail or adapter, and the base. Repeatable."),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure what training improved or damaged outside the study's tasks.

    Scores on `probes` minus the base's; KL divergence from the base and log-likelihood of the
    gold answers and of the `general` text. Exits with 3 if a system falls below the study's
    `gate`.
    Next: mixtune report.
    """
    study = study_of(study_file, overrides, limit)
    if dry_run:
        _preview(study, data_dir, runs_dir, system or ())
        return
    with terminal.progress(terminal.console(stderr=True)) as events:
        plan = partial(plan_probes, only=system or ())
        failed = _answer_extra("probing")(study, Folders(data_dir, runs_dir), plan, events)
    facts = stored_facts(study, runs_dir, data_dir)
    probes = finished_probes(facts, study)
    with facts.store.lock():
        score_study(facts)
        score_answers(facts, probes.answers)
        rows = retention_estimates(facts, probes)
    below = below_gate(facts, study, rows)
    if as_json:
        gate = {**study.gate.model_dump(mode="json"), "below": below}
        print(json.dumps({"estimates": [asdict(row) for row in rows], "gate": gate}, indent=1))
    else:
        _show(study, rows)
    if probes.unfinished:
        terminal.complain(f"{probes.unfinished} systems are not probed to their end and left out")
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
    probes = plan_probes(study, store, Registry.of(study, data_dir), files, only)
    content = {"content": content_of(probes.planner)}
    store.preview(probes.rows, dump_study(probes.planner.study), content)
    answer_ids = [answer.id for run in probes.runs for answer in run.answers]
    todo = len(store.undone(answer_ids))
    print(
        f"{len(probes.runs)} systems, {todo} of {len(answer_ids)} sets of answers and readings "
        "to do"
    )


def _answer_extra(doing: str) -> Callable[..., list[RunPlan]]:
    """The function that answers extra units; torch is loaded here."""
    entry: Callable[..., list[RunPlan]] = heavy("execution.extra_systems", doing).answer_extra
    return entry


def _show(study: Study, rows: Sequence[Estimate]) -> None:
    """Retention per probe, then log-likelihoods of gold answers."""
    out = terminal.console()
    base = {row.target: row for row in rows if row.quantity == SCORE and row.subject == BASE}
    cells = [
        (*_names(row), row.metric, f"{base[row.target].value:.3f}", *_numbers(row))
        for row in rows
        if row.quantity == RETENTION
    ]
    scores = ("probe", "system", "seeds", "metric", "base", "minus base", "95 %", "items")
    if cells:
        out.print(terminal.table(f"{study.name}: scores on probes", scores, cells))
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


LARGEST = 8.0
"""Strength beyond which a typing error is more likely than a wish."""


@app.command(rich_help_panel="Adapters")
def strength(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    system: Annotated[
        list[str], typer.Option(help="Cocktail to select the strength of. Repeatable.")
    ],
    overrides: Overrides = None,
    strengths: Annotated[
        str, typer.Option(help="Strengths to try, the same for every cocktail; 1 is as trained.")
    ] = ",".join(map(str, STRENGTHS)),
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Select the strength (scale) of adapters on validation; with --split test, show its gain.

    The choice is stored in the study's folder, in strength.json. On test only the selected
    strength is evaluated, and compared with the adapters as trained. Next: mixtune merge.
    """
    study = study_of(study_file, overrides, limit)
    facts = stored_facts(study, runs_dir, data_dir)
    names = [sorted_title(name) for name in dict.fromkeys(system)]
    look_at(split, facts.store, "strength")
    if split == "test":
        _test(study, names, Folders(data_dir, runs_dir), as_json)
        return
    grid = _grid(strengths)
    strengths_of = {name: [s for s in grid if s != 1] for name in names}
    failed, facts = _answered(study, Folders(data_dir, runs_dir), strengths_of, "validation")
    if failed:
        raise typer.Exit(1)
    rows = choose_strengths(facts, names, grid)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    cells = [
        (row.cocktail, f"{row.strength:g}", f"{row.value:.3f}", row.seeds, "←" * row.chosen)
        for row in rows
    ]
    columns = ("cocktail", "strength", "mean of main metrics", "seeds", "chosen")
    terminal.console().print(terminal.table(f"{study.name}, validation", columns, cells))


def _test(study: Study, names: Sequence[str], folders: Folders, as_json: bool) -> None:
    """Gains of the chosen strengths on test."""
    stored = read_strengths(stored_facts(study, folders.runs, folders.data).store)
    unknown = [name for name in names if name not in stored]
    if unknown:
        raise UserError(
            "no strength was chosen yet",
            found=", ".join(unknown),
            remedy="the same command without --split test chooses it on validation",
        )
    chosen = {name: float(stored[name]["strength"]) for name in names}
    strengths_of = {name: [value] for name, value in chosen.items()}
    failed, facts = _answered(study, folders, strengths_of, "test")
    if failed:
        raise typer.Exit(1)
    rows = strength_gains(facts, chosen, "test")
    if as_json:
        print(json.dumps({"chosen": chosen, "gained": [asdict(r) for r in rows]}, indent=1))
        return
    chosen_text = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    show_estimates(terminal.console(), rows, f"{study.name}, test; chosen: {chosen_text}")


def _answered(
    study: Study,
    folders: Folders,
    strengths_of: Mapping[str, Sequence[float]],
    split: Split,
) -> tuple[list[RunPlan], StudyFacts]:
    """Answers at other strengths made and scored."""
    plan = partial(plan_strengths, strengths=strengths_of, split=split)
    answer = _answer_extra("answering")
    with terminal.progress(terminal.console(stderr=True)) as events:
        failed = answer(study, folders, plan, events)
    facts = stored_facts(study, folders.runs, folders.data)
    with facts.store.lock():
        score_study(facts)
        score_answers(facts, finished_strengths(facts))
    return failed, facts


def _grid(text: str) -> list[float]:
    """The strengths that were typed, 1 always among them."""
    try:
        values = sorted({1.0, *(float(part) for part in text.split(","))})
    except ValueError:
        values = [math.nan]
    if not all(0 <= value <= LARGEST for value in values):
        raise UserError(
            "--strengths is no list of strengths",
            found=text,
            wanted=f"numbers from 0 to {LARGEST:g} with commas between them, such as 0.5,1",
        )
    return values


@app.command(rich_help_panel="Read")
def judge(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The judge: a catalogue name, hub id or folder.",
            autocompletion=complete.models,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task to judge. Repeatable. Default: all with free answers."),
    ] = None,
    rubric: Annotated[
        str, typer.Option(help="Instructions to the judge, with their version.")
    ] = RUBRIC,
    labels: Annotated[
        Path | None,
        typer.Option(help="Labels by people as JSON lines, to validate the judge."),
    ] = None,
    again: Annotated[
        int,
        typer.Option(
            min=0, help="Answers per system that are judged twice, to measure consistency."
        ),
    ] = 20,
    to_label: Annotated[
        Path | None,
        typer.Option(help="Write answers for people to label to this file; judge nothing."),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Judge free answers with a model, with answer and reference in both orders.

    A verdict (0 wrong, 1 partly right, 2 right) counts if both orders agree.
    Next: mixtune report.
    """
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir, data_dir)
    look_at(split, facts.store, "judge")
    free = free_answers(facts, "test" if split == "test" else "validation", task or ())
    if to_label is not None:
        text = free.to_label(LABELS)
        write_text(to_label, text)
        print(terminal.printable(f"{len(text.splitlines())} answers to label: {to_label}"))
        return
    if by is None:
        raise UserError("no judge is named", wanted="a model", remedy="--by MODEL")
    people = read_labels(labels) if labels is not None else {}
    rubric_ = Rubric.load(rubric)
    judge_model = _judge(by)
    with facts.store.lock():
        outcome = free.judge(judge_model, rubric_, Cache(cache_dir() / "judge"), again)
        compared = agreement(outcome.settled, people)
        rows_ = write_judged(facts, outcome.rows, compared.summary, _agreed(outcome))
    notes = {"validation": compared.summary, "self_agreement": _agreed(outcome)}
    if as_json:
        rows = [asdict(row) for row in rows_]
        head = {"judge": by, "rubric": rubric_.id, **notes, "agreement": asdict(compared)}
        print(json.dumps({**head, "rows": rows}, indent=1))
        return
    out = terminal.console()
    title = f"{facts.study.name}, {split}: judged by {by}, rubric {rubric_.id}"
    shown = [verdicts(row, terminal.interval(row.low, row.high)) for row in rows_]
    out.print(terminal.table(title, JUDGED, shown))
    out.print(f"judge: {compared.summary}; {_agreed(outcome)}", markup=False)


LABELS = 120
"""Answers written for people to label: some more than are needed."""


def _agreed(outcome: Outcome) -> str:
    if not outcome.twice:
        return "no question was put twice"
    return f"agrees with itself on {outcome.agreed} of {outcome.twice} questions put twice"


def _judge(name: str) -> Model:
    """A model on this machine; torch is loaded here."""
    module = heavy("execution.extra_systems", "judging with a model")
    load: Callable[[str], Model] = module.local_judge
    return load(name)


@app.command(rich_help_panel="Adapters")
def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Folders of plain LoRA adapters of one base."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    weights: Annotated[
        str,
        typer.Option(
            help="One weight per adapter, such as 0.5,0.5; 1 is the adapter as trained. Default: "
            "equal weights that sum to 1."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write the exact weighted sum of adapters, or one scaled adapter, in PEFT's format.

    The rank of the sum is the sum of the ranks; nothing is approximated. Next: mixtune eval.
    """
    parts = _weights(weights, len(adapters))
    merged = heavy("engine.merge", "merging").merge(adapters, parts, out)
    if as_json:
        print(json.dumps(asdict(merged), indent=1))
        return
    rows = [(p["adapter"], p["weight"], p["rank"], p["scale"]) for p in merged.parts]
    show = terminal.console()
    title = f"{merged.folder}: rank {merged.rank} on {merged.layers} layers, for {merged.base}"
    show.print(terminal.table(title, ("adapter", "weight", "rank", "scale"), rows))


def _weights(text: str, count: int) -> list[float]:
    """The weights that were typed, one for each adapter."""
    if not text.strip():
        return [1 / count] * count
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(
            "--weights does not fit the adapters",
            found=text,
            wanted=f"{count} numbers with commas between them, such as "
            + ",".join([f"{1 / count:.3g}"] * count),
        )
    return values
