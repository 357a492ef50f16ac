"""Base models from the hub: safetensors or GGUF only, at a revision that is held to.

Knows: `huggingface_hub`, the user's record of revisions. Does not know: catalog names, checksums.
The library honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtune.errors import ModelError
from mixtune.models.files import cache_dir, is_complete, read_object, refuse_remote_code, remember

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"]
_UNWANTED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py"]
"""Sub-folders hold other formats of the same weights; `consolidated` is a second copy of them."""


class Unreachable(ModelError):
    """Weights that are not on this machine and cannot be fetched now; `reason` says why."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was downloaded: a folder at a revision; `gguf` where the weights are a GGUF file."""

    folder: Path
    revision: str
    gguf: Path | None = None


def fetch(repository: str, download: bool = True) -> Snapshot:
    """The files of a hub repository, at the revision recorded at its first download.

    With `download` False only the hub's local cache is looked at.

    Raises:
        ModelError: not reachable, no access, not found, pickles only, or remote code.
    """
    held = read_object(_book()).get(repository)
    local = _cached(repository, held)
    if local is None and not download:
        raise unreachable(repository, "it is not in the hub's local cache")
    snapshot = local or _download(repository, held)
    if held is None:
        remember(_book(), repository, snapshot.revision)
    return snapshot


def cached(repository: str) -> Snapshot | None:
    """What the hub's local cache holds of a repository, if it is whole; fetches nothing."""
    return _cached(repository, read_object(_book()).get(repository))


def offline() -> bool:
    """Whether the hub's library was told to stay offline (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _book() -> Path:
    return cache_dir() / "revisions.json"


def _cached(repository: str, revision: str | None) -> Snapshot | None:
    """A complete snapshot in the hub's local cache, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repository,
            revision=revision,
            local_files_only=True,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"not a hub id: {error}", found=repository) from error
    folder = Path(found)
    if not is_complete(folder):
        return _only_gguf(folder)
    refuse_remote_code(folder, f"hub: {repository}")
    return Snapshot(folder, folder.name)


def _only_gguf(folder: Path) -> Snapshot | None:
    found = sorted(folder.glob("*.gguf"))
    return Snapshot(folder, folder.name, found[0]) if len(found) == 1 else None


def _download(repository: str, revision: str | None) -> Snapshot:
    """Download from the hub; its errors come out as ModelError."""
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
    # HTTPError is the HTTP library's own root: its connection errors are no OSErrors.
    except (hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise unreachable(repository, str(error)) from error


def _snapshot(repository: str, revision: str | None) -> Snapshot:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(repository, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ModelError("the hub names no revision", where=f"hub: {repository}")
    if not any(_top(name, ".safetensors") for name in names):
        return _gguf_snapshot(repository, info.sha, names)
    config = snapshot_download(repository, revision=info.sha, allow_patterns=["config.json"])
    refuse_remote_code(Path(config), f"hub: {repository}")
    folder = snapshot_download(
        repository, revision=info.sha, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
    )
    return Snapshot(Path(folder), info.sha)


def _gguf_snapshot(repository: str, revision: str, names: Sequence[str]) -> Snapshot:
    from huggingface_hub import snapshot_download

    found = sorted(name for name in names if _top(name, ".gguf"))
    if len(found) != 1:
        raise ModelError(
            "the repository holds no safetensors weights"
            + (", but several GGUF files" if found else ""),
            where=f"hub: {repository}",
            found=", ".join(found or sorted(names)),
            wanted="safetensors, or one .gguf file; pickles are never read",
            remedy=f"download the file you want (hf download {repository} FILE) and give its path"
            if found
            else "use a repository of the model that holds safetensors",
        )
    folder = snapshot_download(
        repository, revision=revision, allow_patterns=[*found, "*.json", "*.jinja"]
    )
    return Snapshot(Path(folder), revision, Path(folder) / found[0])


def _top(name: str, ending: str) -> bool:
    """Whether a file lies at the repository's top and is no second copy of the weights."""
    return "/" not in name and name.endswith(ending) and not name.startswith("consolidated")


def unreachable(repository: str, reason: str, ways: Sequence[str] = ()) -> Unreachable:
    """The error that says which weights, where they were looked for, and ways to get them."""
    from huggingface_hub import constants

    ways = [
        *ways,
        f"with a network: hf download {repository}",
        "a local folder with config.json, model.safetensors and the tokenizer's files: model: PATH",
    ]
    error = Unreachable(
        f"the weights of {repository} are not here: {reason}",
        where="base model",
        found=f"nothing in {cache_dir()}, nothing in {constants.HF_HUB_CACHE}",
        wanted="the weights on this machine, or a network (HF_HUB_OFFLINE not set)",
        remedy="one of: " + "; ".join(ways),
    )
    error.reason = reason
    return error
