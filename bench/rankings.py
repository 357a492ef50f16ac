"""Whether two studies rank the same cocktails alike: what adapters in the top layers only change.

    mixtune results STUDY --json > one.json
    mixtune results STUDY name=other train.top_layers=10 --json > other.json
    python -m bench.rankings one.json other.json [--out FILE]

Both studies have the same tasks, cocktails, seeds and items; they differ in a training setting. For
each task, over its cocktails' validation means: Kendall's tau-b, the difference of each cell, and
what choosing by the other study costs here.

Knows: the rows that `mixtune results --json` prints. Does not know: how either was trained.
"""

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from scipy.stats import kendalltau

from bench.machine import provenance, typed
from bench.results import write_or_print

Means = dict[str, dict[str, float]]
"""Task → cocktail → mean over seeds."""


def means(rows: Sequence[Mapping[str, object]], form: str = "constrained") -> Means:
    """Validation means of every trained cocktail, by task; accuracy, in one form."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["form"] == form and row["metric"] == "accuracy" and row["seed"] is not None:
            key = (str(row["task"]), str(row["cocktail"]))
            values.setdefault(key, []).append(float(str(row["value"])))
    found: Means = {}
    for (task, cocktail), each in values.items():
        found.setdefault(task, {})[cocktail] = mean(each)
    return found


def compare(these: Means, those: Means) -> list[dict[str, object]]:
    """One row a task: how alike the cocktails are ranked.

    Raises:
        ValueError: the studies have other tasks or cocktails.
    """
    shapes = [{task: sorted(cells) for task, cells in side.items()} for side in (these, those)]
    if shapes[0] != shapes[1]:
        raise ValueError("the studies differ in tasks or cocktails")
    rows = []
    for task, cells in sorted(these.items()):
        names = sorted(cells)
        mine, theirs = ([side[task][name] for name in names] for side in (these, those))
        chosen = names[theirs.index(max(theirs))]
        tau = float(kendalltau(mine, theirs).statistic)
        rows.append(
            {
                "task": task,
                "cocktails": len(names),
                "kendall_tau_b": None if tau != tau else round(tau, 3),
                "best": names[mine.index(max(mine))],
                "best_of_other": chosen,
                "lost_by_choosing_it": round(max(mine) - cells[chosen], 4),
                "cells": {
                    name: [round(a, 4), round(b, 4)]
                    for name, a, b in zip(names, mine, theirs, strict=True)
                },
            }
        )
    return rows


def _read(path: Path) -> list[dict[str, object]]:
    raw = path.read_bytes()
    rows: list[dict[str, object]] = json.loads(
        gzip.decompress(raw) if path.suffix == ".gz" else raw
    )
    return rows


def main() -> None:
    """Print or write the comparison."""
    parser = argparse.ArgumentParser(description="Do two studies rank the same cocktails alike?")
    parser.add_argument("results", type=Path, help="of the study to judge by; may be gzipped")
    parser.add_argument("others", type=Path, help="of the same study with another setting")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    facts = {
        "rows": compare(means(_read(given.results)), means(_read(given.others))),
        **provenance(f"python -m bench.rankings {typed(given.results)} {typed(given.others)}"),
    }
    write_or_print(facts, given.out)


if __name__ == "__main__":
    main()
