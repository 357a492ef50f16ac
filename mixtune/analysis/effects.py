"""What a cocktail changes: paired differences to the step-matched single task and to the base.

Knows: cocktails, seeds, which cell was chosen. Does not know: prompts, tokens, how a difference is
shown.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mixtune.analysis.adjust import benjamini_hochberg
from mixtune.analysis.results import BASE, MAJORITY, Measured, SystemInfo, estimate
from mixtune.analysis.ties import tie
from mixtune.errors import DataError
from mixtune.metrics import METRICS
from mixtune.records import Estimate, Result

TO_SINGLE = "difference-to-single"
TO_EXPOSURE = "difference-to-exposure-matched"
TO_BASE = "difference-to-base"
TRANSFER = "transfer"
DIFFERENCE = "difference"


def differences(found: Sequence[Measured]) -> list[Estimate]:
    """Every cocktail minus the single tasks that belong beside it, and minus the untuned base.

    Paired by item and by cluster, averaged over the seeds that both sides have.
    "difference-to-single": the task trained on alone under the study's budget, which is
    step-matched under equal steps; not for single tasks themselves.
    "difference-to-exposure-matched": the task trained on alone on as many of its rows as the
    cocktail had of them. "difference-to-base": where the systems include a base; "transfer": those
    of them that were trained here without the task. A pair without a shared seed gives no row.
    `adjusted`: over all differences of a kind in one form and metric, by Benjamini and Hochberg.

    Raises:
        DataError: two systems of one cocktail and seed.
    """
    parts = (_to_single, _to_exposure, _to_base, _transfer)
    return adjusted([row for measured in found for part in parts for row in part(measured)])


def adjusted(rows: Sequence[Estimate]) -> list[Estimate]:
    """Rows in their order, p adjusted over those of one quantity, split, form and metric."""
    families: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        families[row.quantity, row.split, row.form, row.metric].append(place)
    made = list(rows)
    for places in families.values():
        found = benjamini_hochberg([rows[place].p for place in places])
        for place, value in zip(places, found, strict=True):
            made[place] = replace(rows[place], adjusted=value)
    return made


def compare(
    found: Sequence[Measured], subject: str, reference: str, margin: float | None = None
) -> list[Estimate]:
    """One cocktail or fixed system minus another, by name, on every panel that has both.

    Two trained cocktails are compared on the seeds that both have; a fixed system (base, majority,
    one that was brought in) is held against every seed of the other. With a `margin` each method
    begins with whether the two are a tie within it.
    """
    rows = []
    for measured in found:
        sides = [measured.named(name) for name in (subject, reference)]
        if all(None not in side for side in sides):
            shared = sides[0].keys() & sides[1].keys()
            sides = [{s: side[s] for s in shared} for side in sides]
        if all(sides):
            one, other = ([side[s] for s in sorted(side, key=str)] for side in sides)
            row = _difference(measured, (DIFFERENCE, subject, reference), one, other)
            tied = "" if margin is None else f"{tie(measured, one, other, margin)}; "
            rows.append(replace(row, method=f"{tied}{row.method}"))
    return rows


def _to_single(measured: Measured) -> list[Estimate]:
    """Cocktails, and single tasks trained for longer or shorter, minus the plain single task."""
    single = measured.panel.task
    if all(info.ingredients != (single,) for info in measured.infos.values()):
        return []
    others = [name for name in measured.cells() if name != single]
    return [row for name in others for row in minus(measured, TO_SINGLE, name, single)]


def _to_exposure(measured: Measured) -> list[Estimate]:
    """Cocktails minus the single task trained on as many of the target's rows."""
    target = measured.panel.task
    alone = {info.rows[target]: info.cocktail for info in _alone(measured)}
    rows = []
    for name, by_seed in measured.cells().items():
        info = measured.infos[next(iter(by_seed.values()))]
        seen = info.rows.get(target)
        if len(info.ingredients) > 1 and seen in alone:
            rows += minus(measured, TO_EXPOSURE, name, alone[seen])
    return rows


def _alone(measured: Measured) -> list[SystemInfo]:
    """Systems trained on the target alone whose rows are known, at the study's learning rate."""
    target = measured.panel.task
    infos = [measured.infos[system] for system in measured.values]
    own = [info for info in infos if not info.cocktail.startswith(f"{target} (lr ")]
    return [info for info in own if info.ingredients == (target,) and target in info.rows]


def minus(measured: Measured, quantity: str, subject: str, reference: str) -> list[Estimate]:
    """One cocktail minus another on the seeds that both have; nothing where they have none."""
    cells = measured.cells()
    one, other = (cells.get(name, {}) for name in (subject, reference))
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return []
    sides = [[side[s] for s in shared] for side in (one, other)]
    return [_difference(measured, (quantity, subject, reference), *sides)]


def _to_base(measured: Measured) -> list[Estimate]:
    """Cocktails, and systems that were brought in, minus the base."""
    names = dict.fromkeys(measured.infos[system].cocktail for system in measured.values)
    sides = {name: list(measured.named(name).values()) for name in names}
    base = sides.pop(BASE, [])
    sides.pop(MAJORITY, None)
    if not base:
        return []
    return [_difference(measured, (TO_BASE, name, BASE), own, base) for name, own in sides.items()]


def _transfer(measured: Measured) -> list[Estimate]:
    """Cells that never saw the task, minus the base."""
    task, cells = measured.panel.task, measured.cells()
    without = {
        name
        for name, by_seed in cells.items()
        if task not in measured.infos[next(iter(by_seed.values()))].ingredients
    }
    return [replace(row, quantity=TRANSFER) for row in _to_base(measured) if row.subject in without]


def _difference(
    measured: Measured, what: tuple[str, str, str], systems: list[str], reference: list[str]
) -> Estimate:
    arm, against = measured.arm(systems), measured.arm(reference)
    found = measured.interval(systems, reference)
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
