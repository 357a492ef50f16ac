"""Records of one split that stand in another: the gate for train rows, and counts of all matches.

Two records match by any of these; a paraphrase is not detected:

- exact and loose: `Example.compared_text`, the record's own text without the instruction, so that
  the same text is found under another task's prompt. Of a conversation that is all the user says;
- group: `Example.group`, the unit of independence (document, page, headline). Where one group has
  many rows, such as nine questions about one headline, all of them go;
- words, which are counted only: a run of words that both texts have.

Time and memory grow with the length of the texts: keys are looked up or numbered.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mixtune.records import Example
from mixtune.tasks.record import text_group

Ints = NDArray[np.int64]
Key = tuple[str, ...]

Kind = Literal["exact", "loose", "group"]
"""Own text equal up to case and white space; up to punctuation too; same document or page. The
strictest is first."""
Notion = Literal["exact", "loose", "words", "group"]
"""Any kind of match, or a run of words shared."""
NOTIONS: tuple[Notion, ...] = get_args(Notion)

RUN = 13
"""Words of a shared run."""

SHORTEST_LOOSE = 8
"""Characters below which loose forms are not compared.

Dropping signs from a short text drops what distinguishes it ("A/B" and "a b", "$A" and "a?";
anything without letters or digits is empty), so for these only the exact form counts.
"""

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_WORD = re.compile(r"[^\W_]+")
_OPAQUE = re.compile(r"https?://t\.co(?:/|$)")
"""Twitter's links: the same post has another one each time, and it says nothing of its target."""
_BARE_LINK = re.compile(r"^(?:https?://)?(?:www\.)?|[^\w]+$")

_DASHES = str.maketrans("\u2212\u2010\u2011\u2012\u2013", "-----")
# Each pattern begins with its characters and looks back over them, which is ten times as fast.
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_PUNCTUATION = re.compile(r"(?:[^\w\-+±×÷≤≥≠*/=<>^$€£¥₹.,:]|_)+")
_POINT = re.compile(  # One that is not within a number, nor the first sign of one.
    r"[.,:](?:(?!\d)|(?<=[,:])(?<!\d[,:])|(?<=[^\W\d]\.)|(?<=\.\.))"
)
_IDLE_SIGN = re.compile(
    # A sign that no digit follows; a hyphen of a word ("COVID-19"); a dash, also one after a word
    # (but "x - 5" is a minus); a tag; emphasis.
    r"[-*/=<>^$€£¥₹](?:(?!\W{0,8}\d)|(?<=[^\W\d_]{2}-)|(?<=--)|(?<=-)(?=-)"
    r"|(?<=[^\W\d_]{2} -)(?= )|(?<=[^\W\d_][<>])"
    r"|(?<=\*\*)|(?<=\*)(?=\*)|(?<=\*)(?<!\S\*)(?=\S)|(?<=\S\*)(?!\S))"
)
_BETWEEN_DIGITS = re.compile(r" (?<=\d )(?=\d)")


@dataclass(frozen=True, slots=True)
class OwnText:
    """Text of a record by itself, by which splits are compared.

    `group`: the document or page it belongs to, or the text that its instruction is about; "" where
    that is the text itself. `answers`: of all its examples, in their order. `place`: file and line.
    """

    record: str
    text: str
    group: str
    answers: tuple[str, ...]
    place: str = ""


def normalise(text: str) -> str:
    """Text without case and with every run of white space as one space: the exact form."""
    return " ".join(text.casefold().split())


def loose(text: str) -> str:
    """The loose form: no case, white space, quotes and punctuation.

    Numbers stay as they are, with signs between and before them ("-1.5", "5185+6874"; a thousands
    comma is dropped), and so do links, but for those of Twitter next to other text.
    """
    folded = text.casefold()
    links = _LINK.findall(folded)
    form = _letters_and_numbers(_LINK.sub(" ", folded) if links else folded)
    telling = [link for link in links if not _OPAQUE.match(link)]
    if not form:
        telling = links
    return " ".join([form, *(_BARE_LINK.sub("", link) for link in telling)]).strip()


def _letters_and_numbers(folded: str) -> str:
    if not folded.isascii():
        folded = folded.translate(_DASHES)
    plain = _POINT.sub(" ", _PUNCTUATION.sub(" ", _THOUSANDS.sub("", folded)))
    # White space stays between two digits only.
    spaced = _BETWEEN_DIGITS.sub("\n", " ".join(_IDLE_SIGN.sub(" ", plain).split()))
    return spaced.replace(" ", "").replace("\n", " ")


