"""Predictions, scores and the two models that need no weights."""

import math
from dataclasses import replace

import pytest
from scripted import ScriptedModel

from mixtune.errors import DataError, RunFailed
from mixtune.evaluation import answers as score_module
from mixtune.evaluation.answers import predict, score, score_version
from mixtune.identity import digest
from mixtune.models.base import MajorityModel
from mixtune.records import Answer, Example, Message, Query
from mixtune.tasks import metrics
from mixtune.tasks.task import parse_task

LABELS = ("down", "flat", "up")
TASK = """
name: moves
title: Moves
about: toy
version: 1
kind: label
labels: [down, flat, up]
prompt: "Is it down, flat or up? {{ text }}"
fields: {label: label}
parser: label
metrics: [accuracy, macro-f1]
source: {toy: {}}
licence: none
"""
OPEN = """
name: sums
title: Sums
about: toy
version: 1
kind: open
prompt: "{{ text }}"
target: "{{ answer }}"
parser: number
metrics: [accuracy]
source: {toy: {}}
licence: none
"""


@pytest.fixture(scope="module")
def task():
    return parse_task(TASK, "moves.yaml")


@pytest.fixture(scope="module")
def entities():
    task = OPEN.replace("sums", "people").replace("number", "spans").replace("accuracy", "span-f1")
    task = task.replace("{{ text }}", "PER or ORG? {{ text }}")
    return parse_task(task + "types: [PER, ORG]\n", "people.yaml")


@pytest.fixture(scope="module")
def shares():
    return parse_task(OPEN.replace("sums", "shares").replace("number", "amount"), "shares.yaml")


@pytest.fixture(scope="module")
def sums():
    return parse_task(OPEN, "sums.yaml")


def example(number, target="up", stratum="", split="validation", task="moves", choices=LABELS):
    text = Message("user", f"question {number}")
    name = str(number)
    return Example(task, name, split, f"g{number}", stratum, (text,), target, choices)


def hash_of(query):
    return f"hash of {query.id}"


def run(model, examples, form="strict"):
    return predict(model, examples, form, "validation", 8, hash_of)


# predict


def test_a_model_never_sees_a_target():
    seen = []

    def script(query):
        seen.append(query)
        return "up"

    examples = [example(1, "down"), example(2, "flat")]
    run(ScriptedModel(script), examples)
    run(ScriptedModel(script), examples, "constrained")
    assert len(seen) == 4
    assert all(type(query) is Query and not hasattr(query, "target") for query in seen)


def test_predictions_keep_order_prompt_and_answer():
    rows = run(ScriptedModel({"1": "up", "2": "no idea"}, "s"), [example(2), example(1)])
    assert [(r.example, r.output, r.system) for r in rows] == [
        ("2", "no idea", "s"),
        ("1", "up", "s"),
    ]
    assert rows[0].prompt_hash == "hash of 2"
    assert (rows[0].split, rows[0].form, rows[0].logprobs) == ("validation", "strict", ())


@pytest.mark.parametrize(
    "logprobs",
    [(-0.1, -3.0), (-0.1, -3.0, math.nan), (-0.1, -3.0, -math.inf), ()],
)
def test_unusable_log_probabilities_fail_the_run(logprobs):
    model = ScriptedModel({"1": Answer("up", logprobs)})
    with pytest.raises(RunFailed, match="log-probabilit"):
        run(model, [example(1)], "constrained")


def test_a_missing_answer_fails_the_run():
    class Short(ScriptedModel):
        def generate(self, queries, max_new_tokens):
            return super().generate(queries, max_new_tokens)[:-1]

    with pytest.raises(RunFailed, match="1 answers to 2 queries"):
        run(Short({"1": "up", "2": "up"}), [example(1), example(2)])


@pytest.mark.parametrize("answer", [Answer("up", latency=math.nan), Answer("up", finish="eos")])
def test_an_answer_out_of_form_fails_the_run(answer):
    with pytest.raises(RunFailed):
        run(ScriptedModel({"1": answer}), [example(1)])


