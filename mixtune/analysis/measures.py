"""Scores into results: a system's metric with its interval and floors; means over seeds.

Knows: systems and their cocktails, seeds, floors. Does not know: prompts, tokens, how a row is
shown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mixtune.analysis.intervals import (
    DRAWS,
    LEVEL,
    Arm,
    Interval,
    Items,
    Part,
    Spread,
    cluster_weights,
    interval,
    pooled,
    resampled,
)
from mixtune.analysis.panel import Panel, Scored, panels
from mixtune.errors import DataError
from mixtune.identity import generator
from mixtune.records import Estimate, Result, Score
from mixtune.tasks.metrics import GOLD, PARSED, RIGHT, FloatArray, Metric

MAJORITY = "majority"
BASE = "base"
"""Cocktail names of the two baselines, which have no seed."""


class PanelMetric(NamedTuple):
    """A metric of one task in one form."""

    task: str
    form: str
    metric: str


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """What is behind a system's id: its cocktail's name and members, and its seed.

    `seed` is None for a system that was not trained here (majority, base); its `ingredients` are
    empty. `training`: what is unusual in how it was trained, in words. `rows`: ingredient → rows
    that it was trained on, repeats included.
    """

    system: str
    cocktail: str
    seed: int | None
    ingredients: tuple[str, ...]
    training: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)


BATCH = 32
"""Systems that are resampled in one product: one at a time reads all weights for each."""


class Draws:
    """Values of metrics on each draw, computed when they are asked for.

    The draws of a task and split are the same for all its systems, metrics and forms, whichever of
    them are asked for and in whatever order. Metrics of one kind are computed together.
    """

    def __init__(self, panel: Panel, kind: Sequence[Metric], seed: int, draws: int) -> None:
        """Nothing is computed yet; `kind`: metrics that are made of the same counts."""
        self._kind = kind
        self._which = (seed, f"{panel.task}/{panel.split}", panel.clusters, draws)
        self._tallies = panel.tallies(kind[0])
        self._known: dict[str, dict[str, FloatArray]] = {metric.name: {} for metric in kind}

    def of(self, metric: Metric) -> "OfMetric":
        """The draws of one of the metrics."""
        return OfMetric(self, metric)

    def fetch(self, systems: Sequence[str]) -> None:
        """Compute what is not known yet of some systems."""
        known = next(iter(self._known.values()))
        missing = [system for system in systems if system not in known]
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            counts = np.concatenate([self._tallies[system] for system in part], axis=2)
            drawn = resampled(counts, _weights(*self._which))
            width = counts.shape[2] // len(part)
            for place, system in enumerate(part):
                own = drawn[:, :, place * width : (place + 1) * width]
                for metric in self._kind:
                    self._known[metric.name][system] = metric.from_tallies(own)

    def systems(self) -> Iterator[str]:
        """Those that have scores."""
        return iter(self._tallies)

    def value(self, metric: Metric, system: str) -> FloatArray:
        """Values of a metric of a system."""
        self.fetch([system])
        return self._known[metric.name][system]


class OfMetric(Mapping[str, FloatArray]):
    """System → a metric's value on each draw [draws]."""

    def __init__(self, draws: Draws, metric: Metric) -> None:
        self._draws, self._metric = draws, metric

    def fetch(self, systems: Sequence[str]) -> None:
        """Compute those of some systems at once."""
        self._draws.fetch(systems)

    def __getitem__(self, system: str) -> FloatArray:
        """Values of a system."""
        return self._draws.value(self._metric, system)

    def __iter__(self) -> Iterator[str]:
        """Systems."""
        return self._draws.systems()

    def __len__(self) -> int:
        """How many systems."""
        return sum(1 for _ in self)


@lru_cache(maxsize=1)
def _weights(seed: int, name: str, clusters: int, draws: int) -> FloatArray:
    """Kept for one task and split: of thousands of clusters they take hundreds of megabytes."""
    return cluster_weights(clusters, draws, generator(seed, "resample-clusters", name))


