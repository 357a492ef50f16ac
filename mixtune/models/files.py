"""Weight files on disk: which ones a folder holds, their checksums, the user's cache.

Knows: safetensors folders, SHA-256, the manifest of a prepared folder. Does not know: where a name
leads (catalog.py), the hub (hub.py), how weights are read or converted.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from mixtune.errors import ModelError
from mixtune.identity import digest
from mixtune.store import files as durable
from mixtune.tokens import Tokens

MANIFEST = "mixtune.json"
"""Written last into a prepared folder: a folder without it does not count."""

CACHE = durable.Place(
    ModelError, "make room in the cache there, or set MIXTUNE_CACHE to a folder that can be written"
)
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
LONGEST = 256
"""Characters that no file name has."""

_TEMPLATE = "chat_template.jinja"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Formats that can run code when they are read."""

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


class _Told(BaseModel):
    """What the manifest says of one weight file."""

    model_config = ConfigDict(strict=True)
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """What is read of a manifest; it holds more, for people."""

    model_config = ConfigDict(strict=True)
    scheme: Literal[1]
    name: str
    source: str
    note: str
    weights: dict[str, _Told]


def cache_dir() -> Path:
    """The user's cache: $MIXTUNE_CACHE, else $XDG_CACHE_HOME/mixtune, else ~/.cache/mixtune."""
    own = os.environ.get("MIXTUNE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mixtune"


def read_object(path: Path) -> dict[str, Any]:
    """`durable.read_object` for a model's files: a ModelError where it cannot be read."""
    return durable.read_object(path, ModelError)


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that readers see the old file or the new one, never a part.

    Raises:
        ModelError: the folder cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    durable.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"), CACHE)


def remember(path: Path, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Set one key of a JSON object that several processes may write."""
    with durable.in_turn(path, CACHE):
        write_object(path, {**read_object(path), key: value})


def sha256_of(path: Path, fresh: bool = False) -> str:
    """SHA-256 of a file; remembered by path, size and time of change unless `fresh`.

    Raises:
        ModelError: the file cannot be read.
    """
    book, key = cache_dir() / "digests.json", str(path.resolve())
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        held = {} if fresh else read_object(book).get(key)
        if isinstance(held, dict) and held.get("stamp") == stamp and "sha256" in held:
            return str(held["sha256"])
        found = durable.fingerprint(path)[1]
    except OSError as error:
        raise ModelError(f"cannot read a weight file: {error}", where=str(path)) from error
    remember(book, key, {"stamp": stamp, "sha256": found})
    return found


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


def refuse_remote_code(folder: Path, where: str) -> dict[str, Any]:
    """The folder's config.json, if transformers' own code can load it.

    Raises:
        ModelError: no usable config.json, or one that asks for code shipped with the model.
    """
    config = read_object(folder / "config.json")
    if not config:
        raise ModelError("the model has no config.json", where=where)
    if not isinstance(config.get("model_type", ""), str):
        raise ModelError(
            "model_type in config.json is not a name",
            where=where,
            found=config["model_type"],
            wanted='an architecture, such as "llama"',
            remedy="fetch or save the model again",
        )
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

    A folder that is right is left alone: another process may be loading from it.

    Raises:
        ModelError: the cache cannot be written.
    """
    if has_template(folder):
        return folder
    links = {file.name: file.resolve() for file in folder.iterdir() if file.is_file()}
    if _is_made(target, links, template):
        return target
    with durable.in_turn(target, CACHE):
        if not _is_made(target, links, template):
            with durable.whole_folder(target, CACHE) as part:
                (part / _TEMPLATE).write_text(template, encoding="utf-8")
                for name, file in links.items():
                    (part / name).symlink_to(file)
    return target


def _is_made(target: Path, links: Mapping[str, Path], template: str) -> bool:
    """Whether a folder of links holds these links and this chat template, and nothing else."""
    given = target / _TEMPLATE
    held = {file.name: file.resolve() for file in target.iterdir()} if target.is_dir() else {}
    held.pop(_TEMPLATE, None)
    return given.is_file() and given.read_bytes() == template.encode() and held == links


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
    try:
        manifest = _Manifest.model_validate(read_object(folder / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"{MANIFEST}: {key}: {first['msg']}") from error
    if not manifest.weights:
        raise _damaged(folder, f"{MANIFEST} names no weights")
    for name, told in manifest.weights.items():
        path = folder / name
        size = path.stat().st_size if _is_part(folder, name) else None
        if size != told.bytes:
            raise _damaged(folder, f"{name} has {size} bytes instead of {told.bytes}")
        if sha256_of(path, fresh=verify) != told.sha256:
            raise _damaged(folder, f"{name} has another checksum")
    weights = {name: told.sha256 for name, told in manifest.weights.items()}
    config = refuse_remote_code(folder, str(folder))
    return BaseModelFiles(
        manifest.name,
        folder,
        manifest.source,
        manifest.note,
        None,
        *_digests(folder, weights, config),
    )


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a prepared folder: `facts` and the checksums of its weights."""
    weights = {}
    for path in weight_files(folder):
        size, sha = durable.fingerprint(path)
        weights[path.name] = {"bytes": size, "sha256": sha}
    write_object(folder / MANIFEST, {"scheme": 1, **facts, "weights": weights})


def _digests(
    folder: Path, weights: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[str, str]:
    """Digest of the weights, and of everything that shapes the model's answers."""
    tokens = Tokens.load(folder).digest
    shape = {key: value for key, value in config.items() if key not in _BOOKKEEPING}
    weights_digest = digest(dict(weights))
    return weights_digest, digest({"weights": weights_digest, "tokens": tokens, "config": shape})


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
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
