"""Scores into panels: the same items for every system, as counts per cluster.

Knows: label codes, clusters (Score.group), what a task must say of itself. Does not know:
cocktails, seeds, intervals.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from mixtune.errors import DataError
from mixtune.metrics import METRICS, FloatArray, IntArray, Metric, item_tallies, tallies
from mixtune.records import Score

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
        if metric.compute is not None:
            return metric.compute(*self.codes[system], self.n_labels)
        return float(metric.from_tallies(self.tallies(metric)[system].sum(0)))


def panels(scores: Sequence[Score] | pa.Table, tasks: Mapping[str, Scored]) -> list[Panel]:
    """Panels in order of tasks, splits and forms.

    Raises:
        DataError: an unknown label, systems that answered different items, one item in two
            clusters.
    """
    rows = scores if isinstance(scores, Sequence) else [Score(**r) for r in scores.to_pylist()]
    grouped: defaultdict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for row in rows:
        grouped[row.task, row.split, row.form].append(row)
    order = {name: place for place, name in enumerate(tasks)}

    def place(key: tuple[str, str, str]) -> tuple[int, int, int]:
        return order[key[0]], SPLITS.index(key[1]), FORMS.index(key[2])

    return [_panel(key, grouped[key], tasks[key[0]]) for key in sorted(grouped, key=place)]


def _panel(key: tuple[str, str, str], rows: Sequence[Score], task: Scored) -> Panel:
    metrics = tuple(METRICS[name] for name in task.metrics)
    by_system: defaultdict[str, dict[str, Score]] = defaultdict(dict)
    for row in rows:
        if row.example in by_system[row.system]:
            raise DataError("scored twice", where=f"{row.system}, {'/'.join(key)}/{row.example}")
        by_system[row.system][row.example] = row
    first = next(iter(by_system.values()))
    ids = sorted(first)
    names = sorted({row.group for row in first.values()})
    place = {name: index for index, name in enumerate(names)}
    cluster = np.array([place[first[i].group] for i in ids])
    codes, counts, unread, listed = {}, {}, {}, {}
    for system, found in by_system.items():
        _check_same_items(system, key, first, found)
        ordered = [found[i] for i in ids]
        codes[system] = _codes(ordered, task.labels)
        per_item = tallies(*codes[system], max(1, len(task.labels)))
        counts[system] = _by_cluster(per_item, cluster)
        if any(metric.counts == "items" for metric in metrics):
            per_item = item_tallies([r.gold for r in ordered], [r.parsed for r in ordered])
            listed[system] = _by_cluster(per_item, cluster)
        unread[system] = float(np.mean([row.status != "ok" for row in ordered]))
    return Panel(*key, task.labels, metrics, len(ids), len(names), codes, counts, unread, listed)


def _check_same_items(
    system: str, key: tuple[str, ...], first: Mapping[str, Score], found: Mapping[str, Score]
) -> None:
    """Paired comparisons need the same items, with the same gold and cluster, for every system."""
    where = f"{system}, {'/'.join(key)}"
    if found.keys() != first.keys():
        raise DataError(
            "systems answered different items",
            where=where,
            found=sorted(found.keys() ^ first.keys())[0],
            remedy="score all systems on the same items (same limit, same data)",
        )
    for example, row in found.items():
        if (row.gold, row.group) != (first[example].gold, first[example].group):
            raise DataError("an item has two golds or groups", where=where, found=example)


def _codes(rows: Sequence[Score], labels: tuple[str, ...]) -> tuple[IntArray, IntArray]:
    if not labels:
        parsed = np.array([int(row.value != 1.0) for row in rows], dtype=np.int64)
        return np.zeros(len(rows), dtype=np.int64), parsed
    code = {label: index for index, label in enumerate(labels)}
    for row in rows:
        for label in (row.gold, row.parsed):
            if label is not None and label not in code:
                raise DataError(
                    "a label that the task does not declare",
                    where=f"{row.system}, {row.task}/{row.example}",
                    found=label,
                    wanted=", ".join(labels),
                )
    gold = np.array([code[row.gold] for row in rows], dtype=np.int64)
    unread = len(labels)
    parsed = np.array(
        [unread if r.parsed is None else code[r.parsed] for r in rows], dtype=np.int64
    )
    return gold, parsed


def _by_cluster(per_item: FloatArray, cluster: IntArray) -> FloatArray:
    summed = np.zeros((int(cluster.max()) + 1, *per_item.shape[1:]))
    np.add.at(summed, cluster, per_item)
    return summed
