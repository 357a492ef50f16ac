"""Files that are there whole or not at all, and a folder that one process at a time writes.

A file is written under a temporary name beside its place, flushed to the disk and renamed; so is
a folder of files. Whatever goes wrong before the rename leaves what was there before.

Knows: temporary names, flushing, checksums, kernel locks, what the system says when it refuses.
Does not know: what is in a file, studies.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from mixtune.errors import StoreError, shorten

_PART = ".mixtune-part"
_REFUSED = (OSError, SafetensorError)
"""What writing raises when the system refuses; safetensors wraps it."""


def write_whole(target: Path, write: Callable[[Path], object]) -> Path:
    """Write a file by `write(path)`; it appears under its name when it is complete.

    Raises:
        StoreError: no space, no permission, a folder that is a file; nothing is left behind.
    """
    part = _part(target)
    with _refusals(target, part):
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        _flush(part)
        part.replace(target)
    return target


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; when the body ends without an error it takes the target's place.

    Raises:
        StoreError: as `write_whole`.
    """
    part = _part(target)
    with _refusals(target, part):
        _remove(part)
        part.mkdir(parents=True)
        yield part
        for path in part.iterdir():
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
    with refusing(path, "cannot write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", encoding="utf-8")
    with handle:
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
def refusing(path: Path, what: str) -> Iterator[None]:
    """What the system refuses in the body, as a StoreError that names the path."""
    try:
        yield
    except _REFUSED as error:
        why = getattr(error, "strerror", None) or str(error)
        raise StoreError(
            f"{what}: {shorten(why)}",
            where=str(path),
            remedy="free space, check permissions or choose another --runs-dir; what was finished "
            "before is kept, and the same command goes on",
        ) from error


@contextmanager
def _refusals(target: Path, part: Path) -> Iterator[None]:
    """Errors of writing name the target; whatever stops it, Ctrl-C too, leaves no part behind."""
    with refusing(target, "cannot write"):
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _remove(part)
            raise


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}{_PART}")


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
