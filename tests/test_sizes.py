"""Lengths of rows for a plan: those of the rows that are trained on, each text encoded once."""

from dataclasses import replace

import pytest
from study_kit import registry, study, training_rows

from mixtune.errors import DataError
from mixtune.planning.mixing import Sizes
from mixtune.planning.plan import Planner
from mixtune.records import Example, Message, ReasonedText, TrainExample
from mixtune.tokens import Tokens, encode_rows

ANSWERS = ("wet", "dry", "\nwet", " dry", "two words", "é漢字")


@pytest.fixture(scope="module")
def tokens(files):
    return Tokens.load(files.folder)


def example(number, target="wet"):
    asked = (Message("user", f"What is report {number}? " + "rain " * number),)
    return Example("north", f"n{number}", "train", "", "", asked, target)


def named(count=8):
    return [TrainExample("north", example(i, ANSWERS[i % len(ANSWERS)])) for i in range(count)]


class Counted(Tokens):
    """Counts texts that are encoded."""

    def __init__(self, other):
        self.__dict__ = dict(other.__dict__)
        self.encoded = []

    def _encode_all(self, texts):
        held = list(texts)
        self.encoded += held
        return super()._encode_all(held)


def test_they_are_those_of_the_rows(tokens):
    rows = encode_rows(named(), tokens, 10**6, "error").rows
    sizes = Sizes(tokens).rows(named())
    wanted = [(r.ingredient, r.example_id, r.length, r.supervised) for r in rows]
    assert [(s.ingredient, s.example_id, s.length, s.supervised) for s in sizes] == wanted


def test_many_at_once_are_encoded_as_one_by_one(tokens, monkeypatch):
    monkeypatch.setattr("mixtune.tokens.chat._BATCH", 3)
    asked = [e.messages for _, e in named()]
    assert list(tokens.batch_prompt_ids(asked)) == [tokens.prompt_ids(m) for m in asked]
    answers = [ReasonedText("", answer) for answer in ANSWERS]
    assert list(tokens.batch_answer_ids(answers)) == [tokens.answer_ids(a) for a in ANSWERS]
    assert list(tokens.batch_prompt_ids([])) == []


def test_each_text_is_encoded_once(tokens):
    counted, rows = Counted(tokens), named()
    sizes = Sizes(counted)
    first = sizes.rows(rows)
    before = len(counted.encoded)
    assert before == len(rows) + 2 * len(ANSWERS), "prompts; answers alone and behind a prompt"
    assert sizes.rows(rows * 3) == first * 3
    assert sizes.prompts([e for _, e in rows]) == [r.length - r.supervised for r in first]
    assert len(counted.encoded) == before


@pytest.mark.parametrize("bad", ["", " \n", "yes<|im_end|>no", "long"])
def test_what_is_refused_is_refused_in_the_same_words(tokens, bad):
    end = tokens.decode([]) + "<|im_end|>"
    if "im_end" in bad and not tokens.with_control_token([end]):
        pytest.skip("the tiny tokenizer has another end of turn")
    rows = [
        *named(3),
        TrainExample("north", example(50 if bad == "long" else 3, "wet" if bad == "long" else bad)),
    ]
    limit = 60
    with pytest.raises(DataError) as wanted:
        encode_rows(rows, tokens, limit, "error")
    with pytest.raises(DataError) as found:
        Sizes(tokens).rows(rows, limit)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("flaws", [{}, {"packing_leaks": True}])
def test_a_plan_counts_what_its_runs_train_on(data, files, flaws):
    asked = study(flaws=flaws, design=["singles", "all"], train={"over_long": "drop", "rank": 2})
    planner = Planner(asked, registry(data), files)
    runs = [run for run in planner.plan().runs if run.kind == "trained"]
    assert len(runs) == 3
    for run in runs:
        assert run.tokens == sum(row.length for row in training_rows(planner, run))


def test_over_long_rows_are_dropped_by_their_length(data, files):
    lengths = [row.length for row in Planner(study(), registry(data), files).distinct_rows()]
    limit = max(lengths) - 1
    train = {"over_long": "drop", "rank": 2, "max_length": limit}
    planner = Planner(study(train=train), registry(data), files)
    assert sum(planner.dropped.values()) > 0
    pools = planner.corpus.pools.items()
    rows = [(name, replace(e)) for name, pool in pools for e in pool]
    assert encode_rows(rows, planner.tokens, limit, "drop").dropped == {"north": 0, "south": 0}
