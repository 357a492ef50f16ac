"""Verbs on this machine, models and doctor: each check a line, ok, a warning or a problem.

torch is asked in a process of its own; values of tokens are never read into a line. Of the hub
nothing but first records is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mixtune.cli.app import RUNS, DataDir, Json, RunsDir, app, complete_files, heavy
from mixtune.cli.show import Columns, fields, print_json, say, show, show_cells
from mixtune.datasets.registry import Registry
from mixtune.datasets.sources import HubReader
from mixtune.errors import MixtuneError, UserError, shorten
from mixtune.identity import environment
from mixtune.models.catalog import Entry, catalogue, offline
from mixtune.models.files import cache_dir
from mixtune.models.memory import Overview, free_memory, main_memory, overview
from mixtune.records import Split
from mixtune.store.folder import Store
from mixtune.store.repair import repair
from mixtune.study.presets import preset
from mixtune.study.reading import load_studies
from mixtune.tasks.rendering import render_record
from mixtune.tasks.source_spec import HubSource
from mixtune.tasks.task import Task

Level = Literal["ok", "warning", "problem"]

QUICKSTART = "smollm2-135m"
LEAST_DISK = 2_000_000_000
LEAST_MEMORY = 4_000_000_000
PATIENCE = 120.0
"""Seconds that torch has to load and to answer."""

INSTALL = "pip install 'mixtune[train]'"
_TRAIN = ("torch", "transformers", "gguf")
_SECRET = ("TOKEN", "KEY", "PASSWORD", "SECRET")
_PROBE = """
import json, torch
found = {"threads": torch.get_num_threads(), "cuda": []}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        found["cuda"].append([facts.name, facts.total_memory])
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One finding; `needed`: without it the quickstart does not run."""

    topic: str
    level: Level
    found: str
    remedy: str = ""
    needed: bool = False


MODELS: Columns = {
    "name": "name",
    "parameters": lambda row: f"{row.parameters / 1e6:,.0f} M",
    **fields("hub licence"),
    "where": "meaning",
    "disk": lambda row: size(row.disk) if row.disk else "–",
    "training": lambda row: size(row.memory),
    "fits": "fits",
}
LINES: Columns = {"what": "topic", "": "level", "found": "found", "remedy": "remedy"}


@app.command(rich_help_panel="Prepare")
def models(
    prepare: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch and convert this base model now.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List base models, their sources, and which fit into memory. Next: mixtune doctor."""
    if prepare is not None:
        files = heavy("engine.convert", "preparing a model").prepare(prepare)
        facts = {key: value and str(value) for key, value in asdict(files).items()}
        if as_json:
            print_json(facts)
        else:
            cells = [(name, value or "–") for name, value in facts.items()]
            show_cells(files.name, ("", "value"), cells)
        return
    rows = overview()
    if as_json:
        print_json([{**asdict(row), "here": row.here, "where": row.meaning} for row in rows])
        return
    show(rows, MODELS, "Base models")
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    say("\n".join(["a hub id, a folder or a .gguf file will do as well", *notes]))


