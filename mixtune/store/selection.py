"""What was chosen for claims, as the file selection.json in a study's folder.

Knows: the file, which seeds are fresh. Does not know: how anything is chosen, planned or claimed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from mixtune.errors import StoreError
from mixtune.records import Choice, Selection
from mixtune.store.folder import SELECTION, Store

_READ = TypeAdapter(Selection)
FIRST = 1001
"""Fresh seeds begin here, far from those that people choose."""


def fresh_seeds(count: int, taken: Sequence[int]) -> tuple[int, ...]:
    """The first so many seeds that nobody has."""
    found: list[int] = []
    seed = FIRST
    while len(found) < count:
        if seed not in taken:
            found.append(seed)
        seed += 1
    return tuple(found)


def read_selection(store: Store) -> Selection | None:
    """What was chosen, if anything was.

    Raises:
        StoreError: the file was changed to what cannot be read.
    """
    if not (store.folder / SELECTION).is_file():
        return None
    try:
        return _READ.validate_json(store.read_text(SELECTION))
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"what was chosen cannot be read: {first['msg']}",
            where=f"{store.folder / SELECTION}, {'.'.join(map(str, first['loc']))}",
            remedy="restore the file: what was chosen before the fresh runs cannot be made up "
            "afterwards",
        ) from error


def write_selection(store: Store, selection: Selection) -> None:
    """Write it down; the one before, if any, stays beside it under a number."""
    if selection.again:
        store.write_text(f"selection-{selection.again}.json", store.read_text(SELECTION))
    store.write_text(SELECTION, json.dumps(asdict(selection), indent=1) + "\n")


def same(one: Selection, other: Selection) -> bool:
    """Whether two say the same, whenever they were made."""
    return not differences(one, other)


def differences(one: Selection, other: Selection) -> list[str]:
    """What is not the same, a line for each target or setting."""
    lines = []
    before, after = ({c.target: c for c in s.choices} for s in (one, other))
    for target in sorted(before.keys() | after.keys()):
        if before.get(target) != after.get(target):
            lines.append(f"{target}: {_said(before.get(target))} → {_said(after.get(target))}")
    for name in ("margin", "single_runs", "against", "exposed", "items", "reasons"):
        kept, asked = getattr(one, name), getattr(other, name)
        if kept != asked:
            lines.append(f"{name}: {kept} → {asked}")
    if len(one.fresh) != len(other.fresh):
        lines.append(f"fresh seeds: {len(one.fresh)} → {len(other.fresh)}")
    return lines


def _said(choice: Choice | None) -> str:
    if choice is None:
        return "nothing"
    return (
        f"{choice.cocktail} ({choice.value:.4f}, {choice.tried} runs) against {choice.single} "
        f"({choice.single_value:.4f}, {choice.tried_single} runs)"
    )