def test_examples_that_cannot_be_asked_are_refused():
    model = ScriptedModel({"1": "up"})
    with pytest.raises(DataError, match="another split"):
        run(model, [example(1, split="test")])
    with pytest.raises(DataError, match="twice"):
        run(model, [example(1), example(1)])
    with pytest.raises(DataError, match="cannot be ranked"):
        run(model, [example(1, choices=())], "constrained")


# score


def test_four_statuses(task):
    """Wrong, unparsed, cut off and refused are four things; an infrastructure error has no row."""
    said = {
        "1": "up",
        "2": "down",
        "3": "I would say up",
        "4": Answer("up", finish="length"),
        "5": Answer("", finish="refused"),
    }
    examples = [example(n) for n in range(1, 6)]
    scores = score(run(ScriptedModel(said), examples), examples, task)
    strict, lenient = scores[:5], scores[5:]
    assert [(s.form, s.status, s.parsed, s.value) for s in strict] == [
        ("strict", "ok", "up", 1.0),
        ("strict", "ok", "down", 0.0),
        ("strict", "unparsed", None, 0.0),
        ("strict", "truncated", None, 0.0),
        ("strict", "refused", None, 0.0),
    ]
    assert [(s.form, s.status, s.parsed, s.value) for s in lenient] == [
        ("lenient", "ok", "up", 1.0),
        ("lenient", "ok", "down", 0.0),
        ("lenient", "ok", "up", 1.0),
        ("lenient", "ok", "up", 1.0),  # cut off behind the one label that it names
        ("lenient", "refused", None, 0.0),
    ]
    assert [s.example for s in lenient] == [s.example for s in strict]
    with pytest.raises(RunFailed):
        run(ScriptedModel(said, fail_at=1), examples)


def test_the_likeliest_choice_is_the_constrained_answer(task):
    said = {
        "1": Answer("", (-3.0, -2.0, -1.0)),
        "2": Answer("", (-1.0, -2.0, -1.0)),  # a tie: the first in order of choices
        "3": Answer("", (), finish="refused"),
    }
    examples = [example(n) for n in (1, 2, 3)]
    scores = score(run(ScriptedModel(said), examples, "constrained"), examples, task)
    assert [(s.status, s.parsed, s.value) for s in scores] == [
        ("ok", "up", 1.0),
        ("ok", "down", 0.0),
        ("refused", None, 0.0),
    ]


def test_a_score_carries_what_intervals_need(task):
    examples = [replace(example(1), stratum="q3", group="a page")]
    rows = score(run(ScriptedModel({"1": "up"}), examples), examples, task)
    assert [row.form for row in rows] == ["strict", "lenient"]
    for row in rows:
        assert (row.group, row.stratum, row.gold) == ("a page", "q3", "up")


def test_open_answers_are_compared_by_the_parser(sums):
    examples = [example(n, t, task="sums", choices=()) for n, t in ((1, "12"), (2, "12"))]
    model = ScriptedModel({"1": "12.0", "2": "twelve"})
    scores = score(run(model, examples), examples, sums)
    assert [(s.value, s.status) for s in scores] == [(1.0, "ok"), (0.0, "unparsed")] * 2


def test_every_prediction_has_its_example_and_the_reverse(task):
    examples = [example(1), example(2)]
    rows = run(ScriptedModel(lambda query: "up"), examples)
    for answers, asked, found in (
        (rows, examples[:1], "2 answers to 1 of 1"),
        (rows[:1], examples, "1 answers to 1 of 2"),
        ([*rows, rows[0]], examples, "3 answers to 2 of 2"),
        ([rows[0], rows[0]], examples, "2 answers to 1 of 2"),
    ):
        with pytest.raises(DataError, match=rf"(?s)not one answer to each.*{found} examples"):
            score(answers, asked, task)


def test_two_systems_may_be_scored_at_once(task):
    examples = [example(1)]
    rows = [r for s in "ab" for r in run(ScriptedModel({"1": "up"}, s), examples)]
    assert [s.system for s in score(rows, examples, task)] == ["a", "b"] * 2


