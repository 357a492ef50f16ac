"""Shared by all verbs: the application, options, studies and stores, completion, errors.

Exit codes: 0 good, 1 a run failed, 2 usage, configuration, data or a file that the system refuses,
3 a gate was not met, 130 stopped by Ctrl-C, 143 and 129 by SIGTERM and SIGHUP, 141 nobody reads the
output any more. A fault of mixtune itself ends with a traceback and 1.
"""

import codecs
import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from mixtune import __version__
from mixtune.analysis.panel import FORMS
from mixtune.cli import show as terminal
from mixtune.datasets.registry import Registry
from mixtune.errors import MixtuneError, ModelError, UserError, shorten
from mixtune.identity import collect_rarely
from mixtune.models.catalog import catalogue, locate
from mixtune.models.files import BaseModelFiles
from mixtune.pack.archive import in_pack, is_zip, opened, study_in
from mixtune.planning.runs import RunPlan
from mixtune.records import Estimate, Result
from mixtune.results.study_results import StudyFacts, read_facts
from mixtune.store.folder import Folders, Store
from mixtune.study.presets import preset
from mixtune.study.reading import load_studies, load_study, trial
from mixtune.study.spec import Study

ENDING = (signal.SIGTERM, signal.SIGHUP)
STOPPED = {128 + number for number in (signal.SIGINT, *ENDING)}
FAULT = """
This is a fault of mixtune, not of your study. What is finished is kept, and the same command goes
on. Please report it with the lines above, the command and the output of: mixtune --version"""
RUNS = Path("runs")
YAML = (".yaml", ".yml")
Row = TypeVar("Row", Estimate, Result)
Verb = Callable[..., None]

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


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Which datasets to fine-tune on together, and whether the gain is real."""
    if version:
        print(f"mixtune {__version__}")
        raise typer.Exit


# ---- completion: names only, the shell waits -----------------------------------------------------


def complete_files(incomplete: str) -> list[str]:
    """YAML files and folders in the folder that is being typed."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(typed or ".")
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix in YAML or path.is_dir())
    return [f"{typed}{path.name}{'/' if path.is_dir() else ''}" for path in paths]


def complete_tasks() -> list[str]:
    """Tasks that ship with the package: each has a file of its own name."""
    folder = resources.files("mixtune.tasks") / "builtin"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(YAML))


def complete_models(incomplete: str) -> list[str]:
    """Names of the catalogue, then files and folders."""
    return [*catalogue(), *complete_files(incomplete)]


# ---- options -------------------------------------------------------------------------------------


def _runs_of(ctx: typer.Context, folder: Path) -> Path:
    """The folder of results; for a pack, the folder that it is unpacked to.

    A study file in an unpacked pack is read with the pack's own results, whatever the default or
    MIXTUNE_RUNS_DIR says; only --runs-dir goes before them.
    """
    if is_zip(folder):
        return opened(folder).parent
    study_file = ctx.params.get("study_file")
    source = ctx.get_parameter_source("runs_dir")
    explicit = source is not None and source.name == "COMMANDLINE"
    if explicit or not isinstance(study_file, Path) or not in_pack(study_file):
        return folder
    return study_file.parent.parent


