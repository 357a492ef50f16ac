"""Where records come from: files, a local folder, the hub, the toy generator.

Knows: which file holds which split, the hub's loader. Does not know: file formats (files.py),
prompts and labels (base.py), caching and splitting (registry.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from mixtune.datasets.rows import Fault, Row, read_rows, refuse
from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.records import Split
from mixtune.tasks.source_spec import FileSource, FlatQuestions, HubSource, LocalSource
from mixtune.tasks.task import Task

CARVE_TEST = 0.2
"""Share of a scored task's train groups that become test where its own files hold none."""

LAYOUT = "<data-dir>/<folder>/<split>.jsonl or .jsonl.gz, one JSON object a line, UTF-8"


class Reader(Protocol):
    """A place that records of one task can be read from, split by split."""

    @property
    def about(self) -> str:
        """Where the records come from, for people."""
        ...

    @property
    def carve_test(self) -> float | None:
        """Share of train groups that stand in for a missing test split."""
        ...

    def has(self, split: Split) -> bool:
        """Whether the split is there."""
        ...

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of a split, in their stored order; `fault` as in files.py."""
        ...


@dataclass(frozen=True, slots=True)
class Own:
    """A task, what brought it, and its reader where it brings one."""

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
        return _own_files(task, source.files)
    if source.toy is not None:
        return ToyReader(task.name)
    if data_dir is not None and source.local is not None:
        return _folder(task.name, source.local, data_dir)
    if source.hub is not None:
        return HubReader(task.name, source.hub)
    if source.given is not None:
        raise DataError(
            "source.given is what Python files and imports bring, not task files",
            where=task.name,
            wanted="a path, local or hub",
        )
    raise DataError(
        "this task is read from a local folder, and no data directory was given",
        where=task.name,
        wanted=LAYOUT,
        remedy="name the directory with --data-dir",
    )


class ToyReader:
    """Records of the embedded suite, from its seeded generator."""

    about = "synthetic: the embedded seeded generator"
    carve_test = None

    def __init__(self, name: str) -> None:
        self._name = name

    def has(self, split: Split) -> bool:
        """Every split is there."""
        return True

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The generated records."""
        from mixtune.datasets import toy

        for number, record in enumerate(toy.records(self._name, split)):
            yield Row(f"{self._name}, {split} record {number}", number, record)


class FileReader:
    """Records of files, one for each split."""

    def __init__(self, paths: Mapping[Split, Path], about: str, carve_test: float | None) -> None:
        self._paths = paths
        self.about = about
        self.carve_test = carve_test

    def has(self, split: Split) -> bool:
        """Whether there is a file for the split."""
        return split in self._paths

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of the split's file."""
        return read_rows(self._paths[split], fault)


def _own_files(task: Task, source: FileSource) -> FileReader:
    paths = source.paths()
    # A set that is only trained on loses no rows to a test that nobody takes.
    usual = CARVE_TEST if task.scored else None
    about = ", ".join(shorten(path.name) for path in paths.values())
    return FileReader(paths, about, source.carve_test or usual)


def _folder(name: str, source: LocalSource, data_dir: Path) -> FileReader:
    """The files of a folder below the data directory; one that the task file names has to be there.

    Raises:
        DataError: no such folder, a split that is there twice.
    """
    folder = data_dir / source.folder
    if not folder.is_dir():
        there = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
        raise DataError(
            "the data directory has no folder for this task",
            where=name,
            found=f"{data_dir} with {', '.join(there) or 'no folders'}",
            wanted=f"{folder} ({LAYOUT})",
            remedy="put the task's files there, or leave --data-dir out to use the hub",
        )
    if source.files:
        paths = {split: folder / file for split, file in source.files.items()}
        return FileReader(paths, str(folder), None)
    paths = {}
    for split in get_args(Split):
        plain, gzipped = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
        if plain.is_file() and gzipped.is_file():
            raise DataError(
                "the split is there twice, plain and compressed",
                where=name,
                found=f"{plain}, {gzipped}",
                remedy="remove one of them",
            )
        if plain.is_file() or gzipped.is_file():
            paths[split] = plain if plain.is_file() else gzipped
    return FileReader(paths, str(folder), None)


