"""Shared by all verbs: the application, its options, studies and stores, errors, exit codes.

Exit codes: 0 good, 1 a run failed, 2 usage, configuration, data or a file that the system refuses,
3 a gate was not met, 130 stopped by Ctrl-C, 143 and 129 by SIGTERM and SIGHUP, 141 nobody reads the
output any more. A fault of mixtune itself ends with a traceback and 1.
"""

import codecs
import importlib
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from mixtune import __version__
from mixtune.analysis.panel import FORMS
from mixtune.cli import complete
from mixtune.cli import show as terminal
from mixtune.datasets.registry import Registry
from mixtune.errors import MixtuneError, UserError, shorten
from mixtune.identity import collect_rarely
from mixtune.pack.archive import in_pack, is_zip, opened, study_in
from mixtune.records import Estimate, Result
from mixtune.results.study_results import StudyFacts, read_facts
from mixtune.store.folder import Store
from mixtune.study.presets import preset
from mixtune.study.reading import load_studies, load_study, trial
from mixtune.study.spec import Study

ENDING = (signal.SIGTERM, signal.SIGHUP)
STOPPED = {128 + number for number in (signal.SIGINT, *ENDING)}
FAULT = """
This is a fault of mixtune, not of your study. What is finished is kept, and the same command goes
on. Please report it with the lines above, the command and the output of: mixtune --version"""

# typer carries a click of its own or uses the installed one; this is its class either way.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Verbs(TyperGroup):
    """The verbs, with an end of its own for a pipe that nobody reads: click would exit with 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's Context
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _mute()
            sys.exit(128 + signal.SIGPIPE)


app = typer.Typer(
    cls=_Verbs,
    help="Which datasets to fine-tune on together, and whether the gain is real.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY.yaml",
        help="The study file, the name of a preset, or a reviewer's pack.",
        autocompletion=complete.files,
        callback=study_in,
        is_eager=True,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Change keys of the study, e.g. 'seeds=[1,2]'."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="MIXTUNE_DATA_DIR", help="Folder of datasets. Default: the hub."),
]


def _runs_of(ctx: typer.Context, folder: Path) -> Path:
    """The folder of results: that which a pack is opened to, where one is given.

    A study file that lies in a pack is read beside its own results, wherever others are kept.
    """
    if is_zip(folder):
        return opened(folder).parent
    study_file = ctx.params.get("study_file")
    source = ctx.get_parameter_source("runs_dir")
    explicit = source is not None and source.name == "COMMANDLINE"
    if explicit or not isinstance(study_file, Path) or not in_pack(study_file):
        return folder
    return study_file.parent.parent


RunsDir = Annotated[
    Path,
    typer.Option(
        envvar="MIXTUNE_RUNS_DIR",
        help="Folder of results, or a reviewer's pack.",
        callback=_runs_of,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A trial: at most N items per task and split, and N steps; stored separately as "
        "<name>-limit<N>.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes. Default: one per core, as far as memory allows."),
]
Bank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Adapters trained side by side in each process; by default one on a CPU, on a GPU as "
        "many as fit into its memory, up to 64.",
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        min=0,
        help="Seconds between checkpoints, from which training resumes after a kill; 0: every "
        "step.",
    ),
]
SplitName = Annotated[
    str, typer.Option(help="validation, or test; each look at test is counted and reported.")
]
FormChoice = Annotated[
    Literal["strict", "lenient", "constrained", "all"] | None,
    typer.Option(
        "--form",
        help="Scores of one form, or all. lenient, a second score of the strict answers, is by "
        "default in JSON only.",
    ),
]
RUNS = Path("runs")
Row = TypeVar("Row", Estimate, Result)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Which datasets to fine-tune on together, and whether the gain is real."""
    if version:
        print(f"mixtune {__version__}")
        raise typer.Exit


def study_of(path: Path, overrides: list[str] | None, limit: int | None) -> Study:
    """The study of a file or preset with one base model, overridden and cut as the options say."""
    study = load_study(_preset_or(path), overrides or ())
    return study if limit is None else trial(study, limit)


def studies_of(path: Path, overrides: list[str] | None, limit: int | None) -> list[Study]:
    """The study of a file or preset for each of its base models."""
    studies = load_studies(_preset_or(path), overrides or ())
    return studies if limit is None else [trial(study, limit) for study in studies]


def _preset_or(path: Path) -> Path:
    """The file; where there is none, the preset of that name."""
    return path if path.exists() else preset(str(path)) or path


