r"""Answers of competition mathematics: the content of \boxed{…}, compared as LaTeX.

Numbers and fractions of equal value are the same; there is no algebra (`x+1` is not `1+x`).
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from mixtune.tasks.parsers import Parser

_LOOSE_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,2}(?:\{([^\n$]*)|([^\s{}$.]+))")
_ANNOUNCED = re.compile(r"(?i:\banswer\b)[^.\n=:]{0,80}?(?:(?i:\bis\b):?|[=:])[^\S\n]*([^\n]+)")
# A full stop that is no decimal point, or a comma before words.
_SENTENCE_END = re.compile(r"\.(?:\s|$)|,\s(?=[a-z]{2})")


def _strict(text: str, labels: Sequence[str] = ()) -> str | None:
    r"""The content of the last \boxed{…} whose braces are balanced, normalised."""
    return _normalised(_last_box(text) or "") or None


def _lenient(text: str, labels: Sequence[str] = ()) -> str | None:
    r"""As strict; without a balanced box, an unclosed one, else the text after "the answer is"."""
    exact = _strict(text, labels)
    if exact is not None:
        return exact
    candidates = [_before_closing(rest) or word for rest, word in _LOOSE_BOX.findall(text)]
    candidates = candidates or [_SENTENCE_END.split(rest)[0] for rest in _ANNOUNCED.findall(text)]
    return (_normalised(candidates[-1]) or None) if candidates else None


def _same(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    r"""True if two answers are the same LaTeX, or numbers or fractions of equal value.

    Of a gold solution the last box counts.
    """
    content = _last_box(gold)
    goal = _normalised(gold if content is None else content)
    value = _value(parsed)
    return parsed == goal or (value is not None and value == _value(goal))


def _gold(text: str, labels: Sequence[str] = ()) -> str | None:
    """The last box of a gold solution; without a box, one line that is the answer."""
    content = _last_box(text)
    if content is None and ("\n" in text.strip() or _ANNOUNCED.search(text) or "#" in text):
        return None
    return _normalised(text.strip() if content is None else content) or None


BOXED = Parser("boxed", 2, _strict, _lenient, _same, cut=_strict, gold=_gold)


def _last_box(text: str) -> str | None:
    """The content of the last balanced box; one pass over the braces."""
    starts: list[int | None] = []  # of open braces: the start of a box's content, None for others
    content = None
    for brace in re.finditer(r"\\boxed\{|\\.|[{}]", text, re.DOTALL):
        if brace[0] in ("{", "\\boxed{"):
            starts.append(brace.end() if brace[0] != "{" else None)
        elif brace[0] == "}" and starts:
            start = starts.pop()
            content = content if start is None else text[start : brace.start()]
    return content


def _before_closing(rest: str) -> str:
    """The text up to the brace that closes a box opened before it, else all of it."""
    depth = 0
    for brace in re.finditer(r"[{}]", rest):
        depth += 1 if brace[0] == "{" else -1
        if depth < 0:
            return rest[: brace.start()]
    return rest


_DROPPED = re.compile(
    # "\\ " after a backslash is no space but the end of a matrix row.
    r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|(?<!\\)\\[!,;:> ]|\\q?quad(?![a-zA-Z])|\\displaystyle"
    r"|\^\{?\\circ\}?|\\degree|°|\\?%|\\?\$|\\[()\[\]]|\*\*|~|\s+|\\boxed(?=\{)"
)
_UNIT_AT_END = re.compile(
    r"(?<=[0-9}])\s*\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^\{?[23]\}?)?[\s.]{0,9}$"
)
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?<=[0-9}])(?:square|sq|cubic)?\.?(?:cm|mm|km|inch(?:es)?|feet|foot|ft|met(?:er|re)s?"
    r"|miles?|mph|units?|degrees?|dollars?|cents?|hours?|minutes?|seconds?|days?|percent)"
    r"(?:\^\{?[23]\}?)?$"
)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]+)?")


def _normalised(latex: str) -> str:
    """One spelling for the ways to write an answer: spaces, sizes, units, optional braces."""
    text = latex.replace("\u2212", "-").replace("\\!", "").replace("{,}", ",")
    text = _UNIT_AT_END.sub("", text)
    text = _DROPPED.sub("", _TEXT.sub(r"\1", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac([0-9a-zA-Z])(?=[0-9a-zA-Z{\\])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([0-9a-zA-Z])", r"\1{\2}", text)
    text = re.sub(r"(\\sqrt|[\^_])([0-9a-zA-Z])", r"\1{\2}", text)
    text = re.sub(r"^[a-zA-Z]=(?=.)", "", text.rstrip(".,;:"))
    text = _UNIT.sub("", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    braced = re.fullmatch(r"\{([^{}]*)\}", text)
    return braced[1] if braced else text


_DECIMAL = r"(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?:(?P<whole>[0-9]{{1,40}})(?!\\frac\{{-))?"
    rf"\\frac\{{(?P<over>-?{_DECIMAL})\}}\{{(?P<under>-?{_DECIMAL})\}}"
    rf"|(?P<top>{_DECIMAL})(?:/(?P<bottom>{_DECIMAL}))?)"
)


def _value(text: str) -> Fraction | None:
    """The value of a plain number, fraction or mixed number; None for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    under = Fraction(match["under"] or match["bottom"] or 1)
    if under == 0:
        return None
    value = Fraction(match["whole"] or 0) + Fraction(match["over"] or match["top"]) / under
    return -value if match["sign"] == "-" else value
