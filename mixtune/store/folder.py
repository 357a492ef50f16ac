"""The only module that reads or writes results: one study's folder.

    runs/<study>/
      study.yaml  plan.parquet  {env,data,content}.json  state.sqlite  changes.jsonl  lock  workers
      banks/<bank>.safetensors
      cells/<system>-<slug>/
        run.json  adapter/  train.parquet
        answers/<answer_id>/predictions.parquet
        scores/<score_id>.parquet
      report/

Facts (adapter, train.parquet, predictions) are written once, whole files at a time (durable.py).
A unit of work (one adapter, one set of answers) becomes `done` last (states.py), with the size and
SHA-256 of each of its files. Derived files can be deleted. What a bank of adapters in training
needs to go on lies in banks/ (execution/checkpoint.py) until the last of them is done.

Knows: files, rows, plans, who writes. Does not know: how anything is computed, SQL.
"""

import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixtune.errors import StoreError, shorten
from mixtune.records import schema_of
from mixtune.store import files as durable
from mixtune.store.states import FILE, States, Unit
from mixtune.study.yaml import read_yaml

ASIDE = ("probe", "strength")
"""Kinds of units, named after their verbs, that are in no plan of a study and in no table of it."""
SELECTION = "selection.json"
PACK = "pack.json"
"""Stands in a study's folder that came out of a pack: it is read and never run."""
LINES = 40
"""Lines of a difference that are shown."""
_COMPARED = ("study.yaml", "content.json")
"""What was asked; and what data, prompts and base are known by. The rest follows from them."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One unit of a plan as kept in plan.parquet: the key of a unit, its id, and its system.

    `origin`: where a system came from that the study did not train: a folder or a model's name.
    `system_kind`: trained, merged, base, majority, api, adapter or model. `ingredients`: of the
    cell; empty for a system that was not trained here. `note`: what sets the cell apart from others
    of the same ingredients; `lr`: its learning rate where that is not the study's. `strength`: of
    the adapter; `scaled_from`: the cocktail that it is of, where the strength is another one.
    """

    kind: str
    id: str
    system: str
    folder: str
    cocktail: str
    seed: int | None
    task: str
    split: str
    form: str
    items: int
    tokens: int
    items_digest: str
    origin: str = ""
    system_kind: str = ""
    ingredients: tuple[str, ...] = ()
    note: str = ""
    lr: float | None = None
    strength: float = 1.0
    scaled_from: str = ""

    @property
    def key(self) -> tuple[str, str, int | None, str, str, str]:
        """What the unit is, apart from the id that its content gives it."""
        return (self.kind, self.cocktail, self.seed, self.task, self.split, self.form)


def _plan_row(raw: dict[str, Any]) -> PlanRow:
    return PlanRow(**{**raw, "ingredients": tuple(raw["ingredients"])})


