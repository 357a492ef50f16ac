"""Figures: digits with separators of thousands and a decimal sign, as different countries write.

1,234.5 · 1.234,5 · 1 234,5 · 1'234.5 · 12,34,567.8. Only figures such as 1.250 need to be told
which sign is the decimal one.
"""

import re
from typing import Literal

Sign = Literal[".", ","]

SPACES = dict.fromkeys(map(ord, "\u202f\u2009\u2007"), "\xa0")
"""Spaces between groups of digits, all read as a no-break space."""
DASHES = dict.fromkeys(map(ord, "\u2212\u2013\u2012\u2010\u2011\ufe63\uff0d"), "-")
"""Signs that are read as a minus."""

_SEPARATORS = re.compile("[ \xa0'\u2019]")
_ONE_SIGN = re.compile(r"[1-9][0-9]{0,2}[.,][0-9]{3}")
_RUN = re.compile("[0-9]*[.,]?[0-9]+(?:[.,' \xa0\u2019][0-9]+)*")


def figure(decimal: Sign) -> str:
    """A pattern of unsigned figures.

    A figure that can only be of the other convention is read by that one, but for a decimal comma
    where the decimal sign is a point: "1,23" may be two numbers.
    """
    point, comma = (r"\.", ",") if decimal == "." else (",", r"\.")
    first = "[1-9][0-9]{0,2}"
    # Possessive (++), so that a long row of digits is not split in every possible way.
    patterns = [
        rf"{first}(?:(?:[ \xa0][0-9]{{3}})++|(?:['’][0-9]{{3}})++)(?:[.,][0-9]++)?",
        rf"{first}(?:{comma}[0-9]{{3}})++(?:{point}[0-9]++)?",
        rf"[1-9][0-9]?(?:{comma}[0-9]{{2}}(?={comma}))++{comma}[0-9]{{3}}(?:{point}[0-9]++)?",
        rf"{first}(?:{point}[0-9]{{3}})++{comma}[0-9]++",
        rf"{first}(?:{point}[0-9]{{3}}){{2,}}+",
        rf"[0-9]++(?:{point}[0-9]++)?",
        rf"{point}[0-9]++",
    ]
    return f"(?:{'|'.join(patterns if decimal == '.' else [*patterns, r'[0-9]*+[.][0-9]++'])})"


def plain_digits(text: str, decimal: Sign) -> str:
    """A figure without separators of thousands and with a decimal point."""
    digits = _SEPARATORS.sub("", text)
    shown = decimal_sign(text) or decimal
    return digits.replace("," if shown == "." else ".", "").replace(",", ".")


def decimal_sign(text: str) -> Sign | None:
    """The decimal sign of a figure's convention; None where the figure may be of both.

    "1.250" may be, and so may "1250"; "1,25" and "1.234.567" have a decimal comma.
    """
    digits = _SEPARATORS.sub("", text)
    signs = [sign for sign in digits if sign in ".,"]
    if not signs:
        return None
    if len(set(signs)) == 2 or len(signs) == 1:
        if len(signs) == 1 and digits == text and _ONE_SIGN.fullmatch(digits):
            return None
        return "." if signs[-1] == "." else ","
    return "," if signs[-1] == "." else "."  # several of one kind separate thousands


def first_figure(text: str) -> str:
    """The first run of digits and separators, "" for none."""
    match = _RUN.search(text.translate(SPACES))
    return match[0] if match else ""
