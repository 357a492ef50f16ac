"""Mistakes of published studies, made on purpose, so that a user can see what each changes.

Knows: what each mistake does to training rows. Does not know: studies, ids, models.
"""

from collections.abc import Sequence
from dataclasses import replace

from mixtune.records import Example
from mixtune.spec import Course
from mixtune.tokens import Row


def lower_labels(pools: dict[str, list[Example]]) -> None:
    """Training answers of label tasks in lower case, whatever the prompt asks for; in place."""
    for pool in pools.values():
        pool[:] = [replace(row, target=row.target.lower()) if row.choices else row for row in pool]


def leaking_packs(rows: Sequence[Row], course: Course, length: int) -> tuple[list[Row], Course]:
    """Rows packed into sequences, each row behind all that its sequence holds before it.

    A causal network that reads a whole pack sees at each answer what a row with that prompt sees,
    so packing without a block-diagonal mask is nothing but longer prompts. Rows are packed in
    their order; a step has `course.examples_per_step` packs.

    Args:
        rows: in training order.
        course: of the rows as they are.
        length: most tokens of a pack; a row that is longer has a pack of its own.

    Returns:
        The rows with their longer prompts, and the course in which steps are of packs.
    """
    packs = _packs(rows, length)
    grown = [row for pack in packs for row in _behind_one_another(pack)]
    step = course.examples_per_step
    sizes = [
        sum(len(pack) for pack in packs[first : first + step])
        for first in range(0, len(packs), step)
    ]
    return grown, replace(course, sizes=tuple(sizes))


def _packs(rows: Sequence[Row], length: int) -> list[list[Row]]:
    packs: list[list[Row]] = []
    used = 0
    for row in rows:
        if not packs or used + row.length > length:
            packs.append([])
            used = 0
        packs[-1].append(row)
        used += row.length
    return packs


def _behind_one_another(pack: Sequence[Row]) -> list[Row]:
    before: tuple[int, ...] = ()
    found = []
    for row in pack:
        found.append(replace(row, prompt=before + row.prompt))
        before += row.prompt + row.answer
    return found
