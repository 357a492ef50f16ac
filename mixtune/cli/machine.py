"""Verbs on this machine: models, doctor."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from mixtune.cli import checks as at_the_hub
from mixtune.cli import checks as machine
from mixtune.cli import show as terminal
from mixtune.cli.app import RUNS, DataDir, Json, RunsDir, app, heavy, show
from mixtune.models.files import BaseModelFiles
from mixtune.models.memory import Overview, overview


@app.command(rich_help_panel="Prepare")
def models(
    prepare: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fetch and convert this base model now."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List base models, their sources, and which fit into memory. Next: mixtune doctor."""
    if prepare is not None:
        _show_prepared(_prepare(prepare), as_json)
        return
    rows = overview()
    if as_json:
        facts = [{**asdict(row), "here": row.here, "where": row.meaning} for row in rows]
        print(json.dumps(facts, indent=1))
        return
    show([_row(row) for row in rows], False, "Base models")
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    out = terminal.console()
    out.print(
        "\n".join(["a hub id, a folder or a .gguf file will do as well", *notes]), markup=False
    )


@app.command(rich_help_panel="Prepare")
def doctor(
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    hub: Annotated[
        bool,
        typer.Option("--hub", help="Check every hub source of tasks and models, over the network."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check what this machine can run; with --hub, check every hub source too.

    Exits with 3 if the quickstart cannot run or the hub differs, with 2 if --hub has no network.
    Next: mixtune init.
    """
    lines = at_the_hub.check(data_dir) if hub else machine.examine(data_dir, runs_dir)
    show([asdict(line) if as_json else _line(line) for line in lines], as_json, "This machine")
    if machine.fails(lines):
        raise typer.Exit(3)


def _line(line: machine.Line) -> dict[str, object]:
    return {
        "what": line.topic,
        "": line.level,
        "found": line.found,
        "remedy": line.remedy,
    }


def _row(row: Overview) -> dict[str, object]:
    return {
        "name": row.name,
        "parameters": f"{row.parameters / 1e6:,.0f} M",
        "hub": row.hub,
        "licence": row.licence,
        "where": row.meaning,
        "disk": machine.size(row.disk) if row.disk else "–",
        "training": machine.size(row.memory),
        "fits": row.fits,
    }


def _prepare(name: str) -> BaseModelFiles:
    """Locate, fetch and convert; torch is loaded for this only."""
    prepared: BaseModelFiles = heavy("engine.convert", "preparing a model").prepare(name)
    return prepared


def _show_prepared(files: BaseModelFiles, as_json: bool) -> None:
    facts = {key: value and str(value) for key, value in asdict(files).items()}
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    show([{"": key, "value": value or "–"} for key, value in facts.items()], False, files.name)
