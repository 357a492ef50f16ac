"""Tasks on the real datasets, where their folder is at hand."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from mixtune.datasets.registry import Registry
from mixtune.tasks.parsers.labels import PARSERS

LABELLED = (
    "fpb", "twitter-sentiment", "headline", "twitter-topic", "fiqa-sa", "numclaim", "fin-ner-cls",
    "finer-ord-cls", "mmlu-finance", "mmlu-general",
)  # fmt: skip
OPEN = (
    "fin-ner", "finer-ord", "finred", "finqa", "convfinqa", "financial-math", "gsm8k", "math",
)  # fmt: skip


@pytest.fixture(scope="module")
def real():
    """The registry over the folder of real datasets, read once for all tests."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MIXTUNE_DATA_DIR") or default)
    if not (folder / "fpb").is_dir():
        pytest.skip(f"real datasets are not at {folder}; set MIXTUNE_DATA_DIR to their folder")
    return Registry.builtin(folder)


@pytest.mark.data
class TestRealData:
    """Counts and labels as the data folder's own README has them."""

    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("fpb", {"train": 3392, "validation": 484, "test": 776}),
            ("twitter-sentiment", {"train": 8589, "validation": 954, "test": 1911}),
            ("headline", {"train": 7989 * 9, "validation": 1140 * 9, "test": 1825 * 9}),
            ("twitter-topic", {"train": 15285, "validation": 1705, "test": 3295}),
            ("fiqa-sa", {"train": 750, "validation": 188, "test": 188}),
            ("numclaim", {"test": 537}),
            ("fin-ner", {"test": 303}),
            ("finer-ord", {"train": 3262, "validation": 402, "test": 850}),
            ("finred", {"train": 5700, "validation": 1007, "test": 854}),
            ("finqa", {"train": 1012, "validation": 745, "test": 915}),
            ("convfinqa", {"test": 1179}),
            ("financial-math", {"test": 200}),
            ("mmlu-finance", {"test": 1256}),
            ("mmlu-general", {"test": 9977}),
            ("math", {"train": 7498, "test": 5000}),
            ("p3", {"train": 9227}),
        ],
    )
    def test_counts(self, real, name, sizes):
        assert {split: len(real.dataset(name, 0.1).examples(split)) for split in sizes} == sizes

    def test_labels(self, real):
        fpb = Counter(e.target for e in real.dataset("fpb", 0.1).examples("test"))
        assert fpb == {"neutral": 461, "positive": 218, "negative": 97}
        tweets = Counter(e.target for e in real.dataset("twitter-sentiment", 0.1).examples("test"))
        assert tweets == {"neutral": 1253, "bullish": 380, "bearish": 278}
        test = real.dataset("headline", 0.1).examples("test")
        yes = Counter(e.stratum for e in test if e.target == "Yes")
        assert (yes["PriceOrNot"], yes["AssetComparision"], yes["FutureNews"]) == (1555, 341, 13)

    @pytest.mark.parametrize("name", LABELLED)
    def test_every_gold_label_is_asked_for_and_parses_to_itself(self, real, name):
        for split in real.dataset(name, 0.1).splits:
            for example in real.dataset(name, 0.1).examples(split):
                assert PARSERS["label"].strict(example.target, example.choices) == example.target
                assert example.target in example.messages[-1].content

    def test_repeated_headlines_are_one_group(self, real):
        groups = Counter(e.group for e in real.dataset("headline", 0.1).examples("train"))
        assert set(count % 9 for count in groups.values()) == {0}
        assert max(groups.values()) > 9

    def test_gsm8k_is_whole_and_has_no_calculator_marks(self, real):
        train = real.dataset("gsm8k", 0.1).examples("train")
        assert len(train) == 7473
        assert len(real.dataset("gsm8k", 0.1).examples("test")) == 1319
        assert not any("<<" in e.target for e in train)
        assert all(PARSERS["number"].lenient(e.target, ()) is not None for e in train)

    def test_alpaca_drops_its_two_empty_answers_and_says_so(self, real):
        report = real.dataset("alpaca", 0.1).split("train")
        assert (report.records, report.used) == (5000, 4998)
        assert report.dropped == {"empty output": 2}
        assert len(report.examples) == 4998
        prompts = [e.messages[-1].content for e in real.dataset("alpaca", 0.1).examples("train")]
        ends = ["".join(filter(str.isalpha, prompt.lower()[-12:])) for prompt in prompts]
        assert not any(end.endswith("noinput") for end in ends)

    @pytest.mark.parametrize(
        ("name", "count"),
        [("numclaim", 2144), ("fin-ner", 1164), ("convfinqa", 757), ("financial-math", 800)],
    )
    def test_validation_is_carved_from_train_where_there_is_none(self, real, name, count):
        train, held = (real.dataset(name, 0.1).examples(split) for split in ("train", "validation"))
        assert len(train) + len(held) == count
        assert 0.03 < len(held) / count < 0.2
        assert not {e.group for e in train} & {e.group for e in held}

    @pytest.mark.parametrize("name", OPEN)
    def test_every_open_gold_answer_is_read_as_itself_and_is_right(self, real, name):
        task, parser = real.get(name), PARSERS[real.get(name).parser]
        for split in real.dataset(name, 0.1).splits:
            for example in real.dataset(name, 0.1).examples(split):
                asked = [m.content for m in example.messages if m.role == "user"]
                parsed = parser.strict(example.target, task.labels or task.types)
                assert parsed is not None, (example.id, example.target)
                assert parser.same(parsed, example.target, asked), (example.id, example.target)

    def test_entities(self, real):
        def types(name, *splits):
            return Counter(e.target for s in splits for e in real.dataset(name, 0.1).examples(s))

        fin = types("fin-ner-cls", "train", "validation"), types("fin-ner-cls", "test")
        assert fin[0] == {"person": 747, "organization": 243, "location": 171}
        assert fin[1] == {"person": 216, "organization": 56, "location": 39}
        assert types("finer-ord-cls", "train") == {
            "person": 826, "location": 966, "organization": 2039,
        }  # fmt: skip
        assert types("finer-ord-cls", "test") == {
            "person": 231, "location": 229, "organization": 385,
        }  # fmt: skip

    def test_entities_of_other_types_are_counted(self, real):
        for split in ("train", "test"):
            report = real.dataset("fin-ner", 0.1).split(split)
            assert report.notes == {"entity of type MISC left out": 7}

    def test_finding_entities_and_typing_them_tell_of_the_same(self, real):
        for find, kind in (("fin-ner", "fin-ner-cls"), ("finer-ord", "finer-ord-cls")):
            found = Counter(
                (e.id, line.partition(": ")[2])
                for e in real.dataset(find, 0.1).examples("test")
                for line in e.target.splitlines()
                if line != "none"
            )
            marked = Counter(
                (
                    e.id.rpartition("/")[0],
                    re.search(r"\[\[(?!\[)(.*?)\]\]", e.messages[0].content)[1],
                )
                for e in real.dataset(kind, 0.1).examples("test")
            )
            assert found == marked

    def test_documents_are_the_groups_of_finer_ord(self, real):
        groups = [
            {e.group for e in real.dataset("finer-ord", 0.1).examples(s)} for s in ("train", "test")
        ]
        assert [len(found) for found in groups] == [135, 29]
        assert not groups[0] & groups[1]

    def test_triplets(self, real):
        for split, count in (("train", 8079), ("validation", 1554), ("test", 1194)):
            lines = [
                line
                for e in real.dataset("finred", 0.1).examples(split)
                for line in e.target.splitlines()
            ]
            assert len(lines) == count
            assert {line.split(" | ")[-2] for line in lines} <= set(real.get("finred").types)

    def test_amounts(self, real):
        for split, count in (("train", 23), ("validation", 9), ("test", 16)):
            words = [e.target for e in real.dataset("finqa", 0.1).examples(split)]
            assert sum(word in ("yes", "no") for word in words) == count
        assert real.dataset("finqa", 0.1).split("test").notes == {
            "exe_ans is empty, so answer is the truth": 2
        }
        assert real.dataset("convfinqa", 0.1).split("test").notes == {}

    @pytest.mark.parametrize(
        ("name", "split", "other", "against", "count"),
        [
            ("convfinqa", "test", "finqa", "validation", 336),
            ("convfinqa", "test", "finqa", "train", 0),
            ("convfinqa", "test", "finqa", "test", 0),
            ("finqa", "test", "finqa", "train", 2),
            ("finqa", "validation", "convfinqa", "test", 557),
            ("finqa", "validation", "finqa", "train", 0),
        ],
    )
    def test_pages_are_shared_as_the_folder_says(self, real, name, split, other, against, count):
        pages = {e.group for e in real.dataset(other, 0.1).examples(against)}
        records = {record(e): e.group for e in real.dataset(name, 0.1).examples(split)}
        assert sum(group in pages for group in records.values()) == count

    def test_ids_of_turns_end_in_their_number(self, real):
        numbers = Counter(
            e.id.rpartition("/")[2] for e in real.dataset("convfinqa", 0.1).examples("test")
        )
        assert numbers["1"] == 336 and numbers["2"] <= 336

    def test_a_long_page_is_cut_as_asked(self, real):
        cut = real.with_context("finqa", "evidence-first", 200)
        report = cut.dataset("finqa", 0.1).split("test")
        assert report.used == 915
        (noted,) = report.notes.items() - {("exe_ans is empty, so answer is the truth", 2)}
        assert noted[0] == "context cut to 200 words: evidence-first" and noted[1] > 800
        whole = {e.id: e for e in real.dataset("finqa", 0.1).examples("test")}
        for example in cut.dataset("finqa", 0.1).examples("test"):
            assert len(example.messages[0].content.split()) < 200 + 80
            assert example.target == whole[example.id].target

    def test_lima_has_29_dialogues(self, real):
        made = real.dataset("lima", 0.1).examples("train")
        assert len({e.id.rpartition("/")[0] for e in made}) == 1029
        assert len({e.id.rpartition("/")[0] for e in made if len(e.messages) > 1}) == 29


def record(example):
    """The record of an example: its id without the number of a turn."""
    return example.id.rpartition("/")[0] if example.task == "convfinqa" else example.id
