"""Scores into panels: the same items for every system, as counts per cluster.

Knows: label codes, clusters (Score.group), what a task must say of itself. Does not know:
cocktails, seeds, intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mixtune.errors import DataError
from mixtune.records import Score, schema_of
from mixtune.tasks.metrics import METRICS, FloatArray, IntArray, Metric, item_tallies, tallies

SPLITS = ("train", "validation", "test")
FORMS = ("strict", "lenient", "constrained", "schema")


class Scored(Protocol):
    """What the analysis needs to know of a task (tasks.base.Task has it)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in their declared order; empty for open answers."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in metrics.METRICS, the main one first."""
        ...


@dataclass(frozen=True)
class Panel:
    """All scores of one task × split × form.

    `codes`: system → (gold, parsed) [items]; `counts`: system → [clusters, 3, labels], clusters in
    sorted order of their names; `listed`: the same for the items of answers that are lists
    [clusters, 3, 1], empty where no metric counts them; `unread`: system → share of answers
    without a readable value.
    """

    task: str
    split: str
    form: str
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    n: int
    clusters: int
    codes: Mapping[str, tuple[IntArray, IntArray]]
    counts: Mapping[str, FloatArray]
    unread: Mapping[str, float]
    listed: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def n_labels(self) -> int:
        """Labels to count; an open answer has one, "right"."""
        return max(1, len(self.labels))

    def tallies(self, metric: Metric) -> Mapping[str, FloatArray]:
        """What a metric is made of: system → counts per cluster."""
        return self.listed if metric.counts == "items" else self.counts

    def value(self, metric: Metric, system: str) -> float:
        """A metric of a system on all items."""
        return float(metric.from_tallies(self.tallies(metric)[system].sum(0)))


def panels(scores: Sequence[Score] | pa.Table, tasks: Mapping[str, Scored]) -> list[Panel]:
    """Panels in order of tasks, splits and forms.

    Raises:
        DataError: an unknown label, systems that answered different items, one item in two
            clusters.
    """
    rows = _Rows.of(scores if isinstance(scores, pa.Table) else _table(scores))
    order = {name: place for place, name in enumerate(tasks)}

    def place(part: tuple[_Key, IntArray]) -> tuple[int, int, int]:
        task, split, form = part[0]
        return order[task], SPLITS.index(split), FORMS.index(form)

    return [
        _panel(key, rows.taken(at), tasks[key[0]]) for key, at in sorted(rows.parts(), key=place)
    ]


def panel_of(
    key: tuple[str, str, str],
    task: Scored,
    cluster: IntArray,
    codes: Mapping[str, tuple[IntArray, IntArray]],
) -> Panel:
    """A panel of answers that are codes already, such as simulated ones.

    Args:
        key: task, split and form.
        task: its labels and metrics, none of which counts items of lists.
        cluster: of each item, from 0 without a gap [items].
        codes: system → gold and parsed label codes [items].
    """
    labels = max(1, len(task.labels))
    return Panel(
        *key,
        task.labels,
        tuple(METRICS[name] for name in task.metrics),
        len(cluster),
        int(cluster.max()) + 1,
        codes,
        {name: _by_cluster(tallies(*pair, labels), cluster) for name, pair in codes.items()},
        {name: float((parsed == labels).mean()) for name, (_, parsed) in codes.items()},
    )


_Key = tuple[str, str, str]


@dataclass(frozen=True)
class _Column:
    """Text of every row as a code, -1 for none; codes are in the order of the texts."""

    codes: IntArray
    texts: Sequence[str]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "_Column":
        coded = column.combine_chunks().dictionary_encode()
        texts = coded.dictionary.to_pylist()
        order = sorted(range(len(texts)), key=texts.__getitem__)
        # One more place, for rows without a text, whose index is -1.
        rank = np.full(len(texts) + 1, -1, dtype=np.int64)
        rank[order] = np.arange(len(texts))
        codes = rank[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return cls(codes, [texts[place] for place in order])

    def taken(self, at: IntArray) -> "_Column":
        return _Column(self.codes[at], self.texts)

    def text(self, row: int) -> str:
        return str(self.texts[self.codes[row]])


@dataclass(frozen=True)
class _Rows:
    """Scores by column: a million of them as rows would take a minute to make."""

    columns: Mapping[str, _Column]
    value: FloatArray
    unread: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pa.Table) -> "_Rows":
        columns = {name: _Column.of(table[name]) for name in _CODED}
        value = table["value"].combine_chunks().to_numpy(zero_copy_only=False)
        unread = pc.not_equal(table["status"], "ok").combine_chunks()
        return cls(columns, value, unread.to_numpy(zero_copy_only=False))

    def __len__(self) -> int:
        return len(self.value)

    def taken(self, at: IntArray) -> "_Rows":
        columns = {name: column.taken(at) for name, column in self.columns.items()}
        return _Rows(columns, self.value[at], self.unread[at])

    def parts(self) -> Iterator[tuple[_Key, IntArray]]:
        """Task, split and form, with the rows of each."""
        if not len(self):
            return
        keys = np.stack([self.columns[name].codes for name in ("task", "split", "form")], 1)
        distinct, part = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part.ravel(), minlength=len(distinct)))[:-1]
        for codes, at in zip(distinct, np.split(order, ends), strict=True):
            task, split, form = codes
            texts = (self.columns[name].texts for name in ("task", "split", "form"))
            yield tuple(t[c] for t, c in zip(texts, (task, split, form), strict=True)), at

    def by_system(self) -> dict[str, "_Rows"]:
        """Rows of each system in the order of the items, systems in that of their first rows."""
        system, example = self.columns["system"].codes, self.columns["example"].codes
        order = np.lexsort((example, system))
        codes, firsts, counts = np.unique(system, return_index=True, return_counts=True)
        slices = np.split(order, np.cumsum(counts)[:-1])
        texts = self.columns["system"].texts
        return {texts[codes[i]]: self.taken(slices[i]) for i in np.argsort(firsts)}


