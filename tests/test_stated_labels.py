"""The label that an output states: readings by table, and any labels in any form of an answer."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mixtune.tasks.parsers.labels import PARSERS
from mixtune.tasks.parsers.stated_labels import fold, lenient_label, strict_label

LETTERS = ("A", "B", "C", "D")
LANGUAGES = ("en", "it", "no", "so")
STARS = tuple("12345")
YESNO = ("yes", "no")
TONE = ("negative", "neutral", "positive")
CHINESE = ("好评", "差评")

READINGS = [
    # a letter, a number and a common word are words of the text as well
    ("This is a reptile.", LETTERS, None),
    ("The answer is a reptile", LETTERS, None),
    ("A reptile is what I see", LETTERS, None),
    ("The answer is D since it has scales.", LETTERS, "D"),
    ("D. A reptile", LETTERS, "D"),
    ("D) a reptile", LETTERS, "D"),
    ("(d)", LETTERS, "D"),
    ("Answer: **D**", LETTERS, "D"),
    ("Answer: D) a reptile", LETTERS, "D"),
    ("So the correct option is (D).", LETTERS, "D"),
    (r"Thus \boxed{\text{D}}", LETTERS, "D"),
    ("I would choose D.", LETTERS, "D"),
    ("D is correct.", LETTERS, "D"),
    ("Whether D is correct, I do not know", LETTERS, None),
    ("A. newt\nB. toad\nC. frog", LETTERS, None),
    ("A. newt\nB. toad\nC. frog\nThe answer is B.", LETTERS, "B"),
    ("A. newt\nB. toad\nC. frog\n\nB", LETTERS, "B"),
    ("it may rain", LANGUAGES, None),
    ("So, this text is English.", LANGUAGES, None),
    ("The language of this text is it.", LANGUAGES, "it"),
    ("no idea", YESNO, None),
    ("No, that does not follow.", YESNO, "no"),
    ("The answer is no longer known", YESNO, None),
    ("Among other things it is about rain", ("rain", "other"), None),
    ("Category: Other", ("rain", "other"), "other"),
    ("2.5", STARS, None),
    ("The score is -2", STARS, None),
    ("Score: 2", STARS, "2"),
    ("2/5", STARS, None),
    ("2.", STARS, "2"),
    ("1. It is well made\n2. It is dear", STARS, None),
    # the last one that is stated
    ("The answer is A. No, wait: C", LETTERS, "C"),
    ("Answer: A\n\nHmm, actually C.", LETTERS, "C"),
    ("Answer: A. Correction: it is C", LETTERS, "C"),
    ("Answer: A\n\nC", LETTERS, None),
    ("It is negative. On second thought, neutral.", TONE, "neutral"),
    ("Yes. Actually, no.", YESNO, "no"),
    # two, or none
    ("Answer: A or B", LETTERS, None),
    ("Answer: negative/positive", TONE, None),
    ("Answer: B, D", LETTERS, None),
    # negations are not the label
    ("The answer is not A", LETTERS, None),
    ("I don't believe that the answer is A.", LETTERS, None),
    ("The label is positive. No, it is not positive.", TONE, None),
    ("Positive is not the right label", TONE, None),
    ("nicht positiv", ("positiv", "negativ"), None),
    ("pas positif", ("positif", "négatif"), None),
    ("olumlu değil", ("olumlu", "olumsuz"), None),
    # reasoning is no answer
    ("<think>It is positive.</think>\nnegative", TONE, "negative"),
    ("<think>It is positive, so", TONE, None),
    # scripts without spaces, and scripts that join particles
    ("我觉得这是好评。", CHINESE, "好评"),
    ("这不是好评", CHINESE, None),
    ("好评还是差评？", CHINESE, None),
    ("答案是B", LETTERS, "B"),
    ("答案：是", ("是", "否"), "是"),
    ("这是一句话", ("是", "否"), None),
    ("この文は肯定的です", ("肯定", "否定"), "肯定"),
    ("肯定ではありません", ("肯定", "否定"), None),
    ("答えはCです", LETTERS, "C"),
    ("รีวิวนี้เป็นบวกมาก", ("บวก", "ลบ"), "บวก"),
    ("ไม่บวก", ("บวก", "ลบ"), None),
    ("정답은 긍정입니다.", ("긍정", "부정"), "긍정"),
    ("긍정이 아닙니다", ("긍정", "부정"), None),
    ("这是positive的", TONE, "positive"),
    # one normal form; a word that goes on in a mark is another
    ("cafe\u0301", ("café", "thé"), "café"),
    ("Cafe\u0301!", ("café", "thé"), "café"),
    ("The word is positive\u0301", TONE, None),
]  # fmt: skip


@pytest.mark.parametrize(("output", "labels", "lenient"), READINGS)
def test_readings(output, labels, lenient):
    assert lenient_label(output, labels) == lenient


@pytest.mark.parametrize(
    ("output", "labels", "cut"),
    [("The answer is no", YESNO, None), ("no", YESNO, "no"), ("The answer is no, si", YESNO, "no"),
     ("It is positive, si", TONE, "positive"), ("The answer is A", LETTERS, None)],
)  # fmt: skip
def test_the_end_of_an_output_that_was_cut_off_may_be_half_a_word(output, labels, cut):
    assert PARSERS["label"].cut(output, labels) == cut


FORMS = [
    "{}", " {}\n", "{}.", "{}!", '"{}"', "“{}”", "'{}'", "({})", "[{}]", "**{}**", "__{}__",
    "`{}`", "```\n{}\n```", "- {}", "> {}", '{{"label": "{}"}}', "Answer: {}", "answer: {}.",
    "**Answer:** {}", "Answer: **{}**", "Label: {}", "Final answer:\n\n{}", "The answer is {}.",
    "The answer is: {}", "The correct answer is ({}).", "So the answer is {}, I think.",
    r"\boxed{{{}}}", r"Thus \boxed{{\text{{{}}}}}.", "#### {}", "I would choose {}.",
    "{}\n\nThat is my answer.", "答案：{}", "答案是{}。", "答えは{}です", "정답: {}", "คำตอบคือ {}",
]  # fmt: skip
LABELS = [
    "A", "B", "C", "a b", "it", "IT", "HR", "no", "yes", "No", "other", "none", "positive", "good",
    "very good", "not good", "0", "1", "-1", "10", "1.5", "C++", "C#", "A+", "B2B", "M&A | Deals",
    "N/A", "the", "is", "not", "answer", "true", "café", "nai\u0308ve", "straße", "İstanbul",
    "正面", "负面", "是", "否", "非常正面", "肯定", "บวก", "ลบ", "긍정", "부정", "да", "нет", "نعم",
    "सकारात्मक", "नकारात्मक", "don't know", "(none)", "50%", "I'm sure", "U.S.", "e-mail", "mail",
]  # fmt: skip
words = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=12)
sets_of_labels = st.lists(
    st.sampled_from(LABELS) | words.filter(lambda label: label.strip() == label and fold(label)),
    min_size=2, max_size=6, unique_by=fold,
)  # fmt: skip


class TestAnyLabels:
    """For any labels, in any form: the gold label or nothing, and never another one."""

    @given(
        sets_of_labels,
        st.sampled_from(FORMS),
        st.sampled_from([str, str.upper, str.lower, str.title]),
        st.data(),
    )
    @example(["A", "it"], "The answer is {}.", str, None)
    def test_never_another(self, labels, form, case, data):
        gold = data.draw(st.sampled_from(labels)) if data else labels[0]
        output = form.format(case(gold))
        # Labels that are words of the form, or of each other with it, can be either.
        around = fold(form.format(""))
        assume(not any(fold(label) in around for label in labels if len(fold(label)) > 1))
        assert lenient_label(output, labels) in (gold, None), output
        assert strict_label(output, labels) in (gold, None)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        "labels", [LETTERS, YESNO, TONE, LANGUAGES, STARS, CHINESE, ("IT", "HR", "other")]
    )
    def test_usual_ones_are_read(self, form, labels):
        assert [lenient_label(form.format(label), labels) for label in labels] == list(labels)
