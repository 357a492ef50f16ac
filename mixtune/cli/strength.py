"""The verb that chooses how strongly adapters answer: strength."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
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
from mixtune.cli.tables import show_estimates
from mixtune.derive import Derived
from mixtune.errors import UserError
from mixtune.planning.runs import RunPlan
from mixtune.planning.strengths import GRID
from mixtune.spec import Study
from mixtune.strength import Strengths

LARGEST = 8.0
"""Strength beyond which a typing error is more likely than a wish."""


@app.command(rich_help_panel="Adapters")
def strength(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    system: Annotated[
        list[str], typer.Option(help="A cocktail to choose the strength of. Repeatable.")
    ],
    overrides: Overrides = None,
    strengths: Annotated[
        str, typer.Option(help="Strengths to try, the same for every cocktail; 1 is as trained.")
    ] = ",".join(map(str, GRID)),
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Choose on validation how strongly adapters answer; with --split test, say what it gains.

    The choice is kept in the study's folder, in strength.json. On test only what was chosen is
    answered, and held against the adapters as they were trained. Next: mixtune merge.
    """
    study = study_of(study_file, overrides, limit)
    derived = derived_of(study, runs_dir, data_dir)
    names = ["+".join(sorted(name.split("+"))) for name in dict.fromkeys(system)]
    look_at(split, derived.store, "strength")
    if split == "test":
        _test(study, names, (data_dir, runs_dir), as_json)
        return
    grid = _grid(strengths)
    wanted = {name: [s for s in grid if s != 1] for name in names}
    failed, found = _answered(study, (data_dir, runs_dir), wanted, "validation")
    if failed:
        raise typer.Exit(1)
    rows = found.choose(names, grid)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    cells = [
        (row.cocktail, f"{row.strength:g}", f"{row.value:.3f}", row.seeds, "←" * row.chosen)
        for row in rows
    ]
    columns = ("cocktail", "strength", "mean of main metrics", "seeds", "chosen")
    terminal.console().print(terminal.table(f"{study.name}, validation", columns, cells))


def _test(
    study: Study, names: Sequence[str], folders: tuple[Path | None, Path], as_json: bool
) -> None:
    """What the chosen strengths gain on test."""
    kept = Strengths(derived_of(study, folders[1], folders[0])).chosen()
    unknown = [name for name in names if name not in kept]
    if unknown:
        raise UserError(
            "no strength was chosen yet",
            found=", ".join(unknown),
            remedy="the same command without --split test chooses it on validation",
        )
    chosen = {name: float(kept[name]["strength"]) for name in names}
    wanted = {name: [value] for name, value in chosen.items()}
    failed, found = _answered(study, folders, wanted, "test")
    if failed:
        raise typer.Exit(1)
    rows = found.gained(chosen, "test")
    if as_json:
        print(json.dumps({"chosen": chosen, "gained": [asdict(r) for r in rows]}, indent=1))
        return
    said = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    show_estimates(terminal.console(), rows, f"{study.name}, test; chosen: {said}")


def _answered(
    study: Study,
    folders: tuple[Path | None, Path],
    wanted: Mapping[str, Sequence[float]],
    split: str,
) -> tuple[list[RunPlan], Strengths]:
    """Answers at other strengths made and scored."""
    run: Callable[..., list[RunPlan]] = heavy("execution.aside", "answering").strengths
    with terminal.progress(terminal.console(stderr=True)) as events:
        failed = run(study, folders, wanted, split, events)
    derived: Derived = derived_of(study, folders[1], folders[0])
    found = Strengths(derived)
    with derived.store.lock():
        derived.score()
        found.score()
    return failed, found


def _grid(text: str) -> list[float]:
    """The strengths that were typed, 1 always among them."""
    try:
        found = sorted({1.0, *(float(part) for part in text.split(","))})
    except ValueError:
        found = [math.nan]
    if not all(0 <= value <= LARGEST for value in found):
        raise UserError(
            "--strengths is no list of strengths",
            found=text,
            wanted=f"numbers from 0 to {LARGEST:g} with commas between them, such as 0.5,1",
        )
    return found
