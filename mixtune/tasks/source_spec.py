"""`source:` of a task file: files, a folder, the hub, the toy generator, code."""

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mixtune.records import Split
from mixtune.study.fields import Frozen

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

TABLES = (".csv", ".tsv")
KINDS = (*TABLES, ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSED = (".gz", ".zst")
ENDINGS = (*KINDS, *(f"{kind}{end}" for kind in KINDS[:-1] for end in COMPRESSED))
"""File formats that rows are read from, besides folders written by datasets.save_to_disk."""
READABLE = f"{', '.join(KINDS)}; but for .parquet also with {' or '.join(COMPRESSED)}"

READING_KEYS = ("quoting", "separator", "header", "encoding")
FILE_KEYS = ("train", "validation", "test", "carve_test", *READING_KEYS)
SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
Quoting = Literal["double", "backslash", "single", "none"]


def ending(name: str) -> str | None:
    """The file name's ending, which tells the format; None for any other file."""
    return next((e for e in ENDINGS if name.lower().endswith(e)), None)


def kind_of(name: str) -> str | None:
    """The file name's ending without that of a compression; None for any other file."""
    whole = ending(name)
    return whole and whole.removesuffix(".gz").removesuffix(".zst")


def _sign(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    """A separator's name; another sign stays, white space included."""
    return next((name for name, sign in SEPARATORS.items() if value == sign), value)


class Reading(Frozen):
    """Keys that say how text files are read; None leaves it to what the file shows.

    `quoting`: cells are in "quotes", in which quotes are doubled (double) or have a backslash
    (backslash), in 'single' ones, or quotes are text (none). `separator`: comma, tab, semicolon,
    pipe or a sign. `header`: true for names in the first line, false for none (column_1, …), or the
    names of a file without. `encoding`: a name that Python knows; UTF-8 by default.
    """

    quoting: Quoting | None = None
    separator: Annotated[str, BeforeValidator(_sign)] | None = None
    header: bool | tuple[Text, ...] | None = None
    encoding: Text | None = None

    @field_validator("separator")
    @classmethod
    def _one_sign(cls, value: str | None) -> str | None:
        if value is not None and value not in SEPARATORS and (len(value) != 1 or value in "\"'\\"):
            raise ValueError(f"should be {', '.join(SEPARATORS)} or one sign")
        return value

    @field_validator("header")
    @classmethod
    def _some_names(cls, value: bool | tuple[str, ...] | None) -> bool | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len({*value}) != len(value)):
            raise ValueError("should be true, false or a list of names, each once")
        return value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        try:
            # hex, zip and the like are codecs, too, but none of text.
            "".encode(codecs.lookup(value).name if value else "utf-8")
        except LookupError:
            known = "such as utf-8, cp1252, utf-16, shift_jis or gb18030"
            raise ValueError(f"no encoding of text that Python knows, {known}") from None
        return value

    @property
    def delimiter(self) -> str | None:
        """The sign between two cells, if it is set."""
        return SEPARATORS.get(self.separator, self.separator) if self.separator else None


AS_SHOWN = Reading()
"""Nothing is set: files are read as they show."""


class FileSource(Reading):
    """A file per split, or a folder of datasets.save_to_disk; paths from the task file's folder.

    `carve_test`: the share of train groups that become test where there is no test file.
    """

    train: Text
    validation: Text | None = None
    test: Text | None = None
    carve_test: Share | None = None

    @field_validator("train", "validation", "test")
    @classmethod
    def _readable(cls, path: str | None) -> str | None:
        folder = path is not None and (path.endswith("/") or not Path(path).suffix)
        if path is not None and ending(path) is None and not folder:
            raise ValueError(f"a file of rows ends in {READABLE}")
        return path

    @model_validator(mode="after")
    def _one_test(self) -> "FileSource":
        if self.test is not None and self.carve_test is not None:
            raise ValueError("carve_test: the source has a test file; remove one of the two")
        return self

    @model_validator(mode="after")
    def _text_files(self) -> "FileSource":
        kinds = {kind_of(path.name) for path in self.paths().values()}
        for key in READING_KEYS:
            readable = TABLES if key != "encoding" else KINDS[:-1]
            if getattr(self, key) is not None and not kinds & set(readable):
                raise ValueError(f"{key}: for {', '.join(readable)} files")
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
