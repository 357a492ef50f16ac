"""Parsers: nasty outputs by table, properties by hypothesis."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.tasks.parsers.labels import PARSERS
from mixtune.tasks.parsers.stated_labels import lenient_label, strict_label


def parse_label(text, labels):
    return strict_label(text, labels), lenient_label(text, labels)


TONE = ("negative", "neutral", "positive")
YESNO = ("Yes", "No")
TOPIC = ("Fed | Central Banks", "Earnings", "Gold | Metals | Materials", "M&A | Investments")
NESTED = ("good", "very good", "not good")

# output, labels, strict, lenient
LABELS = [
    ("positive", TONE, "positive", "positive"),
    ("  positive\n", TONE, "positive", "positive"),
    ("Positive", TONE, None, "positive"),
    ("POSITIVE!!!", TONE, None, "positive"),
    ("positive.", TONE, None, "positive"),
    ('"positive"', TONE, None, "positive"),
    ("‘positive’", TONE, None, "positive"),
    ("“Neutral”.", TONE, None, "neutral"),
    ("**negative**", TONE, None, "negative"),
    ("__negative__", TONE, None, "negative"),
    ("- negative", TONE, None, "negative"),
    ("Answer: Neutral", TONE, None, "neutral"),
    ("The sentiment of this sentence is positive, I think.", TONE, None, "positive"),
    ("positive positive positive", TONE, None, "positive"),
    ("positive\npositive", TONE, None, "positive"),
    ("ｐｏｓｉｔｉｖｅ", TONE, None, "positive"),  # full-width letters
    # denials
    ("```\npositive\n```", TONE, None, "positive"),
    ('{"sentiment": "positive"}', TONE, None, "positive"),
    ('["positive", "negative"]', TONE, None, None),
    ("positive\x00", TONE, None, "positive"),
    ("posi\u200btive", TONE, None, None),
    ("not positive", TONE, None, None),
    ("It is not very positive", TONE, None, None),
    ("This isn't positive", TONE, None, None),
    ("This isn’t positive", TONE, None, None),
    ("neither positive nor negative", TONE, None, None),
    ("I cannot call this positive", TONE, None, None),
    ("non-positive", TONE, None, None),
    ("not 'positive'", TONE, None, None),
    ("not_positive", TONE, None, None),
    ("NOT POSITIVE", TONE, None, None),
    # a negation in another clause is no denial
    ("I have no doubt: positive", TONE, None, "positive"),
    ("Not sure.\nneutral", TONE, None, "neutral"),
    # two labels, no label
    ("positive or negative", TONE, None, None),
    ("positive, not negative", TONE, None, None),
    ("negative, neutral or positive", TONE, None, None),
    ("It depends.", TONE, None, None),
    # a label inside another word
    ("positively", TONE, None, None),
    ("a nonnegative outlook", TONE, None, None),
    ("neutrality", TONE, None, None),
    ("market-neutral", TONE, None, None),
    ("positive-ish", TONE, None, None),
    ("positiveпозитив", TONE, None, None),
    # refusals and noise
    ("I'm sorry, but I can't help with that.", TONE, None, None),
    ("As an AI language model, I do not give financial advice.", TONE, None, None),
    ("", TONE, None, None),
    (" \n\t ", TONE, None, None),
    ("\x00\ufffd\u200b", TONE, None, None),
    ("🙂👍", TONE, None, None),
    ("积极", TONE, None, None),
    ("ايجابي", TONE, None, None),
    ("x" * 10_240, TONE, None, None),
    ("lorem ipsum " * 900 + "neutral", TONE, None, "neutral"),
    ("positive " * 1_200, TONE, None, "positive"),
    # yes and no: "no" is an answer here and no negation word
    ("Yes", YESNO, "Yes", "Yes"),
    ("yes", YESNO, None, "Yes"),
    ("No", YESNO, "No", "No"),
    ("No, it does not.", YESNO, None, "No"),
    ("Yes and no", YESNO, None, None),
    ("not yes", YESNO, None, None),
    ("I know nothing", YESNO, None, None),
    ("Yesterday", YESNO, None, None),
    # labels of several words and with signs
    ("Fed | Central Banks", TOPIC, "Fed | Central Banks", "Fed | Central Banks"),
    ("fed |  central banks.", TOPIC, None, "Fed | Central Banks"),
    ("Central Banks", TOPIC, None, None),
    ("topic: m&a | investments", TOPIC, None, "M&A | Investments"),
    # the longest label is looked for first
    ("Very good.", NESTED, None, "very good"),
    ("It is good", NESTED, None, "good"),
    ("Not good!", NESTED, None, "not good"),
]


@pytest.mark.parametrize(("output", "labels", "strict", "lenient"), LABELS)
def test_labels(output, labels, strict, lenient):
    assert parse_label(output, labels) == (strict, lenient)


# output, strict, lenient
NUMBERS = [
    ("42", "42", "42"),
    (" 42\n", "42", "42"),
    ("-3.50", "-3.50", "-3.50"),
    ("+7", "7", "7"),
    ("1,234,567.8", "1234567.8", "1234567.8"),
    ("1,23", None, None),
    ("007", "7", "7"),
    ("$1,200", None, "1200"),
    ("-$5", None, "-5"),
    ("$-5", None, "-5"),
    ("€ 12", None, "12"),
    ("12 %", None, "12"),
    ("12.5%", None, "12.5"),
    ("−8", "-8", "-8"),
    (".5", "0.5", "0.5"),
    ("42.", None, "42"),
    ("1e3", "1E+3", "1E+3"),
    ("1e99999", None, None),
    ("The answer is 18.", None, "18"),
    ("3 plus 4 is 7", None, "7"),
    ("She has 3.\n#### 72", None, "72"),
    ("between 10-15", None, "15"),
    ("10 -15", None, "-15"),
    ("Q3", None, None),
    ("3rd", None, None),
    ("1.2.3", None, None),
    ("forty-two", None, None),
    ("```\n42\n```", None, "42"),
    ('{"answer": 42}', None, "42"),
    ("**42**", None, "42"),
    ("\x0042", None, "42"),
    ("I cannot compute this.", None, None),
    ("٤٢", "42", "42"),
    ("", None, None),
    ("nan", None, None),
    ("Infinity", None, None),
    ("9" * 10_000, "9" * 10_000, "9" * 10_000),
]


@pytest.mark.parametrize(("output", "strict", "lenient"), NUMBERS)
def test_numbers(output, strict, lenient):
    parser = PARSERS["number"]
    assert (parser.strict(output, ()), parser.lenient(output, ())) == (strict, lenient)


@pytest.mark.parametrize(
    ("parsed", "gold", "same"),
    [
        ("1200", "1,200", True),
        ("1.50", "1.5", True),
        ("0.30000000000000001", "0.3", False),
        ("72", "She sold 48+24 = 72 clips.\n#### 72", True),
        ("48", "She sold 48+24 = 72 clips.\n#### 72", False),
        ("1", "none", False),
        ("-0", "0", True),
    ],
)
def test_numbers_are_compared_exactly(parsed, gold, same):
    assert PARSERS["number"].same(parsed, gold) is same


def test_text_is_compared_whole():
    text = PARSERS["text"]
    assert text.strict("  Hello there.\n", ()) == "Hello there."
    assert text.lenient(" \n", ()) is None
    assert text.same("Paris", "Paris ") and not text.same("paris", "Paris")


def test_every_parser_is_called_by_its_name_and_has_a_version():
    assert all(parser.name == name for name, parser in PARSERS.items())
    assert all(parser.version >= 1 for parser in PARSERS.values())


words = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=20).filter(
    lambda label: label.strip() == label
)
label_sets = st.lists(words, min_size=2, max_size=6, unique_by=str.casefold)


class TestEveryParser:
    """What holds for each parser on every text."""

    @pytest.mark.parametrize("name", PARSERS)
    @given(output=st.text(max_size=300), labels=label_sets)
    def test_never_raises_and_agrees_with_itself(self, name, output, labels):
        parser = PARSERS[name]
        strict, lenient = parser.strict(output, labels), parser.lenient(output, labels)
        assert strict is None or strict == lenient
        for parsed in (strict, lenient):
            if name == "label":
                assert parsed is None or parsed in labels
            if parsed is not None:
                assert parser.same(parsed, parsed)

    @given(labels=label_sets, data=st.data())
    def test_a_gold_label_parses_to_itself(self, labels, data):
        gold = data.draw(st.sampled_from(labels))
        assert parse_label(f" {gold}\n", labels) == (gold, gold)

    @given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
    def test_a_gold_number_parses_to_itself(self, number):
        gold = f"{number:f}"
        parser = PARSERS["number"]
        strict = parser.strict(gold, ())
        assert strict is not None and Decimal(strict) == number
        assert parser.same(strict, gold) and parser.lenient(gold, ()) == strict

    @given(st.text(min_size=1).filter(str.strip))
    def test_a_gold_text_parses_to_itself(self, gold):
        parser = PARSERS["text"]
        assert parser.same(parser.strict(gold, ()), gold)


@given(output=st.sampled_from(TONE), around=st.sampled_from(["{}.", '"{}"', "Answer: {}", "({})"]))
def test_lenient_reads_through_punctuation(output, around):
    assert parse_label(around.format(output.upper()), TONE) == (None, output)