def stored_facts(study: Study, runs_dir: Path, data_dir: Path | None = None) -> StudyFacts:
    """A study as its folder holds it; it has been run."""
    registry = Registry.of(study, data_dir)
    return read_facts(Store(runs_dir / study.name), registry)


def heavy(module: str, doing: str) -> ModuleType:
    """A module that loads torch, which is imported for the verbs that need it only.

    Raises:
        UserError: `doing` needs a package that is not installed.
    """
    try:
        return importlib.import_module(f"mixtune.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{doing} needs a package that is not installed: {error.name}",
            remedy="pip install 'mixtune[train]'",
        ) from error


def look_at(split: str, store: Store, command: str) -> None:
    """Count a look at test scores; refuse an unknown split."""
    if split not in ("validation", "test"):
        raise UserError("no such split", found=split, wanted="validation or test")
    if split == "test":
        store.require()
        looks = store.count_test_read(command)
        print(f"test scores of this study were looked at {looks} times", file=sys.stderr)


def in_form(rows: Sequence[Row], form: str | None, study: Study) -> list[Row]:
    """Rows of one form or "all"; without a choice, of the forms that the study asks for.

    Raises:
        UserError: nothing was answered in that form.
    """
    shown: Sequence[str] = FORMS if form == "all" else (form,) if form else study.evaluate.forms
    # What is over several tasks has no form of its own.
    selected = [row for row in rows if row.form in (*shown, "main")]
    if rows and not selected:
        raise UserError(
            "no answers of that form",
            where=study.name,
            found=form,
            wanted=", ".join(form for form in FORMS if any(row.form == form for row in rows)),
        )
    return selected


def print_rows(rows: Sequence[Any]) -> None:
    """Print rows of one type as JSON."""
    print(json.dumps([asdict(row) for row in rows], indent=1))


def show(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = list(rows[0]) if rows else []
    cells = [[row[name] for name in columns] for row in rows]
    terminal.console().print(terminal.table(title, columns, cells))


def main() -> None:
    """Entry point: what the user can fix is printed without a traceback and exits with 2."""
    collect_rarely()
    codecs.register_error(terminal.UNENCODABLE, terminal.plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=terminal.UNENCODABLE)
    default = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in default:  # one that is ignored, as under nohup, stays so
        signal.signal(number, _end)
    try:
        code = _run()
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)
    if code in STOPPED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left that a second could harm
    sys.exit(code)


def _run() -> int:
    """Do what the command line says; returns the exit code."""
    try:
        code = _answer()
        if code in STOPPED:
            again = shorten(shlex.join(["mixtune", *sys.argv[1:]]), 1000)
            terminal.complain(f"stopped; what is finished is kept. Go on with: {again}")
        return code
    except BrokenPipeError:
        _mute()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _mute()
        terminal.complain(f"error: {_refused(error)}")
        return 2
    except Exception as error:
        error.add_note(FAULT)
        raise


@cache
def _command() -> Any:  # noqa: ANN401 - click's command; typer may carry a click of its own
    """The commands, built once a process: `app()` would build all of them at every call."""
    return typer.main.get_command(app)


def _answer() -> int:
    try:
        code = _command()(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # at the interpreter's end an error would be no more than a warning
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except _UsageError as error:
        return _show_usage(error)
    except MixtuneError as error:
        terminal.complain(f"error: {error}")
        return 2 if isinstance(error, UserError) else 1
    except MemoryError:
        terminal.complain(
            "error: out of memory\n  remedy: --workers 1, --bank 1, a smaller evaluate.batch_size "
            "or budget.examples_per_step, or a smaller model; what is finished is kept"
        )
        return 1


def _end(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP: out through every `finally`, as Ctrl-C."""
    sys.exit(128 + number)


def _show_usage(error: Any) -> int:  # noqa: ANN401 - click's UsageError
    """A mistake on the command line, in the words of the other errors."""
    message = error.format_message()
    if error.ctx is None or not message:
        error.show()
        return 2
    command = error.ctx.command_path
    terminal.complain(f"error: {message}\n  remedy: {command} --help shows what it takes")
    return 2


def _refused(error: OSError) -> str:
    """The operating system's error and its file; without a name it was the standard output."""
    why = shorten(error.strerror or str(error))
    if error.filename is None:
        return f"the system refuses to read or write, most likely the standard output: {why}"
    return f"{shorten(str(error.filename))}: the system refuses it: {why}"


def _mute() -> None:
    """Discard what is still in the buffer, so that it does not fail again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
