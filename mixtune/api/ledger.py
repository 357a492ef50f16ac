"""Cost ledger of a study: reserves the maximum cost of each request before it is sent.

A reservation is replaced by the actual cost when the completion arrives. A request that never got a
response, because the connection broke or the process was killed, may have been charged: it keeps
counting at its maximum.

Knows: an SQLite file in the study's folder, a budget limit. Does not know: HTTP, tokens, who waits.
"""

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from mixtune.api.entries import PICO
from mixtune.errors import MixtuneError, StoreError
from mixtune.store.files import RUNS

FILE = "api.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS request (
  id INTEGER PRIMARY KEY, system TEXT NOT NULL, at REAL NOT NULL,
  most INTEGER NOT NULL, cost INTEGER
)
"""


class CeilingReached(MixtuneError):
    """The next request could exceed the budget limit, and no pending one would free enough."""


class Spent(NamedTuple):
    """Picodollars charged for completions, and the maximum that other requests may have cost."""

    charged: int
    reserved: int


def dollars(pico: int) -> float:
    """Picodollars as US dollars."""
    return pico / PICO


class Ledger:
    """Costs of one study; used by one process at a time, the one that holds the study's lock."""

    def __init__(self, path: Path, max_cost: float | None) -> None:
        """Open or create a ledger; `max_cost` in US dollars, None for no limit."""
        self._path = path
        # Rounded down, so that the limit is never exceeded by a fraction of a picodollar.
        self._limit = None if max_cost is None else math.floor(max_cost * PICO)
        self._in_flight: set[int] = set()

    def reserve(self, system: str, max_cost: int) -> int | None:
        """Reserve the maximum cost of a request in picodollars; returns the entry's id.

        None where the request has to wait for pending ones, which may cost less than reserved.

        Raises:
            CeilingReached: it does not fit, and no request is pending.
        """
        with self._open() as db:
            total = _total(db)
            if self._limit is not None and total + max_cost > self._limit:
                # Reservations of a killed process are never released: only own ones are waited for.
                if self._in_flight:
                    return None
                raise CeilingReached(_limit_reached(total, max_cost, self._limit))
            row = db.execute(
                "INSERT INTO request (system, at, most) VALUES (?, ?, ?)",
                (system, time.time(), max_cost),
            )
            entry = row.lastrowid
            assert entry is not None
        self._in_flight.add(entry)
        return entry

    def settle(self, entry: int, cost: int) -> None:
        """Replace a reservation by the actual cost in picodollars."""
        with self._open() as db:
            db.execute("UPDATE request SET cost = ? WHERE id = ?", (cost, entry))
        self._in_flight.discard(entry)

    def keep_reserved(self, entry: int) -> None:
        """End a request that may have been charged: it keeps counting at its maximum."""
        self._in_flight.discard(entry)

    def release(self, entry: int) -> None:
        """End a request that was not charged: its reservation is deleted."""
        with self._open() as db:
            db.execute("DELETE FROM request WHERE id = ?", (entry,))
        self._in_flight.discard(entry)

    def spent(self) -> Spent:
        """Total cost so far; creates no file."""
        if not self._path.exists():
            return Spent(0, 0)
        with self._open() as db:
            charged, reserved = db.execute(
                "SELECT COALESCE(SUM(cost), 0), "
                "COALESCE(SUM(CASE WHEN cost IS NULL THEN most END), 0) FROM request"
            ).fetchone()
        return Spent(int(charged), int(reserved))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path)) as connection, connection:
                connection.execute(_TABLE)
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"costs of API models cannot be recorded: {error}",
                where=str(self._path),
                remedy=RUNS.remedy,
            ) from error


def _total(db: sqlite3.Connection) -> int:
    (total,) = db.execute("SELECT COALESCE(SUM(COALESCE(cost, most)), 0) FROM request").fetchone()
    return int(total)


def _limit_reached(total: int, max_cost: int, limit: int) -> str:
    return (
        f"stopped before api.max_cost of ${dollars(limit):.4f} is exceeded: ${dollars(total):.4f} "
        f"are spent, and the next request can cost ${dollars(max_cost):.6f}; all answers so far "
        "are cached. To continue, raise api.max_cost and run the same command"
    )