@dataclass(frozen=True)
class Measured:
    """One metric on one panel: system → value, and system → value on each draw [draws].

    `seed`: of the resampling.
    """

    panel: Panel
    metric: Metric
    infos: Mapping[str, SystemInfo]
    values: Mapping[str, float]
    draws: OfMetric
    seed: int

    @property
    def key(self) -> PanelMetric:
        """Task, form and metric."""
        return PanelMetric(self.panel.task, self.panel.form, self.metric.name)

    def cells(self) -> dict[str, dict[int, str]]:
        """Cocktail → seed → system; trained systems only, cocktails in the order of the systems."""
        found: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for system in self.values:
            info = self.infos[system]
            if info.seed is None:
                continue
            if info.seed in found[info.cocktail]:
                raise DataError("two systems of one cocktail and seed", found=info)
            found[info.cocktail][info.seed] = system
        return {name: dict(sorted(by_seed.items())) for name, by_seed in found.items()}

    def named(self, cocktail: str) -> dict[int | None, str]:
        """Seed → system of a cocktail, or None → a fixed system; empty where it has no scores."""
        return {
            self.infos[system].seed: system
            for system in self.values
            if self.infos[system].cocktail == cocktail
        }

    def arm(self, systems: Sequence[str]) -> Arm:
        """The arm of systems of one cocktail, or of one fixed system."""
        info = self.infos[systems[0]]
        # Arms of the same kind of cell get equal spreads: that is how `interval` knows that their
        # between-run variance is one estimate.
        return Arm(
            np.array([self.values[s] for s in systems]),
            np.stack([self.draws[s] for s in systems]),
            None if info.seed is None else self.spread(self.panel.task in info.ingredients),
        )

    def weighted(self, parts: Sequence[tuple[float, str]]) -> list[Part]:
        """Cells with their weights as arms, on the seeds that all have; nothing without one."""
        cells = self.cells()
        shared = sorted(set.intersection(*(set(cells.get(name, {})) for _, name in parts)))
        if not shared:
            return []
        return [(weight, self.arm([cells[name][s] for s in shared])) for weight, name in parts]

    def spread(self, member: bool) -> Spread | None:
        """Between-run variance over the cells that train on this task, or those that do not."""
        return self._spreads[member]

    @cached_property
    def _spreads(self) -> dict[bool, Spread | None]:
        """The two are kept apart: runs that never saw a task scatter far more on it."""
        return {member: self._spread(member) for member in (True, False)}

    def _spread(self, member: bool) -> Spread | None:
        cells: defaultdict[str, list[float]] = defaultdict(list)
        for system, value in self.values.items():
            info = self.infos[system]
            if info.seed is not None and (self.panel.task in info.ingredients) is member:
                cells[info.cocktail].append(value)
        return pooled([np.array(values) for values in cells.values()])

    def interval(
        self, systems: Sequence[str], against: Sequence[str], level: float = LEVEL
    ) -> Interval:
        """Interval of an arm, or of its difference to another (`against` empty: none).

        `level`: the chance that it covers.
        """
        panel = self.panel
        independent = self.metric.name == "accuracy" and panel.n == panel.clusters
        varying = self._differing(systems, against) if against else self._varying(systems)
        reference = self.arm(against) if against else None
        items = Items(panel.clusters, independent, varying, self.metric.lowest, self._rarest)
        return interval(self.arm(systems), reference, items, level)

    @cached_property
    def _rarest(self) -> int | None:
        """Items of the rarest gold label, where each label weighs the same; None where not."""
        if not self.metric.per_label:
            return None
        counts = next(iter(self.panel.counts.values()))[:, GOLD, :].sum(0)
        return int(counts[counts > 0].min())

    def _differing(self, systems: Sequence[str], against: Sequence[str]) -> int:
        """Clusters on which two sides differ on some seed; a fixed system is held to every seed."""
        sides = [np.stack([self._what_counts(s) for s in side]) for side in (systems, against)]
        return int((sides[0] != sides[1]).any(axis=(0, 2)).sum())

    def _what_counts(self, system: str) -> FloatArray:
        """What the metric is made of, per cluster [clusters, numbers]."""
        counts = self.panel.tallies(self.metric)[system]
        if self.metric.name == "accuracy":
            counts = counts[:, RIGHT, :].sum(-1, keepdims=True)
        return counts.reshape(len(counts), -1)

    def _varying(self, systems: Sequence[str]) -> int:
        """Clusters with a wrong or with a right answer of any seed, whichever are fewer.

        Of lists: with an item missed or made up, or with one that is right.
        """
        tallies = self.panel.tallies(self.metric)
        counts = np.stack([tallies[s] for s in systems]).sum(-1)
        right, gold, parsed = counts[..., RIGHT], counts[..., GOLD], counts[..., PARSED]
        wrong = (right < gold) | (right < parsed)
        return int(min(wrong.any(0).sum(), (right > 0).any(0).sum()))


def measure(
    scores: Sequence[Score] | pa.Table,
    systems: Sequence[SystemInfo],
    tasks: Mapping[str, Scored],
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Measured]:
    """Every metric on every panel, with draws shared by all systems of a task and split.

    Raises:
        DataError: as `panels`.
    """
    return measure_panels(panels(scores, tasks), systems, seed, draws)


