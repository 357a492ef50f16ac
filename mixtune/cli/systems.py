"""Verbs on trained systems: probe, strength, judge, merge."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mixtune.analysis.measures import BASE
from mixtune.analysis.readings import KL, PER_TOKEN, QUANTITY
from mixtune.api.ledger import Cache
from mixtune.cli.app import (
    Json,
    Request,
    app,
    base_files,
    complete_models,
    execute,
    exit_unless_met,
    heavy,
    verb,
)
from mixtune.cli.show import (
    Columns,
    complain,
    fields,
    interval,
    interval_of,
    print_json,
    printable,
    say,
    show,
    show_cells,
)
from mixtune.cli.tables import ESTIMATES
from mixtune.errors import UserError
from mixtune.evaluation.judge import RUBRIC, Rubric, agreement, read_labels
from mixtune.models.files import cache_dir
from mixtune.planning.cells import sorted_title
from mixtune.planning.summary import content_of
from mixtune.planning.systems import STRENGTHS, plan_probes, plan_strengths
from mixtune.records import Estimate, Split
from mixtune.report.plots import JUDGED, verdicts
from mixtune.results.judgements import free_answers, write_judged
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
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study

LARGEST = 8.0
"""Strength beyond which a typing error is more likely than a wish."""
LABELS = 120
"""Answers written for people to label: some more than are needed."""


@verb("Run", "study_file overrides * data_dir runs_dir limit dry_run as_json")
def probe(
    request: Request,
    system: Annotated[
        list[str] | None,
        typer.Option(help="Only this cocktail or adapter, and the base. Repeatable."),
    ] = None,
) -> None:
    """Measure what training improved or damaged outside the study's tasks.

    Scores on `probes` minus the base's; KL divergence from the base and log-likelihood of the
    gold answers and of the `general` text. Exits with 3 if a system falls below the study's
    `gate`.
    Next: mixtune report.
    """
    study = request.study()
    if request.dry_run:
        _preview(request, study, system or ())
        return
    planned = partial(plan_probes, only=system or ())
    arguments = (study, request.folders, planned)
    failed = execute("extra_systems", "answer_extra", "probing", *arguments)
    facts = request.facts(study)
    probes = finished_probes(facts, study)
    with facts.store.lock():
        score_study(facts)
        score_answers(facts, probes.answers)
        rows = retention_estimates(facts, probes)
    below = below_gate(facts, study, rows)
    if request.as_json:
        gate = {**study.gate.model_dump(mode="json"), "below": below}
        print_json({"estimates": rows, "gate": gate})
    else:
        _show_retention(study, rows)
    if probes.unfinished:
        complain(f"{probes.unfinished} systems are not probed to their end and left out")
    if failed:
        raise typer.Exit(1)
    exit_unless_met(below)


def _preview(request: Request, study: Study, only: Sequence[str]) -> None:
    """Units that are not done; refused where the probing would be."""
    store = request.folders.store(study.name)
    probes = plan_probes(study, store, request.registry(study), base_files(study), only)
    content = {"content": content_of(probes.planner)}
    store.preview(probes.rows, dump_study(probes.planner.study), content)
    ids = [answer.id for run in probes.runs for answer in run.answers]
    todo = f"{len(store.undone(ids))} of {len(ids)} sets of answers and readings to do"
    print(f"{len(probes.runs)} systems, {todo}")


def _show_retention(study: Study, rows: Sequence[Estimate]) -> None:
    """Retention per probe, then log-likelihoods of gold answers."""
    base = {row.target: row for row in rows if row.quantity == SCORE and row.subject == BASE}
    numbers: Columns = {
        "minus base": "value:+.3f",
        "95 %": lambda row: interval(row.low, row.high, "+"),
        "items": "n",
    }
    scores: Columns = {
        "probe": "target",
        "system": "subject",
        "seeds": "seeds",
        "metric": "metric",
        "base": lambda row: f"{base[row.target].value:.3f}",
        **numbers,
    }
    if retained := [row for row in rows if row.quantity == RETENTION]:
        show(retained, scores, f"{study.name}: scores on probes")
    read = [row for row in rows if row.quantity == QUANTITY and row.reference]
    apart = {(row.target, row.subject): f"{row.value:.4f}" for row in read if row.metric == KL}
    gained: Columns = {
        "gold answers": "target",
        "system": "subject",
        "seeds": "seeds",
        "KL to base": lambda row: apart[row.target, row.subject],
        **numbers,
    }
    title = f"{study.name}: divergence and log-likelihood, nats per token"
    show([row for row in read if row.metric == PER_TOKEN], gained, title)


CHOICES: Columns = {
    "cocktail": "cocktail",
    "strength": "strength:g",
    "mean of main metrics": "value:.3f",
    "seeds": "seeds",
    "chosen": lambda row: "←" * row.chosen,
}


@verb("Adapters", "study_file system overrides * data_dir runs_dir split limit as_json")
def strength(
    request: Request,
    system: Annotated[
        list[str], typer.Option(help="Cocktail to select the strength of. Repeatable.")
    ],
    strengths: Annotated[
        str, typer.Option(help="Strengths to try, the same for every cocktail; 1 is as trained.")
    ] = ",".join(map(str, STRENGTHS)),
) -> None:
    """Select the strength (scale) of adapters on validation; with --split test, show its gain.

    The choice is stored in the study's folder, in strength.json. On test only the selected
    strength is evaluated, and compared with the adapters as trained. Next: mixtune merge.
    """
    study = request.study()
    facts = request.facts_for("strength", study)
    names = [sorted_title(name) for name in dict.fromkeys(system)]
    if request.split == "test":
        _show_gains(request, study, names, read_strengths(facts.store))
        return
    grid = _grid(strengths)
    facts = _answered(request, study, {name: [s for s in grid if s != 1] for name in names})
    rows = choose_strengths(facts, names, grid)
    show(rows, CHOICES, f"{study.name}, validation", request.as_json)


def _show_gains(
    request: Request, study: Study, names: Sequence[str], stored: Mapping[str, Any]
) -> None:
    """Gains on test of the strengths that are stored as chosen."""
    if unknown := [name for name in names if name not in stored]:
        raise UserError(
            "no strength was chosen yet",
            found=", ".join(unknown),
            remedy="the same command without --split test chooses it on validation",
        )
    chosen = {name: float(stored[name]["strength"]) for name in names}
    facts = _answered(request, study, {name: [s] for name, s in chosen.items()})
    rows = strength_gains(facts, chosen, "test")
    if request.as_json:
        print_json({"chosen": chosen, "gained": rows})
        return
    chosen_text = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    show(rows, ESTIMATES, f"{facts.study.name}, test; chosen: {chosen_text}")


def _answered(
    request: Request, study: Study, strengths_of: Mapping[str, Sequence[float]]
) -> StudyFacts:
    """Answers at other strengths made and scored."""
    split: Split = "test" if request.split == "test" else "validation"
    planned = partial(plan_strengths, strengths=strengths_of, split=split)
    arguments = (study, request.folders, planned)
    failed = execute("extra_systems", "answer_extra", "answering", *arguments)
    facts = request.facts(study)
    with facts.store.lock():
        score_study(facts)
        score_answers(facts, finished_strengths(facts))
    if failed:
        raise typer.Exit(1)
    return facts


def _grid(text: str) -> list[float]:
    """The strengths that were typed, 1 always among them."""
    values = sorted({1.0, *_numbers(text)})
    if not all(0 <= value <= LARGEST for value in values):
        raise UserError(
            "--strengths is no list of strengths",
            found=text,
            wanted=f"numbers from 0 to {LARGEST:g} with commas between them, such as 0.5,1",
        )
    return values


def _numbers(text: str) -> list[float]:
    """Numbers with commas between them; a single NaN where there is anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return [math.nan]


