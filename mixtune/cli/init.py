"""Verbs that write for people to edit: init, schema."""

import json
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixtune.cli import complete, scaffold
from mixtune.cli.app import DataDir, Json, app
from mixtune.cli.scaffold import json_schema
from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError, did_you_mean, shorten
from mixtune.models.catalog import catalogue, locate
from mixtune.models.hub import Unreachable
from mixtune.store.files import write_whole
from mixtune.study import presets
from mixtune.study.spec import Study


@app.command(rich_help_panel="Prepare")
def init(  # noqa: PLR0913 - a verb's options
    file: Annotated[
        Path,
        typer.Argument(
            metavar="[STUDY.yaml]", help="Where to write it.", autocompletion=complete.files
        ),
    ] = Path("study.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model: a catalogue name, hub id or folder. Default: smollm2-135m.",
            autocompletion=complete.models,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task to be good at. Repeatable.", autocompletion=complete.tasks),
    ] = None,
    ingredient: Annotated[
        list[str] | None,
        typer.Option(
            help="Dataset to train on, such as fpb, fpb:1600, ner*3 or 0.2*alpaca. Repeatable. "
            "Default: the tasks.",
            autocompletion=complete.tasks,
        ),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(
            help="File with tasks of your own. Repeatable.", autocompletion=complete.files
        ),
    ] = None,
    design: Annotated[
        list[str] | None,
        typer.Option(
            help="Families of cocktails, such as singles,pairs, or a cocktail, such as fpb+alpaca. "
            "Repeatable. Default: incremental.",
            autocompletion=complete.designs,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.")] = None,
    items: Annotated[
        int | None, typer.Option(help="Questions of each task and split. Default: all.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 1,2. Default: 1.")] = "",
    name: Annotated[
        str, typer.Option(help="Name of the folder of results. Default: the file's name.")
    ] = "",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Write a study that ships with the package: brief2024, finance, finance-cpu. "
            "Other options but --name do not go with it.",
            autocompletion=presets.names,
        ),
    ] = None,
    data_dir: DataDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print it; write no file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented study file: every key, its default, what it does. Next: mixtune plan."""
    if file.exists() and not (force or stdout):
        raise SpecError(
            "there is a file already",
            where=shorten(str(file), 300),
            remedy="choose another name, or replace it with --force",
        )
    if preset is not None:
        chosen = (model, task, ingredient, task_file, design, steps, items, seeds)
        _write_preset(preset, name or _name(file), None if stdout else file, any(chosen))
        return
    asked = scaffold.Asked(
        name=name or _name(file),
        model=model,
        tasks=task or (),
        ingredients=ingredient or (),
        task_files=[str(path) for path in task_file or ()],
        design=design or (),
        steps=steps,
        seeds=_seeds(seeds),
        items=items,
    )
    study = _checked(asked, data_dir)
    text = scaffold.study_text(_beside(study, file), _head(file))
    if not stdout:
        write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
    if as_json:
        print(json.dumps(study.model_dump(mode="json"), indent=1))
    elif stdout:
        print(text, end="")
    else:
        print(f"wrote {shorten(str(file), 300)}\nnext: {shorten(_next(file), 300)}")


@app.command(rich_help_panel="Prepare")
def schema(
    of: Annotated[
        Literal["study", "task"], typer.Option(help="A study file, or a file with a task.")
    ] = "study",
) -> None:
    """Print the JSON Schema of a study file or task file, for editors. Next: mixtune init."""
    print(json.dumps(json_schema(of), indent=1, ensure_ascii=False))


def _write_preset(preset: str, name: str, file: Path | None, more: bool) -> None:
    """A preset's file under a study's own name; None prints it."""
    source = presets.preset(preset)
    if source is None:
        raise SpecError(
            "no such preset", found=preset, wanted=did_you_mean(preset, presets.names())
        )
    if more:
        raise SpecError(
            "a preset is written as it is",
            where=f"--preset {preset}",
            remedy="leave out the other options and change the file, or give key=value to plan and "
            "run",
        )
    text = re.sub(r"(?m)^name: .*$", f"name: {name}", source.read_text(encoding="utf-8"), count=1)
    if file is None:
        print(text, end="")
        return
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"wrote {shorten(str(file), 300)}\nnext: {shorten(_next(file), 300)}")


def _checked(asked: scaffold.Asked, data_dir: Path | None) -> Study:
    """The study, whose tasks, ingredients and model are known here."""
    registry = Registry.open(asked.task_files, data_dir)
    own = set(registry.names()) - set(Registry.open((), data_dir).names())
    study = scaffold.draft(asked, registry, own)
    with suppress(Unreachable):  # known and not on this machine yet: `mixtune run` gets it
        locate(study.model, download=False)
    return study


def _beside(study: Study, file: Path) -> Study:
    """The study with the paths that it names as seen from the study file's folder."""

    def seen(path: str) -> str:
        return os.path.relpath(Path(path).resolve(), file.parent.resolve())

    found: dict[str, object] = {}
    if study.task_files:
        found["task_files"] = tuple(map(seen, study.task_files))
    if study.model not in catalogue() and os.path.exists(study.model):  # noqa: PTH110 - no errors
        found["model"] = study.model if Path(study.model).is_absolute() else seen(study.model)
    return study.model_copy(update=found)


def _name(file: Path) -> str:
    """A study's name from its file's."""
    return re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:64] or "study"


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in parts):
        raise SpecError("not a list of seeds", found=text, wanted="whole numbers, such as 1,2,3")
    return [int(part) for part in parts]


def _next(file: Path) -> str:
    return shlex.join(["mixtune", "plan", str(file)])


def _head(file: Path) -> str:
    return (
        f"A study of mixtune. Next: {shorten(_next(Path(file.name)))}, then mixtune run\n"
        "What stands behind a # is a default: to change one, take the # away, and that of its "
        "section.\n"
        "docs/study-file.md explains every key; mixtune schema prints what an editor can check by."
    )
