"""The text of a numeric answer, from an executed result and its annotation by people.

The executed result is the truth; the annotation shows the number format. The text is "yes", "no", a
plain decimal such as "-1234.5" (no commas, no exponent) or a percentage such as "10.1%".

1. "yes" and "no" are kept.
2. The annotation is a percentage: the result times 100, or the result itself, whichever agrees with
   it, with as many decimals.
3. The annotation is a plain number that agrees with the result: a plain number with as many
   decimals. If it agrees with the result times 100 and the question asks for a percentage: a
   percentage.
4. The annotation does not agree: a percentage if it or the question names one, else a plain number.
   A result over RATIO is taken to be in percent already, or no percentage at all. Percentages get
   one decimal, under 1 % two significant digits; numbers two, under 1 three significant digits.

Knows: decimals, per cent. Does not know: how an answer is parsed and compared (amounts.py), tasks,
records.
"""

import re
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import NamedTuple

RATIO = Decimal(10)
"""A result up to this can be a ratio shown as a percentage: 10 is a growth of 1,000 %."""
MAX_DIGITS = 100
"""A number with more digits is no amount."""

_WIDE = Context(prec=4 * MAX_DIGITS)
_SLACK = Decimal("0.000005")
"""Half of the last of five decimals, to which executed results are rounded upstream."""
_NUMBER = re.compile(r"(?<![\w.])(-?)\s?[$€£]?\s?(-?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)")
_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
# "at 5 percent" and "a 10% rise" state a percentage; "what percent" asks for one.
_ASKS_PERCENT = re.compile(r"(?<!\d)(?<!\d[ -])(?:%|per\s?cent)", re.IGNORECASE)


class _Annotation(NamedTuple):
    """The one number of an annotation (None: none, or several), its decimals, and its "%"."""

    number: Decimal | None
    decimals: int
    percent: bool


def write_amount(value: object, annotation: object = None, question: str = "") -> str | None:
    """The text of a result; None where neither the result nor the annotation has an answer.

    `value`: a number, its text, "yes", "no" or None. `annotation`: text, which is the truth only
    where there is no result. `question`: searched for words that ask for a percentage.
    """
    text = "" if annotation is None else str(annotation).replace("\\n", " ").strip()
    result, parsed = _decimal(value), _read(text)
    for word in (str(value).strip().lower(), text.lower() if value is None else ""):
        if word in ("yes", "no"):
            return word
    if result is None:
        if value is not None or parsed.number is None:
            return None
        return _with_decimals(parsed.number, parsed.decimals, parsed.percent)
    return _as_annotated(result, parsed, question) or _by_default(result, parsed, question)


def _as_annotated(result: Decimal, annotation: _Annotation, question: str) -> str | None:
    """The result in the annotation's format, if that is the same number."""
    if annotation.number is None:
        return None
    if annotation.percent:
        readings = [(result * 100, True), (result, True)]
    elif _ASKS_PERCENT.search(question):
        readings = [(result, False), (result * 100, True)]
    else:
        readings = [(result, False)]
    for scaled, percent in readings:
        # Signs may differ: annotators often write a fall without one.
        unit = Decimal(1).scaleb(-annotation.decimals)
        slack = _SLACK * (100 if percent else 1)
        if abs(abs(scaled) - abs(annotation.number)) <= unit / 2 + slack:
            return _with_decimals(scaled, annotation.decimals, percent)
    return None


def _by_default(result: Decimal, annotation: _Annotation, question: str) -> str:
    ratio = abs(result) <= RATIO
    if annotation.percent or (ratio and _ASKS_PERCENT.search(question)):
        scaled = result * 100 if ratio else result
        return f"{_plain(scaled, _rounded(scaled, 1, 2))}%"
    return _plain(result, _rounded(result, 2, 3))


def _with_decimals(number: Decimal, decimals: int, percent: bool) -> str:
    rounded = _round(number, Decimal(1).scaleb(-decimals))
    if number and not rounded:  # too few decimals: the text would be 0
        rounded = _rounded(number, 1, 2)
    return _plain(number, rounded) + ("%" if percent else "")


def _rounded(number: Decimal, decimals: int, significant: int) -> Decimal:
    """Rounded to a number of decimals, under 1 to a number of significant digits."""
    places = decimals if abs(number) >= 1 or not number else significant - 1 - number.adjusted()
    return _round(number, Decimal(1).scaleb(-places))


def _round(number: Decimal, unit: Decimal) -> Decimal:
    return number.quantize(unit, ROUND_HALF_UP, _WIDE)


def _plain(number: Decimal, rounded: Decimal) -> str:
    """Digits without an exponent; trailing zeros only where rounding made them."""
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
    return number if number.is_finite() and abs(number.adjusted()) < MAX_DIGITS else None


def _read(text: str) -> _Annotation:
    percent = bool(_PERCENT.search(text))
    numbers = _NUMBER.findall(text)
    if len(numbers) != 1:
        return _Annotation(None, 0, percent)
    outer_sign, inner_sign, digits = numbers[0]
    number = Decimal(digits.replace(",", "").rstrip("."))
    decimals = len(digits.rstrip(".").partition(".")[2])
    if max(len(digits), decimals) > MAX_DIGITS:
        return _Annotation(None, 0, percent)
    return _Annotation(-number if outer_sign or inner_sign else number, decimals, percent)