def slug(text: str, limit: int = 40) -> str:
    """A name fit for a folder: [a-z0-9-], at most `limit` characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].rstrip("-")


class Store(States):
    """One study's folder: the states of its units, and its files."""

    # ---- opening ----------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a study was ever planned here."""
        return (self.folder / "plan.parquet").is_file()

    def require(self) -> None:
        """Refuse to read a folder that holds no study.

        Raises:
            StoreError: nothing was planned here.
        """
        if not self.exists:
            raise StoreError(
                "no study here yet",
                where=str(self.folder),
                remedy="mixtune run STUDY.yaml (or --runs-dir, if it ran elsewhere)",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; the kernel gives it back when the process dies.

        Raises:
            StoreError: another process holds it, the folder cannot be written, or it holds
                something that is no study, or a pack.
        """
        self._refuse_foreign()
        self._refuse_a_pack()
        with durable.hold(self.folder / "lock"):
            with (self.folder / "workers").open("a+") as workers:
                # Orphans of a killed process end within a moment; wait until the last has.
                fcntl.flock(workers, fcntl.LOCK_EX)
            yield

    def _refuse_foreign(self) -> None:
        """Nobody's files are swept, and no study is put among them."""
        with durable.refusing(self.folder, "cannot use this folder"):
            names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        foreign = sorted(names - {"lock", "workers"})
        if foreign and not names & {"plan.parquet", FILE}:
            raise StoreError(
                "this folder holds something else than a study",
                where=str(self.folder),
                found=", ".join(foreign),
                wanted="an empty folder, or one that mixtune made",
                remedy="give the study another name, or choose another --runs-dir",
            )

    @property
    def packed(self) -> bool:
        """Whether this is a pack: scores without answers, weights and data."""
        return (self.folder / PACK).is_file()

    def _refuse_a_pack(self) -> None:
        if self.packed:
            raise StoreError(
                "this is a pack, which holds scores and nothing that could be run or scored again",
                where=str(self.folder),
                remedy="mixtune results, analyze, compare and report read it; to run the study "
                "anew, copy its study.yaml elsewhere",
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Say that a worker process is writing here, until it ends."""
        with (self.folder / "workers").open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    # ---- plan -------------------------------------------------------------------------------

    def save_plan(
        self,
        rows: Sequence[PlanRow],
        study_yaml: str,
        facts: Mapping[str, object],
        why: Sequence[str] = (),
    ) -> None:
        """Take a plan in: add its new units as `planned`; units already known keep their state.

        Args:
            rows: the units. A plan may leave known ones out as long as it adds none.
            study_yaml: the resolved study.
            facts: name → JSON value, kept as `<name>.json` beside the plan.
            why: what is known to have changed, said where that is refused.

        Raises:
            StoreError: a unit that is already there would get another id, or units are added
                while others are left out; nothing is written.
        """
        files = {"study.yaml": study_yaml, **_as_files(facts)}
        before, rows = self._beside(rows, files, why)
        with self._state() as db:
            db.executemany(
                "INSERT OR IGNORE INTO unit (id, kind, system, label, state) "
                "VALUES (?, ?, ?, ?, 'planned')",
                [(row.id, row.kind, row.system, _label(row)) for row in rows],
            )
        known = {row.id for row in before}
        added = [row for row in rows if row.id not in known]
        if added or not before:
            # The plan is last: a kill before it repeats all of this, a kill after it nothing.
            self._log_change(before, added)
            for name, text in files.items():
                self.write_text(name, text)
            self.write_rows("plan.parquet", PlanRow, rows)
        elif len(rows) == len(before):
            for name in files:
                if not self._readable(name):
                    self.write_text(name, files[name])

    def preview(
        self,
        rows: Sequence[PlanRow],
        study_yaml: str,
        facts: Mapping[str, object],
        why: Sequence[str] = (),
    ) -> int:
        """How many units of a plan are not done yet; writes nothing.

        Raises:
            StoreError: what `save_plan` of the same would refuse.
        """
        if not self.exists:
            return len(rows)
        self._beside(rows, {"study.yaml": study_yaml, **_as_files(facts)}, why)
        units = self.units()
        return sum(row.id not in units or units[row.id].state != "done" for row in rows)

    def _beside(
        self, rows: Sequence[PlanRow], files: Mapping[str, str], why: Sequence[str]
    ) -> tuple[Sequence[PlanRow], Sequence[PlanRow]]:
        """What is planned here, and the rows with what a study keeps; refused where they differ."""
        before = self.plan() if self.exists else []
        if before:
            self.units()  # raises where the states are lost: everything would be done again
        # Systems that were brought in, units aside and runs for claims are in no study file; they
        # are kept.
        asked, fresh = {row.key for row in rows}, self._fresh()
        more = (r for r in before if r.origin or r.kind in ASIDE or r.seed in fresh)
        rows = [*rows, *(row for row in more if row.key not in asked)]
        self._refuse_changes(before, rows, files, why)
        return before, rows

    def _fresh(self) -> set[int]:
        """Seeds of runs that claims alone are read on (selection.py)."""
        if not (self.folder / SELECTION).is_file():
            return set()
        kept = self.read_value(SELECTION)
        return {*kept["fresh"], *kept["spent"]}

    def _refuse_changes(
        self,
        before: Sequence[PlanRow],
        rows: Sequence[PlanRow],
        files: Mapping[str, str],
        why: Sequence[str],
    ) -> None:
        """A study is extended, never rewritten under its results."""
        ids = {row.key: row.id for row in before}
        changed = [row for row in rows if ids.get(row.key, row.id) != row.id]
        if not changed:
            self._refuse_a_swap(before, rows)
            return
        raise StoreError(
            f"{len(changed)} results kept here would get another id, the first: "
            f"{_label(changed[0])} ({ids[changed[0].key]} → {changed[0].id})\n"
            + "".join(f"    {line}\n" for line in why)
            + (
                self._difference(files)
                or "    the study file is the same: data, prompts or base model changed"
            ),
            where=str(self.folder),
            wanted="the study as it was, or one that only adds runs, seeds or tasks",
            remedy="give the changed study another name, or choose another --runs-dir",
        )

    def _difference(self, files: Mapping[str, str]) -> str:
        """What is kept here against what is asked, line by line."""
        lines: list[str] = []
        for name in _COMPARED:
            if name in files and (self.folder / name).is_file():
                kept, asked = self.read_text(name).splitlines(), files[name].splitlines()
                lines += unified_diff(kept, asked, f"{name} kept", f"{name} asked", "", "", 0, "")
        shown = lines[:LINES]
        shown += [f"… and {len(lines) - LINES} more lines"] if len(lines) > LINES else []
        return "\n".join(f"    {line}" for line in shown)

    def _refuse_a_swap(self, before: Sequence[PlanRow], rows: Sequence[PlanRow]) -> None:
        """Otherwise study.yaml would no longer say what the results here were made by."""
        known, asked = {row.id for row in before}, {row.id for row in rows}
        if known - asked and asked - known:
            first = next(row for row in before if row.id not in asked)
            raise StoreError(
                f"this plan adds {len(asked - known)} units and leaves out {len(known - asked)} "
                f"that are kept here, the first: {_label(first)}",
                where=str(self.folder),
                wanted="a study that only adds",
                remedy="name the seeds, tasks and cocktails that are kept as well as the new ones",
            )

    def _log_change(self, before: Sequence[PlanRow], added: Sequence[PlanRow]) -> None:
        entry = {
            "at": time.time(),
            "what": "extended" if before else "planned",
            "units": len(added),
            "added": sorted(
                {_label(r) for r in added if r.kind == "train"}
                | {f"{r.cocktail} ({r.origin})" for r in added if r.origin}
            ),
        }
        self.write_text("changes.jsonl", self._changes() + json.dumps(entry) + "\n")

    def _changes(self) -> str:
        kept = (self.folder / "changes.jsonl").exists()
        return self.read_text("changes.jsonl") if kept else ""

    def plan(self) -> list[PlanRow]:
        """The units of the study as last planned."""
        self.require()
        path = self.folder / "plan.parquet"
        try:
            return [_plan_row(row) for row in self.read_rows("plan.parquet")]
        except (StoreError, TypeError, KeyError) as error:
            raise StoreError(
                "this is not the plan of a study, or it is damaged",
                where=str(path),
                found=str(error.__cause__ or error),
                remedy="restore it; or remove it and run the same study again: what is finished "
                "and has the same id is kept",
            ) from error

    def changes(self) -> list[dict[str, Any]]:
        """What was added to the study, and when."""
        try:
            return [json.loads(line) for line in self._changes().splitlines()]
        except ValueError as error:
            raise StoreError(
                f"a line is not JSON: {error}",
                where=str(self.folder / "changes.jsonl"),
                remedy="mend or remove the line; nothing else depends on it",
            ) from error

    # ---- state ------------------------------------------------------------------------------

    def units(self) -> dict[str, Unit]:
        """State of every unit, by id. Usable while another process runs.

        Raises:
            StoreError: a study is planned here and no state of it is known.
        """
        found = super().units()
        if self.exists and not found:
            raise StoreError(
                "the states of the study's units are gone: what is finished is not known",
                where=str(self.folder / FILE),
                wanted="the file as mixtune wrote it",
                remedy="restore it, or move the folder away to begin anew",
            )
        return found

    def recover(self) -> tuple[list[Unit], list[Unit]]:
        """After the lock is held: give back units of a dead process, recheck finished ones.

        Returns:
            The units given back, and the finished ones whose files (or whose
            adapter's files) are gone or changed; both are planned again.
        """
        units = self.units().values()
        stale = [u for u in units if u.state == "running"]
        broken = [u for u in units if u.state == "done" and self.damage(u)]
        # What a broken adapter answered belongs to the adapter that is gone.
        lost = {u.system for u in broken if u.kind == "train"}
        broken += [u for u in units if u.system in lost and u.state == "done" and u not in broken]
        self.release_running()
        for unit in broken:
            self.discard(unit.id)
        durable.sweep(self.folder)
        self.free_claims()
        return stale, broken

    def damage(self, unit: Unit) -> list[str]:
        """Files of a finished unit that are missing or differ from what was written."""
        files = unit.files.items()
        return [name for name, known in files if not durable.matches(self.folder / name, *known)]

    # ---- files ------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole text file atomically."""
        return durable.write_whole(
            self.folder / name, lambda path: path.write_text(text, encoding="utf-8")
        )

    def write_rows(self, name: str, row_type: type, rows: Sequence[Any]) -> Path:
        """Write rows of one type as a parquet file, atomically, with checksums in it."""
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema_of(row_type))
        options = {"compression": "zstd", "write_page_checksum": True}
        return durable.write_whole(
            self.folder / name, lambda path: pq.write_table(table, path, **options)
        )

    def read_text(self, name: str) -> str:
        """A text file.

        Raises:
            StoreError: missing or unreadable.
        """
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.folder / name, error) from error

    def read_value(self, name: str) -> Any:  # noqa: ANN401 - JSON or YAML
        """The value in a JSON or YAML file.

        Raises:
            StoreError: missing, unreadable or malformed.
        """
        text = self.read_text(name)
        try:
            yaml = name.endswith(".yaml")
            value = read_yaml(text, name, StoreError).value if yaml else json.loads(text)
            if name in ("study.yaml", "run.json") and not isinstance(value, dict):
                raise ValueError("not a mapping")
            return value
        except (ValueError, StoreError, RecursionError) as error:
            raise _unreadable(self.folder / name, error) from error

    def _readable(self, name: str) -> bool:
        try:
            self.read_value(name)
        except StoreError:
            return False
        return True

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a parquet file as dictionaries."""
        rows: list[dict[str, Any]] = self.read_table(name).to_pylist()
        return rows

    def read_table(self, name: str) -> pa.Table:
        """A parquet file as an Arrow table.

        Raises:
            StoreError: missing or damaged.
        """
        path = self.folder / name
        try:
            return pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error

    def drop_scores(self, folder: str) -> None:
        """Scores of a system go when one of its sets of answers is made again; they are derived."""
        shutil.rmtree(self.folder / folder / "scores", ignore_errors=True)

    @property
    def states_folder(self) -> Path:
        """Where `train.top_layers` keeps what the layers below compute; it can be deleted."""
        return self.folder / "states"

    def bank_file(self, bank: str) -> Path:
        """Where a bank of adapters in training keeps what it needs to go on."""
        return self.folder / "banks" / f"{bank}.safetensors"

    def banks(self) -> list[str]:
        """Names of the banks that have such a file."""
        return sorted(path.stem for path in (self.folder / "banks").glob("*.safetensors"))

    def drop_bank(self, bank: str) -> None:
        """The bank is empty, or its file cannot be used."""
        with durable.refusing(self.bank_file(bank), "cannot remove"):
            self.bank_file(bank).unlink(missing_ok=True)

    def new_folder(self, name: str) -> AbstractContextManager[Path]:
        """A folder to fill that takes its place when complete; what was there before goes."""
        return durable.whole_folder(self.folder / name)


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"cannot read: {shorten(str(error))}",
        where=str(path),
        wanted="the file as it was written",
        remedy="mixtune run, which makes again what is missing or damaged (mixtune score: scores)",
    )


def _as_files(facts: Mapping[str, object]) -> dict[str, str]:
    return {f"{name}.json": json.dumps(value, indent=1) + "\n" for name, value in facts.items()}


def _label(row: PlanRow) -> str:
    seed = "" if row.seed is None else f" seed {row.seed}"
    what = f" {row.task}/{row.split}/{row.form}" if row.kind != "train" else ""
    return f"{row.cocktail}{seed}{what}"
