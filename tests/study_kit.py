"""A small study for tests: two invented label tasks on disk, a tiny random base model.

Knows: files and folders. Does not know: the engine, execution.
"""

import json
from pathlib import Path

from mixtune.datasets.registry import Registry
from mixtune.identity import digest
from mixtune.models.files import BaseModelFiles
from mixtune.store.files import fingerprint
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study
from mixtune.tasks.task import Task, parse_task
from mixtune.tokens import Tokens

TASK = """
name: {name}
title: {name}
about: Invented reports of the weather.
version: 1
kind: label
labels: [dry, wet]
prompt: |-
  Is it dry or wet?

  {{{{ text }}}}
fields: {{label: label}}
group_by: "{{{{ text }}}}"
parser: label
metrics: [accuracy, macro-f1]
source: {{local: {{folder: {name}}}}}
licence: none
"""

STUDY = {
    "name": "weather",
    "model": "unused",
    "tasks": ["north", "south"],
    "ingredients": {"north": {"rows": 20}, "south": {"rows": 20}},
    "design": ["singles", "all"],
    "budget": {"steps": 3, "examples_per_step": 4},
    "seeds": [1],
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 6, "test_items": 8, "max_new_tokens": 6, "batch_size": 4},
}


def record(name: str, split: str, i: int) -> dict[str, str]:
    """One row: texts differ between tasks and splits."""
    wet = i % 3 == 0
    sky = "rain and clouds" if wet else "sun and dust"
    text = f"{name} {split} station {i} reports {sky} over hill {i * 7 % 31}"
    return {"id": f"{name}-{split}-{i}", "text": text, "label": "wet" if wet else "dry"}


def write_rows(folder: Path, name: str, split: str, rows: list[dict[str, str]]) -> None:
    """A JSONL file of a split."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def write_data(folder: Path) -> Path:
    """Two tasks without a validation split: 60 train rows, 20 test rows each."""
    for name in ("north", "south"):
        for split, count in (("train", 60), ("test", 20)):
            write_rows(folder, name, split, [record(name, split, i) for i in range(count)])
    return folder


def tasks() -> list[Task]:
    """The two tasks."""
    return [parse_task(TASK.format(name=name), f"{name}.yaml") for name in ("north", "south")]


def registry(folder: Path) -> Registry:
    """The two tasks, read from a data folder."""
    return Registry(tasks(), folder)


def study(**changes: object) -> Study:
    """The study, with keys replaced."""
    return parse_study(STUDY | changes)


def base_files(folder: Path) -> BaseModelFiles:
    """A tiny random base model as the catalog would describe it."""
    named = digest(Tokens.load(folder).digest)
    sums = {path.name: fingerprint(path).sha256 for path in folder.iterdir() if path.is_file()}
    return BaseModelFiles("tiny", folder, "made up", "random weights", None, named, named, sums)


def training_rows(planner, run):
    """Token rows of one run in training order."""
    return planner.training_rows([run])[run.system]
