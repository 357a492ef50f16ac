"""Tasks by name and their datasets: read, checked, split, kept in memory.

Does not know: file formats (rows.py), where files lie (sources.py), prompts (tasks/), models.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import get_args

from mixtune.datasets.rows import Fault, Form, refuse
from mixtune.datasets.sources import Reader, RegisteredTask, reader_for
from mixtune.datasets.user_tasks import packaged_tasks, read_task_file
from mixtune.errors import DataError, SpecError, did_you_mean, shorten
from mixtune.identity import unit_interval
from mixtune.records import Example, Split
from mixtune.study.spec import Study
from mixtune.tasks.context import Policy
from mixtune.tasks.gold import Decimals, check_golds
from mixtune.tasks.record import stored_names
from mixtune.tasks.rendering import filter_values, read_columns, render_record, turns_column
from mixtune.tasks.task import Task, parse_task


@cache
def _shipped_tasks() -> tuple[Task, ...]:
    """The tasks that ship with the package, by name; reading their files takes half a second."""
    folder = resources.files("mixtune.tasks") / "builtin"
    files = sorted(folder.iterdir(), key=attrgetter("name"))
    yamls = [file for file in files if file.name.endswith(".yaml")]
    return tuple(parse_task(file.read_text(encoding="utf-8"), file.name) for file in yamls)


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """The examples of one split, in stored order, and the counts of the records behind them.

    `read_from` is the stored split: train where this one is carved, and the counts are those of
    the whole stored split. `dropped` counts records by reason; `notes` counts what else happened
    to records that were used: parts left out, contexts cut. `unused`: columns that nothing reads.
    `bad_rows`: dropped records that could not be used. `form`: that of the file, where it has a
    choice. `decimals`: decimal signs that the gold answers show.
    """

    examples: tuple[Example, ...]
    source: str
    read_from: Split
    records: int
    dropped: Mapping[str, int]
    notes: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    bad_rows: int = 0
    form: Form | None = None
    decimals: Decimals = field(default_factory=Decimals)

    @property
    def used(self) -> int:
        """Records that examples were made of."""
        return self.records - sum(self.dropped.values())


class Dataset:
    """A task and its splits, each read when it is first used and then kept."""

    def __init__(self, task: Task, reader: Reader, carve: float) -> None:
        """Nothing is read yet; `carve`: share of train groups that become validation if needed."""
        self.task = task
        self.source = reader.about
        self._reader = reader
        self._carve = carve
        self._stored: dict[Split, LoadedSplit] = {}
        self._splits: dict[Split, LoadedSplit] = {}

    @property
    def unavailable(self) -> str | None:
        """Reason why rows cannot be read from this machine, or not at all; None where they can."""
        return self._reader.unavailable

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The splits that exist, stored or carved."""
        return tuple(s for s in get_args(Split) if s in self._shares or self._reader.has(s))

    @cached_property
    def _shares(self) -> dict[Split, float]:
        """Splits that are carved from train, each with its share of the groups.

        Ingredients have no validation carved because nobody would read it, probes because nothing
        is chosen by them.
        """
        reader = self._reader
        shares: dict[Split, float] = {}
        if not reader.has("test") and reader.carve_test is not None:
            shares["test"] = reader.carve_test
        if not reader.has("validation") and self.task.role == "task":
            shares["validation"] = self._carve
        return shares

    def split(self, split: Split) -> LoadedSplit:
        """One split with its counts.

        Where validation or test is missing and can be carved (`_shares`), train groups become it
        by a hash of the group's name, and the others stay train. Nothing is taken from a stored
        validation or test split.

        Raises:
            DataError: no such split, or a record that cannot be used.
        """
        if split not in self._splits:
            self._splits[split] = self._carved(split) if self._shares else self._stored_split(split)
        return self._splits[split]

    def examples(self, split: Split) -> list[Example]:
        """The examples of a split; raises as `split`."""
        return list(self.split(split).examples)

    def load_all(self, fault: Fault) -> None:
        """Read every stored split, with the faults of rows given to `fault`.

        A split with faults is read anew when it is used, and then raises.

        Raises:
            DataError: a fault of a whole file.
        """
        for split in filter(self._reader.has, get_args(Split)):
            faults: list[DataError] = []

            def collect(error: DataError, faults: list[DataError] = faults) -> None:
                faults.append(error)
                fault(error)

            loaded = _read_split(self.task, self._reader, split, collect)
            if not faults:
                self._stored[split] = loaded
        for split in get_args(Split):
            shown = [loaded.decimals for name, loaded in self._stored.items() if name != split]
            if split in self._stored and (undecided := self._stored[split].decimals.fault(shown)):
                fault(undecided)
                del self._stored[split]

    def _carved(self, split: Split) -> LoadedSplit:
        """A split of a dataset of which at least one is carved."""
        shares = self._shares
        stored = self._stored_split("train" if split in shares else split)
        if split != "train" and split not in shares:
            return stored
        rows = [e for e in stored.examples if _carved_split(e.group, shares) == split]
        if not rows:
            groups = len({example.group for example in stored.examples})
            knob = "carve_test of its source" if split == "test" else "evaluate.carve"
            raise DataError(
                f"carving leaves no {split} examples",
                where=self.task.name,
                found=f"{len(stored.examples)} train examples in {groups} groups, shares {shares}",
                remedy=f"give the task more data or a split of its own, or change {knob}; texts "
                "that differ in links or signs alone are one group, unless fields: {group: FIELD} "
                "names a field that tells them apart",
            )
        if split == "train":
            return replace(stored, examples=tuple(rows))
        source = f"{self.source}, carved from train, {shares[split]:.0%} of groups"
        examples = tuple(replace(e, split=split) for e in rows)
        return replace(stored, examples=examples, source=source)

    def _stored_split(self, split: Split) -> LoadedSplit:
        """A split as the dataset has it, before anything is carved; read once."""
        if split not in self._stored:
            if not self._reader.has(split):
                # The reason why no validation is carved for a probe.
                why = ", a probe: nothing is chosen by it" if self.task.role == "probe" else ""
                raise DataError(
                    f"the dataset has no {split} split",
                    where=self.task.name,
                    found=f"{self.source}{why}",
                    remedy="ask for another split, or add the file",
                )
            loaded = _read_split(self.task, self._reader, split)
            # The other splits are read only where this one does not show its decimal sign.
            if loaded.decimals.fault([]):
                splits = [s for s in get_args(Split) if s != split and self._reader.has(s)]
                rows = [_read_split(self.task, self._reader, s).decimals for s in splits]
                if undecided := loaded.decimals.fault(rows):
                    raise undecided
            self._stored[split] = loaded
        return self._stored[split]


