"""Costs of requests to APIs, and the completions that were paid for.

A study's ledger reserves the maximum cost of each request before it is sent and replaces it by the
actual cost when the completion arrives. A request that never got a response, because the connection
broke or the process was killed, may have been charged: it keeps counting at its maximum.

Completions are cached for all studies of a user, keyed by request: none is paid for again, judges'
answers neither. An entry holds no prompt and no key.
"""

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from mixtune.api.entries import PICO, ApiSystem
from mixtune.errors import MixtuneError, ModelError, StoreError
from mixtune.identity import canonical, digest
from mixtune.models.files import CACHE, cache_dir
from mixtune.store.files import PRIVATE, RUNS, in_turn, write_text

FILE = "api.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS request (
  id INTEGER PRIMARY KEY, system TEXT NOT NULL, at REAL NOT NULL,
  most INTEGER NOT NULL, cost INTEGER
)
"""
_ENTRY = "said"
"""Key of the completion in an entry; entries of earlier versions are paid for, so it stays."""


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
            total = sum(_spent(db))
            if self._limit is not None and total + max_cost > self._limit:
                # Reservations of a killed process are never released: only own ones are waited for.
                if self._in_flight:
                    return None
                raise CeilingReached(
                    f"stopped before api.max_cost of ${dollars(self._limit):.4f} is exceeded: "
                    f"${dollars(total):.4f} are spent, and the next request can cost "
                    f"${dollars(max_cost):.6f}; all answers so far are cached. To continue, raise "
                    "api.max_cost and run the same command"
                )
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
            return _spent(db)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path)) as connection, connection:
                connection.execute(_TABLE)
                yield connection
        except sqlite3.Error as error:
            problem = f"costs of API models cannot be recorded: {error}"
            raise StoreError(problem, where=str(self._path), remedy=RUNS.remedy) from error


def _spent(db: sqlite3.Connection) -> Spent:
    row = db.execute(
        "SELECT COALESCE(SUM(cost), 0), COALESCE(SUM(CASE WHEN cost IS NULL THEN most END), 0) "
        "FROM request"
    )
    return Spent(*row.fetchone())


# ---- completions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """Text, finish reason, tokens as the endpoint counted them, latency in seconds.

    `served`: the model that the endpoint reports. Tokens are None where it reports no usage.
    `reasoning`: text before the answer in a field of its own.
    """

    text: str
    finish: Literal["stop", "length", "refused"]
    tokens_in: int | None
    tokens_out: int | None
    served: str
    latency: float
    reasoning: str = ""

    def entry(self) -> dict[str, Any]:
        """Fields as stored; without reasoning as in earlier versions, so that digests agree."""
        fields = asdict(self)
        return fields if self.reasoning else {k: v for k, v in fields.items() if k != "reasoning"}


_COMPLETION = TypeAdapter(Completion)


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of endpoint and body: model, messages, parameters, schema."""
    request = {"endpoint": base_url, "body": dict(body)}
    return hashlib.sha256(canonical(request).encode()).hexdigest()


class Cache:
    """Completions in a folder, by default one in the user's cache; one file per request."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "api"

    def get(self, key: str) -> Completion | None:
        """The cached completion; None on a miss, or where the entry is damaged.

        Raises:
            ModelError: the entry exists and cannot be read.
        """
        try:
            with suppress(OSError):  # entries of earlier versions were readable by all
                self._path(key).chmod(PRIVATE)
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            completion = _COMPLETION.validate_python(entry[_ENTRY])
            intact = entry["digest"] == digest(completion.entry())
        except FileNotFoundError:
            return None
        except OSError as error:
            # Not a miss: sending the request again would pay for it a second time.
            problem, where = f"a cached answer cannot be read: {error.strerror}", self._path(key)
            raise ModelError(problem, where=str(where), remedy=CACHE.remedy) from error
        except (ValueError, KeyError, TypeError, ValidationError):
            return None
        return completion if intact else None

    def put(self, key: str, completion: Completion) -> None:
        """Write an entry whole, with a digest of its content."""
        entry = {_ENTRY: completion.entry(), "digest": digest(completion.entry())}
        text = json.dumps(entry, indent=1)
        write_text(self._path(key), text, CACHE, private=True)

    def lock(self, system: ApiSystem) -> AbstractContextManager[None]:
        """Lock a model of an endpoint for a batch of requests; other processes wait."""
        return in_turn(self.folder / digest([system.base_url, system.model]), CACHE)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
