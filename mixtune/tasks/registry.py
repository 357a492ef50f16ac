"""Which tasks there are, and their examples: loaded, checked, split, kept in memory.

Knows: task files, aliases, carving by group. Does not know: file formats (sources.py), prompts
(base.py), models, mixtures.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from mixtune.errors import DataError, SpecError, did_you_mean
from mixtune.identity import unit_interval
from mixtune.records import Example, Split
from mixtune.tasks.base import Task, parse_task
from mixtune.tasks.sources import Reader, Row, reader_for


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a split was made of: records read = kept + dropped, and examples made of those kept.

    `read_from` is the stored split; `examples` those of the split asked for, `elsewhere` those of
    the stored split that carving gives to another split. `dropped` counts records by reason.
    """

    task: str
    split: Split
    source: str
    read_from: Split
    records: int
    kept: int
    dropped: Mapping[str, int]
    examples: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored split, rendered."""

    examples: tuple[Example, ...]
    records: int
    dropped: Mapping[str, int]


class Registry:
    """Tasks by name, with the place that each is read from."""

    def __init__(self, tasks: Iterable[Task], data_dir: Path | None = None) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise DataError(
                "the data directory is not there",
                where=str(data_dir),
                wanted="a folder with one folder per task",
                remedy="check --data-dir, or leave it out to use the hub",
            )
        self._data_dir = data_dir
        self._tasks: dict[str, Task] = {}
        self._aliases: dict[str, str] = {}
        self._readers: dict[str, Reader] = {}
        self._stored: dict[tuple[str, Split], _Stored] = {}
        for task in tasks:
            self._add(task)

    @classmethod
    def builtin(cls, data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package.

        Raises:
            DataError: the data directory is not there.
        """
        folder = resources.files("mixtune.tasks") / "builtin"
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=_file_name)
        return cls((parse_task(f.read_text(encoding="utf-8"), f.name) for f in files), data_dir)

    @classmethod
    def open(cls, task_files: Iterable[str], data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package, and those of a study's own files.

        Raises:
            DataError: the data directory is not there; a file that cannot be used.
        """
        return cls.builtin(data_dir).with_files(map(Path, task_files))

    def with_files(self, paths: Iterable[Path]) -> "Registry":
        """A registry with tasks of the user's own added, from YAML files.

        Raises:
            DataError: a file that cannot be read or used, a name that is already taken.
        """
        return Registry((*self._tasks.values(), *map(_read_task, paths)), self._data_dir)

    def names(self) -> list[str]:
        """Names of all tasks, sorted."""
        return sorted(self._tasks)

    def get(self, name: str) -> Task:
        """A task by its name or one of its aliases; "_" and upper case do not matter.

        Raises:
            SpecError: no such task.
        """
        key = _key(name)
        key = self._aliases.get(key, key)
        if key not in self._tasks:
            raise SpecError(
                f"no task is called {name!r}",
                wanted=did_you_mean(key, [*self._tasks, *self._aliases]),
                remedy="`mixtune tasks` lists them all",
            )
        return self._tasks[key]

    def source_of(self, name: str) -> str:
        """Where a task is read from, for people.

        Raises:
            SpecError: no such task. DataError: there is no place to read it from.
        """
        return self._reader(self.get(name)).about

    def examples(self, name: str, split: Split, carve: float) -> list[Example]:
        """The examples of a split, in stored order.

        Where there is no validation split, the train groups with unit_interval("carve", group)
        below `carve` are validation and the others train; a split given upstream stays whole.

        Raises:
            SpecError: no such task. DataError: no such split, or a record that cannot be used.
        """
        task = self.get(name)
        read_from, stored = self._source_split(task, split)
        shares = self._shares(task, carve)
        if read_from == split and (split != "train" or not shares):
            return list(stored.examples)
        found = [e for e in stored.examples if _place(e.group, shares) == split]
        if not found:
            raise DataError(
                f"carving leaves no {split} examples",
                where=task.name,
                found=f"{len(stored.examples)} train examples, shares {dict(shares)}",
                remedy="give the task more data or a split of its own, or change evaluate.carve",
            )
        return [e if e.split == split else replace(e, split=split) for e in found]

    def report(self, name: str, split: Split, carve: float) -> LoadReport:
        """What `examples` of the same arguments was made of."""
        task = self.get(name)
        examples = self.examples(name, split, carve)
        read_from, stored = self._source_split(task, split)
        dropped = sum(stored.dropped.values())
        return LoadReport(
            task=task.name,
            split=split,
            source=self.source_of(name),
            read_from=read_from,
            records=stored.records,
            kept=stored.records - dropped,
            dropped=dict(stored.dropped),
            examples=len(examples),
            elsewhere=len(stored.examples) - len(examples),
        )

    def _add(self, task: Task) -> None:
        for name in (task.name, *map(_key, task.aliases)):
            if name in self._tasks or self._aliases.get(name, task.name) != task.name:
                raise DataError(
                    f"the name {name!r} is already taken",
                    where=task.name,
                    remedy="give the task another name or alias",
                )
        self._tasks[task.name] = task
        self._aliases |= {_key(alias): task.name for alias in task.aliases}

    def _reader(self, task: Task) -> Reader:
        if task.name not in self._readers:
            self._readers[task.name] = reader_for(task, self._data_dir)
        return self._readers[task.name]

    def _shares(self, task: Task, carve: float) -> tuple[tuple[Split, float], ...]:
        """The splits that are carved from train, with the share of groups that each takes."""
        reader = self._reader(task)
        shares: list[tuple[Split, float]] = []
        if not reader.has("test") and reader.carve_test is not None:
            shares.append(("test", reader.carve_test))
        if not reader.has("validation"):
            shares.append(("validation", carve))
        return tuple(shares)

    def _source_split(self, task: Task, split: Split) -> tuple[Split, _Stored]:
        """The stored split that a split is read from: itself, or train where it is carved."""
        reader = self._reader(task)
        carved = split == "validation" or (split == "test" and reader.carve_test is not None)
        read_from: Split = "train" if carved and not reader.has(split) else split
        if not reader.has(read_from):
            raise DataError(
                f"the dataset has no {read_from} split",
                where=task.name,
                found=reader.about,
                remedy="ask for another split, or add the file",
            )
        key = (task.name, read_from)
        if key not in self._stored:
            self._stored[key] = _load(task, reader, read_from)
        return read_from, self._stored[key]


def _load(task: Task, reader: Reader, split: Split) -> _Stored:
    """Read and render a stored split; every record is kept or counted as dropped."""
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    seen: dict[str, str] = {}
    records = kept = 0
    for row in reader.rows(split):
        records += 1
        reason = task.dropped(row.record)
        if reason is not None:
            dropped[reason] += 1
            continue
        made = task.to_examples(
            row.record, split, where=row.where, number=row.number, only=row.only
        )
        _refuse_repeats(made, seen, row)
        examples += made
        kept += 1
    if not examples:
        raise DataError(
            f"the {split} split has no usable record",
            where=task.name,
            found=f"{records} records in {reader.about}, dropped: {dict(dropped)}",
        )
    assert records == kept + dropped.total()
    return _Stored(tuple(examples), records, dropped)


def _refuse_repeats(made: Iterable[Example], seen: dict[str, str], row: Row) -> None:
    for example in made:
        if example.id in seen:
            raise DataError(
                "the id is there twice",
                where=row.where,
                found=f"{example.id}, first at {seen[example.id]}",
                wanted="an id that no other record of the split has",
                remedy="mend the ids, or set fields: {id: null} to number the records",
            )
        seen[example.id] = row.where


def _place(group: str, shares: Iterable[tuple[Split, float]]) -> Split:
    """The split that a train group belongs to: a function of the group's text alone."""
    for split, share in shares:
        purpose = "carve" if split == "validation" else f"carve-{split}"
        if unit_interval(purpose, group) < share:
            return split
    return "train"


def _read_task(path: Path) -> Task:
    try:
        return parse_task(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the task file: {error}", where=str(path), remedy="check the path"
        ) from error


def _file_name(file: resources.abc.Traversable) -> str:
    return file.name


def _key(name: str) -> str:
    """The spelling that names are compared in: kebab-case, lower case."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")
