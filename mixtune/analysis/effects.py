"""What a cocktail changes: paired differences to the step-matched single task and to the base.

Knows: cocktails, seeds, which cell was chosen. Does not know: prompts, tokens, how a difference is
shown.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from mixtune.analysis.panel import Scored
from mixtune.analysis.resample import DRAWS
from mixtune.analysis.results import BASE, Measured, SystemInfo, estimate, measure
from mixtune.errors import DataError
from mixtune.metrics import METRICS
from mixtune.records import Estimate, Result, Score

TO_SINGLE = "difference-to-single"
TO_BASE = "difference-to-base"


def differences(
    scores: Sequence[Score] | pa.Table,
    systems: Sequence[SystemInfo],
    tasks: Mapping[str, Scored],
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Estimate]:
    """Every cocktail minus the single-task cocktail of the target, and minus the untuned base.

    Paired by item and by cluster, averaged over the seeds that both sides have; under equal steps
    the single is step-matched by construction. "difference-to-single" exists for tasks that are
    also trained on alone, and not for the single itself; "difference-to-base" where the systems
    include a base. A pair without a shared seed gives no row.

    Raises:
        DataError: as `results.measure`; two systems of one cocktail and seed.
    """
    rows = []
    for measured in measure(scores, systems, tasks, seed, draws):
        rows += _to_single(measured) + _to_base(measured)
    return rows


def _to_single(measured: Measured) -> list[Estimate]:
    cells = measured.cells()
    alone = (measured.panel.task,)
    members = {info.cocktail: info.ingredients for info in measured.infos.values()}
    singles = [cocktail for cocktail in cells if members[cocktail] == alone]
    rows = []
    for cocktail, by_seed in cells.items():
        for single in singles:
            shared = sorted(by_seed.keys() & cells[single].keys())
            if cocktail == single or not shared:
                continue
            reference = [cells[single][s] for s in shared]
            what = (TO_SINGLE, cocktail, single)
            rows.append(_difference(measured, what, [by_seed[s] for s in shared], reference))
    return rows


def _to_base(measured: Measured) -> list[Estimate]:
    bases = [s for s in measured.values if measured.infos[s].cocktail == BASE]
    return [
        _difference(measured, (TO_BASE, cocktail, BASE), list(by_seed.values()), [base])
        for base in bases
        for cocktail, by_seed in measured.cells().items()
    ]


def _difference(
    measured: Measured, what: tuple[str, str, str], systems: list[str], reference: list[str]
) -> Estimate:
    arm, against = measured.arm(systems), measured.arm(reference)
    found = measured.interval(systems, reference, f"{what[1]} - {what[2]}")
    return estimate(measured, what, arm, arm.value - against.value, found)


def select(
    results: Sequence[Result], task: str, metric: str, form: str, split: str = "validation"
) -> str:
    """The cocktail with the best mean on a split (validation), over the seeds that all have.

    A cocktail with a seed of its own is thereby not compared by what that seed happened to give.
    Ties by name; baselines, which have no seed, are not chosen from.

    Raises:
        DataError: no trained system has a result there, or the cocktails share no seed.
    """
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in results:
        key = (row.task, row.metric, row.form, row.split)
        if row.seed is not None and key == (task, metric, form, split):
            values[row.cocktail][row.seed] = row.value
    where = f"{task}, {split}, {form}, {metric}"
    if not values:
        raise DataError("nothing to choose from", where=where)
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if not shared:
        raise DataError(
            "the cocktails share no seed, so none can be chosen",
            where=where,
            found={cocktail: sorted(by_seed) for cocktail, by_seed in values.items()},
            wanted="a seed that every cocktail has finished",
            remedy="finish or retry the missing runs",
        )
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    return min(values, key=lambda c: (sign * sum(values[c][s] for s in shared), c))
