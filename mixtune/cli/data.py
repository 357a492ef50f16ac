"""Verbs on datasets: tasks, data check, data show, data leaks."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mixtune.cli.app import DataDir, Json, app, complete_files
from mixtune.cli.show import Columns, console, fields, print_json, safe, say, show
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
from mixtune.datasets.columns import Columns as Chosen
from mixtune.datasets.columns import Doubt
from mixtune.datasets.drafts import Draft, draft_task
from mixtune.datasets.leakage import NOTIONS, RUN, Notion, Overlap, Overlaps, Part, own_texts
from mixtune.datasets.registry import Registry
from mixtune.datasets.rows import is_rows
from mixtune.datasets.sources import RegisteredTask
from mixtune.datasets.user_tasks import read_task_file
from mixtune.errors import DataError, UserError, shorten
from mixtune.models.catalog import Unreachable, locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.corpus import answered
from mixtune.planning.runs import canonical
from mixtune.records import Example, Split
from mixtune.store.files import write_text
from mixtune.study.reading import load_study
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tasks.task import parse_task
from mixtune.tokens import Tokens

LONGEST_SHOWN = 2_000
"""Characters of a message that are shown."""
STRICT: tuple[Notion, ...] = ("exact", "loose", "words")
"""Choices of --fail-on; each includes those before it."""
EARLIER: dict[str, tuple[str, ...]] = {"validation": ("train",), "test": ("train", "validation")}
Splits = list[tuple[str, Split]]
"""Dataset and split."""

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
    show(rows, {key: key for key in rows[0]}, "Tasks and ingredients", as_json)


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


@data.command()
def check(  # noqa: PLR0913 - a verb's options
    file: Annotated[Path, typer.Argument(help="A task file, or a data file.")],
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this base model's tokenizer.")
    ] = None,
    data_dir: DataDir = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="TASK.yaml", help="Write a task file for a data file."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Column of a data file that the prompt shows. Repeatable."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of a data file that has the label.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Column of a data file that has an open answer.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every row of a task file or data file. Next: mixtune init STUDY.yaml."""
    builtin = Registry.open((), data_dir)
    draft = _drafted(file, write, builtin, Chosen(tuple(text or ()), label, answer))
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
        start: dict[str, object] | None = None
        if draft is not None:
            notes = {"notes": draft.notes} if draft.notes else {}
            start = {"found": draft.form, "text": draft.text, **notes}
        print_json({"start": start, "note": note, "tasks": checks}, indent=None)
    else:
        _show_checks(checks, draft, note)
        if write is not None:
            _say(f"wrote {write}")
        _say_next(write or file, checks, draft is not None and write is None)
    if any(check.problems for check in checks):
        raise typer.Exit(2)


def _drafted(file: Path, write: Path | None, builtin: Registry, chosen: Chosen) -> Draft | None:
    """The task drafted for a file of rows, written to `write` if set; None for a task file."""
    if not is_rows(file):
        if write is not None or not chosen.none:
            raise UserError(
                "--write, --text, --label and --answer are for a file of rows, and this is none",
                where=shorten(str(file), 300),
                remedy="leave them out to check a task file",
            )
        return None
    if chosen.label is not None and chosen.answer is not None:
        raise UserError(
            "a label is no open answer",
            found=chosen.arguments(),
            remedy="name the column with --label or with --answer",
        )
    if write is None:
        return _draft(file, builtin, None, chosen)
    if write.suffix not in (".yaml", ".yml") or write.exists():
        raise UserError(
            "there is a file already" if write.exists() else "a task file is YAML",
            where=shorten(str(write), 300),
            wanted="a new file that ends in .yaml",
            remedy="choose another name",
        )
    draft = _draft(file, builtin, write.parent, chosen)
    write_text(write, draft.text)
    return draft


def _draft(file: Path, builtin: Registry, folder: Path | None, chosen: Chosen) -> Draft:
    """The draft for a file of rows; on a terminal what is in doubt is asked."""
    while True:
        try:
            return draft_task(file, builtin, folder, chosen)
        except Doubt as doubt:
            if not on_terminal():
                raise
            _say(str(doubt))
            for number, option in enumerate(doubt.options, start=1):
                _say(f"{number}: {option.arguments()}")
            number = 0
            while not 1 <= number <= len(doubt.options):
                number = typer.prompt("number", type=int, err=True)
            chosen = doubt.options[number - 1]


