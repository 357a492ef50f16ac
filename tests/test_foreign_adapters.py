"""Adapters that PEFT made: run exactly as PEFT runs them, or refused by name."""

import json
import warnings

import pytest
import torch
from engine_oracle import peft_network, plain_network, write_base
from peft import LoraConfig, get_peft_model

from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from mixtune.engine.bank import Bank
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Branch, pack_forest
from mixtune.errors import ModelError

IDS = torch.arange(3, 40).unsqueeze(0)
LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def save_by_peft(base, folder, **settings):
    """An adapter as PEFT saves it, its weights moved from where they began."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's use of transformers
        torch.manual_seed(3)
        network = get_peft_model(plain_network(base), LoraConfig(**{"r": 4, **settings}))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape)
        network.save_pretrained(folder)
    return folder


def change(folder, changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def by_peft(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_network(base, folder)(input_ids=IDS).logits


@torch.no_grad()
def by_mixtune(base, folder):
    decoder = Decoder.load(base, torch.float32, "cpu")
    bank = Bank(decoder, AdapterConfig.read(folder))
    bank.load(0, folder)
    return decoder.logits(decoder.forward(pack_forest([Branch(IDS[0].tolist())], decoder.device)))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3, "lora_dropout": 0.5},
        {"target_modules": ["self_attn.v_proj", "mlp.down_proj"]},
        {"target_modules": [f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.up_proj"]},
        {"target_modules": rf"{LAYER}\..*_proj", "use_rslora": True},
        {"target_modules": ["q_proj"], "init_lora_weights": False},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    ],
)
def test_plain_adapters_compute_what_peft_computes(base, tmp_path, settings):
    folder = save_by_peft(base, tmp_path / "a", **settings)
    theirs = by_peft(base, folder)
    assert torch.allclose(by_mixtune(base, folder), theirs, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(plain_network(base)(input_ids=IDS).logits, theirs, atol=1e-2)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_inits_that_change_the_base_are_refused(base, tmp_path, init):
    folder = save_by_peft(base, tmp_path / "a", target_modules=["q_proj"], init_lora_weights=init)
    theirs = by_peft(base, folder)
    with pytest.raises(ModelError, match=rf"(?s)init_lora_weights.*{init}.*merge_and_unload"):
        by_mixtune(base, folder)
    # Why: without the change of the base, the same weights are another model.
    change(folder, {"init_lora_weights": True})
    assert not torch.allclose(by_mixtune(base, folder), theirs, atol=1e-2)


@pytest.fixture
def plain(base, tmp_path):
    return save_by_peft(base, tmp_path / "a", target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("bias", "all"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", "of-tomorrow"),
        ("init_lora_weights", ["pissa"]),
        ("use_dora", True),
        ("use_dora", 1),
        ("use_qalora", True),
        ("kasa_config", {"beta": 0.1}),
        ("layer_replication", [[0, 2]]),
        ("layers_to_transform", 0),
        ("rank_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("a_key_of_tomorrow", "on"),
    ],
)
def test_whatever_may_compute_something_else_is_refused_by_name(plain, key, value):
    change(plain, {key: value})
    with pytest.raises(ModelError, match=rf"(?s)differs in {key}: more than plain.*merge_and"):
        AdapterConfig.read(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": None},
        {"auto_mapping": {"unsloth_fixed": True}, "revision": "main", "inference_mode": False},
        {"runtime_config": {"ephemeral_gpu_offload": True}, "lora_dropout": 0.3},
        {"a_key_of_tomorrow": None, "another": False, "third": {}},
        {"base_model_name_or_path": "org/another", "task_type": None},
    ],
)
def test_what_says_nothing_about_the_computation_is_accepted(base, plain, changes):
    theirs = by_peft(base, plain)
    change(plain, changes)
    assert torch.allclose(by_mixtune(base, plain), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "written", "words"),
    [
        *(("lora_alpha", w, "lora_alpha") for w in ("null", '"8"', "NaN", "true", "1e999", "[8]")),
        ("lora_alpha", "1" + "0" * 400, "lora_alpha"),
        ("lora_alpha", "1" + "0" * 5000, "not a readable JSON file"),
        *(("r", w, "what it is: r") for w in ("null", '"4"', "4.0", "true", "0", "-4", "NaN")),
        *(("r", w, "differs in r from its weights") for w in ("8", "1000000000", "1" + "0" * 400)),
        ("target_modules", '"["', "target_modules"),
        ("target_modules", '"a{99999999999999}"', "target_modules"),
        ("target_modules", '"' + "(" * 20_000 + '"', "target_modules"),
        *(("target_modules", w, "target_modules") for w in ("null", "[]", '""', "[1]", "{}", "7")),
        ("target_modules", "[" * 100_000 + "]" * 100_000, "adapter_config.json"),
    ],
)
def test_a_form_that_is_no_form(plain, key, written, words):
    path = plain / CONFIG_FILE
    config = json.loads(path.read_text()) | {key: "HERE"}
    path.write_text(json.dumps(config).replace('"HERE"', written))
    with pytest.raises(ModelError, match=words) as caught:
        AdapterConfig.read(plain)
    assert len(str(caught.value)) < 1000


def test_lora_alpha_is_never_supposed(plain):
    config = json.loads((plain / CONFIG_FILE).read_text())
    del config["lora_alpha"]
    (plain / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"(?s)lora_alpha.*no such key.*save_pretrained"):
        AdapterConfig.read(plain)


@pytest.mark.parametrize(
    ("targets", "accepted"),
    [
        (["self_attn.q_proj", "v_proj"], True),
        (r".*\.[qv]_proj", True),
        (["q_proj"], False),
        ([f"{LAYER}.self_attn.q_proj", "v_proj"], False),
    ],
)
def test_targets_are_compared_by_the_layers_that_they_name(base, plain, targets, accepted):
    decoder = Decoder.load(base, torch.float32, "cpu")
    bank = Bank(decoder, AdapterConfig.read(plain))
    change(plain, {"target_modules": targets})
    if accepted:
        bank.load(0, plain)
        return
    with pytest.raises(ModelError, match="differs in target_modules"):
        bank.load(0, plain)


@pytest.mark.parametrize("held", [{}, {"x.lora_A.weight": torch.tensor(1.0)}])
def test_weights_without_a_rank(plain, held):
    from safetensors.torch import save_file

    save_file(held, plain / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="differs in r from its weights"):
        AdapterConfig.read(plain)
