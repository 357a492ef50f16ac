"""Plain numbers: figures of several conventions, fractions, powers of ten; compared exactly.

A gold answer may also have a unit, a currency, a percent sign or a scale ("5 million"); but for
the scale they are ignored. A parsed number is a decimal (`-1234.5`) or a fraction (`3/17`).
"""

import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from mixtune.tasks.parsers import Parser, whole_words
from mixtune.tasks.parsers.figures import DASHES, SPACES, Sign, figure, plain_digits

_SIGNS = DASHES | SPACES | str.maketrans({"\uff0b": "+", "\u2044": "/"})
_MOST_POWERS = 999
LONGEST = 200
"""Characters of a text that is a number and a unit."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_SCALES = {"thousand": 3, "k": 3, "million": 6, "mn": 6, "mln": 6, "M": 6}
_SCALES |= {"billion": 9, "bn": 9, "trillion": 12, "tn": 12}
# Single letters only right behind the digits and, but for k, in upper case: "5 m" are metres.
_SCALE = (
    r"(?:[ \xa0]?(?P<scale>(?i:thousand|million|billion|trillion)s?|mn|mln|bn|tn"
    r"|(?<=[0-9])[kKM])(?!\w))"
)
_POWER = (
    r"(?P<power>[eE][+-]?[0-9]{1,3}"
    r"|[ \xa0]?[x×·*][ \xa0]?10(?:\^[({]?[+-]?[0-9]{1,3}[)}]?|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
)
_FRACTION = (
    r"(?:(?P<whole>[0-9]{1,15})[ \xa0])?(?P<top>[0-9]{1,15})"
    r"[ \xa0]?/[ \xa0]?(?P<bottom>[0-9]{1,15})"
    rf"|(?P<units>[0-9]{{1,15}})?[ \xa0]?(?P<vulgar>[{_VULGAR}])"
)

ABOUT = r"(?:(?:approximately|approx\.?|about|around|roughly|circa|ca\.)\s|[~≈]\s?)"
CURRENCY = (
    r"(?:(?:US|HK|CA|AU|NZ|C|A|S)?\$|[€£¥₹₽₩₺₪₴₫฿]"
    r"|(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|CNY|HKD|INR|SEK|NOK|DKK|PLN|CZK|BRL|MXN|ZAR|KRW|RUB|TRY|Rs\.?)"
    r"(?![^\W\d_]))"
)
_BEFORE = re.compile(rf"^{ABOUT}?(?P<sign>[-+(]*)(?:{CURRENCY}\s?)?(?P<inner>[-+]?)", re.IGNORECASE)
_AFTER = re.compile(
    rf"\s?(?:{CURRENCY}|%|‰|per\s?cent|percentage points?|pct|dollars?|euros?|pounds?|yen|cents?)"
    r"(?P<end>\)?)$",
    re.IGNORECASE,
)
_UNIT_WORD = r"(?:°?[^\W\d_][^\W_]{0,30}[²³]?(?:[-/.^][^\W_]{1,20}){0,3}\.?|[°²³µΩ])"
_UNIT = re.compile(
    rf"(?:(?<=[0-9{_VULGAR})])(?!\s(?:thousand|million|billion|trillion))"
    r"|(?<=(?i:.thousand|..million|..billion|.trillion)))"
    rf"(?:\s{_UNIT_WORD}){{1,4}}$"
)
_SHORT_UNIT = re.compile(
    r"(?<=[0-9])(?:kg|g|mg|km|cm|mm|l|ml|h|s|ms|min|ft|lbs?|oz|mph|km/h|kWh|MWh?|GB|MB|bps|pp|pts?"
    r"|°[CF]?)$"
)
_NO_UNIT = re.compile(
    r"\b(?:or|and|to|till|until|through|vs|versus|between|more|less|fewer|greater|higher|lower|than"
    r"|least|most|over|under|up|plus|minus|not|no|is|are|was|were|at|bis|oder|und|ou|et|[ap]\.?m|bc"
    r"|lakhs?|lacs?|crores?|mio|mrd|tsd|millionen|milliarden?|milliards?|tausend|mille"
    r"|dozens?|hundreds?|thousands?|millions?|billions?|trillions?|k|mn|mln|bn|tn"
    r"|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b",
    re.IGNORECASE,
)
"""Words that make a number something else: a range, a bound, a date, another scale."""


def strip_unit(text: str) -> str:
    """A gold answer's figure without currency, percent sign and unit."""
    text = _BEFORE.sub(r"\g<sign>\g<inner>", without_unit(text))
    return _AFTER.sub(r"\g<end>", text).strip()


def without_unit(text: str) -> str:
    """A gold answer without marks around it and without a unit behind it."""
    text = text.strip().strip("\"'`*").removesuffix(".").rstrip()
    text = text.strip("$") if text.count("$") == 2 else text
    unit = _UNIT.search(text) or _SHORT_UNIT.search(text)
    return text[: unit.start()] if unit and not _NO_UNIT.search(unit[0]) else text


