"""The file selection.json: what `mixtune confirm` chose, written before fresh runs are planned.

Knows: the file, which seeds are fresh. Does not know: how anything is chosen, planned or claimed.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from itertools import count, islice

from pydantic import TypeAdapter, ValidationError

from mixtune.errors import StoreError
from mixtune.records import Choice, Selection
from mixtune.store.folder import SELECTION, Store

_SELECTION = TypeAdapter(Selection)
FIRST_FRESH_SEED = 1001
"""Far from the seeds that people choose."""


def fresh_seeds(number: int, used: Collection[int]) -> tuple[int, ...]:
    """The first unused seeds from 1001 on."""
    return tuple(islice((s for s in count(FIRST_FRESH_SEED) if s not in used), number))


def read_selection(store: Store) -> Selection | None:
    """Read the selection, None where nothing was chosen.

    Raises:
        StoreError: the file was changed and cannot be read.
    """
    if not (store.folder / SELECTION).is_file():
        return None
    try:
        return _SELECTION.validate_json(store.read_text(SELECTION))
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"what was chosen cannot be read: {first['msg']}",
            where=f"{store.folder / SELECTION}, {'.'.join(map(str, first['loc']))}",
            remedy="restore the file: what was chosen before the fresh runs cannot be made up "
            "afterwards",
        ) from error


def write_selection(store: Store, selection: Selection) -> None:
    """Write the selection; the one before, if any, stays beside it under a number."""
    if selection.again:
        store.write_text(f"selection-{selection.again}.json", store.read_text(SELECTION))
    store.write_text(SELECTION, json.dumps(asdict(selection), indent=1) + "\n")


def differences(before: Selection, after: Selection) -> list[str]:
    """Differences but for the time, a line for each target or setting; empty where there are none.

    Of fresh seeds only the number counts.
    """
    lines = []
    old, new = ({c.target: c for c in s.choices} for s in (before, after))
    for target in sorted(old.keys() | new.keys()):
        if old.get(target) != new.get(target):
            lines.append(f"{target}: {_text(old.get(target))} → {_text(new.get(target))}")
    for name in ("margin", "single_runs", "against", "exposed", "items", "reasons"):
        if getattr(before, name) != getattr(after, name):
            lines.append(f"{name}: {getattr(before, name)} → {getattr(after, name)}")
    if len(before.fresh) != len(after.fresh):
        lines.append(f"fresh seeds: {len(before.fresh)} → {len(after.fresh)}")
    return lines


def _text(choice: Choice | None) -> str:
    if choice is None:
        return "nothing"
    return (
        f"{choice.cocktail} ({choice.value:.4f}, {choice.tried} runs) against {choice.single} "
        f"({choice.single_value:.4f}, {choice.tried_single} runs)"
    )
