"""Merged and weakened adapters: what PEFT computes, and what is refused. No study is trained."""

import json
import shutil
import warnings

import pytest
import torch
from engine_kit import SPEC, hidden, load, randomise, rows_of
from engine_oracle import peft_network, plain_network, write_base
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Branch, pack_forest
from mixtune.engine.merge import MERGE_FILE, base_of, merge
from mixtune.engine.model import LocalModel
from mixtune.engine.train import train
from mixtune.errors import ModelError
from mixtune.study.spec import Budget, EvalSpec, TrainSpec
from mixtune.tokens import Tokens

IDS = torch.arange(3, 40).unsqueeze(0)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
"""Of logits of about 1 in float32, summed in another order."""
ALL = {"target_modules": "all-linear"}
FORMS = [
    {"r": 4, "lora_alpha": 8},
    {"r": 2, "lora_alpha": 3, "lora_dropout": 0.5},
    {"r": 8, "lora_alpha": 4, "use_rslora": True},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Three adapters by PEFT, of other ranks, alphas and scalings."""
    folder = tmp_path_factory.mktemp("adapters")
    return [save(base, folder / str(i), i, ALL | form) for i, form in enumerate(FORMS)]


def save(base, folder, seed, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's use of transformers
        torch.manual_seed(seed)
        network = get_peft_model(plain_network(base), LoraConfig(**settings))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape)
        network.save_pretrained(folder)
    return folder


@torch.no_grad()
def by_peft(base, folders, weights):
    """Logits under PEFT's own concatenation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PeftModel.from_pretrained(plain_network(base), folders[0], adapter_name="0")
        for number, folder in enumerate(folders[1:], start=1):
            network.load_adapter(folder, str(number))
        names = [str(number) for number in range(len(folders))]
        network.add_weighted_adapter(names, list(weights), "sum", combination_type="cat")
        network.set_adapter("sum")
        return network.eval()(input_ids=IDS).logits[0]


@torch.no_grad()
def by_deltas(base, folders, weights):
    """Logits of the base with every weighted product added to its weights, in float64."""
    network = plain_network(base).double()
    for folder, weight in zip(folders, weights, strict=True):
        config = json.loads((folder / CONFIG_FILE).read_text())
        rank = config["r"]
        scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
        held = load_file(folder / WEIGHTS_FILE)
        for key in (key for key in held if key.endswith(".lora_A.weight")):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = held[key.replace("lora_A", "lora_B")].double()
            module = network.get_submodule(name)
            module.weight += weight * scale * up @ held[key].double()
    return network(input_ids=IDS).logits[0].float()


@torch.no_grad()
def by_peft_alone(base, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_network(base, folder)(input_ids=IDS).logits[0]


@torch.no_grad()
def by_mixtune(base, folder, strength=1.0):
    """Logits by a bank of the adapter's own form."""
    decoder = Decoder.load(base, torch.float32, "cpu")
    model = LocalModel.with_adapters(
        decoder, AdapterConfig.read(folder), Tokens.load(base), EvalSpec()
    )
    model.load_adapter(folder, strength=strength)
    return decoder.logits(decoder.forward(pack_forest([Branch(IDS[0].tolist())], decoder.device)))


@pytest.mark.parametrize(
    ("which", "weights"),
    [((0, 1), (0.5, 0.5)), ((0, 1, 2), (0.2, 1.5, 0.7)), ((2, 0), (-1.0, 1.0)), ((1, 1), (1, 0))],
)
def test_a_merged_adapter_is_the_sum_of_the_products(base, adapters, tmp_path, which, weights):
    folders = [adapters[i] for i in which]
    made = merge(folders, weights, tmp_path / "sum")
    assert made.rank == sum(FORMS[i]["r"] for i in which)
    exact = by_deltas(base, folders, weights)
    assert torch.allclose(by_mixtune(base, tmp_path / "sum"), exact, **CLOSE)
    assert torch.allclose(by_peft_alone(base, tmp_path / "sum"), exact, **CLOSE)
    if which[0] != 2:
        # PEFT's own keeps the first one's use_rslora, and then scales the sum by it.
        assert torch.allclose(by_peft(base, folders, weights), exact, **CLOSE)


def test_the_sum_is_not_one_of_its_parts(base, adapters, tmp_path):
    merge(adapters[:2], [1, 1], tmp_path / "sum")
    found = by_mixtune(base, tmp_path / "sum")
    for folder in adapters[:2]:
        assert not torch.allclose(found, by_mixtune(base, folder), atol=1e-2)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.6, 1.0, 1.25])
def test_strength_is_one_dial_in_the_engine_and_in_a_file(base, adapters, tmp_path, strength):
    """Both multiply alpha: the logits are the same to the bit, and PEFT's up to rounding."""
    folder = adapters[2]
    merge([folder], [strength], tmp_path / "weaker")
    held = [load_file(place / WEIGHTS_FILE) for place in (folder, tmp_path / "weaker")]
    assert held[0].keys() == held[1].keys()
    assert all(held[0][key].equal(held[1][key]) for key in held[0])
    dialled = by_mixtune(base, folder, strength)
    assert torch.allclose(dialled, by_mixtune(base, tmp_path / "weaker"), **CLOSE)
    assert torch.allclose(dialled, by_peft_alone(base, tmp_path / "weaker"), **CLOSE)
    plain = plain_network(base)(input_ids=IDS).logits[0]
    assert torch.allclose(dialled, plain, atol=1e-4) is (strength == 0)


