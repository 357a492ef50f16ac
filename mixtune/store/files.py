"""Files that are there whole or not at all, and a folder that one process at a time writes.

A file is written under a temporary name beside its place, flushed to the disk and renamed; so is
a folder of files. Whatever goes wrong before the rename leaves what was there before.

Knows: temporary names, flushing, checksums, kernel locks, JSON objects, what the system says when
it refuses. Does not know: what is in a file, studies, models.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from mixtune.errors import StoreError, UserError, shorten

_PART = ".mixtune-part"
_REFUSED = (OSError, SafetensorError)
"""What writing raises when the system refuses; safetensors wraps it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where files are kept: the error when it cannot be written there, and what helps."""

    error: type[UserError]
    remedy: str


RUNS = Place(
    StoreError,
    "free space, check permissions or choose another --runs-dir; what was finished before is kept, "
    "and the same command goes on",
)


def read_object(path: Path, error: type[UserError]) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file.

    Raises:
        UserError: of the class `error`; unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # refuses halves of characters
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as wrong:
        raise error(
            f"not a readable JSON file: {wrong}",
            where=str(path),
            remedy="fetch or save the file again",
        ) from wrong
    if not isinstance(value, dict):
        raise error(
            "not a JSON object",
            where=str(path),
            found=value,
            wanted='{"key": value, …}',
            remedy="fetch or save the file again",
        )
    return value


def write_whole(target: Path, write: Callable[[Path], object], place: Place = RUNS) -> Path:
    """Write a file by `write(path)`; it appears under its name when it is complete.

    Raises:
        UserError: the place's; no space, no permission, a folder that is a file. Nothing is left
            behind.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}{_PART}")
    with _refusals(target, part, place):
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        _flush(part)
        part.replace(target)
    return target


@contextmanager
def whole_folder(target: Path, place: Place = RUNS) -> Iterator[Path]:
    """An empty folder to fill; when the body ends without an error it takes the target's place.

    One process at a time may do this for one target: what a killed one left is removed first.

    Raises:
        UserError: as `write_whole`.
    """
    part = target.with_name(f".{target.name}{_PART}")
    with _refusals(target, part, place):
        _remove(part)
        part.mkdir(parents=True)
        yield part
        for path in filter(Path.is_file, part.rglob("*")):
            _flush(path)
        _remove(target)
        part.replace(target)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed while writing left below a folder."""
    for left in list(folder.rglob(f".*{_PART}")):
        _remove(left)


def fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as handle:
        sha = hashlib.file_digest(handle, "sha256").hexdigest()
    return path.stat().st_size, sha


def matches(path: Path, size: int, sha: str) -> bool:
    """Whether a file is there and is what its fingerprint says."""
    return path.is_file() and path.stat().st_size == size and fingerprint(path)[1] == sha


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel gives it back when the process dies. It names its holder.

    Raises:
        StoreError: another process holds it, or it cannot be written.
    """
    with _lock_file(path, RUNS) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                "another mixtune process is running this study",
                where=str(path.parent),
                found=_holder(handle),
                wanted="one at a time",
                remedy="wait for it; meanwhile mixtune status and mixtune results can be used",
            ) from error
        with refusing(path, "cannot write"):
            handle.truncate(0)
            handle.write(json.dumps({"pid": os.getpid(), "since": time.time()}))
            handle.flush()
        yield


@contextmanager
def in_turn(path: Path, place: Place = RUNS) -> Iterator[None]:
    """Hold the lock that stands beside a path; others wait. A dead process holds no lock.

    Raises:
        UserError: the place's; the lock file cannot be written.
    """
    with _lock_file(path.with_name(f".{path.name}.lock"), place) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def refusing(path: Path, what: str, place: Place = RUNS) -> Iterator[None]:
    """What the system refuses in the body, as the place's error that names the path."""
    try:
        yield
    except _REFUSED as error:
        why = getattr(error, "strerror", None) or str(error)
        raise place.error(
            f"{what}: {shorten(why)}", where=str(path), remedy=place.remedy
        ) from error


@contextmanager
def _refusals(target: Path, part: Path, place: Place) -> Iterator[None]:
    """Errors of writing name the target; whatever stops it, Ctrl-C too, leaves no part behind."""
    with refusing(target, "cannot write", place):
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _remove(part)
            raise


def _lock_file(path: Path, place: Place) -> TextIO:
    with refusing(path, "cannot write", place):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _holder(handle: TextIO) -> str:
    """Who wrote the lock file, as far as it says."""
    handle.seek(0)
    try:
        note = json.loads(handle.read())
        since = datetime.fromtimestamp(note["since"], UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return "a process that left no note"
    return f"process {note['pid']}, since {since:%Y-%m-%d %H:%M:%S} UTC"