def main_only(measured: Sequence[Measured], main: Iterable[PanelMetric]) -> list[Measured]:
    """Those of each task's main form and metric."""
    keys = set(main)
    return [one for one in measured if one.key in keys]


def measure_panels(
    found: Sequence[Panel], systems: Sequence[SystemInfo], seed: int = 0, draws: int = DRAWS
) -> list[Measured]:
    """`measure` of scores that are panels already."""
    infos = {info.system: info for info in systems}
    measured = []
    for panel in found:
        assert panel.codes.keys() <= infos.keys()
        ordered = [system for system in infos if system in panel.codes]
        kinds: dict[bool, list[Metric]] = {}
        for metric in panel.metrics:
            kinds.setdefault(metric.counts == "items", []).append(metric)
        drawn = {items: Draws(panel, kind, seed, draws) for items, kind in kinds.items()}
        for metric in panel.metrics:
            values = {s: panel.value(metric, s) for s in ordered}
            own = drawn[metric.counts == "items"].of(metric)
            measured.append(Measured(panel, metric, infos, values, own, seed))
    return measured


def results(found: Sequence[Measured]) -> list[Result]:
    """One row per task × split × form × metric × system, systems in the order measured.

    `unparsed` is the share of answers without a readable value (unparsed, cut off or refused);
    `majority` the value of the system whose cocktail is "majority" (None without one); `floor` the
    larger of it and chance. Without a majority system there is no floor: chance alone would be too
    low a one.
    """
    rows = []
    for measured in found:
        measured.draws.fetch(list(measured.values))
        chance, majority = _floors(measured)
        panel = measured.panel
        for system, value in measured.values.items():
            info = measured.infos[system]
            ends = measured.interval([system], [])
            rows.append(
                Result(
                    system=system,
                    cocktail=info.cocktail,
                    seed=info.seed,
                    task=panel.task,
                    split=panel.split,
                    form=panel.form,
                    metric=measured.metric.name,
                    value=value,
                    low=ends.low,
                    high=ends.high,
                    n=panel.n,
                    clusters=panel.clusters,
                    unparsed=panel.unread[system],
                    chance=chance,
                    majority=majority,
                    floor=None if majority is None else max(majority, chance or 0.0),
                    method=ends.method,
                    training=info.training,
                )
            )
    return rows


def _floors(measured: Measured) -> tuple[float | None, float | None]:
    """Chance (None for open answers) and the majority system's value (None without one)."""
    panel = measured.panel
    chance = None
    if panel.labels:
        counts = next(iter(panel.counts.values()))
        chance = measured.metric.chance(counts[:, GOLD, :].sum(0))
    fixed = [s for s in measured.values if measured.infos[s].cocktail == MAJORITY]
    return chance, measured.values[fixed[0]] if fixed else None


def cocktail_means(found: Sequence[Measured]) -> list[Estimate]:
    """Each cocktail's mean over its seeds, quantity "mean", per task × split × form × metric.

    Raises:
        DataError: two systems of one cocktail and seed.
    """
    rows = []
    for measured in found:
        measured.draws.fetch(list(measured.values))
        for cocktail, by_seed in measured.cells().items():
            arm = measured.arm(list(by_seed.values()))
            ends = measured.interval(list(by_seed.values()), [])
            rows.append(estimate(measured, ("mean", cocktail, ""), arm, arm.value, ends))
    return rows


def estimate(
    measured: Measured, what: tuple[str, str, str], arm: Arm, value: float, found: Interval | None
) -> Estimate:
    """A row for `what` = (quantity, subject, reference) on a measured panel; `found`: if any."""
    panel, found = measured.panel, found or Interval(None, None, "")
    quantity, subject, reference = what
    return Estimate(
        quantity=quantity,
        subject=subject,
        reference=reference,
        target=panel.task,
        split=panel.split,
        form=panel.form,
        metric=measured.metric.name,
        value=value,
        low=found.low,
        high=found.high,
        n=panel.n,
        clusters=panel.clusters,
        seeds=len(arm.values),
        method=found.method,
        seed=measured.seed,
        p=found.p,
    )


def without(scores: pa.Table, flagged: Mapping[str, Sequence[str]]) -> pa.Table:
    """Scores but those of some items: ids by task/split."""
    gone = [f"{part}/{item}" for part, items in flagged.items() for item in items]
    parts = [scores[name] for name in ("task", "split", "example")]
    names = pc.binary_join_element_wise(*parts, "/")
    return scores.filter(pc.invert(pc.is_in(names, pa.array(gone, pa.string()))))
