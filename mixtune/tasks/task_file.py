"""YAML task files → tasks.

Knows: YAML documents. Does not know: other kinds of `task_files`, rows.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixtune.errors import DataError
from mixtune.study import faults
from mixtune.study.yaml import Origin, Place, read_documents
from mixtune.tasks.task import Task


def parse_task(text: str, where: str, folder: Path | None = None) -> Task:
    """Read one task from the text of a YAML file; `where` names the file in messages.

    Raises:
        DataError: as `parse_tasks`, or another number of tasks than one.
    """
    tasks = parse_tasks(text, where, folder)
    if len(tasks) != 1:
        raise DataError("the file has to hold one task", where=where, found=f"{len(tasks)} tasks")
    return tasks[0]


def parse_tasks(text: str, where: str, folder: Path | None = None) -> list[Task]:
    """Read the tasks of a YAML file, one a document; paths in it start from `folder`.

    Raises:
        DataError: not YAML, an unknown key, a value that does not fit; one line per fault.
    """
    documents = read_documents(text, where, DataError)
    if not documents:
        raise DataError("the file is empty", where=where, wanted="name: …, prompt: …, source: …")
    tasks = []
    for number, document in enumerate(documents, start=1):
        place = f"{where}, task {number}" if len(documents) > 1 else where
        tasks.append(make_task(document.value, place, document.origin, folder))
    return tasks


def make_task(
    raw: Any,  # noqa: ANN401 - whatever the file holds
    where: str,
    origin: Origin | None = None,
    folder: Path | None = None,
) -> Task:
    """A task from plain values.

    Raises:
        DataError: no mapping, an unknown key, a value that does not fit; one line per fault.
    """
    if not isinstance(raw, dict):
        raise DataError("a task is a mapping", where=where, found=raw, wanted="key: value")
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        context = faults.FaultContext(Task, Origin(where, origin.lines if origin else {}))
        details = [error_ | {"loc": _as_written(error_["loc"])} for error_ in error.errors()]
        raise faults.refusal(details, context, DataError) from None
    if task.source.files is None or folder is None:
        return task
    source = task.source.model_copy(update={"files": task.source.files.within(folder)})
    return task.model_copy(update={"source": source})


def _as_written(place: Place) -> Place:
    """The place in the file, where the keys of `source.files` may be keys of `source`."""
    return ("source", *place[2:]) if place[:2] == ("source", "files") else place
