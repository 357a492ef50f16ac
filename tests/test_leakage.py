"""Rows that occur in two splits."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.datasets.leakage import LeakedBy, find_leaked, loose, normalise
from mixtune.records import Example, Message

HEADERS = {"news": "Is the tone good or bad?", "mood": "Bullish or bearish?"}


def row(text, id, split="train", task="news", group=None, header=None):
    header = HEADERS[task] if header is None else header
    return Example(
        task=task,
        id=id,
        split=split,
        group=loose(text) if group is None else group,
        stratum="",
        messages=(Message("user", f"{header}\n{text}"),),
        target="good",
    )


TEXT = "Profit rose to EUR 3.2 mn, see https://x.yz/a1"


def test_exact_repeat_is_found_with_its_witness():
    train = [row(TEXT, "train-1"), row("Sales were flat all year", "train-2")]
    found = find_leaked(train, [row(TEXT.upper(), "test-7", "test")])
    assert found == {"train-1": LeakedBy("test", "news", "test-7", "exact")}


def test_loose_repeat_ignores_links_and_punctuation():
    other = "PROFIT rose to EUR 3.2 mn -- see: www.other.org/b2 !"
    evaluation = [row(other, "v-1", "validation")]
    assert find_leaked([row(TEXT, "t-1")], evaluation)["t-1"].kind == "loose"


def test_the_same_text_under_another_tasks_prompt_is_found_by_group():
    found = find_leaked([row(TEXT, "t-1")], [row(TEXT, "m-1", "test", task="mood")])
    assert found == {"t-1": LeakedBy("test", "mood", "m-1", "group")}


def test_a_raw_group_is_compared_loosely():
    train = [row(TEXT, "t-1", group=TEXT)]
    evaluation = [row("x", "m-1", "test", task="mood", group=TEXT.lower().replace(",", ""))]
    assert find_leaked(train, evaluation)["t-1"].kind == "group"


def test_all_nine_questions_about_a_leaked_headline_go():
    train = [row(TEXT, f"t-{q}", header=f"Question {q}?") for q in range(9)]
    evaluation = [row(TEXT, "v-0", "validation", header="Question 0?")]
    found = find_leaked(train, evaluation)
    assert len(found) == 9
    assert [found[f"t-{q}"].kind for q in range(9)] == ["exact"] + ["group"] * 8


def test_short_texts_match_exactly_only():
    def short(text, id, split="train", task="news"):
        return row(text, id, split, task, group=text, header="")

    train = [short("7 - 3", "t-1"), short("$A", "t-2")]
    assert (
        find_leaked(train, [short("73", "v-1", "test", "mood"), short("a?", "v-2", "test")]) == {}
    )
    assert find_leaked(train, [short("7  -  3", "v-3", "test")])["t-1"].kind == "exact"


def test_texts_without_letters_do_not_all_match_each_other():
    assert find_leaked([row("!!!", "t", header="")], [row("???", "v", "test", header="")]) == {}


def test_short_groups_are_running_numbers_that_count_inside_their_task_only():
    train = [row("one text here", "t-1", group="12")]
    other_task = [row("quite another text", "v-1", "test", task="mood", group="12")]
    same_task = [row("quite another text", "v-2", "test", group="12")]
    assert find_leaked(train, other_task) == {}
    assert find_leaked(train, same_task)["t-1"] == LeakedBy("test", "news", "v-2", "group")


def dialogue(id, split, *said):
    turns = [t for text in said for t in (Message("user", text), Message("assistant", "3"))]
    return Example("chat", id, split, f"page {id} of its own", "", tuple(turns[:-1]), "4")


def test_all_user_turns_of_a_conversation_count_together():
    train = dialogue("t", "train", "Write about the sea.", "Please continue with it.")
    same_last = dialogue("v", "test", "Write about the moon.", "Please continue with it.")
    same_first = dialogue("v", "test", "Write about the sea.", "Make it shorter now.")
    only_last = dialogue("v", "test", "Please continue with it.")
    assert find_leaked([train], [same_last, same_first, only_last]) == {}
    same = dialogue("v", "test", "write about the sea.", "Please  continue with it!")
    assert find_leaked([train], [same])["t"].kind == "loose"


def test_different_texts_with_the_same_header_do_not_match():
    assert find_leaked([row("up by ten", "t")], [row("up by eleven", "v", "test")]) == {}


def test_numbers_that_differ_by_their_point_only_match_loosely():
    header = "How does the figure change?"
    train = [row("It was 3.2 in all", "t", header=header)]
    assert find_leaked(train, [row("It was 32 in all", "v", "test", header=header)])


def test_order_of_the_rows_does_not_change_the_witness():
    train = [row(TEXT, "t-1")]
    evaluation = [row(TEXT, f"v-{n}", split) for split in ("validation", "test") for n in (2, 1)]
    found = find_leaked(train, evaluation)
    assert found == find_leaked(train, evaluation[::-1])
    assert found["t-1"] == LeakedBy("test", "news", "v-1", "exact")


def test_validation_is_checked_against_test_with_the_same_function():
    validation = [row(TEXT, "v-1", "validation")]
    assert set(find_leaked(validation, [row(TEXT, "e-1", "test")])) == {"v-1"}


LATIN = st.text(st.characters(max_codepoint=0xFF))


@given(LATIN)
def test_loose_does_not_see_case_space_or_punctuation(text):
    changed = "  " + text.swapcase().replace(" ", " ,\n\t") + " !?"
    # a link runs up to white space, so a changed character inside one is dropped with it
    if "://" not in text and "www." not in text.casefold():
        assert loose(changed) == loose(text)


@given(st.text())
def test_loose_and_normalise_change_nothing_the_second_time(text):
    assert normalise(normalise(text)) == normalise(text)
    assert loose(text) == loose(normalise(text))


@pytest.mark.parametrize("link", ["http://a.b/c?d=1", "https://t.co/XyZ", "WWW.site.org/page"])
def test_loose_drops_links(link):
    assert loose(f"Shares up {link} today") == "sharesuptoday"


def test_time_grows_about_linearly():
    def seconds(size):
        train = [row(f"text number {n} of the train set", f"t-{n}") for n in range(size)]
        evaluation = [
            row(f"text number {n} of the test set", f"e-{n}", "test") for n in range(size)
        ]
        start = time.process_time()
        assert find_leaked(train, evaluation) == {}
        return time.process_time() - start

    small = max(min(seconds(1_000) for _ in range(3)), 1e-3)
    assert seconds(10_000) < 40 * small


def test_letters_of_other_scripts_count():
    traditional, simplified = "多年策略性協議贏得獎項", "多年战略性协议赢得奖项"
    assert find_leaked([row(traditional, "t")], [row(simplified, "v", "test")]) == {}
    assert find_leaked([row(traditional, "t")], [row(traditional + "!", "v", "test")])
