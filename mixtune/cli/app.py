"""What every verb shares: the application, its options, studies and stores, errors, exit codes.

Exit codes: 0 good, 1 a run failed, 2 usage, configuration or data, 3 a gate was not met,
130 stopped by Ctrl-C.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixtune import __version__, terminal
from mixtune.derive import Derived
from mixtune.errors import MixtuneError, UserError
from mixtune.spec import Study, load_study, trial
from mixtune.store import Store
from mixtune.tasks.registry import Registry

app = typer.Typer(
    help="Which datasets to fine-tune on together, and whether the gain is real.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Change keys of the study, e.g. seeds=[1,2]."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="MIXTUNE_DATA_DIR", help="Folder of datasets; without it, the hub."),
]
RunsDir = Annotated[
    Path, typer.Option(envvar="MIXTUNE_RUNS_DIR", help="Where studies' results are kept.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A trial: at most so many items per task and split, and so many steps; kept apart "
        "under <name>-limit<N>.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; by default one per core, as far as memory allows."),
]
SplitName = Annotated[
    str, typer.Option(help="validation, or test: a look at test is counted and reported.")
]
RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Which datasets to fine-tune on together, and whether the gain is real."""
    if version:
        print(f"mixtune {__version__}")
        raise typer.Exit


def study_of(path: Path, overrides: list[str] | None, limit: int | None) -> Study:
    """The study of a file, overridden and cut as the options say."""
    study = load_study(path, overrides or ())
    return study if limit is None else trial(study, limit)


def derived_of(study: Study, runs_dir: Path, data_dir: Path | None = None) -> Derived:
    """What follows from a study's results; the study has been run."""
    registry = Registry.open(study.task_files, data_dir)
    return Derived(Store(runs_dir / study.name), registry)


def look_at(split: str, store: Store, command: str) -> None:
    """Count a look at test scores; refuse an unknown split."""
    if split not in ("validation", "test"):
        raise UserError("no such split", found=split, wanted="validation or test")
    if split == "test":
        store.require()
        looks = store.count_test_read(command)
        print(f"test scores of this study were looked at {looks} times", file=sys.stderr)


def show(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = list(rows[0]) if rows else []
    cells = [[row[name] for name in columns] for row in rows]
    terminal.console().print(terminal.table(title, columns, cells))


@contextmanager
def stopping() -> Iterator[None]:
    """Ctrl-C ends between two units of work's writes; what is finished is kept."""
    again = shlex.join(["mixtune", *sys.argv[1:]])
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; finished work is kept. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point: user errors are printed without a traceback and exit with 2."""
    try:
        app()
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except MixtuneError as error:
        _complain(error)
        sys.exit(1)


def _complain(error: MixtuneError) -> None:
    Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
