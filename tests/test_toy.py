"""The embedded suite: same everywhere, clean splits, and the relations really built in."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from own_kit import examples_of

from mixtune.datasets.leakage import find_leaked, loose
from mixtune.datasets.toy import RELATIONS, SIZES, TOY, fact_half, records, split_of, words
from mixtune.errors import SpecError
from mixtune.identity import digest
from mixtune.tasks.task import parse_task

LABEL_TASKS = tuple(n for n in TOY if n.split("-")[1] not in ("table", "maths", "general"))
REPOSITORY = Path(__file__).parent.parent
BUILTIN = REPOSITORY / "mixtune" / "tasks" / "builtin"


@cache
def task(name):
    return parse_task((BUILTIN / f"{name}.yaml").read_text(encoding="utf-8"), name)


@cache
def examples(name, split):
    return [e for r in records(name, split) for e in examples_of(task(name), r, split, where=name)]


def texts(name, split):
    return [record["text"] for record in records(name, split)]


def test_records_are_the_same_on_every_machine():
    everything = [[name, split, records(name, split)] for name in TOY for split in SIZES]
    assert digest(everything) == "2773fb1f5414cf64"


def test_records_handed_out_are_copies():
    records("toy-rise", "train")[0]["text"] = "changed"
    assert records("toy-rise", "train")[0]["text"] != "changed"


@pytest.mark.parametrize("name", TOY)
def test_every_split_has_its_size_and_distinct_texts_and_ids(name):
    for split, size in SIZES.items():
        rows = records(name, split)
        assert len(rows) == size
        assert len({loose(row["text"]) for row in rows}) == size
        assert [row["id"] for row in rows] == [f"{split}-{n}" for n in range(size)]


def test_no_text_stands_in_two_splits_of_any_tasks():
    where = {}
    for name in TOY:
        for split in SIZES:
            for text in texts(name, split):
                assert split_of(text) == split
                assert where.setdefault(loose(text), split) == split


def test_no_example_leaks_across_the_whole_suite():
    later = [e for name in TOY for split in ("validation", "test") for e in examples(name, split)]
    test = [e for e in later if e.split == "test"]
    for name in TOY:
        assert find_leaked(examples(name, "train"), later) == {}
        assert find_leaked(examples(name, "validation"), test) == {}


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_majority_is_near_chance_and_measurable(name):
    labels = task(name).labels
    for split in SIZES:
        counts = Counter(record["label"] for record in records(name, split))
        assert set(counts) == set(labels)
        (_, most), (_, second) = counts.most_common(2)
        assert most > second
        assert 1 / len(labels) < most / SIZES[split] < 1 / len(labels) + 0.04


@pytest.mark.parametrize("name", TOY)
def test_the_task_file_says_synthetic_and_fits_its_records(name):
    spec = task(name)
    assert spec.name == name
    assert spec.synthetic
    assert spec.title.endswith("(synthetic)")
    assert spec.licence == "CC0-1.0"
    for example in examples(name, "test"):
        assert example.target in (spec.labels or (example.target,))


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_labels_in_the_prompt_are_the_labels_in_the_targets(name):
    spec = task(name)
    question = spec.prompt.split("{{")[0]
    for label in {example.target for example in examples(name, "train")}:
        assert re.search(rf"\b{label}\b", question)


def test_only_maths_and_general_are_ingredients_only():
    assert [name for name in TOY if not task(name).scored] == ["toy-maths", "toy-general"]


# the relations, each shown to be in the rows


HALVES = {
    word: half
    for tone in words()["tones"].values()
    for half, lists in tone.items()
    for word in (*lists["english"], *lists["invented"])
}
"""Tone word → its half."""


def tone_halves(name, split):
    found = re.findall(r"[a-z]+", " ".join(texts(name, split)).lower())
    return Counter(HALVES[word] for word in found if word in HALVES)


def test_sentiment_and_mood_train_on_different_halves_of_the_tone_words():
    assert set(tone_halves("toy-sentiment", "train")) == {"a"}
    assert set(tone_halves("toy-mood", "train")) == {"b"}


@pytest.mark.parametrize("name", ["toy-sentiment", "toy-mood"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_sentiment_and_mood_are_evaluated_on_both_halves_alike(name, split):
    halves = tone_halves(name, split)
    assert sum(halves.values()) == SIZES[split]
    assert 0.4 < halves["a"] / SIZES[split] < 0.6


def test_a_tone_word_has_the_same_meaning_in_both_tasks():
    same = {"bullish": "positive", "bearish": "negative", "flat": "neutral"}
    meanings = {}
    for name in ("toy-sentiment", "toy-mood"):
        for record in records(name, "test"):
            (word,) = [w for w in re.findall(r"[a-z]+", record["text"].lower()) if w in HALVES]
            negated = re.search(rf"(no longer|hardly|far from) {word}", record["text"])
            label = same.get(record["label"], record["label"])
            meanings.setdefault((word, bool(negated)), set()).add(label)
    assert all(len(labels) == 1 for labels in meanings.values())
    plain = {word: labels for (word, negated), labels in meanings.items() if not negated}
    assert len(plain) == 42
    negated = {word: labels for (word, negated), labels in meanings.items() if negated}
    assert len(negated) > 10
    assert all(labels != plain[word] for word, labels in negated.items())


def asked_sum(text):
    """Sign and the two numbers that a toy-table or toy-maths text asks about, or None."""
    if cells := re.search(r"What is ([a-z]+) (plus|minus) ([a-z]+)", text):
        table = {name: int(value) for name, value in re.findall(r"([a-z]+) (\d+)", text)}
        left, word, right = cells.groups()
        return ("+" if word == "plus" else "-"), table[left], table[right]
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) == 3:
        return None
    taken = re.search(r"minus|sells|paid|lost", text)
    return ("-" if taken else "+"), *numbers


@pytest.mark.parametrize(("name", "half"), [("toy-table", "a"), ("toy-maths", "b")])
def test_table_and_maths_train_on_different_halves_of_the_sums(name, half):
    sums = [found for text in texts(name, "train") if (found := asked_sum(text))]
    assert len(sums) > 400
    assert {fact_half(*found) for found in sums} == {half}


def test_the_table_is_tested_on_both_halves_of_the_sums():
    sums = [found for text in texts("toy-table", "test") if (found := asked_sum(text))]
    halves = Counter(fact_half(*found) for found in sums)
    assert min(halves.values()) > 0.35 * len(sums)


@pytest.mark.parametrize("name", ["toy-table", "toy-maths"])
@pytest.mark.parametrize("split", SIZES)
def test_sums_are_right_and_small(name, split):
    for record in records(name, split):
        answer = int(record["label"])
        assert 1 <= answer <= 30
        if found := asked_sum(record["text"]):
            sign, left, right = found
            assert answer == (left + right if sign == "+" else left - right)
        else:
            wanted = re.search(r"What is ([a-z]+)\?", record["text"])[1]
            assert f"{wanted} {answer}" in record["text"]


def test_a_sum_is_in_one_half_whichever_number_comes_first():
    pairs = [(left, right) for left in range(2, 16) for right in range(2, left)]
    assert all(fact_half("+", x, y) == fact_half("+", y, x) for x, y in pairs)
    halves = Counter(fact_half(sign, x, y) for sign in "+-" for x, y in pairs)
    assert min(halves.values()) > 60


def rises(text):
    if numbers := re.search(r"(\d+) last year, (\d+)|from (\d+) to (\d+)\.", text):
        first, second = (int(n) for n in numbers.groups() if n)
        if " went " in text or "last year" in text:
            return second > first
    if numbers := re.search(r"at (\d+), after (\d+)", text):
        return int(numbers[1]) > int(numbers[2])
    return bool(re.search(r"climbed|grew|gained|rose|advanced|jumped|improved|swelled", text))


@pytest.mark.parametrize("split", SIZES)
def test_rise_and_fall_answer_the_same_kind_of_text_with_opposite_words(split):
    for name, when_up in (("toy-rise", "yes"), ("toy-fall", "no")):
        for record in records(name, split):
            assert (record["label"] == when_up) == rises(record["text"])


def test_rise_and_fall_prompts_differ_in_one_word():
    rise, fall = (task(name).prompt.split() for name in ("toy-rise", "toy-fall"))
    assert [pair for pair in zip(rise, fall, strict=True) if pair[0] != pair[1]] == [
        ("rise?", "fall?")
    ]


def test_topic_and_entity_share_no_answer_and_no_sentence():
    assert not set(task("toy-topic").labels) & set(task("toy-entity").labels)
    shared = {loose(t) for t in texts("toy-topic", "train")}
    assert not shared & {loose(t) for t in texts("toy-entity", "train")}


def test_no_name_gives_away_an_entitys_type():
    seen = {}
    for record in records("toy-entity", "train"):
        name = re.search(r"\[(\w+)\]", record["text"])[1]
        seen.setdefault(name, set()).add(record["label"])
    assert all(len(labels) == 3 for labels in seen.values())


@pytest.mark.parametrize("name", ["toy-topic", "toy-entity", "toy-rise"])
def test_test_rows_hold_words_that_train_rows_lack(name):
    train, test = (
        {word for text in texts(name, split) for word in re.findall(r"[a-z]+", text)}
        for split in ("train", "test")
    )
    assert len(test - train) >= 4


def test_relations_name_tasks_once_per_pair():
    pairs = [(relation.ingredient, relation.target) for relation in RELATIONS]
    assert len(set(pairs)) == len(pairs)
    for ingredient, target in pairs:
        assert ingredient in TOY
        assert ingredient != target
        assert task(target).scored


def test_every_signed_relation_has_a_neutral_ingredient_to_compare_with():
    neutral = {relation.target for relation in RELATIONS if relation.sign == "0"}
    assert {relation.target for relation in RELATIONS} == neutral
    assert {relation.sign for relation in RELATIONS} == {"+", "-", "0"}


def test_the_document_lists_the_same_relations_and_their_date():
    document = (REPOSITORY / "docs" / "embedded-suite.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(toy-\w+)` \| `(toy-\w+)` \| ([+−0]) \|", document, re.MULTILINE)
    written = [(r.ingredient, r.target, r.sign.replace("-", "−")) for r in RELATIONS]
    assert listed == written
    assert "2026-11-22" in document


def test_an_unknown_name_is_refused_with_a_hint():
    with pytest.raises(SpecError, match="did you mean 'toy-maths'"):
        records("toy-math", "train")
