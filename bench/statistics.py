"""`python -m bench.statistics [CASE ...]`: how often mixtune is right, by simulated studies.

Scores of made-up studies go through the package's own panels, intervals, choices and claims; the
truth is known. A case that is finished is kept and not done again (`--again`); `--write-docs`
writes docs/statistics.md from what is kept. A case's name says its settings; chunks of 100 studies
are seeded by the case's name and their number.

An item has a difficulty that all runs share; what a run adds to it is its own, so that two runs of
equal accuracy agree on most items, as models do. A run's true accuracy scatters about its cell's.

Knows: how a study is made up, what is counted. Does not know: how an interval or a claim is made.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.gains import TRUTHS, fitted
from bench.statistics_page import PAGE, UNSTEADY, written
from mixtune.analysis.claims import CONFIRMED, Arms, claims
from mixtune.analysis.effects import within_margin
from mixtune.analysis.intervals import mcnemar
from mixtune.analysis.measures import Measured, PanelMetric, SystemInfo, measure_panels
from mixtune.analysis.panel import panel_of
from mixtune.analysis.selection import best_of_n, choose
from mixtune.identity import generator
from mixtune.tasks.metrics import METRICS, FloatArray, tallies

HERE = Path(__file__).parent
KEPT = HERE / "results" / "statistics.json"
STUDIES = 2000
FITTED = 200
"""Studies at most where each is fitted by sampling, which takes about half a second."""
CHUNK = 100
"""Studies that a process does at a time: each chunk has its own seed, whoever does it."""

LATENT = 0.9
"""Correlation of two runs' latent scores on an item: right and wrong then correlate by about .7."""
RUN_SD = 0.007
"""Between runs of a cell, in accuracy: 0.7 points."""
MARGIN = 0.01
TASK = "t"
FRESH = (1001, 1002, 1003, 1004, 1005)


@dataclass(frozen=True)
class Open:
    """A task with open answers: right or wrong."""

    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)


@dataclass(frozen=True)
class Rare:
    """Three labels, of which two are rare."""

    labels: tuple[str, ...] = ("common", "rare", "rarer")
    metrics: tuple[str, ...] = ("macro-f1",)


SHARES = (0.85, 0.10, 0.05)
Rng = np.random.Generator
Counted = dict[str, float]
"""Sums over studies; `studies` says over how many."""


# ---- made-up scores ------------------------------------------------------------------------------


def rights(rng: Rng, accuracy: FloatArray, shared: FloatArray) -> FloatArray:
    """Right answers as 1 or 0 [runs, items], of runs with these accuracies [runs]."""
    from scipy import special

    own = rng.normal(size=(len(accuracy), len(shared)))
    latent = LATENT**0.5 * shared + (1 - LATENT) ** 0.5 * own
    threshold = special.ndtri(np.clip(accuracy, 1e-6, 1 - 1e-6))
    found: FloatArray = (latent < threshold[:, None]).astype(np.float64)
    return found


def run_accuracies(
    rng: Rng, cells: FloatArray, seeds: int, sds: FloatArray | float = RUN_SD
) -> FloatArray:
    """True accuracies of runs [cells × seeds] about those of their cells, scattering by `sds`."""
    scatter = np.repeat(np.broadcast_to(sds, cells.shape), seeds)
    found: FloatArray = np.repeat(cells, seeds) + scatter * rng.normal(size=len(scatter))
    return found


def measured_of(
    named: Sequence[tuple[str, int]],
    right: FloatArray,
    cluster: np.ndarray,
    where: tuple[str, str] = (TASK, "test"),
) -> Measured:
    """(cell, seed) of each row of `right`, as what is measured on an open task.

    `where`: task and split.
    """
    gold = np.zeros(right.shape[1], dtype=np.int64)
    codes = {
        f"{cell}/{seed}": (gold, (1 - row).astype(np.int64))
        for (cell, seed), row in zip(named, right, strict=True)
    }
    return _measured((*where, "strict"), Open(), cluster, codes)


def _measured(key: tuple[str, str, str], task: Any, cluster: Any, codes: Any) -> Measured:  # noqa: ANN401
    infos = []
    for name in codes:
        cell, _, seed = name.rpartition("/")
        head, _, note = cell.partition(" (")
        infos.append(SystemInfo(name, cell, int(seed), tuple(head.split("+")), note=note))
    return measure_panels([panel_of(key, task, cluster, codes)], infos)[0]


# ---- coverage ------------------------------------------------------------------------------------

CELLS = 6
"""Cells of a study whose runs say how much seeds scatter."""


