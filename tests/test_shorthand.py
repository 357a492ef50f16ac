"""What people type: other tools' keys, short amounts, overrides of both."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixtune.errors import SpecError
from mixtune.study.aliases import ALIASES, FIXED, amounts, override, read_spelling
from mixtune.study.reading import load_study, parse_study
from mixtune.study.yaml import Origin

SMALL = {"name": "x", "model": "m", "tasks": ["a"], "ingredients": {"a": {"rows": 5}}}
HERE = Origin("study")


def at(study, dotted):
    """The value of a dotted key."""
    for key in dotted.split("."):
        study = study[key] if isinstance(study, dict) else getattr(study, key)
    return study


# ---- short amounts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fpb", {"fpb": {}}),
        ("headline:10000", {"headline": {"rows": 10000}}),
        ("headline:10_000", {"headline": {"rows": 10000}}),
        ("ner*3", {"ner": {"repeat": 3.0}}),
        ("ner*0.5", {"ner": {"repeat": 0.5}}),
        ("ner:50*3", {"ner": {"rows": 50, "repeat": 3.0}}),
        ("0.2*orca", {"orca": {"share": 0.2}}),
        (".2*orca", {"orca": {"share": 0.2}}),
        ("1*orca", {"orca": {"share": 1.0}}),
        ("0.2*orca:5000", {"orca": {"share": 0.2, "rows": 5000}}),
        (" 0.2 * orca : 5 , ner * 3 ", {"orca": {"share": 0.2, "rows": 5}, "ner": {"repeat": 3.0}}),
        (["a:1, b", "c"], {"a": {"rows": 1}, "b": {}, "c": {}}),
        ("3d-data:4", {"3d-data": {"rows": 4}}),
        ("7:4", {"7": {"rows": 4}}),
    ],
)
def test_short_amounts(text, wanted):
    assert amounts(text, HERE) == wanted


def test_rows_passes_and_shares_in_one_line_are_a_study():
    study = parse_study(SMALL | {"ingredients": "headline:10000, fpb, ner*3, 0.2*orca"})
    dumped = study.model_dump(exclude_defaults=True)
    assert dumped["ingredients"] == {
        "headline": {"rows": 10000},
        "fpb": {},
        "ner": {"repeat": 3.0},
        "orca": {"share": 0.2},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "piece 1: not an amount"),
        ("a, , b", "piece 2: not an amount"),
        ("a, b,", "piece 3: not an amount"),
        ("a:10k", "(?s)piece 1.*found:  a:10k.*10000 or 10_000"),
        ("a:-5", "not an amount"),
        ("a:5.5", "not an amount"),
        ("a:", "not an amount"),
        ("a*", "not an amount"),
        ("*a", "not an amount"),
        ("a*b", "not an amount"),
        ("a*3:5", "not an amount"),
        ("a*2*3", "not an amount"),
        ("a b", "not an amount"),
        ("a:1e3", "not an amount"),
        ("-1*a", "not an amount"),
        ("nan*a", "not an amount"),
        ("a:" + "9" * 5000, "not an amount"),
        ("a:٣", "not an amount"),
        ("a\x1b[2J", r"found:  a\\x1b\[2J"),
        ("3*ner", r"(?s)a share is at most 1.*ner\*3 gives 3 passes"),
        ("2*3", "which is the name"),
        ("3*2*4", "which is the name"),
        ("a, a:5", "piece 2: 'a' is there already"),
        (["a", {"path": "x"}], "(?s)a list holds short amounts only.*task_files"),
        (["a", None], "a list holds short amounts only"),
        ([["a"]], "a list holds short amounts only"),
    ],
)
def test_what_is_no_short_amount_is_refused_with_its_position(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        amounts(text, HERE)
    assert "study: ingredients" in str(caught.value)


def test_a_share_with_a_repeat_is_contradictory():
    with pytest.raises(SpecError, match="contradictory settings: share and repeat"):
        parse_study(SMALL | {"ingredients": "0.2*a*3"})


@given(st.text("ab19:*., _-k", max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        found = amounts(text, HERE)
    except SpecError:
        return
    assert found
    assert all(name and set(one) <= {"rows", "repeat", "share"} for name, one in found.items())


# ---- other tools' keys

VALUES = {
    "model": ("hub/name", "hub/name"),
    "ingredients": ("a:5", {"a": {"rows": 5}}),
    "seeds": (7, (7,)),
    "train.method": ("lora", "lora"),
    "train.targets": ("all", "all-linear"),
    "train.rank": (8, 8),
    "train.alpha": (8, 8.0),
    "train.lr": ("1e-4", 1e-4),
    "train.schedule": ("cosine", "cosine"),
    "train.warmup": (0.1, 0.1),
    "train.weight_decay": (0.1, 0.1),
    "train.clip": (0.3, 0.3),
    "train.compute": ("bfloat16", "bfloat16"),
    "train.max_length": (256, 256),
    "budget.steps": (7, 7),
    "budget.examples_per_step": (8, 8),
}
SWITCHES = {"bf16": True, "fp32": True}
SINGLE = [alias for alias in ALIASES if alias != "gradient_accumulation_steps"]


def without(own):
    """The small study without what an alias stands for."""
    return {key: value for key, value in SMALL.items() if key != own}


@pytest.mark.parametrize("alias", SINGLE)
def test_each_alias_sets_its_own_key_at_the_top_level_and_in_its_section(alias):
    own = ALIASES[alias]
    typed, wanted = VALUES[own]
    typed = SWITCHES.get(alias, typed)
    wanted = "float32" if alias == "fp32" else wanted
    study = parse_study(without(own) | {alias: typed}).model_dump()
    found = at(study, own)
    if own == "ingredients":
        assert found["a"]["rows"] == 5
        return
    assert found == wanted
    section = own.rpartition(".")[0]
    if section:
        assert parse_study(SMALL | {section: {alias: typed}}).model_dump() == study


@pytest.mark.parametrize("alias", [a for a in SINGLE if "." in ALIASES[a]])
def test_an_alias_and_the_own_key_contradict_each_other_or_agree(alias):
    own = ALIASES[alias]
    section, key = own.split(".")
    typed, wanted = VALUES[own]
    typed = SWITCHES.get(alias, typed)
    agreed = "float32" if alias == "fp32" else wanted if alias != "learning_rate" else typed
    assert parse_study(SMALL | {section: {key: agreed}, alias: typed})
    with pytest.raises(SpecError, match=f"contradictory settings: {alias} and {own}") as caught:
        parse_study(SMALL | {section: {key: "other"}, alias: typed})
    assert "other" in str(caught.value)


def test_two_aliases_of_one_key_contradict_each_other():
    with pytest.raises(SpecError, match="contradictory settings: lora_rank and lora_r are"):
        parse_study(SMALL | {"lora_r": 8, "lora_rank": 16})


def test_number_formats():
    def compute(**keys):
        return parse_study(SMALL | keys).train.compute

    assert compute(bf16=True) == compute(torch_dtype="torch.bfloat16") == "bfloat16"
    assert compute(dtype="bf16", bf16=True, fp16=False) == "bfloat16"
    assert compute(bf16=False) == compute(fp32=True) == compute(dtype="fp32") == "float32"
    for bad in ({"bf16": "auto"}, {"dtype": "float16"}, {"dtype": None}, {"fp32": 1}):
        with pytest.raises(SpecError, match="not a number format"):
            compute(**bad)
    with pytest.raises(SpecError, match="contradictory"):
        compute(bf16=True, fp32=True)
    with pytest.raises(SpecError, match="float16 is not offered"):
        compute(fp16=True)


def test_batch_size_times_accumulation_is_the_examples_of_a_step():
    keys = {"micro_batch_size": 4, "gradient_accumulation_steps": 8}
    assert parse_study(SMALL | keys).budget.examples_per_step == 32
    assert parse_study(SMALL | {"budget": keys}).budget.examples_per_step == 32
    with pytest.raises(SpecError, match="contradictory"):
        parse_study(SMALL | keys | {"budget": {"examples_per_step": 4}})
    for bad in ({"micro_batch_size": "auto"}, {"micro_batch_size": True}):
        with pytest.raises(SpecError, match="gradient_accumulation_steps multiplies"):
            parse_study(SMALL | keys | bad)
    with pytest.raises(SpecError, match="there is none that it can multiply"):
        parse_study(SMALL | {"gradient_accumulation_steps": 8})


@pytest.mark.parametrize("key", FIXED)
def test_what_cannot_be_taken_over_is_refused_with_the_reason(key):
    for study in (SMALL | {key: 3}, SMALL | {"train": {key: 3}}):
        with pytest.raises(SpecError, match=f"{key} cannot be taken over") as caught:
            parse_study(study)
        assert FIXED[key][1] in str(caught.value)


def test_what_changes_nothing_is_accepted():
    keys = {"lora_dropout": 0.0, "fp16": False, "lora_target": "all", "seed": [1]}
    assert parse_study(SMALL | keys) == parse_study(SMALL)


def test_epochs_are_told_as_examples():
    with pytest.raises(SpecError, match="one pass over all the pools is 12 examples"):
        parse_study(SMALL | {"ingredients": "a:5, b:7", "num_train_epochs": 3})
    with pytest.raises(SpecError, match=r"give budget\.steps") as caught:
        parse_study(SMALL | {"ingredients": "a:5, b", "num_train_epochs": 3})
    assert "one pass" not in str(caught.value)


def test_layers_by_name_are_refused():
    with pytest.raises(SpecError, match="every linear layer"):
        parse_study(SMALL | {"lora_target": ["q_proj", "v_proj"]})


def test_a_section_that_holds_no_keys_takes_no_alias():
    with pytest.raises(SpecError, match="train holds no keys"):
        parse_study(SMALL | {"train": [1], "lora_r": 4})
    assert parse_study(SMALL | {"train": None, "lora_r": 4}).train.rank == 4


# ---- overrides


@pytest.fixture
def load(tmp_path):
    """Load a study with keys changed, and overrides."""

    def call(changes, *overrides):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **changes}), encoding="utf-8")
        return load_study(path, overrides)

    return call


def test_overrides_reach_into_the_study(load):
    study = load({}, "train.lr=0.01", "seeds=[3, 4]", "ingredients.a.rows=7")
    assert study.train.lr == 0.01
    assert study.seeds == (3, 4)
    assert study.ingredients["a"].rows == 7


@pytest.mark.parametrize("held", [{"train": {"lr": 0.5}}, {"learning_rate": 0.5}, {}])
@pytest.mark.parametrize("typed", ["learning_rate", "train.learning_rate", "train.lr"])
def test_an_override_replaces_every_spelling_of_its_key(load, held, typed):
    assert load(held, f"{typed}=2e-4").train.lr == 2e-4


@pytest.mark.parametrize(
    ("held", "overrides", "wanted"),
    [
        ({"micro_batch_size": 4, "gradient_accumulation_steps": 4}, ["micro_batch_size=8"], 32),
        (
            {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
            ["gradient_accumulation_steps=2"],
            8,
        ),
        (
            {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
            ["budget.examples_per_step=5"],
            5,
        ),
        ({"budget": {"examples_per_step": 9}}, ["train_batch_size=3"], 3),
        (
            {"budget": {"examples_per_step": 9}},
            ["train_batch_size=3", "gradient_accumulation_steps=2"],
            6,
        ),
    ],
)
def test_the_two_halves_of_a_batch_are_overridden_apart(load, held, overrides, wanted):
    assert load(held, *overrides).budget.examples_per_step == wanted


def test_overrides_reach_into_short_amounts(load):
    for held in ({"ingredients": "a, b*2"}, {"ingredients": ["a", "b*2"]}):
        study = load(held, "ingredients.a.rows=7", "ingredients.b.repeat=3")
        assert study.ingredients["a"].rows == 7
        assert study.ingredients["b"].repeat == 3
    study = load({}, "datasets=a:9, c", "datasets.c.rows=4")
    assert study.model_dump(exclude_defaults=True)["ingredients"] == {
        "a": {"rows": 9},
        "c": {"rows": 4},
    }
    assert load({}, "seed=5").seeds == (5,)


@pytest.mark.parametrize(
    "text",
    ["seeds", "=3", "name.sub=1", "train.lr=[1", "a.b.c.d=1", " =1", "ingredients.a.rows.x=1"],
)
def test_a_bad_override_is_refused(text):
    spelling = read_spelling({"name": "x", "ingredients": {"a": {"rows": 1}}}, HERE)
    with pytest.raises(SpecError):
        override(spelling, text)
