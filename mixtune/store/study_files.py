"""Files of a study's folder: texts, JSON and parquet, read and written whole.

Knows: which file lies where. Does not know: plans, what the rows mean.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from difflib import unified_diff
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mixtune.errors import StoreError, shorten
from mixtune.records import schema_of
from mixtune.store import files, journal
from mixtune.store.journal import KnownFile
from mixtune.store.states import States, done_line
from mixtune.study.yaml import read_yaml

STUDY = "study.yaml"
PLAN = "plan.parquet"
_LONG = 1_000_000
"""Bytes from which on the text of a file is not recorded."""
DIFF_LINES = 40
"""Lines of a difference that are shown."""

Row = TypeVar("Row")

_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,  # rows with other columns
    RecursionError,
    StoreError,
    pa.ArrowException,
)


class StudyFiles(States):
    """Files below the folder of one study, by their names relative to it."""

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, whole or not at all."""
        return files.write_text(self.folder / name, text)

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file, whole or not at all."""
        return self.write_text(name, json_text(value))

    def write_rows(self, name: str, row_type: type, rows: Sequence[Any]) -> Path:
        """Write rows of one type as a parquet file with checksums, whole or not at all."""
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema_of(row_type))
        options = {"compression": "zstd", "write_page_checksum": True}
        return files.write_whole(
            self.folder / name, lambda path: pq.write_table(table, path, **options)
        )

    def check(self, name: str, remedy: str = "") -> None:
        """Refuse a file of the plan that is not as it was recorded when the study was planned.

        `remedy`: another one than to restore or remake the file.

        Raises:
            StoreError: with the difference, where the recorded text is known.
        """
        if "/" in name:  # files of runs have checksums of their own
            return
        known = self.known_files().get(name, [])
        path = self.folder / name
        if not known or any(files.matches(path, version.fingerprint) for version in known):
            return
        lines = difference(known[-1].text, path)
        restore = "mixtune doctor STUDY.yaml --repair, or mixtune run of the whole study, writes "
        restore += "it back as it was"
        if known[-1].text is None:
            restore = "mixtune run STUDY.yaml writes it again from the data"
        raise StoreError(
            "\n    ".join(["changed since the study was planned", *lines]),
            where=str(path),
            found=f"SHA-256 {files.fingerprint(path).sha256}" if path.is_file() else "no file",
            wanted=f"SHA-256 {known[-1].sha256}",
            remedy=remedy
            or f"{restore}; to change a study, change your own study file and give it another name",
        )

    def know_plan(self, names: Iterable[str]) -> None:
        """Record the plan and its files as they are now, and accept no others."""
        texts = [known_text(name, self.folder.joinpath(name).read_text("utf-8")) for name in names]
        plan = KnownFile(PLAN, *files.fingerprint(self.folder / PLAN))
        self.know_files([*texts, plan], alone=True)

    def restore(self, texts: Mapping[str, str]) -> list[str]:
        """Write files of the plan again that are missing or changed; a line for each.

        The study as it was recorded: a changed one must not become the study by being run. What
        follows from the data is written from the data.
        """
        known, lines = self.known_files(), []
        for name, text in texts.items():
            try:
                self.read_value(name)
            except StoreError as error:
                recorded = known[name][-1].text if name in known else None
                text = recorded if name == STUDY and recorded is not None else text
                self.know_files([known_text(name, text)], alone=True)
                self.write_text(name, text)
                lines.append(f"{name} was written again: {str(error).splitlines()[0]}")
        return lines

    def renew_journal(self) -> None:
        """Write the journal anew, from the states."""
        units = [unit for unit in self.units().values() if unit.state == "done"]
        journal.begin(
            self.folder,
            [
                *journal.file_lines(chain(*self.known_files().values())),
                *(done_line(unit.id, unit.files, unit.seconds) for unit in units),
                *({"what": "look", "at": at, "command": text} for at, text in self.looks()),
            ],
        )

    def read_text(self, name: str) -> str:
        """Read a text file; a StoreError where it is missing or unreadable."""
        self.check(name)
        with _reading(self.folder / name) as path:
            return path.read_text(encoding="utf-8")

    def read_value(self, name: str) -> Any:  # noqa: ANN401 - JSON or YAML
        """Read the value of a JSON or YAML file; a StoreError where it is missing or malformed."""
        self.check(name)
        with _reading(self.folder / name) as path:
            text = path.read_text(encoding="utf-8")
            yaml = name.endswith(".yaml")
            value = read_yaml(text, name, StoreError).value if yaml else json.loads(text)
            if name in ("study.yaml", "run.json") and not isinstance(value, dict):
                raise ValueError("not a mapping")
            return value

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Read the rows of a parquet file as dictionaries; a StoreError as `read_table`."""
        rows: list[dict[str, Any]] = self.read_table(name).to_pylist()
        return rows

    def read_records(self, name: str, row_type: Callable[..., Row]) -> list[Row]:
        """Read the rows of a parquet or JSON file as one type; a StoreError as `read_table`."""
        rows = self.read_rows(name) if name.endswith(".parquet") else self.read_value(name)
        with _reading(self.folder / name):
            return [row_type(**row) for row in rows]

    def read_table(self, name: str) -> pa.Table:
        """Read a parquet file as an Arrow table; a StoreError where it is missing or damaged."""
        with _reading(self.folder / name) as path:
            return pq.read_table(path, page_checksum_verification=True)

    def drop_scores(self, folder: str) -> None:
        """Remove the scores of a system, one of whose sets of answers is new."""
        shutil.rmtree(self.folder / folder / "scores", ignore_errors=True)

    @property
    def activations_folder(self) -> Path:
        """Cached activations below the adapters, for `train.top_layers`; it can be deleted."""
        return self.folder / "states"

    def bank_file(self, bank: str) -> Path:
        """Checkpoint of a bank of adapters in training."""
        return self.folder / "banks" / f"{bank}.safetensors"

    def banks(self) -> list[str]:
        """Names of the banks that have a checkpoint."""
        return sorted(path.stem for path in (self.folder / "banks").glob("*.safetensors"))

    def drop_bank(self, bank: str) -> None:
        """Remove a checkpoint: its bank is empty, or it cannot be used."""
        with files.storage_errors(self.bank_file(bank), "cannot remove"):
            self.bank_file(bank).unlink(missing_ok=True)

    def portion_file(self, portion: str) -> Path:
        """File of a portion that a worker is doing."""
        return self.folder / "portions" / f"{portion}.safetensors"

    def drop_portions(self) -> None:
        """Remove the files of all portions."""
        shutil.rmtree(self.folder / "portions", ignore_errors=True)

    def new_folder(self, name: str) -> AbstractContextManager[Path]:
        """Fill an empty folder in the body; it replaces the one of that name when complete."""
        return files.whole_folder(self.folder / name)


