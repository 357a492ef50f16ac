"""Runs of words that texts share, without comparing texts in pairs.

Every place of every text is given the number of the run of n words that begins there. Equal runs,
and only these, have the same number: the numbers are ranks of pairs of shorter runs (1, 2, 4, 8 …
words, as in building a suffix array by doubling), not hashes, so no collision can make a match.
Places whose run occurs once are dropped at each step.

Source: Manber, Myers. Suffix arrays: a new method for on-line string searches. 1993.

Knows: words in their order. Does not know: what a word is, which texts should not share any.

How much of one split stands in another: every notion of a match, for every pair of splits.

Each notion numbers what records are compared by, so that a pair of splits is compared by looking
numbers up, never text with text; time and memory grow with the length of the texts.

Knows: records of splits, pairs of them. Does not know: where records come from, which pairs
matter, what is done about a match.
"""

from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixtune.datasets.leakage import SHORTEST_LOOSE, group_key, loose, normalise, words
from mixtune.records import OwnText

Ints = NDArray[np.int64]


def shared_runs(texts: Iterable[Sequence[str]], length: int) -> tuple[Ints, Ints]:
    """The runs of `length` words that stand at two places or more.

    Args:
        texts: the words of each text.
        length: words of a run, from 1.

    Returns:
        Two arrays of one length: the text, by its place in `texts`, in ascending order; and the
        number of a run that it has. A text has each of its runs once.
    """
    numbers, sizes = _numbered(texts)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(numbers))  # words left in the text
    runs, size = _shared(numbers), 1
    while size < length:
        step = min(size, length - size)
        runs = _longer(runs, step, left >= size + step)
        size += step
    places = np.flatnonzero(runs >= 0)
    owners = np.repeat(np.arange(len(sizes)), sizes)[places]
    base = int(runs.max(initial=0)) + 1
    pairs = np.unique(owners * base + runs[places])
    return pairs // base, pairs % base


def _numbered(texts: Iterable[Sequence[str]]) -> tuple[Ints, Ints]:
    """All words in a row, each as its number, and how many each text has."""
    known: dict[str, int] = {}
    numbers, sizes = array("q"), array("q")
    for text in texts:
        numbers.extend(known.setdefault(word, len(known)) for word in text)
        sizes.append(len(text))
    return np.asarray(numbers, np.int64), np.asarray(sizes, np.int64)


def _longer(runs: Ints, step: int, fits: NDArray[np.bool_]) -> Ints:
    """Runs of two joined: the one at each place, and the one `step` words behind it.

    `fits`: whether the text has so many words from a place on. -1 stands for a run that is not
    shared; a run that holds it is not shared either.
    """
    places = np.flatnonzero(fits & (runs >= 0))
    places = places[runs[places + step] >= 0]
    made = np.full(len(runs), -1, np.int64)
    if len(places):
        pairs = runs[places] * (runs.max() + 1) + runs[places + step]
        made[places] = _shared(np.unique(pairs, return_inverse=True)[1])
    return made


def _shared(numbers: Ints) -> Ints:
    """The numbers, with -1 for those that occur once."""
    counts = np.bincount(numbers) if len(numbers) else numbers
    return np.where(counts[numbers] > 1, numbers, -1)


Notion = Literal["exact", "loose", "words", "group"]
"""Own text equal up to case and white space; letters and digits equal, links dropped; a run of so
many words shared; same document or page."""
NOTIONS: tuple[Notion, ...] = get_args(Notion)

