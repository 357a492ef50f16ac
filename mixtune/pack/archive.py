"""A pack as one zip: the same bytes each time it is written, opened beside itself to be read."""

import io
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel

from mixtune.errors import StoreError, shorten
from mixtune.store import files as durable
from mixtune.store.folder import PACK
from mixtune.study.yaml import read_file, read_yaml

STUDY = "study.yaml"
TASKS = "tasks.yaml"
"""The study's own tasks, as far as scores need them: no code, no place to read rows from."""


class Manifest(BaseModel, strict=True):
    """`pack.json`: the study's name, the version that packed it, path → SHA-256 of each file."""

    format: Literal[1] = 1
    study: str
    mixtune: str = ""
    sha256: dict[str, str]


def zipped(name: str, files: Mapping[str, bytes], version: str) -> bytes:
    """The zip of a study's files (path → content) below a folder of its name, with checksums."""
    sums = {path: sha256(files[path]).hexdigest() for path in sorted(files)}
    manifest = Manifest(study=name, mixtune=version, sha256=sums)
    content = {**files, PACK: (manifest.model_dump_json(indent=1) + "\n").encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(content):
            # Without a time, as ZipInfo makes it: no entry says when it was packed.
            entry = zipfile.ZipInfo(f"{name}/{path}")
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[path], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write_pack(out: Path, name: str, content: bytes) -> None:
    """Write the zip whole; an earlier pack of the same study is replaced, no other file is.

    Raises:
        StoreError: something else stands there, or it cannot be written.
    """
    if out.exists() and _study_of(out) != name:
        raise StoreError(
            "another file stands where the pack would be written",
            where=str(out),
            wanted=f"no file, or an earlier pack of {name}",
            remedy="choose another --out",
        )
    durable.write_whole(out, lambda path: path.write_bytes(content))


def _study_of(path: Path) -> str | None:
    """The study that a file is a pack of; None for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _manifest(archive).study
    except (OSError, zipfile.BadZipFile, StoreError):
        return None


def opened(path: Path) -> Path:
    """The study's folder of a pack, unpacked beside the zip where that was not done yet.

    Raises:
        StoreError: no pack, a damaged one, or something else in the place of the folder.
    """
    place = path.with_suffix("")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive)
            folder = place / manifest.study
            mark = folder / PACK
            if mark.is_file() and mark.read_bytes() == archive.read(f"{manifest.study}/{PACK}"):
                return folder
            if place.exists():
                raise StoreError(
                    "the pack cannot be opened: its folder is taken",
                    where=str(place),
                    wanted=f"no such folder, or the one that {path.name} was opened to",
                    remedy="move the folder away, or the zip to another place",
                )
            _unpack(archive, manifest, place)
            return folder
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise StoreError(
            f"this pack cannot be read: {shorten(str(error))}",
            where=str(path),
            wanted="a zip that mixtune pack has written",
        ) from error


def is_zip(path: Path) -> bool:
    """True if a path names a pack by its ending."""
    return path.suffix == ".zip" and path.is_file()


def in_pack(study_file: Path) -> bool:
    """True if a study file lies in a pack that was unpacked."""
    return (study_file.parent / PACK).is_file()


def study_in(path: Path) -> Path:
    """The study file of a pack; any other path as it is.

    Raises:
        StoreError: as `opened`; or the pack's study names files other than the pack's own tasks:
            a pack comes from someone else, and reading one must run no code.
    """
    study_file = opened(path) / STUDY if is_zip(path) else path
    if not in_pack(study_file):
        return study_file
    raw = read_yaml(read_file(study_file, StoreError), str(study_file), StoreError).value
    named = raw.get("task_files") if isinstance(raw, dict) else None
    if named not in (None, [], [TASKS]):
        raise StoreError(
            "the study of a pack names task files that no pack has",
            where=str(study_file),
            found=shorten(named),
            wanted=f"{TASKS} or none",
            remedy="do not use this pack",
        )
    return study_file


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    names = [n for n in archive.namelist() if PurePosixPath(n).name == PACK and n.count("/") == 1]
    try:
        manifest = Manifest.model_validate_json(archive.read(names[0]))
        if names[0] == f"{manifest.study}/{PACK}":
            return manifest
    except (IndexError, ValueError):
        pass  # the error below says what is wanted
    raise StoreError(
        "this zip is no pack that this version can read",
        where=str(archive.filename),
        wanted="a zip that mixtune pack has written, format 1",
    )


def _unpack(archive: zipfile.ZipFile, manifest: Manifest, place: Path) -> None:
    """Exactly the files that the pack names, each checked; nothing outside the folder."""
    names = archive.namelist()
    with durable.whole_folder(place) as folder:
        for path, digest in {**manifest.sha256, PACK: None}.items():
            parts = PurePosixPath(manifest.study, path)
            outside = parts.is_absolute() or ".." in parts.parts or str(parts) not in names
            content = b"" if outside else archive.read(str(parts))
            if outside or digest not in (None, sha256(content).hexdigest()):
                raise StoreError(
                    "a file of the pack is missing, changed or in no place of a study",
                    where=str(archive.filename),
                    found=shorten(path),
                    remedy="ask for the pack again",
                )
            target = folder / parts
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
