"""Verbs on datasets: tasks, data check, data show."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from mixtune.cli import show as terminal
from mixtune.cli.app import DataDir, Json, app, print_rows, show
from mixtune.datasets.check import (
    CountTokens,
    Limit,
    Preview,
    SplitFacts,
    Spread,
    TaskCheck,
    TokenCount,
    check_task,
    previews,
)
from mixtune.datasets.registry import LoadedSplit, Registry
from mixtune.datasets.rows import is_rows
from mixtune.datasets.sources import RegisteredTask
from mixtune.datasets.user_tasks import Draft, draft_task, read_task_file
from mixtune.errors import UserError, shorten
from mixtune.models.catalog import Unreachable, locate
from mixtune.models.files import BaseModelFiles
from mixtune.records import Example, Split
from mixtune.store.files import write_text
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tasks.task import parse_task
from mixtune.tokens import Tokens

LONGEST_SHOWN = 2_000
"""Characters of a message that are shown."""

data = typer.Typer(help="Look at datasets before they are trained on.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel="Prepare")

TaskFiles = Annotated[
    list[Path] | None,
    typer.Option("--task-file", help="File with your own tasks. Repeatable."),
]


@app.command(rich_help_panel="Prepare")
def tasks(data_dir: DataDir = None, task_file: TaskFiles = None, as_json: Json = False) -> None:
    """List tasks and ingredients. Next: mixtune data show TASK."""
    registry = Registry.open(map(str, task_file or ()), data_dir)
    rows = [_task_row(registry, name) for name in registry.names()]
    show(rows, as_json, "Tasks and ingredients")


@data.command()
def check(
    file: Annotated[Path, typer.Argument(help="A task file, or a data file.")],
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this base model's tokenizer.")
    ] = None,
    data_dir: DataDir = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="TASK.yaml", help="Write a task file for a data file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every row of a task file or data file. Next: mixtune init STUDY.yaml."""
    builtin = Registry.open((), data_dir)
    draft = _drafted(file, write, builtin)
    if draft is None:
        registered = read_task_file(file)
    else:
        origin = f"the task made for {shorten(file.name)}"
        folder = file.parent if write is None else write.parent
        registered = [RegisteredTask(parse_task(draft.text, origin, folder), origin)]
    registry, names = builtin.with_tasks(registered), [row.task.name for row in registered]
    count, note = _counter(model)
    limit = None if count is None else Limit(TrainSpec().max_length, count)
    checks = [check_task(registry, name, EvalSpec().carve, limit) for name in names]
    if as_json:
        start = None if draft is None else {"found": draft.form, "text": draft.text}
        print(json.dumps({"start": start, "note": note, "tasks": [asdict(c) for c in checks]}))
    else:
        _show_checks(terminal.console(), checks, draft, note)
        if write is not None:
            _say(terminal.console(), f"wrote {write}")
        _next(write or file, checks, draft is not None and write is None)
    if any(check.problems for check in checks):
        raise typer.Exit(2)


@data.command("show")
def show_data(
    task: Annotated[str, typer.Argument(help="A task or ingredient; mixtune tasks lists them.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Number of examples.")] = 5,
    data_dir: DataDir = None,
    task_file: TaskFiles = None,
    as_json: Json = False,
) -> None:
    """Show examples of a task as a model gets them. Next: mixtune plan STUDY.yaml."""
    if split not in get_args(Split):
        raise UserError("no such split", found=split, wanted="train, validation or test")
    registry = Registry.open(map(str, task_file or ()), data_dir)
    dataset = registry.dataset(task, EvalSpec().carve)
    loaded = dataset.split(cast(Split, split))
    shown = previews(loaded.examples[:rows])
    if as_json:
        print_rows(shown)
        return
    out = terminal.console()
    _say(out, f"{dataset.task.name}: {dataset.source}")
    _say(out, _counts(loaded))
    for preview in shown:
        _show_preview(out, preview)
    _say(out, "next: name the task in a study, then mixtune plan STUDY.yaml")


def _counts(loaded: LoadedSplit) -> str:
    """Counts of a split's examples and records in one line."""
    counts = [f"{n} dropped: {why}" for why, n in loaded.dropped.items()]
    counts += [f"{n} × {note}" for note, n in loaded.notes.items()]
    examples = f"{len(loaded.examples)} examples of {loaded.used} of {loaded.records} records"
    return "; ".join([examples, *counts])


def _task_row(registry: Registry, name: str) -> dict[str, Any]:
    """One line of `mixtune tasks`."""
    task = registry.get(name)
    roles = [role for role in ("scored", "trainable") if getattr(task, role)]
    answer = "/".join(task.labels) if len(task.labels) <= 4 else f"{len(task.labels)} labels"
    return {
        "name": name,
        "title": shorten(task.title),
        "role": task.role,
        "roles": ", ".join(roles),
        "answer": shorten(answer),
        "metrics": ", ".join(task.metrics),
        "licence": shorten(task.licence),
        "from": Path(registry.origin_of(name)).name,
    }


