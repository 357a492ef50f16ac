"""A pack as one zip: the same bytes each time it is written, opened beside itself to be read."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel

from mixtune.errors import StoreError, shorten
from mixtune.store import files as durable
from mixtune.store.folder import PACK
from mixtune.store.states import FILE, check_schema
from mixtune.study.yaml import read_file, read_yaml

STUDY = "study.yaml"
TASKS = "tasks.yaml"
"""The study's own tasks, as far as scores need them: no code, no place to read rows from."""

MAX_FILES, MAX_FILE, MAX_PACK = 200_000, 2**30, 2**32
"""Files of a pack, and bytes unpacked of one file and of all."""
MAX_MANIFEST = 2**26
SMALL, MAX_RATIO = 2**26, 100
"""A pack above `SMALL` bytes unpacked has at most so many times the bytes of its zip."""
_CHUNK = 2**20
_ZIP_ERRORS = (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError)
"""Errors of a damaged, encrypted or unknown archive."""


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
    except (*_ZIP_ERRORS, StoreError):
        return None


def opened(path: Path) -> Path:
    """The study's folder of a pack, unpacked beside the zip where that was not done yet.

    Raises:
        StoreError: no pack, a damaged one, or something else in the place of the folder.
    """
    place = path.with_suffix("")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_large(archive, path)
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
    except _ZIP_ERRORS as error:
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
        if archive.getinfo(names[0]).file_size > MAX_MANIFEST:
            raise ValueError("too large")
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
        for path, digest in manifest.sha256.items():
            parts = PurePosixPath(manifest.study, path)
            outside = parts.is_absolute() or ".." in parts.parts or str(parts) not in names
            target = folder / parts
            if not outside:
                target.parent.mkdir(parents=True, exist_ok=True)
            if outside or digest not in (None, _extract(archive, str(parts), target)):
                raise StoreError(
                    "a file of the pack is missing, changed or in no place of a study",
                    where=str(archive.filename),
                    found=shorten(path),
                    remedy="ask for the pack again",
                )
        _extract(archive, f"{manifest.study}/{PACK}", folder / manifest.study / PACK)
        if (states := folder / manifest.study / FILE).is_file():
            check_schema(states, str(archive.filename))


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> str:
    """Unpack one file, no further than its stated size; returns its SHA-256."""
    size, content = archive.getinfo(name).file_size, sha256()
    with archive.open(name) as packed, target.open("wb") as out:
        while chunk := packed.read(_CHUNK):
            size -= len(chunk)
            if size < 0:
                raise zipfile.BadZipFile(f"{name} is longer than it says")
            content.update(chunk)
            out.write(chunk)
    return content.hexdigest()


def _refuse_large(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a pack whose files would fill memory or disk, before any is unpacked."""
    entries = archive.infolist()
    total, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    methods = {entry.compress_type for entry in entries}
    problems = [
        len(entries) > MAX_FILES and f"{len(entries):,} files",
        max((e.file_size for e in entries), default=0) > MAX_FILE and f"a file above {MAX_FILE:,}",
        total > MAX_PACK and f"{total:,} bytes unpacked",
        total > max(SMALL, MAX_RATIO * packed) and f"{total:,} bytes out of {packed:,}",
        not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} and "an unknown compression",
    ]
    if problem := next(filter(None, problems), None):
        raise StoreError(
            "the pack is larger than any that mixtune writes, or packed in another way",
            where=str(path),
            found=problem,
            wanted=f"at most {MAX_FILES:,} files and {MAX_PACK:,} bytes, stored or deflated",
            remedy="do not use this pack",
        )
