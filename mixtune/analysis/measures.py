"""Scores into results: a system's metric with its interval and floors; means over seeds.

Knows: systems and their cocktails, seeds, floors. Does not know: prompts, tokens, how a row is
shown.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


class Contrast(NamedTuple):
    """Quantity and subject of an estimate, with its reference if there is one."""

    quantity: str
    subject: str
    reference: str = ""


class WeightedCell(NamedTuple):
    """A cell by its name, with its weight in a sum."""

    weight: float
    cell: str


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """The cell and seed behind a system's id.

    `seed` is None for a system that was not trained here (majority, base), whose `ingredients` are
    empty. `training`: what is unusual in how it was trained, in words. `rows`: ingredient → rows
    that it was trained on, repeats included. `kind`: trained, merged, base, majority, api, adapter
    or model. `note`: what sets the cell apart from others of the same ingredients; `lr`: its
    learning rate where that is not the study's.
    """

    system: str
    cocktail: str
    seed: int | None
    ingredients: tuple[str, ...]
    training: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    kind: str = "trained"
    note: str = ""
    lr: float | None = None

    @property
    def plain(self) -> bool:
        """True for a trained cell that only its ingredients define: no level, length or rate."""
        return self.kind == "trained" and not self.note


BATCH = 32
"""Systems that are resampled in one product: one at a time reads all weights for each."""


class Draws:
    """Values of metrics on each draw, computed on demand.

    The draws of a task and split are the same for all its systems, metrics and forms, whichever of
    them are read and in whatever order. Metrics made of the same counts are computed together.
    """

    def __init__(self, panel: Panel, metrics: Sequence[Metric], seed: int, draws: int) -> None:
        """Nothing is computed yet; `metrics`: made of the same counts."""
        self._metrics = metrics
        self._resample = _Resample(seed, f"{panel.task}/{panel.split}", panel.clusters, draws)
        self._tallies = panel.tallies(metrics[0])
        self._values: dict[tuple[str, str], FloatArray] = {}

    def of(self, metric: Metric, systems: Sequence[str]) -> FloatArray:
        """Values of a metric [systems, draws]."""
        self.compute(systems)
        return np.stack([self._values[metric.name, system] for system in systems])

    def compute(self, systems: Sequence[str]) -> None:
        """Compute the values of some systems, as far as they are not computed yet."""
        first = self._metrics[0].name
        missing = [system for system in systems if (first, system) not in self._values]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            counts = np.concatenate([self._tallies[system] for system in batch], axis=2)
            drawn = resampled(counts, _weights(self._resample))
            for system, own in zip(batch, np.split(drawn, len(batch), axis=2), strict=True):
                for metric in self._metrics:
                    self._values[metric.name, system] = metric.from_tallies(own)


class _Resample(NamedTuple):
    seed: int
    name: str
    clusters: int
    draws: int


@lru_cache(maxsize=1)
def _weights(resample: _Resample) -> FloatArray:
    """Cached for one task and split: of thousands of clusters they take hundreds of megabytes."""
    rng = generator(resample.seed, "resample-clusters", resample.name)
    return cluster_weights(resample.clusters, resample.draws, rng)


@dataclass(frozen=True)
class Measured:
    """One metric on one panel: system → value, and values on each draw.

    `seed`: of the resampling.
    """

    panel: Panel
    metric: Metric
    infos: Mapping[str, SystemInfo]
    values: Mapping[str, float]
    draws: Draws
    seed: int

    @property
    def key(self) -> PanelMetric:
        """Task, form and metric."""
        return PanelMetric(self.panel.task, self.panel.form, self.metric.name)

    @property
    def sign(self) -> float:
        """1 where a larger value is better, else -1."""
        return 1.0 if self.metric.higher_is_better else -1.0

    # ---- cells ----------------------------------------------------------------------------------

    @cached_property
    def _by_cocktail(self) -> dict[str, dict[int | None, str]]:
        by_cocktail: defaultdict[str, dict[int | None, str]] = defaultdict(dict)
        for system in self.values:
            info = self.infos[system]
            if info.seed is not None and info.seed in by_cocktail[info.cocktail]:
                raise DataError("two systems of one cocktail and seed", found=info)
            by_cocktail[info.cocktail][info.seed] = system
        return dict(by_cocktail)

    def cells(self) -> Mapping[str, Mapping[int, str]]:
        """Cocktail → seed → system; systems with a seed, cocktails in the order of the systems."""
        return self._cells

    @cached_property
    def _cells(self) -> dict[str, dict[int, str]]:
        seeded = {
            name: {seed: system for seed, system in systems.items() if seed is not None}
            for name, systems in self._by_cocktail.items()
        }
        return {name: dict(sorted(systems.items())) for name, systems in seeded.items() if systems}

    def trained_cells(self) -> dict[str, Mapping[int, str]]:
        """`cells` without sums of other runs' adapters."""
        return {n: seeds for n, seeds in self.cells().items() if self.info(n).kind == "trained"}

    def info(self, cocktail: str) -> SystemInfo:
        """Kind, ingredients and the like of a cocktail, which all its seeds share."""
        return self._info[cocktail]

    @cached_property
    def _info(self) -> dict[str, SystemInfo]:
        infos: dict[str, SystemInfo] = {}
        for system in self.values:
            infos.setdefault(self.infos[system].cocktail, self.infos[system])
        return infos

    def named(self, cocktail: str) -> Mapping[int | None, str]:
        """Seed → system of a cocktail, or None → a fixed system; empty where it has no scores."""
        return self._by_cocktail.get(cocktail, {})

    # ---- arms -----------------------------------------------------------------------------------

    def arm(self, systems: Sequence[str]) -> Arm:
        """The arm of systems of one cocktail, or of one fixed system."""
        info = self.infos[systems[0]]
        # Arms of the same kind of cell get equal spreads: that is how `interval` knows that their
        # between-run variance is one estimate.
        return Arm(
            np.array([self.values[s] for s in systems]),
            self.draws.of(self.metric, systems),
            None if info.seed is None else self.spread(self.panel.task in info.ingredients),
        )

    def weighted(self, terms: Sequence[WeightedCell]) -> list[Part]:
        """Cells with their weights as arms, on the seeds that all have; nothing without one."""
        cells = self.cells()
        shared = shared_seeds(cells.get(name, {}) for _, name in terms)
        if not shared:
            return []
        return [Part(weight, self.arm([cells[name][s] for s in shared])) for weight, name in terms]

    def spread(self, member: bool) -> Spread | None:
        """Between-run variance over the cells that train on this task, or those that do not."""
        return self._spreads[member]

    @cached_property
    def _spreads(self) -> dict[bool, Spread | None]:
        """Two estimates: runs that never saw a task scatter far more on it."""
        return {member: self._spread(member) for member in (True, False)}

    def _spread(self, member: bool) -> Spread | None:
        cells: defaultdict[str, list[float]] = defaultdict(list)
        for system, value in self.values.items():
            info = self.infos[system]
            if info.seed is not None and (self.panel.task in info.ingredients) is member:
                cells[info.cocktail].append(value)
        return pooled([np.array(values) for values in cells.values()])

    # ---- intervals ------------------------------------------------------------------------------

    def interval(
        self, systems: Sequence[str], against: Sequence[str], level: float = LEVEL
    ) -> Interval:
        """Interval of an arm, or of its difference to another (`against` empty: none).

        `level`: its coverage.
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
        """Clusters on which two sides differ on some seed; a fixed system counts for every seed.

        Raises:
            ValueError: two trained sides of different seeds, which numpy would pair at random.
        """
        seeds = [[self.infos[system].seed for system in side] for side in (systems, against)]
        if seeds[0] != seeds[1] and [None] not in seeds:
            raise ValueError(f"sides of different seeds: {seeds[0]} and {seeds[1]}")
        sides = [np.stack([self._counts(s) for s in side]) for side in (systems, against)]
        return int((sides[0] != sides[1]).any(axis=(0, 2)).sum())

    def _counts(self, system: str) -> FloatArray:
        """Counts that the metric depends on, per cluster [clusters, numbers]."""
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


def shared_seeds(cells: Iterable[Iterable[int]]) -> list[int]:
    """Seeds that all cells have, in order; none without a cell."""
    seeds = [set(cell) for cell in cells]
    return sorted(set.intersection(*seeds)) if seeds else []


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
    return [m for m in measured if m.key in keys]


def measure_panels(
    scored: Sequence[Panel], systems: Sequence[SystemInfo], seed: int = 0, draws: int = DRAWS
) -> list[Measured]:
    """`measure` of scores that are panels already."""
    infos = {info.system: info for info in systems}
    measured = []
    for panel in scored:
        assert panel.codes.keys() <= infos.keys()
        ordered = [system for system in infos if system in panel.codes]
        groups: dict[bool, list[Metric]] = {}
        for metric in panel.metrics:
            groups.setdefault(metric.counts == "items", []).append(metric)
        drawn = {items: Draws(panel, metrics, seed, draws) for items, metrics in groups.items()}
        for metric in panel.metrics:
            values = {s: panel.value(metric, s) for s in ordered}
            own = drawn[metric.counts == "items"]
            measured.append(Measured(panel, metric, infos, values, own, seed))
    return measured


def results(measured: Sequence[Measured]) -> list[Result]:
    """One row per task × split × form × metric × system, systems in the order measured.

    `unparsed` is the share of answers without a value (unparsed, cut off or refused);
    `majority` the value of the system whose cocktail is "majority" (None without one); `floor` the
    larger of it and chance. Without a majority system there is no floor: chance alone would be too
    low a one.
    """
    rows = []
    for m in measured:
        m.draws.compute(list(m.values))
        chance, majority = _floors(m)
        panel = m.panel
        for system, value in m.values.items():
            info = m.infos[system]
            ci = m.interval([system], [])
            rows.append(
                Result(
                    system=system,
                    cocktail=info.cocktail,
                    seed=info.seed,
                    task=panel.task,
                    split=panel.split,
                    form=panel.form,
                    metric=m.metric.name,
                    value=value,
                    low=ci.low,
                    high=ci.high,
                    n=panel.n,
                    clusters=panel.clusters,
                    unparsed=panel.unparsed[system],
                    chance=chance,
                    majority=majority,
                    floor=None if majority is None else max(majority, chance or 0.0),
                    method=ci.method,
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


def cocktail_means(measured: Sequence[Measured]) -> list[Estimate]:
    """Each cocktail's mean over its seeds, quantity "mean", per task × split × form × metric.

    Raises:
        DataError: two systems of one cocktail and seed.
    """
    rows = []
    for m in measured:
        m.draws.compute(list(m.values))
        for cocktail, by_seed in m.cells().items():
            rows.append(mean(m, Contrast("mean", cocktail), list(by_seed.values())))
    return rows


def mean(measured: Measured, contrast: Contrast, systems: Sequence[str]) -> Estimate:
    """The mean over the seeds of one cocktail (`systems`), or the value of a fixed system."""
    arm = measured.arm(systems)
    return estimate(measured, contrast, arm, arm.value, measured.interval(systems, []))


def estimate(
    measured: Measured,
    contrast: Contrast,
    arm: Arm,
    value: float,
    ci: Interval | None = None,
) -> Estimate:
    """A row for a value on a measured panel; `arm`: whose seeds are counted."""
    panel, ci = measured.panel, ci or Interval(None, None, "")
    return Estimate(
        *contrast,
        target=panel.task,
        split=panel.split,
        form=panel.form,
        metric=measured.metric.name,
        value=value,
        low=ci.low,
        high=ci.high,
        n=panel.n,
        clusters=panel.clusters,
        seeds=len(arm.values),
        method=ci.method,
        seed=measured.seed,
        p=ci.p,
    )


def without(scores: pa.Table, flagged: Mapping[str, Sequence[str]]) -> pa.Table:
    """Scores without some items: ids by task/split."""
    dropped = [f"{part}/{item}" for part, items in flagged.items() for item in items]
    parts = [scores[name] for name in ("task", "split", "example")]
    names = pc.binary_join_element_wise(*parts, "/")
    return scores.filter(pc.invert(pc.is_in(names, pa.array(dropped, pa.string()))))
