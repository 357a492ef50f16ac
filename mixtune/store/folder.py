"""The folder of one study: plan, files of units, the choice for claims; and what is written where.

    runs/<study>/
      study.yaml  plan.parquet  {env,data,content}.json  state.sqlite  changes.jsonl  lock  workers
      selection.json
      banks/<bank>.safetensors  portions/<portion>.safetensors
      cells/<system>-<slug>/
        run.json  adapter/  train.parquet
        answers/<answer_id>/predictions.parquet
        scores/<score_id>.parquet
      report/

Adapters, train.parquet and predictions are written once; scores and the report can be deleted.
banks/ holds checkpoints until a bank's last adapter is done, portions/ what workers are doing now.
"""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from mixtune.errors import StoreError
from mixtune.records import Selection
from mixtune.store import files, journal
from mixtune.store.journal import KnownFile
from mixtune.store.states import FILE, REPAIR, Unit
from mixtune.store.study_files import PLAN, StudyFiles, diff_lines, json_text, known_text

EXTRA_KINDS = ("probe", "strength")
"""Kinds of units, named after their verbs, that are in no plan of a study and in no table of it."""
NEW_PLAN = "plan.parquet.new"
SELECTION = "selection.json"
PACK = "pack.json"
"""Marks a study's folder that came out of a pack: it can be read, not run."""
FOLDER_NAME = 40
"""Characters of a cell's name in its folder."""

_SELECTION = TypeAdapter(Selection)
LAST_SECOND = 253_402_300_800
"""Seconds from 1970 to the year 10000, the first that no date can have."""
_NO_PLAN = (
    "restore it; or remove it and run the same study again: what is finished and has the same id "
    "is kept"
)
_CHANGES = "changes.jsonl"
_SEALED = (
    "mixtune doctor STUDY.yaml --repair writes it back as it was; to choose anew: mixtune confirm "
    "--again, which is counted"
)
_COMPARED = ("study.yaml", "content.json")
"""The study, and what identifies data, prompts and base. The rest follows from them."""


class _Change(BaseModel, extra="allow"):
    """A line of changes.jsonl."""

    at: float = Field(ge=0, lt=LAST_SECOND)
    event: str = Field(alias="what")
    units: int
    added: list[str]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One unit of a plan, as in plan.parquet.

    `origin`: source of a system trained elsewhere, a folder or a model's name.
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
    def key(self) -> tuple[object, ...]:
        """Identity of the unit apart from its id."""
        return self.kind, self.cocktail, self.seed, self.task, self.split, self.form

    @property
    def label(self) -> str:
        """The unit's name in messages."""
        seed = "" if self.seed is None else f" seed {self.seed}"
        items = f" {self.task}/{self.split}/{self.form}" if self.kind != "train" else ""
        return f"{self.cocktail}{seed}{items}"


@dataclass(frozen=True, slots=True)
class Folders:
    """Folders of a command: data (None: the hub) and runs."""

    data: Path | None
    runs: Path

    def store(self, study: str) -> "Store":
        """Store of a study, by its name."""
        return Store(self.runs / study)


