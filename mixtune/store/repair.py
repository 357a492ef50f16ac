"""Rebuild `state.sqlite` from the results beside it, and write changed files of a plan back.

A unit counts as done where all its files are as the journal has them. Where the journal is gone
too, a unit counts as done where its files can be read whole and fit the plan; that is said, since a
changed number cannot be seen then. What cannot be used is left alone or set aside, never deleted.

Knows: the files of finished units. Does not know: data, models, what scores mean.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from mixtune.errors import StoreError, shorten
from mixtune.records import State
from mixtune.store import files, journal
from mixtune.store.files import Fingerprint
from mixtune.store.folder import PlanRow, Store
from mixtune.store.journal import KnownFile
from mixtune.store.states import FILE, LOOKS_LOST, States, Unit, done_line
from mixtune.store.study_files import PLAN, STUDY, difference

_ASIDE = ".before-repair"
_UNREADABLE = (OSError, ValueError, KeyError, SafetensorError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `level`: problem is what is still wrong afterwards."""

    topic: str
    level: Literal["ok", "warning", "problem"]
    state: str
    remedy: str = ""


class _Rebuilt(NamedTuple):
    """A unit that counts as done."""

    files: dict[str, Fingerprint]
    seconds: float


def repair(store: Store, write: bool) -> list[Finding]:
    """Repair a study's folder, or without `write` only say what is wrong and would be done.

    Raises:
        StoreError: there is no study, another process runs it, or the folder cannot be written.
    """
    store.require()
    with store.lock() if write else nullcontext():
        return list(_Repair(store, write).findings())


