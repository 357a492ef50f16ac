"""GGUF weights → a folder of bf16 safetensors in the user's cache, once, whole or not at all.

Knows: transformers' GGUF reader, the files of a prepared folder. Does not know: how a name is
resolved (models/catalog.py), training, evaluation.
"""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from mixtune.engine.decoder import quiet_transformers
from mixtune.errors import ModelError
from mixtune.models.catalog import GgufSource, locate
from mixtune.models.files import (
    CACHE,
    MANIFEST,
    BaseModelFiles,
    describe_prepared,
    read_object,
    sha256_of,
    weight_files,
    write_manifest,
    write_object,
)
from mixtune.models.gguf_header import check_header
from mixtune.store import files as durable
from mixtune.tokens import Tokens

_JOINED = "joined"
_SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r")
_CHECKED_TOKENIZERS = {
    **{("gpt2", pre): None for pre in (*_SPLITS_DIGITS, "gpt-2")},
    ("llama", "default"): "gemma3",
}
"""GGUF's `tokenizer.ggml.model` and `.pre` → the architecture it was checked for (None: any).

The first group splits numbers into digits before anything else, which transformers' reader leaves
out (two spaces or line breaks before a number then become other tokens than in pre-training). For
other values its reader has not been checked here."""

_READ_ERRORS = (ValueError, LookupError, TypeError, RuntimeError, OSError)
_MACHINE_KEYS = ("_name_or_path", "_model_name_or_path", "is_local", "local_files_only")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def prepare(name: str, *, verify: bool = False) -> BaseModelFiles:
    """A base model that is ready to load: located, downloaded and converted where need be.

    Raises:
        ModelError: see `models.catalog.locate` and `convert`.
    """
    source = locate(name, verify=verify)
    return convert(source) if isinstance(source, GgufSource) else source


def convert(source: GgufSource) -> BaseModelFiles:
    """Convert a GGUF file into `source.target`, or return the result of another process.

    Raises:
        ModelError: the file is cut off, of a foreign kind, or gives values that are not finite;
            the cache cannot be written.
    """
    target = source.target
    with durable.in_turn(target, CACHE):
        if not (target / MANIFEST).is_file():
            with durable.whole_folder(target, CACHE) as part:
                with _joined(source, part / _JOINED) as joined:
                    _write(joined, part)
                    _check(part, joined)
                    facts = _facts(joined)
                write_manifest(part, facts)
    return describe_prepared(target)


@contextmanager
def _joined(source: GgufSource, folder: Path) -> Iterator[GgufSource]:
    """The source with its GGUF file in one piece; a file joined from parts is removed at the end.

    Raises:
        ModelError: the file is not the one that the catalogue means.
    """
    if not source.parts:
        yield source
        return
    folder.mkdir()
    joined = folder / source.gguf.name.removesuffix(source.gguf.suffix)
    with joined.open("wb") as out:
        for path in source.parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out)
    digest = sha256_of(joined)
    if source.sha256 not in (None, digest):
        raise ModelError(
            "the installed parts do not make up the file that the catalogue names",
            where=source.source,
            found=f"SHA-256 {digest}",
            wanted=source.sha256,
            remedy="install the package again (pip install --force-reinstall)",
        )
    yield replace(source, gguf=joined)
    shutil.rmtree(folder)


def _facts(source: GgufSource) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "name": source.name,
        "note": source.note,
        "source": source.source,
        "source_file": source.gguf.name,
        "source_sha256": sha256_of(source.gguf),
        "versions": versions,
    }


