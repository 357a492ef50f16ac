"""Numbers, names and sentences as the page and its figures write them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from mixtune.analysis.claims import ALPHA
from mixtune.report.figures import Answer, Cell

LONGEST_NAME = 80
"""Characters of a name that are shown; a longer one is cut, with its start as a tooltip."""
LONGEST_TEXT = 400
"""Characters of any other single text."""
LONGEST_ERROR = 4000
"""Characters of an error or a study file, of which the end is kept as well as the start."""


def plain(text: str, limit: int = LONGEST_TEXT) -> str:
    """One line of text as it is safe to show: controls and bidi marks escaped, cut at `limit`.

    Only `limit` characters are looked at, so that a name of any length costs the same.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown = _printable(text[:limit])
    return shown if len(text) <= limit else f"{shown[: limit - 1]}…"


def lines(text: str, limit: int = LONGEST_ERROR) -> str:
    """Text of several lines, made safe line by line; the middle of a long one is left out."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… {len(text) - limit} characters …\n{text[-limit // 2 :]}"
    return _printable(text, "\n\t\xa0")


def _printable(text: str, more: str = "\xa0") -> str:
    """Text with what cannot be printed escaped, but for the no-break space, which is harmless."""
    return "".join(c if c in more or c.isprintable() else repr(c)[1:-1] for c in text)


def slug(text: str) -> str:
    """A text as part of a file name: lower case letters, digits and hyphens, 40 at most."""
    return re.sub(r"[^a-z0-9]+", "-", text[:40].lower()).strip("-") or "x"


def width(text: str, size: float) -> float:
    """About how wide a text is at a font size, in the same unit; on the safe side."""
    return size * sum(_advance(c) for c in text)


def _advance(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if char in "iljt.,:;|!'()[]fIr -":
        return 0.4
    return 0.99 if char in "mwMW@%" else 0.76 if char.isupper() else 0.64


def fit(text: str, room: float, size: float) -> str:
    """The text, or as much of its start as fits with an ellipsis."""
    text = plain(text, LONGEST_NAME)
    if width(text, size) <= room:
        return text
    while text and width(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


def wrap(name: str, room: float, size: float, at_most: int) -> list[str]:
    """A name in lines that fit, broken behind `+` or a space; what is left over is cut."""
    parts = [p for p in re.findall(r"[^+ ]*[+ ]?", plain(name, LONGEST_NAME)) if p]
    lines: list[str] = []
    for part in parts:
        if lines and width(lines[-1] + part.rstrip(), size) <= room:
            lines[-1] += part
        else:
            lines.append(part)
    if len(lines) > at_most:
        lines = [*lines[: at_most - 1], "".join(lines[at_most - 1 :])]
    return [fit(line.rstrip(), room, size) for line in lines]


def some(names: str, at_most: int = 3) -> str:
    """The first of a list of names, and how many more there are."""
    parts = names.split(", ")
    rest = len(parts) - at_most
    return names if rest < 2 else f"{', '.join(parts[:at_most])} and {rest} more"


def number(value: float | None) -> str:
    """Three decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with a sign, a real minus; a dash for nothing."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """Three decimals; the smallest are not written as nothing; a dash where there is none."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(value: float) -> str:
    """A share in per cent; what is not nothing never reads as 0 %."""
    return "<0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def ends(low: float | None, high: float | None, sign: bool = False) -> str:
    """An interval, or "too few" where there is none."""
    write = signed if sign else number
    return "too few" if low is None or high is None else f"[{write(low)},\xa0{write(high)}]"


def seconds(value: float | None) -> str:
    """A duration in seconds, or minutes from two on; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def tick(value: float) -> str:
    """A number on an axis: no zeros behind, thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("-", "−")


def cell_sentence(cell: Cell, title: str) -> str:
    """All numbers of a cell in one line, for tooltips and the readout."""
    words = [
        f"{plain(cell.cocktail, LONGEST_NAME)} on {plain(title, LONGEST_NAME)}",
        f"{cell.metric} {number(cell.value)} {ends(cell.value_low, cell.value_high)}",
    ]
    if cell.difference is not None:
        words.append(f"to single {signed(cell.difference)} {ends(cell.low, cell.high, True)}")
    elif cell.is_single:
        words.append("single-task training")
    if cell.to_base is not None:
        words.append(f"to base {signed(cell.to_base)} {ends(cell.base_low, cell.base_high, True)}")
    if cell.floored:
        words.append(f"{cell.against_floor} the floor")
    return "; ".join(words)


SINGLE = "single-task training"
BETTER = f"▲ beats {SINGLE}"
NEAR_FLOOR = f"beats {SINGLE}, not above the floor"
NO_SINGLE = "no single-task run to compare with"
UNADJUSTED = f"above {SINGLE} only until adjusted for the number of cells"
OPEN = f"not significantly different from {SINGLE}"
WORSE = f"▼ below {SINGLE}"
TOO_FEW = "too few items for an interval"


def headline(cell: Cell, chosen: bool = False) -> tuple[str, str]:
    """(class, words) for the first glance at a task's best cocktail.

    The best of many is above single-task training only by a p-value that is adjusted for them;
    `chosen`: it was chosen on other data.
    """
    if cell.is_single:
        return "single", SINGLE
    if cell.difference is None:
        return "", NO_SINGLE
    if cell.shown == "above" and not chosen and (cell.adjusted is None or cell.adjusted >= ALPHA):
        return "open", UNADJUSTED
    if cell.shown == "above" and cell.floored:
        return "note", NEAR_FLOOR
    return {
        "above": ("up", BETTER),
        "below": ("down", WORSE),
        "open": ("open", OPEN),
        "": ("", TOO_FEW),
    }[cell.shown]


def summary(answers: Sequence[Answer], confirms: bool) -> str:
    """On how many tasks a cocktail beats single-task training, and the outcome of the others."""
    outcomes = Counter(headline(answer.cell, confirms)[1] for answer in answers if answer.cell)
    total = sum(outcomes.values())
    if not total:
        return ""
    if outcomes[NO_SINGLE] == total:
        return f"No task has a single-task run, so nothing is compared with {SINGLE}."
    subject = "the chosen cocktail" if confirms else "the best cocktail"
    sentences = {
        SINGLE: f"{SINGLE} {'was chosen' if confirms else 'is best'}",
        NO_SINGLE: f"there is {NO_SINGLE}",
        OPEN: f"{subject} is {OPEN}",
        UNADJUSTED: f"{subject} is {UNADJUSTED}",
        NEAR_FLOOR: f"{subject} {NEAR_FLOOR}",
        WORSE: f"{subject} is {WORSE.removeprefix('▼ ')}",
        TOO_FEW: f"there are {TOO_FEW}",
    }
    better = outcomes.pop(BETTER, 0)
    evidence = "95 % interval above 0" if confirms else "adjusted p below .05"
    if total == 1:
        verb = "beats" if better else "does not beat"
        first = f"{subject.capitalize()} {verb} {SINGLE}{f' ({evidence})' if better else ''}"
        return "; ".join([first, *(sentences[outcome] for outcome in outcomes)]) + "."
    first = f"On {better} of {total} tasks {subject} beats {SINGLE} ({evidence})"
    parts = [f"on {count} {sentences[outcome]}" for outcome, count in outcomes.items()]
    return "; ".join([first, *parts]) + "."
