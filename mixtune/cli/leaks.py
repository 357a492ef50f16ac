"""What splits have in common: data leaks, and results on the items that no training row repeats."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mixtune.cli import complete
from mixtune.cli import show as terminal
from mixtune.cli.app import DataDir, Json
from mixtune.cli.data import TaskFiles, data
from mixtune.datasets.overlap import NOTIONS, RUN, Notion, Overlap, Overlaps, Part
from mixtune.datasets.registry import Registry, own_texts
from mixtune.errors import DataError, UserError, shorten
from mixtune.planning.corpus import answered
from mixtune.planning.names import canonical
from mixtune.records import Result, Split
from mixtune.results.study_results import SplitResults, StudyFacts
from mixtune.study.reading import load_study
from mixtune.study.spec import EvalSpec, Study

STRICT: tuple[Notion, ...] = ("exact", "loose", "words")
"""What --fail-on takes; each holds those before it."""
_EARLIER: dict[str, tuple[str, ...]] = {
    "validation": ("train",),
    "test": ("train", "validation"),
}
Wanted = list[tuple[str, Split]]


@data.command()
def leaks(  # noqa: PLR0913 - a verb's options
    study_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY.yaml]",
            help="Compare the splits that a study uses.",
            autocompletion=complete.files,
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Compare these datasets only; may be given again.")
    ] = None,
    words: Annotated[int, typer.Option(min=2, help="Words of a shared run.")] = RUN,
    examples: Annotated[
        int, typer.Option(min=0, help="Pairs of ids to show of each pair of splits.")
    ] = 0,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="exact, loose or words: exit 3 where a match so strict or stricter is found."
        ),
    ] = None,
    data_dir: DataDir = None,
    task_file: TaskFiles = None,
    as_json: Json = False,
) -> None:
    """Count the records of a split that an earlier one has. Next: mixtune plan STUDY.yaml."""
    if fail_on is not None and fail_on not in STRICT:
        raise UserError("no such match", found=fail_on, wanted=", ".join(STRICT))
    if study_file is not None and (task or task_file):
        raise UserError(
            "a study names its own datasets and task files",
            found=f"{study_file} and --task or --task-file",
            remedy="leave one of them out",
        )
    study = None if study_file is None else load_study(study_file)
    own = map(str, task_file or ())
    registry = Registry.of(study, data_dir) if study else Registry.open(own, data_dir)
    left_out: dict[str, str] = {}
    if study is not None:
        wanted, carve = _of_study(canonical(study, registry)), study.evaluate.carve
    else:
        carve = EvalSpec().carve
        wanted = _of_tasks(registry, task, carve, left_out)
    found = _compared(registry, wanted, carve, words)
    pairs = _pairs(found)
    if as_json:
        _print(found, pairs, words, examples, left_out)
    else:
        _show(terminal.console(), found, pairs, (words, examples), left_out)
    notions = STRICT[: STRICT.index(fail_on) + 1] if fail_on else ()
    if any(getattr(pair, notion) for pair in pairs for notion in notions):
        raise typer.Exit(3)


def _of_study(study: Study) -> Wanted:
    """Train of its ingredients, and what every system answers."""
    trained: Wanted = [(name, "train") for name in study.ingredients]
    return trained + answered(study)


def _of_tasks(
    registry: Registry, names: Sequence[str] | None, carve: float, left_out: dict[str, str]
) -> Wanted:
    """All splits of the named datasets; without names, of all that are at hand.

    What is made up, or would have to be fetched, has to be named; why one is not at hand goes into
    `left_out`.

    Raises:
        SpecError: no such task. DataError: there is no place to read it from; none is at hand.
    """
    if names:
        own = dict.fromkeys(registry.get(name).name for name in names)
        return [(name, split) for name in own for split in registry.dataset(name, carve).splits]
    wanted: Wanted = []
    for name in registry.names():
        if registry.get(name).synthetic:
            continue
        try:
            dataset = registry.dataset(name, carve)
            why, splits = dataset.unavailable, dataset.splits
        except DataError as error:
            left_out[name] = str(error).splitlines()[0]
            continue
        if why is not None:
            left_out[name] = why
        else:
            wanted += [(name, split) for split in splits]
    if not wanted:
        raise DataError(
            "no dataset is at hand",
            found=f"{len(left_out)} that would have to be fetched",
            remedy="name the folder of datasets with --data-dir, or the datasets with --task",
        )
    return wanted


def _compared(registry: Registry, wanted: Wanted, carve: float, words: int) -> Overlaps:
    """The splits, read and numbered."""
    with _bar(len(wanted) + len(NOTIONS)) as note:
        parts = []
        for name, split in wanted:
            note(f"reading {name}/{split}")
            parts.append(
                Part(name, split, own_texts(registry.dataset(name, carve).examples(split)))
            )
        return Overlaps(parts, words, lambda notion: note(f"comparing: {notion}"))


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, nothing elsewhere."""
    out = terminal.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=steps, completed=-1)

        def note(text: str) -> None:
            bar.update(task, advance=1, description=terminal.safe(text))

        yield note