@verb("Read", "study_file overrides * data_dir runs_dir split limit as_json")
def judge(  # noqa: PLR0913 - a verb's options
    request: Request,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The judge: a catalogue name, hub id or folder.",
            autocompletion=complete_models,
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
) -> None:
    """Judge free answers with a model, with answer and reference in both orders.

    A verdict (0 wrong, 1 partly right, 2 right) counts if both orders agree.
    Next: mixtune report.
    """
    facts = request.facts_for("judge")
    free = free_answers(facts, "test" if request.split == "test" else "validation", task or ())
    if to_label is not None:
        text = free.to_label(LABELS)
        write_text(to_label, text)
        print(printable(f"{len(text.splitlines())} answers to label: {to_label}"))
        return
    if by is None:
        raise UserError("no judge is named", wanted="a model", remedy="--by MODEL")
    people = read_labels(labels) if labels is not None else {}
    rubric_ = Rubric.load(rubric)
    judge_model = heavy("execution.extra_systems", "judging with a model").local_judge(by)
    with facts.store.lock():
        outcome = free.judge(judge_model, rubric_, Cache(cache_dir() / "judge"), again)
        compared = agreement(outcome.settled, people)
        agreed = "no question was put twice"
        if outcome.twice:
            agreed = (
                f"agrees with itself on {outcome.agreed} of {outcome.twice} questions put twice"
            )
        rows = write_judged(facts, outcome.rows, compared.summary, agreed)
    if request.as_json:
        notes = {"validation": compared.summary, "self_agreement": agreed, "agreement": compared}
        print_json({"judge": by, "rubric": rubric_.id, **notes, "rows": rows})
        return
    title = f"{facts.study.name}, {request.split}: judged by {by}, rubric {rubric_.id}"
    show_cells(title, JUDGED, [verdicts(row, interval_of(row)) for row in rows])
    say(f"judge: {compared.summary}; {agreed}")


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
        print_json(merged)
        return
    columns = fields("adapter weight rank scale")
    title = f"{merged.folder}: rank {merged.rank} on {merged.layers} layers, for {merged.base}"
    show(merged.parts, columns, title)


def _weights(text: str, count: int) -> list[float]:
    """The weights that were typed, one for each adapter."""
    if not text.strip():
        return [1 / count] * count
    values = _numbers(text)
    if len(values) != count or not all(map(math.isfinite, values)):
        example = ",".join([f"{1 / count:.3g}"] * count)
        raise UserError(
            "--weights does not fit the adapters",
            found=text,
            wanted=f"{count} numbers with commas between them, such as {example}",
        )
    return values
