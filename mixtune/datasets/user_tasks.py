"""Tasks of the user's own: what a study's `task_files` may name, and installed packages.

A file is a task YAML (a task a document), a Python file with `TASKS`, LLaMA-Factory's
dataset_info.json or an Axolotl configuration. A package offers tasks under the entry-point group
`mixtune.tasks`. Python files and packages are run as code: name only those that you trust.

Knows: kinds of files, running code, its faults. Does not know: which names are taken
(registry.py), keys of task files (base.py).

A file of rows → a task YAML to start from.

Knows: what columns are usually called, the row forms. Does not know: what the rows are about.
"""

import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import chain, islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mixtune.datasets.rows import Fault, Row, read_rows, refuse
from mixtune.datasets.sources import CARVE_TEST, Own
from mixtune.datasets.trainer_formats import axolotl_tasks, factory_tasks
from mixtune.errors import DataError, shorten
from mixtune.identity import digest
from mixtune.records import Split
from mixtune.study.yaml import read_documents, read_file
from mixtune.tasks.parsers.labels import fold
from mixtune.tasks.source_spec import ending
from mixtune.tasks.task import Task
from mixtune.tasks.task_file import make_task, parse_tasks

GROUP = "mixtune.tasks"
"""The entry-point group under which installed packages offer tasks."""