class HubReader:
    """Records of a dataset on the hub, through the `datasets` library."""

    def __init__(self, name: str, source: HubSource, stream: bool = False) -> None:
        self._name = name
        self._source = source
        self._options = {"streaming": True} if stream else {}

    @property
    def about(self) -> str:
        """Path, configuration and revision on the hub."""
        parts = [self._source.path, self._source.config or self._source.data_dir]
        text = "hub: " + "/".join(p for p in parts if p)
        text += f" at {self._source.revision}" if self._source.revision else ""
        return text + (" (entry not checked against the hub)" if self._source.unverified else "")

    @property
    def carve_test(self) -> float | None:
        """As the task file says."""
        return self._source.carve_test

    def has(self, split: Split) -> bool:
        """Whether the task file maps the split to one on the hub."""
        return split in self._source.splits

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of the hub's split, renamed to our fields; they are numbered for want of ids.

        Raises:
            DataError: the hub or the dataset cannot be reached, a field is not there.
        """
        theirs = self._source.splits[split]
        for number, raw in enumerate(_fetch(self._name, self._source, theirs, self._options)):
            where = f"{self._source.path}, {theirs} row {number}"
            record = _rename(raw, self._source.rename, where)
            record.setdefault("id", f"{theirs}-{number}")
            if self._source.flat is None:
                yield Row(where, number, record)
            else:
                yield _unflatten(record, self._source.flat, Row(where, number, record))


def _fetch(
    name: str, source: HubSource, split: str, options: Mapping[str, bool]
) -> Iterable[Mapping[str, Any]]:
    """One split of a hub dataset; `datasets` is imported here because it may import torch."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(
            source.path,
            source.config,
            data_dir=source.data_dir,
            split=split,
            revision=source.revision,
            **options,
        )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        note = " (this entry could not be checked against the hub)" if source.unverified else ""
        raise DataError(
            f"cannot load the dataset from the hub: {type(error).__name__}: {error}{note}",
            where=name,
            found=f"{source.path}, split {split}, revision {source.revision or 'main'}",
            wanted=f"a network connection to the hub, or the data in a local folder: {LAYOUT}",
            remedy="name the local folder with --data-dir, or check network and dataset name",
        ) from error
    return rows


def _rename(raw: Mapping[str, Any], rename: Mapping[str, str], where: str) -> dict[str, Any]:
    for theirs in rename:
        if theirs not in raw:
            raise DataError(
                f"the hub's record has no field {theirs!r}",
                where=where,
                found=", ".join(raw),
                wanted=theirs,
                remedy=f"mend source.hub.rename in the task file; {did_you_mean(theirs, raw)}",
            )
    return {rename.get(field, field): value for field, value in raw.items()}


def _unflatten(record: Mapping[str, Any], flat: FlatQuestions, row: Row) -> Row:
    """A row about one question, as a record that holds that question's field only."""
    for field in (flat.question, flat.answer):
        if field not in record:
            raise DataError(
                f"the hub's record has no field {field!r}",
                where=row.where,
                found=", ".join(record),
                remedy="mend source.hub.flat in the task file",
            )
    asked = _letters(str(record[flat.question]))
    known = {_letters(value): ours for value, ours in flat.values.items()}
    if asked not in known:
        raise DataError(
            "a question that the task file does not know",
            where=f"{row.where}: field {flat.question!r}",
            found=str(record[flat.question]),
            wanted=", ".join(sorted(flat.values)),
            remedy="add it to source.hub.flat.values in the task file",
        )
    ours = known[asked]
    return Row(row.where, row.number, {**record, ours: record[flat.answer]}, only=ours)


def _letters(text: str) -> str:
    """Letters and digits in lower case: "direction_up" and "DirectionUp" name one question."""
    return "".join(filter(str.isalnum, text.casefold()))