_CODED = ("system", "task", "split", "form", "example", "group", "gold", "parsed")


def _table(rows: Sequence[Score]) -> pa.Table:
    schema = schema_of(Score)
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def _panel(key: _Key, rows: _Rows, task: Scored) -> Panel:
    metrics = tuple(METRICS[name] for name in task.metrics)
    by_system = rows.by_system()
    first = next(iter(by_system.values()))
    names, cluster = np.unique(first.columns["group"].codes, return_inverse=True)
    codes, counts, unread, listed = {}, {}, {}, {}
    for system, found in by_system.items():
        _check_same_items(f"{system}, {'/'.join(key)}", first, found)
        codes[system] = _codes(found, task.labels)
        per_item = tallies(*codes[system], max(1, len(task.labels)))
        counts[system] = _by_cluster(per_item, cluster)
        if any(metric.counts == "items" for metric in metrics):
            listed[system] = _by_cluster(_listed(found), cluster)
        unread[system] = float(found.unread.mean())
    size = len(first), len(names)
    return Panel(*key, task.labels, metrics, *size, codes, counts, unread, listed)


def _check_same_items(where: str, first: _Rows, found: _Rows) -> None:
    """Paired comparisons need the same items, with the same gold and cluster, for every system."""
    mine, theirs = (rows.columns["example"] for rows in (found, first))
    again = np.flatnonzero(mine.codes[1:] == mine.codes[:-1])
    if len(again):
        raise DataError("scored twice", where=f"{where}/{mine.text(again[0])}")
    if not np.array_equal(mine.codes, theirs.codes):
        odd = np.setxor1d(mine.codes, theirs.codes)
        raise DataError(
            "systems answered different items",
            where=where,
            found=mine.texts[odd[0]],
            remedy="score all systems on the same items (same limit, same data)",
        )
    for name in ("gold", "group"):
        unlike = np.flatnonzero(found.columns[name].codes != first.columns[name].codes)
        if len(unlike):
            raise DataError(
                "an item has two golds or groups", where=where, found=mine.text(unlike[0])
            )


def _codes(rows: _Rows, labels: tuple[str, ...]) -> tuple[IntArray, IntArray]:
    if not labels:
        return np.zeros(len(rows), dtype=np.int64), (rows.value != 1.0).astype(np.int64)
    place = {label: index for index, label in enumerate(labels)}
    found = []
    for name in ("gold", "parsed"):
        column = rows.columns[name]
        # The last place is that of rows without a text.
        known = np.array([*(place.get(text, -1) for text in column.texts), len(labels)])
        codes = known[column.codes]
        if (codes < 0).any():
            row = int(np.flatnonzero(codes < 0)[0])
            system, task, example = (
                rows.columns[n].text(row) for n in ("system", "task", "example")
            )
            raise DataError(
                "a label that the task does not declare",
                where=f"{system}, {task}/{example}",
                found=column.text(row),
                wanted=", ".join(labels),
            )
        found.append(codes)
    return found[0], found[1]


def _listed(rows: _Rows) -> FloatArray:
    """Counts per answer that is a list; each pair of texts is read once."""
    gold, parsed = rows.columns["gold"], rows.columns["parsed"]
    pairs = np.stack([gold.codes, parsed.codes], 1)
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    wanted = [gold.texts[code] for code, _ in distinct]
    answered = [None if code < 0 else parsed.texts[code] for _, code in distinct]
    return item_tallies(wanted, answered)[which.ravel()]


def _by_cluster(per_item: FloatArray, cluster: IntArray) -> FloatArray:
    summed = np.zeros((int(cluster.max()) + 1, *per_item.shape[1:]))
    np.add.at(summed, cluster, per_item)
    return summed
