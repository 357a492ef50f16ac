"""Files that appear whole or not at all, and locks on a folder.

A file is written under a temporary name beside its target, flushed to disk and renamed; so is a
folder of files. An error before the rename leaves what was there before.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from safetensors import SafetensorError

from mixtune.errors import StoreError, UserError, shorten

_PART = ".mixtune-part"
PRIVATE = 0o600
"""Mode of a file that its owner alone may read."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_GLANCE = 0.5
"""Seconds within which a process that only looks at a lock has let it go."""
_SYSTEM_ERRORS = (OSError, SafetensorError)
"""Errors of the system while writing; safetensors wraps them."""


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of storage: the error class when it cannot be written, and the remedy."""

    error: type[UserError]
    remedy: str


RUNS = Place(
    StoreError,
    "free space, check permissions or choose another --runs-dir; what was finished before is kept, "
    "and the same command goes on",
)


class Fingerprint(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def read_object(path: Path, error: type[UserError]) -> dict[str, Any]:
    """Read a JSON object from a file, {} where there is none; an `error` if it is not readable."""
    remedy = "fetch or save the file again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # refuses unpaired surrogates
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as cause:
        problem = f"not a readable JSON file: {cause}"
        raise error(problem, where=str(path), remedy=remedy) from cause
    if not isinstance(value, dict):
        raise error("not a JSON object", where=str(path), found=value, remedy=remedy)
    return value


def write_whole(
    target: Path, write: Callable[[Path], object], place: Place = RUNS, private: bool = False
) -> Path:
    """Write a file by `write(path)`; it appears under its name when it is complete.

    `private`: only its owner may read it.

    Raises:
        UserError: the place's; no space, no permission, a folder that is a file. No partial file
            is left behind.
    """
    # The name cannot be guessed, so nobody can put a link in its place beforehand.
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}{_PART}")
    with _writing(target, part, place):
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = PRIVATE if private else 0o666
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
        write(part)
        if private:
            part.chmod(PRIVATE)  # also where `write` put a new file in its place
        _flush(part)
        part.replace(target)
    return target


def write_text(target: Path, text: str, place: Place = RUNS, private: bool = False) -> Path:
    """Write a text file as `write_whole`."""
    return write_whole(target, lambda path: path.write_text(text, encoding="utf-8"), place, private)


@contextmanager
def whole_folder(target: Path, place: Place = RUNS) -> Iterator[Path]:
    """Fill an empty folder in the body; if that ends without an error it replaces the target.

    One process at a time may do this for one target: parts of a killed one are removed first.
    """
    part = target.with_name(f".{target.name}{_PART}")
    with _writing(target, part, place):
        _remove(part)
        part.mkdir(parents=True)
        yield part
        for path in filter(Path.is_file, part.rglob("*")):
            _flush(path)
        _remove(target)
        part.replace(target)


def plain_cell(value: object) -> object:
    """A CSV cell that no spreadsheet runs as a formula: text that could be one gets a quote."""
    risky = isinstance(value, str) and value.lstrip(" ").startswith(
        ("=", "+", "-", "@", "\t", "\r")
    )
    return f"'{value}" if risky and not _NUMBER.fullmatch(str(value)) else value


def sweep(folder: Path) -> None:
    """Remove partial files that a process killed while writing has left below a folder."""
    for part in list(folder.rglob(f".*{_PART}")):
        _remove(part)


def fingerprint(path: Path) -> Fingerprint:
    """Size and SHA-256 of a file."""
    with path.open("rb") as handle:
        sha = hashlib.file_digest(handle, "sha256").hexdigest()
    return Fingerprint(path.stat().st_size, sha)


def matches(path: Path, known: Fingerprint) -> bool:
    """True for a file that exists with this fingerprint."""
    return path.is_file() and path.stat().st_size == known.size and fingerprint(path) == known


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file that names its holder; the kernel frees it when the process dies."""
    with open_lock(path, RUNS) as handle:
        try:
            _lock(handle)
        except BlockingIOError as error:
            raise StoreError(
                "another mixtune process is running this study",
                where=str(path.parent),
                found=_holder(handle),
                remedy="wait for it; meanwhile mixtune status and mixtune results can be used",
            ) from error
        with storage_errors(path, "cannot write"):
            handle.truncate(0)
            handle.write(json.dumps({"pid": os.getpid(), "since": time.time()}))
            handle.flush()
        yield


def is_held(path: Path) -> bool:
    """True while a process that is alive holds a lock file, or where that cannot be seen."""
    try:
        with path.open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # BlockingIOError among them
        return True
    return False


@contextmanager
def in_turn(path: Path, place: Place = RUNS) -> Iterator[None]:
    """Hold the lock file beside a path, after waiting for any other holder that is alive."""
    with open_lock(path.with_name(f".{path.name}.lock"), place) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def storage_errors(path: Path, action: str, place: Place = RUNS) -> Iterator[None]:
    """Turn the system's errors in the body into the place's error, with path and failed action."""
    try:
        yield
    except _SYSTEM_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise place.error(
            f"{action}: {shorten(reason)}", where=str(path), remedy=place.remedy
        ) from error


@contextmanager
def _writing(target: Path, part: Path, place: Place) -> Iterator[None]:
    """Name the target in errors; whatever stops the body, Ctrl-C too, leaves no part behind."""
    with storage_errors(target, "cannot write", place):
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _remove(part)
            raise


def open_lock(path: Path, place: Place = RUNS) -> TextIO:
    """Open a lock file to read and append; refused where a link stands in its place."""
    with storage_errors(path, "cannot write", place):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link in the place of a lock would have the file that it names emptied.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        if os.fstat(handle).st_nlink > 1 or not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.ELOOP, "a lock is a file of its own, not a link")
        return os.fdopen(handle, "a+", encoding="utf-8")


def _lock(handle: TextIO) -> None:
    """Take the lock; tried for a while, because `is_held` in another process takes it for a moment.

    Raises:
        BlockingIOError: another process holds it.
    """
    deadline = time.monotonic() + _GLANCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_GLANCE / 25)


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _holder(handle: TextIO) -> str:
    """Process that wrote the lock file, as far as it says."""
    handle.seek(0)
    try:
        note = json.loads(handle.read())
        since = datetime.fromtimestamp(note["since"], UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return "a process that left no note"
    return f"process {note['pid']}, since {since:%Y-%m-%d %H:%M:%S} UTC"