DataDir = Annotated[
    Path | None,
    typer.Option(envvar="MIXTUNE_DATA_DIR", help="Folder of datasets. Default: the hub."),
]
RunsDir = Annotated[
    Path,
    typer.Option(
        envvar="MIXTUNE_RUNS_DIR",
        help="Folder of results, or a reviewer's pack.",
        callback=_runs_of,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@dataclass(frozen=True, slots=True)
class Request:
    """Options that verbs on a study share; each verb has those that its `verb` lists."""

    study_file: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.yaml",
            help="The study file, the name of a preset, or a reviewer's pack.",
            autocompletion=complete_files,
            callback=study_in,
            is_eager=True,
        ),
    ]
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...", help="Change keys of the study, e.g. 'seeds=[1,2]'."
        ),
    ] = None
    data_dir: DataDir = None
    runs_dir: RunsDir = RUNS
    split: Annotated[
        str, typer.Option(help="validation, or test; each look at test is counted and reported.")
    ] = "validation"
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A trial: at most N items per task and split, and N steps; stored separately as "
            "<name>-limit<N>.",
        ),
    ] = None
    form: Annotated[
        Literal["strict", "lenient", "constrained", "all"] | None,
        typer.Option(
            "--form",
            help="Scores of one form, or all. lenient, a second score of the strict answers, is "
            "by default in JSON only.",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")
    ] = False
    as_json: Json = False

    @property
    def folders(self) -> Folders:
        """Folders of data and results."""
        return Folders(self.data_dir, self.runs_dir)

    def study(self) -> Study:
        """The study of a file or preset with one base model, overridden and cut as asked."""
        study = load_study(self._path(), self.overrides or ())
        return study if self.limit is None else trial(study, self.limit)

    def studies(self) -> list[Study]:
        """The study for each of its base models."""
        studies = load_studies(self._path(), self.overrides or ())
        return studies if self.limit is None else [trial(study, self.limit) for study in studies]

    def _path(self) -> Path:
        """The file; where there is none, the preset of that name."""
        path = self.study_file
        return path if path.exists() else preset(str(path)) or path

    def registry(self, study: Study) -> Registry:
        """The tasks that a study can name."""
        return Registry.of(study, self.data_dir)

    def facts(self, study: Study | None = None) -> StudyFacts:
        """A study as its folder holds it; it has been run."""
        study = study or self.study()
        store = self.folders.store(study.name)
        if store.exists and not store.packed and not store.known_files():
            _say_unrecorded(study.name)
        return read_facts(self.folders.store(study.name), self.registry(study))

    def facts_for(self, verb: str, study: Study | None = None) -> StudyFacts:
        """As `facts`, where a verb looks at the scores of the split: a look at test is counted."""
        facts = self.facts(study)
        look_at(self.split, facts.store, verb)
        return facts

    def in_form(self, rows: Sequence[Row], study: Study) -> list[Row]:
        """Rows of one form or "all"; without a choice all as JSON, else those of the study.

        Raises:
            UserError: nothing was answered in that form.
        """
        form = self.form or ("all" if self.as_json else None)
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


@cache
def _say_unrecorded(study: str) -> None:
    """Say once that files of a plan cannot be checked."""
    terminal.complain(
        f"{study}: planned by a version that kept no checksums of the plan's files; the next "
        "mixtune run records them"
    )


def verb(panel: str, order: str, name: str | None = None) -> Callable[[Verb], Verb]:
    """Make a function a verb; its first parameter is a dataclass of options, such as `Request`.

    Args:
        panel: of the help.
        order: of the verb's options: fields of the dataclass and parameters of the function, "*"
            for those parameters that are not named.
        name: of the verb, unless it is the function's.
    """

    def register(function: Verb) -> Verb:
        first, *rest = signature(function).parameters.values()
        own = {parameter.name: parameter for parameter in rest}
        shared = signature(first.annotation).parameters
        unnamed = " ".join(key for key in own if key not in order.split())
        parameters = [own.get(key) or shared[key] for key in order.replace("*", unnamed).split()]

        def call(**values: Any) -> None:  # noqa: ANN401 - of the command line
            options = {key: values.pop(key) for key in values.keys() - own.keys()}
            function(first.annotation(**options), **values)

        keywords = [part.replace(kind=Parameter.KEYWORD_ONLY) for part in parameters]
        vars(call)["__signature__"] = Signature(keywords)
        call.__doc__ = function.__doc__
        app.command(name or function.__name__, rich_help_panel=panel)(call)
        return function

    return register


# ---- what verbs share ----------------------------------------------------------------------------


def base_files(study: Study) -> BaseModelFiles:
    """The files of a study's base model, which are on this machine.

    Raises:
        ModelError: they are not, or not prepared.
    """
    files = locate(study.model, download=False)
    if not isinstance(files, BaseModelFiles):
        remedy = f"mixtune models --prepare {study.model}"
        raise ModelError("the base model is not prepared", found=study.model, remedy=remedy)
    return files


def look_at(split: str, store: Store, verb: str) -> None:
    """Count a look at test scores; refuse an unknown split."""
    if split not in ("validation", "test"):
        raise UserError("no such split", found=split, wanted="validation or test")
    if split == "test":
        store.require()
        looks = store.count_test_read(verb)
        known = "" if store.looks_lost() is None else " since its states were rebuilt"
        print(f"test scores of this study were looked at {looks} times{known}", file=sys.stderr)


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


def execute(module: str, entry: str, doing: str, *arguments: object) -> list[RunPlan]:
    """Train or answer with a function of execution/, its progress shown; returns failed runs."""
    function: Callable[..., list[RunPlan]] = getattr(heavy(f"execution.{module}", doing), entry)
    with terminal.progress() as events:
        return function(*arguments, events)


def exit_unless_met(unmet: Sequence[str]) -> None:
    """Name the gates that are not met and exit with 3; nothing where there is none."""
    for text in unmet:
        terminal.complain(f"gate not met: {text}")
    if unmet:
        raise typer.Exit(3)


# ---- the end of a command ------------------------------------------------------------------------


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
        _show_usage(error)
        return 2
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


def _show_usage(error: Any) -> None:  # noqa: ANN401 - click's UsageError
    """A mistake on the command line, in the words of the other errors."""
    message = error.format_message()
    if error.ctx is None or not message:
        error.show()
    else:
        command = error.ctx.command_path
        terminal.complain(f"error: {message}\n  remedy: {command} --help shows what it takes")


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
