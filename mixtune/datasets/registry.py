"""Which tasks there are, and their examples: loaded, checked, split, kept in memory.

Knows: task files, aliases, carving by group. Does not know: file formats (sources.py), prompts
(base.py), models, mixtures.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import get_args

from mixtune.datasets.rows import Fault, Row, refuse
from mixtune.datasets.sources import HubReader, Own, Reader, reader_for
from mixtune.datasets.trainer_formats import RefusingReader
from mixtune.datasets.user_tasks import installed, read_own
from mixtune.errors import DataError, SpecError, did_you_mean, shorten
from mixtune.identity import unit_interval
from mixtune.records import Example, OwnText, Split
from mixtune.study.spec import Study
from mixtune.tasks.context import Policy
from mixtune.tasks.rendering import grouped
from mixtune.tasks.task import Task
from mixtune.tasks.task_file import parse_task


@cache
def _shipped_tasks() -> tuple[Task, ...]:
    """The tasks that ship with the package, by name; reading their files takes half a second."""
    folder = resources.files("mixtune.tasks") / "builtin"
    files = sorted(
        (f for f in folder.iterdir() if f.name.endswith(".yaml")), key=attrgetter("name")
    )
    return tuple(parse_task(f.read_text(encoding="utf-8"), f.name) for f in files)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a split was made of: records read = kept + dropped, and examples made of those kept.

    `read_from` is the stored split; `examples` those of the split asked for, without those that
    carving gives to another split. `dropped` counts records by reason; `notes` what else happened
    on the way: parts of kept records left out, contexts cut.
    """

    source: str
    read_from: Split
    records: int
    kept: int
    dropped: Mapping[str, int]
    examples: int
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored split, rendered."""

    examples: tuple[Example, ...]
    records: int
    dropped: Mapping[str, int]
    notes: Mapping[str, int]


class Registry:
    """Tasks by name, with the place that each is read from."""

    def __init__(self, tasks: Iterable[Task | Own], data_dir: Path | None = None) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise DataError(
                "the data directory is not there",
                where=str(data_dir),
                wanted="a folder with one folder per task",
                remedy="check --data-dir, or leave it out to use the hub",
            )
        self._data_dir = data_dir
        self._tasks: dict[str, Own] = {}
        self._aliases: dict[str, str] = {}
        self._readers: dict[str, Reader] = {}
        self._stored: dict[tuple[str, Split], _Stored] = {}
        for task in tasks:
            self._add(task if isinstance(task, Own) else Own(task, "the package"))

    @classmethod
    def builtin(cls, data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package.

        Raises:
            DataError: the data directory is not there.
        """
        return cls(_shipped_tasks(), data_dir)

    @classmethod
    def open(cls, task_files: Iterable[str], data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package, those of installed packages, and a study's own.

        Raises:
            DataError: the data directory is not there; a file or package that cannot be used.
        """
        return cls.builtin(data_dir).with_own(installed()).with_files(map(Path, task_files))

    @classmethod
    def of(cls, study: Study, data_dir: Path | None = None) -> "Registry":
        """The tasks that a study can name, with its own policies for long contexts.

        Raises:
            DataError: as `open`. SpecError: a policy for a task that has no long context.
        """
        registry = cls.open(study.task_files, data_dir)
        for name, one in study.contexts.items():
            registry = registry.with_context(name, one.policy, one.words)
        return registry

    def with_files(self, paths: Iterable[Path]) -> "Registry":
        """A registry with tasks of the user's own added: see own.py for the kinds of files.

        Raises:
            DataError: a file that cannot be read or used, a name that is already taken.
        """
        return self.with_own(own for path in paths for own in read_own(path))

    def with_own(self, more: Iterable[Own]) -> "Registry":
        """A registry with more tasks.

        Raises:
            DataError: a name that is already taken.
        """
        return Registry([*self._tasks.values(), *more], self._data_dir)

    def with_context(self, name: str, policy: Policy, words: int | None) -> "Registry":
        """A registry in which one task has another policy for long contexts.

        Raises:
            SpecError: no such task, or one without a long context.
        """
        changed = self.get(name).with_context(policy, words)
        owns = (
            replace(own, task=changed) if own.task.name == changed.name else own
            for own in self._tasks.values()
        )
        return Registry(owns, self._data_dir)

    def __contains__(self, name: object) -> bool:
        """Whether a task has the name, or has it among its aliases."""
        return name in self._tasks or _key(str(name)) in self._aliases

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
                f"no task is called {shorten(name)!r}",
                wanted=did_you_mean(key, [*self._tasks, *self._aliases]),
                remedy="`mixtune tasks` lists them all",
            )
        return self._tasks[key].task

    def source_of(self, name: str) -> str:
        """Where a task is read from, for people.

        Raises:
            SpecError: no such task. DataError: there is no place to read it from.
        """
        return self._reader(self.get(name)).about

    def origin_of(self, name: str) -> str:
        """What brought a task: the package, an installed package, a file.

        Raises:
            SpecError: no such task.
        """
        return self._tasks[self.get(name).name].origin

    def splits(self, name: str, carve: float) -> list[Split]:
        """The splits that there are, stored or carved.

        Raises:
            SpecError: no such task. DataError: there is no place to read it from.
        """
        task = self.get(name)
        there, carved = self._reader(task).has, self._shares(task, carve)
        return [split for split in get_args(Split) if split in carved or there(split)]

    def unread(self, name: str) -> str | None:
        """Why a check leaves a task alone: it is on the hub, or an import that cannot be used.

        Raises:
            SpecError: no such task. DataError: there is no place to read it from.
        """
        reader = self._reader(self.get(name))
        if isinstance(reader, HubReader):
            return f"{reader.about}: not fetched; mixtune data show {name} does that"
        return reader.about if isinstance(reader, RefusingReader) else None

    def load(self, name: str, fault: Fault) -> None:
        """Read all stored splits, with every fault of their rows given to `fault`.

        Raises:
            SpecError: no such task. DataError: a fault of a whole file.
        """
        task = self.get(name)
        for split in filter(self._reader(task).has, get_args(Split)):
            clean = True

            def found(error: DataError) -> None:
                nonlocal clean
                clean = False
                fault(error)

            stored = _load(task, self._reader(task), split, found)
            if clean:
                self._stored[task.name, split] = stored

    def examples(self, name: str, split: Split, carve: float) -> list[Example]:
        """The examples of a split, in stored order.

        Where a task (no probe) has no validation split, the train groups with
        unit_interval("carve", group) below `carve` become it and the others train; a split given
        upstream stays whole.

        Raises:
            SpecError: no such task. DataError: no such split, or a record that cannot be used.
        """
        task = self.get(name)
        shares = self._shares(task, carve)
        read_from, stored = self._source_split(task, split, shares)
        if read_from == split and (split != "train" or not shares):
            return list(stored.examples)
        found = [e for e in stored.examples if _place(e.group, shares) == split]
        if not found:
            knob = "carve_test of its source" if split == "test" else "evaluate.carve"
            raise DataError(
                f"carving leaves no {split} examples",
                where=task.name,
                found=f"{len(stored.examples)} train examples, shares {shares}",
                remedy=f"give the task more data or a split of its own, or change {knob}",
            )
        return [e if e.split == split else replace(e, split=split) for e in found]

    def own_texts(self, name: str, split: Split, carve: float) -> list[OwnText]:
        """What each record of a split says by itself; raises as `examples`."""
        return own_texts(self.examples(name, split, carve))

    def report(self, name: str, split: Split, carve: float) -> LoadReport:
        """What `examples` of the same arguments was made of."""
        task = self.get(name)
        examples = self.examples(name, split, carve)
        shares = self._shares(task, carve)
        read_from, stored = self._source_split(task, split, shares)
        dropped = sum(stored.dropped.values())
        share = shares.get(split)
        carved = f", carved from train, {share:.0%} of groups" if share else ""
        return LoadReport(
            source=self.source_of(name) + carved,
            read_from=read_from,
            records=stored.records,
            kept=stored.records - dropped,
            dropped=dict(stored.dropped),
            examples=len(examples),
            notes=dict(stored.notes),
        )

    def _add(self, own: Own) -> None:
        task = own.task
        keys = {_key(alias): task.name for alias in (task.name, *task.aliases)}
        for name in (task.name, *keys):
            if name in self:
                holder = self._tasks[self._aliases.get(name, name)]
                raise DataError(
                    f"the name {shorten(name)!r} is already taken",
                    where=f"{own.origin}, task {task.name}",
                    found=f"{holder.task.name}, from {holder.origin}",
                    remedy="give the task another name or alias",
                )
        self._tasks[task.name] = own
        self._aliases |= keys

    def _reader(self, task: Task) -> Reader:
        if task.name not in self._readers:
            given = self._tasks[task.name].reader
            self._readers[task.name] = given or reader_for(task, self._data_dir)
        return self._readers[task.name]

    def _shares(self, task: Task, carve: float) -> dict[Split, float]:
        """The splits that are carved from train, with the share of groups that each takes.

        Of a set that is only trained on nobody reads a validation split, so it loses no rows to
        one; nor does a probe, by which nothing is chosen.
        """
        reader = self._reader(task)
        shares: dict[Split, float] = {}
        if not reader.has("test") and reader.carve_test is not None:
            shares["test"] = reader.carve_test
        if not reader.has("validation") and task.role == "task":
            shares["validation"] = carve
        return shares

    def _source_split(
        self, task: Task, split: Split, shares: Mapping[Split, float]
    ) -> tuple[Split, _Stored]:
        """The stored split that a split is read from: itself, or train where it is carved."""
        reader = self._reader(task)
        read_from: Split = "train" if split in shares else split
        if not reader.has(read_from):
            why = ", a probe: nothing is chosen by it" if task.role == "probe" else ""
            raise DataError(
                f"the dataset has no {read_from} split",
                where=task.name,
                found=f"{reader.about}{why}",
                remedy="ask for another split, or add the file",
            )
        key = (task.name, read_from)
        if key not in self._stored:
            self._stored[key] = _load(task, reader, read_from)
        return read_from, self._stored[key]


def own_texts(examples: Iterable[Example]) -> list[OwnText]:
    """What the records say that examples were made of, in their order."""
    made: dict[str, list[Example]] = {}
    for example in examples:
        made.setdefault(example.record or example.id, []).append(example)
    return [_own_text(record, rows) for record, rows in made.items()]


def _own_text(record: str, rows: list[Example]) -> OwnText:
    text, group = rows[0].compared_text, rows[0].group
    apart = "" if group == grouped(text) else group
    return OwnText(record, text, apart, tuple(row.target for row in rows))


def _load(task: Task, reader: Reader, split: Split, fault: Fault = refuse) -> _Stored:
    """Read and render a stored split; every record is kept or counted as dropped.

    A row with a fault is neither, and goes to `fault`.
    """
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    seen: dict[str, str] = {}
    records = kept = faults = 0
    for row in reader.rows(split, fault):
        records += 1
        try:
            reason, made = _rendered(task, row, split)
            _refuse_repeats(made, seen, row)
        except DataError as error:
            fault(error)
            faults += 1
            continue
        if reason is not None:
            dropped[reason] += 1
            continue
        examples += made
        kept += 1
        notes.update(task.notes(row.record, row.where))
    if not examples and not faults:
        fault(_unusable(task, split, records, reader.about, dropped))
    assert records == kept + faults + dropped.total()
    return _Stored(tuple(examples), records, dropped, notes)


def _rendered(task: Task, row: Row, split: Split) -> tuple[str | None, list[Example]]:
    """Why a record is left out, or its examples.

    Raises:
        DataError: the record cannot be used.
    """
    reason = task.dropped(row.record, row.where)
    if reason is not None:
        return reason, []
    made = task.to_examples(row.record, split, where=row.where, number=row.number, only=row.only)
    return None, made


def _unusable(
    task: Task, split: Split, records: int, about: str, dropped: Mapping[str, int]
) -> DataError:
    return DataError(
        f"the {split} split has no usable record",
        where=task.name,
        found=f"{records} records in {about}, dropped: {dict(dropped)}",
        wanted="at least one record",
        remedy="check that the file is the right one and has rows",
    )


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


def _place(group: str, shares: Mapping[Split, float]) -> Split:
    """The split that a train group belongs to: a function of the group's text alone."""
    for split, share in shares.items():
        purpose = "carve" if split == "validation" else f"carve-{split}"
        if unit_interval(purpose, group) < share:
            return split
    return "train"


def _key(name: str) -> str:
    """The spelling that names are compared in: kebab-case, lower case."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")