class Registry:
    """Tasks by name, each with the place that its records are read from."""

    def __init__(
        self, tasks: Iterable[Task | RegisteredTask], data_dir: Path | None = None
    ) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise DataError(
                "the data directory is not there",
                where=str(data_dir),
                wanted="a folder with one folder per task",
                remedy="check --data-dir, or leave it out to use the hub",
            )
        self._data_dir = data_dir
        self._tasks: dict[str, RegisteredTask] = {}
        self._aliases: dict[str, str] = {}
        self._readers: dict[str, Reader] = {}
        self._datasets: dict[tuple[str, float], Dataset] = {}
        for task in tasks:
            self._add(RegisteredTask(task, "the package") if isinstance(task, Task) else task)

    @classmethod
    def builtin(cls, data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package."""
        return cls(_shipped_tasks(), data_dir)

    @classmethod
    def open(cls, task_files: Iterable[str], data_dir: Path | None = None) -> "Registry":
        """The tasks that ship with the package, those of installed packages, and a study's own.

        Raises:
            DataError: the data directory is not there; a file or package that cannot be used.
        """
        return cls.builtin(data_dir).with_tasks(packaged_tasks()).with_files(map(Path, task_files))

    @classmethod
    def of(cls, study: Study, data_dir: Path | None = None) -> "Registry":
        """The tasks that a study can name, with its own policies for long contexts.

        Raises:
            DataError: as `open`. SpecError: a policy for a task that has no long context.
        """
        registry = cls.open(study.task_files, data_dir)
        for name, context in study.contexts.items():
            registry = registry.with_context(name, context.policy, context.words)
        return registry

    def with_files(self, paths: Iterable[Path]) -> "Registry":
        """A registry with the tasks of users' files added; raises as `read_task_file`."""
        return self.with_tasks(task for path in paths for task in read_task_file(path))

    def with_tasks(self, more: Iterable[RegisteredTask]) -> "Registry":
        """A registry with more tasks; raises DataError where a name is already taken."""
        return Registry([*self._tasks.values(), *more], self._data_dir)

    def with_context(self, name: str, policy: Policy, words: int | None) -> "Registry":
        """A registry in which one task has another policy for long contexts."""
        changed = self.get(name).with_context(policy, words)
        tasks = self._tasks | {changed.name: replace(self._tasks[changed.name], task=changed)}
        return Registry(tasks.values(), self._data_dir)

    def __contains__(self, name: object) -> bool:
        """True if a task has the name or alias."""
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
        """The place that a task is read from; raises as `dataset`."""
        return self._reader(self.get(name)).about

    def origin_of(self, name: str) -> str:
        """Origin of a task's definition: the package, an installed package, a file."""
        return self._tasks[self.get(name).name].origin

    def dataset(self, name: str, carve: float) -> Dataset:
        """The splits of a task; the same object each time, so that a split is read once.

        Raises:
            SpecError: no such task. DataError: no place to read it from.
        """
        task = self.get(name)
        key = (task.name, carve)
        if key not in self._datasets:
            self._datasets[key] = Dataset(task, self._reader(task), carve)
        return self._datasets[key]

    def _add(self, registered: RegisteredTask) -> None:
        task = registered.task
        keys = {_key(alias): task.name for alias in (task.name, *task.aliases)}
        for name in (task.name, *keys):
            if name in self:
                holder = self._tasks[self._aliases.get(name, name)]
                raise DataError(
                    f"the name {shorten(name)!r} is already taken",
                    where=f"{registered.origin}, task {task.name}",
                    found=f"{holder.task.name}, from {holder.origin}",
                    remedy="give the task another name or alias",
                )
        self._tasks[task.name] = registered
        self._aliases |= keys

    def _reader(self, task: Task) -> Reader:
        if task.name not in self._readers:
            own = self._tasks[task.name].reader
            self._readers[task.name] = own or reader_for(task, self._data_dir)
        return self._readers[task.name]


def _read_split(task: Task, reader: Reader, split: Split, fault: Fault = refuse) -> LoadedSplit:
    """Read and render a stored split; every record is used or counted as dropped.

    A bad record is neither, and goes to `fault`, unless the task drops such records.
    """
    examples, bad = list[Example](), list[str]()
    dropped, notes = Counter[str](), Counter[str]()
    places, names, decimals = dict[str, str](), dict[str, None](), Decimals()
    unmatched, absent = filter_values(task), task.filter_columns
    turns, known = turns_column(task), read_columns(task)
    records = used = faults = 0

    def drop(error: DataError) -> None:
        # What follows a colon is about this row alone.
        bad.append(f"bad row: {shorten(error.problem.partition(':')[0], 80)}")

    bad_row = drop if task.on_bad_rows == "drop" else fault
    for row in reader.rows(split, bad_row):
        records += 1
        absent.difference_update(row.record)
        names.update(dict.fromkeys(stored_names(row.record, turns)))
        try:
            rendered = render_record(
                task, row.record, split, where=row.where, number=row.number, question=row.question
            )
            _note_ids(rendered.examples, row.where, places)
            check_golds(task, rendered.examples, row.record, row.where, decimals)
        except DataError as error:
            bad_row(error)
            faults += 1
            continue
        unmatched -= rendered.matched
        if rendered.dropped is not None:
            dropped[rendered.dropped] += 1
            continue
        examples += rendered.examples
        used += 1
        notes.update(rendered.notes)
    assert records == used + faults + dropped.total()
    if task.on_bad_rows == "drop":
        # Of the bad rows, the reader passed on only those that failed later.
        records, faults = records - faults + len(bad), 0
        dropped.update(bad)
    notes.update({f"rows with {value}": 0 for value in sorted(unmatched)})
    for column in sorted(absent) if records else ():
        fault(_absent_column(task, column, reader.about))
        faults += 1
    if not examples and not faults:
        read = f"{records} records in {reader.about}, dropped: {dict(dropped)}"
        fault(_no_record(task, split, read))
    unused = tuple(name for name in names if name not in known)
    counts = records, dropped, notes, unused, len(bad), reader.form(split), decimals
    return LoadedSplit(tuple(examples), reader.about, split, *counts)


def _note_ids(examples: Iterable[Example], where: str, places: dict[str, str]) -> None:
    """Add the ids of a record to `places`; raises DataError for one that is there."""
    for example in examples:
        if example.id in places:
            raise DataError(
                "the id is there twice",
                where=where,
                found=f"{example.id}, first at {places[example.id]}",
                wanted="an id that no other record of the split has",
                remedy="fix the ids, or set fields: {id: null} to number the records",
            )
        places[example.id] = where


def _no_record(task: Task, split: Split, read: str) -> DataError:
    return DataError(
        f"the {split} split has no usable record",
        where=task.name,
        found=read,
        wanted="at least one record",
        remedy="check that the file is the right one and has rows",
    )


def _absent_column(task: Task, column: str, about: str) -> DataError:
    keys = ("keep", "leave_out")
    naming = [key for key in keys if column in map(task.column, getattr(task, key))]
    return DataError(
        f"the rows have no field {column!r}",
        where=task.name,
        found=f"{' and '.join(naming)} of the task file; rows in {about}",
        wanted="a field that at least one row has",
        remedy="correct the name in the task file, or remove it there",
    )


def _carved_split(group: str, shares: Mapping[Split, float]) -> Split:
    """The split that a train group belongs to: a function of the group's text alone."""
    for split, share in shares.items():
        purpose = "carve" if split == "validation" else f"carve-{split}"
        if unit_interval(purpose, group) < share:
            return split
    return "train"


def _key(name: str) -> str:
    """The form that names are compared in: kebab-case, lower case."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")
