"""The verb that makes the reviewer's pack."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from mixtune import __version__
from mixtune.cli import show as terminal
from mixtune.cli.app import (
    RUNS,
    DryRun,
    Json,
    Limit,
    Overrides,
    RunsDir,
    StudyFile,
    app,
    stored_facts,
    study_of,
)
from mixtune.errors import UserError
from mixtune.pack.archive import write_pack, zipped
from mixtune.pack.pack import Contents


@app.command(rich_help_panel="Read")
def pack(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Zip to write. Default: <name>-pack.zip in the current folder."),
    ] = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the reviewer's pack: one zip that reproduces the study's analysis.

    It contains scores, settings, states, licences, prompt templates and hashes; no weights and no
    dataset text. Next: mixtune results.
    """
    facts = stored_facts(study_of(study_file, overrides, limit), runs_dir)
    name = facts.study.name
    target = out or Path(f"{name}-pack.zip")
    if facts.store.packed:
        raise UserError("this is a pack already", found=str(facts.store.folder))
    files = Contents(facts).files()
    content = zipped(name, files, __version__)
    if not dry_run:
        write_pack(target, name, content)
    summary = {
        "pack": str(target),
        "written": not dry_run,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "files": {path: len(files[path]) for path in sorted(files)},
    }
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    done = "would write" if dry_run else "wrote"
    summary_line = (
        f"{done} {target}: {len(files)} files, {len(content):,} bytes, no text of a dataset"
    )
    print(terminal.printable(summary_line))
    print(terminal.printable(f"sha256 {summary['sha256']}; read it: mixtune results {target}"))
