"""A pack as one zip: written with the same bytes each time, opened beside itself when it is read.

Knows: zip files, checksums, where a pack is opened. Does not know: what its files mean.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mixtune.errors import StoreError, shorten
from mixtune.store import files as durable
from mixtune.store.folder import PACK
from mixtune.study.yaml import read_file, read_yaml

FORMAT = 1
STUDY = "study.yaml"
TASKS = "tasks.yaml"
"""The study's own tasks, as far as scores need them: no code, no place to read rows from."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip can hold: no entry says when it was packed."""


def zipped(name: str, files: Mapping[str, bytes], version: str) -> bytes:
    """The zip of a study's files below a folder of its name, with the checksum of each.

    Args:
        name: the study's.
        files: path below its folder → content.
        version: of the mixtune that packs.
    """
    sums = {path: hashlib.sha256(files[path]).hexdigest() for path in sorted(files)}
    about = {"format": FORMAT, "study": name, "mixtune": version, "sha256": sums}
    content = {**files, PACK: (json.dumps(about, indent=1) + "\n").encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(content):
            entry = zipfile.ZipInfo(f"{name}/{path}", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[path])
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
            return str(_about(archive)["study"])
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
            about = _about(archive)
            folder = place / str(about["study"])
            if _same(folder, archive):
                return folder
            if place.exists():
                raise _taken(place, path)
            _unpack(archive, about, place)
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
        StoreError: as `opened`; or the pack's study names files other than the pack's own tasks,
            such as code that would be run.
    """
    study_file = opened(path) / STUDY if is_zip(path) else path
    if in_pack(study_file):
        _refuse_code(study_file)
    return study_file


def _refuse_code(study_file: Path) -> None:
    """A pack comes from someone else: reading one must run nothing."""
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


def _about(archive: zipfile.ZipFile) -> dict[str, object]:
    """The pack's own description."""
    names = [n for n in archive.namelist() if PurePosixPath(n).name == PACK and n.count("/") == 1]
    try:
        about = json.loads(archive.read(names[0]))
        known = about["format"] == FORMAT and names[0] == f"{about['study']}/{PACK}"
        if known and isinstance(about["sha256"], dict):
            return dict(about)
    except (IndexError, KeyError, TypeError, ValueError):
        pass  # what is wanted is said below
    raise StoreError(
        "this zip is no pack that this version can read",
        where=str(archive.filename),
        wanted=f"a zip that mixtune pack has written, format {FORMAT}",
    )


def _same(folder: Path, archive: zipfile.ZipFile) -> bool:
    """True if this very pack was opened there before."""
    opened_pack = folder / PACK
    return opened_pack.is_file() and opened_pack.read_bytes() == archive.read(
        f"{folder.name}/{PACK}"
    )


def _taken(place: Path, path: Path) -> StoreError:
    return StoreError(
        "the pack cannot be opened: its folder is taken",
        where=str(place),
        wanted=f"no such folder, or the one that {path.name} was opened to",
        remedy="move the folder away, or the zip to another place",
    )


def _unpack(archive: zipfile.ZipFile, about: Mapping[str, object], place: Path) -> None:
    """Exactly the files that the pack names, each checked; nothing outside the folder."""
    sums, study = about["sha256"], str(about["study"])
    assert isinstance(sums, dict)
    with durable.whole_folder(place) as folder:
        for path in [*sums, PACK]:
            parts = PurePosixPath(study, path)
            content = _content(archive, parts)
            if path != PACK and hashlib.sha256(content).hexdigest() != sums[path]:
                raise _damaged(archive, path)
            target = folder / parts
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _content(archive: zipfile.ZipFile, parts: PurePosixPath) -> bytes:
    if parts.is_absolute() or ".." in parts.parts or str(parts) not in archive.namelist():
        raise _damaged(archive, str(parts))
    return archive.read(str(parts))


def _damaged(archive: zipfile.ZipFile, path: str) -> StoreError:
    return StoreError(
        "a file of the pack is missing, changed or in no place of a study",
        where=str(archive.filename),
        found=shorten(path),
        remedy="ask for the pack again",
    )
