"""Reasoning before an answer: stored with it, trained on or not, never parsed as the answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_kit import study, tasks, write_data

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError
from mixtune.evaluation.answers import Questions, predict_queries
from mixtune.planning.plan import Planner
from mixtune.records import REASONING_BLOCKS, Answer, Message, Query
from mixtune.tasks.reasoning import split_reasoning
from mixtune.tasks.record import read_dialogue
from mixtune.tasks.task import parse_task


@pytest.mark.parametrize(
    ("output", "reasoning", "answer"),
    [
        ("positive", "", "positive"),
        ("<think>\nIt rose.\n</think>\n\npositive", "It rose.", "positive"),
        ("<think></think>positive", "", "positive"),
        ("  \n<think>a</think>\n4 < 5", "a", "4 < 5"),
        # The generation prompt has opened the block.
        ("It rose.\n</think>\n\npositive", "It rose.", "positive"),
        # Cut off while it reasons: a label inside is no answer.
        ("<think>\nIs it positive", "Is it positive", ""),
        ("[THINK]x[/THINK]4", "x", "4"),
        ("<|channel|>analysis<|message|>no<|channel|>final<|message|>yes", "no", "yes"),
        ("<|channel>thought\nno<channel|>yes", "no", "yes"),
        ("<|channel|>analysis<|message|>yes", "yes", ""),
        # The answer has a turn of its own; special tokens may have been left out.
        (
            "<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>y",
            "no",
            "y",
        ),
        ("<|channel|>analysis<|message|>noassistant<|channel|>final<|message|>y", "no", "y"),
        (" to=self<|message|>no<|eom|><|start|>assistant to=user<|message|>y", "no", "y"),
        (" to=user<|message|>y", "", "y"),
        # A block inside an answer is part of it.
        ("The tag <think> opens it.", "", "The tag <think> opens it."),
        ("Use <think>x</think> here", "", "Use <think>x</think> here"),
    ],
)
def test_an_output_in_two(output, reasoning, answer):
    assert split_reasoning(output) == (reasoning, answer)


@given(
    st.text(st.characters(exclude_characters="<>[]", exclude_categories=("Cs",))),
    st.text(st.characters(exclude_characters="<>[]", exclude_categories=("Cs",))),
    st.sampled_from(REASONING_BLOCKS),
)
def test_every_block_comes_off_whole(reasoning, answer, block):
    split = split_reasoning(f"{block.opening}{reasoning}{block.closing}{answer}")
    assert split.reasoning == reasoning.strip()
    assert split.answer == answer.lstrip("\r\n")
    assert split_reasoning(block.opening + reasoning).answer == ""


class Thinker:
    """A model whose answers have reasoning in the text, or in a field of their own."""

    system = "thinker"

    def generate(self, queries, max_new_tokens):
        texts = ("<think>\nup or down?\n</think>\n\nup", "up", "<think>\nup")
        finishes = ("stop", "stop", "length")
        fields = ("", "up or down?", "")
        return [
            Answer(text, finish=finish, reasoning=reasoning)
            for text, finish, reasoning in zip(texts, finishes, fields, strict=True)
        ]


def test_a_prediction_has_both():
    queries = tuple(Query(str(i), "", (Message("user", "?"),), ()) for i in range(3))
    rows = predict_queries(Thinker(), Questions("t", "test", queries), "strict", 8, lambda _: "")
    assert [row.output for row in rows] == ["up", "up", ""]
    assert [row.reasoning for row in rows] == ["up or down?", "up or down?", "up"]
    assert [row.finish for row in rows] == ["stop", "stop", "length"]


# ---- rows to train on ----------------------------------------------------------------------------

ROWS = [
    ("messages", {"messages": [{"role": "user", "content": "2 + 2?"}, "ANSWER"]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "2 + 2?"}, "ANSWER"]}),
    ("alpaca", {"instruction": "2 + 2?", "output": "ANSWER"}),
    ("prompt-completion", {"prompt": "2 + 2?", "completion": "ANSWER"}),
]


def row(kind, answer, **keys):
    """A row of a format; further keys stand beside the answer."""
    turn = {"from": "gpt", "value": answer} if kind == "sharegpt" else {}
    turn = {"role": "assistant", "content": answer} if kind == "messages" else turn
    stored = dict(ROWS)[kind]
    if turn:
        return {key: [turns[0], {**turn, **keys}] for key, turns in stored.items()}
    return {**{key: answer if v == "ANSWER" else v for key, v in stored.items()}, **keys}


def answer_of(record, kind):
    """The last turn of a row."""
    return read_dialogue(record, "rows:1", kind).turns[-1]


@pytest.mark.parametrize("kind", dict(ROWS))
@pytest.mark.parametrize("block", REASONING_BLOCKS)
def test_reasoning_in_the_text_of_an_answer(kind, block):
    answer = answer_of(row(kind, f"{block.opening}\ntwo twos\n{block.closing}\n\n4"), kind)
    assert (answer.reasoning, answer.content) == ("two twos", "4")


@pytest.mark.parametrize("kind", dict(ROWS))
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_a_key_of_its_own(kind, key):
    answer = answer_of(row(kind, "4", **{key: " two twos\n"}), kind)
    assert (answer.reasoning, answer.content) == ("two twos", "4")


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("alpaca", row("alpaca", "<think>two twos"), "reasoning without an answer"),
        ("alpaca", row("alpaca", "<think>two twos</think> \n"), "reasoning without an answer"),
        ("messages", row("messages", "<think>a</think>4", thinking="b"), "in two places"),
        ("messages", row("messages", "4", thinking="b", reasoning="c"), "in two places"),
        ("messages", row("messages", "4", thinking=["b"]), "not a text"),
        ("messages", {**row("messages", "4"), "reasoning": "b"}, "reasoning is not supported"),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "2 + 2?", "reasoning": "b"},
                    {"role": "assistant", "content": "4"},
                ]
            },
            "reasoning is not supported",
        ),
    ],
)
def test_reasoning_that_cannot_be_placed_is_refused(kind, record, message):
    with pytest.raises(DataError, match=message):
        read_dialogue(record, "rows:1", kind)


SUMS = "name: sums\nformat: prompt-completion\nsource: sums.jsonl\n"


@pytest.fixture
def planner(tmp_path, files):
    """Plans a study of the weather and some sums; every second sum's answer has reasoning."""
    data = write_data(tmp_path / "data")

    def plan(reasoning=None, rows="with", own_files=files, **changes):
        folder = tmp_path / rows
        folder.mkdir(exist_ok=True)
        lines = []
        for i in range(30):
            thought = {"reasoning": f"{i} and then one more"} if rows == "with" and i % 2 else {}
            lines.append({"prompt": f"What is {i} + 1?", "completion": str(i + 1), **thought})
        (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
        own = Registry([*tasks(), parse_task(SUMS, "sums.yaml", folder)], data)
        amounts = {"north": {"rows": 20}, "sums": {"rows": 30}}
        train = {"rank": 2, "alpha": 4, **({"reasoning": reasoning} if reasoning else {})}
        changes = {"tasks": ["north"], "ingredients": amounts, "train": train, **changes}
        return Planner(study(**changes), own, own_files)

    return plan


def ids(planner):
    """Unit → id."""
    return {unit.key: unit.id for unit in planner.plan().rows()}


def test_a_study_has_to_say_whether_it_trains_on_reasoning(planner):
    with pytest.raises(DataError, match="15 of 30 rows have reasoning") as refused:
        planner()
    assert "train.reasoning: keep" in str(refused.value)


def test_dropped_reasoning_leaves_the_rows_without_it(planner):
    dropped = planner("drop")
    assert ids(dropped) == ids(planner(rows="without")) == ids(planner("drop", rows="without"))
    (sums,) = (row for row in dropped.leaks.data_rows() if row["dataset"] == "sums")
    assert "reasoning: drop: 15" in sums["noted"]


def test_kept_reasoning_is_learnt_and_evaluated(planner):
    kept, plain = planner("keep"), planner("drop")
    assert not set(ids(kept).values()) & set(ids(plain).values()) - majority(plain)
    run = next(r for r in kept.plan().runs if r.kind == "trained" and "sums" in r.cocktail)
    texts = {kept.tokens.decode(r.answer[:-1]) for r in kept.training_rows([run])[run.system]}
    reasoned = [text for text in texts if text.startswith("<think>")]
    assert reasoned
    for text in reasoned:
        number = int(split_reasoning(text).answer) - 1
        assert split_reasoning(text).reasoning == f"{number} and then one more"


def majority(planner):
    """Ids of answers that no model gives."""
    return {a.id for run in planner.plan().runs if run.kind == "majority" for a in run.answers}


def test_answers_may_be_as_long_as_the_reasoning_that_was_trained_on(planner):
    evaluate = {**study().evaluate.model_dump(mode="json"), "max_new_tokens": None}
    kept, plain = planner("keep", evaluate=evaluate), planner("drop", evaluate=evaluate)
    thought = kept.tokens.answer_ids("2", "29 and then one more")
    extra = len(thought) - kept.tokens.plain_length("2")
    assert kept.max_new_tokens("north") == plain.max_new_tokens("north") + extra


def test_scored_items_are_compared_without_reasoning(tmp_path, files):
    """Nothing of a gold answer's reasoning is needed to be right."""
    rows = [{"q": f"{i} + 1?", "a": f"<think>{i}, {i + 1}</think>{i + 1}"} for i in range(9)]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "name: open\nprompt: '{{ q }}'\ntarget: '{{ a }}'\nkind: open\nparser: text\n"
    text += "metrics: [accuracy]\nsource: {train: open.jsonl, test: open.jsonl}\n"
    own = Registry([parse_task(text, "open.yaml", tmp_path)], tmp_path)
    examples = own.dataset("open", 0.1).examples("test")
    assert [e.target for e in examples] == [str(i + 1) for i in range(9)]
    assert examples[3].reasoning == "3, 4"


@pytest.mark.parametrize("kind", dict(ROWS))
def test_a_key_of_reasoning_is_no_unused_column(tmp_path, kind):
    record = row(kind, "4", thinking="two twos")
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    task = parse_task(f"name: sums\nformat: {kind}\nsource: rows.jsonl\n", "s.yaml", tmp_path)
    loaded = Registry([task], tmp_path).dataset("sums", 0.1).split("train")
    assert not loaded.unused
