"""Gold answers: read in whole or refused, in every convention; a column decides what 1.250 is."""

import csv
import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError
from mixtune.tasks.parsers.labels import PARSERS

NUMBERS = ("number", "final-number", "amount")

# gold, its value for number, its value for amount; None: no value
GOLDS = [
    ("3/17", "3/17", None),
    ("-1/2", "-1/2", None),
    ("1 1/2", "3/2", None),
    ("\u00bd", "1/2", None),
    ("2\u00be", "11/4", None),
    ("3/0", None, None),
    ("1,234.5", "1234.5", "1234.5"),
    ("1.234,5", "1234.5", "1234.5"),
    ("1 234,5", "1234.5", "1234.5"),
    ("1\xa0234,5", "1234.5", "1234.5"),
    ("1\u202f234\u202f567", "1234567", "1234567"),
    ("1'234.5", "1234.5", "1234.5"),
    ("1\u2019234\u2019567", "1234567", "1234567"),
    ("12,34,567.80", "1234567.80", "1234567.80"),
    ("1.234.567", "1234567", "1234567"),
    ("(1,250)", "-1250", "-1250"),
    ("1,250-", "-1250", "-1250"),
    ("\u22121,250", "-1250", "-1250"),
    ("1e3", "1E+3", "1000"),
    ("1.5 \u00d7 10\u00b3", "1.5E+3", None),
    ("2x10^-3", "0.002", None),
    ("$1,250", "1250", "1250"),
    ("1.250,00 \u20ac", "1250.00", "1250.00"),
    ("USD 5", "5", "5"),
    ("5%", "5", "5%"),
    ("(5%)", "-5", "-5%"),
    ("25 bps", "25", "25"),
    ("5k", "5e3", "5e3"),
    ("$1.5 bn", "1.5e9", "1.5e9"),
    ("1.5 million tons", "1.5e6", "1.5e6"),
    ("12 kg", "12", "12"),
    ("5kg", "5", "5"),
    ("18 apples", "18", "18"),
    ("3 times", "3", "3"),
    ("12 square feet", "12", "12"),
    ("about 12", "12", "12"),
    ("12.", "12", "12"),
    ("**12**", "12", "12"),
    ("3 + 4 = 7\n#### 7", "7", "7"),
    ("Yes.", None, "yes"),
    # ranges, bounds, dates, times, words, a part of a figure
    *((text, None, None) for text in (
        "5-7", "3 to 5", "5 or 7", "between 3 and 5", "3\u20135 kg", "5+", ">5", "at least 5",
        "3 or more", "5 million to 6 million", "2017-12-31", "12/31/2017", "31.12.2017",
        "March 5, 2020", "5 March", "10:30", "5 pm", "twelve", "n/a", "-", "unknown", "x = 5",
        "The answer is 5", "so 5\n#### 5 or 7", "1,23", "0,250", "1,2345", "1.2.3", "1 2", "Q3",
        "3rd", "5 dozen", "7 hundred", "5 lakh", "5 Mio.", "2 Mrd. EUR", "5 p.m.",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "number", "amount"), GOLDS)
def test_golds_are_read_in_whole_or_not_at_all(gold, number, amount):
    for name, value in zip(NUMBERS, (number, number, amount), strict=True):
        parser = PARSERS[name]
        assert parser.gold(gold, ()) == value, name
        if value is not None:  # The gold answer as a model's answer is right.
            parsed = parser.lenient(gold, ())
            assert parsed is not None and parser.same(parsed, gold, ())


@pytest.mark.parametrize(
    ("name", "words", "gold", "value"),
    [
        ("boxed", (), "So it is \\boxed{\\frac12}.", "\\frac{1}{2}"),
        ("boxed", (), "\\boxed{}", None),
        ("boxed", (), "\\frac12", "\\frac{1}{2}"),
        ("boxed", (), "The answer is 5", None),
        ("boxed", (), "First we add.\nThen it is 5", None),
        ("spans", ("PER",), "PER: Ann", "PER: Ann"),
        ("spans", ("PER",), "per: Ann", None),
        ("spans", ("PER",), "- PER: Ann", None),
        ("spans", ("PER",), "none", "none"),
        ("triplets", ("owns",), "A | owns | B", "A | owns | B"),
        ("triplets", ("owns",), "A | has | B", None),
        ("text", (), " free words ", "free words"),
        ("text", (), " ", None),
    ],
)
def test_other_golds(name, words, gold, value):
    assert PARSERS[name].gold(gold, words) == value


# ---- gold × renderings ---------------------------------------------------------------------------


def grouped(digits, sign):
    parts = []
    while digits:
        digits, part = digits[:-3], digits[-3:]
        parts.insert(0, part)
    return sign.join(parts)


def indian(digits):
    head, tail = digits[:-3], digits[-3:]
    parts = [tail]
    while head:
        head, part = head[:-2], head[-2:]
        parts.insert(0, part)
    return ",".join(parts)


def renderings(number, decimal):
    """Each way to write a decimal that is unmistakable, or has the decimal sign."""
    whole, _, places = f"{abs(number):f}".partition(".")
    ways = {whole + (decimal + places if places else "")}
    comma = "," if decimal == "." else "."
    ways.add(grouped(whole, comma) + (decimal + places if places else ""))
    for space in (" ", "\xa0", "\u202f", "'", "\u2019"):
        if len(whole) > 3:
            ways |= {grouped(whole, space) + (sign + places if places else "") for sign in ".,"}
    if len(whole) > 3 and places:
        ways |= {f"{grouped(whole, ',')}.{places}", f"{grouped(whole, '.')},{places}"}
    if len(whole) > 6:
        ways |= {grouped(whole, sign) for sign in ".," if not places}
    if decimal == "." and len(whole) > 5:
        ways.add(indian(whole) + ("." + places if places else ""))
    if number >= 0:
        return ways | {f"+{way}" for way in ways}
    return {f"{minus}{way}" for way in ways for minus in "-\u2212"} | {
        negative for way in ways for negative in (f"({way})", f"{way}-")
    }


numbers = st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 4)).map(
    lambda pair: Decimal(pair[0]).scaleb(-pair[1])
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("decimal", [".", ","])
@given(number=numbers, data=st.data())
def test_every_rendering_of_a_gold_is_right_and_of_another_value_wrong(name, decimal, number, data):
    parser = PARSERS[name] if decimal == "." else PARSERS[name].comma
    start = "#### " if name == "final-number" else ""
    ways = sorted(renderings(number, decimal))
    gold = data.draw(st.sampled_from(ways))
    other = number + data.draw(st.sampled_from([1, -1, 1000, 10**6]))
    for way in ways:
        parsed = parser.strict(start + way, ())
        assert parsed is not None and parser.same(parsed, gold, ()), (way, gold)
        assert parser.same(parser.lenient(f"The answer is {way}", ()), gold, ()) or "(" in way
    for way in renderings(other, decimal):
        parsed = parser.strict(start + way, ())
        assert parsed is not None and not parser.same(parsed, gold, ()), (way, gold)


@given(top=st.integers(1, 10**6), bottom=st.integers(1, 10**6), more=st.integers(1, 9))
def test_every_rendering_of_a_fraction_is_right(top, bottom, more):
    parser, value = PARSERS["number"], Fraction(top, bottom)
    whole, rest = divmod(top, bottom)
    ways = [f"{top}/{bottom}", f"{top} / {bottom}", f"{top * more}/{bottom * more}", str(value)]
    ways += [f"{whole} {rest}/{bottom}"] if whole else []
    for way in ways:
        assert parser.same(parser.strict(way, ()), ways[0], ())
        assert parser.same(parser.lenient(f"So it is {way}.", ()), ways[0], ())
        assert not parser.same(parser.strict(f"-{way}", ()), ways[0], ())
        assert not parser.same(parser.strict(f"{top + 1}/{bottom}", ()), way, ())


# ---- columns -------------------------------------------------------------------------------------


def task(folder, answers, splits=None, rows=None, **keys):
    """A task over a CSV file, or over JSON lines where rows are given."""
    for name, values in (splits or {"train": answers}).items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [
                    ("text", "answer"),
                    *((f"how much is {name} {n}", v) for n, v in enumerate(values)),
                ]
            )
    source = {name: f"{name}.csv" for name in splits or ["train"]}
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(text, encoding="utf-8")
        source = {"train": "train.jsonl"}
    raw = {"name": "sums", "prompt": "{{ text }}", "target": "{{ answer }}", "parser": "number"}
    raw |= {"metrics": ["accuracy"], "source": source, **keys}
    (folder / "sums.yaml").write_text(json.dumps(raw), encoding="utf-8")
    return Registry.builtin().with_files([folder / "sums.yaml"]).dataset("sums", 0.1)


