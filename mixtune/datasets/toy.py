"""The embedded suite: small synthetic tasks whose relations are known because they were built in.

Every record is generated from named draws (SHA-256, so the same on every machine). A text's split
is a pure function of the text, so no text stands in two splits, inside a task or across tasks.
Which task should help or hurt which, and why, is in RELATIONS and docs/embedded-suite.md.

Knows: words, sentence patterns, the expected relations. Does not know: prompts (builtin/toy-*.yaml
have them), models, what was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from typing import Literal, TypeVar

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import unit_interval
from mixtune.records import Split

VERSION = "1"
"""Version of the generator; a change changes every record. Tasks carry their own version too."""

SIZES: dict[Split, int] = {"train": 600, "validation": 150, "test": 300}
"""Records per task and split."""

Record = dict[str, str]
Half = Literal["a", "b"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Relation:
    """What training on `ingredient` beside `target` is expected to do to the target.

    `sign`: "+" the pair {target, ingredient} scores higher than a pair of the target with an
    ingredient marked "0" under the same budget, "-" lower, "0" the ingredients compared with.
    """

    ingredient: str
    target: str
    sign: Literal["+", "-", "0"]
    why: str


_MISSING_HALF = "its train rows hold the half of the tone words that the target's train rows lack"
_OPPOSITE = "nearly the same question about the same kind of text, answered by the opposite word"
_UNRELATED = "no shared skill, words of the answer or kind of question"

RELATIONS = (
    Relation("toy-mood", "toy-sentiment", "+", _MISSING_HALF),
    Relation("toy-sentiment", "toy-mood", "+", _MISSING_HALF),
    Relation("toy-maths", "toy-table", "+", "its train rows hold the sums the target's lack"),
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
"""Written on 2026-11-22, before any model was trained on these tasks; pairs that are not listed
carry no expectation."""


def records(name: str, split: Split) -> list[Record]:
    """The records of one split of a toy task: `id`, `text` and `label`, all strings.

    Labels of a label task follow a fixed cycle in which one label is slightly more frequent, so
    that the majority floor can be told from chance.

    Raises:
        SpecError: no such task.
    """
    if name not in _MAKERS:
        raise SpecError("no such toy task", found=name, wanted=did_you_mean(name, TOY))
    return [dict(record) for record in _records(name, split)]


def split_of(text: str) -> Split:
    """The only split in which a text may stand, whatever the task: a function of its characters.

    Case, white space and punctuation do not count, so that near-copies share a split.
    """
    place = unit_interval("toy-split", VERSION, _bare(text))
    if place < 0.5:
        return "train"
    return "validation" if place < 0.7 else "test"


def tone_half(word: str) -> Half | None:
    """Which half of the tone words a word is in; None for a word that is no tone word."""
    for (_, half), words in _TONES.items():
        if word in words:
            return half
    return None


def fact_half(sign: str, left: int, right: int) -> Half:
    """Which half of the sums "left sign right" is in; 3 + 5 and 5 + 3 are one sum."""
    low, high = sorted((left, right))
    return "a" if unit_interval("toy-fact", sign, str(low), str(high)) < 0.5 else "b"


class _Draws:
    """An endless row of draws that depends on names only."""

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
        left = list(options)
        return [left.pop(int(self.unit() * len(left))) for _ in range(count)]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.unit() * (high - low + 1))


@lru_cache(maxsize=64)
def _records(name: str, split: Split) -> tuple[Record, ...]:
    """Draw until the split is full; a text that is another split's, or was seen, is drawn anew."""
    draws = _Draws("toy", VERSION, name, split)
    labels = cycle(_LABELS.get(name, ("",)))
    made: list[Record] = []
    seen: set[str] = set()
    while len(made) < SIZES[split]:
        label = next(labels)
        text, answer = _fresh(name, split, label, draws, seen)
        made.append({"id": f"{split}-{len(made)}", "text": text, "label": answer})
    return tuple(made)


def _fresh(name: str, split: Split, label: str, draws: _Draws, seen: set[str]) -> tuple[str, str]:
    """A text of this split that was not made before, with its answer."""
    for text, answer in _endless(name, split, label, draws):
        if split_of(text) == split and _bare(text) not in seen:
            seen.add(_bare(text))
            return text, answer
    raise AssertionError("an endless row ended")


