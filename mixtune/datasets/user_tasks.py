"""Load tasks of users' files and installed packages.

A file is a task YAML (a task a document), a Python file with `TASKS`, LLaMA-Factory's
dataset_info.json or an Axolotl configuration. A package offers tasks under the entry-point group
`mixtune.tasks`. Python files and packages are run as code: name only those that you trust.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mixtune.datasets.rows import Fault, Row, refuse
from mixtune.datasets.sources import CARVE_TEST, Reader, RegisteredTask
from mixtune.datasets.trainer_formats import axolotl_tasks, factory_tasks
from mixtune.errors import DataError, shorten
from mixtune.identity import digest
from mixtune.records import Split
from mixtune.study.yaml import read_documents, read_file
from mixtune.tasks.source_spec import READABLE
from mixtune.tasks.task import Task, make_task, parse_tasks

GROUP = "mixtune.tasks"
"""The entry-point group under which installed packages offer tasks."""

_LIST = "[PythonTask(definition={...}, records=function), ...]"

Records = Callable[[Split], Iterable[Mapping[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class PythonTask:
    """A task whose records come from code.

    `definition` has the keys of a task file without `source`; `records` gives the records of a
    split, or None where there is no such split; a generator that yields nothing means the same.
    """

    definition: Mapping[str, Any]
    records: Records


def read_task_file(path: Path) -> list[RegisteredTask]:
    """The tasks that a user's file defines.

    Raises:
        DataError: no such file, another kind of file, one that cannot be used.
    """
    name = shorten(str(path), 300)
    if path.is_dir():
        raise DataError("a folder, not a task file", where=name, remedy="name the file in it")
    if path.suffix == ".py":
        return _from_python(path, name)
    if path.suffix == ".json":
        return factory_tasks(path)
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(
            "no kind of task file",
            where=name,
            wanted=".yaml, .py, LLaMA-Factory's dataset_info.json or an Axolotl .yaml",
            remedy=f"rows are read from {READABLE}",
        )
    text = read_file(path, DataError)
    documents = read_documents(text, name, DataError)
    value = documents[0].value if documents else None
    if isinstance(value, dict) and "datasets" in value and "prompt" not in value:
        return axolotl_tasks(value, path)
    return [RegisteredTask(task, name) for task in parse_tasks(text, name, path.parent)]


# ---- code ---------------------------------------------------------------------------------------


def packaged_tasks() -> Iterator[RegisteredTask]:
    """The tasks that installed packages offer."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = point.dist.name if point.dist else "an installed package"
        origin = f"{package} (entry point {GROUP}: {point.name})"
        try:
            value = point.load()
        except (Exception, SystemExit) as error:
            raise DataError(
                f"cannot be loaded: {type(error).__name__}: {shorten(str(error), 200)}",
                where=origin,
                remedy="fix or uninstall that package",
            ) from error
        if isinstance(value, str | Path):
            yield from (replace(task, origin=origin) for task in read_task_file(Path(value)))
        else:
            tasks = [value] if isinstance(value, PythonTask) else value
            yield from _from_list(tasks, origin, origin, None)


def _from_python(path: Path, name: str) -> list[RegisteredTask]:
    text = read_file(path, DataError)
    module = ModuleType(f"mixtune_tasks_{digest(str(path.resolve()))}")
    module.__file__ = str(path)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[module.__name__] = module
    with _running(path, name, "the file fails when it is run"):
        exec(compile(text, str(path), "exec"), module.__dict__)
    if not hasattr(module, "TASKS"):
        remedy = "from mixtune.datasets.user_tasks import PythonTask"
        problem, expected = "the file defines no TASKS", f"TASKS = {_LIST}"
        raise DataError(problem, where=name, wanted=expected, remedy=remedy)
    return _from_list(module.TASKS, f"{name}: TASKS", name, path)


