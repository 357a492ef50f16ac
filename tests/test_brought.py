"""Systems made elsewhere: scored as systems of a study, with PEFT as the oracle."""

import json
import shutil
import warnings

import pytest
import yaml
from engine_oracle import write_base
from peft import LoraConfig, get_peft_model
from study_kit import TASK, write_data
from torch import nn
from transformers import AutoModelForCausalLM

from mixtune.datasets.registry import Registry
from mixtune.results.study_results import read_facts, system_infos
from mixtune.store.folder import Store

STUDY = {
    "name": "weather",
    "tasks": ["north", "south"],
    "ingredients": {"north": {"rows": 20}, "south": {"rows": 20}},
    "design": ["singles"],
    "budget": {"steps": 1, "examples_per_step": 4},
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 6, "test_items": 20, "max_new_tokens": 4, "batch_size": 4},
    "task_files": ["north.yaml", "south.yaml"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study that was run, and an adapter that PEFT made on some of the layers of its base."""
    folder = tmp_path_factory.mktemp("brought")
    write_data(folder / "data")
    for name in ("north", "south"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    base = write_base(folder / "base", "llama")
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, "model": str(base)}))
    made = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True, lora_dropout=0.1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
        network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.4)
    network.save_pretrained(folder / "Made Elsewhere")
    merged = network.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / file).is_file():
            (folder / "merged" / file).write_bytes((base / file).read_bytes())
    return folder


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    """Run a verb in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    monkeypatch.setenv("MIXTUNE_DATA_DIR", str(place / "data"))
    return mixtune


def logprobs(folder, name):
    """Every constrained log-probability of a system, on test."""
    store = Store(folder / "runs" / "weather")
    rows = [r for r in store.plan() if (r.cocktail, r.split) == (name, "test")]
    return {
        (row.task, raw["example"]): raw["logprobs"]
        for row in rows
        if row.form == "constrained"
        for raw in store.read_rows(f"{row.folder}/answers/{row.id}/predictions.parquet")
    }


def test_an_adapter_by_peft_answers_as_the_merged_model_does(mixtune, place):
    code, out, err = mixtune("eval", "study.yaml", "Made Elsewhere", "--name", "theirs", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {row["cocktail"] for row in rows} == {"theirs"}
    assert {row["task"] for row in rows} == {"north", "south"}
    code, _, err = mixtune("eval", "study.yaml", "merged", "--name", "merged")
    assert code == 0, err
    ours, theirs = logprobs(place, "theirs"), logprobs(place, "merged")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 40
    for key, values in ours.items():
        assert values == pytest.approx(theirs[key], abs=2e-4)
    code, _, err = mixtune("run", "study.yaml", "--workers", "1")
    assert code == 0, err
    base = logprobs(place, "base")
    assert any(abs(base[key][0] - values[0]) > 0.05 for key, values in ours.items())


def test_what_was_brought_in_stays_when_the_study_is_extended(mixtune, place):
    code, _, err = mixtune("run", "study.yaml", "seeds=[1,2]", "--workers", "1")
    assert code == 0, err
    registry = Registry.open([str(place / f"{n}.yaml") for n in ("north", "south")], place / "data")
    facts = read_facts(Store(place / "runs" / "weather"), registry)
    names = {system.cocktail for system in system_infos(facts)}
    assert names == {"majority", "base", "north", "south", "theirs", "merged"}
    assert {row.origin for row in facts.plan if row.cocktail == "theirs"} != {""}
    code, out, _ = mixtune("compare", "study.yaml", "theirs", "south", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["seeds"] for row in rows} == {1}
    code, out, _ = mixtune("compare", "study.yaml", "merged", "theirs", "--json")
    assert {row["value"] for row in json.loads(out)} == {0.0}


def test_again_does_nothing_again(mixtune, place):
    before = {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("predictions.parquet")}
    code, _, err = mixtune(
        "eval", "study.yaml", "Made Elsewhere", "--name", "theirs", "seeds=[1,2]"
    )
    assert code == 0, err
    after = {p: p.stat().st_mtime_ns for p in (place / "runs").rglob("predictions.parquet")}
    assert before == after


def test_after_an_override_it_is_the_kept_study_that_counts(mixtune, place):
    """The study file still says one seed; the study has two, and a system brought in adds none."""
    code, out, err = mixtune("eval", "study.yaml", "merged", "--name", "merged", "--json")
    assert code == 0, err
    assert {row["cocktail"] for row in json.loads(out)} == {"merged"}
    rows = Store(place / "runs" / "weather").plan()
    assert {row.seed for row in rows} == {None, 1, 2}


def test_what_is_damaged_is_said_to_need_eval(mixtune, place):
    store = Store(place / "runs" / "weather")
    row = next(r for r in store.plan() if r.cocktail == "merged")
    (store.folder / row.folder / "answers" / row.id / "predictions.parquet").unlink()
    code, _, err = mixtune("run", "study.yaml", "seeds=[1,2]", "--workers", "1")
    assert code == 0
    assert "mixtune eval scores it again" in err
    assert "done again" not in err
    code, _, err = mixtune("eval", "study.yaml", "merged")
    assert code == 0, err
    assert store.units()[row.id].state == "done"


def test_a_gate_that_is_not_met_is_exit_3(mixtune):
    again = ("eval", "study.yaml", "merged", "--name", "merged", "seeds=[1,2]")
    code, _, err = mixtune(*again, "--gate", "north=1.01")
    assert code == 3
    assert "north=1.01" in err
    assert mixtune(*again, "--gate", "north=0")[0] == 0
    for gate in ("nroth=0", "north=nan", "north", "=1"):
        code, _, err = mixtune(*again, "--gate", gate)
        assert code == 2
        assert "TASK=VALUE" in err


def test_a_comparison_can_be_a_gate(mixtune):
    compared = ("compare", "study.yaml", "merged", "theirs", "--split", "test")
    assert mixtune(*compared, "--no-worse-than", "0.5")[0] == 0
    code, _, err = mixtune(*compared, "--no-worse-than", "0.01")
    assert code == 3
    assert "gate not met" in err


def test_two_studies_are_compared_on_the_items_that_both_have(mixtune, place):
    text = (place / "study.yaml").read_text(encoding="utf-8")
    other = {**yaml.safe_load(text), "name": "other", "train": {"rank": 2, "alpha": 4, "lr": 0.01}}
    other["evaluate"] = {**STUDY["evaluate"], "test_items": 16}
    (place / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    code, _, err = mixtune("run", "other.yaml", "--workers", "1")
    assert code == 0, err
    code, out, err = mixtune("compare", "study.yaml", "other.yaml", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {(row["subject"], row["reference"]) for row in rows} == {
        (f"weather: {name}", f"other: {name}") for name in ("majority", "base", "north", "south")
    }
    same = [row for row in rows if row["subject"] == "weather: base"]
    assert {row["value"] for row in same} == {0.0}
    code, out, err = mixtune("compare", "study.yaml", "other.yaml", "--split", "test", "--json")
    assert code == 2
    assert "no task that can be compared" in err
    assert "north: other items" in err
    code, _, err = mixtune("compare", "study.yaml", "study.yaml")
    assert code == 2
    assert "compared with itself" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "study.yaml", "Made Elsewhere", "--name", "base"), "has this name"),
        (("eval", "study.yaml", "Made Elsewhere", "--name", "majority"), "has this name"),
        (("eval", "study.yaml", "Made Elsewhere", "--name", "south"), "has this name"),
        (("eval", "study.yaml", "Made Elsewhere", "--name", "twice"), "under another name"),
        (("eval", "study.yaml", "merged", "--name", "theirs"), "has this name"),
        (("eval", "study.yaml", "merged", "--name", "a" * 99), "not a name"),
        (("eval", "study.yaml", "~nobody-at-all/x"), "no such"),
        (("eval", "study.yaml", "base", "--name", "own"), "own base model"),
        (("eval", "study.yaml", "nowhere"), "no such base model"),
        (("eval", "study.yaml", "data"), "config.json"),
        (("compare", "study.yaml", "thiers", "south"), "did you mean 'theirs'"),
        (("compare", "study.yaml", "south", "south"), "compared with itself"),
        (("compare", "study.yaml", "a", "b", "c"), "two systems of a study, or two studies"),
        (("analyze", "study.yaml", "--split", "train"), "no such split"),
    ],
)
def test_mistakes(mixtune, arguments, message):
    code, _, err = mixtune(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": None}, "does not say what it is"),
        ({"target_modules": ["k_proj"]}, "do not fit the base model"),
        ({"target_modules": ["nothing"]}, "no linear layers"),
    ],
)
def test_an_adapter_that_cannot_be_run_exactly_is_refused(mixtune, place, change, message):
    odd = place / "odd"
    odd.mkdir(exist_ok=True)
    for file in (place / "Made Elsewhere").iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    config = json.loads((odd / "adapter_config.json").read_text()) | change
    (odd / "adapter_config.json").write_text(json.dumps(config))
    code, _, err = mixtune("eval", "study.yaml", odd, "--name", "odd")
    assert code == 2
    assert "odd" not in {row.cocktail for row in Store(place / "runs" / "weather").plan()}
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("chat_template.jinja", "{{ messages[0].content }}###", "another chat template than"),
        ("tokenizer_config.json", '{"chat_template": "###"}', "another chat template than"),
        ("tokenizer_config.json", '{"eos_token": {"content": "<end>"}}', "another eos_token than"),
        ("added_tokens.json", '{"<tool>": 99}', "another tokenizer than"),
    ],
)
def test_an_adapter_with_another_template_or_end_is_refused(mixtune, place, file, text, message):
    folder = place / f"foreign-{message.split()[1]}-{len(text)}"
    shutil.copytree(place / "Made Elsewhere", folder)
    (folder / file).write_text(text, encoding="utf-8")
    code, _, err = mixtune("eval", "study.yaml", folder, "--name", "foreign")
    assert code == 2
    assert message in " ".join(err.split())
    assert "foreign" not in {row.cocktail for row in Store(place / "runs" / "weather").plan()}


