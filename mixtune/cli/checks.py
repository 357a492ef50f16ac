"""Checks of this machine: each line ok, a warning or a problem with a remedy.

Knows: versions, cores, memory, disks, caches, data folders, the environment's HF_* variables.
Does not know: the hub (hub.py), how lines are shown. torch is asked in a process of its own;
values of tokens are never read into a line.

Whether the hub has what task files and catalogue say: repositories, splits, fields, licences.

Knows: `huggingface_hub`, `datasets`, one record of each split. Does not know: this machine
(machine.py), whole datasets, weights; nothing but first records is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mixtune.datasets.registry import Registry
from mixtune.datasets.sources import HubReader
from mixtune.errors import MixtuneError, UserError, shorten
from mixtune.identity import environment
from mixtune.models.catalog import Entry, catalogue, offline
from mixtune.models.files import cache_dir
from mixtune.models.memory import Overview, free_memory, main_memory, overview
from mixtune.records import Split
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


def examine(data_dir: Path | None, runs_dir: Path) -> list[Line]:
    """Everything that is looked at on this machine, without a network.

    Raises:
        DataError: the data directory is not there.
    """
    models = overview()
    return [
        *_software(),
        *_machine(),
        _device(),
        *_disks(runs_dir),
        *_hub(),
        *_models(models),
        *_data(data_dir),
    ]


def fails(lines: list[Line]) -> bool:
    """True if something is missing that the quickstart needs."""
    return any(line.needed and line.level == "problem" for line in lines)


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
    yield Line("cores", "ok", f"{len(os.sched_getaffinity(0))} may be used{_bfloat16()}")
    total, free = main_memory(), free_memory()
    low = free < LEAST_MEMORY
    yield Line(
        "memory",
        "warning" if low else "ok",
        f"{size(total)}, of which {size(free)} are available",
        "close other programs, or run with --workers 1" if low else "",
    )


def _bfloat16() -> str:
    """The processor's bfloat16 instructions, which decide whether it is faster than float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return ""
    if "amx_bf16" in flags:
        return "; AMX: train.compute=bfloat16 is worth a try"
    return "; no AMX: float32 is usually the faster"


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


def _disks(runs_dir: Path) -> Iterator[Line]:
    yield _disk("cache", cache_dir(), "set MIXTUNE_CACHE to another folder, or make room")
    yield _disk("runs", runs_dir, "give another folder with --runs-dir, or make room")


def _disk(topic: str, folder: Path, remedy: str) -> Line:
    """Room and rights at a folder, or at the nearest one above it that is there."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Line(topic, "problem", f"{folder} cannot be written", remedy, needed=True)
    free = shutil.disk_usage(existing).free
    low = free < LEAST_DISK
    return Line(
        topic, "warning" if low else "ok", f"{folder}, {size(free)} free", remedy if low else ""
    )


def _hub() -> Iterator[Line]:
    settings = [
        f"{name} is set" if any(word in name for word in _SECRET) else f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(("HF_", "HUGGINGFACE_"))
    ]
    state = "offline: only what is on this machine" if offline() else "not told to stay offline"
    yield Line("hub", "ok", "; ".join([state, *settings]))


def _models(models: list[Overview]) -> Iterator[Line]:
    for model in models:
        quickstart = model.name == QUICKSTART
        level: Level = "ok"
        if model.state == "damaged" or (quickstart and not model.here):
            level = "problem"
        elif model.fits != "yes":
            level = "warning"
        room = {"yes": "fits", "tight": "tight", "no": "does not fit"}[model.fits]
        description = f"{model.meaning}; training: {size(model.memory)}, {room}"
        remedy = {"tight": "train with --workers 1 and few examples_per_step"}.get(model.fits, "")
        if level == "problem":
            remedy = model.install or f"mixtune models --prepare {model.name}"
        yield Line(f"model {model.name}", level, description, remedy, needed=quickstart)


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


def check(data_dir: Path | None) -> list[Line]:
    """A line for each model of the catalogue and each split of each task that the hub gives.

    Raises:
        UserError: the hub cannot be reached. DataError: the data directory is not there.
    """
    registry = Registry.open((), data_dir)
    tasks = [registry.get(name) for name in registry.names()]
    return [
        *(_model(name, entry) for name, entry in catalogue().items()),
        *(line for task in tasks if task.source.hub for line in _task(task, task.source.hub)),
    ]


def _model(name: str, entry: Entry) -> Line:
    topic = f"model {name}"
    info, refused = _ask("model_info", entry.hub, None)
    if info is None:
        return Line(topic, "problem", refused, _TELL, True)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not any(file.endswith(".safetensors") for file in names):
        return Line(topic, "problem", f"{entry.hub} holds no safetensors", _TELL, True)
    gated = bool(info.gated)
    if gated != entry.gated:
        description = (
            f"{entry.hub}: the hub says {_gate(gated)}, the catalogue {_gate(entry.gated)}"
        )
        return Line(topic, "warning", description, _TELL)
    return Line(topic, "ok", f"{entry.hub} at {str(info.sha)[:12]}, {_gate(gated)}")


_TELL = "tell the project: the entry of this model in catalogue.yaml is not right"


def _gate(gated: bool) -> str:
    return "gated" if gated else "open"


def _task(task: Task, source: HubSource) -> Iterator[Line]:
    info, refused = _ask("dataset_info", source.path, source.revision)
    if info is None:
        yield Line(f"task {task.name}", "problem", refused, "fix source.hub.path", True)
        return
    for split in source.splits:
        yield _split(task, source, split)


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


def _ask(method: str, repository: str, revision: str | None) -> tuple[Any, str]:
    """The hub's answer about a repository; or None and the reason.

    Raises:
        UserError: the hub cannot be reached.
    """
    import huggingface_hub
    import huggingface_hub.errors as hub

    try:
        return getattr(huggingface_hub.HfApi(), method)(repository, revision=revision), ""
    except hub.HfHubHTTPError as error:  # the hub answered: no such repository, say
        return None, f"{repository}: {shorten(str(error))}"
    except hub.HFValidationError as error:
        return None, f"not a hub id: {shorten(str(error))}"
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise UserError(
            f"the hub cannot be reached: {shorten(str(error))}",
            where="doctor --hub",
            wanted="a network connection to the hub, and HF_HUB_OFFLINE not set",
            remedy="run it where there is a network, or leave --hub out",
        ) from error
