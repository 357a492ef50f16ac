"""Base models from the hub: safetensors or GGUF only, pinned to the revision of the first download.

Knows: `huggingface_hub` (which honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE), the
user's record of revisions. Does not know: catalogue names, checksums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtune.errors import ModelError
from mixtune.models.files import cache_dir, is_complete, read_object, refuse_remote_code, remember

_ALLOW = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"]
_IGNORE = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py"]
"""Sub-folders hold the weights in other formats; `consolidated` is a second copy of them."""


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
    pinned = read_object(_revisions()).get(repository)
    local = _cached(repository, pinned)
    if local is None and not download:
        raise unreachable(repository, "it is not in the hub's local cache")
    snapshot = local or _download(repository, pinned)
    if pinned is None:
        remember(_revisions(), repository, snapshot.revision)
    return snapshot


def cached(repository: str) -> Snapshot | None:
    """The complete snapshot of a repository in the hub's local cache, or None; fetches nothing."""
    return _cached(repository, read_object(_revisions()).get(repository))


def offline() -> bool:
    """True if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _revisions() -> Path:
    return cache_dir() / "revisions.json"


def _cached(repository: str, revision: str | None) -> Snapshot | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=True,
            allow_patterns=_ALLOW,
            ignore_patterns=_IGNORE,
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"not a hub id: {error}", found=repository) from error
    return _complete(Path(folder), repository)


def _complete(folder: Path, repository: str) -> Snapshot | None:
    if is_complete(folder):
        refuse_remote_code(folder, f"hub: {repository}")
        return Snapshot(folder, folder.name)
    ggufs = sorted(folder.glob("*.gguf"))
    return Snapshot(folder, folder.name, ggufs[0]) if len(ggufs) == 1 else None


def _download(repository: str, revision: str | None) -> Snapshot:
    """Download from the hub; its errors become ModelError."""
    import huggingface_hub.errors as hub

    try:
        return _snapshot(repository, revision)
    except hub.GatedRepoError as error:
        raise ModelError(
            "the hub gives this model only to people who accepted its licence",
            where=f"hub: {repository}",
            remedy="accept the licence on the model's page and set HF_TOKEN",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise ModelError(
            f"the hub does not know this model{f' at revision {revision}' if revision else ''}",
            where=f"hub: {repository}",
            remedy="check the spelling; a private model needs HF_TOKEN",
        ) from error
    # Connection errors of the HTTP library derive from HTTPError, not from OSError.
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise unreachable(repository, str(error)) from error


def _snapshot(repository: str, revision: str | None) -> Snapshot:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repository, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ModelError("the hub names no revision", where=f"hub: {repository}")
    if not any(_at_top(name, ".safetensors") for name in names):
        return _gguf_snapshot(repository, info.sha, names)
    config = snapshot_download(repository, revision=info.sha, allow_patterns=["config.json"])
    refuse_remote_code(Path(config), f"hub: {repository}")
    folder = snapshot_download(
        repository, revision=info.sha, allow_patterns=_ALLOW, ignore_patterns=_IGNORE
    )
    return Snapshot(Path(folder), info.sha)


def _gguf_snapshot(repository: str, revision: str, names: Sequence[str]) -> Snapshot:
    from huggingface_hub import snapshot_download

    ggufs = sorted(name for name in names if _at_top(name, ".gguf"))
    if len(ggufs) != 1:
        raise ModelError(
            "the repository holds no safetensors weights"
            + (", but several GGUF files" if ggufs else ""),
            where=f"hub: {repository}",
            found=", ".join(ggufs or sorted(names)),
            wanted="safetensors, or one .gguf file; pickles are never read",
            remedy=f"download the file you want (hf download {repository} FILE) and give its path"
            if ggufs
            else "use a repository of the model that holds safetensors",
        )
    folder = snapshot_download(
        repository, revision=revision, allow_patterns=[*ggufs, "*.json", "*.jinja"]
    )
    return Snapshot(Path(folder), revision, Path(folder) / ggufs[0])


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
