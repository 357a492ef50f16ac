"""Contents of a pack: a study's folder without weights, and without any text of its datasets.

An answer of a label task is a label and stays. Any other becomes a hash; of a list, each item does,
so that equal items stay equal and F1 is counted as before. A group, which may be the text itself,
becomes its place among the sorted groups of its task: resampling goes through clusters in sorted
order, so every draw is the same. Paths of a machine are cut to their last part.
"""

import csv
import io
import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from mixtune import __version__
from mixtune.identity import digest
from mixtune.pack.archive import STUDY, TASKS
from mixtune.results.study_results import (
    StudyFacts,
    require_scores,
    run_rows,
    score_file,
    with_column,
)
from mixtune.store.files import plain_cell
from mixtune.store.folder import PlanRow
from mixtune.store.states import FILE, FORMAT
from mixtune.study.reading import dump_study
from mixtune.study.yaml import write_yaml
from mixtune.tasks.metrics import METRICS, NOTHING, items
from mixtune.tasks.task import Task

Row = Mapping[str, Any]

HASH_LENGTH = 12
"""Hex digits: enough to tell the answers of one item apart."""

_FACTS = ("env", "data", "content", "lengths", "sizes", "flagged", "strength", "selection*")
_NUMBERS = ("usage", "train")
"""Parquet files that hold numbers and ids only."""
_UNIT = ("id", "kind", "system", "cocktail", "seed", "task", "split", "form", "items",
         "items_digest")  # fmt: skip
_TASK = ("title", "role", "licence", "url", "citation")
_VERSIONS = ("task_version", "prompt_version", "parser_version")
_COUNTS = ("records", "dropped", "why", "leaked", "examples")
"""Columns of units.csv and datasets.csv that are fields of a plan's row, a task, a `DataRow`."""
_ITEM_COLUMNS = ("task", "split", "example", "group", "stratum", "gold", "prompt_hash")
_ITEM = pa.schema([(name, pa.string()) for name in _ITEM_COLUMNS])

