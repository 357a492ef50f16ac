"""From a model's output to an answer: strict (the exact form) and lenient (the answer extracted).

Knows: labels, numbers, text, and every parser by its name. Does not know: tasks, prompts, which
answer is right for an example.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from mixtune.tasks.parsers.amounts import cut_amount, lenient_amount, same_amount, strict_amount
from mixtune.tasks.parsers.boxed import lenient_boxed, same_boxed, strict_boxed
from mixtune.tasks.parsers.lists import (
    lenient_spans,
    lenient_triplets,
    same_items,
    strict_spans,
    strict_triplets,
)

Parse = Callable[[str, Sequence[str]], str | None]
Same = Callable[[str, str, Sequence[str]], bool]


@dataclass(frozen=True, slots=True)
class Parser:
    """A named pair of parses and the comparison that goes with them.

    `version` is part of every score's id: raise it whenever an output could be read differently.
    `strict` and `lenient` take the output and the task's labels (of lists: the types allowed) and
    return None for "no answer found". `same` compares a parsed answer with the gold answer; it also
    takes the user's turns, since a question may name the unit. `cut` is the lenient reading of an
    output that was cut off, None where nothing can be read from one. `list_metric` counts the items
    of an answer that has one item a line; "" where the answer is a single thing.
    """

    name: str
    version: int
    strict: Parse
    lenient: Parse
    same: Same
    cut: Parse | None = None
    list_metric: str = ""


NEGATIONS = (
    "not", "no", "non", "never", "neither", "nor", "cannot", "without", "hardly",
)  # fmt: skip
"""Words that negate a label within the five words after them, as every "…n't" does.

A word that is part of a label ("no" of yes and no) is no negation for that task.
"""


def strict_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that equals the output letter for letter, but for white space at both ends."""
    trimmed = text.strip()
    return trimmed if trimmed in labels else None


def lenient_label(text: str, labels: Sequence[str]) -> str | None:
    """The one label that the output names as a whole word, in any case.

    Longer labels are looked for first, so that "very good" is not read as "good". Two different
    labels, a negation ("not positive") or no label give None.
    """
    exact = strict_label(text, labels)
    if exact is not None:
        return exact
    folded = fold(text)
    by_fold = {fold(label): label for label in labels}
    label_words = {word for label in by_fold for word in label.split()}
    named = set()
    for match in _any_of(tuple(by_fold)).finditer(folded):
        # 200 characters hold five words, and bound the time for outputs with many labels.
        if _negated(folded[max(0, match.start() - 200) : match.start()], label_words):
            return None
        named.add(match.group())
    return by_fold[named.pop()] if len(named) == 1 else None


def fold(text: str) -> str:
    """The form that labels are compared in: no case, one kind of apostrophe, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return "\n".join(" ".join(line.split()) for line in folded.splitlines()).strip()


@lru_cache(maxsize=256)
def _any_of(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a label as a whole word; "non-positive" and "neutral-ish" are other words."""
    longest_first = sorted(labels, key=lambda label: (-len(label), label))
    words = "|".join(re.escape(label) for label in longest_first)
    before = r"(?<![^\W_])(?<![^\W_]-)(?<![^\W_]')"
    return re.compile(rf"{before}(?:{words})(?![^\W_])(?![-'][^\W_])")


def _negated(before: str, label_words: AbstractSet[str]) -> bool:
    """True if one of the five words before a label negates it; punctuation ends a clause."""
    clause = re.split(r"[\n.,;:!?()]", before)[-1]
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", clause)[-5:]
    return any(w not in label_words and (w in NEGATIONS or w.endswith("n't")) for w in words)


_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_STRICT_NUMBER = re.compile(rf"[+-]?{_PLAIN}", re.ASCII)
_LENIENT_NUMBER = re.compile(
    # Not inside a word or another number; a sign only where no digit precedes it.
    rf"(?<![\w.,])(?P<sign>[+-]?)[$€£¥]?(?P<inner>[+-]?)"
    rf"(?P<digits>{_PLAIN}|\.\d+)(?P<power>[eE][+-]?\d{{1,3}})?(?![\w]|[.,]\d)",
)


def strict_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number that makes up the output: digits, with sign, thousands commas and decimals."""
    trimmed = text.strip()
    if not _STRICT_NUMBER.fullmatch(trimmed):
        return None
    return str(Decimal(trimmed.replace(",", "")))


def lenient_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The last number in the output; currency and percent signs are ignored."""
    matches = deque(_LENIENT_NUMBER.finditer(text.replace("\u2212", "-")), maxlen=1)
    if not matches:
        return None
    last = matches.pop()
    sign = last["sign"] or last["inner"]
    return str(Decimal(f"{sign}{last['digits'].replace(',', '')}{last['power'] or ''}"))


def same_number(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    """True if two numbers are equal, exactly; of a longer gold answer the last number counts."""
    number = lenient_number(gold)
    return number is not None and Decimal(parsed) == Decimal(number)


def whole_text(text: str, labels: Sequence[str] = ()) -> str | None:
    """The output without white space at both ends; None if it is blank.

    Strict and lenient are the same for free text: to read more into it takes a judge.
    """
    return text.strip() or None


_FINAL = re.compile(r"####[^\S\n]*([^\n]*)")


def strict_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number of the last line, which has to be `#### 18`; the lines before it are free."""
    last = text.strip().rpartition("\n")[2].strip()
    return strict_number(last[5:]) if last.startswith("#### ") else None


def lenient_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """The number after the last `####` that has one, else the last number."""
    marked = [number for rest in _FINAL.findall(text) if (number := lenient_number(rest))]
    return marked[-1] if marked else lenient_number(text)


def cut_final_number(text: str, labels: Sequence[str] = ()) -> str | None:
    """Of a text that was cut off, the number after `####`; its last word may be half a number."""
    whole_words = text[: max(text.rfind(" "), text.rfind("\n")) + 1]
    marked = any(map(lenient_number, _FINAL.findall(whole_words)))
    return lenient_final_number(whole_words) if marked else None


def _equal(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
    return parsed == gold.strip()


PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (
        Parser("label", 1, strict_label, lenient_label, _equal, cut=lenient_label),
        Parser("number", 1, strict_number, lenient_number, same_number),
        Parser("text", 1, whole_text, whole_text, _equal),
        Parser("amount", 1, strict_amount, lenient_amount, same_amount, cut=cut_amount),
        Parser(
            "final-number", 1, strict_final_number, lenient_final_number, same_number,
            cut=cut_final_number,
        ),
        Parser("boxed", 2, strict_boxed, lenient_boxed, same_boxed, cut=strict_boxed),
        Parser("spans", 1, strict_spans, lenient_spans, same_items, list_metric="span-f1"),
        Parser(
            "triplets", 1, strict_triplets, lenient_triplets, same_items, list_metric="triplet-f1",
        ),
    )
}  # fmt: skip
"""Every parser by its name in task files."""
