"""Weight files on disk, their checksums, and the user's cache.

Does not know: names of models and the hub (catalog.py), how weights are read or converted.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from mixtune.errors import ModelError
from mixtune.identity import digest
from mixtune.store import files as durable
from mixtune.tokens import Tokens

MANIFEST = "mixtune.json"
"""Written last into a prepared folder: a folder without it is incomplete."""

CACHE = durable.Place(
    ModelError, "make room in the cache there, or set MIXTUNE_CACHE to a folder that can be written"
)
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
MAX_FILE_NAME = 255
"""Characters of the longest file name."""

_TEMPLATE = "chat_template.jinja"
_SETTINGS = (
    _TEMPLATE, "config.json", "generation_config.json", _INDEX, "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
"""Files beside the weights that decide what a model answers."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Formats that can run code when read."""

_IGNORED_KEYS = (
    "_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype",
    "use_cache",
)  # fmt: skip
"""Keys of config.json that change no result; the study itself sets the number format."""

_NATIVE = {"gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"}
"""Architectures that transformers implements: code shipped with such a model is never run."""


_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d{1,9})\.")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SPARE_LAYERS = 64
"""Layers that a configuration may state beyond twice those of the weights: some are shared."""


@dataclass(frozen=True, slots=True)
class BaseModelFiles:
    """A base model that is ready to load: config.json, safetensors, tokenizer files.

    `source` and `note` are for people; `revision` is the hub's commit; `weights_digest` covers the
    weight files; `digest` (weights, tokenizer, chat template, config.json) goes into ids; `sums`:
    file name → SHA-256 of each file that the digest was computed from.
    """

    name: str
    folder: Path
    source: str
    note: str
    revision: str | None
    weights_digest: str
    digest: str
    sums: Mapping[str, str]