_TEMPLATES = Environment(
    loader=PackageLoader("mixtune.pack"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.globals["version"] = __version__

_FOLDERS = re.compile(r"(?<![\w:/.])(?:/[\w.@~+-]+)+/")


def pathless(text: str) -> str:
    """The text with absolute paths cut to their last part."""
    return _FOLDERS.sub("", text)


def first_line(error: str) -> str:
    """An error without what it has found, which may be a record: what failed, and where."""
    return pathless(error.partition("\n")[0])


class Contents:
    """The files of a study's pack; everything is read from its folder and the task files.

    Raises:
        StoreError: some answers are not scored by the current parsers.
    """

    def __init__(self, facts: StudyFacts) -> None:
        require_scores(facts)
        self._facts = facts
        self._store = facts.store
        self._plan = self._store.plan()
        self._folders = list(dict.fromkeys(row.folder for row in self._plan))

    def files(self) -> dict[str, bytes]:
        """Path below the study's folder → content."""
        contents = {name: text.encode() for name, text in self._texts()}
        plan = self._store.read_table("plan.parquet")
        origins = [pathless(origin) for origin in plan["origin"].to_pylist()]
        contents["plan.parquet"] = _parquet(with_column(plan, "origin", origins))
        contents[FILE] = _states(self._store.folder / FILE)
        contents["items.parquet"] = _parquet(self._items())
        for (name, task), table in self._tables.items():
            blind = self._blind[task]
            rows = blind.grouped(table) if name.endswith("probes.parquet") else blind.scores(table)
            contents[name] = _parquet(rows)
        for name in self._plain_tables():
            contents[name] = _parquet(self._store.read_table(name))
        return contents

    # ---- rows -----------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pa.Table]:
        """(file, task) → every table whose rows belong to items: scores, and readings of gold."""
        tables = {}
        for row in self._plan:
            if row.kind == "train" or not self._facts.is_done(row):
                continue
            probes = f"{row.folder}/answers/{row.id}/probes.parquet"
            name = probes if row.form == "likelihood" else score_file(self._facts, row)
            if self._has(name):
                tables[name, row.task] = self._store.read_table(name)
        return tables

    @cached_property
    def _blind(self) -> dict[str, "Blind"]:
        groups: defaultdict[str, set[str]] = defaultdict(set)
        for (_, task), table in self._tables.items():
            groups[task].update(table["group"].unique().to_pylist())
        codes = group_codes(groups)
        return {name: Blind(self._facts.registry.get(name), codes[name]) for name in codes}

    def _items(self) -> pa.Table:
        """Each item once: id, group, gold as in scores, and the hash of the prompt it is put as."""
        by_split: dict[tuple[str, str], pa.Table] = {}
        # Behind the floors, which have no tokens and so another hash.
        for row in sorted(self._plan, key=lambda row: (row.seed is None, row.cocktail != "base")):
            key = row.task, row.split
            if row.kind == "answer" and key not in by_split and self._facts.is_done(row):
                by_split[key] = self._items_of(row)
        tables = [by_split[key] for key in sorted(by_split)]
        return pa.concat_tables(tables) if tables else _ITEM.empty_table()

    def _items_of(self, row: PlanRow) -> pa.Table:
        predictions = self._store.read_rows(f"{row.folder}/answers/{row.id}/predictions.parquet")
        hashes = {prediction["example"]: prediction["prompt_hash"] for prediction in predictions}
        table = self._tables[score_file(self._facts, row), row.task]
        scores = self._blind[row.task].scores(table)
        scores = scores.filter(pc.equal(scores["form"], row.form)).sort_by("example")
        prompts = [hashes[example] for example in scores["example"].to_pylist()]
        columns = scores.select(list(_ITEM_COLUMNS[:-1]))
        return columns.append_column("prompt_hash", pa.array(prompts, pa.string())).cast(_ITEM)

    def _plain_tables(self) -> Iterator[str]:
        yield from filter(self._has, ("retention.parquet", "judged.parquet"))
        for folder in self._folders:
            for path in sorted((self._store.folder / folder).rglob("*.parquet")):
                if path.stem in _NUMBERS:
                    yield path.relative_to(self._store.folder).as_posix()

    def _has(self, name: str) -> bool:
        return (self._store.folder / name).is_file()

    # ---- texts ----------------------------------------------------------------------------------

    def _texts(self) -> Iterator[tuple[str, str]]:
        facts, registry, study = self._facts, self._facts.registry, self._facts.study
        names = [*study.tasks, *study.ingredients, *study.judged, *study.probes]
        names += [study.general] if study.general else []
        names += [row.task for row in self._plan if row.task]
        tasks = {task.name: task for task in map(registry.get, names)}.values()
        own = [task for task in tasks if registry.origin_of(task.name) != "the package"]
        paths = {"task_files": (TASKS,) if own else (), "model": pathless(study.model)}
        yield STUDY, dump_study(study.model_copy(update=paths))
        if own:
            yield TASKS, "---\n".join(map(_without_source, own))
        for name in self._json_files():
            yield name, pathless(self._store.read_text(name))
        for task in tasks:
            values = json.loads(pathless(json.dumps(_values(task))))
            yield f"prompts/{task.name}.yaml", write_yaml(values)
        runs = run_rows(facts)
        yield "runs.csv", _csv({**asdict(r), "error": first_line(r.error or "")} for r in runs)
        yield "units.csv", _csv(_unit_row(facts, row) for row in self._plan)
        yield "datasets.csv", _csv(_dataset_rows(facts, tasks))
        yield "left-out.csv", _csv(_left_out(facts))
        splits = sorted({row.split for row in facts.answered()}, reverse=True)
        confirmed = self._has("selection.json")
        for name in ("methods.md", "README.md"):
            text = _TEMPLATES.get_template(f"{name}.j2")
            yield name, text.render(facts=facts, runs=runs, splits=splits, confirmed=confirmed)

    def _json_files(self) -> Iterator[str]:
        for name in _FACTS:
            yield from sorted(path.name for path in self._store.folder.glob(f"{name}.json"))
        runs = [f"{folder}/run.json" for folder in self._folders]
        yield from filter(self._has, ["changes.jsonl", *runs])


# ---- text out of rows ---------------------------------------------------------------------------


def group_codes(groups_of: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Task → group → its place among the sorted groups, as text that sorts in the same order."""
    codes = {}
    for task, groups in groups_of.items():
        names = sorted(set(groups))
        width = len(str(len(names)))
        codes[task] = {name: str(place).zfill(width) for place, name in enumerate(names, 1)}
    return codes


class Blind:
    """Takes the text out of the rows of one task; `groups`: group → its code."""

    def __init__(self, task: Task, groups: Mapping[str, str]) -> None:
        self._task = task.name
        self._groups = groups
        self._known = {*task.labels, None}
        self._strata = {"", *task.questions}
        self._listed = any(METRICS[name].counts == "items" for name in task.metrics)

    def scores(self, table: pa.Table) -> pa.Table:
        """Scores with the same metrics, to the last bit."""
        ids = table["example"].to_pylist()
        for column in ("gold", "parsed"):
            pairs = zip(ids, table[column].to_pylist(), strict=True)
            table = with_column(table, column, [self.answer(*pair) for pair in pairs])
        names = table["stratum"].to_pylist()
        strata = [name if name in self._strata else self._hash("", name) for name in names]
        return self.grouped(with_column(table, "stratum", strata))

    def grouped(self, table: pa.Table) -> pa.Table:
        """Any rows with a column `group`."""
        groups = [self._groups[name] for name in table["group"].to_pylist()]
        return with_column(table, "group", groups)

    def answer(self, example: str, text: str | None) -> str | None:
        """A label as it is; anything else as a hash that means nothing beside another item."""
        if text in self._known:
            return text
        assert text is not None, "an answer that could not be read is among the known"
        if not self._listed:
            return self._hash(example, text)
        lines = [self._hash(example, item) for item in items(text).elements()]
        return "\n".join(lines) if lines else NOTHING

    def _hash(self, example: str, text: str) -> str:
        return digest([self._task, example, text], HASH_LENGTH)


def _values(task: Task) -> dict[str, Any]:
    return task.model_dump(mode="json", exclude_unset=True)


def _without_source(task: Task) -> str:
    """A task as its file would say it: rows come from where the study ran."""
    return write_yaml({**_values(task), "source": {"given": {"what": "the pack: no rows"}}})


# ---- tables for people --------------------------------------------------------------------------


def _unit_row(facts: StudyFacts, row: PlanRow) -> Row:
    unit = facts.units.get(row.id)
    return {
        **{name: getattr(row, name) for name in _UNIT},
        "state": facts.state(row.id),
        "attempts": unit.attempts if unit else 0,
        "seconds": unit.seconds if unit else 0.0,
        "error": first_line(unit.error) if unit else "",
    }


def _dataset_rows(facts: StudyFacts, tasks: Iterable[Task]) -> Iterator[Row]:
    """Every dataset and split; fingerprints are of the pool trained on, of the items asked."""
    marks = facts.store.read_value("content.json")["rows"]
    counted = {(row["dataset"], row["split"]): row for row in facts.store.read_value("data.json")}
    splits = sorted({name.split("/", 1)[1] for name in marks})
    for task, split in ((task, split) for task in tasks for split in splits):
        mark = marks.get(f"{task.name}/{split}")
        count = counted.get((task.name, split), {})
        if mark is not None or count:
            source = task.source.model_dump(mode="json", exclude_unset=True)
            yield {
                "dataset": task.name,
                "split": split,
                **{name: getattr(task, name) for name in _TASK},
                "source": pathless(json.dumps(source, sort_keys=True)),
                **{name: getattr(task, name.removeprefix("task_")) for name in _VERSIONS},
                "fingerprint": mark,
                **{name: count.get(name) for name in _COUNTS},
                "matched": json.dumps(count.get("matched", {})),
            }


def _left_out(facts: StudyFacts) -> Iterator[Row]:
    """Files of finished units that are not here as they were, with what they are known by."""
    for unit in sorted(facts.units.values(), key=lambda unit: unit.id):
        for name, (size, sha) in sorted(unit.files.items()):
            if not name.endswith(("run.json", "train.parquet", "usage.parquet")):
                yield {"unit": unit.id, "file": name, "bytes": size, "sha256": sha}


# ---- files --------------------------------------------------------------------------------------


def _csv(rows: Iterable[Row]) -> str:
    """Rows with the same columns, below a line of names; nothing without rows."""
    listed = list(rows)
    text = io.StringIO()
    if listed:
        writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: plain_cell(v) for k, v in row.items()} for row in listed)
    return text.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _states(path: Path) -> bytes:
    """The states as a new SQLite file, rows in order and errors cut: equal states, equal bytes."""
    tables = "SELECT sql FROM sqlite_master WHERE type='table' AND name IN ('unit', 'test_read')"
    with closing(sqlite3.connect(path)) as before, closing(sqlite3.connect(":memory:")) as after:
        for (statement,) in before.execute(f"{tables} ORDER BY name"):
            after.execute(statement)
        after.execute(f"PRAGMA user_version = {FORMAT}")
        for name in ("unit", "test_read"):
            for row in sorted(before.execute(f"SELECT * FROM {name}").fetchall()):
                values = [first_line(v) if isinstance(v, str) else v for v in row]
                after.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(values))})", values)
        after.commit()
        return after.serialize()