def _write(source: GgufSource, folder: Path) -> None:
    """Weights, configuration and tokenizer as transformers writes them, corrected where needed."""
    check_header(source.gguf)
    pre = _check_header(source)
    folder_name, file = str(source.gguf.parent), source.gguf.name
    with (
        quiet_transformers(),
        _gguf_errors(source.gguf),
        redirect_stderr(io.StringIO()),
    ):  # a bar without switch
        model = AutoModelForCausalLM.from_pretrained(
            folder_name,
            gguf_file=file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = None
        if source.tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(folder_name, gguf_file=file)
    with quiet_transformers():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    if source.tokenizer is not None:
        for name in _TOKENIZER_FILES:
            if (source.tokenizer / name).is_file():
                shutil.copyfile(source.tokenizer / name, folder / name)
    elif pre in _SPLITS_DIGITS:
        _split_digits(folder / "tokenizer.json")
    if source.template is not None:
        (folder / "chat_template.jinja").write_text(source.template, encoding="utf-8")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _strip(folder / name)


def _check_header(source: GgufSource) -> str:
    """The pre-tokenizer that the GGUF file names, if its tokenizer has been checked here.

    Raises:
        ModelError: no GGUF file, or a tokenizer kind that has not been checked.
    """
    import gguf

    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "general.architecture")
    with _gguf_errors(source.gguf):
        fields = gguf.GGUFReader(source.gguf).fields
        kind, pre, architecture = (
            str(fields[key].contents()) if key in fields else "" for key in keys
        )
    if source.tokenizer is None and _CHECKED_TOKENIZERS.get((kind, pre), "none") not in (
        None,
        architecture,
    ):
        names = sorted(f"{kind} with {pre}" for kind, pre in _CHECKED_TOKENIZERS)
        raise ModelError(
            "it has not been checked that this GGUF file's tokenizer is read correctly",
            where=str(source.gguf),
            found=f"tokenizer kind {kind!r}, pre-tokenizer {pre!r}, architecture {architecture!r}",
            wanted=f"one of {', '.join(names)} (the last for gemma3 only)",
            remedy="put the file into a folder of its own with the model's tokenizer.json and "
            "tokenizer_config.json, and give the folder",
        )
    return pre


@contextmanager
def _gguf_errors(path: Path) -> Iterator[None]:
    """Turn exceptions of the GGUF readers for broken or foreign files into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except _READ_ERRORS as error:
        raise ModelError(
            f"the GGUF file cannot be read: {error}",
            where=str(path),
            wanted="a whole GGUF file of an architecture that transformers can read",
            remedy="download the file again, or use the model's safetensors",
        ) from error


def _check(folder: Path, source: GgufSource) -> None:
    """Refuse weights that do not load or are not finite, and a wrong end or padding token."""
    gguf = source.gguf
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as stream:
                broken = [k for k in stream.keys() if not stream.get_tensor(k).isfinite().all()]  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"written weights do not load: {error}", where=str(gguf)) from error
        if broken:
            raise ModelError(
                "weights that are not finite numbers",
                where=str(gguf),
                found=", ".join(broken),
                remedy="download the file again",
            )
    tokens = Tokens.load(folder)
    config = read_object(folder / "config.json")
    eos = config.get("eos_token_id")
    # A pretrained model's end token is that of texts; its turns end as the given template says.
    if source.template is None and eos != tokens.end_of_turn[-1]:
        raise ModelError(
            "the GGUF file's end token is not what its chat template ends a turn with",
            where=str(gguf),
            found=f"eos_token_id {eos}, end of turn {tokens.end_of_turn[-1]}",
            remedy="use an instruction-tuned model, or its safetensors",
        )
    if not 0 <= tokens.pad_id < config["vocab_size"]:
        raise ModelError(
            "the padding token is outside the vocabulary", where=str(gguf), found=tokens.pad_id
        )


def _split_digits(path: Path) -> None:
    """Put the digit splitter in front of tokenizer.json's pre-tokenizer."""
    tokenizer = read_object(path)
    steps = [{"type": "Digits", "individual_digits": True}, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _strip(path: Path) -> None:
    """Remove keys that hold paths of this machine."""
    if path.is_file():
        config = read_object(path)
        write_object(path, {k: v for k, v in config.items() if k not in _MACHINE_KEYS})
