"""The states of a study's units, in one SQLite file: who does what, what is done, what failed.

A unit (one adapter, or one set of answers) goes planned → running → done | failed; `done` comes
last, with the size and SHA-256 of each of its files.

Knows: units, claims, looks at test scores. Does not know: what is in a file, plans.
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
from mixtune.signals import held_back
from mixtune.store import files as durable

PATIENCE = 30.0
"""Seconds to wait for another process that is writing a state."""

FILE = "state.sqlite"
_AT_ONCE = 500
"""Ids in one question; SQLite takes 999 everywhere."""
_RELEASE = "UPDATE unit SET state='planned', progress=0, heartbeat=? WHERE state='running'"

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


class States:
    """The states below one study's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def units(self) -> dict[str, Unit]:
        """State of every unit, by id. Usable while another process runs."""
        rows: list[Any] = []
        if (self.folder / FILE).exists():
            # Not opened read-only: after a kill the journal may have to be rolled back first.
            with self._state() as db:
                db.row_factory = sqlite3.Row
                rows = db.execute("SELECT * FROM unit").fetchall()
        return {row["id"]: Unit(**{**dict(row), "files": _files(row["files"])}) for row in rows}

    def undone(self, ids: Iterable[str]) -> set[str]:
        """Which of these units are not done; an unknown one is not."""
        asked = list(ids)
        done: set[str] = set()
        with self._state() as db:
            for first in range(0, len(asked), _AT_ONCE):
                some = asked[first : first + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT id FROM unit WHERE state='done' AND id IN ({marks})"
                done |= {unit for (unit,) in db.execute(query, some)}
        return set(asked) - done

    def claim(self, portion: str) -> bool:
        """Take a portion of work, so that no other worker of this `mixtune run` takes it too."""
        with self._state() as db:
            taken = db.execute("INSERT OR IGNORE INTO claim VALUES (?)", (portion,)).rowcount
        return taken == 1

    def free_claims(self) -> None:
        """Forget who took what: whoever did is dead, or has not begun."""
        with self._state() as db:
            db.execute("DELETE FROM claim")

    def begin(self, unit: str) -> None:
        """Planned | failed → running."""
        self._set(unit, "state='running', attempts=attempts+1, error='', progress=0", ())

    def beat(self, progress: Mapping[str, float]) -> None:
        """Say that units are alive and how far each is (0 … 1)."""
        now = time.time()
        with self._state() as db:
            db.executemany(
                "UPDATE unit SET progress=?, heartbeat=? WHERE id=?",
                [(far, now, unit) for unit, far in progress.items()],
            )

    def fail(self, unit: str, error: str, seconds: float) -> None:
        """Running → failed, with its error."""
        self._set(unit, "state='failed', error=?, seconds=?", (error, seconds))

    def release(self, unit: str) -> None:
        """Running → planned: the work was stopped, not broken. One that is done stays done."""
        with self._state() as db:
            db.execute(f"{_RELEASE} AND id=?", (time.time(), unit))

    def release_running(self) -> None:
        """Every running unit → planned; for the holder of the lock, when no process works here."""
        with self._state() as db:
            db.execute(_RELEASE, (time.time(),))

    def discard(self, unit: str) -> None:
        """Done → planned: its files are gone or changed."""
        self._set(unit, "state='planned', progress=0", ())

    def finish(self, unit: str, paths: Iterable[Path], seconds: float) -> None:
        """Running → done, last of all, with size and checksum of each file."""
        files = {str(p.relative_to(self.folder)): durable.fingerprint(p) for p in sorted(paths)}
        fields = "state='done', progress=1, error='', seconds=?, files=?"
        self._set(unit, fields, (seconds, json.dumps(files)))

    def _set(self, unit: str, fields: str, values: tuple[Any, ...]) -> None:
        with self._state() as db:
            db.execute(
                f"UPDATE unit SET {fields}, heartbeat=? WHERE id=?", (*values, time.time(), unit)
            )

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

    # ---- SQLite -------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / FILE, timeout=PATIENCE)
        connection.executescript(_TABLES)
        return connection

    @contextmanager
    def _state(self) -> Iterator[sqlite3.Connection]:
        with durable.refusing(self.folder, "cannot write"):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # A transaction that a signal cuts off locks out who gives back on the way out: its
            # connection stays open as long as the traceback.
            with held_back(), closing(self._connect()) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"the study's state cannot be read or written: {error}",
                where=str(self.folder / FILE),
                remedy="free space, check permissions, end what holds it; if it is damaged, "
                "restore it, or move the folder away to begin anew",
            ) from error


def _files(text: str) -> dict[str, tuple[int, str]]:
    return {name: (int(size), sha) for name, (size, sha) in json.loads(text).items()}
