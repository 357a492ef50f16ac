"""The text of a numeric answer: one rule from an executed result and what the annotators wrote.

The executed result is the truth; the annotators' text says how it is written. What comes out is
"yes", "no", a plain decimal such as "-1234.5" (no thousands commas, no exponent) or a percentage
such as "10.1%".

1. "yes" and "no" stay.
2. Annotators who wrote a percentage: the result times 100, or the result itself, whichever agrees
   with them, with as many decimals as they wrote.
3. Annotators who wrote a plain number that agrees with the result: a plain number with as many
   decimals. One that agrees with the result times 100, where the question asks for a percentage:
   a percentage.
4. Where they wrote nothing that agrees: a percentage if they or the question name one, else a
   plain number. A result over RATIO is taken to be in percent already, or no percentage at all.
   Percentages get one decimal, under 1 % two significant digits; numbers get two decimals, under 1
   three significant digits.

Knows: decimals, per cent. Does not know: how an answer is read and compared (amounts.py), tasks,
records.
"""

import re
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import NamedTuple

RATIO = Decimal(10)
"""A result up to this can be the ratio behind a percentage: 10 is a growth of 1,000 %."""
LONGEST = 100
"""Digits that a number may have; a longer one is no amount."""

_WIDE = Context(prec=4 * LONGEST)
_SLACK = Decimal("0.000005")
"""Half of the last of five decimals, to which executed results are rounded upstream."""
_NUMBER = re.compile(r"(?<![\w.])(-?)\s?[$€£]?\s?(-?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)")
_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
# "at 5 percent" and "a 10% rise" tell of one that is given; only the others ask for one.
_ASKED = re.compile(r"(?<!\d)(?<!\d[ -])(?:%|per\s?cent)", re.IGNORECASE)


class _Told(NamedTuple):
    """What annotators wrote: the one number in it (None: none, or several), its decimals, "%"."""

    number: Decimal | None
    decimals: int
    percent: bool


def write_amount(value: object, told: object = None, question: str = "") -> str | None:
    """The text of a result; None where neither the result nor the annotators say anything.

    `value`: a number, its text, "yes", "no" or None. `told`: the annotators' text, which is the
    truth only where there is no result. `question`: looked at for whether it asks for a percentage.
    """
    written = "" if told is None else str(told).replace("\\n", " ").strip()
    result, said = _decimal(value), _read(written)
    for text in (str(value).strip().lower(), written.lower() if value is None else ""):
        if text in ("yes", "no"):
            return text
    if result is None:
        if value is not None or said.number is None:
            return None
        return _with_decimals(said.number, said.decimals, said)
    return _agreed(result, said, question) or _by_default(result, said, question)


def _agreed(result: Decimal, said: _Told, question: str) -> str | None:
    """The result in the annotators' form, where it is the number that they wrote."""
    if said.number is None:
        return None
    hundredfold = said._replace(percent=True)
    tried: tuple[tuple[Decimal, _Told], ...]
    if said.percent:
        tried = ((result * 100, hundredfold), (result, hundredfold))
    elif _ASKED.search(question):
        tried = ((result, said), (result * 100, hundredfold))
    else:
        tried = ((result, said),)
    for scaled, form in tried:
        if _agree(scaled, said, form.percent):
            return _with_decimals(scaled, said.decimals, form)
    return None


def _by_default(result: Decimal, said: _Told, question: str) -> str:
    small = abs(result) <= RATIO
    if said.percent or (small and _ASKED.search(question)):
        scaled = result * 100 if small else result
        return f"{_plain(scaled, _sensible(scaled, 1, 2))}%"
    return _plain(result, _sensible(result, 2, 3))


def _agree(scaled: Decimal, said: _Told, percent: bool) -> bool:
    """Whether the annotators' number is the result, rounded as they rounded; signs are theirs."""
    assert said.number is not None
    unit = Decimal(1).scaleb(-said.decimals)
    slack = _SLACK * (100 if percent else 1)
    return abs(abs(scaled) - abs(said.number)) <= unit / 2 + slack


def _with_decimals(number: Decimal, decimals: int, form: _Told) -> str:
    rounded = _round(number, Decimal(1).scaleb(-decimals))
    if number and not rounded:  # so few decimals would say that there is nothing
        rounded = _sensible(number, 1, 2)
    return _plain(number, rounded) + ("%" if form.percent else "")


def _sensible(number: Decimal, decimals: int, significant: int) -> Decimal:
    """So many decimals, or under 1 so many significant digits."""
    places = decimals if abs(number) >= 1 or not number else significant - 1 - number.adjusted()
    return _round(number, Decimal(1).scaleb(-places))


def _round(number: Decimal, unit: Decimal) -> Decimal:
    return number.quantize(unit, ROUND_HALF_UP, _WIDE)


def _plain(number: Decimal, rounded: Decimal) -> str:
    """Digits without an exponent; zeros at the end only where they come from rounding."""
    text = f"{rounded:f}"
    if rounded == number and "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if not rounded else text


def _decimal(value: object) -> Decimal | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < LONGEST else None


def _read(told: str) -> _Told:
    percent = bool(_PERCENT.search(told))
    found = _NUMBER.findall(told)
    if len(found) != 1:
        return _Told(None, 0, percent)
    outer, inner, digits = found[0]
    number = Decimal(digits.replace(",", "").rstrip("."))
    decimals = len(digits.rstrip(".").partition(".")[2])
    if max(len(digits), decimals) > LONGEST:
        return _Told(None, 0, percent)
    return _Told(-number if outer or inner else number, decimals, percent)
