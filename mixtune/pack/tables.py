"""The pack's tables for people: runs, units, datasets, and what is left out, as CSV.

Knows: facts of a study, columns. Does not know: zips, rows of items.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixtune.pack.blind import first_line, pathless
from mixtune.results import study_results
from mixtune.results.study_results import StudyFacts
from mixtune.store.folder import PlanRow
from mixtune.store.states import Unit
from mixtune.tasks.task import Task

Row = Mapping[str, Any]


def csv_text(rows: Iterable[Row]) -> str:
    """Rows with the same columns as CSV, with a line of names; nothing without rows."""
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(listed[0]) if listed else [], lineterminator="\n")
    if listed:
        writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


def run_rows(facts: StudyFacts) -> Iterator[Row]:
    """Every run, failed ones with their error; settings are in each run's `run.json`."""
    for run in study_results.run_rows(facts):
        yield {**asdict(run), "error": first_line(run.error or "")}


def unit_rows(plan: Sequence[PlanRow], units: Mapping[str, Unit]) -> Iterator[Row]:
    """Every adapter and set of answers with its ids and state."""
    for row in plan:
        unit = units.get(row.id)
        yield {
            "id": row.id,
            "kind": row.kind,
            "system": row.system,
            "cocktail": row.cocktail,
            "seed": row.seed,
            "task": row.task,
            "split": row.split,
            "form": row.form,
            "items": row.items,
            "items_digest": row.items_digest,
            "state": unit.state if unit else "planned",
            "attempts": unit.attempts if unit else 0,
            "seconds": unit.seconds if unit else 0.0,
            "error": first_line(unit.error) if unit else "",
        }


def dataset_rows(facts: StudyFacts, tasks: Sequence[Task]) -> Iterator[Row]:
    """Every dataset with licence, revision, prompt version, and fingerprint of each split's rows.

    Fingerprints are those of the study's plan: of the pool trained on, of the items asked.
    """
    content, read = facts.store.read_value("content.json"), facts.store.read_value("data.json")
    splits = sorted({name.split("/", 1)[1] for name in content["rows"]})
    counted = {(row["dataset"], row["split"]): row for row in read}
    for task in tasks:
        source = task.source.model_dump(mode="json", exclude_unset=True)
        for split in splits:
            mark = content["rows"].get(f"{task.name}/{split}")
            count = counted.get((task.name, split), {})
            if mark is None and not count:
                continue
            yield {
                "dataset": task.name,
                "split": split,
                "title": task.title,
                "role": task.role,
                "licence": task.licence,
                "url": task.url,
                "citation": task.citation,
                "source": pathless(json.dumps(source, sort_keys=True)),
                "task_version": task.version,
                "prompt_version": task.prompt_version,
                "parser_version": task.parser_version,
                "fingerprint": mark,
                **{key: count.get(key) for key in ("records", "dropped", "why", "leaked")},
                "examples": count.get("examples"),
                "matched": json.dumps(count.get("matched", {})),
            }


def left_out(units: Mapping[str, Unit]) -> Iterator[Row]:
    """Files of finished units that are not here as they were, with what they are known by."""
    for unit in sorted(units.values(), key=lambda unit: unit.id):
        for name, (size, sha) in sorted(unit.files.items()):
            if not name.endswith(("run.json", "train.parquet", "usage.parquet")):
                yield {"unit": unit.id, "file": name, "bytes": size, "sha256": sha}
