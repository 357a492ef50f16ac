"""Rows that occur in two splits."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.datasets.leakage import LeakedBy, find_leaked, loose, normalise
from mixtune.records import Example, Message
from mixtune.tasks.record import text_group

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


def test_loose_repeat_ignores_case_space_and_punctuation():
    other = "PROFIT rose to EUR 3.2 mn -- see: www.x.yz/a1 !"
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


# two texts, and whether they match loosely
SIGNS = [
    ("It was 3.2 in all", "It was 32 in all", False),
    ("Say 5185 - 6874", "say 5185 + 6874", False),
    ("Say 5185 \u2212 6874", "say 5185 - 6874", True),
    ("Say 5185 - 6874", "say 5185 * 6874", False),
    ("Say 5185 / 6874", "say 5185 6874", False),
    ("Growth was -5 here", "Growth was 5 here", False),
    ("Growth was 1,050 here", "growth was 1050 here!", True),
    ("Growth was 1.050 here", "growth was 1050 here!", False),
    ("Rows 1, 2 and 3 here", "rows 1 2 and 3, here", True),
    ("Rows 1 2 and 3 here", "rows 12 and 3 here", False),
    ("Solve x + 5 = 3 now", "solve x - 5 = 3 now", False),
    ("Profit in May - 50 mn", "profit in May 50 mn", True),
    ("Profit in May of -50 mn", "profit in May of 50 mn", False),
    ("It cost $50 a week", "It cost €50 a week", False),
    ("The 5-year **COVID-19** plan", '"the 5 year covid 19 plan"', True),
    ("It came at 10:30 today", "It came at 1030 today", False),
    ("Your parcel: http://a.example/t", "Your parcel: http://b.example/t", False),
    ("Your parcel: http://a.example/t", "Your parcel", False),
    ("Your parcel: http://a.example/t", "your parcel https://www.a.example/t/.", True),
    ("http://a.example/one", "http://a.example/two", False),
    ("http://a.example/one", "https://a.example/ONE", True),
    ("Gold is up again https://t.co/aB1", "gold is up again: https://t.co/Zz9", True),
    ("https://t.co/aB1xyz", "https://t.co/Zz9xyz", False),
    ("金價上漲了百分之五，股市下跌", "金價上漲了百分之五股市下跌。", True),
    ("金價上漲了百分之五，股市下跌", "金價上漲了百分之六，股市下跌", False),
]


@pytest.mark.parametrize(("one", "other", "same"), SIGNS)
def test_loose_is_not_loose_about_signs_numbers_and_links(one, other, same):
    """Also not by the group, which is the text's loosest form where a task names none."""
    rows = [replace(row(t, t, s), own_text=t, group=text_group(t))
            for t, s in ((one, "train"), (other, "test"))]  # fmt: skip
    leaked = find_leaked(rows[:1], rows[1:])
    assert {by.kind for by in leaked.values()} == ({"loose"} if same else set())


def test_a_group_that_is_a_text_is_compared_with_its_signs():
    def about(text, split):
        return replace(row(f"{split}: explain", text, split, group=text_group(text)),
                       own_text=f"{split}: explain", group_text=text)  # fmt: skip

    train = [about("We sold 10.5 pounds of it", "train")]
    assert find_leaked(train, [about("We sold 105 pounds of it", "test")]) == {}
    (leak,) = find_leaked(train, [about("We sold 10.5 pounds of it!", "test")]).values()
    assert leak.kind == "group"


def test_a_match_shows_both_rows_with_their_lines_and_the_rule():
    train = [replace(row(TEXT, "t-1"), place="/long/path/news/train.csv:7")]
    test = [replace(row(f"{TEXT} !", "v-1", "test"), place="test.csv:3")]
    leak = find_leaked(train, test)["t-1"]
    assert leak.description == "loose match: news/train.csv:7 is test.csv:3"
    leak = find_leaked(train, [row(TEXT, "v-1", "test")])["t-1"]
    assert leak.description == "exact match: news/train.csv:7 is news test row v-1"


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
def test_loose_keeps_links_but_those_of_twitter(link):
    form = loose(f"Shares up {link} today")
    bare = link.lower().removeprefix("http://").removeprefix("www.")
    assert form == ("sharesuptoday" if "t.co/" in link else f"sharesuptoday {bare}")


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