class _WeightFile(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """The keys of a manifest that are read; it holds more, for people."""

    model_config = ConfigDict(strict=True)
    scheme: Literal[1]
    name: str
    source: str
    note: str
    weights: dict[str, _WeightFile]


def cache_dir() -> Path:
    """The user's cache: $MIXTUNE_CACHE, else $XDG_CACHE_HOME/mixtune, else ~/.cache/mixtune."""
    own = os.environ.get("MIXTUNE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mixtune"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder or the cache; {} where there is no file."""
    return durable.read_object(path, ModelError)


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole; raises ModelError where the folder cannot be written."""
    durable.write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n", CACHE)


def remember(path: Path, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Set one key of a cached JSON file that several processes may write.

    What is remembered saves time and decides nothing: a damaged file is begun anew, and a cache
    that cannot be written is left alone.
    """
    with suppress(ModelError, OSError), durable.in_turn(path, CACHE):
        write_object(path, {**_recall(path), key: value})


def _recall(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ModelError:
        return {}


def sha256_of(path: Path, fresh: bool = False) -> str:
    """SHA-256 of a file, cached by path and `_stamp` unless `fresh`."""
    memo, key = cache_dir() / "digests.json", str(path.resolve())
    try:
        stamp = _stamp(path)
        cached = {} if fresh else _recall(memo).get(key)
        if isinstance(cached, dict) and cached.get("stamp") == [*stamp] and "sha256" in cached:
            return str(cached["sha256"])
        checksum = durable.fingerprint(path)[1]
    except OSError as error:
        raise ModelError(f"cannot read a weight file: {error}", where=str(path)) from error
    remember(memo, key, {"stamp": stamp, "sha256": checksum})
    return checksum


def _stamp(path: Path) -> tuple[int, ...]:
    """Size, times and inode; the time of the last change of state cannot be set back."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@cache
def _content(path: Path, stamp: tuple[int, ...]) -> str:
    """SHA-256 of a file as it is now, once in a process for each stamp."""
    return durable.fingerprint(path)[1]


def _sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name → SHA-256 of those of the files that exist."""
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    return {name: _content(path, _stamp(path)) for name, path in paths.items()}


def check_unchanged(base: BaseModelFiles, weights: bool = True) -> None:
    """Refuse a base model with other files than those that the study's ids were computed from.

    Each file is hashed once per process, and again when its size, times or inode change; no
    checksum on disk is trusted. `weights`: False leaves out the weight files.

    Raises:
        ModelError: a file was changed, added or removed since the study was planned.
    """
    names = {*_SETTINGS, *((*base.sums, _SINGLE) if weights else ())}
    try:
        now = _sums(base.folder, names)
    except OSError as error:
        raise ModelError(f"cannot read the base model: {error}", where=str(base.folder)) from error
    for name in sorted(names):
        if now.get(name) == base.sums.get(name):
            continue
        path = base.folder / name
        if path.is_file():
            sha256_of(path, fresh=True)  # so that the next plan sees the file as it is
        raise ModelError(
            "the base model's files changed after the study was planned",
            where=str(path),
            found=f"SHA-256 {now[name]}" if name in now else "no file",
            wanted=f"SHA-256 {base.sums[name]}" if name in base.sums else "no such file",
            remedy="restore the file, and the same command goes on; with the file as it is, the "
            "study gets other ids: give it another name",
        )


def load_tokens(base: BaseModelFiles, reasoning: bool = False) -> Tokens:
    """The base model's tokenizer and chat template, from the files that its digest covers.

    `reasoning`: answers hold the reasoning that leads to them.

    Raises:
        ModelError: a file was changed since its digest was computed, or cannot be read.
    """
    tokens = Tokens.load(base.folder, reasoning)
    check_unchanged(base, weights=False)
    return tokens


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted by name; empty where there are none.

    Raises:
        ModelError: the index names a file that is missing or outside the folder.
    """
    names = _weight_names(folder)
    if not (folder / _INDEX).is_file():
        return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []
    missing = [name for name in names if not _is_part(folder, name)]
    if missing or not names:
        found = f"missing {', '.join(missing)}" if missing else "an index without files"
        problem, where = "the weights are incomplete", str(folder / _INDEX)
        raise ModelError(problem, where=where, found=found, remedy="download the model again")
    if _SINGLE not in names and (folder / _SINGLE).is_file():
        raise ModelError(
            "the weights are there twice",
            where=str(folder),
            found=f"{_SINGLE}, and {_INDEX} with its parts",
            remedy="remove one of the two: transformers would load the first",
        )
    return [folder / name for name in names]


def is_complete(folder: Path) -> bool:
    """True if a folder holds every file that loading needs."""
    weights = _weight_names(folder)
    names = ["config.json", "tokenizer.json", *weights]
    return bool(weights) and all(_is_part(folder, name) for name in names)


def _weight_names(folder: Path) -> list[str]:
    """File names in the index of a sharded model; the one file's where there is no index."""
    if not (folder / _INDEX).is_file():
        return [_SINGLE]
    files = read_object(folder / _INDEX).get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(
            "the index of the weights cannot be used",
            where=str(folder / _INDEX),
            found=files,
            wanted='"weight_map": {tensor: file}',
            remedy="fetch or save the model again",
        )
    return sorted(set(files.values()))


def _is_part(folder: Path, name: str) -> bool:
    """True if the file lies in the folder itself: an index must not lead out of it."""
    return len(name) <= MAX_FILE_NAME and Path(name).name == name and (folder / name).is_file()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a safetensors file; only its header is read."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"not a whole safetensors file: {error}",
            where=str(path),
            found=f"{path.stat().st_size} bytes" if path.is_file() else "no file",
            wanted="weights as save_pretrained writes them",
            remedy="fetch or save the model again",
        ) from error


def _check_layers(folder: Path, tensors: Iterable[str]) -> None:
    """Refuse a configuration with far more layers than the weights, before one is built."""
    numbers = [int(match[1]) for match in map(_LAYER.search, tensors) if match]
    config = read_object(folder / "config.json")
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    stated = [part[key] for part in parts for key in _LAYER_KEYS if type(part.get(key)) is int]
    present = max(numbers, default=0) + 1
    if stated and max(stated) > 2 * present + SPARE_LAYERS:
        raise ModelError(
            "config.json has far more layers than the weights",
            where=str(folder),
            found=f"{max(stated):,} layers in config.json, {present:,} in the weights",
            remedy="fetch the model again: config.json and weights are not of one model",
        )


def refuse_remote_code(folder: Path, where: str) -> dict[str, Any]:
    """The folder's config.json, checked to need no code that ships with the model.

    Raises:
        ModelError: no usable config.json, or one that needs remote code.
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
            "the model needs to run code that ships with it, which mixtune never does",
            where=where,
            found=f"auto_map in config.json: {config['auto_map']}",
            wanted="an architecture that transformers has itself",
            remedy="use a version of the model without remote code",
        )
    return config


def describe(
    folder: Path, name: str, source: str, note: str = "", revision: str | None = None
) -> BaseModelFiles:
    """A folder that is loaded as it is, with checksums and digests.

    Raises:
        ModelError: a file is missing, broken, or in a format that can run code.
    """
    refuse_remote_code(folder, str(folder))
    files = weight_files(folder)
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        raise ModelError(
            "no safetensors weights",
            where=str(folder),
            found=f"only pickles, which can run code: {', '.join(pickles)}" if pickles else None,
            wanted=f"{_SINGLE}, or {_INDEX} with its parts, or one .gguf file",
            remedy="save the model with save_pretrained(folder, safe_serialization=True)",
        )
    tensors = [name for path in files for name in tensor_shapes(path)]  # refuses a broken file
    _check_layers(folder, tensors)
    weights = {path.name: sha256_of(path) for path in files}
    return _with_digests(folder, weights, name, source, note, revision)


def with_template(folder: Path, template: str, target: Path) -> Path:
    """The folder, or one of links to its files with the chat template that it lacks.

    A complete folder of links is not written again: another process may be loading from it.
    """
    if has_template(folder):
        return folder
    links = {file.name: file.resolve() for file in folder.iterdir() if file.is_file()}
    if _is_linked(target, links, template):
        return target
    with durable.in_turn(target, CACHE):
        if not _is_linked(target, links, template):
            with durable.whole_folder(target, CACHE) as part:
                (part / _TEMPLATE).write_text(template, encoding="utf-8")
                for name, file in links.items():
                    (part / name).symlink_to(file)
    return target


def _is_linked(target: Path, links: Mapping[str, Path], template: str) -> bool:
    """True if a folder holds exactly these links and this chat template."""
    file = target / _TEMPLATE
    present = {path.name: path.resolve() for path in target.iterdir()} if target.is_dir() else {}
    present.pop(_TEMPLATE, None)
    return file.is_file() and file.read_bytes() == template.encode() and present == links


def has_template(folder: Path) -> bool:
    """True if a model folder has a chat template."""
    config = read_object(folder / "tokenizer_config.json")
    return (folder / _TEMPLATE).is_file() or bool(config.get("chat_template"))


def describe_prepared(folder: Path, verify: bool = False) -> BaseModelFiles:
    """A folder that mixtune prepared, checked against its manifest.

    Checksums are computed again for files whose size or modification time changed, and for all
    with `verify`.

    Raises:
        ModelError: the folder is damaged.
    """
    try:
        manifest = _Manifest.model_validate(read_object(folder / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"{MANIFEST}: {key}: {first['msg']}") from error
    if not manifest.weights:
        raise _damaged(folder, f"{MANIFEST} names no weights")
    for name, file in manifest.weights.items():
        path = folder / name
        size = path.stat().st_size if _is_part(folder, name) else None
        if size != file.bytes:
            raise _damaged(folder, f"{name} has {size} bytes instead of {file.bytes}")
        if sha256_of(path, fresh=verify) != file.sha256:
            raise _damaged(folder, f"{name} has another checksum")
    weights = {name: file.sha256 for name, file in manifest.weights.items()}
    return _with_digests(folder, weights, manifest.name, manifest.source, manifest.note, None)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a prepared folder: `facts` and the checksums of its weights."""
    weights = {}
    for path in weight_files(folder):
        size, sha = durable.fingerprint(path)
        weights[path.name] = {"bytes": size, "sha256": sha}
    write_object(folder / MANIFEST, {"scheme": 1, **facts, "weights": weights})


def _with_digests(
    folder: Path,
    weights: Mapping[str, str],
    name: str,
    source: str,
    note: str,
    revision: str | None,
) -> BaseModelFiles:
    """The model with the digest of its weights, and of all that determines its answers."""
    sums = {**weights, **_sums(folder, _SETTINGS)}
    config = refuse_remote_code(folder, str(folder))
    shape = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
    weights_digest = digest(dict(weights))
    parts = {
        "weights": weights_digest,
        "tokens": Tokens.load(folder).digest,
        "config": shape,
    }
    base = BaseModelFiles(name, folder, source, note, revision, weights_digest, digest(parts), sums)
    check_unchanged(base, weights=False)  # the files were not replaced while they were read
    return base


def _damaged(folder: Path, detail: str) -> ModelError:
    return ModelError(
        "the prepared base model is damaged",
        where=str(folder),
        found=detail,
        remedy="delete this folder and run the command again: it is prepared again",
    )
