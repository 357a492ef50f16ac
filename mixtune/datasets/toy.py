"""The embedded suite: small synthetic tasks whose relations are known because they were built in.

Every record is generated from named draws (SHA-256, so the same on every machine). A text's split
is a pure function of the text, so no text stands in two splits, inside a task or across tasks.
RELATIONS and docs/embedded-suite.md say which task should help or hurt which, and why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import resources
from itertools import cycle
from typing import Any, Literal, NamedTuple, TypeVar

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import unit_interval
from mixtune.records import Split
from mixtune.study.yaml import read_yaml

VERSION = "1"
"""Version of the generator; a change changes every record. Tasks carry their own version too."""

SIZES: dict[Split, int] = {"train": 600, "validation": 150, "test": 300}
"""Records per task and split."""

Record = dict[str, str]
Half = Literal["a", "b"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Relation:
    """Expected effect on `target` of training on `ingredient` with it.

    `sign`: "+" the pair {target, ingredient} scores higher than a pair of the target with an
    ingredient marked "0" under the same budget, "-" lower, "0" the ingredients compared with.
    """

    ingredient: str
    target: str
    sign: Literal["+", "-", "0"]
    why: str


_MISSING_HALF = (
    "its train rows contain the half of the tone words that the target's train rows lack"
)
_MISSING_SUMS = "its train rows contain the sums that the target's train rows lack"
_OPPOSITE = "nearly the same question about the same kind of text, with the opposite answer"
_UNRELATED = "no shared skill, answer words or kind of question"

RELATIONS = (
    Relation("toy-mood", "toy-sentiment", "+", _MISSING_HALF),
    Relation("toy-sentiment", "toy-mood", "+", _MISSING_HALF),
    Relation("toy-maths", "toy-table", "+", _MISSING_SUMS),
    Relation("toy-fall", "toy-rise", "-", _OPPOSITE),
    Relation("toy-rise", "toy-fall", "-", _OPPOSITE),
    Relation("toy-topic", "toy-entity", "0", _UNRELATED),
    Relation("toy-entity", "toy-topic", "0", _UNRELATED),
    Relation("toy-entity", "toy-sentiment", "0", _UNRELATED),
    Relation("toy-entity", "toy-mood", "0", _UNRELATED),
    Relation("toy-entity", "toy-table", "0", _UNRELATED),
    Relation("toy-topic", "toy-rise", "0", _UNRELATED),
    Relation("toy-topic", "toy-fall", "0", _UNRELATED),
)
"""Written on 2026-11-22, before any model was trained on these tasks; other pairs have no expected
sign."""


def records(name: str, split: Split) -> list[Record]:
    """The records of one split of a toy task: `id`, `text` and `label`, all strings.

    Labels of a label task follow a fixed cycle in which one label is slightly more frequent, so
    that the majority floor can be told from chance.

    Raises:
        SpecError: no such task.
    """
    if name not in _TASKS:
        raise SpecError("no such toy task", found=name, wanted=did_you_mean(name, TOY))
    return [dict(record) for record in _records(name, split)]


def split_of(text: str) -> Split:
    """The split that a text belongs to in every task: a function of its characters alone.

    Case, white space and punctuation do not count, so that near-copies share a split.
    """
    place = unit_interval("toy-split", VERSION, _bare(text))
    if place < 0.5:
        return "train"
    return "validation" if place < 0.7 else "test"


def fact_half(sign: str, first: int, second: int) -> Half:
    """Half of the sums that "first sign second" is in; 3 + 5 and 5 + 3 are one sum."""
    low, high = sorted((first, second))
    return "a" if unit_interval("toy-fact", sign, str(low), str(high)) < 0.5 else "b"


class _Draws:
    """An endless sequence of draws that depends on names only."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._count = 0

    def unit(self) -> float:
        """A number in [0, 1)."""
        self._count += 1
        return unit_interval(*self._names, str(self._count))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(self.unit() * len(options))]

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """Different options, in random order."""
        remaining = list(options)
        return [remaining.pop(int(self.unit() * len(remaining))) for _ in range(count)]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.unit() * (high - low + 1))