def coverage(
    n: int, seeds: int, per_cluster: int = 1, unsteady: float = 1.0
) -> Callable[[Rng, int], Counted]:
    """Intervals of a mean and of a paired difference of accuracy; items may come in clusters.

    With one seed the truth is that of these very runs ("given this run"). `unsteady`: how many
    times as much as the others' the runs of the better of the two cells scatter.
    """

    def chunk(rng: Rng, studies: int) -> Counted:
        found: Counted = {}
        cluster = np.arange(n) // per_cluster
        named = [(f"t+c{c}" if c else "t", s) for c in range(CELLS) for s in range(seeds)]
        for _ in range(studies):
            cells = np.array([0.78, 0.80, *rng.uniform(0.7, 0.9, CELLS - 2)])
            sds = RUN_SD * np.where(np.arange(CELLS) == 1, unsteady, 1.0)
            accuracy = run_accuracies(rng, cells, seeds, sds)
            weight = 0.6 if per_cluster > 1 else 0.0
            whole = rng.normal(size=cluster[-1] + 1)[cluster]
            shared = weight**0.5 * whole + (1 - weight) ** 0.5 * rng.normal(size=n)
            one = measured_of(named, rights(rng, accuracy, shared), cluster)
            truth = accuracy[: 2 * seeds].reshape(2, seeds).mean(1) if seeds == 1 else cells[:2]
            _count(found, one, truth, seeds)
        return found

    return chunk


def _count(found: Counted, one: Measured, truth: FloatArray, seeds: int) -> None:
    sides = [[f"{cell}/{seed}" for seed in range(seeds)] for cell in ("t", "t+c1")]
    apart = one.interval(sides[1], sides[0])
    mean = one.interval(sides[1], [])
    for name, ends, true in (
        ("difference", apart, truth[1] - truth[0]),
        ("mean", mean, truth[1]),
    ):
        if ends.low is None or ends.high is None:
            _add(found, f"{name} too few", 1)
            continue
        _add(found, f"{name} intervals", 1)
        _add(found, f"{name} covered", ends.low <= true <= ends.high)
        _add(found, f"{name} width", ends.high - ends.low)
    _add(found, "studies", 1)


def _add(found: Counted, name: str, value: float) -> None:
    found[name] = found.get(name, 0.0) + float(value)


def rare(n: int, seeds: int) -> Callable[[Rng, int], Counted]:
    """Intervals of macro F1 where two of three labels are rare."""
    truth = np.array([_population(skill) for skill in (0.75, 0.80)])

    def chunk(rng: Rng, studies: int) -> Counted:
        found: Counted = {}
        for _ in range(studies):
            gold = rng.choice(3, size=n, p=SHARES)
            shared = rng.random(n)
            codes = {}
            for c in range(CELLS):
                skill = (0.75, 0.80, 0.7, 0.72, 0.78, 0.82)[c]
                for s in range(seeds):
                    here = skill + RUN_SD * rng.normal() * (seeds > 1)
                    name = f"t+c{c}/{s}" if c else f"t/{s}"
                    codes[name] = gold, _answers(rng, gold, shared, here)
            one = _measured((TASK, "test", "strict"), Rare(), np.arange(n), codes)
            _count(found, one, truth, seeds)
        return found

    return chunk


def _answers(rng: Rng, gold: Any, shared: FloatArray, skill: float) -> Any:  # noqa: ANN401
    """Right where an item is easy enough; else another label, the common one mostly."""
    other = np.where(rng.random(len(gold)) < 0.7, 0, rng.integers(1, 3, len(gold)))
    other = np.where(other == gold, (gold + 1) % 3, other)
    easy = 0.8 * shared + 0.2 * rng.random(len(gold))
    return np.where(easy < _reach(skill), gold, other)


def _reach(share: float) -> float:
    """The level below which 0.8 u + 0.2 v, of two uniform numbers, lies with this chance."""
    levels = np.linspace(0, 1, 20_001)
    ramp = np.clip((levels / 0.2) ** 2 * 0.2 / 1.6, 0, None)
    below = np.where(levels < 0.2, ramp, 0.125 + (levels - 0.2) / 0.8)
    top = 1 - (np.clip(1 - levels, 0, 0.2) / 0.2) ** 2 * 0.125
    return float(np.interp(share, np.where(levels > 0.8, top, below), levels))


def _population(skill: float, n: int = 2_000_000) -> float:
    rng = generator(0, "population", f"{skill}")
    gold = rng.choice(3, size=n, p=SHARES)
    parsed = _answers(rng, gold, rng.random(n), skill)
    counts = sum(tallies(g, p, 3).sum(0) for g, p in _pieces(gold, parsed))
    return float(METRICS["macro-f1"].from_tallies(np.asarray(counts)))


