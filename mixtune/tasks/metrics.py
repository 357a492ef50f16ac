"""Metrics: names, directions, and their values from gold and parsed labels.

A metric is a function of counts that add up over items, so that a value and thousands of resamples
of it are computed alike. Tests compare it with scikit-learn.

Label codes are 0 … n_labels - 1; an unparsed answer has the code n_labels and counts as wrong.
Macro and weighted F1 average over the labels that occur in gold or in the parsed answers
(scikit-learn's default, without the code for unparsed answers); a label that does not occur is
left out instead of counting as 0 or 1.

An answer that is a list is text with one item a line (or `none`). Its F1 is pooled over all items
of a corpus, as CoNLL and seqeval count entity F1: an item counts as often as both gold and answer
have it, and an unparsed answer has no items.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixtune.errors import DataError

VERSION = 1
"""Increased whenever a metric's value could change; part of every score id."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

RIGHT, GOLD, PARSED = 0, 1, 2
"""Rows of a tally: counts of right answers, gold answers and parsed answers, per label or item."""

NOTHING = "none"
"""The text of a list without items."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its direction, and the unit that it counts.

    `counts`: "answers" (right or wrong, of any task), "labels" (undefined for open answers) or
    "items" (of answers that are lists).
    """

    name: str
    higher_is_better: bool
    counts: Literal["answers", "labels", "items"]
    from_tallies: Callable[[FloatArray], FloatArray]
    lowest: float = 0.0
    """The lowest possible value; the highest is 1."""
    per_label: bool = False
    """True if each label weighs the same, however rare it is."""

    def chance(self, gold: FloatArray) -> float:
        """Value expected of uniform guessing, from the gold counts per label `gold` [labels].

        The metric of the expected counts: exactly 1/labels for accuracy; for F1 the value at the
        expected counts, which is what uniform guessing tends to as items grow.
        """
        # A guess hits a label with probability 1/labels, whatever the gold label is.
        share = 1.0 / len(gold)
        expected = np.stack([gold * share, gold, np.full(len(gold), gold.sum() * share)])
        return float(self.from_tallies(expected))


def tallies(gold: IntArray, parsed: IntArray, n_labels: int) -> FloatArray:
    """Counts per item, [items, 3, labels], that add up to those of any set of items.

    Raises:
        DataError: a code out of range, or gold and parsed of different lengths.
    """
    _check(gold, parsed, n_labels)
    items = np.arange(len(gold))
    # One column more, for unparsed answers: they count as no label's answer.
    counts = np.zeros((len(gold), 3, n_labels + 1))
    counts[items, GOLD, gold] = 1.0
    counts[items, PARSED, parsed] = 1.0
    counts[items, RIGHT, gold] = gold == parsed
    return counts[:, :, :n_labels]


def items(answer: str | None) -> Counter[str]:
    """Items of a list with one a line, counted; empty for `none` and for None.

    Runs of white space count as one space.
    """
    lines = [" ".join(line.split()) for line in (answer or "").splitlines()]
    return Counter() if lines == [NOTHING] else Counter(line for line in lines if line)


def item_tallies(gold: Sequence[str], parsed: Sequence[str | None]) -> FloatArray:
    """Counts per answer that is a list, [answers, 3, 1], that add up as `tallies` do."""
    counts = np.zeros((len(gold), 3, 1))
    for row, golds, answers in zip(counts, map(items, gold), map(items, parsed), strict=True):
        row[:, 0] = (golds & answers).total(), golds.total(), answers.total()
    return counts


def _check(gold: IntArray, parsed: IntArray, n_labels: int) -> None:
    if len(gold) != len(parsed) or len(gold) == 0:
        raise DataError(
            "a metric needs as many parsed answers as gold ones, and at least one",
            found=f"{len(gold)} gold, {len(parsed)} parsed",
        )
    if min(gold.min(), parsed.min()) < 0 or gold.max() >= n_labels or parsed.max() > n_labels:
        raise DataError(
            "a label code is out of range",
            found=f"gold up to {gold.max()}, parsed up to {parsed.max()}",
            wanted=f"gold below {n_labels}, parsed at most {n_labels} (unparsed)",
        )


def _rows(counts: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Counts of right, gold and parsed answers [..., labels]."""
    return counts[..., RIGHT, :], counts[..., GOLD, :], counts[..., PARSED, :]


def _accuracy(counts: FloatArray) -> FloatArray:
    right, gold, _ = _rows(counts)
    value: FloatArray = right.sum(-1) / gold.sum(-1)
    return value


def _f1(counts: FloatArray) -> FloatArray:
    """F1 [..., labels]; 0 where a label does not occur."""
    right, gold, parsed = _rows(counts)
    both = gold + parsed
    value: FloatArray = 2 * right / np.where(both > 0, both, 1.0)
    return value


def _macro_f1(counts: FloatArray) -> FloatArray:
    _, gold, parsed = _rows(counts)
    value: FloatArray = _f1(counts).sum(-1) / (gold + parsed > 0).sum(-1)
    return value


def _weighted_f1(counts: FloatArray) -> FloatArray:
    _, gold, _ = _rows(counts)
    value: FloatArray = (_f1(counts) * gold).sum(-1) / gold.sum(-1)
    return value


def _item_f1(counts: FloatArray) -> FloatArray:
    """F1 of pooled items [..., 1]; 0 where neither gold nor an answer has any, as in seqeval."""
    value: FloatArray = _f1(counts)[..., 0]
    return value


def _mcc(counts: FloatArray) -> FloatArray:
    """Matthews correlation of many labels (Gorodkin 2004); unparsed answers are a label too."""
    right, gold, parsed = _rows(counts)
    n = gold.sum(-1)
    unparsed = n - parsed.sum(-1)
    # The covariance of gold and parsed over the root of both variances, each of them times n².
    of_gold = n**2 - (gold**2).sum(-1)
    of_parsed = n**2 - (parsed**2).sum(-1) - unparsed**2
    both = np.sqrt(of_gold * of_parsed)
    mcc = (right.sum(-1) * n - (gold * parsed).sum(-1)) / np.where(both > 0, both, 1.0)
    return np.where(both > 0, mcc, 0.0)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, "answers", _accuracy),
        Metric("macro-f1", True, "labels", _macro_f1, per_label=True),
        Metric("weighted-f1", True, "labels", _weighted_f1),
        Metric("mcc", True, "labels", _mcc, -1.0),
        Metric("span-f1", True, "items", _item_f1),
        Metric("triplet-f1", True, "items", _item_f1),
    )
}
"""Every metric by name."""
