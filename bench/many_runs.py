"""A made-up study of 10,000 runs: planned as any study is, its files written without training.

Tasks and base model are invented; ids, units and rows of the plan are those that `mixtune plan`
gives, so every command that reads a finished study can be timed on it.

Knows: the files of a finished run. Does not know: how anything is planned or analysed.
"""

import json
import sqlite3
from dataclasses import asdict
from itertools import chain, combinations, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.cuda_made import write_tiny
from mixtune.datasets.registry import Registry
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan
from mixtune.planning.summary import facts_of
from mixtune.records import Score, TrainStep, schema_of
from mixtune.results.study_results import read_facts, score_file
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, load_study

RUNS = 10_000
INGREDIENTS = 12
TASKS = 3
SEEDS = (1, 2, 3)
ITEMS = 100
STEPS = [TrainStep(i, 2.0 / (i + 1), 1e-3, 1.0, 16, 32, 900, 0.5) for i in range(50)]
LABELS = ("low", "middle", "high")
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


def write_study(folder: Path, runs: int, items: int = ITEMS) -> Path:
    """A finished study of about so many runs below a folder; returns its study file."""
    names = [f"t{i:02}" for i in range(INGREDIENTS)]
    for name in names:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
        for split, count in (("train", 40), ("validation", items), ("test", 20)):
            _write_split(folder / "data" / name, split, count)
    (folder / "base").mkdir()
    write_tiny(folder / "base")
    subsets = chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))
    raw = {
        "name": "many",
        "model": "base",
        "tasks": names[:TASKS],
        "task_files": [f"{name}.yaml" for name in names],
        "ingredients": {name: {"rows": 20} for name in names},
        "design": {"explicit": [list(s) for s in islice(subsets, -(-runs // len(SEEDS)))]},
        "budget": {"steps": len(STEPS), "examples_per_step": 4},
        "seeds": list(SEEDS),
        "evaluate": {"forms": ["constrained"]},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    _finish(folder, path)
    return path


def _write_split(folder: Path, split: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {"id": f"{split}-{i:05}", "text": f"{folder.name} {split} {i}", "label": LABELS[i % 3]}
        for i in range(count)
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _finish(folder: Path, study_file: Path) -> None:
    """Plan the study, write what its runs would have written, and mark all units as done."""
    study = load_study(study_file, [f"model={folder / 'base'}"])
    files = locate(study.model, download=False)
    assert isinstance(files, BaseModelFiles)
    planner = Planner(study, Registry.of(study, folder / "data"), files)
    plan = planner.plan()
    store = Store(folder / "runs" / study.name)
    store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner))
    with sqlite3.connect(store.folder / "state.sqlite") as states:
        states.execute("UPDATE unit SET state = 'done', progress = 1, seconds = 1")
    _write_runs(store, plan, files)
    facts = read_facts(store, planner.registry)
    for row in facts.finished():
        path = store.folder / score_file(facts, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_scores(row), path, compression="zstd", write_page_checksum=True)


def _write_runs(store: Store, plan: Plan, files: BaseModelFiles) -> None:
    """`run.json` and `train.parquet` of every run, without the flush that a real run makes."""
    model = {name: getattr(files, name) for name in ("name", "source", "note", "digest")}
    log = pa.Table.from_pylist([asdict(step) for step in STEPS], schema=schema_of(TrainStep))
    for run in plan.runs:
        if run.kind == "trained":
            folder = store.folder / run.folder
            folder.mkdir(parents=True)
            facts = {"model": model, "mix": [asdict(row) for row in run.mix]}
            (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
            pq.write_table(log, folder / "train.parquet", write_page_checksum=True)


def _scores(row: PlanRow) -> pa.Table:
    """Made-up scores: cells that train on the task are better."""
    n = row.items
    rng = np.random.default_rng(int(row.id[:8], 16))
    gold = np.arange(n) % len(LABELS)
    skill = (0.75 if row.task in row.ingredients else 0.5) + rng.normal(0, 0.02)
    hard = np.random.default_rng(sum(row.task.encode())).random(n)
    right = hard * 0.9 + rng.random(n) * 0.1 < skill
    parsed = np.where(right, gold, (gold + 1) % len(LABELS))
    texts = np.array(LABELS)
    items = [f"{row.split}-{i:05}" for i in range(n)]
    columns = {
        "system": [row.system] * n,
        "task": [row.task] * n,
        "split": [row.split] * n,
        "example": items,
        "form": [row.form] * n,
        "group": [f"{row.task} {item}" for item in items],
        "stratum": [""] * n,
        "parsed": texts[parsed].tolist(),
        "gold": texts[gold].tolist(),
        "value": right.astype(float),
        "status": ["ok"] * n,
    }
    schema = schema_of(Score)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
