"""Contents of a pack: a study's folder without weights and without its datasets' texts.

Knows: which files of a study go in and in what form, what is left out. Does not know: zips
(archive.py), how text is taken out of rows (blind.py), words for people (readme.py).
"""

import json
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mixtune.errors import StoreError
from mixtune.pack.archive import STUDY, TASKS
from mixtune.pack.blind import Blind, first_line, group_codes, pathless
from mixtune.pack.readme import methods, readme
from mixtune.pack.tables import csv_text, dataset_rows, left_out, run_rows, unit_rows
from mixtune.results.study_results import StudyFacts, score_file, unscored
from mixtune.store.folder import PlanRow
from mixtune.store.states import FILE, FORMAT
from mixtune.study.reading import dump_study
from mixtune.study.yaml import write_yaml
from mixtune.tasks.task import Task

_FACTS = ("env", "data", "content", "lengths", "sizes", "flagged", "strength")
_NUMBERS = ("usage", "train")
"""Parquet files that hold numbers and ids only."""


class Contents:
    """The files of a study's pack; everything is read from its folder and the task files.

    Raises:
        StoreError: some answers are not scored by the current parsers.
    """

    def __init__(self, facts: StudyFacts) -> None:
        self.facts = facts
        self.store = facts.store
        missing = unscored(facts)
        if missing:
            raise StoreError(
                f"{len(missing)} sets of answers are not scored by this version's parsers",
                where=str(self.store.folder),
                remedy="mixtune score STUDY.yaml first: a pack holds scores and no answers",
            )
        self.plan = self.store.plan()
        self._tables = dict(self._read())
        self.blind = self._blind()

    def files(self) -> dict[str, bytes]:
        """Path below the study's folder → content."""
        contents = {name: text.encode() for name, text in self._texts()}
        contents["plan.parquet"] = _parquet(self._plan())
        contents[FILE] = self._states()
        contents["items.parquet"] = _parquet(self._items())
        for (name, task), table in self._tables.items():
            contents[name] = _parquet(self._without_text(name, task, table))
        for name in self._plain_tables():
            contents[name] = _parquet(self.store.read_table(name))
        return contents

    # ---- rows -----------------------------------------------------------------------------------

    def _read(self) -> Iterator[tuple[tuple[str, str], pa.Table]]:
        """(file, task) → every table whose rows belong to items: scores, and readings of gold."""
        for row in self.plan:
            if row.kind == "train" or not self.facts.is_done(row):
                continue
            probes = f"{row.folder}/answers/{row.id}/probes.parquet"
            name = probes if row.form == "likelihood" else score_file(self.facts, row)
            if (self.store.folder / name).is_file():
                yield (name, row.task), self.store.read_table(name)

    def _blind(self) -> dict[str, Blind]:
        groups: defaultdict[str, set[str]] = defaultdict(set)
        for (_, task), table in self._tables.items():
            groups[task].update(table["group"].unique().to_pylist())
        codes = group_codes(groups)
        return {name: Blind(self.facts.registry.get(name), codes[name]) for name in codes}

    def _without_text(self, name: str, task: str, table: pa.Table) -> pa.Table:
        blind = self.blind[task]
        return blind.grouped(table) if name.endswith("probes.parquet") else blind.scores(table)

    def _items(self) -> pa.Table:
        """Each item once: id, group, gold as in scores, and the hash of the prompt it is put as."""
        by_split: dict[tuple[str, str], pa.Table] = {}
        # Behind the floors, which have no tokens and so another hash.
        for row in sorted(self.plan, key=lambda row: (row.seed is None, row.cocktail != "base")):
            if row.kind == "answer" and self.facts.is_done(row):
                by_split.setdefault((row.task, row.split), self._of(row))
        tables = [by_split[key] for key in sorted(by_split)]
        return pa.concat_tables(tables) if tables else _ITEM.empty_table()

    def _of(self, row: PlanRow) -> pa.Table:
        answers = f"{row.folder}/answers/{row.id}/predictions.parquet"
        predictions = self.store.read_table(answers)
        hashes = dict(
            zip(*(predictions[c].to_pylist() for c in ("example", "prompt_hash")), strict=True)
        )
        name = score_file(self.facts, row)
        scores = self.blind[row.task].scores(self._tables[name, row.task])
        scores = scores.filter(pc.equal(scores["form"], row.form)).sort_by("example")
        prompts = [hashes[example] for example in scores["example"].to_pylist()]
        columns = scores.select(list(_ITEM_COLUMNS[:-1]))
        return columns.append_column("prompt_hash", pa.array(prompts, pa.string())).cast(_ITEM)

    def _plan(self) -> pa.Table:
        table = self.store.read_table("plan.parquet")
        origins = [pathless(origin) for origin in table["origin"].to_pylist()]
        place = table.schema.get_field_index("origin")
        return table.set_column(place, "origin", pa.array(origins, pa.string()))

    def _plain_tables(self) -> Iterator[str]:
        for name in ("retention.parquet", "judged.parquet"):
            if (self.store.folder / name).is_file():
                yield name
        for folder in dict.fromkeys(row.folder for row in self.plan):
            for path in sorted((self.store.folder / folder).rglob("*.parquet")):
                if path.stem in _NUMBERS:
                    yield path.relative_to(self.store.folder).as_posix()

    # ---- texts ----------------------------------------------------------------------------------

    def _texts(self) -> Iterator[tuple[str, str]]:
        own = list(self._own_tasks())
        study, units = self._study(bool(own)), self.store.units()
        yield STUDY, dump_study(study)
        if own:
            yield TASKS, "---\n".join(write_yaml(_described(task)) for task in own)
        for name in self._json_files():
            yield name, pathless(self.store.read_text(name))
        for task in self._tasks():
            yield f"prompts/{task.name}.yaml", write_yaml(_described(task, source=True))
        yield "runs.csv", csv_text(run_rows(self.facts))
        yield "units.csv", csv_text(unit_rows(self.plan, units))
        yield "datasets.csv", csv_text(dataset_rows(self.facts, self._tasks()))
        yield "left-out.csv", csv_text(left_out(units))
        yield "methods.md", methods(self.facts)
        yield "README.md", readme(self.facts, self._splits())

    def _study(self, own: bool) -> Any:  # noqa: ANN401 - Study; copied with other paths
        study = self.facts.study
        files = (TASKS,) if own else ()
        return study.model_copy(update={"task_files": files, "model": pathless(study.model)})

    def _tasks(self) -> list[Task]:
        """Every dataset that the study asks, trains on or probes."""
        study, registry = self.facts.study, self.facts.registry
        names = [*study.tasks, *study.ingredients, *study.judged, *study.probes]
        names += [study.general] if study.general else []
        names += [row.task for row in self.plan if row.task]
        return [registry.get(name) for name in dict.fromkeys(registry.get(n).name for n in names)]

    def _own_tasks(self) -> Iterator[Task]:
        origin = self.facts.registry.origin_of
        return (task for task in self._tasks() if origin(task.name) != "the package")

    def _json_files(self) -> list[str]:
        folder = self.store.folder
        names = [f"{name}.json" for name in _FACTS if (folder / f"{name}.json").is_file()]
        names += sorted(path.name for path in folder.glob("selection*.json"))
        names += [name for name in ("changes.jsonl",) if (folder / name).is_file()]
        runs = (f"{name}/run.json" for name in dict.fromkeys(row.folder for row in self.plan))
        return names + [name for name in runs if (folder / name).is_file()]

    def _splits(self) -> list[str]:
        answered = {row.split for row in self.facts.answered()}
        return [split for split in ("validation", "test") if split in answered]

    # ---- states ---------------------------------------------------------------------------------

    def _states(self) -> bytes:
        """The states as a new file of SQLite: the same rows give the same bytes."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / FILE
            before = sqlite3.connect(self.store.folder / FILE)
            after = sqlite3.connect(path)
            try:
                _copy_states(before, after)
            finally:
                before.close()
                after.close()
            return path.read_bytes()


def _copy_states(before: sqlite3.Connection, after: sqlite3.Connection) -> None:
    """Tables in the order of their names, rows in that of their values, errors cut."""
    statements = "SELECT sql FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite%'"
    for (statement,) in before.execute(f"{statements} ORDER BY name").fetchall():
        after.execute(statement)
    after.execute(f"PRAGMA user_version = {FORMAT}")
    for name in ("unit", "test_read"):
        rows: list[tuple[Any, ...]] = before.execute(f"SELECT * FROM {name}").fetchall()
        for row in sorted(rows):
            values = [first_line(value) if isinstance(value, str) else value for value in row]
            after.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(values))})", values)
    after.commit()


_ITEM_COLUMNS = ("task", "split", "example", "group", "stratum", "gold", "prompt_hash")
_ITEM = pa.schema([(name, pa.string()) for name in _ITEM_COLUMNS])


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _described(task: Task, source: bool = False) -> dict[str, Any]:
    """A task as its file would say it: rows come from where the study ran."""
    values = task.model_dump(mode="json", exclude_unset=True)
    if source:
        return dict(json.loads(pathless(json.dumps(values))))
    return {**values, "source": {"given": {"what": "the pack: no rows"}}}
