"""Find the records of a task: its own files, a local folder, the hub, the toy generator.

Does not know: file formats (rows.py), prompts and labels (tasks/), splitting (registry.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from mixtune.datasets import toy
from mixtune.datasets.arrow_rows import saved_splits
from mixtune.datasets.rows import Fault, Form, Row, read_rows, refuse
from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.records import Split
from mixtune.tasks.source_spec import (
    AS_SHOWN,
    FileSource,
    FlatQuestions,
    HubSource,
    LocalSource,
    Reading,
)
from mixtune.tasks.task import Task

CARVE_TEST = 0.2
"""Share of a scored task's train groups that become test where its own files have none."""

LAYOUT = "<data-dir>/<folder>/<split>.jsonl or .jsonl.gz, one JSON object a line, UTF-8"


class Reader(ABC):
    """A place that the records of one task are read from, split by split.

    `about` names the place for people. `carve_test` is the share of train groups that stand in for
    a missing test split, if any. `unavailable`: why rows cannot be read without fetching them, or
    at all.
    """

    about: str
    carve_test: float | None = None
    unavailable: str | None = None

    @abstractmethod
    def has(self, split: Split) -> bool:
        """True if the split exists."""

    @abstractmethod
    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of a split in stored order; bad rows are passed to `fault`."""

    def form(self, split: Split) -> Form | None:
        """The form that a split's file was read in, after `rows`; None where there is no choice."""
        return None


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    """A task, the file or package that defines it, and its own reader where it has one."""

    task: Task
    origin: str
    reader: Reader | None = None


def reader_for(task: Task, data_dir: Path | None) -> Reader:
    """The one place a task is read from: own files, toy generator, data directory, or the hub.

    With a data directory, a task that has a local form is never fetched from the hub instead.

    Raises:
        DataError: the data directory lacks the task's folder, or there is no place to read from.
    """
    source = task.source
    if source.files is not None:
        paths = _saved_paths(source.files, task.name) or source.files.paths()
        # A set that is only trained on loses no rows to a test split that nobody uses.
        carve_test = source.files.carve_test or (CARVE_TEST if task.scored else None)
        about = ", ".join(shorten(path.name) for path in source.files.paths().values())
        return _FileReader(paths, about, carve_test, source.files)
    if source.toy is not None:
        return _ToyReader(task.name)
    if data_dir is not None and source.local is not None:
        return _folder_reader(task.name, source.local, data_dir)
    if source.hub is not None:
        return HubReader(task.name, source.hub)
    if source.external is not None:
        raise DataError(
            "source.given is for Python files and imports, not for task files",
            where=task.name,
            wanted="a path, local or hub",
        )
    problem = "this task is read from a local folder, and no data directory was given"
    remedy = "name the directory with --data-dir"
    raise DataError(problem, where=task.name, wanted=LAYOUT, remedy=remedy)


class _ToyReader(Reader):
    """Records of the embedded suite, from its seeded generator."""

    about = "synthetic: the embedded seeded generator"

    def __init__(self, name: str) -> None:
        self._name = name

    def has(self, split: Split) -> bool:
        return True

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        for number, record in enumerate(toy.records(self._name, split)):
            yield Row(f"{self._name}, {split} record {number}", number, record)


class _FileReader(Reader):
    """Records of files, one for each split."""

    def __init__(
        self,
        paths: Mapping[Split, Path],
        about: str,
        carve_test: float | None,
        reading: Reading = AS_SHOWN,
    ) -> None:
        self._paths = paths
        self._reading = reading
        self._forms: dict[Split, Form] = {}
        self.about = about
        self.carve_test = carve_test

    def has(self, split: Split) -> bool:
        return split in self._paths

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        def note(form: Form) -> None:
            self._forms[split] = form

        return read_rows(self._paths[split], fault, self._reading, note)

    def form(self, split: Split) -> Form | None:
        return self._forms.get(split)


def _saved_paths(source: FileSource, name: str) -> dict[Split, Path] | None:
    """A folder for each split of a DatasetDict that is named as train; None for other sources.

    Raises:
        DataError: the DatasetDict has no train split, or other splits are named as well.
    """
    folder = Path(source.train)
    splits = saved_splits(folder)
    if splits is None:
        return None
    usual: dict[Split, tuple[str, ...]] = {
        "train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",),
    }  # fmt: skip
    paths = {own: folder / s for own, names in usual.items() for s in splits if s in names}
    unread = [split for split in splits if folder / split not in paths.values()]
    if "train" not in paths or unread or source.validation or source.test:
        raise DataError(
            "the splits of the folder cannot be used as they are",
            where=name,
            found=f"{folder} with {', '.join(splits)}",
            wanted="train, validation and test, and no other file under source",
            remedy=f"name each: source: {{train: {folder.name}/{(splits or ['train'])[0]}, …}}",
        )
    return paths


