"""Load tasks of users' files and installed packages; draft a task file for a file of rows.

A file is a task YAML (a task a document), a Python file with `TASKS`, LLaMA-Factory's
dataset_info.json or an Axolotl configuration. A package offers tasks under the entry-point group
`mixtune.tasks`. Python files and packages are run as code: name only those that you trust.
"""

import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from itertools import chain, islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mixtune.datasets.arrow_rows import saved_splits
from mixtune.datasets.rows import Fault, Row, guess_reading, read_rows, refuse
from mixtune.datasets.sources import CARVE_TEST, Reader, RegisteredTask
from mixtune.datasets.trainer_formats import axolotl_tasks, factory_tasks
from mixtune.errors import DataError, shorten
from mixtune.identity import digest
from mixtune.records import Split
from mixtune.study.yaml import read_documents, read_file
from mixtune.tasks.parsers.stated_labels import fold
from mixtune.tasks.record import plain_value, preferences
from mixtune.tasks.source_spec import READABLE, ending
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


# ---- drafts -------------------------------------------------------------------------------------

SAMPLE_ROWS = 20_000
"""Rows that a draft is based on."""
MOST_LABELS = 50

_TEXTS = ("text", "sentence", "content", "message", "body", "review", "title", "question", "input")
_LABELS = ("label", "labels", "category", "class", "topic", "intent", "sentiment", "tag", "target")
_PAIRS = (("question", "answer"), ("input", "output"), ("question", "response"), ("text", "target"))


@dataclass(frozen=True, slots=True)
class Draft:
    """A sentence on the form of the rows, and the text of a task YAML for them."""

    form: str
    text: str


def draft_task(path: Path, names: Container[str] = (), folder: Path | None = None) -> Draft:
    """Draft a task file for a file of rows.

    `names` are in use; `folder` is that of the task file, if it is not that of the rows.

    Raises:
        DataError: the file cannot be read, has no rows, or its columns fit no form.
    """
    splits = saved_splits(path)
    sample = path / "train" if splits and "train" in splits else path
    reading, doubts = guess_reading(sample)
    faults: list[DataError] = []
    # Bad rows are skipped: the check of the draft reports them.
    rows = [
        replace(row, record=plain_value(row.record))
        for row in islice(read_rows(sample, faults.append, reading), SAMPLE_ROWS)
    ]
    if not rows:
        no_rows = DataError("the file has no rows to look at", where=shorten(str(path), 300))
        raise faults[0] if faults else no_rows
    if compared := preferences(rows[0].record):
        raise DataError(
            "preferences are not trained on here",
            where=rows[0].where,
            found=", ".join(compared),
            wanted="one answer a row",
            remedy="to train on the chosen answers alone, write a task file with "
            "format: prompt-completion and columns: {completion: chosen}",
        )
    stem = path.name.removesuffix(ending(path.name) or "").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem)[:60].strip("-") or "task"
    name = f"own-{name}" if name in names else name
    source = os.path.relpath(path, folder or path.parent)
    try:
        form, lines = _form(rows, path)
    except DataError as error:
        raise (faults or [error])[0] from None
    source += "/" * path.is_dir()
    last = f"source: {_quoted(source)}"
    if settings := reading.model_dump(exclude_none=True, mode="json"):
        keys = "".join(f", {key}: {json.dumps(value)}" for key, value in settings.items())
        last = f"source: {{train: {_quoted(source)}{keys}}}"
    text = "\n".join([f"name: {_quoted(name)}", *lines, last])
    return Draft("; ".join([form, *doubts]), text + "\n")


def _form(rows: Sequence[Row], path: Path) -> tuple[str, list[str]]:
    """The form of the rows in words, and the lines of the task file that follow from it."""
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
    for question, answer in _PAIRS:
        if {question, answer} <= first.keys():
            target = f"target: {_quoted(f'{{{{ {answer} }}}}')}"
            lines = ["prompt: |-", f"  {{{{ {question} }}}}", target]
            return f"open answers: {question} and {answer}", lines
    raise DataError(
        "the columns fit no form that is known",
        where=shorten(str(path), 300),
        found=", ".join(map(str, first)),
        wanted="a text and a label with few values; instruction and output; prompt and completion; "
        "messages; conversations",
        remedy="write a task YAML with a prompt that names your columns (docs/your-own-task.md)",
    )


def _conversation(field: str, turns: list[Any]) -> tuple[str, list[str]]:
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    form, default = ("sharegpt", "conversations") if "from" in first else ("messages", "messages")
    columns = [] if field == default else [f"columns: {{messages: {field}}}"]
    return f"conversations in {field} ({form})", [f"format: {form}", *columns]


def _label_column(rows: Sequence[Row]) -> str | None:
    """The column with few, repeated values; one with a usual name before others."""
    candidates = []
    for name in rows[0].record:
        values = [row.record.get(name) for row in rows]
        usable = all(isinstance(v, str | int) and str(v).strip() for v in values)
        distinct = len({str(v).strip() for v in values}) if usable else 0
        if 2 <= distinct <= min(MOST_LABELS, len(rows) // 2):
            candidates.append((name.lower() not in _LABELS, distinct, name))
    return min(candidates)[2] if candidates else None


def _text_column(rows: Sequence[Row], label: str | None) -> str | None:
    """The column with the longest texts; one with a usual name before others."""
    sizes: Counter[str] = Counter()
    for row in rows:
        texts = {k: v for k, v in row.record.items() if isinstance(v, str) and k != label}
        sizes.update({name: len(text) for name, text in texts.items()})
    candidates = [(name.lower() in _TEXTS, size, name) for name, size in sizes.items() if size]
    return max(candidates)[2] if candidates else None


def _labelled(rows: Sequence[Row], text: str, label: str) -> tuple[str, list[str]]:
    counts = Counter(_spelling(row.record[label]) for row in rows)
    # The commonest spelling is the label; others differ from it by case or spacing alone.
    commonest: dict[str, str] = {}
    for value, _ in counts.most_common():
        commonest.setdefault(fold(value), value)
    labels = sorted(commonest.values())
    variants = sorted({*counts} - {*labels})
    mapped = [f"{_quoted(v)}: {_quoted(commonest[fold(v)])}" for v in variants]
    prefixes = any(long.startswith(short) for short, long in pairwise(sorted(commonest)))
    # A template can name the usual columns; another name may mean something else in it.
    field = text if text in _TEXTS else "content" if label == "text" else "text"
    lines = [
        f"labels: [{', '.join(map(_quoted, labels))}]",
        *(["allow_prefix_labels: true  # one label begins like another"] if prefixes else []),
        "prompt: |-",
        "  Which of these fits the text? Answer with one of: {{ labels | join(', ') }}.",
        "",
        f"  {{{{ {field} }}}}",
        f"fields: {{label: {_quoted(label)}}}",
        *([f"label_values: {{{', '.join(mapped)}}}"] if mapped else []),
        *([f"columns: {{{field}: {_quoted(text)}}}"] if field != text else []),
    ]
    return f"text in {shorten(text)}, one of {len(labels)} labels in {shorten(label)}", lines


def _spelling(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _quoted(text: str) -> str:
    """A YAML string: JSON's, with everything invisible escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
