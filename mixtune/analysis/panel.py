"""Scores into panels: the same items for every system, as counts per cluster.

Knows: label codes, clusters (Score.group), what a task has to declare. Does not know: cocktails,
seeds, intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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
    """A task as far as the analysis needs it (tasks.task.Task has all of it)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in their declared order; empty for open answers."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in metrics.METRICS, the main one first."""
        ...


class PanelKey(NamedTuple):
    """Task, split and form."""

    task: str
    split: str
    form: str


class Codes(NamedTuple):
    """Label codes of gold and parsed answers [items]; the number of labels stands for unparsed."""

    gold: IntArray
    parsed: IntArray


@dataclass(frozen=True)
class Panel:
    """All scores of one task × split × form.

    `codes`: by system; `counts`: system → [clusters, 3, labels], clusters in sorted order of their
    names; `listed`: the same for the items of answers that are lists [clusters, 3, 1], empty where
    no metric counts them; `unparsed`: system → share of answers without a value.
    """

    task: str
    split: str
    form: str
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    n: int
    clusters: int
    codes: Mapping[str, Codes]
    counts: Mapping[str, FloatArray]
    unparsed: Mapping[str, float]
    listed: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def n_labels(self) -> int:
        """Labels to count; an open answer has one, "right"."""
        return max(1, len(self.labels))

    def tallies(self, metric: Metric) -> Mapping[str, FloatArray]:
        """Counts per cluster that a metric is made of, by system."""
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
    table = scores if isinstance(scores, pa.Table) else _table(scores)
    rows = _Rows.of(table)
    order = {name: index for index, name in enumerate(tasks)}
    parts = rows.by_panel()
    keys = sorted(parts, key=lambda k: (order[k.task], SPLITS.index(k.split), FORMS.index(k.form)))
    return [_panel(key, rows.take(parts[key]), tasks[key.task]) for key in keys]