def _drafted(file: Path, write: Path | None, builtin: Registry) -> Draft | None:
    """The task drafted for a file of rows, written to `write` if set; None for a task file."""
    if not is_rows(file):
        if write is not None:
            raise UserError(
                "--write is for a file of rows, and this is none",
                where=shorten(str(file), 300),
                remedy="leave --write out to check a task file",
            )
        return None
    if write is None:
        return draft_task(file, builtin)
    if write.suffix not in (".yaml", ".yml") or write.exists():
        raise UserError(
            "there is a file already" if write.exists() else "a task file is YAML",
            where=shorten(str(write), 300),
            wanted="a new file that ends in .yaml",
            remedy="choose another name",
        )
    draft = draft_task(file, builtin, write.parent)
    write_text(write, draft.text)
    return draft


def _counter(model: str | None) -> tuple[CountTokens | None, str]:
    """The function that counts tokens, if any, and a note on whose tokens they are."""
    if model is None:
        return None, "tokens were not counted; --model NAME names a base model"
    try:
        files = locate(model, download=False)
    except Unreachable as error:
        return None, f"tokens were not counted: {str(error).splitlines()[0]}"
    if not isinstance(files, BaseModelFiles):
        return None, f"tokens were not counted: {model} is prepared by the first mixtune run"
    tokens = Tokens.load(files.folder)

    def count(example: Example) -> TokenCount:
        prompt, answer = tokens.prompt_ids(example.messages), tokens.answer_ids(example.target)
        return TokenCount(len(prompt), len(answer))

    return count, f"tokens are those of {model}"


def _show_checks(out: Console, checks: list[TaskCheck], draft: Draft | None, note: str) -> None:
    if draft is not None:
        _say(out, f"found: {draft.form}. A task file to start from:\n\n{draft.text}")
    for check in checks:
        for preview in check.previews:
            _show_preview(out, preview)
        if check.splits:
            rows = [_split_row(facts) for facts in check.splits]
            title = f"{check.name}: {check.kind}, {'scored' if check.scored else 'not scored'}"
            cells = [list(row.values()) for row in rows]
            out.print(terminal.table(title, list(rows[0]), cells))
        for text in check.notes:
            _say(out, f"note: {check.name}: {text}")
        for text in check.problems:
            _say(out, f"problem: {text}")
    _say(out, note)


def _split_row(facts: SplitFacts) -> dict[str, object]:
    labels = " ".join(f"{shorten(label, 40)}:{n}" for label, n in facts.labels.items())
    row: dict[str, object] = {
        "split": facts.split,
        "read from": shorten(facts.source),
        "records": facts.records,
        "dropped": sum(facts.dropped.values()),
        "examples": facts.examples,
        "labels": labels or "open",
        "characters": _spread(facts.prompt_characters),
        "of the answer": _spread(facts.answer_characters),
    }
    if facts.tokens is not None:
        row |= {"tokens": _spread(facts.tokens), "supervised": facts.supervised_tokens}
    return row


def _spread(spread: Spread) -> str:
    return f"{spread.median:g} (95 %: {spread.p95:g}, most {spread.maximum:g})"


def _show_preview(out: Console, preview: Preview) -> None:
    _say(out, f"── {preview.split} {shorten(preview.id)}")
    for role, content in preview.messages:
        _say(out, f"{role}: {content}")
    _say(out, f"→ {preview.target}\n")


def _say(out: Console, text: str) -> None:
    """Text that may come from data: escaped line by line, and cut."""
    cut = (
        text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text)} characters)"
    )
    lines = (shorten(line, LONGEST_SHOWN + 40) for line in cut.split("\n"))
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def _next(file: Path, checks: list[TaskCheck], unwritten: bool) -> None:
    out = terminal.console()
    count = sum(len(check.problems) for check in checks)
    if count:
        _say(out, f"{count} problem{'s' * (count > 1)}; fix and run mixtune data check again")
        return
    usable = [check for check in checks if check.splits] or checks
    scored = [check.name for check in usable if check.role == "task"] or ["TASK"]
    task_file = "TASK.yaml" if unwritten else str(file)
    command = ["mixtune", "init", "study.yaml", "--task-file", task_file]
    command += [word for name in scored for word in ("--task", name)]
    command += [word for check in usable for word in ("--ingredient", check.name)]
    first = "write the task file above with --write TASK.yaml; then " if unwritten else ""
    _say(out, f"good. next: {first}{shlex.join(command)}")
