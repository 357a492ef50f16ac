"""`python -m bench.scale`: how long a large study takes to analyse, and how much memory.

A made-up study of 55 cells × 9 tasks × 1,000 items × 3 seeds, 1.5 million scores, through a real
study's folder: its scores are written as a run would have written them, then `analyze` and `report`
are run as commands, each in a process of its own.

Knows: the shape of a study's folder. Does not know: how anything is analysed.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.command import run
from bench.machine import provenance
from mixtune.datasets.registry import Registry
from mixtune.planning.cells import title
from mixtune.records import Score, TrainStep, schema_of
from mixtune.results.study_results import read_facts, score_file
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, parse_study

OUT = Path(__file__).parent / "results" / "scale.json"
TASKS = 9
SEEDS = (1, 2, 3)
LABELS = ("low", "middle", "high")
LIMITS = {"seconds": 60.0, "bytes": 2e9}
STEPS = [TrainStep(i, 2.0 / (i + 1), 1e-3, 1.0, 16, 32, 900, 0.5) for i in range(100)]
TASK = """
name: {name}
title: Task {name}
about: Invented.
version: 1
kind: label
labels: [low, middle, high]
prompt: "low, middle or high? {{{{ text }}}}"
fields: {{label: label}}
group_by: "{{{{ text }}}}"
parser: label
metrics: [accuracy, macro-f1]
source: {{local: {{folder: {name}}}}}
licence: none
"""


def make(folder: Path, items: int) -> Path:
    """A study with scores and nothing else; returns its study file."""
    names = [f"t{i}" for i in range(TASKS)]
    for name in names:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    raw = {
        "name": "scale",
        "model": "smollm2-135m",
        "tasks": names,
        "task_files": [f"{name}.yaml" for name in names],
        "ingredients": {name: {} for name in names},
        "design": ["incremental"],
        "seeds": list(SEEDS),
        "evaluate": {"forms": ["constrained"]},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    study = parse_study({**raw, "task_files": [str(folder / f"{name}.yaml") for name in names]})
    store = Store(folder / "runs" / "scale")
    cells = _cells(names)
    rows = [row for cell in cells for seed in SEEDS for row in _rows(cell, seed, names, items)]
    rows += [row for name in ("base", "majority") for row in _rows((name,), None, names, items)]
    store.save_plan(rows, dump_study(study), {"data": [], "flagged": {}, "lengths": []})
    facts = read_facts(store, Registry.of(study, None))
    with sqlite3.connect(store.folder / "state.sqlite") as states:
        states.execute("UPDATE unit SET state = 'done'")  # thousands of transactions by the store
    for row in rows:
        if row.kind == "train":
            store.write_rows(f"{row.folder}/train.parquet", TrainStep, STEPS)
        if row.kind == "answer":
            name = score_file(facts, row)
            path_ = store.folder / name
            path_.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(_scores(row), path_)
    return path


def _cells(names: Sequence[str]) -> list[tuple[str, ...]]:
    chosen = [*combinations(names, 1), *combinations(names, 2)]
    return [*chosen, *(tuple(n for n in names if n != out) for out in names), tuple(names)]


def _rows(
    parts: tuple[str, ...], seed: int | None, names: Sequence[str], items: int
) -> list[PlanRow]:
    """Units of a cell, or of a baseline, which has no seed."""
    cell = title(parts)
    system = f"{cell}-{seed}"
    folder = f"cells/{system.replace('+', '-')[:80]}-{abs(hash(system)) % 10**8}"
    found = [
        PlanRow("answer", f"{system}-{task}", system, folder, cell, seed, task, "validation",
                "constrained", items, 0, "made-up")
        for task in names
    ]  # fmt: skip
    if seed is None:
        return [replace(row, system_kind=cell) for row in found]
    found.append(PlanRow("train", system, system, folder, cell, seed, "", "", "", 0, 0, ""))
    return [replace(row, system_kind="trained", ingredients=parts) for row in found]


def _scores(row: PlanRow) -> pa.Table:
    """Made-up scores: half of the tasks come in clusters of ten; cells with the task are better."""
    rng = np.random.default_rng(abs(hash((row.task, "items"))) % 2**32)
    n, difficulty = row.items, rng.random(row.items)
    gold = rng.integers(0, 3, n)
    own = np.random.default_rng(abs(hash(row.id)) % 2**32)
    skill = (0.75 if row.task in row.ingredients else 0.5) + own.normal(0, 0.01)
    right = difficulty * 0.9 + own.random(n) * 0.1 < skill
    parsed = np.where(right, gold, (gold + 1) % 3)
    width = 10 if int(row.task[1:]) % 2 else 1
    texts = np.array(LABELS)
    columns = {
        "system": [row.system] * n,
        "task": [row.task] * n,
        "split": ["validation"] * n,
        "example": [f"{i:05}" for i in range(n)],
        "form": ["constrained"] * n,
        "group": [f"g{i // width:05}" for i in range(n)],
        "stratum": [""] * n,
        "parsed": texts[parsed].tolist(),
        "gold": texts[gold].tolist(),
        "value": right.astype(float),
        "status": ["ok"] * n,
    }
    schema = schema_of(Score)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a limit is passed."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study = make(folder, options.items)
        took = {verb: run(folder, verb, study.name) for verb in ("analyze", "report")}
        page = folder / "runs" / "scale" / "report" / "index.html"
        size = page.stat().st_size
    found = {verb: {"seconds": one.seconds, "bytes": one.bytes} for verb, one in took.items()}
    both = {
        "seconds": sum(one["seconds"] for one in found.values()),
        "bytes": max(one["bytes"] for one in found.values()),
    }
    said = {
        "scores": len(_cells([f"t{i}" for i in range(TASKS)])) * len(SEEDS) * TASKS * options.items,
        **found,
        "together": both,
        "page bytes": size,
        "limits": LIMITS,
        **provenance("python -m bench.scale"),
    }
    options.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(said, indent=1))
    return int(any(both[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
