"""Readings of gold answers into estimates: divergence from the base, and log-likelihoods.

Each value is a mean over seeds, then over examples, in nats; its interval resamples clusters and is
given the runs: the variance between seeds is not in it. Beside them the figures that others
published on tasks of the same name, which are never mixed with what is measured here.

Knows: cocktails, seeds, clusters (ProbeRow.group), the installed table of published figures. Does
not know: prompts, tokens, how a number is shown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mixtune.analysis.intervals import (
    DRAWS,
    MIN_CLUSTERS,
    TOO_FEW,
    Interval,
    cluster_weights,
    percentiles,
)
from mixtune.analysis.measures import BASE, SystemInfo
from mixtune.errors import DataError
from mixtune.identity import generator
from mixtune.records import Estimate, ProbeRow
from mixtune.study.yaml import read_yaml
from mixtune.tasks.metrics import FloatArray

QUANTITY = "reading"
KL = "kl"
PER_TOKEN = "logprob-per-token"
PER_ANSWER = "logprob-per-answer"


@dataclass(frozen=True)
class _Reading:
    """One number per example, a mean over `seeds` runs, of a subject or against a reference."""

    subject: str
    reference: str
    metric: str
    values: FloatArray
    seeds: int


def readings(
    rows: Sequence[ProbeRow], systems: Sequence[SystemInfo], seed: int = 0, draws: int = DRAWS
) -> list[Estimate]:
    """Estimates of every cocktail or fixed system on every dataset that was read to it.

    Metrics: "kl" (to the base); "logprob-per-token" and "logprob-per-answer" of the base, of the
    system, and of the system minus the base. Systems of one cocktail are its seeds.

    Args:
        rows: the readings.
        systems: cocktails and seeds of the systems, in the order of the estimates.
        seed: of the resampling.
        draws: number of resamples.

    Raises:
        DataError: two systems were read different examples, or one example twice.
    """
    by_split: defaultdict[tuple[str, str], list[ProbeRow]] = defaultdict(list)
    for row in rows:
        by_split[row.task, row.split].append(row)
    estimates = []
    for (task, split), own in by_split.items():
        name = f"{task}/{split}"
        by_system = _same_examples(own, name)
        groups = [row.group for row in next(iter(by_system.values()))]
        for reading in _readings(by_system, systems):
            ci = mean_interval(reading.values, groups, name, seed, draws)
            estimates.append(
                Estimate(
                    quantity=QUANTITY,
                    subject=reading.subject,
                    reference=reading.reference,
                    target=task,
                    split=split,
                    form="likelihood",
                    metric=reading.metric,
                    value=float(reading.values.mean()),
                    low=ci.low,
                    high=ci.high,
                    n=len(reading.values),
                    clusters=len(set(groups)),
                    seeds=reading.seeds,
                    method=ci.method,
                    seed=seed,
                )
            )
    return estimates


def _same_examples(rows: Sequence[ProbeRow], where: str) -> dict[str, list[ProbeRow]]:
    """System → its rows, in the order of the examples' ids, which are the same for all."""
    by_system: defaultdict[str, list[ProbeRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.example):
        by_system[row.system].append(row)
    first = [row.example for row in next(iter(by_system.values()))]
    for system, own in by_system.items():
        ids = [row.example for row in own]
        if ids != first or len(set(ids)) < len(ids):
            raise DataError(
                "systems were read different examples, or one twice",
                where=f"{system}, {where}",
                found=f"{len(ids)} examples, {len(set(ids))} different ones",
                wanted=f"the {len(first)} of the others",
                remedy="mixtune probe reads again what was changed on disk",
            )
    return dict(by_system)


def _readings(
    by_system: Mapping[str, Sequence[ProbeRow]], systems: Sequence[SystemInfo]
) -> Iterator[_Reading]:
    first = next(iter(by_system.values()))
    tokens = np.array([row.tokens for row in first])
    base = np.array([row.base_logprob for row in first])
    yield _Reading(BASE, "", PER_TOKEN, base / tokens, 1)
    yield _Reading(BASE, "", PER_ANSWER, base, 1)
    cocktails: defaultdict[str, list[Sequence[ProbeRow]]] = defaultdict(list)
    for info in systems:
        if info.system in by_system:
            cocktails[info.cocktail].append(by_system[info.system])
    for name, runs in cocktails.items():
        own = np.mean([[row.logprob for row in run] for run in runs], axis=0)
        kl = np.mean([[row.kl for row in run] for run in runs], axis=0)
        yield _Reading(name, BASE, KL, kl, len(runs))
        yield _Reading(name, "", PER_TOKEN, own / tokens, len(runs))
        yield _Reading(name, BASE, PER_TOKEN, (own - base) / tokens, len(runs))
        yield _Reading(name, "", PER_ANSWER, own, len(runs))
        yield _Reading(name, BASE, PER_ANSWER, own - base, len(runs))


def mean_interval(
    values: FloatArray, groups: Sequence[str], name: str, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """95 % interval of a mean over examples that are drawn by whole clusters.

    Args:
        values: one for each example.
        groups: the clusters that they belong to.
        name: names the resampling: the same name and clusters give the same draws.
        seed: of the resampling.
        draws: number of resamples.
    """
    names, clusters = np.unique(list(groups), return_inverse=True)
    count = len(names)
    if count < MIN_CLUSTERS:
        return Interval(None, None, f"{TOO_FEW}: {count} clusters, {MIN_CLUSTERS} needed")
    weights = cluster_weights(count, draws, generator(seed, "resample-clusters", name))
    # A ratio of sums: a draw may hold more examples than another.
    sums = np.bincount(clusters, weights=values, minlength=count)
    sizes = np.bincount(clusters, minlength=count)
    drawn = (weights @ sums) / (weights @ sizes)
    return percentiles(drawn, count, f"bootstrap of {count} clusters, given these runs")


# ---- published figures ---------------------------------------------------------------------------

NOTE = "published, not measured here"


@dataclass(frozen=True, slots=True)
class Published:
    """One figure: accuracy (0 to 1) of a system on a task, with its source, split and scorer."""

    task: str
    system: str
    metric: str
    value: float
    source: str
    split: str
    scorer: str
    note: str = NOTE


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    split: str
    scorer: str


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid")
    system: str
    source: str
    accuracy: dict[str, float]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sources: dict[str, _Source]
    figures: list[_Figures]


def published(tasks: Iterable[str]) -> list[Published]:
    """The figures on some tasks, in the order of the tasks.

    Raises:
        DataError: the installed table cannot be used.
    """
    return [row for task in tasks for row in _rows() if row.task == task]


@lru_cache(maxsize=1)
def _rows() -> tuple[Published, ...]:
    path = Path(__file__).parent / "published.yaml"
    try:
        figures = read_yaml(path.read_text(encoding="utf-8"), path.name, DataError).value
        table = _Table.model_validate(figures)
        return tuple(
            Published(
                task, row.system, "accuracy", value, source.title, source.split, source.scorer
            )
            for row in table.figures
            for source in [table.sources[row.source]]
            for task, value in row.accuracy.items()
        )
    except (OSError, DataError, ValidationError, KeyError) as error:
        raise DataError(
            f"the table of published figures cannot be used: {error}",
            where="mixtune/analysis/published.yaml",
            remedy="install mixtune again",
        ) from error
