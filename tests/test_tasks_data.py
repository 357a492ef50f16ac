"""Tasks on the real datasets, where their folder is at hand."""

import os
from collections import Counter
from pathlib import Path

import pytest

from mixtune.tasks.parsers import PARSERS
from mixtune.tasks.registry import Registry


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
        ],
    )
    def test_counts(self, real, name, sizes):
        assert {split: len(real.examples(name, split, 0.1)) for split in sizes} == sizes

    def test_labels(self, real):
        fpb = Counter(e.target for e in real.examples("fpb", "test", 0.1))
        assert fpb == {"neutral": 461, "positive": 218, "negative": 97}
        tweets = Counter(e.target for e in real.examples("twitter-sentiment", "test", 0.1))
        assert tweets == {"neutral": 1253, "bullish": 380, "bearish": 278}
        test = real.examples("headline", "test", 0.1)
        yes = Counter(e.stratum for e in test if e.target == "Yes")
        assert (yes["PriceOrNot"], yes["AssetComparision"], yes["FutureNews"]) == (1555, 341, 13)

    @pytest.mark.parametrize("name", ["fpb", "twitter-sentiment", "headline"])
    def test_every_gold_label_is_asked_for_and_parses_to_itself(self, real, name):
        for split in ("train", "validation", "test"):
            for example in real.examples(name, split, 0.1):
                assert PARSERS["label"].strict(example.target, example.choices) == example.target
                assert example.target in example.messages[-1].content

    def test_repeated_headlines_are_one_group(self, real):
        groups = Counter(e.group for e in real.examples("headline", "train", 0.1))
        assert set(count % 9 for count in groups.values()) == {0}
        assert max(groups.values()) > 9

    def test_gsm8k_is_whole_and_has_no_calculator_marks(self, real):
        train = real.examples("gsm8k", "train", 0.1)
        assert len(train) == 7473
        assert len(real.examples("gsm8k", "test", 0.1)) == 1319
        assert not any("<<" in e.target for e in train)
        assert all(PARSERS["number"].lenient(e.target, ()) is not None for e in train)

    def test_alpaca_drops_its_two_empty_answers_and_says_so(self, real):
        report = real.report("alpaca", "train", 0.1)
        assert (report.records, report.kept) == (5000, 4998)
        assert report.dropped == {"empty output": 2}
        assert report.examples == 4998
        prompts = [e.messages[-1].content for e in real.examples("alpaca", "train", 0.1)]
        ends = ["".join(filter(str.isalpha, prompt.lower()[-12:])) for prompt in prompts]
        assert not any(end.endswith("noinput") for end in ends)
