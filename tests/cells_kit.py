"""Cells whose answers are right or wrong as a test says, measured on one panel.

Knows: the shapes that the analysis takes. Does not know: stores, files, models.
"""

from dataclasses import dataclass

import numpy as np

from mixtune.analysis.measures import SystemInfo, measure_panels
from mixtune.analysis.panel import panel_of

NAMES = ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class Toy:
    labels: tuple[str, ...] = ("no", "yes")
    metrics: tuple[str, ...] = ("accuracy",)


def system(name, cell, seed):
    """A system of a cell that is written as tables show it: a+b, a (30 examples), a (lr 0.01)."""
    head, _, note = cell.removesuffix(")").partition(" (")
    parts = () if seed is None else tuple(head.split("+"))
    lr = float(note.removeprefix("lr ")) if note.startswith("lr ") else None
    kind = "merged" if note == "merged" else "trained"
    return SystemInfo(name, cell, seed, parts, kind=kind, note=note, lr=lr)


def measured(rights, task="a", form="strict", split="validation"):
    """(cell, seed) → right or wrong per item; `base` has no seed."""
    infos, codes = [], {}
    for (cell, seed), right in rights.items():
        name = f"{cell}/{seed}"
        infos.append(system(name, cell, seed))
        gold = np.zeros(len(right), dtype=np.int64)
        codes[name] = gold, np.where(right, 0, 1)
    panel = panel_of((task, split, form), Toy(), np.arange(len(gold)), codes)
    return measure_panels([panel], infos)


def right(share, n=200):
    return np.arange(n) < round(share * n)


def cells(accuracy, seeds=(1, 2)):
    """Every single, pair, leave-one-out and all, with accuracies by a function of the parts."""
    made = [*((n,) for n in NAMES), *((x, y) for x in NAMES for y in NAMES if x < y)]
    made += [tuple(n for n in NAMES if n != out) for out in NAMES] + [NAMES]
    return {("+".join(parts), seed): accuracy(parts) for parts in made for seed in seeds}
