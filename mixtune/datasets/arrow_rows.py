"""Rows of parquet files and of folders written by `datasets.save_to_disk`.

Labels of the `datasets` library, stored as numbers, are read as the names in the file's metadata.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixtune.datasets.tables import check_names
from mixtune.datasets.text_files import Fault, Row, name_of
from mixtune.errors import DataError, shorten
from mixtune.tasks.record import ClassName

_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_HUGGING_FACE = b"huggingface"
Convert = Callable[[Any], Any]


def is_saved(path: Path) -> bool:
    """True for a folder of save_to_disk, of one split or of several."""
    return (path / _STATE).is_file() or (path / _SPLITS).is_file()


def saved_splits(path: Path) -> list[str] | None:
    """Names of the splits in a folder of a DatasetDict, each a folder in it; None for others."""
    if not (path / _SPLITS).is_file():
        return None
    names = _json_file(path / _SPLITS).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path / _SPLITS, names)
    return names


def parquet_rows(path: Path, fault: Fault) -> Iterator[Row]:
    """The rows of a parquet file."""
    # Imported on use, since the other formats do without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1000)
            yield from _rows(file.schema_arrow, batches, name_of(path), fault)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        problem = f"not a readable parquet file: {shorten(str(error), 200)}"
        remedy = "copy or write the file again"
        raise DataError(problem, where=name_of(path), remedy=remedy) from error


def saved_rows(folder: Path, fault: Fault) -> Iterator[Row]:
    """The rows of a folder of one Dataset.

    Raises:
        DataError: a folder of several splits, damaged files.
    """
    import pyarrow as pa

    if (splits := saved_splits(folder)) is not None:
        raise DataError(
            "the folder has several splits",
            where=name_of(folder),
            found=", ".join(splits),
            wanted="the folder of one split",
            remedy=f"name it: {folder.name}/{splits[0] if splits else 'train'}",
        )
    state = _json_file(folder / _STATE)
    if state.get("_indices_data_files"):
        raise _damaged(folder / _STATE, "rows selected by an index; save with flatten_indices()")
    files = state.get("_data_files")
    if not isinstance(files, list):
        raise _damaged(folder / _STATE, files)
    number = 0
    for file in files:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise _damaged(folder / _STATE, file)
        try:
            with pa.memory_map(str(folder / name)) as source, pa.ipc.open_stream(source) as stream:
                for row in _rows(stream.schema, stream, name_of(folder), fault, number):
                    number = row.number + 1
                    yield row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _damaged(folder / name, shorten(str(error), 200)) from error


def _rows(
    schema: Any,  # noqa: ANN401 - pyarrow has no types
    batches: Any,  # noqa: ANN401
    where: str,
    fault: Fault,
    first: int = 0,
) -> Iterator[Row]:
    check_names(schema.names, where)
    classes = _classes(schema, where)
    records = (record for batch in batches for record in batch.to_pylist())
    for number, record in enumerate(records, start=first):
        place = f"{where}, row {number + 1}"
        try:
            named = {name: convert(record[name]) for name, convert in classes.items()}
        except (IndexError, TypeError, AttributeError) as error:
            problem = f"a label that the file's metadata has no name for: {error}"
            shown = {name: record[name] for name in classes}
            fault(DataError(problem, where=place, found=shown, remedy="write the file again"))
            continue
        yield Row(place, number, record | named)


# ---- names of labels ----------------------------------------------------------------------------


def _classes(schema: Any, where: str) -> dict[str, Convert]:  # noqa: ANN401
    """Columns that hold labels of `datasets`, each with the function that gives their names."""
    text = (schema.metadata or {}).get(_HUGGING_FACE)
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"] or {}
        converts = {name: _convert(feature) for name, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            "damaged metadata of the datasets library",
            where=where,
            found=repr(text[:80]),
            wanted="names of features and labels",
            remedy="write the file again",
        ) from error
    return {name: convert for name, convert in converts.items() if convert and name in schema.names}


def _convert(feature: Any) -> Convert | None:  # noqa: ANN401 - JSON
    """Converts a value of a feature to names; None where the feature holds no labels."""
    if isinstance(feature, list):
        return _each(_convert(feature[0]))
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = feature.get("names")
        return _namer(names) if names else None
    if kind in ("Sequence", "List", "LargeList"):
        return _each(_convert(feature["feature"]))
    if isinstance(kind, str):
        return None
    fields = {name: _convert(part) for name, part in feature.items()}
    labels = {name: convert for name, convert in fields.items() if convert}
    return _fields(labels) if labels else None


def _namer(names: list[str]) -> Convert:
    def convert(value: Any) -> str | None:  # noqa: ANN401
        # The library's -1 stands for a label that is kept back, as in test splits.
        if value is None or value == -1:
            return None
        if isinstance(value, str):
            return value
        if not 0 <= value < len(names):
            raise IndexError(f"{value} of {len(names)}")
        return ClassName(names[value], value)

    return convert


def _each(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None

    def items(value: Any) -> Any:  # noqa: ANN401
        # A list of objects may be stored as an object of lists.
        if isinstance(value, Mapping):
            return {name: [convert({name: v})[name] for v in part] for name, part in value.items()}
        return value and [convert(item) for item in value]

    return items


def _fields(labels: Mapping[str, Convert]) -> Convert:
    def fields(value: Any) -> Any:  # noqa: ANN401
        named = {k: v if k not in labels else labels[k](v) for k, v in (value or {}).items()}
        return value if value is None else named

    return fields


# ---- files beside the rows ----------------------------------------------------------------------


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, shorten(str(error), 200)) from error
    if not isinstance(value, dict):
        raise _damaged(path, value)
    return value


def _damaged(path: Path, value: object) -> DataError:
    return DataError(
        "not a folder that datasets.save_to_disk wrote whole",
        where=name_of(path),
        found=value,
        wanted="files of the datasets library",
        remedy="save the dataset again, or write it as parquet",
    )