def loaded(folder, answers, **keys):
    return len(task(folder, answers, **keys)._stored_split("train").examples)


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (["1.250", "2.5"], ""),  # the other answers show a decimal point
        (["1.250", "1,234.5"], ""),
        (["1.250", "0.125"], ""),
        (["1,250", "3,500"], ""),  # thousands, as before
        (["1,250", "1.5"], ""),
        (["1 250", "3/17", "(1,250)"], ""),
        (["1.250", "3.125", "7"], "1.250 or 1250.*no other answer shows which"),
        (["1.250", "1,250"], "no other answer shows which"),
        (["1.250", "1.234,5"], "1.250 or 1250.*a decimal comma"),
        (["7", "1,250", "1.234,5"], "1.250 or 1250.*a decimal comma"),
        (["1.250", "1.234,5", "0.5"], "a decimal comma and a decimal point"),
        (["7", "12,5"], "cannot read an answer of the data in whole"),
    ],
)
def test_a_column_decides_what_an_answer_is(tmp_path, answers, fault):
    if not fault:
        assert loaded(tmp_path, answers) == len(answers)
        return
    with pytest.raises(DataError, match=f"(?s){fault}.*decimal: comma") as error:
        loaded(tmp_path, answers)
    place = next(n for n, a in enumerate(answers) if a in ("1.250", "1,250", "12,5"))
    assert f"train.csv:{place + 2}: field 'answer'" in str(error.value)
    # The remedy works.
    assert loaded(tmp_path, answers, decimal="comma") == len(answers)


