"""Files of a study's folder: texts, JSON and parquet, read and written whole.

Knows: which file lies where. Does not know: plans, what the rows mean.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mixtune.errors import StoreError, shorten
from mixtune.records import schema_of
from mixtune.store import files
from mixtune.store.states import States
from mixtune.study.yaml import read_yaml

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

    def read_text(self, name: str) -> str:
        """Read a text file; a StoreError where it is missing or unreadable."""
        with _reading(self.folder / name) as path:
            return path.read_text(encoding="utf-8")

    def read_value(self, name: str) -> Any:  # noqa: ANN401 - JSON or YAML
        """Read the value of a JSON or YAML file; a StoreError where it is missing or malformed."""
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
