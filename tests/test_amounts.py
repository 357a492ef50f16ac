"""Amounts: pairs of answer and gold that must pass and must fail, nasty outputs, exact bounds."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.tasks.parsers.labels import PARSERS

AMOUNT = PARSERS["amount"]
PERCENT = "What is the percentage change in revenue?"
SHARE = "The page says 45 percent.\nQuestion: what percent of the total is leased?\nAnswer:"
MILLIONS = "All numbers are in millions.\n\nWhat was the total?"

# answer, gold, what was asked
RIGHT = [
    ("94", "94", ""),
    ("94.0", "94", ""),
    ("94.4", "94", ""),
    ("93.5", "94", ""),
    ("94.5", "94", ""),
    ("-35", "-35", ""),
    ("(35)", "-35", ""),
    ("−35", "-35", ""),
    ("–35", "-35", ""),
    ("minus 35", "-35", ""),
    ("-$35", "-35", ""),
    ("$-35", "-35", ""),
    ("$(35)", "-35", ""),
    ("The net change was (1,234).", "-1234", ""),
    ("$1,234.50", "1234.5", ""),
    ("1,234,567", "1234567", ""),
    ("1\xa0234\u202f567", "1234567", ""),
    ("12,34,567", "1234567", ""),
    ("1 234", "1234", ""),
    ("1.5 million", "1500000", ""),
    ("$1.5M", "1500000", ""),
    ("USD 1.5 bn", "1500000000", ""),
    ("2.3 trillion dollars", "2300000000000", ""),
    ("12k", "12000", ""),
    ("3 thousand", "3000", ""),
    ("$5.8 million", "5.8", MILLIONS),
    ("12.5 billion", "12500", MILLIONS),
    ("5800000", "5800000", MILLIONS),
    ("€ 12", "12", ""),
    ("12 EUR", "12", ""),
    ("approximately 12", "12", ""),
    ("~12.04", "12.0", ""),
    ("1e3", "1000", ""),
    ("0.00001", "0.00001", ""),
    # percent
    ("10.1%", "10.1%", ""),
    ("10.06%", "10.1%", ""),
    ("10.1 percent", "10.1%", ""),
    ("10.1\xa0%", "10.1%", ""),
    ("10.1％", "10.1%", ""),
    ("10.1", "10.1%", ""),
    ("0.101", "10.1%", ""),
    ("10%", "10%", ""),
    ("0.10", "10%", ""),
    ("10", "10%", ""),
    ("-8.4%", "-8.4%", ""),
    ("(8.4%)", "-8.4%", ""),
    ("(8.4)%", "-8.4%", ""),
    ("50%", "0.5", ""),
    ("14.46", "0.1446", PERCENT),
    ("14.46", "0.1446", SHARE),
    ("14.46%", "14.46", PERCENT),
    ("0.1446", "14.46", PERCENT),
    # yes and no
    ("yes", "yes", ""),
    ("Yes.", "yes", ""),
    ("YES, it did outperform.", "yes", ""),
    ("NO", "no", ""),
    ("**No**, revenue fell by 5%.", "no", ""),
    ("The answer is yes.", "yes", ""),
    # after reasoning
    ("The answer is 12.", "12", ""),
    ("3 + 4 = 7\n#### 7", "7", ""),
    ("The change is 95 - 90 = 5", "5", ""),
    ("Final answer: $12, up from $10.", "12", ""),
    ("Revenue was 12 in 2019.", "12", ""),
    ("It was $7.5 million as of December 31, 2017.", "7500000", ""),
    ("Over 2014-2015 it rose by 12 (about 5% of sales).", "12", ""),
    ("It beat the index by 12 points, that is the S&P 500", "12", ""),
    ("12.5%\nBecause 5 of 40 are leased.", "12.5%", ""),
    ("\\boxed{12.5\\%}", "12.5%", ""),
    ('{"answer": 12.5}', "12.5", ""),
    ("```\n12.5\n```", "12.5", ""),
    ("2015", "2015", ""),
    ("The answer is 2015.", "2015", ""),
    ("1000 + 1015 = 2015", "2015", ""),
    # gold at the end of a solution
    ("7", "3 + 4 = 7\n#### 7", ""),
]

WRONG = [
    ("95", "94", ""),
    ("94.51", "94", ""),
    ("12", "12.05", ""),
    ("35", "-35", ""),
    ("-35", "35", ""),
    ("(35)", "35", ""),
    ("a loss of 35", "-35", ""),
    # "5" and "12" are not "0.0"
    ("5", "0.0", ""),
    ("12", "0.0", ""),
    # commas
    ("1,23", "123", ""),
    ("1,23", "1", ""),
    ("1,23", "23", ""),
    ("1,2345", "12345", ""),
    ("1 234", "234", ""),
    # scale
    ("1.5 million", "1.5", ""),
    ("1.5", "1500000", ""),
    ("1.5 billion", "1500000", ""),
    ("5.8 billion", "5.8", MILLIONS),
    ("5.8", "5800000", MILLIONS),
    # a factor of 100 that nobody named
    ("50", "0.5", ""),
    ("0.5", "50", ""),
    ("50%", "50", ""),
    ("0.5%", "0.5", ""),
    ("14.46", "0.1446", "What is the ratio?"),
    ("14.46", "0.1446", "At a rate of 5 percent, what is the ratio?"),
    ("14.46", "0.1446", f"{PERCENT}\nWhat is the ratio?"),
    # an answer's own percent sign counts
    ("0.5%", "50%", ""),
    ("0.101%", "10.1%", ""),
    ("1010%", "10.1%", ""),
    ("144600%", "14.46", PERCENT),
    ("10.2%", "10.1%", ""),
    ("10", "10.1%", ""),
    # ranges, choices, formulas
    ("5-7", "7", ""),
    ("5-7", "5", ""),
    ("5 – 7", "-7", ""),
    ("between 5 and 7", "7", ""),
    ("from 5 to 7", "7", ""),
    ("5 or 7", "5", ""),
    ("100 / 20", "20", ""),
    ("100 - 95", "95", ""),
    ("3/4", "4", ""),
    ("The answer is 5-7 percent", "5%", ""),
    # years and dates
    ("Revenue grew in 2019.", "2019", ""),
    ("It grew from 2014 to 2015", "2015", ""),
    ("December 31, 2017", "31", ""),
    ("31 december 2017", "31", ""),
    ("12/31/2017", "2017", ""),
    ("2017-12-31", "31", ""),
    ("at 10:30", "30", ""),
    # "anything but exactly yes counts as no"
    ("It did.", "no", ""),
    ("Perhaps", "no", ""),
    ("Nothing is known", "no", ""),
    ("yes and no", "yes", ""),
    ("Yes", "no", ""),
    ("No", "yes", ""),
    ("1", "yes", ""),
    ("0", "no", ""),
    # parts of words and names
    ("Q3", "3", ""),
    ("see the 10-K", "10", ""),
    ("COVID-19", "19", ""),
    ("the 3rd", "3", ""),
    ("1.2.3", "3", ""),
    ("the 5-year return", "5", ""),
    ("It beat the S&P 500", "500", ""),
    ("The answer is not 5", "5", ""),
    ("twelve", "12", ""),
    ("nan", "0", ""),
    ("Infinity", "0", ""),
    ("", "0", ""),
    ("٤٢", "42", ""),
]


def right(output, gold, asked):
    parsed = AMOUNT.lenient(output, ())
    return parsed is not None and AMOUNT.same(parsed, gold, ["An earlier turn: percent", asked])


@pytest.mark.parametrize(("output", "gold", "asked"), RIGHT)
def test_answers_that_are_right(output, gold, asked):
    assert right(output, gold, asked), AMOUNT.lenient(output, ())


@pytest.mark.parametrize(("output", "gold", "asked"), WRONG)
def test_answers_that_are_not(output, gold, asked):
    assert not right(output, gold, asked), AMOUNT.lenient(output, ())


def test_there_are_enough_pairs_and_none_is_in_both():
    assert min(len(RIGHT), len(WRONG)) >= 40
    assert not set(RIGHT) & set(WRONG)


# output, strict, lenient
NASTY = [
    ("12.5%", "12.5%", "12.5%"),
    (" $1,234 \n", "1234", "1234"),
    ("(5.2%)", "-5.2%", "-5.2%"),
    ("$5.8 million", "5.8e6", "5.8e6"),
    ("about 5%", "5%", "5%"),
    ("Yes", None, "yes"),
    ("12.", None, "12"),
    ('"12"', None, "12"),
    ("**12**", None, "12"),
    ("- 12", None, "12"),
    ("5 or 7", None, None),
    ("12 shares", None, "12"),
    ("1. Sum up.\n2. Divide.", None, None),
    ("The answer is: see above.", None, None),
    ("\\boxed{\\frac{1}{2}}", None, None),
    ("I'm sorry, but I can't help with that.", None, None),
    ("As an AI language model, I do not give financial advice.", None, None),
    (" \n\t ", None, None),
    ("\x00\x1b[31m\ufffd\u200b", None, None),
    ("\x0012\x00", None, "12"),
    ("十二", None, None),
    ("двенадцать", None, None),
    ("e" * 10_240, None, None),
    ("9" * 10_240, "9" * 10_240, "9" * 10_240),
    ("word " * 2_000 + "12", None, "12"),
]


@pytest.mark.parametrize(("output", "strict", "lenient"), NASTY)
def test_nasty_outputs(output, strict, lenient):
    assert (AMOUNT.strict(output, ()), AMOUNT.lenient(output, ())) == (strict, lenient)


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("The answer is 12", None),  # may be the start of 123
        ("The answer is 12 and", "12"),
        ("12.5%\nBecause of", "12.5%"),
        ("Yes, because", "yes"),
        ("First, 12 and 5 make", None),  # an intermediate result
        ("", None),
    ],
)
def test_what_can_be_read_from_a_text_that_was_cut_off(output, read):
    assert AMOUNT.cut(output, ()) == read


golds = st.builds(
    lambda number, percent: f"{number:f}{percent}",
    st.decimals(allow_nan=False, allow_infinity=False, places=4) | st.integers().map(Decimal),
    st.sampled_from(["", "%"]),
) | st.sampled_from(["yes", "no"])


@given(golds)
def test_a_gold_amount_parses_to_itself_and_is_right(gold):
    assert AMOUNT.strict(gold, ()) == AMOUNT.lenient(gold, ()) is not None
    assert AMOUNT.same(AMOUNT.strict(gold, ()), gold, ())
    assert AMOUNT.lenient(f"I add them up. The answer is {gold}.", ()) == AMOUNT.strict(gold, ())


wide = st.integers(-(10**30), 10**30)


@given(digits=wide, places=st.integers(0, 12), up=st.sampled_from([1, -1]))
def test_half_a_unit_of_the_last_digit_is_exact(digits, places, up):
    def written(whole, decimals):
        return f"{Decimal(f'{whole}E-{decimals}'):f}"

    gold = written(digits, places)
    edge = digits * 10 + 5 * up  # tenths of a unit
    assert AMOUNT.same(written(edge, places + 1), gold, ())
    assert not AMOUNT.same(written(edge * 10 + up, places + 2), gold, ())