def test_the_decimal_sign_decides_scores_and_their_version(tmp_path):
    point, comma = (task(tmp_path, ["1.250"], decimal=sign).task for sign in ("point", "comma"))
    assert point.reader.same(point.reader.strict("1,250"), "1250", ())
    assert comma.reader.same(comma.reader.strict("1250"), "1.250", ())
    assert not point.reader.same(point.reader.strict("1250"), "1.250", ())
    plain = task(tmp_path, ["7"]).task
    assert plain.parser_version == point.parser_version != comma.parser_version
    assert plain.prompt_version == comma.prompt_version


def test_other_splits_and_stored_numbers_decide_too(tmp_path):
    splits = {"train": ["2.5", "7"], "validation": ["1.250"], "test": ["3.125"]}
    assert len(task(tmp_path, [], splits).split("test").examples) == 1
    rows = [{"text": f"row {n}", "answer": 1.125 + n} for n in range(3)]
    assert loaded(tmp_path, [], rows=rows) == 3
    with pytest.raises(DataError, match="decimal point, and decimal: comma"):
        loaded(tmp_path, [], rows=rows, decimal="comma")


def test_a_gold_that_is_no_value_is_a_fault_with_its_line_and_a_remedy(tmp_path):
    with pytest.raises(DataError) as error:
        loaded(tmp_path, ["5", "5-7"])
    for part in ("train.csv:3", "field 'answer'", "'5-7'", "leave_out: {answer: ['5-7']}"):
        assert part in str(error.value)
    assert loaded(tmp_path, ["5", "5-7"], leave_out={"answer": ["5-7"]}) == 1
    # What is trained on only may be anything.
    assert loaded(tmp_path, ["5", "5-7"], role="ingredient", metrics=[]) == 2


def test_decimal_is_for_numbers(tmp_path):
    with pytest.raises(DataError, match="decimal: answers of the parser 'text' have no decimals"):
        task(tmp_path, ["a"], parser="text", decimal="comma")