@app.command(rich_help_panel="Prepare")
def doctor(  # noqa: PLR0913 - each is an option
    study_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY.yaml]",
            help="Check the folder of this study's results instead.",
            autocompletion=complete_files,
        ),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    hub: Annotated[
        bool,
        typer.Option("--hub", help="Check every hub source of tasks and models, over the network."),
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild the study's state.sqlite from its results and write changed files of its "
            "plan back. Nothing is deleted.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what --repair would do.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check what this machine can run; with --hub, every hub source; with a study, its folder.

    Exits with 3 if the quickstart cannot run, the hub differs or a study's folder has a problem,
    with 2 if --hub has no network. Next: mixtune init.
    """
    if study_file is not None:
        _study_folder(study_file, runs_dir, mend and not dry_run, as_json)
        return
    if mend or dry_run:
        raise UserError(
            "--repair and --dry-run are for a study", wanted="mixtune doctor STUDY.yaml"
        )
    lines = check_hub(data_dir) if hub else examine(data_dir, runs_dir)
    show(lines, LINES, "This machine", as_json)
    if any(line.needed and line.level == "problem" for line in lines):
        raise typer.Exit(3)


def _study_folder(study_file: Path, runs_dir: Path, mend: bool, as_json: bool) -> None:
    """Check or repair the folder of each study of a file."""
    studies = load_studies(
        study_file if study_file.exists() else preset(str(study_file)) or study_file
    )
    findings = {study.name: repair(Store(runs_dir / study.name), mend) for study in studies}
    lines = [
        Line(finding.topic, finding.level, finding.state, finding.remedy, needed=True)
        for own in findings.values()
        for finding in own
    ]
    title = f"{', '.join(findings)}: {'repaired' if mend else 'nothing is changed'}"
    show(lines, LINES, title, as_json)
    if any(line.level == "problem" for line in lines):
        raise typer.Exit(3)


# ---- this machine --------------------------------------------------------------------------------


def examine(data_dir: Path | None, runs_dir: Path) -> list[Line]:
    """Everything that is looked at on this machine, without a network.

    Raises:
        DataError: the data directory is not there.
    """
    rows = overview()
    return [
        *_software(),
        *_machine(),
        _device(),
        _disk("cache", cache_dir(), "set MIXTUNE_CACHE to another folder, or make room"),
        _disk("runs", runs_dir, "give another folder with --runs-dir, or make room"),
        _hub(),
        *map(_model, rows),
        *_data(data_dir),
    ]


def size(number: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit in ("B", "kB") else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _software() -> Iterator[Line]:
    versions = environment()
    yield Line("Python", "ok", f"{versions['python']} on {versions['machine']}")
    for name in ("mixtune", *_TRAIN, "datasets", "huggingface-hub", "tokenizers"):
        try:
            yield Line(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Line(name, "problem", "not installed", INSTALL, needed=True)


def _machine() -> Iterator[Line]:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        faster = "no AMX: float32 is usually the faster"
        if "amx_bf16" in flags:
            faster = "AMX: train.compute=bfloat16 is worth a try"
    except OSError:
        faster = ""
    cores = f"{len(os.sched_getaffinity(0))} may be used"
    yield Line("cores", "ok", f"{cores}; {faster}" if faster else cores)
    free = free_memory()
    found = f"{size(main_memory())}, of which {size(free)} are available"
    remedy = "close other programs, or run with --workers 1"
    yield _enough("memory", found, free >= LEAST_MEMORY, remedy)


def _enough(topic: str, found: str, enough: bool, remedy: str) -> Line:
    return Line(topic, "ok", found) if enough else Line(topic, "warning", found, remedy)


def _device() -> Line:
    """Devices that torch sees, asked in a process of its own: importing it takes seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PATIENCE
        )
        facts = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Line("device", "warning", f"torch did not answer in {PATIENCE:.0f} s", "try again")
    except (OSError, ValueError):
        return Line("device", "problem", "torch cannot be loaded", INSTALL, needed=True)
    cards = ", ".join(f"{name} with {size(memory)}" for name, memory in facts["cuda"])
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return Line("device", "ok", cards or f"CPU, torch would use {threads}")


def _disk(topic: str, folder: Path, remedy: str) -> Line:
    """Room and rights at a folder, or at the nearest one above it that is there."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Line(topic, "problem", f"{folder} cannot be written", remedy, needed=True)
    free = shutil.disk_usage(existing).free
    return _enough(topic, f"{folder}, {size(free)} free", free >= LEAST_DISK, remedy)


def _hub() -> Line:
    settings = [
        f"{name} is set" if any(word in name for word in _SECRET) else f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(("HF_", "HUGGINGFACE_"))
    ]
    state = "offline: only what is on this machine" if offline() else "not told to stay offline"
    return Line("hub", "ok", "; ".join([state, *settings]))


def _model(model: Overview) -> Line:
    quickstart = model.name == QUICKSTART
    room = {"yes": "fits", "tight": "tight", "no": "does not fit"}[model.fits]
    found = f"{model.meaning}; training: {size(model.memory)}, {room}"
    if model.state == "damaged" or (quickstart and not model.here):
        level: Level = "problem"
        remedy = model.install or f"mixtune models --prepare {model.name}"
    else:
        level = "ok" if model.fits == "yes" else "warning"
        tight = "train with --workers 1 and few examples_per_step"
        remedy = tight if model.fits == "tight" else ""
    return Line(f"model {model.name}", level, found, remedy, needed=quickstart)


def _data(data_dir: Path | None) -> Iterator[Line]:
    if data_dir is None:
        text = "no folder given (--data-dir): tasks other than the toy ones come from the hub"
        yield Line("data", "ok", text)
        return
    registry = Registry.open((), data_dir)
    for name in registry.names():
        local = registry.get(name).source.local
        if local is not None:
            yield _folder(name, registry, data_dir / local.folder)


def _folder(name: str, registry: Registry, folder: Path) -> Line:
    """Sizes of a task's files; what is in them is for `mixtune data check`."""
    try:
        registry.source_of(name)
    except MixtuneError as error:
        remedy = f"put the task's files into {folder}, or do without the task"
        return Line(f"data {name}", "warning", str(error).split("\n")[0], remedy)
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    sizes = ", ".join(f"{p.name} {size(p.stat().st_size)}" for p in files)
    return Line(f"data {name}", "ok" if files else "warning", sizes or f"{folder} has no files")


