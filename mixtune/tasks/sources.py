"""Where records come from: files, a local folder, the hub, the toy generator.

Knows: which file holds which split, the hub's loader. Does not know: file formats (files.py),
prompts and labels (base.py), caching and splitting (registry.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.records import Split
from mixtune.tasks.base import Task
from mixtune.tasks.files import Fault, Row, read_rows, refuse
from mixtune.tasks.places import FileSource, FlatQuestions, HubSource, LocalSource

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


def reader_for(task: Task, data_dir: Path | None) -> Reader:
    """The one place a task is read from: own files, toy generator, data directory, or the hub.

    With a data directory, a task that has a local form is never fetched from the hub instead.

    Raises:
        DataError: the data directory lacks the task's folder, or there is no place to read from.
    """
    source = task.source
    if source.files is not None:
        return FileReader(task, source.files)
    if source.toy is not None:
        return ToyReader(task.name)
    if data_dir is not None and source.local is not None:
        return LocalReader(task.name, source.local, data_dir)
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

    carve_test = None

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: dict[Split, list[dict[str, str]]] = {}

    @property
    def about(self) -> str:
        """A text that says "synthetic"."""
        return "synthetic: the embedded seeded generator"

    def has(self, split: Split) -> bool:
        """Whether the generator gives the split any record."""
        return bool(self._records(split))

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The generated records."""
        for number, record in enumerate(self._records(split)):
            yield Row(f"{self._name}, {split} record {number}", number, record)

    def _records(self, split: Split) -> list[dict[str, str]]:
        from mixtune.tasks import toy

        if split not in self._made:
            self._made[split] = toy.records(self._name, split)
        return self._made[split]


class LocalReader:
    """Records of a folder below the data directory."""

    carve_test = None

    def __init__(self, name: str, source: LocalSource, data_dir: Path) -> None:
        self._name = name
        self._source = source
        self._folder = data_dir / source.folder
        if not self._folder.is_dir():
            there = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
            raise DataError(
                "the data directory has no folder for this task",
                where=name,
                found=f"{data_dir} with {', '.join(there) or 'no folders'}",
                wanted=f"{self._folder} ({LAYOUT})",
                remedy="put the task's files there, or leave --data-dir out to use the hub",
            )

    @property
    def about(self) -> str:
        """The folder."""
        return str(self._folder)

    def has(self, split: Split) -> bool:
        """Whether the split's file is there."""
        return self._file(split) is not None

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of the split's file."""
        path = self._file(split)
        if path is None:
            raise DataError(
                f"the folder has no {split} split",
                where=self._name,
                found=self.about,
                wanted=LAYOUT,
            )
        yield from read_rows(path, fault)

    def _file(self, split: Split) -> Path | None:
        """The split's file; one that the task file names has to be there."""
        if self._source.files:
            named = self._source.files.get(split)
            if named is not None and not (self._folder / named).is_file():
                raise DataError(
                    "the file that the task file names is not there",
                    where=self._name,
                    wanted=str(self._folder / named),
                    remedy="put it there, or mend source.local.files",
                )
            return None if named is None else self._folder / named
        both = [self._folder / f"{split}.jsonl", self._folder / f"{split}.jsonl.gz"]
        there = [path for path in both if path.is_file()]
        if len(there) == 2:
            raise DataError(
                "the split is there twice, plain and compressed",
                where=self._name,
                found=", ".join(map(str, there)),
                remedy="remove one of them",
            )
        return there[0] if there else None


class FileReader:
    """Records of files of one's own, one for each split."""

    def __init__(self, task: Task, source: FileSource) -> None:
        self._paths = source.paths()
        share = source.carve_test
        # A set that is only trained on loses no rows to a test that nobody takes.
        self.carve_test = CARVE_TEST if share is None and task.scored else share

    @property
    def about(self) -> str:
        """The files' names."""
        return ", ".join(shorten(path.name) for path in self._paths.values())

    def has(self, split: Split) -> bool:
        """Whether the task file names a file for the split."""
        return split in self._paths

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        """The records of the split's file."""
        return read_rows(self._paths[split], fault)


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
