"""`source:` of a task file: files, a folder, the hub, the toy generator, code."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from mixtune.records import Split
from mixtune.study.fields import Frozen

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

ENDINGS = (".csv", ".tsv", ".jsonl", ".jsonl.gz", ".json", ".parquet")
"""File formats that rows are read from."""

FILE_KEYS = ("train", "validation", "test", "carve_test")


def ending(name: str) -> str | None:
    """The file name's ending, which tells the format; None for any other file."""
    return next((e for e in ENDINGS if name.lower().endswith(e)), None)


class FileSource(Frozen):
    """A file per split; paths from the task file's folder.

    `carve_test`: the share of train groups that become test where there is no test file.
    """

    train: Text
    validation: Text | None = None
    test: Text | None = None
    carve_test: Share | None = None

    @field_validator("train", "validation", "test")
    @classmethod
    def _readable(cls, path: str | None) -> str | None:
        if path is not None and ending(path) is None:
            raise ValueError(f"a file of rows ends in {', '.join(ENDINGS)}")
        return path

    @model_validator(mode="after")
    def _one_test(self) -> "FileSource":
        if self.test is not None and self.carve_test is not None:
            raise ValueError("carve_test: the source has a test file; remove one of the two")
        return self

    def within(self, folder: Path) -> "FileSource":
        """The same files, with paths from a folder."""
        paths = self.paths().items()
        return self.model_copy(update={str(split): str(folder / path) for split, path in paths})

    def paths(self) -> dict[Split, Path]:
        """The file of every split that has one."""
        return {s: Path(path) for s in get_args(Split) if (path := getattr(self, s)) is not None}


class LocalSource(Frozen):
    """A folder below the data directory; a file per split, `<split>.jsonl` or `.jsonl.gz`."""

    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    files: dict[Split, Annotated[str, Field(pattern=r"^[^/\\]+\.jsonl(\.gz)?$")]] = Field(
        default_factory=dict
    )


class FlatQuestions(Frozen):
    """Fields of a hub dataset with one row per question: the question's name and its answer."""

    question: Text
    answer: Text
    values: Annotated[dict[str, str], Field(min_length=1)]


class HubSource(Frozen):
    """A dataset on the hub, as `datasets.load_dataset` takes it.

    `splits` maps our splits to the hub's. `rename` maps hub fields to ours. `carve_test` is the
    share of train groups that become test where the hub has one split only. `unverified`: the
    entry was never compared with the hub.
    """

    path: Text
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: Annotated[dict[Split, str], Field(min_length=1)]
    rename: dict[str, str] = Field(default_factory=dict)
    flat: FlatQuestions | None = None
    carve_test: Share | None = None
    unverified: bool = False
    note: str = ""


class ToySource(Frozen):
    """Records come from the seeded generator under the task's own name."""


class ExternalSource(Frozen):
    """Records come from Python code or an import, which has its own reader; `origin` names it."""

    model_config = ConfigDict(serialize_by_alias=True)

    origin: Text = Field(alias="what")


class Source(Frozen):
    """The places to read records from; only `local` and `hub` can be combined.

    A path alone, or a path for each split, is `files`.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    files: FileSource | None = None
    local: LocalSource | None = None
    hub: HubSource | None = None
    toy: ToySource | None = None
    external: ExternalSource | None = Field(None, alias="given")

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """Keys that a file may use: those of `files` directly, without `given`."""
        return (*FILE_KEYS, "local", "hub", "toy")

    @model_validator(mode="before")
    @classmethod
    def _files_plainly(cls, raw: Any) -> Any:  # noqa: ANN401 - raw YAML
        if isinstance(raw, str):
            return {"files": {"train": raw}}
        if isinstance(raw, dict) and raw.keys() & set(FILE_KEYS):
            return {"files": raw}
        return raw

    @model_validator(mode="after")
    def _some(self) -> "Source":
        keys = list(self.model_dump(exclude_none=True, by_alias=True))
        if not keys:
            raise ValueError("a task needs a source: a file, local, hub or toy")
        if len(keys) > 1 and set(keys) != {"local", "hub"}:
            raise ValueError(f"{' and '.join(keys)} cannot be combined, only local and hub")
        return self
