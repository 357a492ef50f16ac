"""The only module that reads or writes results: one study's folder.

    runs/<study>/
      study.yaml  plan.parquet  env.json  data.json  state.sqlite  changes.jsonl  lock  workers
      cells/<system>-<slug>/
        run.json  adapter/  train.parquet
        answers/<answer_id>/predictions.parquet
        scores/<score_id>.parquet
      report/

Facts (adapter, train.parquet, predictions) are written once, whole files at a time: a temporary
file beside the target, flushed, renamed. A unit of work (one adapter, one set of answers) becomes
`done` last, with the size and SHA-256 of each of its files. Derived files can be deleted.

Knows: files, rows, states, checksums, locks. Does not know: how anything is computed.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixtune.errors import StoreError
from mixtune.records import State, schema_of

_TABLES = """
CREATE TABLE IF NOT EXISTS unit (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, system TEXT NOT NULL, label TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  progress REAL NOT NULL DEFAULT 0, heartbeat REAL NOT NULL DEFAULT 0,
  seconds REAL NOT NULL DEFAULT 0, files TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS claim (system TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS test_read (at REAL NOT NULL, command TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work and its state. `files`: relative path → [bytes, sha256]."""

    id: str
    kind: str
    system: str
    label: str
    state: State
    attempts: int
    error: str
    progress: float
    heartbeat: float
    seconds: float
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One unit of a plan as kept in plan.parquet: the key of a unit, and its id."""

    kind: str
    id: str
    system: str
    folder: str
    cocktail: str
    seed: int | None
    task: str
    split: str
    form: str
    items: int
    tokens: int
    items_digest: str

    @property
    def key(self) -> tuple[str, str, int | None, str, str, str]:
        """What the unit is, apart from the id that its content gives it."""
        return (self.kind, self.cocktail, self.seed, self.task, self.split, self.form)


def slug(text: str, limit: int = 40) -> str:
    """A name fit for a folder: [a-z0-9-], at most `limit` characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].rstrip("-")


class Store:
    """One study's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ---- opening ----------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a study was ever planned here."""
        return (self.folder / "plan.parquet").is_file()

    def require(self) -> None:
        """Refuse to read a folder that holds no study.

        Raises:
            StoreError: nothing was planned here.
        """
        if not self.exists:
            raise StoreError(
                "no study here yet",
                where=str(self.folder),
                remedy="mixtune run STUDY.yaml (or --runs-dir, if it ran elsewhere)",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; the kernel gives it back when the process dies.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("a+")
        except OSError as error:
            raise StoreError(
                f"cannot write here: {error}", where=str(self.folder), remedy="choose --runs-dir"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    "another mixtune process is running this study",
                    where=str(self.folder),
                    remedy="wait for it, or look at it with: mixtune status STUDY.yaml",
                ) from error
            with (self.folder / "workers").open("a+") as workers:
                # Orphans of a killed process end within a moment; wait until the last has.
                fcntl.flock(workers, fcntl.LOCK_EX)
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Say that a worker process is writing here, until it ends."""
        with (self.folder / "workers").open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    def _connect(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.folder / "state.sqlite", timeout=30)
        connection.executescript(_TABLES)
        return connection

    @contextmanager
    def _state(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"the study's state cannot be read or written: {error}",
                where=str(self.folder / "state.sqlite"),
                remedy="free space, check permissions; what was finished before is kept",
            ) from error

    # ---- plan -------------------------------------------------------------------------------

    def save_plan(
        self, rows: Sequence[PlanRow], study_yaml: str, facts: Mapping[str, object]
    ) -> None:
        """Take a plan in: add its new units as `planned`; units already known keep their state.

        Args:
            rows: the units. A plan may leave known ones out as long as it adds none.
            study_yaml: the resolved study.
            facts: name → JSON value, kept as `<name>.json` beside the plan.

        Raises:
            StoreError: a unit that is already there would get another id, or units are added
                while others are left out; nothing is written.
        """
        before = self.plan() if self.exists else []
        self._refuse_changes(before, rows, study_yaml)
        with self._state() as db:
            db.executemany(
                "INSERT OR IGNORE INTO unit (id, kind, system, label, state) "
                "VALUES (?, ?, ?, ?, 'planned')",
                [(row.id, row.kind, row.system, _label(row)) for row in rows],
            )
        known = {row.id for row in before}
        added = [row for row in rows if row.id not in known]
        if added or not before:
            # The plan is last: a kill before it repeats all of this, a kill after it nothing.
            self._log_change(before, added)
            self.write_text("study.yaml", study_yaml)
            for name, value in facts.items():
                self.write_text(f"{name}.json", json.dumps(value, indent=1) + "\n")
            self.write_rows("plan.parquet", PlanRow, rows)

    def _refuse_changes(
        self, before: Sequence[PlanRow], rows: Sequence[PlanRow], study_yaml: str
    ) -> None:
        """A study is extended, never rewritten under its results."""
        ids = {row.key: row.id for row in before}
        changed = [row for row in rows if ids.get(row.key, row.id) != row.id]
        if not changed:
            self._refuse_a_swap(before, rows)
            return
        old = (self.folder / "study.yaml").read_text(encoding="utf-8")
        lines = unified_diff(old.splitlines(), study_yaml.splitlines(), "kept", "asked", "", "", 0)
        difference = "\n".join(f"    {line}" for line in lines)
        raise StoreError(
            f"{len(changed)} results kept here would get another id, the first: "
            f"{_label(changed[0])} ({ids[changed[0].key]} → {changed[0].id})\n"
            + (difference or "    the study file is the same: data, prompts or base model changed"),
            where=str(self.folder),
            wanted="the study as it was, or one that only adds runs, seeds or tasks",
            remedy="give the changed study another name, or choose another --runs-dir",
        )

    def _refuse_a_swap(self, before: Sequence[PlanRow], rows: Sequence[PlanRow]) -> None:
        """Otherwise study.yaml would no longer say what the results here were made by."""
        known, asked = {row.id for row in before}, {row.id for row in rows}
        if known - asked and asked - known:
            first = next(row for row in before if row.id not in asked)
            raise StoreError(
                f"this plan adds {len(asked - known)} units and leaves out {len(known - asked)} "
                f"that are kept here, the first: {_label(first)}",
                where=str(self.folder),
                wanted="a study that only adds",
                remedy="name the seeds, tasks and cocktails that are kept as well as the new ones",
            )

    def _log_change(self, before: Sequence[PlanRow], added: Sequence[PlanRow]) -> None:
        entry = {
            "at": time.time(),
            "what": "extended" if before else "planned",
            "units": len(added),
            "added": sorted({_label(row) for row in added if row.kind == "train"}),
        }
        path = self.folder / "changes.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.write_text("changes.jsonl", text + json.dumps(entry) + "\n")

    def plan(self) -> list[PlanRow]:
        """The units of the study as last planned."""
        self.require()
        return [PlanRow(**row) for row in self.read_rows("plan.parquet")]

    def changes(self) -> list[dict[str, Any]]:
        """What was added to the study, and when."""
        path = self.folder / "changes.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    # ---- state ------------------------------------------------------------------------------

    def units(self) -> dict[str, Unit]:
        """State of every unit, by id. Usable while another process runs."""
        if not (self.folder / "state.sqlite").exists():
            return {}
        # Not opened read-only: after a kill the journal may have to be rolled back first.
        with self._state() as db:
            db.row_factory = sqlite3.Row
            rows = db.execute("SELECT * FROM unit").fetchall()
        return {row["id"]: Unit(**{**dict(row), "files": _files(row["files"])}) for row in rows}

    def claim(self, system: str) -> bool:
        """Take a run, so that no other worker of the same `mixtune run` takes it too."""
        with self._state() as db:
            taken = db.execute("INSERT OR IGNORE INTO claim VALUES (?)", (system,)).rowcount
        return taken == 1

    def begin(self, unit: str) -> None:
        """Planned | failed → running."""
        self._set(unit, "state='running', attempts=attempts+1, error='', progress=0", ())

    def beat(self, unit: str, progress: float) -> None:
        """Say that the unit is alive and how far it is (0 … 1)."""
        self._set(unit, "progress=?", (progress,))

    def fail(self, unit: str, error: str, seconds: float) -> None:
        """Running → failed, with its error."""
        self._set(unit, "state='failed', error=?, seconds=?", (error, seconds))

    def release(self, unit: str) -> None:
        """Running → planned: the work was stopped, not broken."""
        self._set(unit, "state='planned', progress=0", ())

    def finish(self, unit: str, paths: Iterable[Path], seconds: float) -> None:
        """Running → done, last of all, with size and checksum of each file."""
        files = {str(p.relative_to(self.folder)): _fingerprint(p) for p in sorted(paths)}
        fields = "state='done', progress=1, error='', seconds=?, files=?"
        self._set(unit, fields, (seconds, json.dumps(files)))

    def _set(self, unit: str, fields: str, values: tuple[Any, ...]) -> None:
        with self._state() as db:
            db.execute(
                f"UPDATE unit SET {fields}, heartbeat=? WHERE id=?", (*values, time.time(), unit)
            )

    def recover(self) -> tuple[list[str], list[str]]:
        """After the lock is held: give back units of a dead process, recheck finished ones.

        Returns:
            Labels of the units given back, and of the finished ones whose files (or whose
            adapter's files) are gone or changed; both are planned again.
        """
        units = self.units().values()
        stale = [u for u in units if u.state == "running"]
        broken = [u for u in units if u.state == "done" and self.damage(u)]
        # What a broken adapter answered belongs to the adapter that is gone.
        lost = {u.system for u in broken if u.kind == "train"}
        broken += [u for u in units if u.system in lost and u.state == "done" and u not in broken]
        for unit in [*stale, *broken]:
            self.release(unit.id)
        for left in self.folder.glob("**/.*.*.[0-9]*"):
            left.unlink()  # the temporary file of a process that was killed while writing
        with self._state() as db:
            db.execute("DELETE FROM claim")
        return [u.label for u in stale], [u.label for u in broken]

    def damage(self, unit: Unit) -> list[str]:
        """Files of a finished unit that are missing or differ from what was written."""
        bad = []
        for name, (size, sha) in unit.files.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size or _fingerprint(path)[1] != sha:
                bad.append(name)
        return bad

    # ---- test reads -------------------------------------------------------------------------

    def count_test_read(self, command: str) -> int:
        """Enter one look at test scores in the ledger; returns how many there were, with it."""
        with self._state() as db:
            db.execute("INSERT INTO test_read VALUES (?, ?)", (time.time(), command))
        return self.test_reads()

    def test_reads(self) -> int:
        """How often test scores were looked at."""
        with self._state() as db:
            return int(db.execute("SELECT count(*) FROM test_read").fetchone()[0])

    # ---- files ------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole text file atomically."""
        return self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_rows(self, name: str, row_type: type, rows: Sequence[Any]) -> Path:
        """Write rows of one type as a parquet file, atomically."""
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema_of(row_type))
        return self._write(name, lambda path: pq.write_table(table, path, compression="zstd"))

    def _write(self, name: str, write: Any) -> Path:  # noqa: ANN401 - a writer of one file
        target = self.folder / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"cannot write: {error}",
                where=str(target),
                remedy="free space or choose --runs-dir; what was finished before is kept",
            ) from error
        return target

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a parquet file as dictionaries."""
        rows: list[dict[str, Any]] = self.read_table(name).to_pylist()
        return rows

    def read_table(self, name: str) -> pa.Table:
        """A parquet file as an Arrow table.

        Raises:
            StoreError: missing or damaged.
        """
        path = self.folder / name
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"cannot read: {error}", where=str(path), remedy="mixtune run, to make it again"
            ) from error

    def drop_scores(self, folder: str) -> None:
        """Scores of a system go when one of its sets of answers is made again; they are derived."""
        shutil.rmtree(self.folder / folder / "scores", ignore_errors=True)

    def clear(self, name: str) -> Path:
        """An empty folder of that name: what a broken attempt left there goes."""
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return path


def _label(row: PlanRow) -> str:
    seed = "" if row.seed is None else f" seed {row.seed}"
    what = f" {row.task}/{row.split}/{row.form}" if row.kind == "answer" else ""
    return f"{row.cocktail}{seed}{what}"


def _files(text: str) -> dict[str, tuple[int, str]]:
    return {name: (int(size), sha) for name, (size, sha) in json.loads(text).items()}


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as handle:
        sha = hashlib.file_digest(handle, "sha256").hexdigest()
    return path.stat().st_size, sha
