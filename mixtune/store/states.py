"""States of a study's units in one SQLite file: planned, running, done or failed.

A unit (one adapter, or one set of answers) becomes `done` last, with the size and SHA-256 of each
of its files. The database also counts reads of test scores, holds checksums of the plan's own files
and the format of the whole folder. Finished work is in the journal too (journal.py).
"""

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from mixtune.errors import StoreError, shorten
from mixtune.records import State
from mixtune.signals import defer_signals
from mixtune.store import files, journal
from mixtune.store.journal import KnownFile

LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that is writing a state."""

FILE = "state.sqlite"
FORMAT = 2
"""Version of a study's folder, in SQLite's `user_version`; another one is refused."""

LOOKS_LOST = "looks before are not known"
"""Stands as a command among the looks at test scores, where a repair could not recover them."""

REPAIR = "mixtune doctor STUDY.yaml --repair, which rebuilds it from the results and their journal"
"""The remedy for a damaged `state.sqlite`."""

_LOOKS = "SELECT CAST(at AS REAL), CAST(command AS TEXT) FROM test_read ORDER BY rowid"
_KNOWN = "SELECT CAST(name AS TEXT), size, CAST(sha256 AS TEXT), CAST(text AS TEXT) FROM file"
_FILES = """
CREATE TABLE IF NOT EXISTS file (
  name TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL, text TEXT,
  PRIMARY KEY (name, sha256)
);"""

_RELEASE = "UPDATE unit SET state='planned', progress=0, heartbeat=? WHERE state='running'"

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS unit (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, system TEXT NOT NULL, label TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  progress REAL NOT NULL DEFAULT 0, heartbeat REAL NOT NULL DEFAULT 0,
  seconds REAL NOT NULL DEFAULT 0, files TEXT NOT NULL DEFAULT '{{}}'
);
CREATE TABLE IF NOT EXISTS test_read (at REAL NOT NULL, command TEXT NOT NULL);{_FILES}
PRAGMA user_version = {FORMAT};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work and its state. `files`: relative path → (bytes, sha256)."""

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
    files: dict[str, files.Fingerprint]