Records = Callable[[Split], Iterable[Mapping[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class PythonTask:
    """A task whose records come from code.

    `definition` has the keys of a task file without `source`; `records` gives the records of a
    split, or None where there is no such split; a generator that yields nothing says the same.
    """

    definition: Mapping[str, Any]
    records: Records


def read_own(path: Path) -> list[Own]:
    """The tasks that a file of the user's defines.

    Raises:
        DataError: no such file, another kind of file, one that cannot be used.
    """
    name = shorten(str(path), 300)
    if path.is_dir():
        raise DataError("a folder stands where a task file is wanted", where=name)
    if path.suffix == ".py":
        return _from_python(path, name)
    if path.suffix == ".json":
        return factory_tasks(path)
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path, name)
    raise DataError(
        "no kind of task file",
        where=name,
        wanted=".yaml, .py, LLaMA-Factory's dataset_info.json or an Axolotl .yaml",
        remedy="for a file of rows: mixtune data check FILE --write TASK.yaml",
    )


def installed() -> Iterator[Own]:
    """The tasks that installed packages offer.

    Raises:
        DataError: names the distribution whose entry point cannot be used.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        dist = point.dist.name if point.dist else "an installed package"
        yield from _from_entry_point(point, f"{dist} (entry point {GROUP}: {point.name})")


def _from_yaml(path: Path, name: str) -> list[Own]:
    text = read_file(path, DataError)
    documents = read_documents(text, name, DataError)
    value = documents[0].value if documents else None
    if isinstance(value, dict) and "datasets" in value and "prompt" not in value:
        return axolotl_tasks(value, path)
    return [Own(task, name) for task in parse_tasks(text, name, path.parent)]


# ---- code ---------------------------------------------------------------------------------------


def _from_python(path: Path, name: str) -> list[Own]:
    text = read_file(path, DataError)
    module = ModuleType(f"mixtune_tasks_{digest(str(path.resolve()))}")
    module.__file__ = str(path)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[module.__name__] = module
    try:
        with _beside(path):
            exec(compile(text, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _broken(error, path, "the file fails when it is run") from error
    if not hasattr(module, "TASKS"):
        raise DataError(
            "the file defines no TASKS",
            where=name,
            wanted="TASKS = [PythonTask(definition={...}, records=function), ...]",
            remedy="from mixtune.datasets.user_tasks import PythonTask",
        )
    return _given(module.TASKS, name, path)


@contextmanager
def _beside(path: Path | None) -> Iterator[None]:
    """While code of a file runs, it may import what lies beside it, as a script may."""
    folder = str(path.parent.resolve()) if path else None
    if folder:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _from_entry_point(point: EntryPoint, origin: str) -> list[Own]:
    try:
        value = point.load()
    except (Exception, SystemExit) as error:
        raise DataError(
            f"cannot be loaded: {type(error).__name__}: {shorten(str(error), 200)}",
            where=origin,
            remedy="mend or uninstall that package",
        ) from error
    if isinstance(value, str | Path):
        return [Own(own.task, origin, own.reader) for own in read_own(Path(value))]
    return _given([value] if isinstance(value, PythonTask) else value, origin, None)


def _given(value: object, origin: str, path: Path | None) -> list[Own]:
    """Tasks from a list of PythonTask."""
    listed = isinstance(value, list | tuple) and value
    if not listed or not all(isinstance(v, PythonTask) for v in listed):
        raise DataError(
            "not a list of PythonTask",
            where=f"{origin}: TASKS" if path else origin,
            found=type(value).__name__ if not isinstance(value, list) else repr(value),
            wanted="[PythonTask(definition={...}, records=function), ...]",
        )
    return [_own(given, f"{origin}: task {i}", origin, path) for i, given in enumerate(listed, 1)]


def _own(given: PythonTask, where: str, origin: str, path: Path | None) -> Own:
    if not isinstance(given.definition, Mapping) or not callable(given.records):
        raise DataError(
            "a PythonTask has a mapping and a function",
            where=where,
            found=f"{type(given.definition).__name__}, {type(given.records).__name__}",
            wanted="definition={...}, records=function of the split",
        )
    if "source" in given.definition:
        raise DataError("source: the records come from code", where=where, remedy="remove source")
    raw = {**given.definition, "source": {"given": {"what": origin}}}
    task = make_task(raw, where)
    return Own(task, origin, CodeReader(task, given.records, origin, path))


class CodeReader:
    """Records from a function of the user's."""

    def __init__(self, task: Task, records: Records, origin: str, path: Path | None) -> None:
        self._name = task.name
        self._records = records
        self._path = path
        self.about = f"code: {origin}"
        self.carve_test = CARVE_TEST if task.scored else None
        self._has: dict[Split, bool] = {}
        self._begun: dict[Split, Iterable[object]] = {}

    def has(self, split: Split) -> bool:
        """Whether the function gives anything: not None, nor a generator that yields nothing."""
        if split not in self._has:
            found: Iterable[object] | None = self._call(split)
            if isinstance(found, Iterator):
                first = self._next(found)
                found = None if first is None else chain([first], found)
            self._has[split] = found is not None
            if found is not None:
                self._begun[split] = found
        return self._has[split]

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records, which have to be mappings with names for keys.

        Raises:
            DataError: the code fails, with its line; through `fault`, a record that is none.
        """
        begun = self._begun.pop(split, None)
        records = iter(self._call(split) or () if begun is None else begun)
        number = 0
        while (record := self._next(records)) is not None:
            where = f"{self._name}, {split} record {number + 1}"
            if isinstance(record, Mapping) and all(isinstance(key, str) for key in record):
                yield Row(where, number, record)
            else:
                found = type(record).__name__
                fault(
                    DataError("not a record", where=where, found=found, wanted="a mapping of names")
                )
            number += 1

    def _call(self, split: Split) -> Iterable[Mapping[str, Any]] | None:
        try:
            with _beside(self._path):
                found = self._records(split)
        except (Exception, SystemExit) as error:
            raise _broken(error, self._path, f"records({split!r}) fails", self.about) from error
        if found is not None and not isinstance(found, Iterable):
            raise DataError(
                f"records({split!r}) gives no records",
                where=self.about,
                found=type(found).__name__,
                wanted="an iterable of mappings, or None",
            )
        return found

    def _next(self, records: Iterator[Any]) -> object:
        """The next record, or None behind the last."""
        try:
            with _beside(self._path):
                for record in records:
                    return "null" if record is None else cast(object, record)
        except (Exception, SystemExit) as error:
            raise _broken(error, self._path, "making records fails", self.about) from error
        return None


def _broken(
    error: BaseException, path: Path | None, what: str, where: str | None = None
) -> DataError:
    """An error of the user's code, with the last line of the file that it came through."""
    if isinstance(error, DataError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if path and frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    place = shorten(str(path), 300) if path else where
    return DataError(
        f"{what}: {type(error).__name__}: {shorten(str(error), 200)}",
        where=f"{place}:{line}" if line else place,
        remedy="mend the code",
    )


LOOKED_AT = 20_000
"""Rows that are looked at."""
MOST_LABELS = 50

_TEXTS = ("text", "sentence", "content", "message", "body", "review", "title", "question", "input")
_LABELS = ("label", "labels", "category", "class", "topic", "intent", "sentiment", "tag", "target")
_PAIRS = (("question", "answer"), ("input", "output"), ("question", "response"), ("text", "target"))


@dataclass(frozen=True, slots=True)
class Starter:
    """What was found, in a sentence, and the task YAML."""

    found: str
    text: str


def starter(path: Path, taken: Container[str] = (), folder: Path | None = None) -> Starter:
    """Look at a file of rows and write the task YAML that fits them.

    `taken`: names that the task cannot have. `folder`: where the YAML will lie, if not beside the
    rows.

    Raises:
        DataError: the file cannot be read, has no rows, or its columns fit no form.
    """
    rows = list(islice(read_rows(path, _leave_out), LOOKED_AT))
    if not rows:
        raise DataError("the file has no rows to look at", where=shorten(str(path), 300))
    stem = path.name.removesuffix(ending(path.name) or "").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem)[:60].strip("-") or "task"
    name = f"own-{name}" if name in taken else name
    source = os.path.relpath(path, folder or path.parent)
    found, lines = _form(rows, path)
    head = [f"name: {_quoted(name)}", *lines, f"source: {_quoted(source)}"]
    return Starter(found, "\n".join(head) + "\n")


def _leave_out(fault: DataError) -> None:
    """The check that follows reports the row."""


def _form(rows: Sequence[Row], path: Path) -> tuple[str, list[str]]:
    first = rows[0].record
    for field in ("messages", "conversations"):
        if isinstance(first.get(field), list):
            return _conversation(field, first[field])
    if {"instruction", "output"} <= first.keys():
        return "alpaca rows (instruction, input, output)", ["format: alpaca"]
    if {"prompt", "completion"} <= first.keys():
        return "prompt and completion", ["format: prompt-completion"]
    label = _label_column(rows)
    text = _text_column(rows, label)
    if label is not None and text is not None:
        return _labelled(rows, text, label)
    for asked, told in _PAIRS:
        if {asked, told} <= first.keys():
            prompt = [
                "prompt: |-",
                f"  {{{{ {asked} }}}}",
                f"target: {_quoted(f'{{{{ {told} }}}}')}",
            ]
            return f"open answers: {asked} and {told}", prompt
    raise DataError(
        "the columns fit no form that is known",
        where=shorten(str(path), 300),
        found=", ".join(map(str, first)),
        wanted="a text and a label with few values; instruction and output; prompt and completion; "
        "messages; conversations",
        remedy="write a task YAML with a prompt that names your columns (docs/your-own-task.md)",
    )


def _conversation(field: str, turns: list[Any]) -> tuple[str, list[str]]:
    named = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    form = "sharegpt" if "from" in named else "messages"
    usual = {"sharegpt": "conversations", "messages": "messages"}[form]
    columns = [] if field == usual else [f"columns: {{messages: {field}}}"]
    return f"conversations in {field} ({form})", [f"format: {form}", *columns]


def _label_column(rows: Sequence[Row]) -> str | None:
    """The column that holds few values, again and again."""
    fit = []
    for name in rows[0].record:
        values = [row.record.get(name) for row in rows]
        kinds = all(isinstance(v, str | int) and str(v).strip() for v in values)
        distinct = len({str(v).strip() for v in values}) if kinds else 0
        if 2 <= distinct <= min(MOST_LABELS, len(rows) // 2):
            fit.append((name.lower() not in _LABELS, distinct, name))
    return min(fit)[2] if fit else None


def _text_column(rows: Sequence[Row], label: str | None) -> str | None:
    """The column with the longest texts, those with a usual name before others."""
    size: Counter[str] = Counter()
    for row in rows:
        size.update({k: len(v) for k, v in row.record.items() if isinstance(v, str) and k != label})
    fit = [(name.lower() in _TEXTS, total, name) for name, total in size.items() if total]
    return max(fit)[2] if fit else None


def _labelled(rows: Sequence[Row], text: str, label: str) -> tuple[str, list[str]]:
    counts = Counter(_written(row.record[label]) for row in rows)
    # The commonest spelling is the label; others differ from it by case or spacing alone.
    chosen: dict[str, str] = {}
    for value, _ in counts.most_common():
        chosen.setdefault(fold(value), value)
    labels = sorted(chosen.values())
    others = [f"{_quoted(v)}: {_quoted(chosen[fold(v)])}" for v in sorted({*counts} - {*labels})]
    begins = any(b.startswith(a) for a, b in pairwise(sorted(chosen)))
    # A template can name the usual columns; another name may mean something else in it.
    shown = text if text in _TEXTS else "content" if label == "text" else "text"
    lines = [
        f"labels: [{', '.join(map(_quoted, labels))}]",
        *(["allow_prefix_labels: true  # one label begins like another"] if begins else []),
        "prompt: |-",
        "  Which of these fits the text? Answer with one of: {{ labels | join(', ') }}.",
        "",
        f"  {{{{ {shown} }}}}",
        f"fields: {{label: {_quoted(label)}}}",
        *([f"label_values: {{{', '.join(others)}}}"] if others else []),
        *([f"columns: {{{shown}: {_quoted(text)}}}"] if shown != text else []),
    ]
    return f"text in {shorten(text)}, one of {len(labels)} labels in {shorten(label)}", lines


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _quoted(text: str) -> str:
    """A YAML string: JSON's, with escapes for all that cannot be seen."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written)
