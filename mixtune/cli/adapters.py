"""Verbs on adapters as files: merge."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import terminal
from mixtune.cli.app import Json, app, heavy
from mixtune.errors import UserError


@app.command(rich_help_panel="Adapters")
def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Folders of plain LoRA adapters of one base."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; not there yet, or empty.")],
    weights: Annotated[
        str,
        typer.Option(
            help="One number for each adapter, such as 0.5,0.5; 1 is the adapter as it was "
            "trained. Default: equal parts of 1."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write the exact weighted sum of adapters, or one adapter weaker or stronger, for PEFT.

    The rank of the sum is the sum of the ranks; nothing is approximated. Next: mixtune eval.
    """
    parts = _weights(weights, len(adapters))
    made = heavy("engine.merge", "merging").merge(adapters, parts, out)
    if as_json:
        print(json.dumps(asdict(made), indent=1))
        return
    rows = [(p["adapter"], p["weight"], p["rank"], p["scale"]) for p in made.parts]
    show = terminal.console()
    title = f"{made.folder}: rank {made.rank} on {made.layers} layers, for {made.base}"
    show.print(terminal.table(title, ("adapter", "weight", "rank", "scale"), rows))


def _weights(text: str, count: int) -> list[float]:
    """The weights that were typed, one for each adapter."""
    if not text.strip():
        return [1 / count] * count
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UserError(
            "--weights does not fit the adapters",
            found=text,
            wanted=f"{count} numbers with commas between them, such as "
            + ",".join([f"{1 / count:.3g}"] * count),
        )
    return found