class States:
    """States of the units in one study's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def units(self) -> dict[str, Unit]:
        """State of every unit by id, while another process may be running."""
        if not (self.folder / FILE).exists():
            return {}
        # Not opened read-only: after a kill SQLite's own journal may have to be rolled back first.
        with self._database() as db:
            problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM unit").fetchall()
        try:
            if problem != "ok":
                raise ValueError(problem)
            return {row[0]: _unit(row) for row in rows}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"the states of the study's units are damaged: {shorten(str(error))}",
                where=str(self.folder / FILE),
                remedy=REPAIR,
            ) from error

    def undone(self, ids: Iterable[str]) -> set[str]:
        """The ids of units that are not done, unknown ones among them."""
        every = set(ids)
        query = "SELECT id FROM unit WHERE state='done' AND id IN (SELECT value FROM json_each(?))"
        with self._database() as db:
            return every - {unit for (unit,) in db.execute(query, (json.dumps(list(every)),))}

    def begin(self, unit: str) -> None:
        """Planned | failed → running."""
        self._set(unit, "state='running', attempts=attempts+1, error='', progress=0")

    def beat(self, progress: Mapping[str, float]) -> None:
        """Record that units are alive and how far each is (0 to 1)."""
        now = time.time()
        with self._database() as db:
            db.executemany(
                "UPDATE unit SET progress=?, heartbeat=? WHERE id=?",
                [(part, now, unit) for unit, part in progress.items()],
            )

    def fail(self, unit: str, error: str, seconds: float) -> None:
        """Running → failed, with its error."""
        self._set(unit, "state='failed', error=?, seconds=?", error, seconds)

    def release(self, unit: str) -> None:
        """Running → planned: the work was stopped, not broken. A unit that is done stays done."""
        with self._database() as db:
            db.execute(f"{_RELEASE} AND id=?", (time.time(), unit))

    def release_running(self) -> None:
        """Every running unit → planned; for the holder of the lock, when no process works here."""
        with self._database() as db:
            db.execute(_RELEASE, (time.time(),))

    def discard(self, unit: str) -> None:
        """Done → planned: its files are gone or changed."""
        journal.append(self.folder, [{"what": "discarded", "unit": unit}])
        self._set(unit, "state='planned', progress=0")

    def finish(self, unit: str, paths: Iterable[Path], seconds: float) -> None:
        """Running → done, last of all, with size and checksum of each file."""
        sums = {str(p.relative_to(self.folder)): files.fingerprint(p) for p in sorted(paths)}
        journal.append(self.folder, [done_line(unit, sums, seconds)])
        columns = "state='done', progress=1, error='', seconds=?, files=?"
        self._set(unit, columns, seconds, json.dumps(sums))

    def _set(self, unit: str, columns: str, *values: object) -> None:
        with self._database() as db:
            db.execute(
                f"UPDATE unit SET {columns}, heartbeat=? WHERE id=?", (*values, time.time(), unit)
            )

    # ---- test reads -------------------------------------------------------------------------

    def count_test_read(self, command: str) -> int:
        """Log one read of test scores; returns the number of reads so far, with this one."""
        journal.append(self.folder, [{"what": "look", "command": command}])
        with self._database() as db:
            db.execute("INSERT INTO test_read VALUES (?, ?)", (time.time(), command))
        return self.test_reads()

    def test_reads(self) -> int:
        """Number of reads of test scores; of those that are known, after `looks_lost`."""
        return sum(command != LOOKS_LOST for _, command in self.looks())

    def looks(self) -> list[tuple[float, str]]:
        """Time and command of each read of test scores."""
        with self._database() as db:
            return db.execute(_LOOKS).fetchall()

    def looks_lost(self) -> float | None:
        """The time before which reads of test scores are not known; None where all are."""
        return max((at for at, command in self.looks() if command == LOOKS_LOST), default=None)

    # ---- files of the plan ----------------------------------------------------------------------

    def known_files(self) -> dict[str, list[KnownFile]]:
        """Name → a file of the plan as recorded, two of them where a change was cut off."""
        known: dict[str, list[KnownFile]] = {}
        if (self.folder / FILE).exists():
            with self._database() as db:
                if db.execute("SELECT 1 FROM sqlite_master WHERE name='file'").fetchone():
                    for row in db.execute(_KNOWN):
                        known.setdefault(row[0], []).append(KnownFile(*row))
        return known

    def fill(
        self,
        units: Iterable[Unit],
        looks: Sequence[tuple[float, str]],
        known: Sequence[KnownFile],
    ) -> None:
        """Fill a new database, in one transaction, with what the journal has already."""
        with self._database() as db:
            db.executemany(
                f"INSERT INTO unit VALUES ({', '.join('?' * len(_COLUMNS))})",
                [(*astuple(unit)[:-1], json.dumps(unit.files)) for unit in units],
            )
            db.executemany("INSERT INTO test_read VALUES (?, ?)", looks)
            db.executemany(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?)",
                [astuple(version) for version in known],
            )

    def know_files(self, known: Sequence[KnownFile], alone: bool = False) -> None:
        """Record files of the plan; `alone`: other versions of them are no longer accepted."""
        journal.append(self.folder, journal.file_lines(known, alone))
        with self._database() as db:
            db.execute(_FILES)
            if alone:
                db.executemany(
                    "DELETE FROM file WHERE name=?", [(version.name,) for version in known]
                )
            db.executemany(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?)",
                [astuple(version) for version in known],
            )

    # ---- SQLite -----------------------------------------------------------------------------

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with files.storage_errors(self.folder, "cannot write"):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # A transaction that a signal interrupts would lock out the code that releases units on
            # the way out: its connection stays open as long as the traceback.
            with defer_signals(), closing(self._connect()) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"the study's state cannot be read or written: {error}",
                where=str(self.folder / FILE),
                remedy=f"free space, check permissions, end what holds it; or, if it is damaged, "
                f"{REPAIR}",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / FILE, timeout=LOCK_TIMEOUT)
        try:
            if _format(connection) != FORMAT:
                self._create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new file; refuse one of another format."""
        tables = connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        # Read again: another process may just have made the tables.
        if tables and (version := _format(connection)) != FORMAT:
            raise StoreError(
                "another version of mixtune wrote this folder",
                where=str(self.folder),
                found=f"format {version or 1}",
                wanted=f"format {FORMAT}",
                remedy="run the study in another --runs-dir, or read it with the version that "
                "wrote it; if no other one did, mixtune doctor STUDY.yaml --repair",
            )
        connection.executescript(_TABLES)