def test_the_score_version_follows_parser_and_metrics(task, sums, monkeypatch):
    before = score_version(task, "strict")
    assert before == score_version(parse_task(TASK, "elsewhere.yaml"), "strict")
    assert before != score_version(sums, "strict")
    fewer = parse_task(TASK.replace(", macro-f1", ""), "moves.yaml")
    assert before != score_version(fewer, "strict")
    ranked = score_version(task, "constrained")
    parts = {"score": 1, "metrics": metrics.VERSION, "parser": task.parser_version}
    assert ranked == digest(parts)  # as before there were lenient readings
    monkeypatch.setitem(score_module.VERSIONS, "strict", 99)
    assert score_version(task, "strict") != before
    assert score_version(task, "constrained") == ranked


def test_a_list_is_right_as_a_whole_and_is_kept_one_item_a_line(entities):
    said = {
        "1": "ORG: B\nPER: A",
        "2": "- per: A",
        "3": Answer("PER: A", finish="length"),
    }
    examples = [example(n, "PER: A\nORG: B", task="people", choices=()) for n in (1, 2, 3)]
    scores = score(run(ScriptedModel(said), examples), examples, entities)
    assert [(s.form, s.status, s.parsed, s.value) for s in scores] == [
        ("strict", "ok", "ORG: B\nPER: A", 1.0),
        ("strict", "unparsed", None, 0.0),
        ("strict", "truncated", None, 0.0),
        ("lenient", "ok", "ORG: B\nPER: A", 1.0),
        ("lenient", "ok", "PER: A", 0.0),
        ("lenient", "truncated", None, 0.0),
    ]


def test_the_question_may_name_the_unit(shares):
    asked = [Message("user", "What is the ratio?"), Message("user", "What is that in percent?")]
    examples = [
        replace(example(n, "0.25", task="shares", choices=()), messages=(message,))
        for n, message in enumerate(asked)
    ]
    scores = score(run(ScriptedModel(lambda query: "25"), examples), examples, shares)
    assert [s.value for s in scores] == [0.0, 1.0] * 2


# models


def train(target, stratum="", number=1):
    return example(number, target, stratum, "train")


def test_majority_is_taken_per_stratum():
    rows = [train("up", "a"), train("up", "a"), train("down", "a"), train("flat", "b")]
    model = MajorityModel(rows)
    examples = [example(1, stratum="a"), example(2, stratum="b"), example(3, stratum="new")]
    for form in ("strict", "constrained"):
        assert [r.output for r in run(model, examples, form)] == ["up", "flat", "up"]


def test_majority_ranks_by_smoothed_train_frequency():
    model = MajorityModel([train("up"), train("up"), train("down")])
    (row,) = run(model, [example(1)], "constrained")
    assert [math.exp(x) for x in row.logprobs] == pytest.approx([2 / 6, 1 / 6, 3 / 6])


@pytest.mark.parametrize("targets", [("up", "down"), ("down", "up")])
def test_majority_ties_agree_between_the_forms(task, targets):
    model = MajorityModel([train(target) for target in targets])
    examples = [example(1)]
    rows = run(model, examples) + run(model, examples, "constrained")
    assert [s.parsed for s in score(rows, examples, task)] == ["down"] * 3


def test_majority_answers_open_questions_too():
    rows = [replace(train(t), choices=()) for t in ("4", "7", "7")]
    assert run(MajorityModel(rows), [example(1, choices=())])[0].output == "7"


def test_majority_needs_train_rows():
    with pytest.raises(DataError, match="needs train rows"):
        MajorityModel([])


def test_a_script_fails_at_the_call_it_is_told():
    model = ScriptedModel({"1": "up"}, fail_at=2, error=RunFailed("power cut"))
    run(model, [example(1)])
    with pytest.raises(RunFailed, match="power cut"):
        run(model, [example(1)], "constrained")
    assert run(model, [example(1)])[0].output == "up"


def test_a_script_names_a_choice_or_nothing_at_all():
    (row,) = run(ScriptedModel({"1": "up"}), [example(1)], "constrained")
    assert sum(math.exp(x) for x in row.logprobs) == pytest.approx(1)
    with pytest.raises(RunFailed, match="no choice"):
        run(ScriptedModel({"1": "sideways"}), [example(1)], "constrained")
    with pytest.raises(RunFailed, match="no script"):
        run(ScriptedModel({}), [example(1)])