# ---- the hub -------------------------------------------------------------------------------------


def check_hub(data_dir: Path | None) -> list[Line]:
    """A line for each model of the catalogue and each split of each task that the hub gives.

    Raises:
        UserError: the hub cannot be reached. DataError: the data directory is not there.
    """
    registry = Registry.open((), data_dir)
    tasks = [registry.get(name) for name in registry.names()]
    return [
        *(_entry(name, entry) for name, entry in catalogue().items()),
        *(line for task in tasks if task.source.hub for line in _task(task, task.source.hub)),
    ]


def _entry(name: str, entry: Entry) -> Line:
    topic = f"model {name}"
    info = _ask("model_info", entry.hub, None)
    if isinstance(info, str):
        return Line(topic, "problem", info, _TELL, True)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not any(file.endswith(".safetensors") for file in names):
        return Line(topic, "problem", f"{entry.hub} holds no safetensors", _TELL, True)
    gated = bool(info.gated)
    if gated != entry.gated:
        differ = f"the hub says {_GATE[gated]}, the catalogue {_GATE[entry.gated]}"
        return Line(topic, "warning", f"{entry.hub}: {differ}", _TELL)
    return Line(topic, "ok", f"{entry.hub} at {str(info.sha)[:12]}, {_GATE[gated]}")


_TELL = "tell the project: the entry of this model in catalogue.yaml is not right"
_GATE = {True: "gated", False: "open"}


def _task(task: Task, source: HubSource) -> Iterator[Line]:
    info = _ask("dataset_info", source.path, source.revision)
    if isinstance(info, str):
        yield Line(f"task {task.name}", "problem", info, "fix source.hub.path", True)
    else:
        yield from (_split(task, source, split) for split in source.splits)


def _split(task: Task, source: HubSource, split: Split) -> Line:
    """Read, rename and render the first record of a split that the task keeps."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    topic = f"task {task.name}, {split}"
    try:
        for row in HubReader(task.name, source, stream=True).rows(split):
            rendered = render_record(
                task, row.record, split, where=row.where, number=row.number, question=row.question
            )
            if rendered.dropped is None:
                target = shorten(rendered.examples[0].target, 40)
                return Line(topic, "ok", f"{source.path}: answer {target!r}")
    # Streams fail late, with errors of several libraries.
    except (MixtuneError, HTTPError, DatasetsError, OSError, ValueError, RuntimeError) as error:
        return Line(topic, "problem", str(error), "fix source.hub in the task file", True)
    return Line(topic, "problem", f"{source.path} has no usable record", "fix source.hub", True)


def _ask(method: str, repository: str, revision: str | None) -> Any:  # noqa: ANN401 - the hub's
    """The hub's answer about a repository; or a text, why there is none.

    Raises:
        UserError: the hub cannot be reached.
    """
    import huggingface_hub
    import huggingface_hub.errors as hub

    try:
        return getattr(huggingface_hub.HfApi(), method)(repository, revision=revision)
    except hub.HfHubHTTPError as error:  # the hub answered: no such repository, say
        return f"{repository}: {shorten(str(error))}"
    except hub.HFValidationError as error:
        return f"not a hub id: {shorten(str(error))}"
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise UserError(
            f"the hub cannot be reached: {shorten(str(error))}",
            where="doctor --hub",
            wanted="a network connection to the hub, and HF_HUB_OFFLINE not set",
            remedy="run it where there is a network, or leave --hub out",
        ) from error