class Store(StudyFiles):
    """One study's folder: states of its units, and its files."""

    @property
    def exists(self) -> bool:
        """True once a study was planned here."""
        return (self.folder / PLAN).is_file()

    def require(self) -> None:
        """Raise a StoreError where nothing was planned."""
        if not self.exists:
            raise StoreError(
                "no study here yet",
                where=str(self.folder),
                remedy="mixtune run STUDY.yaml (or --runs-dir, if it ran elsewhere)",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; the kernel frees it when the process dies.

        Raises:
            StoreError: another process holds it, it cannot be written, or it holds no study.
        """
        self._refuse_other_content()
        with files.hold(self.folder / "lock"):
            with files.open_lock(self.folder / "workers") as workers:
                # Orphans of a killed process end within a moment; wait until the last has.
                fcntl.flock(workers, fcntl.LOCK_EX)
            yield

    def _refuse_other_content(self) -> None:
        with files.storage_errors(self.folder, "cannot use this folder"):
            names = {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
        foreign = sorted(names - {"lock", "workers"})
        if foreign and not names & {PLAN, FILE}:
            raise StoreError(
                "this folder holds something else than a study",
                where=str(self.folder),
                found=", ".join(foreign),
                remedy="give the study another name, or choose another --runs-dir",
            )
        if self.packed:
            raise StoreError(
                "this is a pack, which holds scores and nothing that could be run or scored again",
                where=str(self.folder),
                remedy="mixtune results, analyze, compare and report read it; to run the study "
                "anew, copy its study.yaml elsewhere",
            )

    @property
    def packed(self) -> bool:
        """True for an unpacked pack: scores without answers, weights and data."""
        return (self.folder / PACK).is_file()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Mark this process as a worker that writes here, until the body ends."""
        with files.open_lock(self.folder / "workers") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    def save_plan(
        self,
        rows: Sequence[PlanRow],
        study_yaml: str,
        facts: Mapping[str, object],
        changes: Sequence[str] = (),
    ) -> list[str]:
        """Save a plan and add its new units as `planned`; known units keep their state.

        A plan may leave known units out as long as it adds none. `facts`: name → JSON value, stored
        as `<name>.json`. `changes`: of the data, for the message if the plan is refused.

        Returns:
            A line for each file of the plan that was missing or changed and is written again.

        Raises:
            StoreError: a known unit would get another id, or units are added while others are left
                out; nothing is written.
        """
        texts = _texts(study_yaml, facts)
        before = self.plan() if self.exists else []
        rows = self._extended(before, rows, texts, changes)
        with self._database() as db:
            db.executemany(
                "INSERT OR IGNORE INTO unit (id, kind, system, label, state) "
                "VALUES (?, ?, ?, ?, 'planned')",
                [(row.id, row.kind, row.system, row.label) for row in rows],
            )
        entries = journal.read(self.folder)
        if not self.known_files():
            self.know_files(list(chain(*entries.known.values())))
        if not entries.whole:
            self.renew_journal()
        known = {row.id for row in before}
        added = [row for row in rows if row.id not in known]
        if added or not before:
            self._write_plan(before, added, rows, texts)
            return []
        restored = self.restore(texts) if len(rows) == len(before) else []
        if not self.known_files():  # planned by a version that kept no checksums
            self.know_plan([name for name in texts if (self.folder / name).is_file()])
        return restored

    def _write_plan(
        self,
        before: Sequence[PlanRow],
        added: Sequence[PlanRow],
        rows: Sequence[PlanRow],
        texts: Mapping[str, str],
    ) -> None:
        """Write the files of a plan, their checksums first.

        Readers accept both versions until the end. The plan is last: a kill before it repeats all
        of this, a kill after it nothing.
        """
        self._log_change(before, added)
        self.know_files([known_text(name, text) for name, text in texts.items()])
        for name, text in texts.items():
            self.write_text(name, text)
        with files.storage_errors(self.folder / PLAN, "cannot write"):
            self.write_rows(NEW_PLAN, PlanRow, rows)
            self.know_files([KnownFile(PLAN, *files.fingerprint(self.folder / NEW_PLAN))])
            (self.folder / NEW_PLAN).replace(self.folder / PLAN)
        self.know_plan(texts)

    def preview(
        self,
        rows: Sequence[PlanRow],
        study_yaml: str,
        facts: Mapping[str, object],
        changes: Sequence[str] = (),
    ) -> int:
        """Count the units of a plan that are not done yet, refused as by `save_plan`; no write."""
        if not self.exists:
            return len(rows)
        texts = _texts(study_yaml, facts)
        rows = self._extended(self.plan(), rows, texts, changes)
        units = self.units()
        return sum(row.id not in units or units[row.id].state != "done" for row in rows)

    def _extended(
        self,
        before: Sequence[PlanRow],
        rows: Sequence[PlanRow],
        texts: Mapping[str, str],
        changes: Sequence[str],
    ) -> list[PlanRow]:
        """Rows of a plan, with known external systems, extra units and runs for claims."""
        if before:
            self.units()  # raises where the states are lost: everything would be done again
        keys, claimed = {row.key for row in rows}, claimed_seeds(self.selection())
        unnamed = (r for r in before if r.origin or r.kind in EXTRA_KINDS or r.seed in claimed)
        extended = [*rows, *(row for row in unnamed if row.key not in keys)]
        self._refuse_rewriting(before, extended, texts, changes)
        return extended

    def _refuse_rewriting(
        self,
        before: Sequence[PlanRow],
        rows: Sequence[PlanRow],
        texts: Mapping[str, str],
        changes: Sequence[str],
    ) -> None:
        """A study is extended, so that study.yaml describes all results that are here."""
        ids = {row.key: row.id for row in before}
        changed = [row for row in rows if ids.get(row.key, row.id) != row.id]
        if changed:
            first = changed[0]
            difference = self._difference(texts) or [
                "the study file is the same: data, prompts or base model changed"
            ]
            raise StoreError(
                f"{len(changed)} results kept here would get another id, the first: "
                f"{first.label} ({ids[first.key]} → {first.id})\n"
                + "\n".join(f"    {line}" for line in [*changes, *difference]),
                where=str(self.folder),
                wanted="the study as it was, or one that only adds runs, seeds or tasks",
                remedy="give the changed study another name, or choose another --runs-dir",
            )
        old, new = {row.id for row in before}, {row.id for row in rows}
        if old - new and new - old:
            first = next(row for row in before if row.id not in new)
            raise StoreError(
                f"this plan adds {len(new - old)} units and leaves out {len(old - new)} "
                f"that are kept here, the first: {first.label}",
                where=str(self.folder),
                wanted="a study that only adds",
                remedy="name the seeds, tasks and cocktails that are kept as well as the new ones",
            )

    def _difference(self, texts: Mapping[str, str]) -> list[str]:
        """Line-by-line difference between the stored study and the new one."""
        return [
            line
            for name in _COMPARED
            if name in texts and (self.folder / name).is_file()
            for line in diff_lines((self.read_text(name), "kept"), (texts[name], "asked"), name)
        ]

    def _log_change(self, before: Sequence[PlanRow], added: Sequence[PlanRow]) -> None:
        trained = {r.label for r in added if r.kind == "train"}
        external = {f"{r.cocktail} ({r.origin})" for r in added if r.origin}
        self.log_event("extended" if before else "planned", len(added), sorted(trained | external))

    def log_event(self, event: str, units: int, added: Sequence[str] = ()) -> None:
        """Add a line to the log of changes, which status shows."""
        entry = {"at": time.time(), "what": event, "units": units, "added": list(added)}
        log = self.read_text(_CHANGES) if (self.folder / _CHANGES).exists() else ""
        self.write_text(_CHANGES, log + json.dumps(entry) + "\n")

    def plan(self) -> list[PlanRow]:
        """Units of the study as last planned."""
        self.require()
        self.check(PLAN, _NO_PLAN)
        return self.read_plan()

    def read_plan(self) -> list[PlanRow]:
        """`plan`, whatever its checksum is."""
        try:
            rows = self.read_rows(PLAN)
            return [PlanRow(**{**row, "ingredients": tuple(row["ingredients"])}) for row in rows]
        except (StoreError, TypeError, KeyError) as error:
            raise StoreError(
                "this is not the plan of a study, or it is damaged",
                where=str(self.folder / PLAN),
                found=str(error.__cause__ or error),
                remedy=_NO_PLAN,
            ) from error

    def changes(self) -> list[dict[str, Any]]:
        """Log of what was added to the study, and when."""
        if not (self.folder / _CHANGES).exists():
            return []
        try:
            lines = self.read_text(_CHANGES).splitlines()
            return [_Change.model_validate_json(line).model_dump(by_alias=True) for line in lines]
        except ValidationError as error:
            raise StoreError(
                f"a line is not an entry of the log: {error.errors()[0]['msg']}",
                where=str(self.folder / _CHANGES),
                remedy="fix or remove the line; nothing else depends on it",
            ) from error

    def units(self) -> dict[str, Unit]:
        """State of every unit by id; a StoreError where a study is planned and they are lost."""
        units = super().units()
        if self.exists and not units:
            raise StoreError(
                "the states of the study's units are gone: what is finished is not known",
                where=str(self.folder / FILE),
                remedy=REPAIR,
            )
        return units

    def current_units(self) -> tuple[dict[str, Unit], list[Unit]]:
        """`units` as `recover` would leave them where no process is at work, and those cut off."""
        units = self.units()
        if all(unit.state != "running" for unit in units.values()):
            return units, []
        if files.is_held(self.folder / "lock"):
            return units, []
        units = self.units()  # again: the run may have ended in between
        cut_off = [unit for unit in units.values() if unit.state == "running"]
        units |= {unit.id: replace(unit, state="planned", progress=0.0) for unit in cut_off}
        return units, cut_off

    def recover(self) -> tuple[list[Unit], list[Unit]]:
        """Release interrupted units, check finished ones, remove partial files; under the lock.

        Returns interrupted units, and finished ones with damaged files or a damaged adapter.
        """
        units = self.units().values()
        interrupted = [u for u in units if u.state == "running"]
        damaged = [u for u in units if u.state == "done" and self.damage(u)]
        self._refuse_wrong_checksums(damaged)
        # Answers of a damaged adapter belong to the adapter that is gone.
        lost = {u.system for u in damaged if u.kind == "train"}
        damaged += [u for u in units if u.system in lost and u.state == "done" and u not in damaged]
        self.release_running()
        for unit in damaged:
            self.discard(unit.id)
        files.sweep(self.folder)
        self.drop_portions()
        return interrupted, damaged

    def _refuse_wrong_checksums(self, damaged: Sequence[Unit]) -> None:
        """Refuse to do units again whose files are as the journal has them."""
        if not damaged:
            return
        entries = journal.read(self.folder)
        right = [unit.label for unit in damaged if entries.verified(self.folder, unit.id)]
        if right:
            raise StoreError(
                f"checksums of {len(right)} finished units are not those of the journal, which fit "
                "their files",
                where=str(self.folder / FILE),
                found=right[0],
                remedy=REPAIR,
            )

    def damage(self, unit: Unit) -> list[str]:
        """Files of a finished unit that are missing or differ from what was written."""
        return [n for n, known in unit.files.items() if not files.matches(self.folder / n, known)]

    # ---- what was chosen for claims -------------------------------------------------------------

    def selection(self) -> Selection | None:
        """The choice of `mixtune confirm`, None where nothing was chosen.

        Raises:
            StoreError: the file was changed or removed since it was written.
        """
        self.check(SELECTION, _SEALED)
        if not (self.folder / SELECTION).is_file():
            return None
        try:
            return _SELECTION.validate_json(self.read_text(SELECTION))
        except ValidationError as error:
            first = error.errors()[0]
            raise StoreError(
                f"what was chosen cannot be read: {first['msg']}",
                where=f"{self.folder / SELECTION}, {'.'.join(map(str, first['loc']))}",
                remedy="restore the file: what was chosen before the fresh runs cannot be made up "
                "afterwards",
            ) from error

    def save_selection(self, selection: Selection, seal: str) -> None:
        """Write the choice, and its digest in the log of changes.

        The one before, if any, stays beside it under a number.
        """
        if selection.again:
            self.write_text(f"selection-{selection.again}.json", self.read_text(SELECTION))
        text = json_text(asdict(selection))
        # Recorded first: a choice whose file is lost is restored, not made anew.
        self.know_files([known_text(SELECTION, text)], alone=True)
        self.write_text(SELECTION, text)
        chosen = [f"{choice.target}: {choice.cocktail}" for choice in selection.choices]
        self.log_event("chosen", 0, [*chosen, f"seal {seal}"])


def claimed_seeds(selection: Selection | None) -> set[int]:
    """Seeds of runs that only claims use."""
    return {*selection.fresh, *selection.spent} if selection else set()


def _texts(study_yaml: str, facts: Mapping[str, object]) -> dict[str, str]:
    """Files beside a plan, by name."""
    return {"study.yaml": study_yaml, **{f"{n}.json": json_text(v) for n, v in facts.items()}}