def _endless(name: str, split: Split, label: str, draws: _Draws) -> Iterator[tuple[str, str]]:
    make = _MAKERS[name]
    while True:
        yield make(draws, label, split == "train")


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _known(options: Sequence[T], train: bool) -> Sequence[T]:
    """Train rows see the first three quarters of a list only, so that test holds unseen words."""
    return options[: len(options) * 3 // 4] if train else options


# Tone: toy-sentiment and toy-mood. Half of the words are English, half are invented trade jargon
# that no base model can know, so that only training on the other task teaches the missing half.

_NAMES = _words(
    "Quorvane Bellatrun Ostrimar Tavenoor Dranwick Pelumbra Kestovar Mirrowen Falquist Zorbelin "
    "Hexandor Wilmaret Juntavel Corsophan Yelverth Brimoska Nandiver Ulfarend Gorlewyn Sastrelle "
    "Vintorre Ambleroy Thornevik Laskaro"
)

_TONES: dict[tuple[str, Half], tuple[str, ...]] = {
    ("up", "a"): ("strong", "robust", "upbeat", "impressive", "glimric", "plendy", "torvish"),
    ("up", "b"): ("excellent", "booming", "promising", "healthy", "zellow", "crandish", "vimmy"),
    ("down", "a"): ("weak", "poor", "dismal", "troubled", "skorric", "grontish", "mulvy"),
    ("down", "b"): ("bleak", "awful", "shaky", "disappointing", "blenzy", "fraskid", "noffric"),
    ("level", "a"): ("unchanged", "routine", "ordinary", "even", "orlish", "quemmy", "dovric"),
    ("level", "b"): ("steady", "average", "typical", "constant", "lurmid", "sebbish", "kintow"),
}
_ENGLISH = 4
"""The first so many words of each list are English, the rest invented."""

_NEGATIONS = ("no longer", "hardly", "far from")

_HEADLINES = (
    "{c} outlook seen as {a} after board meeting",
    "Analysts call {c} results {a}",
    "{c} quarter looks {a}, says broker",
    "Broker note: {c} business {a}",
    "{c} order book {a} at year end",
    "Report finds {c} sales {a}",
    "{c} finances described as {a}",
    "Trading at {c} {a}, filing shows",
    "{c} chief calls the year {a}",
)
_CHATS = (
    "honestly {c} feels {a} to me",
    "my take on {c}: {a}",
    "been watching {c} all week, {a} stuff",
    "{c}? {a} if you ask me",
    "ok so {c} is looking {a} today",
    "told you {c} was {a} lol",
    "just read up on {c}, numbers are {a}",
    "anyone else find {c} {a}?",
    "{c} chart is {a} imo",
)


def _tone(draws: _Draws, tone: str, halves: Sequence[Half]) -> str:
    """A tone word, English or invented alike often; at times the opposite one, negated."""
    if tone != "level" and draws.unit() < 1 / 6:
        opposite = {"up": "down", "down": "up"}[tone]
        return f"{draws.pick(_NEGATIONS)} {_tone_word(draws, opposite, halves)}"
    return _tone_word(draws, tone, halves)


def _tone_word(draws: _Draws, tone: str, halves: Sequence[Half]) -> str:
    words = _TONES[tone, draws.pick(halves)]
    return draws.pick(words[:_ENGLISH] if draws.unit() < 0.5 else words[_ENGLISH:])


def _sentiment(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    tone = {"positive": "up", "negative": "down", "neutral": "level"}[label]
    words = _tone(draws, tone, ("a",) if train else ("a", "b"))
    return draws.pick(_HEADLINES).format(c=draws.pick(_NAMES), a=words), label


def _mood(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    tone = {"bullish": "up", "bearish": "down", "flat": "level"}[label]
    words = _tone(draws, tone, ("b",) if train else ("a", "b"))
    return draws.pick(_CHATS).format(c=draws.pick(_NAMES), a=words), label


# Direction: toy-rise and toy-fall, the same texts and opposite answers.

_UP = ("climbed", "grew", "gained", "rose", "advanced", "jumped", "improved", "swelled")
_DOWN = ("slipped", "shrank", "declined", "fell", "dropped", "sank", "eased", "dwindled")
_FIGURES = ("sales", "profit", "output", "cash", "income", "stock")
_BARE_MOVES = (
    "{c} {f}: {x} last year, {y} this year.",
    "{c} {f} at {y}, after {x} a year ago.",
    "{c} {f} went from {x} to {y}.",
)
_WORDED_MOVES = ("{c} {f} {v} to {y}.", "{c} {f} {v} by {x}.", "{y}: {c} {f} {v} this year.")


def _move(draws: _Draws, up: bool, train: bool) -> str:
    """A sentence in which a figure rises or falls, told by numbers or by a verb."""
    low = draws.number(11, 90)
    high = low + draws.number(3, 99 - low)
    x, y = (low, high) if up else (high, low)
    patterns = _BARE_MOVES if draws.unit() < 0.5 else _WORDED_MOVES
    verb = draws.pick(_known(_UP if up else _DOWN, train))
    company, figure = draws.pick(_NAMES), draws.pick(_FIGURES)
    return draws.pick(patterns).format(c=company, f=figure, v=verb, x=x, y=y)


def _rise(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    return _move(draws, label == "yes", train), label


def _fall(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    return _move(draws, label == "no", train), label


# Topic: the main clause decides; a side remark may name another topic.

_TOPICS = {
    "earnings": (
        *("lifts its profit forecast", "posts a small loss", "reports record revenue"),
        *("says margins narrowed", "beats its sales target", "publishes annual figures"),
        *("warns on full-year income", "restates its accounts", "sees turnover dip"),
        *("closes the books on a good year", "misses estimates", "doubles its surplus"),
    ),
    "merger": (
        *("agrees to buy a rival", "bids for a smaller firm", "plans to join forces with a peer"),
        *("sells its stake to a competitor", "ends takeover talks", "completes an acquisition"),
        *("rejects an offer for the group", "combines two units with a partner's"),
        *("swaps shares in a tie-up", "is bought by a fund"),
        *("absorbs its sister firm", "buys out a partner"),
    ),
    "staff": (
        *("names a new treasurer", "cuts two hundred jobs", "loses its finance chief"),
        *("hires forty engineers", "faces a strike of drivers", "promotes its head of sales"),
        *("trains young apprentices", "raises wages of clerks", "appoints a director"),
        *("lays off temporary workers", "welcomes interns", "agrees a pay deal with its union"),
    ),
    "product": (
        *("launches a quieter pump", "unveils a payment app", "recalls faulty kettles"),
        *("starts selling a folding lamp", "patents a valve", "shows its latest tractor"),
        *("stops making printers", "updates its mapping software", "tests an electric van"),
        *("offers a cheaper phone", "brings out a waterproof drill", "redesigns its toaster"),
    ),
}
_ASIDES = {
    "earnings": ("its results", "its profit report"),
    "merger": ("its takeover bid", "its merger"),
    "staff": ("its chief left", "its job cuts"),
    "product": ("its app came out", "its new model was shown"),
}
_LABELLED_TOPICS = tuple(_TOPICS)


def _topic(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    main = f"{draws.pick(_NAMES)} {draws.pick(_known(_TOPICS[label], train))}"
    place = draws.unit()
    other = draws.pick([topic for topic in _LABELLED_TOPICS if topic != label])
    aside = f"{draws.pick(('days', 'weeks', 'shortly'))} after {draws.pick(_ASIDES[other])}"
    if place < 0.4:
        return f"{main}.", label
    if place < 0.7:
        return f"{main}, {aside}.", label
    return f"{aside.capitalize()}, {main}.", label


# Entity: all names come from one list, so only the place in the sentence tells the type.

_SCENES = (
    "{company} named {person} head of its {place} office.",
    "{person} left {company} to open a shop in {place}.",
    "{company} will close its plant near {place}, {person} told staff.",
    "Lawyers for {company} met {person} in {place}.",
    "{person}, who grew up in {place}, now runs {company}.",
    "Shares of {company} fell after {person} resigned.",
    "{company} bought a warehouse outside {place}.",
    "Rain in {place} delayed the visit of {person}.",
    "{person} and his brother own a farm in {place}.",
    "A court in {place} fined {company} over its accounts.",
    "{person} sued {company} for unpaid wages.",
    "The mayor of {place} thanked {company} for the bridge.",
)


def _entity(draws: _Draws, label: str, train: bool) -> tuple[str, str]:
    fitting = [scene for scene in _known(_SCENES, train) if f"{{{label}}}" in scene]
    names = dict(zip(("person", "company", "place"), draws.several(_NAMES, 3), strict=True))
    names[label] = f"[{names[label]}]"
    return draws.pick(fitting).format(**names), label


# Numbers: toy-table and toy-maths share sums and differences of small numbers.

_ROWS = ("sales", "costs", "debt", "cash", "tax", "rent", "wages", "fees")
_PEOPLE = ("Ida", "Omar", "Lena", "Tom", "Mina", "Raj", "Eva", "Paul", "Nora", "Ali", "Kim", "Max")
_ADDING = (
    "{p} has {x} shares and buys {y} more. How many now?",
    "{p} files {x} papers, then {y} more. How many in all?",
    "{p} had {x} coins and found {y}. How many now?",
    "What is {x} plus {y}?",
)
_TAKING = (
    "{p} has {x} shares and sells {y}. How many are left?",
    "{p} must pay {x} bills and paid {y}. How many remain?",
    "{p} had {x} coins and lost {y}. How many now?",
    "What is {x} minus {y}?",
)


def _sum(draws: _Draws, half: Half | None) -> tuple[str, int, int, int]:
    """Sign, two different numbers from 2 to 15 (the larger first to take from) and the result."""
    while True:
        sign, x, y = draws.pick("+-"), draws.number(2, 15), draws.number(2, 15)
        if x != y and half in (None, fact_half(sign, x, y)):
            break
    if sign == "-":
        x, y = max(x, y), min(x, y)
    return sign, x, y, x + y if sign == "+" else x - y


def _table(draws: _Draws, _label: str, train: bool) -> tuple[str, str]:
    sign, x, y, result = _sum(draws, "a" if train else None)
    first, second, third = draws.several(_ROWS, 3)
    cells = [(first, x), (second, y), (third, draws.number(2, 15))]
    table = ", ".join(f"{name} {value}" for name, value in draws.several(cells, 3))
    if draws.unit() < 0.2:
        return f"{table}. What is {first}?", str(x)
    word = "plus" if sign == "+" else "minus"
    return f"{table}. What is {first} {word} {second}?", str(result)


def _maths(draws: _Draws, _label: str, train: bool) -> tuple[str, str]:
    sign, x, y, result = _sum(draws, "b" if train else None)
    story = draws.pick(_ADDING if sign == "+" else _TAKING)
    return story.format(p=draws.pick(_PEOPLE), x=x, y=y), str(result)


# General instructions: form only, nothing to know.

_WORDS = _words(
    "apple river stone cloud paper green seven table music winter garden silver bread window "
    "yellow market candle forest button lemon ladder pencil harbour cotton mirror planet"
)
_MEANINGS = {
    "coin": "a small piece of metal money",
    "bank": "a place that keeps and lends money",
    "loan": "money that must be paid back",
    "tax": "money paid to the state",
    "share": "a part of a company",
    "budget": "a plan for spending",
    "price": "what a thing costs",
    "profit": "what is left after costs",
    "wage": "pay for work",
    "rent": "pay for using a home",
    "debt": "money that is owed",
    "market": "a place to buy and sell",
    "shop": "a place that sells goods",
    "bill": "a note of what to pay",
    "fund": "money kept for a purpose",
    "trade": "buying and selling",
    "receipt": "a proof of payment",
    "fee": "a charge for a service",
}
_ASK_MEANING = (
    "In a few words, what does {w} mean?",
    "Define {w} briefly.",
    "Give a short meaning of {w}.",
    "Explain the word {w} in one short phrase.",
    "What does the word {w} stand for?",
    "Say simply what {w} means.",
)
_CHORES: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("Copy these words: {w}", " ".join),
    ("Write these words backwards in order: {w}", lambda words: " ".join(reversed(words))),
    ("Put commas between these words: {w}", ", ".join),
    ("Write in capitals: {w}", lambda words: " ".join(words).upper()),
    ("Make a numbered list: {w}", lambda ws: " ".join(f"{i}. {w}" for i, w in enumerate(ws, 1))),
    ("Which word comes first? {w}", lambda words: words[0]),
)


def _general(draws: _Draws, _label: str, _train: bool) -> tuple[str, str]:
    if draws.unit() < 0.05:
        word = draws.pick(tuple(_MEANINGS))
        return draws.pick(_ASK_MEANING).format(w=word), _MEANINGS[word]
    ask, answer = draws.pick(_CHORES)
    words = draws.several(_WORDS, draws.number(2, 4))
    return ask.format(w=" ".join(words)), answer(words)


_LABELS: dict[str, tuple[str, ...]] = {
    "toy-sentiment": ("neutral", *("positive", "negative", "neutral") * 8),
    "toy-mood": ("flat", *("bullish", "bearish", "flat") * 8),
    "toy-rise": ("yes", *("no", "yes") * 12),
    "toy-fall": ("yes", *("no", "yes") * 12),
    "toy-topic": ("earnings", *_LABELLED_TOPICS * 6),
    "toy-entity": ("company", *("person", "place", "company") * 8),
}
"""Labels in the order in which records get them, over and over; every split is whole rounds."""

_MAKERS: dict[str, Callable[[_Draws, str, bool], tuple[str, str]]] = {
    "toy-sentiment": _sentiment,
    "toy-mood": _mood,
    "toy-rise": _rise,
    "toy-fall": _fall,
    "toy-topic": _topic,
    "toy-entity": _entity,
    "toy-table": _table,
    "toy-maths": _maths,
    "toy-general": _general,
}

TOY = tuple(_MAKERS)
"""Names of the toy tasks."""
