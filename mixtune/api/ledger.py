"""What a study's requests have cost, and whether the next one may be sent.

Each request is entered with the most that it can cost before it is sent, and with what it did cost
when its answer is there. What never got an answer, because the connection broke or the process was
killed, stays entered with the most: it may have been paid for.

Knows: an SQLite file beside the study, a ceiling. Does not know: HTTP, tokens, who waits.
"""

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

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
    """The next request could pass the ceiling, and none is under way that would make room."""


def dollars(pico: int) -> float:
    """Picodollars as US dollars."""
    return pico / PICO


class Ledger:
    """The money of one study; one process at a time, which holds the study's lock."""

    def __init__(self, path: Path, max_cost: float | None) -> None:
        """Open or begin a ledger; `max_cost` in US dollars, None for no ceiling."""
        self._path = path
        self.ceiling = None if max_cost is None else math.floor(max_cost * PICO)
        self._in_flight: set[int] = set()

    def enter(self, system: str, most: int) -> int | None:
        """Enter a request that can cost so many picodollars at most; its number.

        None where it has to wait for others to end, which may make room.

        Raises:
            CeilingReached: it does not fit, and nothing is under way.
        """
        with self._open() as db:
            taken = _taken(db)
            if self.ceiling is not None and taken + most > self.ceiling:
                if self._in_flight:
                    return None
                raise CeilingReached(_reached(taken, most, self.ceiling))
            row = db.execute(
                "INSERT INTO request (system, at, most) VALUES (?, ?, ?)",
                (system, time.time(), most),
            )
            number = row.lastrowid
            assert number is not None
        self._in_flight.add(number)
        return number

    def settle(self, number: int, cost: int) -> None:
        """A request ended and cost so much."""
        with self._open() as db:
            db.execute("UPDATE request SET cost = ? WHERE id = ?", (cost, number))
        self._in_flight.discard(number)

    def leave(self, number: int) -> None:
        """A request ended and nobody knows whether it was paid for: it counts with the most."""
        self._in_flight.discard(number)

    def drop(self, number: int) -> None:
        """A request ended and was not paid for."""
        with self._open() as db:
            db.execute("DELETE FROM request WHERE id = ?", (number,))
        self._in_flight.discard(number)

    def spent(self) -> tuple[int, int]:
        """Picodollars of answered requests, and the most that unanswered ones can have cost."""
        if not self._path.exists():
            return 0, 0
        with self._open() as db:
            paid, open_ = db.execute(
                "SELECT COALESCE(SUM(cost), 0), "
                "COALESCE(SUM(CASE WHEN cost IS NULL THEN most END), 0) FROM request"
            ).fetchone()
        return int(paid), int(open_)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path)) as connection, connection:
                connection.execute(_TABLE)
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"what API models cost cannot be written down: {error}",
                where=str(self._path),
                remedy=RUNS.remedy,
            ) from error


def _taken(db: sqlite3.Connection) -> int:
    (taken,) = db.execute("SELECT COALESCE(SUM(COALESCE(cost, most)), 0) FROM request").fetchone()
    return int(taken)


def _reached(taken: int, most: int, ceiling: int) -> str:
    return (
        f"stopped before api.max_cost of ${dollars(ceiling):.4f} is passed: ${dollars(taken):.4f} "
        f"are spent, and the next request can cost ${dollars(most):.6f}; what is answered is kept. "
        "To go on, raise api.max_cost and give the same command"
    )
