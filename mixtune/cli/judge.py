"""The verb on free answers: judge."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
from mixtune.cli import complete
from mixtune.cli.app import (
    RUNS,
    DataDir,
    Json,
    Limit,
    Overrides,
    RunsDir,
    SplitName,
    StudyFile,
    app,
    derived_of,
    heavy,
    look_at,
    study_of,
)
from mixtune.durable import write_whole
from mixtune.errors import UserError
from mixtune.evaluation.judge import RUBRIC, Cache, Rubric, agreement, read_labels
from mixtune.judging import Judging, Outcome
from mixtune.models.base import Model
from mixtune.models.files import cache_dir
from mixtune.report.evidence import JUDGED, verdicts


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
        str, typer.Option(help="What the judge is asked, with its version.")
    ] = RUBRIC,
    labels: Annotated[
        Path | None,
        typer.Option(help="Labels by people as JSON lines: the judge is compared with them."),
    ] = None,
    again: Annotated[
        int,
        typer.Option(min=0, help="Answers of each system that the judge is asked about twice."),
    ] = 20,
    to_label: Annotated[
        Path | None, typer.Option(help="Write answers for people to label here; judge nothing.")
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Judge free answers with a model, in both orders; says whether it is validated.

    A verdict (0 wrong, 1 partly, 2 right) counts where it is the same in both orders.
    Next: mixtune report.
    """
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir, data_dir)
    look_at(split, derived.store, "judge")
    found = Judging(derived, "test" if split == "test" else "validation", task or ())
    if to_label is not None:
        text = found.to_label(LABELS)
        write_whole(to_label, lambda path: path.write_text(text, encoding="utf-8"))
        print(terminal.printable(f"{len(text.splitlines())} answers to label: {to_label}"))
        return
    if by is None:
        raise UserError("no judge is named", wanted="a model", remedy="--by MODEL")
    people = read_labels(labels) if labels is not None else {}
    asked = Rubric.load(rubric)
    judge_model = _judge(by)
    with derived.store.lock():
        made = found.judge(judge_model, asked, Cache(cache_dir() / "judge.sqlite"), again)
        compared = agreement(made.settled, people)
        kept = found.keep(made.rows, compared.said, _agreed(made))
    notes = {"validation": compared.said, "self_agreement": _agreed(made)}
    if as_json:
        rows = [asdict(row) for row in kept]
        facts = {"judge": by, "rubric": asked.id, **notes, "agreement": asdict(compared)}
        print(json.dumps({**facts, "rows": rows}, indent=1))
        return
    out = terminal.console()
    title = f"{derived.study.name}, {split}: judged by {by}, rubric {asked.id}"
    shown = [verdicts(row, terminal.interval(row.low, row.high)) for row in kept]
    out.print(terminal.table(title, JUDGED, shown))
    out.print(f"judge: {compared.said}; {_agreed(made)}", markup=False)


LABELS = 120
"""Answers written for people to label: some more than are needed."""


def _agreed(made: Outcome) -> str:
    if not made.twice:
        return "no question was put twice"
    return f"agrees with itself on {made.agreed} of {made.twice} questions put twice"


def _judge(name: str) -> Model:
    """A model on this machine; torch is loaded here."""
    module = heavy("execution.judging", "judging with a model")
    found: Callable[[str], Model] = module.local_judge
    return found(name)
