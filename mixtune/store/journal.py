"""A second record of what `state.sqlite` knows of finished work, one JSON line for each event.

    {"what": "begun"}                                              the first line
    {"what": "file", "name": …, "size": …, "sha256": …, "text": …, "alone": …}
                                      of the plan; alone: earlier versions are no longer accepted
    {"what": "done", "unit": …, "seconds": …, "files": {name: [size, sha256]}}
    {"what": "discarded", "unit": …}
    {"what": "look", "command": …}                                 at test scores

Lines are only ever added, each in one write by whichever process has the event, and before the
database has it. Nothing reads them but `mixtune doctor STUDY --repair`.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixtune.store import files
from mixtune.store.files import Fingerprint

JOURNAL = "journal.jsonl"
_BEGUN = "begun"


@dataclass
class Entries:
    """A journal, read. `whole`: it has its first line, and every line can be read.

    `known`: name → the file as it was recorded, several where the last change was cut off; `done`:
    unit → its files; `seconds`: unit → time that it took; `looks`: time and command of each.
    """

    whole: bool = False
    known: dict[str, list["KnownFile"]] = field(default_factory=dict)
    done: dict[str, dict[str, Fingerprint]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    looks: list[tuple[float, str]] = field(default_factory=list)

    def verified(self, folder: Path, unit: str) -> dict[str, Fingerprint] | None:
        """Files of a unit with their checksums, where all are there and as they were recorded."""
        known = self.done.get(unit)
        if known and all(files.matches(folder / name, version) for name, version in known.items()):
            return known
        return None

    def take(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        match line["what"]:
            case "file":
                known = KnownFile(*(line[key] for key in ("name", "size", "sha256", "text")))
                before = [] if line["alone"] else self.known.get(known.name, [])
                self.known[known.name] = [*before, known]
            case "done":
                own = {name: Fingerprint(*entry) for name, entry in line["files"].items()}
                self.done[line["unit"]] = own
                self.seconds[line["unit"]] = float(line["seconds"])
            case "discarded":
                self.done.pop(line["unit"], None)
            case "look":
                self.looks.append((float(line["at"]), str(line["command"])))


def file_lines(known: Iterable["KnownFile"], alone: bool = False) -> list[dict[str, object]]:
    """Lines of files of a plan."""
    return [{"what": "file", **asdict(version), "alone": alone} for version in known]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that belongs to a plan, as it was recorded; its text where it is short enough."""

    name: str
    size: int
    sha256: str
    text: str | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and checksum, to compare the file with."""
        return Fingerprint(self.size, self.sha256)


def append(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Add lines to the journal of a folder, where there is one: a pack and old folders have none.

    Raises:
        StoreError: it cannot be written.
    """
    path = folder / JOURNAL
    with files.storage_errors(path, "cannot write"):
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return
        try:
            os.write(handle, _gap(handle) + _encoded(lines))
            os.fsync(handle)
        finally:
            os.close(handle)


def begin(folder: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write a new journal with these lines, whole or not at all."""
    text = _encoded([{"what": _BEGUN}, *lines]).decode()
    files.write_text(folder / JOURNAL, text)


def read(folder: Path) -> Entries:
    """The journal of a folder; an empty one where there is none. What cannot be read is left out.

    Raises:
        StoreError: the system refuses to read it.
    """
    entries = Entries()
    path = folder / JOURNAL
    if not path.is_file():
        return entries
    with files.storage_errors(path, "cannot read"):
        raw = path.read_bytes().split(b"\n")
    entries.whole = True
    for number, line in enumerate(raw):
        if not line:
            continue
        try:
            value = json.loads(line)
            entries.whole &= number > 0 or value["what"] == _BEGUN
            entries.take(value)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            entries.whole = False
    entries.whole &= bool(raw[0])
    return entries


def _encoded(lines: Iterable[Mapping[str, object]]) -> bytes:
    now = time.time()
    return b"".join(json.dumps({"at": now, **line}).encode() + b"\n" for line in lines)


def _gap(handle: int) -> bytes:
    """A line's end, where a process was killed in the middle of a line."""
    size = os.fstat(handle).st_size
    return b"" if size == 0 or os.pread(handle, 1, size - 1) == b"\n" else b"\n"