def _pieces(gold: Any, parsed: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    return list(zip(np.array_split(gold, 20), np.array_split(parsed, 20), strict=True))


# ---- claims --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A study of 55 cells: the single task, its control at equal exposure, 53 cocktails.

    `gain`: by how much one of the cocktails, which one is drawn, is truly better.
    """

    targets: int = 1
    gain: float = 0.0
    cells: int = 55
    validation: int = 500
    test: int = 1000


def claimed(plan: Plan) -> Callable[[Rng, int], Counted]:
    """The whole procedure: chosen on validation with one seed, claimed with five fresh ones.

    Beside it what the original study did: the best of all on test, one seed, against the single.
    """

    def chunk(rng: Rng, studies: int) -> Counted:
        found: Counted = {}
        for _ in range(studies):
            made, confirmed, naive, tested, gains = [], 0, 0, 0, 0.0
            fresh: list[Measured] = []
            for target in range(plan.targets):
                arms, on_test, paper = _target(rng, plan, target)
                made.append(arms)
                fresh.append(on_test)
                naive += paper[0] > 0
                tested += paper[1] < 0.05 and paper[0] > 0
                gains += paper[0]
            confirmed = sum(c.verdict == CONFIRMED for c in claims(made, fresh, FRESH, MARGIN))
            _add(found, "studies", 1)
            _add(found, "confirmed studies", confirmed > 0)
            _add(found, "confirmed targets", confirmed / plan.targets)
            _add(found, "paper studies", naive > 0)
            _add(found, "paper targets", naive / plan.targets)
            _add(found, "paper tested studies", tested > 0)
            _add(found, "paper tested targets", tested / plan.targets)
            _add(found, "paper gain", gains / plan.targets)
        return found

    return chunk


def _target(rng: Rng, plan: Plan, target: int) -> tuple[Arms, Measured, tuple[float, float]]:
    """What is chosen of one target, its fresh runs, and (gain, p) of the original procedure."""
    single, exposed = f"t{target}", f"t{target} (100 examples)"
    cells = [single, exposed, *(f"t{target}+c{i}" for i in range(plan.cells - 2))]
    truth = np.full(len(cells), 0.8)
    truth[rng.integers(2, len(cells))] += plan.gain
    accuracy = run_accuracies(rng, truth, 1)
    key = (f"t{target}", ("validation", plan.validation), ("test", plan.test))
    seen = [_of(rng, (key[0], split), (cells, accuracy, (1,)), n) for split, n in (key[1], key[2])]
    (choice,) = choose([seen[0]], [PanelMetric(key[0], "strict", "accuracy")])
    against = tuple(dict.fromkeys((choice.single, single, exposed)))
    arms = [choice.cocktail, *against]
    own = np.array([truth[cells.index(name)] for name in arms])
    again = run_accuracies(rng, own, len(FRESH))
    fresh = _of(rng, (key[0], "test"), (arms, again, FRESH), plan.test)
    return Arms(choice, against), fresh, _as_published(seen[1], cells)


def _of(
    rng: Rng,
    key: tuple[str, str],
    runs: tuple[Sequence[str], FloatArray, Sequence[int]],
    n: int,
) -> Measured:
    cells, accuracy, seeds = runs
    named = [(cell, seed) for cell in cells for seed in seeds]
    return measured_of(named, rights(rng, accuracy, rng.normal(size=n)), np.arange(n), key)


def _as_published(seen: Measured, cells: Sequence[str]) -> tuple[float, float]:
    """Best cocktail on test minus the single task, one seed each, and McNemar's p of the two."""
    values = {cell: seen.values[f"{cell}/1"] for cell in cells[2:]}
    best = max(values, key=lambda cell: values[cell])
    wrong = {cell: seen.panel.codes[f"{cell}/1"][1] for cell in (best, cells[0])}
    first = int((wrong[best] < wrong[cells[0]]).sum())
    second = int((wrong[best] > wrong[cells[0]]).sum())
    return values[best] - seen.values[f"{cells[0]}/1"], mcnemar(first, second)


def tied(gap: float, n: int = 20_000, seeds: int = 5) -> Callable[[Rng, int], Counted]:
    """Equivalence within one point, where the truth is `gap`: at the margin it may hold 5 %."""

    def chunk(rng: Rng, studies: int) -> Counted:
        found: Counted = {}
        named = [(cell, s) for cell in ("t", "t+c1", "t+c2") for s in range(seeds)]
        for _ in range(studies):
            accuracy = run_accuracies(rng, np.array([0.8, 0.8 - gap, 0.8]), seeds)
            one = measured_of(named, rights(rng, accuracy, rng.normal(size=n)), np.arange(n) // 10)
            sides = ([f"{cell}/{s}" for s in range(seeds)] for cell in ("t+c1", "t"))
            _add(found, "ties", bool(within_margin(one, *sides, MARGIN).tied))
            _add(found, "studies", 1)
        return found

    return chunk


def lucky(cells: int, n: int = 970, seeds: int = 1) -> Callable[[Rng, int], Counted]:
    """What `best-of-n` says chance gives the best of equal cells, and what chance gave it."""

    def chunk(rng: Rng, studies: int) -> Counted:
        found: Counted = {}
        named = [(f"t+c{c}", s) for c in range(cells) for s in range(seeds)]
        for _ in range(studies):
            accuracy = run_accuracies(rng, np.full(cells, 0.8), seeds)
            one = measured_of(named, rights(rng, accuracy, rng.normal(size=n)), np.arange(n))
            means = np.array(list(one.values.values())).reshape(cells, seeds).mean(1)
            _add(found, "said", best_of_n([one])[0].value)
            _add(found, "gained", means.max() - means.mean())
            _add(found, "studies", 1)
        return found

    return chunk


CASES: Mapping[str, Callable[[], Callable[[Rng, int], Counted]]] = {
    **{
        f"coverage/items/n={n}/seeds={s}": lambda n=n, s=s: coverage(n, s)  # type: ignore[misc]
        for n in (50, 200, 500, 2000)
        for s in (1, 2, 3, 5)
    },
    **{
        f"coverage/clusters of 9/n={n}/seeds={s}": lambda n=n, s=s: coverage(n, s, 9)  # type: ignore[misc]
        for n in (90, 450, 1800)
        for s in (1, 2, 3, 5)
    },
    **{
        f"coverage/macro F1, rare labels/n={n}/seeds={s}": lambda n=n, s=s: rare(n, s)  # type: ignore[misc]
        for n in (50, 200, 500, 2000)
        for s in (1, 2, 3, 5)
    },
    **{
        f"coverage/{UNSTEADY}/n={n}/seeds={s}": lambda n=n, s=s: coverage(n, s, unsteady=3.0)  # type: ignore[misc]
        for n in (500, 2000)
        for s in (2, 3, 5)
    },
    "claims/all equal, 9 targets": lambda: claimed(Plan(targets=9, test=500)),
    **{
        f"claims/one better by {points} points": lambda p=points: claimed(Plan(gain=p / 100))  # type: ignore[misc]
        for points in (0, 1, 2, 3, 5)
    },
    "ties/at the margin": lambda: tied(MARGIN),
    "ties/no difference": lambda: tied(0.0),
    "best of 10, one seed": lambda: lucky(10),
    "best of 10, 3 seeds": lambda: lucky(10, seeds=3),
    "best of 55, one seed": lambda: lucky(55),
    **{
        f"gains/{truth}/targets={t}/seeds={s}": lambda truth=truth, t=t, s=s: fitted(  # type: ignore[misc]
            TRUTHS[truth], t, s
        )
        for truth in TRUTHS
        for t, s in ((3, 2), (5, 2), (8, 2), (7, 1))
    },
}
"""What is simulated, by name; made when it is run."""


# ---- running -------------------------------------------------------------------------------------


def simulate(name: str, studies: int, workers: int = 1) -> Counted:
    """Means over the studies of a case, the same whatever the number of workers."""
    chunks = [(name, i, min(CHUNK, studies - i * CHUNK)) for i in range(-(-studies // CHUNK))]
    if workers == 1:
        parts = [_chunk(one) for one in chunks]
    else:
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(_chunk, chunks))
    total: Counted = {}
    for part in parts:
        for key, value in part.items():
            _add(total, key, value)
    return total


def _chunk(what: tuple[str, int, int]) -> Counted:
    name, number, studies = what
    return CASES[name]()(generator(number, "simulated-studies", name), studies)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; a case that does not exist ends with 2."""
    parser = argparse.ArgumentParser(prog="python -m bench.statistics", description=__doc__)
    parser.add_argument("cases", nargs="*", help="beginnings of names; all where none is given")
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="also what is kept already")
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument(
        "--write-docs", action="store_true", help="write the page from what is kept"
    )
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(CASES))
        return 0
    wanted = [n for n in CASES if not options.cases or n.startswith(tuple(options.cases))]
    if not wanted:
        parser.error("no such case; --list names them")
    kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for place, name in enumerate(wanted, 1):
        if not options.write_docs and (options.again or name not in kept):
            began = time.monotonic()
            studies = min(options.studies, FITTED) if name.startswith("gains/") else options.studies
            found = simulate(name, studies, options.workers)
            kept[name] = {**found, "at": datetime.now(UTC).date().isoformat()}
            _keep(options.out, kept)
            spent = time.monotonic() - began
            print(f"[{place}/{len(wanted)}] {name}: {spent:.0f} s", file=sys.stderr, flush=True)
    if options.write_docs:
        PAGE.write_text(written(kept), encoding="utf-8")
    return 0


def _keep(path: Path, kept: Mapping[str, Any]) -> None:
    """Whole or not at all: what is finished took minutes."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