def _format(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def done_line(
    unit: str, sums: Mapping[str, files.Fingerprint], seconds: float
) -> dict[str, object]:
    """The journal's line of a finished unit."""
    return {"what": "done", "unit": unit, "seconds": seconds, "files": sums}


_COLUMNS = tuple(column.name for column in fields(Unit))
_STATES = get_args(State)


def _unit(row: tuple[Any, ...]) -> Unit:
    """A unit of a row, whose values may be anything where the file was damaged."""
    unit = Unit(**dict(zip(_COLUMNS, row, strict=True)) | {"files": _parsed(row[-1])})
    numbers = (unit.attempts, unit.progress, unit.heartbeat, unit.seconds)
    texts = (unit.id, unit.kind, unit.system, unit.label, unit.error)
    if unit.state not in _STATES or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no state of a unit: {row[:5]}")
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"no number: {numbers}")
    return unit


def _parsed(text: str) -> dict[str, files.Fingerprint]:
    sums = {name: files.Fingerprint(*entry) for name, entry in json.loads(text).items()}
    if not all(isinstance(s.size, int) and isinstance(s.sha256, str) for s in sums.values()):
        raise ValueError(f"no checksums: {shorten(text)}")
    return sums


def check_schema(path: Path, where: str) -> None:
    """Refuse a file of states that someone else sent and that is more, or less, than its tables.

    Views, triggers and computed columns run when they are read, some of them without an end.
    `where`: the sender's file, for the error.

    Raises:
        StoreError: another object, table or column than those of this format.
    """
    with closing(sqlite3.connect(":memory:")) as plain:
        plain.executescript(_TABLES)
        wanted = _schema(plain)
        columns = {name: _columns(plain, name) for name in wanted}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            present = _schema(connection)
            for name, text in present.items():
                if wanted.get(name) != text:
                    other = _columns(connection, name) ^ columns.get(name, set())
                    raise _not_states(where, f"{name}, columns {', '.join(sorted(other)) or text}")
    except sqlite3.Error as error:
        raise _not_states(where, str(error)) from error
    if missing := {"table unit", "table test_read"} - present.keys():
        raise _not_states(where, f"no {', no '.join(sorted(missing))}")


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    """Type and name → SQL of every object but the indexes that SQLite makes itself."""
    query = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100"
    return {name: " ".join(text.split()) for name, text in connection.execute(query)}


def _columns(connection: sqlite3.Connection, name: str) -> set[str]:
    kind, _, table = name.partition(" ")
    query = "SELECT name FROM pragma_table_xinfo(?)"
    return (
        {column for (column,) in connection.execute(query, (table,))} if kind == "table" else set()
    )


def _not_states(where: str, problem: str) -> StoreError:
    return StoreError(
        f"its {FILE} is not the file of states that mixtune writes",
        where=where,
        found=shorten(problem),
        wanted="the tables unit and test_read with their columns, and nothing else",
        remedy="do not use this file; ask for it again",
    )
