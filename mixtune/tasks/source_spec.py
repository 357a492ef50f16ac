"""What the `source:` of a task file may say: files, a folder, the hub, the toy generator, code.

Knows: keys and their limits. Does not know: how anything is read (sources.py, files.py).
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from mixtune.records import Split
from mixtune.study.fields import Frozen

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

ENDINGS = (".csv", ".tsv", ".jsonl", ".jsonl.gz", ".json", ".parquet")
"""The kinds of files that rows are read from."""

FILE_KEYS = ("train", "validation", "test", "carve_test")


def ending(name: str) -> str | None:
    """The ending that says how a file is read; None for any other file."""
    return next((e for e in ENDINGS if name.lower().endswith(e)), None)


class FileSource(Frozen):
    """A file per split; paths from the task file's folder.

    `carve_test`: the share of train groups that become test where no file is given for it.
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
            raise ValueError("carve_test: there is a test file already; remove one of the two")
        return self

    def within(self, folder: Path) -> "FileSource":
        """The same files, with paths from a folder."""
        paths = self.paths().items()
        return self.model_copy(update={str(split): str(folder / path) for split, path in paths})

    def paths(self) -> dict[Split, Path]:
        """The file of every split that has one."""
        named: dict[Split, str | None]
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: Path(path) for split, path in named.items() if path is not None}


class LocalSource(Frozen):
    """A folder below the data directory; a file per split, `<split>.jsonl` or `.jsonl.gz`."""

    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    files: dict[Split, Annotated[str, Field(pattern=r"^[^/\\]+\.jsonl(\.gz)?$")]] = Field(
        default_factory=dict
    )


class FlatQuestions(Frozen):
    """How a hub set that gives one row per question says which question a row is about."""

    question: Text
    answer: Text
    values: Annotated[dict[str, str], Field(min_length=1)]


class HubSource(Frozen):
    """A dataset on the hub, as `datasets.load_dataset` takes it.

    `splits` maps our splits to the hub's. `rename` maps hub fields to ours. `carve_test` is the
    share of train groups that become test where the hub has one split only. `unverified` says
    that the entry was written without a look at the hub.
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


class GivenSource(Frozen):
    """Records come from Python code or an import, which brings its own reader; `what` names it."""

    what: Text


class Source(Frozen):
    """Where records can be read from; only `local` and `hub` go together.

    A path alone, or a path for each split, is `files`.
    """

    files: FileSource | None = None
    local: LocalSource | None = None
    hub: HubSource | None = None
    toy: ToySource | None = None
    given: GivenSource | None = None

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """Keys that a file may give: those of `files` stand here directly."""
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
        named = [key for key in type(self).model_fields if getattr(self, key) is not None]
        if not named:
            raise ValueError("a task needs a source: a file, local, hub or toy")
        if len(named) > 1 and set(named) != {"local", "hub"}:
            raise ValueError(f"{' and '.join(named)}: each stands alone, but for local with hub")
        return self
