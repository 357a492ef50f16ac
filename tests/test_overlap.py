"""What splits have in common, by every notion, against comparing all pairs by hand."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.datasets import leakage
from mixtune.datasets.leakage import (
    NOTIONS,
    SHORTEST_LOOSE,
    Overlaps,
    OwnText,
    Part,
    loose,
    normalise,
    shared_runs,
    words,
)

LONG = "the board of the company proposes to pay a dividend of one euro per share this year"


def part(name, *texts, split="train", groups=None, answers=None):
    """A part with a record per text."""
    groups, answers = groups or [""] * len(texts), answers or ["yes"] * len(texts)
    rows = zip(texts, groups, answers, strict=True)
    records = [OwnText(f"{name}-{n}", t, g, (a,)) for n, (t, g, a) in enumerate(rows)]
    return Part(name, split, records)


def between(test, train, length=13, **options):
    """A test part against a train part of another dataset."""
    made = Overlaps([part("a", *test, split="test", **options), part("b", *train)], length)
    found = made.between("a/test", "b/train")
    return {notion: getattr(found, notion) for notion in NOTIONS}


class TestNotions:
    @pytest.mark.parametrize(
        ("test", "train", "found"),
        [
            # equal up to case and white space
            ("Profit  ROSE\tin May", "profit rose in May", ("exact", "loose")),
            # punctuation; links of Twitter with all that hangs on them, no other links
            ("Profit rose -- in May!", "profit, rose in may", ("loose",)),
            ("Profit rose in May https://t.co/a1?x=y", "Profit rose in May", ("loose",)),
            ("WWW.a.org/b Profit rose in May", "Profit rose in May http://a.org/b", ("loose",)),
            ("WWW.a.org/b Profit rose in May", "Profit rose in May http://c.d", ()),
            # a run of words, wherever it stands, whatever signs are in it
            (f"Today {LONG}.", f"{LONG.title()}, it said", ("words",)),
            (LONG, LONG.replace(" ", "  "), ("exact", "loose", "words")),
            (" ".join(LONG.split()[:12]) + " a", f"{LONG}", ()),
            (" ".join(LONG.split()[:13]) + " a", f"so {LONG}", ("words",)),
            # other scripts; one letter of another width is another letter
            ("Прибыль ВЫРОСЛА в мае", "прибыль выросла в мае!", ("loose",)),
            ("多年策略性協議贏得獎項", "多年策略性協議贏得獎項。", ("loose",)),
            ("STRASSE nach Süden hin", "straße nach süden hin", ("exact", "loose")),
            ("é" * 9, "e\u0301" * 9, ()),
            ("ＧＯＬＤ is up again", "GOLD is up again", ()),
            # short texts and texts without letters or digits: as they stand, or not at all
            ("7 - 3", "73", ()),
            ("7 - 3", "7  -  3", ("exact",)),
            ("!!!", "???", ()),
            ("!!!", "!!!", ("exact",)),
            ("a-b-c-d-e-f-g-h", "ABCDEFGH", ("loose",)),
            ("a-b-c-d-e-f-g", "ABCDEFG", ()),
            # nothing is not the same as nothing
            ("", "", ()),
            (" \n", "\t", ()),
        ],
    )
    def test_by_hand(self, test, train, found):
        wanted = {notion: int(notion in found) for notion in NOTIONS}
        assert between([test], [train]) == wanted
        assert between([train], [test]) == wanted

    def test_records_are_counted_not_matches(self):
        assert between(["one text here"], ["one text here"] * 3)["exact"] == 1
        assert between(["one text here"] * 3, ["one text here"])["exact"] == 3
        assert between([f"{LONG} {LONG}"], [LONG, LONG])["words"] == 1

    def test_words_is_as_long_as_asked(self):
        assert between(["a b c d"], ["x b c d"], 3)["words"] == 1
        assert between(["a b c d"], ["x b c d"], 4)["words"] == 0
        assert between(["a b"], ["a b"], 13) == {"exact": 1, "loose": 0, "words": 0, "group": 0}

    def test_a_run_does_not_go_from_one_text_into_the_next(self):
        half = LONG.split()
        assert between([LONG], [" ".join(half[:8]), " ".join(half[8:])])["words"] == 0

    def test_groups_that_are_texts_are_compared_across_datasets_numbers_are_not(self):
        def groups(one, other, name="b"):
            made = [
                part("a", "some question", split="test", groups=[one]),
                part(name, "another question", groups=[other]),
            ]
            return Overlaps(made).between("a/test", f"{name}/train").group

        assert groups("The whole page, 2012", "the whole page 2012") == 1
        assert groups("12", "12") == 0
        assert groups("12", "12", "a") == 1
        assert groups("", "", "a") == 0


class TestCounts:
    """What is said of a pair of splits, and of one."""

    TRAIN = part("a", "One text.", "one  text.", "another text", answers=["x", "y", "x"])
    TEST = part("a", "ONE TEXT.", "Another text", "one text", split="test", answers="xyx")

    def test_relabelled_are_those_that_no_equal_text_has_the_answer_of(self):
        found = Overlaps([self.TRAIN, self.TEST]).between("a/test", "a/train")
        assert (found.records, found.exact, found.relabelled) == (3, 2, 1)
        assert (found.loose, found.repeated_by) == (1, 3)

    def test_answers_of_different_datasets_are_not_compared(self):
        other = part("b", "one text", answers=["z"])
        assert Overlaps([self.TEST, other]).between("a/test", "b/train").relabelled is None

    def test_repeats_inside_a_split(self):
        found = Overlaps([self.TRAIN, self.TEST]).within("a/train")
        assert (found.records, found.exact, found.loose, found.ambiguous) == (3, 1, 0, 1)
        assert Overlaps([self.TEST]).within("a/test").exact == 0
        tweets = part(
            "t", "gold is up https://t.co/a", "gold is up https://t.co/b", "Gold: up https://a.b"
        )
        assert Overlaps([tweets]).within("t/train").loose == 1

    def test_pairs_name_the_first_that_match(self):
        made = Overlaps([self.TRAIN, self.TEST])
        found = made.pairs("exact", "a/test", "a/train", 5)
        assert found == [("a-0", "a-0"), ("a-1", "a-2")]
        assert made.pairs("exact", "a/test", "a/train", 1) == found[:1]
        assert made.matches("exact", "a/train", "a/test") == ["a-0", "a-1", "a-2"]

    def test_nothing_at_all(self):
        made = Overlaps([part("a"), part("b", split="test")])
        found = made.between("b/test", "a/train")
        assert not found.found
        assert (found.records, made.within("a/train").records) == (0, 0)
        assert shared_runs([], 13)[0].size == 0


# A few words, so that much is shared.
TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=9), max_size=6)


def naive_runs(texts, length):
    """Text → its runs that stand at two places or more, by looking at all."""
    runs = [tuple(text[at : at + length]) for text in texts for at in range(len(text) - length + 1)]
    shared = {run for run, count in Counter(runs).items() if count > 1}
    return [
        {tuple(t[at : at + length]) for at in range(len(t) - length + 1)} & shared for t in texts
    ]


@given(TEXTS, st.integers(1, 6))
def test_shared_runs_are_those_of_comparing_all(texts, length):
    owners, numbers = shared_runs(texts, length)
    wanted = naive_runs(texts, length)
    assert list(owners) == [n for n, runs in enumerate(wanted) for _ in runs]
    got = [set(numbers[owners == n].tolist()) for n in range(len(texts))]
    for one in range(len(texts)):
        for other in range(len(texts)):
            assert bool(got[one] & got[other]) == bool(wanted[one] & wanted[other])
            assert len(got[one] & got[other]) == len(wanted[one] & wanted[other])


PIECES = st.lists(
    st.sampled_from(["gold", "GOLD", "up", "down", "-", " ", "!", "https://t.co/a", "9"]),
    max_size=7,
).map(" ".join)


def naive(notion, one, other, length):
    """Whether two texts match."""
    if notion == "exact":
        return bool(normalise(one)) and normalise(one) == normalise(other)
    if notion == "loose":
        return len(loose(one)) >= SHORTEST_LOOSE and loose(one) == loose(other)
    runs = [{tuple(w[i : i + length]) for i in range(len(w) - length + 1)}
            for w in (words(one), words(other))]  # fmt: skip
    return bool(runs[0] & runs[1])


@given(st.lists(PIECES, max_size=6), st.lists(PIECES, max_size=6), st.integers(2, 4))
def test_counts_are_those_of_comparing_every_pair(test, train, length):
    found = between(test, train, length)
    for notion in ("exact", "loose", "words"):
        wanted = sum(any(naive(notion, one, other, length) for other in train) for one in test)
        assert found[notion] == wanted


def test_a_collision_of_hashes_makes_no_match(monkeypatch):
    """The multiplier 1 gives the sum of the words, which two orders of them have in common."""
    texts = [["a", "b", "c"], ["c", "b", "a"], ["x", "a", "b"]]
    multipliers = iter([np.uint64(1), np.uint64(3), np.uint64(5)])
    monkeypatch.setattr(leakage, "_multipliers", lambda: multipliers)
    owners, numbers = shared_runs(texts, 2)
    assert (list(owners), len(set(numbers))) == ([0, 2], 1)
    assert len(list(multipliers)) == 1


def test_equal_numbers_mean_equal_words_for_a_hundred_thousand_runs():
    """A number is the place of a run's first occurrence, so no two runs can share one."""
    rng = np.random.default_rng(0)
    texts = [[str(w) for w in rng.integers(0, 6, 60)] for _ in range(2000)]
    owners, numbers = shared_runs(texts, 5)
    wanted = naive_runs(texts, 5)
    assert [len(runs) for runs in wanted] == np.bincount(owners, minlength=2000).tolist()
    assert len(np.unique(numbers)) == len(set().union(*wanted))


def test_memory_grows_with_the_text_not_with_its_square():
    def peak(size):
        rng = np.random.default_rng(1)
        texts = [" ".join(map(str, rng.integers(0, 5000, 40))) for _ in range(size)]
        parts = [part("a", *texts[::2], split="test"), part("a", *texts[1::2])]
        tracemalloc.start()
        Overlaps(parts)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    sizes = [peak(size) for size in (500, 1_000, 2_000)]
    assert all(large < 3 * small for small, large in pairwise(sizes))
