"""Runs of words that texts share, without comparing texts in pairs.

Every place of every text is given the number of the run of n words that begins there. Equal runs,
and only these, have the same number: the numbers are ranks of pairs of shorter runs (1, 2, 4, 8 …
words, as in building a suffix array by doubling), not hashes, so no collision can make a match.
Places whose run occurs once are dropped at each step.

Source: Manber, Myers. Suffix arrays: a new method for on-line string searches. 1993.

Knows: words in their order. Does not know: what a word is, which texts should not share any.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

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
    for words in texts:
        numbers.extend(known.setdefault(word, len(known)) for word in words)
        sizes.append(len(words))
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
