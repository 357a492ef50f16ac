"""Reasoning in front of an answer is stored with it and never parsed as the answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.evaluation.answers import Questions, predict_queries, split_reasoning
from mixtune.records import REASONING_BLOCKS, Answer, Message, Query


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
