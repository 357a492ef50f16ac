"""States of a study's units in one SQLite file: planned, running, done or failed.

A unit (one adapter, or one set of answers) becomes `done` last, with the size and SHA-256 of each
of its files. The file also counts reads of test scores, and holds the format of the whole folder.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtune.errors import StoreError
from mixtune.records import State
from mixtune.signals import defer_signals
from mixtune.store import files

LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that is writing a state."""

FILE = "state.sqlite"
FORMAT = 2
"""Version of a study's folder, in SQLite's `user_version`; another one is refused."""

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
CREATE TABLE IF NOT EXISTS test_read (at REAL NOT NULL, command TEXT NOT NULL);
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
        rows: list[Any] = []
        if (self.folder / FILE).exists():
            # Not opened read-only: after a kill the journal may have to be rolled back first.
            with self._database() as db:
                db.row_factory = sqlite3.Row
                rows = db.execute("SELECT * FROM unit").fetchall()
        return {row["id"]: Unit(**{**row, "files": _parsed(row["files"])}) for row in rows}

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
        self._set(unit, "state='planned', progress=0")

    def finish(self, unit: str, paths: Iterable[Path], seconds: float) -> None:
        """Running → done, last of all, with size and checksum of each file."""
        sums = {str(p.relative_to(self.folder)): files.fingerprint(p) for p in sorted(paths)}
        fields = "state='done', progress=1, error='', seconds=?, files=?"
        self._set(unit, fields, seconds, json.dumps(sums))

    def _set(self, unit: str, fields: str, *values: object) -> None:
        with self._database() as db:
            db.execute(
                f"UPDATE unit SET {fields}, heartbeat=? WHERE id=?", (*values, time.time(), unit)
            )

    # ---- test reads -------------------------------------------------------------------------

    def count_test_read(self, command: str) -> int:
        """Log one read of test scores; returns the number of reads so far, with this one."""
        with self._database() as db:
            db.execute("INSERT INTO test_read VALUES (?, ?)", (time.time(), command))
        return self.test_reads()

    def test_reads(self) -> int:
        """Number of reads of test scores."""
        with self._database() as db:
            return int(db.execute("SELECT count(*) FROM test_read").fetchone()[0])

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
                remedy="free space, check permissions, end what holds it; if it is damaged, "
                "restore it, or move the folder away to begin anew",
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
                "wrote it",
            )
        connection.executescript(_TABLES)


def _format(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _parsed(text: str) -> dict[str, files.Fingerprint]:
    return {name: files.Fingerprint(*entry) for name, entry in json.loads(text).items()}