def known_text(name: str, text: str) -> KnownFile:
    """The record of a text file of the plan; of a long one without the text."""
    raw = text.encode()
    return KnownFile(name, len(raw), sha256(raw).hexdigest(), text if len(raw) < _LONG else None)


def difference(recorded: str | None, path: Path) -> list[str]:
    """Lines that differ between a recorded text and a file; none where either is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    if recorded is None:
        return []
    return diff_lines((recorded, "as planned"), (text, "as it is now"), path.name)


def diff_lines(old: tuple[str, str], new: tuple[str, str], name: str) -> list[str]:
    """Line-by-line difference of two texts, each with a word for it, cut to what can be read."""
    texts = (old[0].splitlines(), new[0].splitlines())
    names = (f"{name} {old[1]}", f"{name} {new[1]}")
    lines = [*unified_diff(*texts, *names, "", "", 0, "")]
    more = len(lines) - DIFF_LINES
    return [*lines[:DIFF_LINES], *([f"… and {more} more lines"] if more > 0 else [])]


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    try:
        yield path
    except _UNREADABLE as error:
        raise StoreError(
            f"cannot read: {shorten(str(error))}",
            where=str(path),
            remedy="mixtune run, which makes again what is missing or damaged (mixtune score: "
            "scores)",
        ) from error


def json_text(value: object) -> str:
    """JSON as the folder's files hold it."""
    return json.dumps(value, indent=1) + "\n"