def _pairs(found: Overlaps) -> list[Overlap]:
    """Every later split against every earlier one, where they have anything in common."""
    made = [
        found.between(later.name, earlier.name)
        for later, earlier in product(found.parts.values(), repeat=2)
        if earlier.split in _EARLIER.get(later.split, ())
    ]
    return [pair for pair in made if pair.found]


def _examples(found: Overlaps, pair: Overlap, most: int) -> dict[str, list[tuple[str, str]]]:
    """Notion → ids of records that match, a few of each."""
    made = {
        notion: found.pairs(notion, pair.split, pair.against, most)
        for notion in NOTIONS
        if most and getattr(pair, notion)
    }
    return {str(notion): ids for notion, ids in made.items()}


def _print(
    found: Overlaps, pairs: Sequence[Overlap], words: int, most: int, left_out: dict[str, str]
) -> None:
    shown = [{**asdict(p), "examples": _examples(found, p, most)} for p in pairs]
    repeats = [asdict(found.within(name)) for name in found.parts]
    records = {name: len(part.records) for name, part in found.parts.items()}
    made = {"words_of_a_run": words, "records": records, "overlaps": shown, "repeats": repeats}
    print(json.dumps({**made, "left_out": left_out}, indent=1))


def _show(
    out: Console,
    found: Overlaps,
    pairs: Sequence[Overlap],
    asked: tuple[int, int],
    left_out: dict[str, str],
) -> None:
    words, most = asked
    columns = ("split", "also in", "records", "exact", "loose", f"{words} words", "group")
    rows = [
        (p.split, p.against, p.records, p.exact, p.loose, p.words, p.group,
         "–" if p.relabelled is None else p.relabelled,
         p.repeated_by)
        for p in pairs
    ]  # fmt: skip
    title = "Records of a split that an earlier one has"
    out.print(terminal.table(title, (*columns, "other answer", "dropped there"), rows))
    repeats = [found.within(name) for name in found.parts]
    inside = [
        (r.split, r.records, r.exact, r.loose, r.ambiguous) for r in repeats if r.exact or r.loose
    ]
    counted = ("split", "records", "exact", "loose", "texts with several answers")
    out.print(terminal.table("Repeats inside one split", counted, inside))
    for pair in pairs:
        for notion, ids in _examples(found, pair, most).items():
            for one, other in ids:
                line = f"{notion}: {pair.split} {shorten(one)} = {pair.against} {shorten(other)}"
                out.print(line, markup=False, soft_wrap=True)
    for name, why in left_out.items():
        out.print(f"left out: {shorten(f'{name}: {why}', 300)}", markup=False, soft_wrap=True)
    records = sum(len(part.records) for part in found.parts.values())
    out.print(
        f"{records:,} records in {len(found.parts)} splits compared. exact: up to case and space; "
        "loose: letters and digits, links dropped; group: same document or page; dropped there: "
        "by a study, for an exact or loose match",
        markup=False,
    )


# ---- results on clean items ---------------------------------------------------------------------


def show_clean(facts: StudyFacts, measured: SplitResults, as_json: bool) -> None:
    """Results on all items, and beside them on those that no training row repeats."""
    flagged = facts.store.read_value("flagged.json")
    clean = {_place(row): row for row in measured.without_items(flagged)}
    rows = measured.results
    if as_json:
        print(
            json.dumps([{**asdict(row), "clean": _clean(clean.get(_place(row)))} for row in rows])
        )
        return
    cells = [
        (row.task, row.form, row.metric, row.cocktail, "–" if row.seed is None else row.seed,
         *_value(row), *_value(clean.get(_place(row))))
        for row in rows
    ]  # fmt: skip
    columns = ("task", "form", "metric", "system", "seed", "value", "95 %", "n")
    title = (
        f"{facts.study.name}, {measured.split}: all items, and those that no training row repeats"
    )
    out = terminal.console()
    out.print(terminal.table(title, (*columns, "clean", "clean 95 %", "clean n"), cells))
    terminal.show_training(out, facts)


def _place(row: Result) -> tuple[str, ...]:
    return (row.system, row.task, row.form, row.metric)


def _clean(row: Result | None) -> dict[str, Any]:
    if row is None:
        return {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    return {name: getattr(row, name) for name in ("value", "low", "high", "n", "clusters")}


def _value(row: Result | None) -> tuple[object, ...]:
    if row is None:
        return ("–", "no clean item", 0)
    ends = "too few" if row.low is None else f"{row.low:.3f}, {row.high:.3f}"
    return (f"{row.value:.3f}", ends, row.n)