def test_a_strength_holds_until_the_next_adapter_and_never_in_training(base):
    model = load(base)
    rows = rows_of(*[("a", 10, 5, 3)] * 4)
    budget = Budget(steps=2, examples_per_step=2)
    ends = []
    for strength in (1.0, 0.25):
        randomise(model)
        model.use_adapter(0, strength)
        train(model, rows, SPEC, budget)
        ends.append(model.bank.weights.clone())
    assert ends[0].equal(ends[1])
    ids = IDS[0].tolist()
    with torch.no_grad():
        whole = hidden(model, ids)
        model.use_adapter(0, 0.5)
        assert not hidden(model, ids).equal(whole)
        model.use_adapter(0)
        assert hidden(model, ids).equal(whole)


def test_full_fine_tuning_has_no_strength(base):
    model = load(base, TrainSpec(method="full"))
    model.reset(1)
    with pytest.raises(ModelError, match="no adapter strength"):
        model.use_adapter(0, 0.5)


def test_parts_and_base_are_written_beside_it(base, adapters, tmp_path):
    merge(adapters[:2], [0.25, 0.75], tmp_path / "sum")
    kept = json.loads((tmp_path / "sum" / MERGE_FILE).read_text())
    assert [part["weight"] for part in kept["parts"]] == [0.25, 0.75]
    assert [part["scale"] for part in kept["parts"]] == [2.0, 1.5]
    assert kept["base"] == {"name": str(base), "digest": None}
    merge([tmp_path / "sum", adapters[2]], [1, 1], tmp_path / "more")
    assert AdapterConfig.read(tmp_path / "more").rank == 14


# ---- what is refused ------------------------------------------------------------


def copied(folder, to, digest=None, **config):
    """An adapter as a study keeps it: its base's digest stands in run.json beside it."""
    place = shutil.copytree(folder, to / "adapter")
    path = place / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if digest:
        facts = {"model": {"name": "made up", "digest": digest}}
        (to / "run.json").write_text(json.dumps(facts))
    return place


def test_the_base_is_told_by_its_digest_and_else_by_its_name(adapters, tmp_path):
    known = [
        copied(adapters[i], tmp_path / str(i), digest)
        for i, digest in enumerate(("aa", "bb", "aa"))
    ]
    assert base_of(known[0]).digest == "aa"
    with pytest.raises(ModelError, match=r"(?s)different base models.*digest bb.*digest aa"):
        merge(known[:2], [1, 1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge([known[0], known[2]], [1, 1], tmp_path / "out")
    assert base_of(tmp_path / "out").digest == "aa"
    with pytest.raises(ModelError, match="different base models"):
        merge([tmp_path / "out", known[1]], [1, 1], tmp_path / "again")
    # What has a name only does not stand between two that differ.
    with pytest.raises(ModelError, match="different base models"):
        merge([adapters[0], *known[:2]], [1, 1, 1], tmp_path / "again")
    named = copied(adapters[1], tmp_path / "named", base_model_name_or_path="another/model")
    with pytest.raises(ModelError, match=r"(?s)another/model.*name it alike"):
        merge([adapters[0], named], [1, 1], tmp_path / "again")


def test_other_layers_are_refused(base, adapters, tmp_path):
    other = save(base, tmp_path / "qv", 5, {"r": 2, "target_modules": ["q_proj", "v_proj"]})
    with pytest.raises(ModelError, match=r"(?s)different layers.*layers differ.*target_modules"):
        merge([adapters[0], other], [1, 1], tmp_path / "out")


def test_the_same_layers_named_in_other_ways_are_merged(base, tmp_path):
    named = [["q_proj", "v_proj"], r".*\.self_attn\.[qv]_proj"]
    folders = [
        save(base, tmp_path / str(i), i, {"r": 2, "target_modules": targets})
        for i, targets in enumerate(named)
    ]
    merge(folders, [0.5, 0.5], tmp_path / "sum")
    parts = [by_peft_alone(base, tmp_path / "sum"), by_mixtune(base, tmp_path / "sum")]
    assert torch.allclose(*parts, **CLOSE)


def test_a_whole_model_a_taken_folder_and_odd_weights_are_refused(base, adapters, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)whole model.*full fine-tuning"):
        merge([adapters[0], base], [1, 1], tmp_path / "out")
    with pytest.raises(ModelError, match="something already"):
        merge(adapters[:1], [1], base)
    with pytest.raises(ValueError, match="weights"):
        merge(adapters[:2], [1], tmp_path / "out")
    odd = copied(adapters[0], tmp_path / "odd")
    held = load_file(odd / WEIGHTS_FILE)
    save_file(held | {"x.bias": torch.zeros(3)}, odd / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"(?s)not pairs of lora_A.*x\.bias"):
        merge([odd], [1], tmp_path / "out")


# ---- the verb ------------------------------------------------------------


def test_the_verb_merges_and_says_so(mixtune, adapters, tmp_path):
    out = tmp_path / "sum"
    code, text, err = mixtune("merge", *adapters[:2], "--weights", "0.5,2", "--out", out, "--json")
    assert code == 0, err
    assert [part["weight"] for part in json.loads(text)["parts"]] == [0.5, 2.0]
    assert AdapterConfig.read(out).rank == 6
    code, text, _ = mixtune("merge", *adapters[:2], "--out", tmp_path / "mean")
    assert code == 0
    assert "rank 6" in text
    for weights in ("1", "1,x", "1,nan", "1,2,3"):
        code, _, err = mixtune("merge", *adapters[:2], "--weights", weights, "--out", out)
        assert code == 2
        assert "2 numbers" in err
    code, _, err = mixtune("merge", *adapters[:2], "--out", out)
    assert code == 2
    assert "something already" in err
