"""Data leaks between splits, and results on the items that no training row repeats."""

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
from mixtune.datasets.leakage import NOTIONS, RUN, Notion, Overlap, Overlaps, Part, own_texts
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, UserError, shorten
from mixtune.planning.corpus import answered
from mixtune.planning.runs import canonical
from mixtune.records import Result, Split
from mixtune.results.study_results import SplitResults, StudyFacts
from mixtune.study.reading import load_study
from mixtune.study.spec import EvalSpec, Study

STRICT: tuple[Notion, ...] = ("exact", "loose", "words")
"""Choices of --fail-on; each includes those before it."""
_EARLIER: dict[str, tuple[str, ...]] = {
    "validation": ("train",),
    "test": ("train", "validation"),
}
Splits = list[tuple[str, Split]]
"""Dataset and split."""


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
        splits = _of_study(canonical(study, registry))
    else:
        registry, carve = Registry.open(map(str, task_file or ()), data_dir), EvalSpec().carve
        splits = _of_tasks(registry, task, carve) if task else _local(registry, carve, left_out)
    overlaps = _compare(registry, splits, carve, words)
    report = {"words_of_a_run": words, **_report(overlaps, examples), "left_out": left_out}
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _show(terminal.console(), report)
    notions = STRICT[: STRICT.index(fail_on) + 1] if fail_on else ()
    if any(pair[notion] for pair in report["overlaps"] for notion in notions):
        raise typer.Exit(3)


def _of_study(study: Study) -> Splits:
    """Train of its ingredients, and the splits that every system answers."""
    trained: Splits = [(name, "train") for name in study.ingredients]
    return trained + answered(study)


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
    """Read the splits and number their keys."""
    with _bar(len(splits) + len(NOTIONS)) as progress:
        parts = []
        for name, split in splits:
            progress(f"reading {name}/{split}")
            examples = registry.dataset(name, carve).split(split).examples
            parts.append(Part(name, split, own_texts(examples)))
        return Overlaps(parts, words, lambda notion: progress(f"comparing: {notion}"))


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, nothing elsewhere."""
    out = terminal.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=steps, completed=-1)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=terminal.safe(text))

        yield advance


def _report(overlaps: Overlaps, limit: int) -> dict[str, Any]:
    """Every later split against every earlier one where they have anything in common, as JSON.

    `limit`: pairs of ids listed as examples for each pair of splits and notion.
    """
    parts = overlaps.parts.values()
    pairs = [
        overlaps.between(later.name, earlier.name)
        for later, earlier in product(parts, repeat=2)
        if earlier.split in _EARLIER.get(later.split, ())
    ]

    def examples(pair: Overlap) -> dict[str, list[tuple[str, str]]]:
        notions = [notion for notion in NOTIONS if limit and getattr(pair, notion)]
        return {str(n): overlaps.pairs(n, pair.split, pair.against, limit) for n in notions}

    return {
        "records": {part.name: len(part.records) for part in parts},
        "overlaps": [{**asdict(p), "examples": examples(p)} for p in pairs if p.found],
        "repeats": [asdict(overlaps.within(part.name)) for part in parts],
    }


def _show(out: Console, report: dict[str, Any]) -> None:
    def table(title: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
        cells = [["–" if row[key] is None else row[key] for key in columns] for row in rows]
        out.print(terminal.table(title, list(columns.values()), cells))

    counts = {"split": "split", "against": "also in", "records": "records", "exact": "exact"}
    counts |= {"loose": "loose", "words": f"{report['words_of_a_run']} words", "group": "group"}
    counts |= {"relabelled": "other answer", "repeated_by": "dropped there"}
    table("Records of a split that an earlier one has", counts, report["overlaps"])
    repeats = {key: key for key in ("split", "records", "exact", "loose")}
    repeats |= {"ambiguous": "texts with several answers"}
    rows = [row for row in report["repeats"] if row["exact"] or row["loose"]]
    table("Repeats inside one split", repeats, rows)
    lines = [
        f"{notion}: {pair['split']} {shorten(first)} = {pair['against']} {shorten(second)}"
        for pair in report["overlaps"]
        for notion, ids in pair["examples"].items()
        for first, second in ids
    ]
    left_out = report["left_out"].items()
    lines += [f"left out: {shorten(f'{name}: {reason}', 300)}" for name, reason in left_out]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    records = report["records"].values()
    out.print(
        f"{sum(records):,} records in {len(records)} splits compared. exact: up to case and "
        "space; loose: letters and digits, links dropped; group: same document or page; dropped "
        "there: by a study, for an exact or loose match",
        markup=False,
    )


# ---- results on clean items ---------------------------------------------------------------------


def show_clean(facts: StudyFacts, measured: SplitResults, as_json: bool) -> None:
    """Print results on all items next to those on items that no training row repeats."""
    flagged = facts.store.read_value("flagged.json")
    clean = {_identity(row): row for row in measured.without_items(flagged)}
    rows = measured.results
    if as_json:
        both = [{**asdict(row), "clean": _clean(clean.get(_identity(row)))} for row in rows]
        print(json.dumps(both))
        return
    cells = [
        (row.task, row.form, row.metric, row.cocktail, "–" if row.seed is None else row.seed,
         *_value(row), *_value(clean.get(_identity(row))))
        for row in rows
    ]  # fmt: skip
    columns = ("task", "form", "metric", "system", "seed", "value", "95 %", "n")
    title = (
        f"{facts.study.name}, {measured.split}: all items, and those that no training row repeats"
    )
    out = terminal.console()
    out.print(terminal.table(title, (*columns, "clean", "clean 95 %", "clean n"), cells))
    terminal.show_training(out, facts)


def _identity(row: Result) -> tuple[str, ...]:
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