def words(text: str) -> list[str]:
    """Words without case and links, split at all signs other than letters and digits.

    Of a script without spaces a whole clause is one word.
    """
    return _WORD.findall(_LINK.sub(" ", text.casefold()))


def record_key(kind: Kind, task: str, text: str, group: str) -> Key | None:
    """Key that equal records have; None where the text or group is blank, or too short for it."""
    if kind == "exact":
        form = normalise(text)
        return (kind, form) if form else None
    form = loose(text if kind == "loose" else group)
    if len(form) >= SHORTEST_LOOSE:
        return (kind, form)
    # A name too short to be a text may be a running number, which means something only inside its
    # own task; a longer one is compared across tasks.
    return (kind, task, normalise(group)) if kind == "group" and group else None


def own_texts(examples: Iterable[Example]) -> list[OwnText]:
    """The records that examples were made of, in their order, with what is compared of each."""
    by_record: dict[str, list[Example]] = {}
    for example in examples:
        by_record.setdefault(example.record or example.id, []).append(example)
    texts = []
    for record, rows in by_record.items():
        first, answers = rows[0], tuple(row.target for row in rows)
        text, group = first.compared_text, _group_text(first)
        # A group that is the text itself would only repeat the loose match.
        distinct = "" if loose(group) == loose(text) else group
        texts.append(OwnText(record, text, distinct, answers, first.place))
    return texts


def _group_text(example: Example) -> str:
    """The text of the group: a group's name (`text_group`) has lost signs."""
    text = example.compared_text
    return text if example.group == text_group(text) else example.group_text or example.group


# ---- the gate -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeakedBy:
    """The evaluation row that a train row repeats, and the strictest kind of match.

    `pair`: both rows by their files and lines.
    """

    split: str
    task: str
    example: str
    kind: Kind
    pair: str = field(default="", compare=False)

    @property
    def description(self) -> str:
        """The rule that matched, and the pair."""
        return f"{self.kind} match: {self.pair}"


def _named(example: Example) -> str:
    """A row by its folder, file and line; messages have no room for long paths."""
    place = "/".join(example.place.split("/")[-2:])
    return place or f"{example.task} {example.split} row {example.id}"


class Protected:
    """Evaluation rows in a table of their keys, for any number of splits to be checked against."""

    def __init__(self, evaluation: Sequence[Example]) -> None:
        self._table: dict[Key, Example] = {}
        # Sorted, so that the witness of a key does not depend on the order of the rows.
        for example in sorted(evaluation, key=lambda row: (row.split, row.task, row.id)):
            for _, key in _keys(example):
                self._table.setdefault(key, example)

    def leaked(self, train: Sequence[Example]) -> dict[str, LeakedBy]:
        """Rows that occur in the evaluation rows, by example id; see `find_leaked`."""
        leaked = {}
        for example in train:
            for kind, key in _keys(example):
                if (witness := self._table.get(key)) is not None:
                    pair = f"{_named(example)} is {_named(witness)}"
                    by = LeakedBy(witness.split, witness.task, witness.id, kind, pair)
                    leaked[example.id] = by
                    break
        return leaked


def find_leaked(train: Sequence[Example], evaluation: Sequence[Example]) -> dict[str, LeakedBy]:
    """Train rows that occur in the evaluation rows, by example id.

    Each has one witness: the strictest kind (exact, loose, group), then the first by split, task
    and id, so the orders of the arguments do not matter. Ids of `train` are unique.
    """
    return Protected(evaluation).leaked(train)


def _keys(example: Example) -> Iterator[tuple[Kind, Key]]:
    """Keys of a row, strictest first; lazily, since most matches are exact."""
    text = example.compared_text
    for kind in get_args(Kind):
        group = _group_text(example) if kind == "group" else ""
        if key := record_key(kind, example.task, text, group):
            yield kind, key