def panel_of(
    key: PanelKey,
    task: Scored,
    cluster: IntArray,
    codes: Mapping[str, Codes],
) -> Panel:
    """A panel of answers that are codes already, such as simulated ones.

    Args:
        key: task, split and form.
        task: its labels and metrics, none of which counts items of lists.
        cluster: of each item, from 0 without a gap [items].
        codes: by system.
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


# ---- scores by column ----------------------------------------------------------------------------


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
        # One more entry, for rows without a text, whose index is -1.
        rank = np.full(len(texts) + 1, -1, dtype=np.int64)
        rank[order] = np.arange(len(texts))
        codes = rank[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return cls(codes, [texts[index] for index in order])

    def text(self, row: int) -> str:
        return str(self.texts[self.codes[row]])


_CODED = ("system", "task", "split", "form", "example", "group", "gold", "parsed")


@dataclass(frozen=True)
class _Rows:
    """Scores by column: a million of them as Python objects would take a minute."""

    columns: Mapping[str, _Column]
    value: FloatArray
    unparsed: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pa.Table) -> "_Rows":
        columns = {name: _Column.of(table[name]) for name in _CODED}
        value = table["value"].combine_chunks().to_numpy(zero_copy_only=False)
        unparsed = pc.not_equal(table["status"], "ok").combine_chunks()
        return cls(columns, value, unparsed.to_numpy(zero_copy_only=False))

    def __len__(self) -> int:
        return len(self.value)

    def take(self, at: IntArray) -> "_Rows":
        columns = {n: _Column(column.codes[at], column.texts) for n, column in self.columns.items()}
        return _Rows(columns, self.value[at], self.unparsed[at])

    def by_panel(self) -> dict[PanelKey, IntArray]:
        """Indices of the rows of each task, split and form."""
        if not len(self):
            return {}
        columns = [self.columns[name] for name in PanelKey._fields]
        keys = np.stack([column.codes for column in columns], 1)
        distinct, part = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part.ravel(), minlength=len(distinct)))[:-1]
        names = [
            PanelKey(*(column.texts[code] for column, code in zip(columns, codes, strict=True)))
            for codes in distinct
        ]
        return dict(zip(names, np.split(order, ends), strict=True))

    def by_system(self) -> dict[str, "_Rows"]:
        """Rows of each system in the order of the items, systems in that of their first rows."""
        system, example = self.columns["system"].codes, self.columns["example"].codes
        order = np.lexsort((example, system))
        codes, firsts, counts = np.unique(system, return_index=True, return_counts=True)
        slices = np.split(order, np.cumsum(counts)[:-1])
        texts = self.columns["system"].texts
        return {texts[codes[i]]: self.take(slices[i]) for i in np.argsort(firsts)}


def _table(rows: Sequence[Score]) -> pa.Table:
    schema = schema_of(Score)
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


# ---- one panel -----------------------------------------------------------------------------------


def _panel(key: PanelKey, rows: _Rows, task: Scored) -> Panel:
    metrics = tuple(METRICS[name] for name in task.metrics)
    by_system = rows.by_system()
    first = next(iter(by_system.values()))
    names, cluster = np.unique(first.columns["group"].codes, return_inverse=True)
    codes, counts, unparsed, listed = {}, {}, {}, {}
    for system, own in by_system.items():
        _check_same_items(f"{system}, {'/'.join(key)}", first, own)
        codes[system] = _codes(own, task.labels)
        per_item = tallies(*codes[system], max(1, len(task.labels)))
        counts[system] = _by_cluster(per_item, cluster)
        if any(metric.counts == "items" for metric in metrics):
            listed[system] = _by_cluster(_item_counts(own), cluster)
        unparsed[system] = float(own.unparsed.mean())
    size = len(first), len(names)
    return Panel(*key, task.labels, metrics, *size, codes, counts, unparsed, listed)


def _check_same_items(where: str, first: _Rows, own: _Rows) -> None:
    """Paired comparisons need the same items, with the same gold and cluster, for every system."""
    items, expected = (rows.columns["example"] for rows in (own, first))
    repeated = np.flatnonzero(items.codes[1:] == items.codes[:-1])
    if len(repeated):
        raise DataError("scored twice", where=f"{where}/{items.text(repeated[0])}")
    if not np.array_equal(items.codes, expected.codes):
        differing = np.setxor1d(items.codes, expected.codes)
        raise DataError(
            "systems answered different items",
            where=where,
            found=items.texts[differing[0]],
            remedy="score all systems on the same items (same limit, same data)",
        )
    for name in ("gold", "group"):
        unlike = np.flatnonzero(own.columns[name].codes != first.columns[name].codes)
        if len(unlike):
            raise DataError(
                "an item has two golds or groups", where=where, found=items.text(unlike[0])
            )


def _codes(rows: _Rows, labels: tuple[str, ...]) -> Codes:
    if not labels:
        return Codes(np.zeros(len(rows), dtype=np.int64), (rows.value != 1.0).astype(np.int64))
    return Codes(*(_label_codes(rows, name, labels) for name in ("gold", "parsed")))


def _label_codes(rows: _Rows, name: str, labels: tuple[str, ...]) -> IntArray:
    code = {label: index for index, label in enumerate(labels)}
    column = rows.columns[name]
    # The last entry is that of rows without a text.
    by_text = np.array([*(code.get(text, -1) for text in column.texts), len(labels)])
    codes: IntArray = by_text[column.codes]
    if (codes < 0).any():
        row = int(np.flatnonzero(codes < 0)[0])
        system, task, example = (rows.columns[n].text(row) for n in ("system", "task", "example"))
        raise DataError(
            "a label that the task does not declare",
            where=f"{system}, {task}/{example}",
            found=column.text(row),
            wanted=", ".join(labels),
        )
    return codes


def _item_counts(rows: _Rows) -> FloatArray:
    """Counts per answer that is a list; each distinct pair of texts is parsed once."""
    gold, parsed = rows.columns["gold"], rows.columns["parsed"]
    pairs = np.stack([gold.codes, parsed.codes], 1)
    distinct, pair = np.unique(pairs, axis=0, return_inverse=True)
    golds = [gold.texts[code] for code, _ in distinct]
    answers = [None if code < 0 else parsed.texts[code] for _, code in distinct]
    return item_tallies(golds, answers)[pair.ravel()]


def _by_cluster(per_item: FloatArray, cluster: IntArray) -> FloatArray:
    summed = np.zeros((int(cluster.max()) + 1, *per_item.shape[1:]))
    np.add.at(summed, cluster, per_item)
    return summed
