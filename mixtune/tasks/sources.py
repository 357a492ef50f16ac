"""Where records come from: a local folder, the hub, the toy generator. One record at a time.

Knows: file names, lines, encodings, the hub's loader, what can be wrong with a file. Does not
know: prompts and labels (base.py), caching and splitting (registry.py).
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from mixtune.errors import DataError, did_you_mean
from mixtune.records import Split
from mixtune.tasks.base import FlatQuestions, HubSource, LocalSource, Task

LONGEST_LINE = 10_000_000
"""Bytes that one line of a file may have."""

LAYOUT = "<data-dir>/<folder>/<split>.jsonl or .jsonl.gz, one JSON object a line, UTF-8"


@dataclass(frozen=True, slots=True)
class Row:
    """One record, where it stands (for messages), its place, and the one question it is about."""

    where: str
    number: int
    record: Mapping[str, Any]
    only: str | None = None


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

    def rows(self, split: Split) -> Iterator[Row]:
        """The records of a split, in their stored order."""
        ...


def reader_for(task: Task, data_dir: Path | None) -> Reader:
    """The one place a task is read from: toy generator, else the data directory, else the hub.

    With a data directory, a task that has a local form is never fetched from the hub instead.

    Raises:
        DataError: the data directory lacks the task's folder, or there is no place to read from.
    """
    source = task.source
    if source.toy is not None:
        return ToyReader(task.name)
    if data_dir is not None and source.local is not None:
        return LocalReader(task.name, source.local, data_dir)
    if source.hub is not None:
        return HubReader(task.name, source.hub)
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

    def rows(self, split: Split) -> Iterator[Row]:
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

    def rows(self, split: Split) -> Iterator[Row]:
        """The records of the split's file."""
        path = self._file(split)
        if path is None:
            raise DataError(
                f"the folder has no {split} split",
                where=self._name,
                found=self.about,
                wanted=LAYOUT,
            )
        yield from read_jsonl(path)

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


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file, plain or gzipped, a line at a time.

    Blank lines are not records. Row.where is `file:line`.

    Raises:
        DataError: unreadable file, wrong encoding, malformed line, line too long.
    """
    try:
        with _open(path) as file:
            number = 0
            for line_number, line in enumerate(_lines(file, path), start=1):
                if line.strip():
                    where = f"{path}:{line_number}"
                    yield Row(where, number, _parse_line(line, where))
                    number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read the file: {error}", where=str(path), remedy="copy the file again"
        ) from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of bounded length, so that a file without line ends cannot fill the memory."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                "the line is too long",
                where=f"{path}:{number}",
                found=f"over {LONGEST_LINE} bytes",
                wanted=LAYOUT,
                remedy="check that the file is JSON lines and not one large JSON list",
            )
        yield line


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    text = _decode(line, where)
    try:
        record = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not valid JSON: {error}",
            where=where,
            found=text.strip(),
            wanted="one JSON object a line",
            remedy="mend or remove the line",
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            "the line is not a JSON object",
            where=where,
            found=text.strip(),
            wanted='{"field": value, …}',
            remedy="check that the file is JSON lines and not one large JSON list",
        )
    if b"\\u" in line:
        _refuse_lone_surrogates(record, where)
    return record


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig" if where.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"wrong encoding: {error.reason} at byte {error.start} of the line",
            where=where,
            found=repr(line[max(0, error.start - 20) : error.start + 20]),
            wanted="UTF-8",
            remedy="convert the file, for example with iconv -t UTF-8",
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return record


def _refuse_lone_surrogates(record: dict[str, Any], where: str) -> None:
    """Half of a character that needs two escapes cannot be written as UTF-8 later on."""
    for field, value in record.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "half an escaped character (a lone surrogate)",
                where=f"{where}: field {field.encode(errors='replace').decode()!r}",
                found=repr(value),
                wanted="text that UTF-8 can hold",
                remedy="mend the escape sequence",
            ) from error


class HubReader:
    """Records of a dataset on the hub, through the `datasets` library."""

    def __init__(self, name: str, source: HubSource) -> None:
        self._name = name
        self._source = source

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

    def rows(self, split: Split) -> Iterator[Row]:
        """The records of the hub's split, renamed to our fields; they are numbered for want of ids.

        Raises:
            DataError: the hub or the dataset cannot be reached, a field is not there.
        """
        theirs = self._source.splits[split]
        for number, raw in enumerate(_fetch(self._name, self._source, theirs)):
            where = f"{self._source.path}, {theirs} row {number}"
            record = _rename(raw, self._source.rename, where)
            record.setdefault("id", f"{theirs}-{number}")
            if self._source.flat is None:
                yield Row(where, number, record)
            else:
                yield _unflatten(record, self._source.flat, Row(where, number, record))


def _fetch(name: str, source: HubSource, split: str) -> Iterable[Mapping[str, Any]]:
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