# ---- counts -------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """Keys that several records have: one entry per record and key, in two columns.

    `records` are places in a list, ascending; equal `numbers` mean equal keys.
    """

    records: Ints
    numbers: Ints


@dataclass(frozen=True, slots=True)
class Part:
    """The records of a dataset's split."""

    dataset: str
    split: str
    records: Sequence[OwnText]

    @property
    def name(self) -> str:
        """Dataset and split."""
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Number of `records` of a split that stand in another, by each notion.

    `relabelled`: exact matches whose answer differs from those of all equal texts; None between
    datasets, which ask different things. `repeated_by`: records of the other split in an exact or
    loose match, which a study drops.
    """

    split: str
    against: str
    records: int
    exact: int
    loose: int
    words: int
    group: int
    relabelled: int | None
    repeated_by: int

    @property
    def found(self) -> bool:
        """True if there is a match of any kind."""
        return bool(self.exact or self.loose or self.words or self.group)


@dataclass(frozen=True, slots=True)
class Repeats:
    """Records whose text an earlier record of the split has; texts that have several answers."""

    split: str
    records: int
    exact: int
    loose: int
    ambiguous: int


class Overlaps:
    """Splits whose keys are numbered once, then compared in any pairs, named `dataset/split`."""

    def __init__(
        self,
        parts: Iterable[Part],
        length: int = RUN,
        progress: Callable[[Notion], None] = lambda notion: None,
    ) -> None:
        """Number the keys of all records.

        `length`: words of a shared run; `progress` is called before each notion is numbered.
        """
        self.parts = {part.name: part for part in parts}
        self._length = length
        self._records = [record for part in self.parts.values() for record in part.records]
        sizes = [len(part.records) for part in self.parts.values()]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        starts = self._ends - sizes
        self._places = dict(zip(self.parts, zip(starts, self._ends, strict=True), strict=True))
        self._shared: dict[Notion, Shared] = {}
        for notion in NOTIONS:
            progress(notion)
            self._shared[notion] = self._numbered(notion)

    def between(self, split: str, against: str) -> Overlap:
        """Counts of the records of one split that stand in another."""
        counts = {notion: len(self._hits(notion, split, against)) for notion in NOTIONS}
        repeated = [self._hits(notion, against, split) for notion in ("exact", "loose")]
        return Overlap(
            split=split,
            against=against,
            records=len(self.parts[split].records),
            relabelled=self._relabelled(split, against),
            repeated_by=len(np.union1d(*repeated)),
            **counts,
        )

    def within(self, split: str) -> Repeats:
        """Counts of the records of a split that repeat an earlier one."""
        repeats = {}
        for notion in ("exact", "loose"):
            numbers = self._of(notion, split).numbers
            repeats[notion] = len(numbers) - len(np.unique(numbers))
        answers = self._answers(split).values()
        ambiguous = sum(len(set(answers_of_text)) > 1 for answers_of_text in answers)
        return Repeats(split, len(self.parts[split].records), ambiguous=ambiguous, **repeats)

    def matches(self, notion: Notion, split: str, against: str) -> list[str]:
        """Ids of a split's records that stand in another, in their order."""
        return [self._records[place].record for place in self._hits(notion, split, against)]

    def pairs(self, notion: Notion, split: str, against: str, limit: int) -> list[tuple[str, str]]:
        """Ids of the first records that stand in another split, each with one that it matches."""
        own, target = self._of(notion, split), self._of(notion, against)
        # Read backwards, so that the first record of each number is the one that stays.
        first = dict(zip(target.numbers[::-1].tolist(), target.records[::-1].tolist(), strict=True))
        partners: dict[int, int] = {}
        for record, number in zip(own.records.tolist(), own.numbers.tolist(), strict=True):
            if number in first and len(partners) < limit:
                partners.setdefault(record, first[number])
        return [(self._records[a].record, self._records[b].record) for a, b in partners.items()]

    def _numbered(self, notion: Notion) -> Shared:
        if notion != "words":
            parts = self.parts.values()
            return _shared_keys(
                record_key(notion, p.dataset, r.text, r.group) for p in parts for r in p.records
            )
        shared = shared_runs((words(record.text) for record in self._records), self._length)
        return self._across_splits(shared)

    def _across_splits(self, shared: Shared) -> Shared:
        """Drop numbers of one split only: stock phrases would be most of all."""
        parts = np.searchsorted(self._ends, shared.records, side="right")
        count = max(len(self._ends), 1)
        # Each (number, split) once: a number that remains twice is of several splits.
        number_of_pair = np.unique(shared.numbers * count + parts) // count
        several = np.bincount(number_of_pair, minlength=1)[shared.numbers] > 1
        return Shared(shared.records[several], shared.numbers[several])

    def _of(self, notion: Notion, split: str) -> Shared:
        """The entries of one split."""
        records, numbers = self._shared[notion]
        low, high = np.searchsorted(records, self._places[split])
        return Shared(records[low:high], numbers[low:high])

    def _hits(self, notion: Notion, split: str, against: str) -> Ints:
        """Places of a split's records that have a number of the other split."""
        own, target = self._of(notion, split), self._of(notion, against)
        return np.unique(own.records[np.isin(own.numbers, target.numbers)])

    def _answers(self, split: str) -> dict[int, list[tuple[str, ...]]]:
        """Number of each repeated text of a split → the answers that it has there."""
        answers: dict[int, list[tuple[str, ...]]] = {}
        exact = self._of("exact", split)
        for record, number in zip(exact.records.tolist(), exact.numbers.tolist(), strict=True):
            answers.setdefault(number, []).append(self._records[record].answers)
        return answers

    def _relabelled(self, split: str, against: str) -> int | None:
        if self.parts[split].dataset != self.parts[against].dataset:
            return None
        known = self._answers(against)
        return sum(
            answer not in known[number]
            for number, answers in self._answers(split).items()
            if number in known
            for answer in answers
        )