def _from_list(value: object, where: str, origin: str, path: Path | None) -> list[RegisteredTask]:
    right_kind = isinstance(value, list | tuple) and value
    if not right_kind or not all(isinstance(item, PythonTask) for item in cast(list[Any], value)):
        shown = repr(value) if isinstance(value, list) else type(value).__name__
        raise DataError("not a list of PythonTask", where=where, found=shown, wanted=_LIST)
    codes = enumerate(cast(list[PythonTask], value), start=1)
    return [_register(code, f"{origin}: task {number}", origin, path) for number, code in codes]


def _register(code: PythonTask, where: str, origin: str, path: Path | None) -> RegisteredTask:
    if not isinstance(code.definition, Mapping) or not callable(code.records):
        raise DataError(
            "a PythonTask has a mapping and a function",
            where=where,
            found=f"{type(code.definition).__name__}, {type(code.records).__name__}",
            wanted="definition={...}, records=function of the split",
        )
    if "source" in code.definition:
        raise DataError("source: the records come from code", where=where, remedy="remove source")
    task = make_task({**code.definition, "source": {"given": {"what": origin}}}, where)
    return RegisteredTask(task, origin, _CodeReader(task, code.records, origin, path))


class _CodeReader(Reader):
    """Records from a function in the user's code."""

    def __init__(self, task: Task, records: Records, origin: str, path: Path | None) -> None:
        self._name = task.name
        self._records = records
        self._path = path
        self.about = f"code: {origin}"
        self.carve_test = CARVE_TEST if task.scored else None
        self._has: dict[Split, bool] = {}
        self._begun: dict[Split, Iterable[object]] = {}

    def has(self, split: Split) -> bool:
        """True unless the function gives None or a generator that yields nothing."""
        if split not in self._has:
            records: Iterable[object] | None = self._call(split)
            if isinstance(records, Iterator):
                first = list(islice(self._each(records), 1))
                records = chain(first, records) if first else None
            self._has[split] = records is not None
            if records is not None:
                self._begun[split] = records
        return self._has[split]

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records, which have to be mappings whose keys are names."""
        # What `has` has begun to read is continued once; a second reading calls the code again.
        begun = self._begun.pop(split, None)
        records = (self._call(split) or ()) if begun is None else begun
        for number, record in enumerate(self._each(records)):
            where = f"{self._name}, {split} record {number + 1}"
            if isinstance(record, Mapping) and all(isinstance(key, str) for key in record):
                yield Row(where, number, record)
            else:
                kind, expected = type(record).__name__, "a mapping of names"
                fault(DataError("not a record", where=where, found=kind, wanted=expected))

    def _call(self, split: Split) -> Iterable[Mapping[str, Any]] | None:
        with _running(self._path, self.about, f"records({split!r}) fails"):
            records = self._records(split)
        if records is not None and not isinstance(records, Iterable):
            problem, kind = f"records({split!r}) gives no records", type(records).__name__
            expected = "an iterable of mappings, or None"
            raise DataError(problem, where=self.about, found=kind, wanted=expected)
        return records

    def _each(self, records: Iterable[object]) -> Iterator[object]:
        """The records; an error of the code that makes one names its line."""
        iterator = iter(records)
        while True:
            with _running(self._path, self.about, "making records fails"):
                try:
                    record = next(iterator)
                except StopIteration:
                    return
            yield record


@contextmanager
def _running(path: Path | None, where: str, failure: str) -> Iterator[None]:
    """Let code of a file import its neighbours, and report its errors with the line.

    Raises:
        DataError: `failure` and the error of the code; its own DataErrors pass unchanged.
    """
    folder = str(path.parent.resolve()) if path else None
    if folder:
        sys.path.insert(0, folder)
    try:
        yield
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if path and frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        place = shorten(str(path), 300) if path else where
        raise DataError(
            f"{failure}: {type(error).__name__}: {shorten(str(error), 200)}",
            where=f"{place}:{line}" if line else place,
            remedy="fix the code",
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