class _Numbers:
    """The readings of numbers with one decimal sign."""

    def __init__(self, decimal: Sign) -> None:
        self._decimal = decimal
        digits = figure(decimal)
        number = rf"(?:{_FRACTION}|(?P<digits>{digits}){_POWER}?)"
        self._whole = re.compile(
            rf"(?P<paren>\()?(?P<sign>[+-]?){number}{_SCALE}?(?P<late>-?)(?(paren)\))"
        )
        self._last = re.compile(
            # Not inside a word or another number; a sign only where no digit precedes it.
            rf"(?<![\w.,])(?<![0-9]/)(?P<sign>[+-]?)[$€£¥]?(?P<inner>[+-]?){number}{_SCALE}?"
            r"(?P<late>-(?=[.,]?(?:\s*$|\s[^\d\s])))?(?!\w|/\d|[.,]\d|['’\xa0]\d{3})"
        )

    def strict(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The number that makes up the output, without a unit or scale."""
        match = self._whole.fullmatch(_clean(text))
        return self._canonical(match) if match and not match["scale"] else None

    def gold(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The number that makes up a gold answer or its `####` line, but for a unit."""
        return self._alone(after_mark(text))

    def _alone(self, text: str) -> str | None:
        """The number of a text that holds nothing else but a unit."""
        exact = self.strict(text)
        if exact is not None or len(text) > LONGEST:
            return exact
        match = self._whole.fullmatch(strip_unit(_clean(text)))
        return self._canonical(match) if match else None

    def lenient(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The last number in the output; currency and percent signs are ignored."""
        alone = self._alone(text)
        if alone is not None:
            return alone
        matches = deque(self._last.finditer(text.translate(_SIGNS)), maxlen=1)
        return self._canonical(matches.pop()) if matches else None

    def same(self, parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
        """True if two numbers are equal, exactly.

        "5 million" is 5 too where the gold answer has no scale: the question may name it.
        """
        goal = self.gold(gold)
        if goal is None:
            return False
        bare = parsed if "e" in goal else parsed.partition("e")[0]
        return _equal(parsed, goal) or _equal(bare, goal)

    def strict_final(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The number of the last line, which has to be `#### 18`; the lines before it are free."""
        last = text.strip().rpartition("\n")[2].strip()
        return self.strict(last[5:]) if last.startswith("#### ") else None

    def lenient_final(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The number after the last `####` that has one, else the last number."""
        return self._marked(text) or self.lenient(text)

    def cut_final(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """A number after `####` in an output that was cut off."""
        return self._marked(whole_words(text))

    def _marked(self, text: str) -> str | None:
        numbers = filter(None, map(self.lenient, reversed(_FINAL.findall(text))))
        return next(numbers, None)

    def _canonical(self, match: re.Match[str]) -> str | None:
        signs = [
            match["sign"],
            match["late"] or "",
            *_group(match, "inner"),
            *_group(match, "paren"),
        ]
        minus = "-" if any(sign in ("-", "(") for sign in signs) else ""
        if match["digits"] is None:
            value = _fraction(match)
            return None if value is None else f"{minus}{value}"
        power = (match["power"] or "").translate(_SUPERSCRIPTS)
        power = re.sub(r".*10\^?[({]?([+-]?[0-9]+)[)}]?$", r"e\1", power)
        number = Decimal(f"{minus}{plain_digits(match['digits'], self._decimal)}{power}")
        if power and abs(number.adjusted()) > _MOST_POWERS:
            return None
        scale = match["scale"]
        if scale is None:
            return str(number)
        return f"{number:f}e{_SCALES.get(scale) or _SCALES[scale.lower().removesuffix('s')]}"


_FINAL = re.compile(r"####[^\S\n]*([^\n]*)")


def after_mark(text: str) -> str:
    """The rest of the line after the last `####`, else the whole text."""
    marked = _FINAL.findall(text)
    return marked[-1] if marked else text


def _clean(text: str) -> str:
    plain = text.strip().translate(_SIGNS)
    if plain.isascii():
        return plain
    digits = (c if c.isascii() or not c.isdecimal() else str(unicodedata.decimal(c)) for c in plain)
    return "".join(digits)


def _group(match: re.Match[str], name: str) -> list[str]:
    """A group that not every pattern has."""
    return [match[name] or ""] if name in match.re.groupindex else []


def _fraction(match: re.Match[str]) -> Fraction | None:
    if match["vulgar"]:
        top, _, bottom = unicodedata.normalize("NFKC", match["vulgar"]).partition("\u2044")
    else:
        top, bottom = match["top"], match["bottom"]
    if not int(bottom):
        return None
    return int(match["whole"] or match["units"] or 0) + Fraction(int(top), int(bottom))


def _equal(first: str, second: str) -> bool:
    if "/" not in first + second:
        return Decimal(first) == Decimal(second)
    # The parts of a fraction are short; a decimal with more digits is another number.
    return max(len(first), len(second)) < 100 and Fraction(first) == Fraction(second)


def _number(decimal: Sign, comma: Parser | None = None) -> Parser:
    reader = _Numbers(decimal)
    parses = reader.strict, reader.lenient, reader.same
    return Parser("number", 2, *parses, gold=reader.gold, comma=comma)


def _final_number(decimal: Sign, comma: Parser | None = None) -> Parser:
    reader = _Numbers(decimal)
    parses = reader.strict_final, reader.lenient_final, reader.same, reader.cut_final
    return Parser("final-number", 2, *parses, gold=reader.gold, comma=comma)


NUMBER = _number(".", _number(","))
FINAL_NUMBER = _final_number(".", _final_number(","))