@lru_cache(maxsize=64)
def _records(name: str, split: Split) -> tuple[Record, ...]:
    """Draw until the split is full; a repeated text, or one of another split, is drawn anew."""
    draws, (make, labels) = _Draws("toy", VERSION, name, split), _TASKS[name]
    rows: list[Record] = []
    seen: set[str] = set()
    for label in cycle(labels):
        if len(rows) == SIZES[split]:
            break
        text, answer = make(draws, label, split == "train")
        # A text belongs to one split by its characters, so at least half are for another one.
        while split_of(text) != split or _bare(text) in seen:
            text, answer = make(draws, label, split == "train")
        seen.add(_bare(text))
        rows.append({"id": f"{split}-{len(rows)}", "text": text, "label": answer})
    return tuple(rows)


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


@cache
def words() -> dict[str, Any]:
    """The words and sentence patterns of toy_words.yaml."""
    file = resources.files("mixtune.datasets") / "toy_words.yaml"
    value: dict[str, Any] = read_yaml(file.read_text(encoding="utf-8"), file.name, SpecError).value
    return value


def _texts(*keys: str) -> list[str]:
    """One list of toy_words.yaml by its keys."""
    value: Any = words()
    for key in keys:
        value = value[key]
    return list(value)


def _known(options: Sequence[T], train: bool) -> Sequence[T]:
    """Train rows see the first three quarters of a list only, so that test has unseen words."""
    return options[: len(options) * 3 // 4] if train else options


def _name(draws: _Draws) -> str:
    return draws.pick(_texts("names"))


# ---- toy-sentiment and toy-mood: each trains on the tone words that the other lacks --------------


def _tone(draws: _Draws, tone: str, halves: Sequence[Half]) -> str:
    """A tone word; one time in six the opposite one, negated."""
    if tone != "level" and draws.unit() < 1 / 6:
        opposite = {"up": "down", "down": "up"}[tone]
        return f"{draws.pick(_texts('negations'))} {_tone_word(draws, opposite, halves)}"
    return _tone_word(draws, tone, halves)


def _tone_word(draws: _Draws, tone: str, halves: Sequence[Half]) -> str:
    """English or invented, equally often."""
    half = draws.pick(halves)
    return draws.pick(_texts("tones", tone, half, "english" if draws.unit() < 0.5 else "invented"))


_TONES = {
    "positive": "up", "negative": "down", "neutral": "level",
    "bullish": "up", "bearish": "down", "flat": "level",
}  # fmt: skip


def _toned(
    patterns: str, train_half: Half, draws: _Draws, label: str, train: bool
) -> tuple[str, str]:
    phrase = _tone(draws, _TONES[label], (train_half,) if train else ("a", "b"))
    return draws.pick(_texts(patterns)).format(c=_name(draws), a=phrase), label


# ---- toy-rise and toy-fall: the same texts and opposite answers ----------------------------------


def _move(rise: str, draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    """A sentence in which a figure rises or falls, expressed by numbers or by a verb.

    `rise`: the label of a rise.
    """
    up = label == rise
    low = draws.number(11, 90)
    high = low + draws.number(3, 99 - low)
    x, y = (low, high) if up else (high, low)
    patterns = _texts("moves_in_numbers" if draws.unit() < 0.5 else "moves_in_words")
    verb = draws.pick(_known(_texts("rising" if up else "falling"), train))
    company, figure = _name(draws), draws.pick(_texts("figures"))
    return draws.pick(patterns).format(c=company, f=figure, v=verb, x=x, y=y), label


# ---- toy-topic and toy-entity: unrelated to the others -------------------------------------------


def _topic(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    main = f"{_name(draws)} {draws.pick(_known(_texts('topics', label), train))}"
    position = draws.unit()
    unrelated = draws.pick([topic for topic in words()["topics"] if topic != label])
    time = draws.pick(("days", "weeks", "shortly"))
    remark = f"{time} after {draws.pick(_texts('remarks', unrelated))}"
    if position < 0.4:
        return f"{main}.", label
    if position < 0.7:
        return f"{main}, {remark}.", label
    return f"{remark.capitalize()}, {main}.", label


def _entity(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    """All names come from one list, so only the position in the sentence reveals the type."""
    scenes = [scene for scene in _known(_texts("scenes"), train) if f"{{{label}}}" in scene]
    drawn = draws.several(_texts("names"), 3)
    names = dict(zip(("person", "company", "place"), drawn, strict=True))
    names[label] = f"[{names[label]}]"
    return draws.pick(scenes).format(**names), label


# ---- toy-table and toy-maths: sums and differences of small numbers, half of them each -----------


class _Sum(NamedTuple):
    """Two different numbers from 2 to 15; of a difference the larger comes first."""

    sign: str
    first: int
    second: int
    result: int


def _sum(draws: _Draws, half: Half | None) -> _Sum:
    while True:
        sign, x, y = draws.pick("+-"), draws.number(2, 15), draws.number(2, 15)
        # Train rows draw from one half of all sums, the other splits (None) from both.
        if x != y and half in (None, fact_half(sign, x, y)):
            low, high = sorted((x, y))
            return _Sum(sign, x, y, x + y) if sign == "+" else _Sum(sign, high, low, high - low)


def _table(draws: _Draws, _label: str, train: bool) -> tuple[str, str]:
    sign, x, y, result = _sum(draws, "a" if train else None)
    first, second, third = draws.several(_texts("rows"), 3)
    cells = [(first, x), (second, y), (third, draws.number(2, 15))]
    table = ", ".join(f"{name} {value}" for name, value in draws.several(cells, 3))
    if draws.unit() < 0.2:
        return f"{table}. What is {first}?", str(x)
    operator = "plus" if sign == "+" else "minus"
    return f"{table}. What is {first} {operator} {second}?", str(result)


def _maths(draws: _Draws, _label: str, train: bool) -> tuple[str, str]:
    sign, x, y, result = _sum(draws, "b" if train else None)
    story = draws.pick(_texts("adding" if sign == "+" else "taking"))
    return story.format(p=draws.pick(_texts("people")), x=x, y=y), str(result)


# ---- toy-general: form only, nothing to know -----------------------------------------------------

_CHORES: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("Copy these words: {w}", " ".join),
    ("Write these words backwards in order: {w}", lambda ws: " ".join(reversed(ws))),
    ("Put commas between these words: {w}", ", ".join),
    ("Write in capitals: {w}", lambda ws: " ".join(ws).upper()),
    ("Make a numbered list: {w}", lambda ws: " ".join(f"{i}. {w}" for i, w in enumerate(ws, 1))),
    ("Which word comes first? {w}", lambda ws: ws[0]),
)


def _general(draws: _Draws, _label: str, _train: bool) -> tuple[str, str]:
    if draws.unit() < 0.05:
        meanings = words()["meanings"]
        word = draws.pick(tuple(meanings))
        return draws.pick(_texts("questions")).format(w=word), meanings[word]
    chore, answer = draws.pick(_CHORES)
    chosen = draws.several(_texts("words"), draws.number(2, 4))
    return chore.format(w=" ".join(chosen)), answer(chosen)


class _Task(NamedTuple):
    """A task's generator, and its labels in the order in which records get them, over and over."""

    make: Callable[[_Draws, str, bool], tuple[str, str]]
    labels: tuple[str, ...] = ("",)


_TASKS = {
    "toy-sentiment": _Task(
        partial(_toned, "headlines", "a"),
        ("neutral", *("positive", "negative", "neutral") * 8),
    ),
    "toy-mood": _Task(partial(_toned, "chats", "b"), ("flat", *("bullish", "bearish", "flat") * 8)),
    "toy-rise": _Task(partial(_move, "yes"), ("yes", *("no", "yes") * 12)),
    "toy-fall": _Task(partial(_move, "no"), ("yes", *("no", "yes") * 12)),
    "toy-topic": _Task(_topic, ("earnings", *("earnings", "merger", "staff", "product") * 6)),
    "toy-entity": _Task(_entity, ("company", *("person", "place", "company") * 8)),
    "toy-table": _Task(_table),
    "toy-maths": _Task(_maths),
    "toy-general": _Task(_general),
}
"""Every split is whole rounds of a task's labels."""

TOY = tuple(_TASKS)
"""Names of the toy tasks."""
