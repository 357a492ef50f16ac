"""Probes: readings held to plain transformers and PEFT, and the verb on a small finished study."""

import json

import numpy as np
import pytest
import torch
import yaml
from engine_kit import load, randomise, rows_of
from engine_oracle import peft_network, plain_network, write_base
from run_kit import call
from study_kit import TASK, record, write_rows

from mixtune.analysis.measures import SystemInfo
from mixtune.analysis.readings import readings
from mixtune.datasets.registry import Registry
from mixtune.datasets.sources import RegisteredTask
from mixtune.engine import probe
from mixtune.engine.forest import BASE
from mixtune.errors import DataError, RunFailed, SpecError
from mixtune.planning.corpus import load_corpus
from mixtune.planning.runs import canonical
from mixtune.records import ProbeRow
from mixtune.store.folder import Store
from mixtune.study.reading import parse_study
from mixtune.study.spec import TrainSpec
from mixtune.tasks.task import parse_task

ROWS = rows_of(*[("a", 40, 9, 3)] * 3, ("a", 40, 2, 1), ("b", 0, 20, 12), ("b", 30, 31, 5))
"""Shared headers, answers of one token and of many, rows beyond the sliding window."""


@torch.no_grad()
def by_transformers(network, base, row):
    """Log-probability by both networks and the divergence, in float64, one row at a time."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    own, plain = (
        torch.log_softmax(each(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].double(), -1)
        for each in (network, base)
    )
    answer = torch.tensor(row.answer).unsqueeze(1)
    kl = (own.exp() * (own - plain)).sum().item()
    return own.gather(1, answer).sum().item(), plain.gather(1, answer).sum().item(), kl


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-window", "phi3", "gemma3"])
def test_readings_are_those_of_transformers_and_peft(models, folders, tmp_path, family):
    model = models(family)
    model.use_adapter()
    model.save_adapter(tmp_path / "a", "base")
    network = peft_network(folders(family), tmp_path / "a")
    base = plain_network(folders(family))
    found = model.read(ROWS)
    for row, reading in zip(ROWS, found, strict=True):
        logprob, base_logprob, kl = by_transformers(network, base, row)
        assert reading.tokens == len(row.answer)
        assert reading.logprob == pytest.approx(logprob, abs=1e-4)
        assert reading.base_logprob == pytest.approx(base_logprob, abs=1e-4)
        assert reading.kl == pytest.approx(kl, abs=1e-4)
    assert min(reading.kl for reading in found) > 1e-2, "the adapter must change something"


def test_full_fine_tuning_is_held_to_the_base_it_began_from(folders, tmp_path):
    base = folders("llama")
    model = load(base, TrainSpec(method="full"))
    model.reset(1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        model.bank.weights += 0.03 * torch.randn(model.bank.weights.shape, generator=generator)
    model.save_adapter(tmp_path / "tuned", "base")
    network, plain = plain_network(tmp_path / "tuned"), plain_network(base)
    for row, reading in zip(ROWS, model.read(ROWS), strict=True):
        found = (reading.logprob, reading.base_logprob, reading.kl)
        assert found == pytest.approx(by_transformers(network, plain, row), abs=1e-4)


def test_neither_blocks_of_logits_nor_the_order_of_rows_nor_passes_change_anything(
    models, monkeypatch
):
    model = models()
    model.use_adapter()
    whole = model.read(ROWS)
    assert model.read(ROWS[::-1]) == whole[::-1]
    monkeypatch.setattr(probe, "BLOCK", 259 * 2)
    for budget in (4096, 60):
        system = probe.Reader(model.decoder, 0)
        small = probe.read_answers(system, probe.Reader(model.decoder), ROWS, budget)
        for one, other in zip(small, whole, strict=True):
            assert (one.logprob, one.base_logprob, one.kl) == pytest.approx(
                (other.logprob, other.base_logprob, other.kl), abs=2e-5
            )


def test_an_adapter_that_changes_nothing_diverges_by_nothing(models):
    model = models()
    model.use_adapter(0, strength=0.0)
    for reading in model.read(ROWS):
        assert reading.kl < 1e-6
        assert reading.logprob == pytest.approx(reading.base_logprob, abs=1e-5)
    model.use_adapter(0)


def test_an_adapter_that_diverged_has_no_reading(folders):
    model = load(folders("llama"))
    randomise(model)
    model.bank.weights[0] = float("nan")
    with pytest.raises(RunFailed, match=r"[ab]/\d reads as Reading"):
        model.read(ROWS)
    model.use_base()
    assert model.slot == BASE


# ---- estimates ------------------------------------------------------------


def probe_row(system, number, **values):
    plain = {"tokens": 2, "logprob": -1.0, "base_logprob": -3.0, "kl": 0.5}
    return ProbeRow(
        system, "t", "validation", f"e{number}", f"g{number // 2}", "", **plain | values
    )


SYSTEMS = [SystemInfo("s1", "one", 1, ("one",)), SystemInfo("s2", "one", 2, ("one",))]


def test_estimates_are_means_over_seeds_and_examples_with_clusters_resampled():
    rng = np.random.default_rng(0)
    kls = rng.gamma(2.0, 0.1, size=(2, 80))
    rows = [
        probe_row(system, i, kl=kls[s, i], logprob=-1.0 - s)
        for s, system in enumerate(("s1", "s2"))
        for i in range(80)
    ]
    found = {(r.subject, r.reference, r.metric): r for r in readings(rows, SYSTEMS)}
    kl = found["one", "base", "kl"]
    assert kl.value == pytest.approx(kls.mean())
    assert (kl.n, kl.clusters, kl.seeds) == (80, 40, 2)
    assert kl.low < kl.value < kl.high
    # The width of a mean over 40 clusters of two examples and two seeds.
    means = kls.mean(0).reshape(40, 2).mean(1)
    assert kl.high - kl.low == pytest.approx(2 * 2.02 * means.std(ddof=1) / 40**0.5, rel=0.15)
    assert found["one", "base", "logprob-per-answer"].value == pytest.approx(1.5)
    assert found["one", "base", "logprob-per-token"].value == pytest.approx(0.75)
    assert found["base", "", "logprob-per-token"].value == pytest.approx(-1.5)
    assert readings(rows[::-1], SYSTEMS) == list(found.values())


def test_too_few_clusters_give_no_interval():
    rows = [probe_row("s1", i) for i in range(28)]
    (row,) = [r for r in readings(rows, SYSTEMS) if r.metric == "kl"]
    assert (row.low, row.high) == (None, None)
    assert row.method == "too few: 14 clusters, 15 needed"


def test_systems_that_were_read_other_examples_are_not_averaged():
    rows = [probe_row("s1", i) for i in range(4)] + [probe_row("s2", i) for i in range(3)]
    with pytest.raises(DataError, match="different examples"):
        readings(rows, SYSTEMS)
    with pytest.raises(DataError, match="or one twice"):
        readings([probe_row("s1", 1), probe_row("s1", 1)], SYSTEMS)


# ---- the study file ------------------------------------------------------------

STUDY = {
    "name": "small",
    "model": "base",
    "tasks": ["toy-sentiment"],
    "ingredients": {"toy-sentiment": {"rows": 40}, "notes": {"rows": 40}},
    "design": ["singles", "all"],
    "budget": {"steps": 2, "examples_per_step": 4},
    "seeds": [1, 2],
    "train": {"rank": 2, "alpha": 4, "lr": 0.05},
    "evaluate": {
        "validation_items": 16,
        "test_items": 16,
        "max_new_tokens": 4,
        "probe_items": 24,
        "forms": ["constrained"],
    },
}
PROBES = {"probes": ["toy-mood", "toy-rise"], "general": "notes"}
NOTES = TASK.format(name="notes").replace("kind: label", "kind: label\nscored: false")


@pytest.fixture
def registry(tmp_path):
    """The tasks that ship with the package, and a set that is only trained on, of 600 rows."""
    return Registry.builtin(write_notes(tmp_path)).with_tasks(
        [RegisteredTask(parse_task(NOTES, "notes"), "test")]
    )


def write_notes(folder):
    write_rows(folder / "data", "notes", "train", [record("notes", "train", i) for i in range(600)])
    return folder / "data"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": ["toy-sentiment"]}, "one of the tasks"),
        ({"probes": ["toy-mood", "TOY_MOOD".lower()]}, "named twice"),
        ({"probes": ["notes"]}, "probes: 'notes' is not scored"),
        ({"probes": ["toy-mod"]}, "toy-mood"),
        ({"general": "toy-sentiment"}, "answered as a task"),
        ({"gate": {"retention": -0.1}}, "no probes"),
        ({"probes": ["toy-mood"], "gate": {"probes": ["toy-rise"]}}, "none of the study's probes"),
    ],
)
def test_probes_that_contradict_the_study_are_refused(registry, changes, message):
    with pytest.raises(SpecError, match=message):
        canonical(parse_study(STUDY | changes), registry)


def test_what_is_probed_is_kept_out_of_training(registry):
    plain = load_corpus(parse_study(STUDY), registry)
    probed = load_corpus(canonical(parse_study(STUDY | PROBES), registry), registry)
    assert {key for key in probed.items if key not in plain.items} == {
        ("toy-mood", "validation"),
        ("toy-rise", "validation"),
        ("notes", "train"),
    }
    general = {example.id for example in probed.items["notes", "train"]}
    assert len(general) >= 24
    assert general.isdisjoint(example.id for example in probed.pools["notes"])
    lost = len(plain.pools["notes"]) - len(probed.pools["notes"])
    assert lost == probed.leaked_train["notes"] - plain.leaked_train["notes"]
    # More items take no more rows from training.
    more = parse_study(STUDY | PROBES | {"evaluate": STUDY["evaluate"] | {"probe_items": 30}})
    assert load_corpus(more, registry).pools == probed.pools
    # What a study of one's own leaks is an error where it is asked for; what it holds out is none.
    strict = STUDY["evaluate"] | {"leaked": "error"}
    load_corpus(parse_study(STUDY | {"general": "notes", "evaluate": strict}), registry)


# ---- the verb ------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two finished studies, with probes and without."""
    folder = tmp_path_factory.mktemp("probe")
    base = write_base(folder / "base", "llama")
    (folder / "notes.yaml").write_text(NOTES, encoding="utf-8")
    write_notes(folder)
    for name, more in (("study", PROBES), ("plain", {"name": "plain"})):
        own = {"model": str(base), "task_files": ["notes.yaml"]}
        text = yaml.safe_dump({**STUDY, **more, **own})
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTUNE_DATA_DIR", str(folder / "data"))
        for name in ("study", "plain"):
            call(folder, "run", f"{name}.yaml")
    return folder


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    """Run a verb in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    monkeypatch.setenv("MIXTUNE_DATA_DIR", str(place / "data"))
    return mixtune


def probe_files(place):
    return {p: p.stat().st_mtime_ns for p in (place / "runs/small").rglob("answers/*/*.parquet")}


def test_before_anything_is_probed_it_is_said_what_would_be(mixtune, place):
    before = probe_files(place)
    code, out, err = mixtune("probe", "study.yaml", "--dry-run")
    assert code == 0, err
    # Two probes for the base; for each of 3 cocktails x 2 seeds these, and three readings.
    assert "7 systems, 32 of 32" in out
    assert probe_files(place) == before


def test_probes_are_facts_beside_the_predictions(mixtune, place):
    code, out, err = mixtune("probe", "study.yaml", "--json")
    assert code == 0, err
    store = Store(place / "runs/small")
    rows = [row for row in store.plan() if row.kind == "probe"]
    assert len(rows) == 32
    assert {store.units()[row.id].state for row in rows} == {"done"}
    read = [row for row in rows if row.form == "likelihood"]
    kept = [ProbeRow(**raw) for row in read for raw in store.read_rows(reading_file(row))]
    assert {row.task for row in kept} == {"toy-mood", "toy-rise", "notes"}
    assert all(row.kl >= 0 and row.logprob < 0 and row.tokens > 1 for row in kept)
    same = {(row.task, row.example): row.base_logprob for row in kept}
    assert all(row.base_logprob == same[row.task, row.example] for row in kept)
    found = json.loads(out)["estimates"]
    assert store.read_rows("retention.parquet") == found
    retained = [row for row in found if row["quantity"] == "retention"]
    assert {row["subject"] for row in retained} == {
        "toy-sentiment",
        "notes",
        "notes+toy-sentiment",
    }
    scores = {(r["subject"], r["target"]): r["value"] for r in found if r["quantity"] == "score"}
    for row in retained:
        assert (row["reference"], row["form"], row["seeds"]) == ("base", "constrained", 2)
        own, base = (scores[name, row["target"]] for name in (row["subject"], "base"))
        assert row["value"] == pytest.approx(own - base)
        assert row["low"] <= row["value"] <= row["high"]
    kl = [row for row in found if row["metric"] == "kl"]
    assert len(kl) == 9
    assert min(row["value"] for row in kl) > 0


def reading_file(row):
    return f"{row.folder}/answers/{row.id}/probes.parquet"


def test_what_is_done_is_not_done_again_and_what_is_lost_is(mixtune, place):
    before = probe_files(place)
    code, out, err = mixtune("probe", "study.yaml")
    assert code == 0, err
    assert "minus base" in out
    assert "KL to base" in out
    assert probe_files(place) == before
    store = Store(place / "runs/small")
    lost = next(row for row in store.plan() if row.form == "likelihood")
    text = (store.folder / reading_file(lost)).read_bytes()
    (store.folder / reading_file(lost)).unlink()
    code, _, err = mixtune("probe", "study.yaml")
    assert code == 0, err
    assert "its files are missing or changed, done again" in err
    assert (store.folder / reading_file(lost)).read_bytes() == text
    changed = {path for path, when in probe_files(place).items() if before[path] != when}
    assert changed == {store.folder / reading_file(lost)}


def test_probes_are_in_no_table_of_the_study_and_do_not_hold_it_up(mixtune, place):
    code, out, err = mixtune("results", "study.yaml", "--json")
    assert code == 0, err
    assert {row["task"] for row in json.loads(out)} == {"toy-sentiment"}
    code, out, err = mixtune("status", "study.yaml", "--json")
    assert {run["state"] for run in json.loads(out)["runs"]} == {"done"}
    code, _, err = mixtune("run", "study.yaml", "--workers", "1")
    assert code == 0, err
    assert "0 to do" in err
    assert len([row for row in Store(place / "runs/small").plan() if row.kind == "probe"]) == 32
    code, _, err = mixtune("run", "study.yaml", "seeds=[1,2,3]", "--dry-run")
    assert code == 0, err


def test_a_gate_that_is_not_met_is_exit_3_with_a_list(mixtune):
    code, out, err = mixtune("probe", "study.yaml", "gate.retention=1", "--json")
    assert code == 3
    below = json.loads(out)["gate"]["below"]
    assert len(below) == 6
    assert all(line in err for line in below)
    assert any(line.startswith("toy-sentiment on toy-mood: ") for line in below)
    one = ("gate.retention=1", "gate.probes=[toy-rise]")
    code, out, _ = mixtune("probe", "study.yaml", *one, "--json")
    assert code == 3
    assert len(json.loads(out)["gate"]["below"]) == 3
    code, _, err = mixtune("probe", "study.yaml", "gate.retention=-1")
    assert code == 0, err
    code, _, err = mixtune("probe", "study.yaml", "gate.retention=-0.001", "gate.by=interval")
    assert code == 3


def test_probes_can_be_added_to_a_study_that_was_run_without(mixtune, place):
    code, _, err = mixtune("probe", "plain.yaml")
    assert code == 2
    assert "has no probes" in err
    only = ("--system", "toy-sentiment+notes", "--json")
    code, out, err = mixtune("probe", "plain.yaml", "probes=[toy-mood]", *only)
    assert code == 0, err
    found = json.loads(out)["estimates"]
    assert {row["subject"] for row in found} == {"base", "notes+toy-sentiment"}
    # General text that was trained on is none any more: those adapters would be others.
    code, _, err = mixtune("probe", "plain.yaml", "general=notes")
    assert code == 2
    assert "would get another id" in err
    code, _, err = mixtune("probe", "plain.yaml", "probes=[toy-mood]", "--system", "toy-moon")
    assert code == 2
    assert "can be probed" in err


def test_a_merged_adapter_is_probed_with_its_own_rank(mixtune, place):
    store = Store(place / "runs/small")
    adapters = [
        store.folder / row.folder / "adapter"
        for row in store.plan()
        if row.kind == "train" and row.seed == 1 and "+" not in row.cocktail
    ]
    code, _, err = mixtune("merge", *adapters, "--out", place / "both")
    assert code == 0, err
    code, _, err = mixtune("eval", "study.yaml", place / "both", "--name", "both")
    assert code == 0, err
    code, out, err = mixtune("probe", "study.yaml", "--system", "both", "--json")
    assert code == 0, err
    rows = [row for row in json.loads(out)["estimates"] if row["subject"] == "both"]
    assert {row["quantity"] for row in rows} == {"score", "retention", "reading"}
    # It knows by digest which base its parts were trained on, and is scored on no other.
    kept = json.loads((place / "both/merge.json").read_text())
    kept["base"]["digest"] = "0123456789abcdef"
    (place / "both/merge.json").write_text(json.dumps(kept))
    code, _, err = mixtune("eval", "study.yaml", place / "both", "--name", "other")
    assert code == 2
    assert "for another base model" in err