class _Repair:
    def __init__(self, store: Store, write: bool) -> None:
        self.store, self.folder, self.write = store, store.folder, write
        self.entries = journal.read(store.folder)

    def findings(self) -> Iterator[Finding]:
        problem = self._states_problem()
        try:
            rows = self._plan(problem is not None)
        except StoreError as error:
            yield _of_error(PLAN, error)
            return
        problem = problem or self._wrong_rows(rows)
        if problem is None:
            yield Finding(FILE, "ok", f"states of {len(rows)} units")
            yield from self._damaged_units()
        else:
            yield from self._rebuild(rows, problem)
        yield from self._files(problem is not None)
        if problem is None and not self.entries.whole:
            if self.write:
                self.store.renew_journal()
            action = "written anew" if self.write else "the next mixtune run writes it anew"
            yield Finding(journal.JOURNAL, "ok", f"missing or damaged: {action} from the states")

    # ---- states ---------------------------------------------------------------------------------

    def _states_problem(self) -> str | None:
        """In words, what is wrong with `state.sqlite` itself; None where it can be used."""
        if not (self.folder / FILE).is_file():
            return "missing"
        try:
            with closing(sqlite3.connect(self.folder / FILE)) as db:
                text = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if text != "ok":
                return f"damaged: {shorten(text)}"
            States(self.folder).units()
            self.store.looks()
            known = self.store.known_files()
        except (sqlite3.Error, StoreError) as error:
            return f"damaged: {str(error).splitlines()[0].removeprefix(f'{self.folder / FILE}: ')}"
        for name, versions in self.entries.known.items():
            if self._fits(name, versions) and not self._fits(name, known.get(name, [])):
                return f"the checksum of {name} is not the journal's, which fits the file"
        return None

    def _fits(self, name: str, versions: Sequence[KnownFile]) -> bool:
        return any(files.matches(self.folder / name, version.fingerprint) for version in versions)

    def _plan(self, states_lost: bool) -> list[PlanRow]:
        """The plan; where its recorded checksum is lost with the states, by the journal's."""
        if not states_lost:
            return self.store.plan()
        known = self.entries.known.get(PLAN, [])
        path = self.folder / PLAN
        if known and not self._fits(PLAN, known):
            raise StoreError(
                "not the plan that the journal has",
                where=str(path),
                remedy="restore it; without it nothing says which results belong to the study",
            )
        return self.store.read_plan()

    def _wrong_rows(self, rows: Sequence[PlanRow]) -> str | None:
        """In words, units that the states lack or have other facts of than the journal."""
        units = States(self.folder).units()
        if self.entries.known.keys() - self.store.known_files().keys():
            return "checksums of the plan's files are missing"
        if len(self.entries.looks) > len(self.store.looks()):
            return "looks at test scores are missing"
        for row in rows:
            unit = units.get(row.id)
            if unit is None or (unit.kind, unit.system, unit.label) != (
                row.kind,
                row.system,
                row.label,
            ):
                return f"a unit of the plan is missing or another one: {row.label}"
            known = self.entries.done.get(row.id)
            differs = unit.state == "done" and known and unit.files != known
            if differs and self.entries.verified(self.folder, row.id):
                return f"other checksums than the journal has, which fit the files: {row.label}"
        return None

    def _damaged_units(self) -> Iterator[Finding]:
        units = [unit for unit in self.store.units().values() if unit.state == "done"]
        damaged = [unit.label for unit in units if self.store.damage(unit)]
        if damaged:
            text = f"files of {len(damaged)} finished units are missing or changed: {damaged[0]}"
            yield Finding("results", "warning", shorten(text), "mixtune run does them again")

    def _rebuild(self, rows: Sequence[PlanRow], problem: str) -> Iterator[Finding]:
        done = {row.id: unit for row in rows if (unit := self._recorded(row)) is not None}
        unrecorded = {
            row.id: unit
            for row in rows
            if row.id not in self.entries.done and (unit := _readable(self.folder, row)) is not None
        }
        done |= unrecorded
        # Answers of an adapter that is gone belong to nothing.
        lost = {row.system for row in rows if row.kind == "train" and row.id not in done}
        done = {row.id: done[row.id] for row in rows if row.id in done and row.system not in lost}
        looks, looks_known = self._looks()
        if self.write:
            self._write(rows, done, looks)
        text = f"{problem}; {len(done)} of {len(rows)} units are finished"
        yield self._done(FILE, text, "rebuilt; errors and attempts of failed units are lost")
        if unchecked := unrecorded.keys() & done.keys():
            yield Finding(
                "results",
                "warning",
                f"{len(unchecked)} units have no recorded checksum: read whole, taken as they are",
                "if they may have been changed, remove their files: mixtune run makes them again",
            )
        if len(done) < len(rows):
            text = f"{len(rows) - len(done)} units are not finished, or their files are changed"
            yield Finding("results", "warning", text, "mixtune run does them")
        if not looks_known:
            yield Finding(
                "looks at test scores",
                "warning",
                "how often there were any before is lost: no count is complete from now on, and "
                "what is chosen from now on stays exploratory",
            )

    def _recorded(self, row: PlanRow) -> _Rebuilt | None:
        """A unit whose files are all as the journal has them."""
        known = self.entries.verified(self.folder, row.id)
        return _Rebuilt(known, self.entries.seconds[row.id]) if known else None

    def _looks(self) -> tuple[list[tuple[float, str]], bool]:
        """Looks at test scores, and True where these are all."""
        if self.entries.whole:
            return self.entries.looks, True
        return [*self.entries.looks, (time.time(), LOOKS_LOST)], False

    def _write(
        self,
        rows: Sequence[PlanRow],
        done: Mapping[str, _Rebuilt],
        looks: Sequence[tuple[float, str]],
    ) -> None:
        """Set the old file aside, with SQLite's own journal of it, and write a new one."""
        for name in (FILE, f"{FILE}-journal", f"{FILE}-wal", f"{FILE}-shm"):
            set_aside(self.folder / name)
        known = [version for versions in self.entries.known.values() for version in versions]
        lines = [
            *journal.file_lines(known),
            *(done_line(unit, u.files, u.seconds) for unit, u in done.items()),
            *({"what": "look", "at": at, "command": text} for at, text in looks),
        ]
        journal.begin(self.folder, lines)
        self.store.fill([_unit(row, done.get(row.id)) for row in rows], looks, known)
        self.store.log_event("rebuilt from results", len(done))

    # ---- files of the plan ----------------------------------------------------------------------

    def _files(self, states_lost: bool) -> Iterator[Finding]:
        known = self.entries.known if states_lost else self.store.known_files()
        if not known:
            yield Finding(STUDY, "warning", "files of the plan have no checksums", _NEXT_RUN)
        for name, versions in known.items():
            path = self.folder / name
            if name == PLAN or self._fits(name, versions):
                continue
            planned = versions[-1].text
            state = "changed since the study was planned" if path.exists() else "missing"
            state = "; ".join([state, *difference(planned, path)[:6]])
            if planned is None:
                yield Finding(name, "problem", state, "mixtune run, which writes it from the data")
                continue
            if self.write:
                set_aside(path)
                self.store.write_text(name, planned)
            yield self._done(name, state, "written back as it was planned")

    def _done(self, topic: str, state: str, action: str) -> Finding:
        if self.write:
            return Finding(topic, "ok", f"{state}: {action}")
        return Finding(topic, "problem", state, f"mixtune doctor STUDY.yaml --repair: {action}")


