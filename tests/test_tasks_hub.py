"""Tasks from the hub, with a stand-in for its library: no network."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError


class FakeHub(ModuleType):
    """Stands in for the `datasets` library: no network, remembers what it was asked."""

    def __init__(self, splits):
        super().__init__("datasets")
        self.splits = splits
        self.calls = []

    def load_dataset(self, path, config, **options):
        self.calls.append((path, config, options))
        if isinstance(self.splits, Exception):
            raise self.splits
        return self.splits[options["split"]]


@pytest.fixture
def hub(monkeypatch):
    def install(splits):
        fake = FakeHub(splits)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
        monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
        return fake

    return install


class TestHubSource:
    """The hub's records come out as the local ones do."""

    def test_the_parquet_conversion_of_a_script_set(self, hub):
        rows = [{"sentence": f"Sentence {n} rose.", "label": n % 3} for n in range(300)]
        fake = hub({"train": rows})
        registry = Registry.builtin()
        splits = {
            s: registry.dataset("fpb", 0.1).examples(s) for s in ("train", "validation", "test")
        }
        path, _, options = fake.calls[0]
        assert len(fake.calls) == 1
        assert path == "takala/financial_phrasebank"
        assert options["revision"] == "refs/convert/parquet"
        assert options["data_dir"] == "sentences_50agree"
        assert sum(map(len, splits.values())) == 300
        assert {e.split for e in splits["test"]} == {"test"}
        assert not {e.id for e in splits["test"]} & {e.id for e in splits["train"]}
        names = {f"train-{n}": ("negative", "neutral", "positive")[n % 3] for n in range(300)}
        assert all(e.target == names[e.id] for e in splits["train"])
        assert "hub" in registry.source_of("fpb") and "not checked" in registry.source_of("fpb")

    def test_hub_and_local_records_render_alike(self, hub, tmp_path):
        hub({"validation": [{"text": "$A cut to hold", "label": 0}]})
        folder = tmp_path / "twitter_sentiment"
        folder.mkdir()
        row = {"id": "t", "text": "$A cut to hold", "label": "Bearish"}
        (folder / "test.jsonl").write_text(json.dumps(row), encoding="utf-8")
        (theirs,) = Registry.builtin().dataset("twitter-sentiment", 0.1).examples("test")
        (ours,) = Registry.builtin(tmp_path).dataset("twitter-sentiment", 0.1).examples("test")
        assert (theirs.messages, theirs.target) == (ours.messages, ours.target)
        assert theirs.target == "bearish"

    def test_a_row_per_question(self, hub):
        asked = ["price_or_not", "asset_comparison"]
        rows = [
            {"id": f"h{n}", "text": "gold up", "label_type": q, "answer": "Yes"}
            for n, q in enumerate(asked)
        ]
        hub({"test": rows})
        first, second = Registry.builtin().dataset("headline", 0.1).examples("test")
        assert (first.stratum, second.stratum) == ("PriceOrNot", "AssetComparision")
        assert first.group == second.group == "gold up"

    def test_an_unknown_question_is_refused(self, hub):
        hub({"test": [{"id": "h", "text": "gold up", "label_type": "colour", "answer": "Yes"}]})
        with pytest.raises(DataError, match=r"row 0: field 'label_type'(.|\n)*colour"):
            Registry.builtin().dataset("headline", 0.1).examples("test")

    def test_a_renamed_field_that_is_not_there_is_named(self, hub):
        hub({"train": [{"sentense": "x", "label": 0}]})
        with pytest.raises(DataError, match=r"no field 'sentence'(.|\n)*'sentense'"):
            Registry.builtin().dataset("fpb", 0.1).examples("train")

    def test_conversations_of_a_set_that_another_trainer_names(self, hub, tmp_path):
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
        fake = hub({"half": [{"conversations": turns}] * 30})
        entry = {"hf_hub_url": "some/set", "split": "half", "formatting": "sharegpt"}
        path = tmp_path / "dataset_info.json"
        path.write_text(json.dumps({"talk": entry}), encoding="utf-8")
        (example, *_) = Registry.open([str(path)]).dataset("talk", 1e-9).examples("train")
        assert (example.id, example.target) == ("train-0/1", "b")
        assert fake.calls[0][0] == "some/set"

    @pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError("no such config")])
    def test_no_hub_says_what_to_do(self, hub, error):
        hub(error)
        with pytest.raises(DataError, match=r"cannot load(.|\n)*openai/gsm8k(.|\n)*--data-dir"):
            Registry.builtin().dataset("gsm8k", 0.1).examples("train")
