"""Whether the hub has what task files and catalogue say: repositories, splits, fields, licences.

Knows: `huggingface_hub`, `datasets`, one record of each split. Does not know: this machine
(machine.py), whole datasets, weights; nothing but first records is downloaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtune.doctor.machine import Line
from mixtune.errors import MixtuneError, UserError, shorten
from mixtune.models.entries import Entry, catalogue
from mixtune.records import Split
from mixtune.tasks.base import Task
from mixtune.tasks.places import HubSource
from mixtune.tasks.registry import Registry
from mixtune.tasks.sources import HubReader


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
        said = f"{entry.hub}: the hub says {_gate(gated)}, the catalogue {_gate(entry.gated)}"
        return Line(topic, "warning", said, _TELL)
    return Line(topic, "ok", f"{entry.hub} at {str(info.sha)[:12]}, {_gate(gated)}")


_TELL = "tell the project: the entry of this model in catalogue.yaml is not right"


def _gate(gated: bool) -> str:
    return "gated" if gated else "open"


def _task(task: Task, source: HubSource) -> Iterator[Line]:
    info, refused = _ask("dataset_info", source.path, source.revision)
    if info is None:
        yield Line(f"task {task.name}", "problem", refused, "mend source.hub.path", True)
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
            if task.dropped(row.record) is None:
                made = task.to_examples(
                    row.record, split, where=row.where, number=row.number, only=row.only
                )
                return Line(topic, "ok", f"{source.path}: answer {shorten(made[0].target, 40)!r}")
    # Streams fail late, with errors of several libraries.
    except (MixtuneError, HTTPError, DatasetsError, OSError, ValueError, RuntimeError) as error:
        return Line(topic, "problem", str(error), "mend source.hub in the task file", True)
    return Line(topic, "problem", f"{source.path} has no usable record", "mend source.hub", True)


def _ask(method: str, repository: str, revision: str | None) -> tuple[Any, str]:
    """What the hub says of a repository; or None and why it says nothing.

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