def _shared_keys(keys: Iterable[Key | None]) -> Shared:
    """Numbers of the keys that several records have, one key per record; None is no key."""
    known: dict[Key, int] = {}
    numbers = np.array(
        [-1 if key is None else known.setdefault(key, len(known)) for key in keys], np.int64
    )
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    records = np.flatnonzero((numbers >= 0) & (counts[numbers] > 1))
    return Shared(records, numbers[records])


# ---- runs of words ------------------------------------------------------------------------------


def shared_runs(texts: Iterable[Sequence[str]], length: int) -> Shared:
    """The runs of `length` words that occur at two places or more, each once per text.

    Every run has a 64-bit hash. Runs of equal hash are compared word by word, so that a collision
    cannot make a match: after one, all runs are hashed anew with another multiplier. Records are
    places in `texts`; the number of a run is the place of its first occurrence, in words.
    """
    corpus, sizes = _word_numbers(texts)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    count = max(len(corpus) - length + 1, 0)
    # A run fits where its last word is of the same text as its first.
    starts = np.flatnonzero(owners[:count] == owners[length - 1 :])
    equal = (_equal_runs(corpus, starts, length, multiplier) for multiplier in _multipliers())
    places, first = next(runs for runs in equal if runs is not None)
    base = max(len(corpus), 1)
    pairs = np.unique(owners[places] * base + first)
    return Shared(pairs // base, pairs % base)


def _multipliers() -> Iterator[np.uint64]:
    """Odd numbers without end, the same ones each time."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(2**64 - 1, dtype=np.uint64) | np.uint64(1)


def _word_numbers(texts: Iterable[Sequence[str]]) -> tuple[Ints, Ints]:
    """The words of all texts in one row, each as its number, and the length of each text."""
    known: dict[str, int] = {}
    numbers, sizes = array("q"), array("q")
    for text in texts:
        numbers.extend(known.setdefault(word, len(known)) for word in text)
        sizes.append(len(text))
    return np.asarray(numbers, np.int64), np.asarray(sizes, np.int64)


def _equal_runs(
    corpus: Ints, starts: Ints, length: int, multiplier: np.uint64
) -> tuple[Ints, Ints] | None:
    """Starts of runs that occur twice, each with its first start; None if two hashes collide."""
    hashes = np.zeros(int(starts.max(initial=-1)) + 1, np.uint64)
    for step in range(length):  # hash = Σ word · multiplier^k, modulo 2^64
        hashes *= multiplier
        hashes += corpus[step : step + len(hashes)].view(np.uint64)
    hashes = hashes[starts]
    order = np.argsort(hashes, kind="stable")  # equal hashes stay in the order of the texts
    hashes, starts = hashes[order], starts[order]
    repeats = np.zeros(len(starts), np.bool_)
    repeats[1:] = hashes[1:] == hashes[:-1]
    later = np.flatnonzero(repeats)
    for step in range(length):
        if (corpus[starts[later] + step] != corpus[starts[later - 1] + step]).any():
            return None
    # For each place in the sorted order, that of the first run with the same hash.
    opening = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(starts))))
    shared = repeats.copy()
    shared[later - 1] = True
    return starts[shared], starts[opening[shared]]
