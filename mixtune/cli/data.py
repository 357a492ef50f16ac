"""Verbs on datasets: tasks, data check, data show."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from mixtune import terminal
from mixtune.cli.app import DataDir, Json, app, show
from mixtune.errors import UserError, shorten
from mixtune.leakage import find_leaked
from mixtune.models.catalog import BaseModelFiles, locate
from mixtune.models.hub import Unreachable
from mixtune.records import Example, Split
from mixtune.spec import EvalSpec, TrainSpec
from mixtune.tasks.check import (
    CountTokens,
    Measures,
    Preview,
    SplitFacts,
    Spread,
    TaskCheck,
    check_task,
    previews,
)
from mixtune.tasks.own import Own, read_own
from mixtune.tasks.places import ending
from mixtune.tasks.registry import Registry
from mixtune.tasks.starter import Starter, starter
from mixtune.tasks.task_file import parse_task
from mixtune.tokens import Tokens

LONGEST_SHOWN = 2_000
"""Characters of a message that are shown."""

data = typer.Typer(help="Look at datasets before they are trained on.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel="Prepare")

TaskFiles = Annotated[
    list[Path] | None,
    typer.Option("--task-file", help="A file with tasks of your own; may be given again."),
]


@app.command(rich_help_panel="Prepare")
def tasks(data_dir: DataDir = None, task_file: TaskFiles = None, as_json: Json = False) -> None:
    """List tasks and ingredients. Next: mixtune data show TASK."""
    registry = Registry.open(map(str, task_file or ()), data_dir)
    rows = [_task_row(registry, name) for name in registry.names()]
    show(rows, as_json, "Tasks and ingredients")


@data.command()
def check(
    file: Annotated[Path, typer.Argument(help="A task file, or a file of rows.")],
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this base model's tokenizer.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check every row of a task file, or of a file of rows. Next: mixtune plan STUDY.yaml."""
    made = starter(file) if _is_rows(file) else None
    registry, names = _of_file(file, made, data_dir)
    count, note = _counter(model)
    measures = Measures(EvalSpec().carve, find_leaked, count, TrainSpec().max_length)
    checks = [check_task(registry, name, measures) for name in names]
    if as_json:
        start = None if made is None else asdict(made)
        print(json.dumps({"start": start, "note": note, "tasks": [asdict(c) for c in checks]}))
    else:
        _show_checks(terminal.console(), checks, made, note)
        _next(file, checks, made)
    if any(found.problems for found in checks):
        raise typer.Exit(2)


@data.command("show")
def show_data(
    task: Annotated[str, typer.Argument(help="A task or ingredient; mixtune tasks lists them.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    data_dir: DataDir = None,
    task_file: TaskFiles = None,
    as_json: Json = False,
) -> None:
    """Show examples of a task as a model gets them. Next: mixtune plan STUDY.yaml."""
    if split not in get_args(Split):
        raise UserError("no such split", found=split, wanted="train, validation or test")
    registry = Registry.open(map(str, task_file or ()), data_dir)
    found = previews(registry, task, split, EvalSpec().carve, rows)
    if as_json:
        print(json.dumps([asdict(preview) for preview in found], indent=1))
        return
    out = terminal.console()
    _say(out, f"{registry.get(task).name}: {registry.source_of(task)}")
    for preview in found:
        _show_preview(out, preview)
    _say(out, "next: name the task in a study, then mixtune plan STUDY.yaml")


def _task_row(registry: Registry, name: str) -> dict[str, Any]:
    """One line of `mixtune tasks`."""
    task = registry.get(name)
    roles = [role for role in ("scored", "trainable") if getattr(task, role)]
    answer = "/".join(task.labels) if len(task.labels) <= 4 else f"{len(task.labels)} labels"
    return {
        "name": name,
        "title": shorten(task.title),
        "roles": ", ".join(roles),
        "answer": shorten(answer),
        "metrics": ", ".join(task.metrics),
        "licence": shorten(task.licence),
        "from": Path(registry.origin_of(name)).name,
    }


def _is_rows(file: Path) -> bool:
    """Whether a file holds rows; a .json file does if it is a list."""
    if file.suffix != ".json" or not file.is_file():
        return ending(file.name) is not None and file.suffix != ".json"
    with file.open("rb") as opened:
        return opened.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _of_file(file: Path, made: Starter | None, data_dir: Path | None) -> tuple[Registry, list[str]]:
    """A registry with the file's tasks, and their names."""
    if made is None:
        names = [own.task.name for own in read_own(file)]
        return Registry.open([str(file)], data_dir), names
    origin = f"the task made for {shorten(file.name)}"
    task = parse_task(made.text, origin, file.parent)
    return Registry([Own(task, origin)]), [task.name]


def _counter(model: str | None) -> tuple[CountTokens | None, str]:
    """What counts tokens, or a note that says why nothing does."""
    if model is None:
        return None, "tokens were not counted; --model NAME names a base model"
    try:
        files = locate(model, download=False)
    except Unreachable as error:
        return None, f"tokens were not counted: {str(error).splitlines()[0]}"
    if not isinstance(files, BaseModelFiles):
        return None, f"tokens were not counted: {model} is prepared by the first mixtune run"
    tokens = Tokens.load(files.folder)

    def count(example: Example) -> tuple[int, int]:
        return len(tokens.prompt_ids(example.messages)), len(tokens.answer_ids(example.target))

    return count, f"tokens are those of {model}"


def _show_checks(out: Console, checks: list[TaskCheck], made: Starter | None, note: str) -> None:
    if made is not None:
        _say(out, f"found: {made.found}. A task file to start from:\n\n{made.text}")
    for found in checks:
        for preview in found.previews:
            _show_preview(out, preview)
        if found.splits:
            rows = [_split_row(facts) for facts in found.splits]
            title = f"{found.name}: {found.kind}, {'scored' if found.scored else 'not scored'}"
            cells = [list(row.values()) for row in rows]
            out.print(terminal.table(title, list(rows[0]), cells))
        for text in found.notes:
            _say(out, f"note: {found.name}: {text}")
        for text in found.problems:
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


def _next(file: Path, checks: list[TaskCheck], made: Starter | None) -> None:
    out = terminal.console()
    count = sum(len(found.problems) for found in checks)
    if count:
        _say(out, f"{count} problems; mend them and run mixtune data check again")
        return
    names = ", ".join(found.name for found in checks)
    where = shorten(file.name) if made is None else "TASK.yaml"
    first = "" if made is None else "save the task file above as TASK.yaml beside the rows; "
    key = "tasks and ingredients" if any(found.scored for found in checks) else "ingredients"
    _say(
        out,
        f"good. next: {first}in a study, task_files: [{where}] and {names} under {key}; then "
        "mixtune plan STUDY.yaml",
    )
