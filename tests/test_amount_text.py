"""The text of a numeric answer: from an executed result and what annotators wrote."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.tasks.parsers.amounts import write_amount
from mixtune.tasks.parsers.labels import PARSERS

ASKS = "what was the percentage change in net sales?"
GIVES = "at a growth of 5 percent, or 5% a year, what will sales be?"

CASES = [
    # Annotators who wrote a percentage.
    ("0.10058", "10.1%", "", "10.1%"),
    ("0.31762", "31.7%", "", "31.8%"),  # cut off, not rounded
    ("0.55556", "56%", "", "56%"),
    ("-0.02433", "-2%", "", "-2%"),
    ("-0.58621", "58.6%", "", "-58.6%"),  # the sign is the result's
    ("0.80991", "81.0%", "", "81.0%"),
    ("0.0048", "\\n0.5%", "", "0.5%"),
    (0.134, "13.4 percent", "", "13.4%"),
    ("62.63", "a 62.63% greater return than the market", "", "62.63%"),
    ("2.11269", "sales grew 211% from 2006 to 2008", "", "211.3%"),  # which number is theirs?
    ("192.64126", "93.1% more than in the first 5 years", "", "192.6%"),
    ("0.27", "31%", "", "27%"),
    ("0.0004", "0%", "", "0.04%"),
    # A plain number.
    ("21322.0", "21322", "", "21322"),
    ("1215.66667", "1216", "", "1216"),
    ("11736600.0", "$ 11736600.00 \\n", "", "11736600"),
    ("4236.12", "$ 4236 million", "", "4236"),
    ("-8.2", "-8.2", "", "-8.2"),
    ("-0.2", "0.2", ASKS, "-0.2"),
    (127.4, "127.40", "", "127.4"),
    (6.95522, "7.0", "", "7.0"),
    (0.1, ".1", "", "0.1"),
    ("20.0", "20", "what percentage of ratings were junk?", "20"),
    ("0.00231", "0", "", "0.0023"),
    # The question asks for a percentage.
    ("0.27867", "27.9", ASKS, "27.9%"),
    ("-0.6733", "-67.33", ASKS, "-67.33%"),
    ("0.00988", "0.99", ASKS, "0.99%"),
    ("-0.30636", "", ASKS, "-30.6%"),
    ("-0.3142", "-31.47,", ASKS, "-31.4%"),
    ("-1047.5", "14.77", ASKS, "-1047.5"),
    ("0.27867", "27.9", GIVES, "0.279"),
    ("0.2004", "", GIVES, "0.200"),
    # Nothing to go by.
    ("56.05455", "275.124", "", "56.05"),
    ("3879.0", "3897", "", "3879"),
    ("0.50481", None, "", "0.505"),
    ("0.0", "", "", "0"),
    (1e21, None, "", "1" + "0" * 21),
    # Words, and no result.
    ("yes", "", ASKS, "yes"),
    (" No ", "12", "", "no"),
    (None, "16.43", "", "16.43"),
    (None, "5%", "", "5%"),
    (None, "Yes", "", "yes"),
    ("n/a", "12.5", "", None),
    (None, "from 3 to 5", "", None),
    (None, "", "", None),
    (None, None, "", None),
    ("nan", None, "", None),
]


@pytest.mark.parametrize(("value", "told", "question", "text"), CASES)
def test_the_rule(value, told, question, text):
    assert write_amount(value, told, question) == text


numbers = st.decimals(-(10**12), 10**12, allow_nan=False, places=5)
texts = st.builds(
    "{}{}".format, st.decimals(-1000, 1000, allow_nan=False, places=2), st.sampled_from(["", "%"])
)


@given(numbers, st.none() | texts | st.text(max_size=8), st.sampled_from(["", ASKS, GIVES]))
def test_what_is_written_is_read_as_itself(value, told, question):
    written = write_amount(str(value), told, question)
    parser = PARSERS["amount"]
    parsed = parser.strict(written, ())
    assert parsed is not None
    assert parser.same(parsed, written, [question])


@given(numbers, st.none() | texts, st.sampled_from(["", ASKS, GIVES]))
def test_what_is_written_is_the_result(value, told, question):
    """Within a unit of the last digit written, as it is or times 100."""
    written = write_amount(str(value), told, question)
    number = Decimal(written.removesuffix("%"))
    unit = Decimal(1).scaleb(number.as_tuple().exponent)
    scaled = (value, value * 100) if written.endswith("%") else (value,)
    assert any(abs(number - x) <= unit / 2 for x in scaled)
