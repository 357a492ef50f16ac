"""Forms of questions through the engine's ranking: each equals the plain path, one at a time.

Multiple choice by letters, conversations of several turns, and label sets of any shape.
"""

import pytest
from engine_kit import CHOICES, HEADER, query
from engine_oracle import log_probability, peft_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtune.records import Message, Query

LETTERS = ("A", "B", "C", "D")
OPTIONS = "Which is it? Answer with one letter.\nA) {}\nB) {}\nC) {}\nD) {}\n"
LONG = "the price went up a lot, and nobody could say why it did"


@pytest.fixture(scope="module")
def pair(models, folders, tmp_path_factory):
    """The engine's model, and the plain network with its adapter."""
    model, folder = models(), tmp_path_factory.mktemp("adapter")
    model.save_adapter(folder, "base")
    return model, peft_network(folders("llama"), folder)


def multiple_choice(number):
    options = [f"{number * k % 7} apples" for k in (1, 2, 3, 5)]
    return query(number, OPTIONS.format(*options), LETTERS)


def conversation(number, turns, choices):
    said = [Message("system", "You are brief.")]
    for turn in range(turns):
        said.append(Message("user", f"{HEADER}Question {turn} of {number}?"))
        said.append(Message("assistant", CHOICES[(turn + number) % len(CHOICES)]))
    last = Message("user", "And now" + " then" * (number % 3) + "?")
    return Query(f"c{number:02}", "", (*said, last), choices)


def assert_plain(pair, queries):
    model, network = pair
    for answer, asked in zip(model.rank(queries), queries, strict=True):
        prompt = model.tokens.prompt_ids(asked.messages)
        wanted = [
            log_probability(network, prompt, model.tokens.answer_ids(text))
            for text in asked.choices
        ]
        assert answer.logprobs == pytest.approx(wanted, abs=1e-4)
        assert answer.output == asked.choices[answer.logprobs.index(max(answer.logprobs))]


def test_multiple_choice(pair):
    assert_plain(pair, [multiple_choice(number) for number in range(7)])


def test_letters_that_mean_something_else_each_time(pair):
    """The same four choices behind prompts that share a header and nothing else."""
    asked = [multiple_choice(0), query(1, "Pick A, B, C or D", LETTERS), query(2, "?", LETTERS)]
    assert_plain(pair, asked)


def test_conversations_of_several_turns(pair):
    assert_plain(pair, [conversation(number, number % 4, CHOICES) for number in range(8)])


def test_conversations_that_share_their_start(pair):
    one = conversation(1, 3, ("yes", "no"))
    longer = (*one.messages, Message("assistant", "no"), Message("user", "Why?"))
    shorter = Query("s", "", one.messages[:2], ("yes", "no"))
    assert_plain(pair, [one, shorter, Query("l", "", longer, ("yes", "no")), multiple_choice(3)])


def test_everything_in_one_chunk(pair):
    asked = [multiple_choice(1), conversation(2, 2, LETTERS), query(3, HEADER, (LONG, "the"))]
    assert_plain(pair, [*asked, query(4, HEADER + "?", ("a",))])


pieces = st.sampled_from(["up", " a lot", "d", "own", "é", " ", "7", LONG])
labels = st.lists(pieces, min_size=1, max_size=4).map("".join)


@st.composite
def label_sets(draw):
    """Labels that share starts, that prefix others, of one token and long ones; each once."""
    found = draw(st.lists(labels, min_size=1, max_size=4))
    stem = draw(labels)
    found += [stem, stem + draw(labels), draw(st.sampled_from("uxZ"))]
    order = draw(st.permutations(found))
    return tuple(dict.fromkeys(order))


@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sets=st.lists(label_sets(), min_size=1, max_size=3), tail=st.integers(0, 3))
def test_any_label_sets(pair, sets, tail):
    asked = [query(i, HEADER + "it went" + " so" * tail * i, each) for i, each in enumerate(sets)]
    pair[0].clear_answers()  # questions here are told apart by number, prompt and choices
    assert_plain(pair, asked)