def _folder_reader(name: str, source: LocalSource, data_dir: Path) -> _FileReader:
    """Reader of a folder below the data directory; files named by the task file must exist."""
    folder = data_dir / source.folder
    if not folder.is_dir():
        folders = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
        raise DataError(
            "the data directory has no folder for this task",
            where=name,
            found=f"{data_dir} with {', '.join(folders) or 'no folders'}",
            wanted=f"{folder} ({LAYOUT})",
            remedy="put the task's files there, or leave --data-dir out to use the hub",
        )
    paths = {split: folder / file for split, file in source.files.items()}
    for split in () if paths else get_args(Split):
        names = (f"{split}.jsonl", f"{split}.jsonl.gz")
        files = [folder / file for file in names if (folder / file).is_file()]
        if len(files) > 1:
            problem, paths_text = "the split is there twice, plain and compressed", map(str, files)
            raise DataError(
                problem, where=name, found=", ".join(paths_text), remedy="remove one of them"
            )
        if files:
            paths[split] = files[0]
    return _FileReader(paths, str(folder), None)


class HubReader(Reader):
    """Records of a dataset on the hub, through the `datasets` library."""

    def __init__(self, name: str, source: HubSource, stream: bool = False) -> None:
        """Nothing is fetched yet; with `stream`, rows are fetched as they are read."""
        self._name = name
        self._source = source
        self._options = {"streaming": True} if stream else {}
        parts = [source.path, source.config or source.data_dir]
        revision = f" at {source.revision}" if source.revision else ""
        note = " (entry not checked against the hub)" if source.unverified else ""
        self.about = "hub: " + "/".join(p for p in parts if p) + revision + note
        self.carve_test = source.carve_test
        self.unavailable = f"{self.about}: not fetched; mixtune data show {name} does that"

    def has(self, split: Split) -> bool:
        """True if the task file maps the split to one on the hub."""
        return split in self._source.splits

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of the hub's split under the task's field names, numbered if without ids.

        Raises:
            DataError: the hub or the dataset cannot be reached, a field is missing.
        """
        hub_split, rename = self._source.splits[split], self._source.rename
        for number, raw in enumerate(self._fetch(hub_split)):
            where = f"{self._source.path}, {hub_split} row {number}"
            _require(raw, rename, where, "rename")
            record = {rename.get(field, field): value for field, value in raw.items()}
            record.setdefault("id", f"{hub_split}-{number}")
            row = Row(where, number, record)
            yield row if self._source.flat is None else _unflatten(row, self._source.flat)

    def _fetch(self, split: str) -> Iterable[Mapping[str, Any]]:
        # Imported here because it may import torch.
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        source = self._source
        try:
            rows: Iterable[Mapping[str, Any]] = load_dataset(
                source.path,
                source.config,
                data_dir=source.data_dir,
                split=split,
                revision=source.revision,
                **self._options,
            )
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            note = " (this entry could not be checked against the hub)" * source.unverified
            raise DataError(
                f"cannot load the dataset from the hub: {type(error).__name__}: {error}{note}",
                where=self._name,
                found=f"{source.path}, split {split}, revision {source.revision or 'main'}",
                wanted=f"a network connection to the hub, or the data in a local folder: {LAYOUT}",
                remedy="name the local folder with --data-dir, or check network and dataset name",
            ) from error
        return rows


def _require(record: Mapping[str, Any], fields: Iterable[str], where: str, key: str) -> None:
    for field in fields:
        if field not in record:
            remedy = f"fix source.hub.{key} in the task file; {did_you_mean(field, record)}"
            problem, fields_text = f"the hub's record has no field {field!r}", ", ".join(record)
            raise DataError(problem, where=where, found=fields_text, wanted=field, remedy=remedy)


def _unflatten(row: Row, flat: FlatQuestions) -> Row:
    """A row about one question, as a record that has that question's field only."""
    _require(row.record, (flat.question, flat.answer), row.where, "flat")
    question = str(row.record[flat.question])
    names = {_letters(value): name for value, name in flat.values.items()}
    name = names.get(_letters(question))
    if name is None:
        raise DataError(
            "a question that the task file does not know",
            where=f"{row.where}: field {flat.question!r}",
            found=question,
            wanted=", ".join(sorted(flat.values)),
            remedy="add it to source.hub.flat.values in the task file",
        )
    return replace(row, record={**row.record, name: row.record[flat.answer]}, question=name)


def _letters(text: str) -> str:
    """Letters and digits in lower case: "direction_up" and "DirectionUp" name one question."""
    return "".join(filter(str.isalnum, text.casefold()))
