"""Weight files on disk: which ones a folder holds, their checksums, the user's cache.

Knows: safetensors folders, SHA-256, atomic writes, the manifest of a prepared folder. Does not
know: where a name leads (catalog.py), the hub (hub.py), how weights are read or converted.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from mixtune.errors import ModelError
from mixtune.identity import digest
from mixtune.tokens import Tokens

MANIFEST = "mixtune.json"
"""Written last into a prepared folder: a folder without it does not count."""

MANIFEST_SCHEME = 1
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
LONGEST = 256
"""Characters that no file name has."""

_TEMPLATE = "chat_template.jinja"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_BOOKKEEPING = (
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
)
"""Keys of config.json that change no result: how weights are cast is the study's own setting."""

_NATIVE = {"gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"}
"""Architectures that transformers has itself: code shipped with such a model is left alone."""


@dataclass(frozen=True, slots=True)
class BaseModelFiles:
    """A base model that is ready to load: config.json, safetensors, tokenizer files.

    `source` and `note` are for people; `revision` is the hub's commit; `weights_digest` covers the
    weight files; `digest` (weights, tokenizer and template, config.json) goes into ids.
    """

    name: str
    folder: Path
    source: str
    note: str
    revision: str | None
    weights_digest: str
    digest: str


def cache_dir() -> Path:
    """The user's cache: $MIXTUNE_CACHE, else $XDG_CACHE_HOME/mixtune, else ~/.cache/mixtune."""
    own = os.environ.get("MIXTUNE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mixtune"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file.

    Raises:
        ModelError: unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # refuses halves of characters
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"not a readable JSON file: {error}",
            where=str(path),
            remedy="fetch or save the file again",
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            "not a JSON object",
            where=str(path),
            found=value,
            wanted='{"key": value, …}',
            remedy="fetch or save the file again",
        )
    return value


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that readers see the old file or the new one, never a part.

    Raises:
        ModelError: the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> ModelError:
    """The error for a cache that is full or read-only."""
    return ModelError(
        f"the cache cannot be written: {error}",
        where=str(path),
        remedy="make room there, or set MIXTUNE_CACHE to a folder that can be written",
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock beside `path`; other processes wait. A dead process holds no lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def remember(path: Path, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Set one key of a JSON object that several processes may write."""
    try:
        with locked(path):
            write_object(path, {**read_object(path), key: value})
    except OSError as error:
        raise cannot_write(path, error) from error


def sha256_of(path: Path, fresh: bool = False) -> str:
    """SHA-256 of a file; remembered by path, size and time of change unless `fresh`.

    Raises:
        ModelError: the file cannot be read.
    """
    book, key = cache_dir() / "digests.json", str(path.resolve())
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        held = {} if fresh else read_object(book).get(key, {})
        if held.get("stamp") == stamp:
            return str(held["sha256"])
        found = _hash(path)
    except OSError as error:
        raise ModelError(f"cannot read a weight file: {error}", where=str(path)) from error
    remember(book, key, {"stamp": stamp, "sha256": found})
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a model, sorted by name; empty where there are none.

    Raises:
        ModelError: the index names a file that is not there or lies outside the folder.
    """
    names = _parts(folder)
    if names is None:
        return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []
    missing = [name for name in names if not _is_part(folder, name)]
    if missing or not names:
        raise ModelError(
            "the weights are incomplete",
            where=str(folder / _INDEX),
            found=f"missing {', '.join(missing)}" if missing else "an index without files",
            remedy="download the model again",
        )
    return [folder / name for name in names]


def is_complete(folder: Path) -> bool:
    """Whether a folder holds what is needed to load a model from it."""
    parts = _parts(folder)
    names = ["config.json", "tokenizer.json", *([_SINGLE] if parts is None else parts)]
    return parts != [] and all(_is_part(folder, name) for name in names)


def _parts(folder: Path) -> list[str] | None:
    """Names in the index of a model in several files; None where there is no index."""
    if not (folder / _INDEX).is_file():
        return None
    named = read_object(folder / _INDEX).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(part, str) for part in named.values()):
        raise ModelError(
            "the index of the weights cannot be used",
            where=str(folder / _INDEX),
            found=named,
            wanted='"weight_map": {tensor: file}',
            remedy="fetch or save the model again",
        )
    return sorted(set(named.values()))


def _is_part(folder: Path, name: str) -> bool:
    """Whether a file lies in the folder itself: an index must not lead out of it."""
    return len(name) < LONGEST and Path(name).name == name and (folder / name).is_file()


def pickles_in(folder: Path) -> list[str]:
    """Names of files in formats that can run code when read."""
    return sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))