RUN = 13
"""Words of a shared run."""


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
    """How many `records` of a split stand in another, by each notion.

    `relabelled`: of the exact ones, those that have another answer in every place; None between
    datasets, which ask different things. `repeated_by`: records of the other split that an exact or
    loose match is with: what a study drops.
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
        """Whether there is a match of any kind."""
        return bool(self.exact or self.loose or self.words or self.group)


@dataclass(frozen=True, slots=True)
class Repeats:
    """Records of a split whose text stands in it before; texts that have several answers."""

    split: str
    records: int
    exact: int
    loose: int
    ambiguous: int


class Overlaps:
    """Splits, numbered once, then compared in any pairs.

    `note` is told each notion before it is numbered.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        length: int = RUN,
        note: Callable[[Notion], None] = lambda notion: None,
    ) -> None:
        self.parts = {part.name: part for part in parts}
        self._length = length
        self._records = [record for part in self.parts.values() for record in part.records]
        sizes = [len(part.records) for part in self.parts.values()]
        ends = np.cumsum(sizes).tolist()
        self._ends = {n: (e - s, e) for n, s, e in zip(self.parts, sizes, ends, strict=True)}
        self._shared = {}
        for notion in NOTIONS:
            note(notion)
            self._shared[notion] = self._numbered(notion)

    def between(self, split: str, against: str) -> Overlap:
        """How much of a split stands in another; both as `dataset/split`."""
        hits = {notion: self._hits(notion, split, against) for notion in NOTIONS}
        back = [self._hits(notion, against, split) for notion in ("exact", "loose")]
        counts = {notion: len(found) for notion, found in hits.items()}
        return Overlap(
            split=split,
            against=against,
            records=len(self.parts[split].records),
            relabelled=self._relabelled(split, against),
            repeated_by=len(np.union1d(*back)),
            **counts,
        )

    def within(self, split: str) -> Repeats:
        """How much of a split is there twice."""
        counts = {}
        for notion in ("exact", "loose"):
            _, found = self._of(notion, split)
            counts[notion] = len(found) - len(np.unique(found))
        answers = self._answers(split)
        ambiguous = sum(len(set(given)) > 1 for given in answers.values())
        return Repeats(split, len(self.parts[split].records), ambiguous=ambiguous, **counts)

    def matches(self, notion: Notion, split: str, against: str) -> list[str]:
        """Ids of a split's records that stand in another, in their order."""
        return [self._records[place].record for place in self._hits(notion, split, against)]

    def pairs(self, notion: Notion, split: str, against: str, most: int) -> list[tuple[str, str]]:
        """Ids of the first records that stand in another split, each with one that it equals."""
        owners, numbers = self._of(notion, split)
        others, held = self._of(notion, against)
        first = dict(zip(held[::-1].tolist(), others[::-1].tolist(), strict=True))
        found: dict[int, int] = {}
        for owner, number in zip(owners.tolist(), numbers.tolist(), strict=True):
            if number in first and len(found) < most:
                found.setdefault(owner, first[number])
        return [(self._records[a].record, self._records[b].record) for a, b in found.items()]

    def _numbered(self, notion: Notion) -> tuple[Ints, Ints]:
        """The numbers of a notion that more than one record has; see `_same`."""
        texts = (record.text for record in self._records)
        if notion == "exact":
            return _same(normalise(text) or None for text in texts)
        if notion == "loose":
            return _same(map(_loose_key, texts))
        if notion == "words":
            return self._across(*shared_runs(map(words, texts), self._length))
        parts = self.parts.values()
        return _same(_group_key(part.dataset, record) for part in parts for record in part.records)

    def _across(self, owners: Ints, numbers: Ints) -> tuple[Ints, Ints]:
        """Without the numbers that one split alone has: stock phrases would be most of them."""
        ends = [end for _, end in self._ends.values()]
        parts = np.searchsorted(ends, owners, side="right")
        having = np.unique(numbers * len(ends) + parts) // max(len(ends), 1)
        kept = np.bincount(having, minlength=1)[numbers] > 1
        return owners[kept], numbers[kept]

    def _of(self, notion: Notion, split: str) -> tuple[Ints, Ints]:
        """Places of a split's records, ascending, and the numbers that each has."""
        owners, numbers = self._shared[notion]
        low, high = np.searchsorted(owners, self._ends[split])
        return owners[low:high], numbers[low:high]

    def _hits(self, notion: Notion, split: str, against: str) -> Ints:
        """Places of a split's records that have a number of the other split's."""
        owners, numbers = self._of(notion, split)
        _, held = self._of(notion, against)
        return np.unique(owners[np.isin(numbers, held)])

    def _answers(self, split: str) -> dict[int, list[tuple[str, ...]]]:
        """The answers that each text of a split has there, by the text's number."""
        found: dict[int, list[tuple[str, ...]]] = {}
        for owner, number in zip(
            *(part.tolist() for part in self._of("exact", split)), strict=True
        ):
            found.setdefault(number, []).append(self._records[owner].answers)
        return found

    def _relabelled(self, split: str, against: str) -> int | None:
        if self.parts[split].dataset != self.parts[against].dataset:
            return None
        there = self._answers(against)
        return sum(
            given not in there[number]
            for number, here in self._answers(split).items()
            if number in there
            for given in here
        )


def _same(keys: Iterable[Hashable | None]) -> tuple[Ints, Ints]:
    """Keys that several records have: the records' places, ascending, and a number for each key.

    None is no key.
    """
    known: dict[Hashable, int] = {}
    numbers = np.array(
        [-1 if key is None else known.setdefault(key, len(known)) for key in keys], np.int64
    )
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    places = np.flatnonzero((numbers >= 0) & (counts[numbers] > 1))
    return places, numbers[places]


def _loose_key(text: str) -> str | None:
    form = loose(text)
    return form if len(form) >= SHORTEST_LOOSE else None


def _group_key(dataset: str, record: OwnText) -> tuple[str, ...] | None:
    return group_key(dataset, record.group) if record.group else None
