"""From the text of a YAML task file to tasks, and what is wrong with it in the user's words.

Knows: YAML documents, pydantic's faults. Does not know: what else may stand in a study's
`task_files` (own.py), rows.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.study.yaml import Origin, read_documents
from mixtune.tasks.source_spec import FILE_KEYS, FileSource, Source
from mixtune.tasks.task import Task


def parse_task(text: str, where: str, folder: Path | None = None) -> Task:
    """Read one task from the text of a YAML file; `where` names the file in messages.

    Raises:
        DataError: as `parse_tasks`, or another number of tasks than one.
    """
    found = parse_tasks(text, where, folder)
    if len(found) != 1:
        raise DataError("one task is wanted here", where=where, found=f"{len(found)} tasks")
    return found[0]


def parse_tasks(text: str, where: str, folder: Path | None = None) -> list[Task]:
    """Read the tasks of a YAML file, one a document; paths in it start from `folder`.

    Raises:
        DataError: not YAML, an unknown key, a value that does not fit; one line per fault.
    """
    documents = read_documents(text, where, DataError)
    if not documents:
        raise DataError("the file is empty", where=where, wanted="name: …, prompt: …, source: …")
    made = []
    for number, document in enumerate(documents, start=1):
        place = f"{where}, task {number}" if len(documents) > 1 else where
        made.append(make_task(document.value, place, document.origin, folder))
    return made


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
        faults = "; ".join(_explain(fault, origin) for fault in error.errors())
        raise DataError(faults, where=where, remedy="mend the keys named") from error
    if task.source.files is None or folder is None:
        return task
    source = task.source.model_copy(update={"files": task.source.files.within(folder)})
    return task.model_copy(update={"source": source})


def _explain(fault: Any, origin: Origin | None) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """One fault in the user's words: line, key, what, what was found."""
    loc = tuple(fault["loc"])
    plain = ("source", *loc[2:]) if loc[:2] == ("source", "files") else loc
    line = origin and origin.line(plain)
    place = f"line {line}: " if line else ""
    key = place + (shorten(".".join(str(part) for part in plain)) or "task")
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such key; {did_you_mean(shorten(str(loc[-1])), _keys_at(loc))}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = shorten(str(fault["msg"]).removeprefix("Value error, "), 400)
    if fault["type"] == "string_type" and isinstance(fault["input"], bool):
        message += "; YAML reads true and false as booleans: put quotes around the word"
    if loc == ("name",) and fault["type"] == "string_pattern_mismatch":
        kebab = re.sub(r"[^a-z0-9]+", "-", fault["input"].lower()).strip("-")[:64]
        message = f"lower case letters, digits and - only, such as {kebab or 'my-task'}"
    found = "" if not loc else f" (found {shorten(fault['input'])})"
    return f"{key}: {message}{found}"


def _keys_at(path: Sequence[Any]) -> list[str]:
    """The keys that are allowed where the last part of `path` stands."""
    here: type[BaseModel] = Task
    for part in path[:-1]:
        if part not in here.model_fields:
            break
        kinds = [here.model_fields[part].annotation, *get_args(here.model_fields[part].annotation)]
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        here = models[0] if models else here
    if here is Source:
        return [*FILE_KEYS, "local", "hub", "toy"]
    return list(FILE_KEYS) if here is FileSource else list(here.model_fields)