_NEXT_RUN = "the next mixtune run records them; as they are now is what counts"


def set_aside(path: Path) -> None:
    """Give a file a name under which nothing reads it, beside earlier ones of its kind."""
    if not path.exists():
        return
    names = (f"{path.name}{_ASIDE}{number or ''}" for number in count())
    target = next(p for name in names if not (p := path.with_name(name)).exists())
    with files.storage_errors(path, "cannot rename"):
        path.rename(target)


def _unit(row: PlanRow, done: _Rebuilt | None) -> Unit:
    state: State = "done" if done else "planned"
    sums, seconds = done or _Rebuilt({}, 0.0)
    progress = 1.0 if done else 0.0
    now = time.time()
    return Unit(row.id, row.kind, row.system, row.label, state, 0, "", progress, now, seconds, sums)


def _readable(folder: Path, row: PlanRow) -> _Rebuilt | None:
    """A unit whose files are all there, can be read whole and fit the plan."""
    try:
        paths = _adapter(folder, row) if row.kind == "train" else _answers(folder, row)
        sums = {str(path.relative_to(folder)): files.fingerprint(path) for path in sorted(paths)}
    except _UNREADABLE:
        return None
    return _Rebuilt(sums, 0.0)


def _adapter(folder: Path, row: PlanRow) -> list[Path]:
    """Files of a trained run.

    Raises:
        OSError, ValueError, KeyError, SafetensorError, ArrowException: one is missing or damaged.
    """
    home = folder / row.folder
    facts = json.loads((home / "run.json").read_text(encoding="utf-8"))
    if facts["train_id"] != row.system:
        raise ValueError("another run's facts")
    pq.read_table(home / "train.parquet", page_checksum_verification=True)
    adapter = [path for path in (home / "adapter").iterdir() if path.is_file()]
    weights = [path for path in adapter if path.suffix == ".safetensors"]
    if not weights:
        raise FileNotFoundError(home / "adapter")
    for path in weights:
        with safe_open(path, framework="numpy"):
            pass  # its header fits the size of the file
    return [*adapter, home / "train.parquet", home / "run.json"]


def _answers(folder: Path, row: PlanRow) -> list[Path]:
    """Files of a set of answers, one row for each item; raises as `_adapter`."""
    home = folder / row.folder / "answers" / row.id
    names = ("probes.parquet",) if row.form == "likelihood" else ("predictions.parquet",)
    for name in names:
        table = pq.read_table(home / name, page_checksum_verification=True)
        if table.num_rows != row.items or set(table["system"].to_pylist()) != {row.system}:
            raise ValueError("answers to other items, or of another system")
    usage, choice = home / "usage.parquet", folder / row.folder / f"instruction-{row.task}.json"
    return [*(home / name for name in names), *filter(Path.is_file, (usage, choice))]


def _of_error(topic: str, error: StoreError) -> Finding:
    problem, *details = str(error).splitlines()
    remedy = [line.removeprefix("  remedy: ") for line in details if line.startswith("  remedy: ")]
    return Finding(topic, "problem", problem, "; ".join(remedy))