def on_terminal() -> bool:
    """True if somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


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


def _show_checks(checks: Sequence[TaskCheck], draft: Draft | None, note: str) -> None:
    if draft is not None:
        _say(f"found: {draft.form}. A task file to start from:\n\n{draft.text}")
        for text in draft.notes:
            _say(f"note: {text}")
    for check in checks:
        for preview in check.previews:
            _show_preview(preview)
        if check.splits:
            counted = any(facts.tokens for facts in check.splits)
            title = f"{check.name}: {check.kind}, {'scored' if check.scored else 'not scored'}"
            show(check.splits, {**SPLITS, **TOKENS} if counted else SPLITS, title)
        for facts in check.splits:
            if facts.form:
                _say(f"{check.name}: {facts.split} is read as: {facts.form}")
        for text in check.notes:
            _say(f"note: {check.name}: {text}")
        for text in check.problems:
            _say(f"problem: {text}")
    _say(note)


def _spread(spread: Spread) -> str:
    return f"{spread.median:g} (95 %: {spread.p95:g}, most {spread.maximum:g})"


def _labels(facts: SplitFacts) -> str:
    return " ".join(f"{shorten(label, 40)}:{n}" for label, n in facts.labels.items()) or "open"


SPLITS: Columns = {
    "split": "split",
    "read from": lambda facts: shorten(facts.source),
    "records": "records",
    "dropped": lambda facts: sum(facts.dropped.values()),
    "examples": "examples",
    "labels": _labels,
    "characters": lambda facts: _spread(facts.prompt_characters),
    "of the answer": lambda facts: _spread(facts.answer_characters),
}
TOKENS: Columns = {"tokens": lambda facts: _spread(facts.tokens), "supervised": "supervised_tokens"}


def _say_next(file: Path, checks: Sequence[TaskCheck], unwritten: bool) -> None:
    count = sum(len(check.problems) for check in checks)
    if count:
        _say(f"{count} problem{'s' * (count > 1)}; fix and run mixtune data check again")
        return
    usable = [check for check in checks if check.splits] or checks
    scored = [check.name for check in usable if check.role == "task"] or ["TASK"]
    task_file = "TASK.yaml" if unwritten else str(file)
    command = ["mixtune", "init", "study.yaml", "--task-file", task_file]
    command += [word for name in scored for word in ("--task", name)]
    command += [word for check in usable for word in ("--ingredient", check.name)]
    first = "write the task file above with --write TASK.yaml; then " if unwritten else ""
    _say(f"good. next: {first}{shlex.join(command)}")


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
        print_json(shown)
        return
    _say(f"{dataset.task.name}: {dataset.source}")
    counts = [f"{n} dropped: {why}" for why, n in loaded.dropped.items()]
    counts += [f"read as: {loaded.form.text}"] if loaded.form else []
    counts += [f"{n} × {note}" for note, n in loaded.notes.items()]
    examples = f"{len(loaded.examples)} examples of {loaded.used} of {loaded.records} records"
    _say("; ".join([examples, *counts]))
    for preview in shown:
        _show_preview(preview)
    _say("next: name the task in a study, then mixtune plan STUDY.yaml")


def _show_preview(preview: Preview) -> None:
    _say(f"── {preview.split} {shorten(preview.id)}")
    for role, content in preview.messages:
        _say(f"{role}: {content}")
    _say(f"→ {preview.target}\n")


def _say(text: str) -> None:
    """Text that may come from data: escaped line by line, and cut."""
    if len(text) > LONGEST_SHOWN:
        text = f"{text[:LONGEST_SHOWN]}… ({len(text)} characters)"
    say("\n".join(shorten(line, LONGEST_SHOWN + 40) for line in text.split("\n")), whole=True)


# ---- leaks ---------------------------------------------------------------------------------------


@data.command()
def leaks(  # noqa: PLR0913 - a verb's options
    study_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY.yaml]",
            help="Compare the splits that a study uses.",
            autocompletion=complete_files,
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Compare only these datasets. Repeatable.")
    ] = None,
    words: Annotated[int, typer.Option(min=2, help="Length of a shared run in words.")] = RUN,
    examples: Annotated[
        int, typer.Option(min=0, help="Pairs of ids to show per pair of splits.")
    ] = 0,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="exact, loose or words: exit 3 if a match at least this strict is found."
        ),
    ] = None,
    data_dir: DataDir = None,
    task_file: TaskFiles = None,
    as_json: Json = False,
) -> None:
    """Count the records that a split shares with an earlier one. Next: mixtune plan STUDY.yaml."""
    if fail_on is not None and fail_on not in STRICT:
        raise UserError("no such match", found=fail_on, wanted=", ".join(STRICT))
    if study_file is not None and (task or task_file):
        raise UserError(
            "a study names its own datasets and task files",
            found=f"{study_file} and --task or --task-file",
            remedy="leave one of them out",
        )
    left_out: dict[str, str] = {}
    if study_file is not None:
        study = load_study(study_file)
        registry, carve = Registry.of(study, data_dir), study.evaluate.carve
        named = canonical(study, registry)
        # Train of its ingredients, and the splits that every system answers.
        splits: Splits = [(name, "train") for name in named.ingredients]
        splits += answered(named)
    else:
        registry, carve = Registry.open(map(str, task_file or ()), data_dir), EvalSpec().carve
        splits = _of_tasks(registry, task, carve) if task else _local(registry, carve, left_out)
    overlaps = _compare(registry, splits, carve, words)
    report = {"words_of_a_run": words, **_report(overlaps, examples), "left_out": left_out}
    if as_json:
        print_json(report)
    else:
        _show_leaks(report, overlaps.parts)
    notions = STRICT[: STRICT.index(fail_on) + 1] if fail_on else ()
    if any(pair[notion] for pair in report["overlaps"] for notion in notions):
        raise typer.Exit(3)


def _of_tasks(registry: Registry, names: Sequence[str], carve: float) -> Splits:
    """All splits of the named datasets.

    Raises:
        SpecError: no such task. DataError: there is no place to read it from.
    """
    own = dict.fromkeys(registry.get(name).name for name in names)
    return [(name, split) for name in own for split in registry.dataset(name, carve).splits]


def _local(registry: Registry, carve: float, left_out: dict[str, str]) -> Splits:
    """All splits of datasets on this machine, without synthetic ones.

    Others are added to `left_out`, with the reason.

    Raises:
        DataError: there is none.
    """
    splits: Splits = []
    for name in registry.names():
        if registry.get(name).synthetic:
            continue
        try:
            dataset = registry.dataset(name, carve)
            reason, available = dataset.unavailable, dataset.splits
        except DataError as error:
            reason, available = str(error).splitlines()[0], ()
        if reason is not None:
            left_out[name] = reason
        else:
            splits += [(name, split) for split in available]
    if not splits:
        raise DataError(
            "no dataset is at hand",
            found=f"{len(left_out)} that would have to be fetched",
            remedy="name the folder of datasets with --data-dir, or the datasets with --task",
        )
    return splits


def _compare(registry: Registry, splits: Splits, carve: float, words: int) -> Overlaps:
    """Read the splits and number their keys; with a bar on a terminal."""
    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=len(splits) + len(NOTIONS), completed=-1)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=safe(text))

        parts = []
        for name, split in splits:
            advance(f"reading {name}/{split}")
            examples = registry.dataset(name, carve).split(split).examples
            parts.append(Part(name, split, own_texts(examples)))
        return Overlaps(parts, words, lambda notion: advance(f"comparing: {notion}"))


def _report(overlaps: Overlaps, limit: int) -> dict[str, Any]:
    """Every later split against every earlier one where they have anything in common, as JSON.

    `limit`: pairs of ids listed as examples for each pair of splits and notion.
    """
    parts = overlaps.parts.values()
    pairs = [
        overlaps.between(later.name, earlier.name)
        for later, earlier in product(parts, repeat=2)
        if earlier.split in EARLIER.get(later.split, ())
    ]

    def examples(pair: Overlap) -> dict[str, list[tuple[str, str]]]:
        notions = [notion for notion in NOTIONS if limit and getattr(pair, notion)]
        return {str(n): overlaps.pairs(n, pair.split, pair.against, limit) for n in notions}

    return {
        "records": {part.name: len(part.records) for part in parts},
        "overlaps": [{**asdict(p), "examples": examples(p)} for p in pairs if p.found],
        "repeats": [asdict(overlaps.within(part.name)) for part in parts],
    }


def _show_leaks(report: dict[str, Any], parts: Mapping[str, Part]) -> None:
    def located(split: str, record: str) -> str:
        place = next((r.place for r in parts[split].records if r.record == record), "")
        return shorten(record) + f" ({shorten(place, 300)})" * bool(place)

    counts: Columns = {
        "split": "split",
        "also in": "against",
        **fields("records exact loose"),
        f"{report['words_of_a_run']} words": "words",
        "group": "group",
        "other answer": "relabelled",
        "dropped there": "repeated_by",
    }
    show(report["overlaps"], counts, "Records of a split that an earlier one has")
    ambiguous = {"texts with several answers": "ambiguous"}
    rows = [row for row in report["repeats"] if row["exact"] or row["loose"]]
    show(rows, {**fields("split records exact loose"), **ambiguous}, "Repeats inside one split")
    lines = [
        f"{notion}: {pair['split']} {located(pair['split'], first)} = "
        f"{pair['against']} {located(pair['against'], second)}"
        for pair in report["overlaps"]
        for notion, ids in pair["examples"].items()
        for first, second in ids
    ]
    left_out = report["left_out"].items()
    lines += [f"left out: {shorten(f'{name}: {reason}', 300)}" for name, reason in left_out]
    for line in lines:
        say(line, whole=True)
    records = report["records"].values()
    say(
        f"{sum(records):,} records in {len(records)} splits compared. exact: up to case and "
        "space; loose: up to punctuation and quotes too; group: same document or page; dropped "
        "there: by a study, for an exact or loose match"
    )