def refuse_remote_code(folder: Path, where: str) -> dict[str, Any]:
    """The folder's config.json, if transformers' own code can load it.

    Raises:
        ModelError: no config.json, or one that asks for code shipped with the model.
    """
    config = read_object(folder / "config.json")
    if not config:
        raise ModelError("the model has no config.json", where=where)
    if config.get("auto_map") and config.get("model_type") not in _NATIVE:
        raise ModelError(
            "the model wants to run code that is shipped with it, which is never done here",
            where=where,
            found=f"auto_map in config.json: {config['auto_map']}",
            wanted="an architecture that transformers has itself",
            remedy="use a version of the model without remote code",
        )
    return config


def describe(
    folder: Path, name: str, source: str, note: str = "", revision: str | None = None
) -> BaseModelFiles:
    """Checksums and digests of a folder that is used as it is.

    Raises:
        ModelError: something is missing, broken, or in a format that can run code.
    """
    config = refuse_remote_code(folder, str(folder))
    found = weight_files(folder)
    if not found:
        raise _no_weights(folder)
    for path in found:
        check_header(path)
    weights = {path.name: sha256_of(path) for path in found}
    return BaseModelFiles(name, folder, source, note, revision, *_digests(folder, weights, config))


def with_template(folder: Path, template: str, target: Path) -> Path:
    """The folder, or one that links to its files and adds a chat template that it lacks.

    Raises:
        ModelError: the cache cannot be written.
    """
    if has_template(folder):
        return folder
    try:
        with locked(target):
            target.mkdir(exist_ok=True)
            for file in folder.iterdir():
                link = target / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())
            (target / _TEMPLATE).write_text(template, encoding="utf-8")
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def has_template(folder: Path) -> bool:
    """Whether a model folder says how a conversation is put to the model."""
    config = read_object(folder / "tokenizer_config.json")
    return (folder / _TEMPLATE).is_file() or bool(config.get("chat_template"))


def check_header(path: Path) -> None:
    """Refuse a weights file that is cut off or of another format; reads the first bytes only.

    Raises:
        ModelError: names the file.
    """
    try:
        with safe_open(path, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"not a whole safetensors file: {error}",
            where=str(path),
            found=f"{path.stat().st_size} bytes" if path.is_file() else "no file",
            wanted="weights as save_pretrained writes them",
            remedy="fetch or save the model again",
        ) from error


def describe_prepared(folder: Path, verify: bool = False) -> BaseModelFiles:
    """A folder that mixtune prepared, checked against its manifest.

    Sizes are always checked; checksums are computed again for files whose size or time of change
    is new, and for all with `verify`.

    Raises:
        ModelError: the folder is not what was written.
    """
    manifest = read_object(folder / MANIFEST)
    if manifest.get("scheme") != MANIFEST_SCHEME or not manifest.get("weights"):
        raise _damaged(folder, f"manifest of scheme {manifest.get('scheme')}")
    for name, told in manifest["weights"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != told["bytes"]:
            raise _damaged(folder, f"{name} has {size} bytes instead of {told['bytes']}")
        if sha256_of(path, fresh=verify) != told["sha256"]:
            raise _damaged(folder, f"{name} has another checksum")
    weights = {name: str(told["sha256"]) for name, told in manifest["weights"].items()}
    config = refuse_remote_code(folder, str(folder))
    return BaseModelFiles(
        manifest["name"],
        folder,
        manifest["source"],
        manifest["note"],
        None,
        *_digests(folder, weights, config),
    )


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a prepared folder: `facts` and the checksums of its weights."""
    weights = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in weight_files(folder)
    }
    write_object(folder / MANIFEST, {"scheme": MANIFEST_SCHEME, **facts, "weights": weights})


def _digests(
    folder: Path, weights: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[str, str]:
    """Digest of the weights, and of everything that shapes the model's answers."""
    tokens = Tokens.load(folder).digest
    shape = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    weights_digest = digest(dict(weights))
    return weights_digest, digest({"weights": weights_digest, "tokens": tokens, "config": shape})


def _no_weights(folder: Path) -> ModelError:
    pickles = pickles_in(folder)
    return ModelError(
        "no safetensors weights",
        where=str(folder),
        found=f"only pickles, which can run code: {', '.join(pickles)}" if pickles else None,
        wanted=f"{_SINGLE}, or {_INDEX} with its parts, or one .gguf file",
        remedy="save the model with save_pretrained(folder, safe_serialization=True)",
    )


def _damaged(folder: Path, found: str) -> ModelError:
    return ModelError(
        "the prepared base model is damaged",
        where=str(folder),
        found=found,
        remedy="delete this folder and run the command again: it is prepared anew",
    )