def test_an_adapter_with_its_bases_own_files_and_another_name_is_scored_and_noted(mixtune, place):
    folder = place / "Renamed"
    shutil.copytree(place / "Made Elsewhere", folder)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        if (place / "base" / file).is_file():
            shutil.copyfile(place / "base" / file, folder / file)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "org/another", "lora_alpha": 9}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    code, _, err = mixtune("eval", "study.yaml", folder, "--name", "renamed")
    assert code == 0, err
    assert "names org/another as its base" in " ".join(err.split())


def test_estimates_are_kept_as_rows(mixtune, place):
    code, out, _ = mixtune("analyze", "study.yaml", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["quantity"] for row in rows} == {
        "mean",
        "difference-to-single",
        "difference-to-base",
        "transfer",
        "tie",
        "best-of-n",
        "tuning-curve",
        "ability-gain",
        "form-gain",
    }
    store = Store(place / "runs" / "weather")
    assert store.read_rows("estimates-validation.parquet") == rows


def test_open_writes_the_page_and_shows_it(mixtune, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or False)
    code, _out, err = mixtune("open", "study.yaml")
    assert code == 0
    assert shown[0].startswith("file:///")
    assert shown[0].endswith("weather/report/index.html")
    assert "open the file yourself" in err


@pytest.mark.usefixtures("stopped_at_a_claim")
def test_stopped_it_leaves_nothing_running(mixtune, place):
    shutil.copytree(place / "Made Elsewhere", place / "doubled")
    settings = json.loads((place / "doubled" / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (place / "doubled" / "adapter_config.json").write_text(json.dumps(settings))
    code, _, err = mixtune("eval", "study.yaml", "doubled", "--name", "stopped")
    assert code == 143
    assert "Go on with: " in err
    units = Store(place / "runs" / "weather").units().values()
    assert {unit.state for unit in units if unit.attempts} == {"done", "planned"}
