"""Amounts: money, counts, shares and yes/no, parsed, compared with a gold amount, and written.

A parsed amount is `yes`, `no`, a plain decimal (`-1234.5`), a percent (`10.1%`), or a decimal with
its scale (`1.5e6` for "1.5 million").
"""

import decimal
import re
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import NamedTuple

from mixtune.tasks.parsers import Parser, whole_words
from mixtune.tasks.parsers.figures import DASHES, SPACES, Sign, figure, plain_digits
from mixtune.tasks.parsers.numbers import LONGEST, after_mark, without_unit

_EXACT = decimal.Context(decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
"""Arithmetic of decimals without rounding."""

_SIGNS = DASHES | SPACES | str.maketrans({"\uff05": "%", "\uff04": "$", "\uff0b": "+"})
_SPACE = r"[^\S\n]{0,2}"
_CODE = r"(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|CNY|HKD|INR)(?![^\W\d])"
_CURRENCY = rf"(?:(?:US|HK|C|A|S)?\$|[€£¥₹]|{_CODE})"
_NAMED_CURRENCY = rf"(?:[$€£¥₹]|{_CODE}|(?i:dollars?|euros?|pounds?|yen)(?!\w))"
_SCALES = {"thousand": 3, "k": 3, "million": 6, "mn": 6, "mm": 6, "m": 6}
_SCALES |= {"billion": 9, "bn": 9, "b": 9, "trillion": 12, "tn": 12}
_SCALE = r"(?i:thousands?|k|millions?|mn|mm|m|billions?|bn|b|trillions?|tn)(?![\w&])"
_PERCENT = r"(?:%|(?i:percentage points?|percent|per cent|pct)(?!\w))"
# Not within a longer number, a word or "10-K".
_END = r"(?!\w|[.,\xa0/:][0-9]|-[^\W\d_])"
_ABOUT = r"(?i:approximately|approx\.?|about|around|roughly|~|≈)"

_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"[0-9]{1,2}(?i:st|nd|rd|th)?"
_YEAR = r"(?:19|20)[0-9]{2}"
_NOISE = "|".join(
    (
        rf"[0-9]{{1,4}}(?P<sep>[/.-])[0-9]{{1,2}}(?P=sep)[0-9]{{1,4}}{_END}",  # 12/31/2017
        rf"(?:{_MONTH}|(?i:may)){_SPACE}{_DAY}(?:{_SPACE},?{_SPACE}{_YEAR})?{_END}",
        rf"{_DAY}{_SPACE}{_MONTH}(?:{_SPACE},?{_SPACE}{_YEAR})?(?!\w)",
        rf"{_YEAR}{_SPACE}(?:[-/&]|(?i:to|and|or)\s){_SPACE}(?:19|20)?[0-9]{{2}}"
        r"(?![\w%]|[.,][0-9])",
        r"[0-9]{1,2}(?::[0-9]{2})++(?!\w)",  # 10:30
        rf"(?m:^){_SPACE}[0-9]{{1,2}}[.)]{_SPACE}(?=[^\W\d_])",  # the number of a list's item
        r"(?i:s&p|russell|fortune|ftse|nasdaq|nikkei|step|note|page|section|table|figure|item)"
        r"\s[0-9]{1,4}(?![\w%]|[.,][0-9])",
    )
)
"""Numbers that are no amounts; the last amount before them counts."""
_BARE_YEAR = re.compile(_YEAR)
_PARENTHESES = re.compile(r"\([^()\n]{0,200}\)%?")
_ANSWERING = re.compile(r"(?:^|[=:]|\b(?i:is|was|were|equals|by|of))\s*(?:[$€£¥₹]\s?)?$")
_MARK = re.compile(r"####|\\boxed\{|(?i:\banswer\b)[^.\n=:]{0,80}?(?:(?i:\bis\b)|[=:])")
_YES_NO = re.compile(r"[\W_]*(?i:(yes|no))(?=[\W_]*$|\s*[.,;:!\n\"')\]}*—])")
_DENIED = re.compile(r"[\W_]*(?i:not|never|neither|nor)\b")
_MAX_GAP_CHARS, _MAX_GAP_WORDS = 200, 2
"""Characters and words after "the answer is" within which the answer has to begin."""


class _Amounts:
    """The readings of amounts with one decimal sign."""

    def __init__(self, decimal: Sign) -> None:
        self._decimal = decimal
        digits = figure(decimal)
        amount = (
            rf"(?:{_ABOUT}{_SPACE})?(?P<word>(?i:minus|negative)\s)?(?:{_CURRENCY}{_SPACE})?"
            rf"(?P<paren>\({_SPACE})?(?P<sign>[+-])?(?:{_CURRENCY}{_SPACE})?(?P<inner>[+-])?"
            rf"(?P<digits>{digits})(?P<power>[eE][+-]?[0-9]{{1,2}})?"
            rf"(?:{_SPACE}(?P<percent>{_PERCENT})"
            rf"|(?:{_SPACE}(?P<scale>{_SCALE}))?(?:{_SPACE}{_NAMED_CURRENCY})?)"
            rf"(?(paren){_SPACE}\)(?P<late>{_SPACE}%)?)(?P<behind>-(?=\.?\s*$))?{_END}"
        )
        operand = (
            rf"(?:{_CURRENCY}{_SPACE})?[+-]?(?:{_CURRENCY}{_SPACE})?{digits}"
            rf"(?:{_SPACE}{_PERCENT}|(?:{_SPACE}{_SCALE})?(?:{_SPACE}{_NAMED_CURRENCY})?)"
        )
        # A range, a choice, a formula without its result: not one amount.
        undecided = (
            rf"(?i:between)\s{operand}{_SPACE}(?i:and)\s{operand}{_END}"
            rf"|{operand}(?:{_SPACE}(?:[-+*/×÷x]|(?i:to|or)\s){_SPACE}{operand})+{_END}"
        )
        self._whole = re.compile(amount)
        self._token = re.compile(
            # Not inside a word or another number; "COVID-19" and the divisor of a formula are none
            # either.
            rf"(?<![\w.,/$€£¥₹])(?<!\w-)(?<![/*×÷]\s)"
            rf"(?:(?P<noise>{_NOISE})|(?P<undecided>{undecided})|{amount})"
        )

    def gold(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The amount, `yes` or `no` that makes up a gold answer or its `####` line.

        It may have a unit behind it, which is ignored.
        """
        marked = after_mark(text).strip()
        word = marked.rstrip(".!").casefold()
        if word in ("yes", "no"):
            return word
        return self.strict(marked) or self.strict(without_unit(marked.translate(_SIGNS)))

    def strict(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The amount, `yes` or `no` that makes up the whole output."""
        trimmed = text.strip()
        if trimmed in ("yes", "no"):
            return trimmed
        match = self._whole.fullmatch(trimmed.translate(_SIGNS))
        return self._canonical(match) if match else None

    def lenient(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The amount after "the answer is", else a first line that is one, else the last amount.

        Years, dates and remarks in parentheses are skipped. A range, a choice or a formula at the
        end leaves the answer open: None.
        """
        exact = self.strict(text)
        if exact is None and len(text) <= LONGEST:
            exact = self.strict(without_unit(text.translate(_SIGNS)))
        if exact is not None:
            return exact
        plain = self._plain(text)
        announced = self._announced(plain)
        return self._opening(plain) or self._last(plain) if announced is None else announced or None

    def cut(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The amount of a text that was cut off: only one that is announced, or comes first.

        The last number of reasoning that was cut off is an intermediate result.
        """
        plain = self._plain(whole_words(text))
        announced = self._announced(plain)
        return self._opening(plain) if announced is None else announced or None

    def same(self, parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
        """True if an amount is within half a unit of the gold's last digit, exactly.

        `yes` and `no` are compared as words. `turns`: those of the user. A factor of 100 is granted
        where the gold is a percent or the question (the last line of the last turn, or the one that
        begins "Question") names percent; an answer's own "%" is never ignored. "5.8 million" is 5.8
        where a turn says "in millions".
        """
        goal = self.gold(gold)
        if goal is None or goal in ("yes", "no") or parsed in ("yes", "no"):
            return parsed == goal
        target = Decimal(goal.removesuffix("%"))
        exponent = target.as_tuple().exponent
        assert isinstance(exponent, int)
        half = Decimal((0, (5,), exponent - 1))  # half a unit of the last digit: 0.05 for 10.1
        low, high = _EXACT.subtract(target, half), _EXACT.add(target, half)
        readings = _readings(parsed, turns, as_percent=goal.endswith("%"))
        return any(low <= reading <= high for reading in readings)

    def _canonical(self, match: re.Match[str]) -> str:
        digits = plain_digits(match["digits"], self._decimal)
        number = f"{Decimal(digits + (match['power'] or '')):f}"
        # Accountants write a loss in parentheses.
        minus = (
            match["paren"]
            or match["word"]
            or "-" in (match["sign"], match["inner"], match["behind"])
        )
        scale = (match["scale"] or "").lower()
        if scale:
            end = f"e{_SCALES.get(scale) or _SCALES[scale.removesuffix('s')]}"
        else:
            end = "%" if match["percent"] or match["late"] else ""
        return f"{'-' if minus else ''}{number}{end}"

    def _plain(self, text: str) -> str:
        """A text without colours, markdown, LaTeX signs and remarks in parentheses."""
        text = re.sub(r"\x1b\[[0-9;]{0,20}[A-Za-z]", "", text)
        text = text.translate(_SIGNS).replace("**", "").replace("`", "")
        text = re.sub(r"\\([$%])", r"\1", re.sub(r"\\[()\[\]]", " ", text))
        text = re.sub(r"\\[dt]?frac\{([^{}]{0,40})\}\{([^{}]{0,40})\}", r"\1/\2", text)

        def keep_answer(match: re.Match[str]) -> str:
            """An amount in parentheses where an answer is expected is a negative number."""
            before = text[max(0, match.start() - 20) : match.start()]
            if match.start() > 20:
                before = f"x{before}"  # so that "^" is the start of the text only
            return (
                match[0] if _ANSWERING.search(before) and self._whole.fullmatch(match[0]) else " "
            )

        return _PARENTHESES.sub(keep_answer, text)

    def _announced(self, plain: str) -> str | None:
        """The amount, `yes` or `no` after "the answer is", "####" or the start of a box.

        None: nothing is announced. "": something that cannot be parsed as one amount.
        """
        marks = list(_MARK.finditer(plain))
        if not marks:
            return None
        rest = plain[marks[-1].end() :]
        if _DENIED.match(rest):
            return ""
        word = _YES_NO.match(rest)
        return word[1].lower() if word else self._first(rest)

    def _first(self, rest: str) -> str | None:
        """The amount that an announced answer begins with; as `_announced`."""
        for token in self._token.finditer(rest):
            words = re.findall(r"\w+", rest[: min(token.start(), _MAX_GAP_CHARS)])
            if token.start() > _MAX_GAP_CHARS or len(words) > _MAX_GAP_WORDS:
                return None
            if token["noise"] is None and not (words and _BARE_YEAR.fullmatch(token[0])):
                return "" if token["undecided"] else self._canonical(token)
        return None

    def _opening(self, plain: str) -> str | None:
        """`yes` or `no` at the start, or a first line that is an amount and is explained below."""
        word = _YES_NO.match(plain)
        if word:
            return word[1].lower()
        first, more, _ = plain.lstrip().partition("\n")
        return self.strict(first.strip(" \t.\"'")) if more else None

    def _last(self, plain: str) -> str | None:
        """The last amount, None where a range, choice or formula comes last.

        A number that looks like a year is one, unless it is the whole text or the result of a
        formula.
        """
        alone = re.search(r"\w[^\w.,]+\w", plain) is None  # not two words
        last = None
        for token in self._token.finditer(plain):
            before = plain[max(0, token.start() - 20) : token.start()].rstrip(" $")
            result = alone or before.endswith("=")
            if token["noise"] is None and (result or not _BARE_YEAR.fullmatch(token[0])):
                last = None if token["undecided"] else self._canonical(token)
        return last


def _amount(decimal: Sign, comma: Parser | None = None) -> Parser:
    reader = _Amounts(decimal)
    parses = reader.strict, reader.lenient, reader.same, reader.cut
    return Parser("amount", 2, *parses, gold=reader.gold, comma=comma)


AMOUNT = _amount(".", _amount(","))


def _readings(parsed: str, turns: Sequence[str], *, as_percent: bool) -> Iterator[Decimal]:
    """Values of a parsed amount, in percent points or as a number in the question's own unit."""
    number, percent = Decimal(parsed.removesuffix("%")), parsed.endswith("%")
    yield _EXACT.scaleb(number, -2) if percent and not as_percent else number
    if as_percent:
        if not percent:  # it may be a ratio
            yield _EXACT.scaleb(number, 2)
        return
    # "a rate of 5 percent" asks for no percentage.
    question = _question(turns[-1]) if turns else ""
    if re.search(r"(?<![0-9])(?<![0-9]\s)(?i:%|percent|per cent|pct)", question):
        # The gold may be the ratio or the percentage.
        yield from (number,) if percent else (_EXACT.scaleb(number, n) for n in (2, -2))
    if "e" in parsed:
        yield from (_EXACT.scaleb(number, -scale) for scale in _named_scales(turns))


def _question(turn: str) -> str:
    """The line that asks: the last that begins "Question", else the last; "Answer:" is none."""
    lines = [line for line in turn.splitlines() if re.search(r"\w", line)]
    lines = [line for line in lines if not re.fullmatch(r"\W*\w+\s?:\W*", line)]
    questions = [line for line in lines if re.match(r"\W*question\b", line, re.IGNORECASE)]
    return (questions or lines or [""])[-1]


def _named_scales(turns: Sequence[str]) -> set[int]:
    words = re.findall(
        r"(?i:\b(thousand|million|billion|trillion)s\b|\bin (thousand|million|billion)\b)",
        "\n".join(turns),
    )
    return {_SCALES[(plural or single).lower()] for plural, single in words}


# ---- writing -------------------------------------------------------------------------------------

_RATIO = Decimal(10)
"""A result up to this can be a ratio shown as a percentage: 10 is a growth of 1,000 %."""
_MAX_DIGITS = 100
"""A number with more digits is no amount."""
_SLACK = Decimal("0.000005")
"""Half of the last of five decimals, to which executed results are rounded upstream."""
_NUMBER = re.compile(r"(?<![\w.])(-?)\s?[$€£]?\s?(-?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)")
_STATES_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
# "at 5 percent" and "a 10% rise" state a percentage; "what percent" asks for one.
_ASKS_PERCENT = re.compile(r"(?<!\d)(?<!\d[ -])(?:%|per\s?cent)", re.IGNORECASE)


class _Annotation(NamedTuple):
    """The one number of an annotation (None: none, or several), its decimals, and its "%"."""

    number: Decimal | None
    decimals: int
    percent: bool


def write_amount(value: object, annotation: object = None, question: str = "") -> str | None:
    """The text of an executed result; None where neither it nor the annotation has an answer.

    The result (a number, its text, "yes", "no" or None) is the truth; the annotation by people
    shows the number format, and is the truth only where there is no result. The text is "yes",
    "no", a plain decimal such as "-1234.5" (no commas, no exponent) or a percentage, "10.1%":

    1. The annotation is a percentage: the result times 100, or the result itself, whichever agrees
       with it, with as many decimals.
    2. The annotation is a plain number that agrees with the result: a plain number with as many
       decimals. If it agrees with the result times 100 and the question asks for a percentage: a
       percentage.
    3. The annotation does not agree: a percentage if it or the question names one, else a plain
       number. A result over 10 is taken to be in percent already, or no percentage at all.
       Percentages get one decimal, under 1 % two significant digits; numbers two, under 1 three
       significant digits.
    """
    text = "" if annotation is None else str(annotation).replace("\\n", " ").strip()
    result, parsed = _decimal(value), _read_annotation(text)
    for word in (str(value).strip().lower(), text.lower() if value is None else ""):
        if word in ("yes", "no"):
            return word
    if result is not None:
        return _as_annotated(result, parsed, question) or _by_default(result, parsed, question)
    if value is not None or parsed.number is None:
        return None
    return _with_decimals(parsed.number, parsed.decimals, parsed.percent)


def _as_annotated(result: Decimal, annotation: _Annotation, question: str) -> str | None:
    """The result in the annotation's format, if that is the same number."""
    if annotation.number is None:
        return None
    if annotation.percent:
        readings = [(result * 100, True), (result, True)]
    else:
        readings = [(result, False)]
        readings += [(result * 100, True)] if _ASKS_PERCENT.search(question) else []
    for scaled, percent in readings:
        # Signs may differ: annotators often write a fall without one.
        unit = Decimal(1).scaleb(-annotation.decimals)
        slack = _SLACK * (100 if percent else 1)
        if abs(abs(scaled) - abs(annotation.number)) <= unit / 2 + slack:
            return _with_decimals(scaled, annotation.decimals, percent)
    return None


def _by_default(result: Decimal, annotation: _Annotation, question: str) -> str:
    ratio = abs(result) <= _RATIO
    if annotation.percent or (ratio and _ASKS_PERCENT.search(question)):
        scaled = result * 100 if ratio else result
        return f"{_digits(scaled, _few_digits(scaled, 1, 2))}%"
    return _digits(result, _few_digits(result, 2, 3))


def _with_decimals(number: Decimal, decimals: int, percent: bool) -> str:
    rounded = _rounded(number, decimals)
    if number and not rounded:  # too few decimals: the text would be 0
        rounded = _few_digits(number, 1, 2)
    return _digits(number, rounded) + ("%" if percent else "")


def _few_digits(number: Decimal, decimals: int, significant: int) -> Decimal:
    """Rounded to a number of decimals, under 1 to a number of significant digits."""
    few = abs(number) >= 1 or not number
    return _rounded(number, decimals if few else significant - 1 - number.adjusted())


def _rounded(number: Decimal, decimals: int) -> Decimal:
    return number.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP, _EXACT)


def _digits(number: Decimal, rounded: Decimal) -> str:
    """Digits without an exponent; trailing zeros only where rounding made them."""
    text = f"{rounded:f}"
    if rounded == number and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text if rounded else "0"


def _decimal(value: object) -> Decimal | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < _MAX_DIGITS else None


def _read_annotation(text: str) -> _Annotation:
    percent = bool(_STATES_PERCENT.search(text))
    numbers = _NUMBER.findall(text)
    outer_sign, inner_sign, digits = numbers[0] if len(numbers) == 1 else ("", "", "")
    decimals = len(digits.rstrip(".").partition(".")[2])
    if not 0 < len(digits) <= _MAX_DIGITS:
        return _Annotation(None, 0, percent)
    number = Decimal(digits.replace(",", "").rstrip("."))
    return _Annotation(-number if outer_sign or inner_sign else number, decimals, percent)
