"""A plan: systems with their sets of answers, and the units of work they are made of.

Knows: names and folders of systems. Does not know: how ids, mixes and token counts come about.
"""

from dataclasses import dataclass
from typing import Literal

from mixtune.models.files import BaseModelFiles
from mixtune.planning.names import SystemKind
from mixtune.records import Form, MixRow, Split
from mixtune.store.folder import FOLDER_NAME, PlanRow
from mixtune.study.design import title
from mixtune.study.fields import slug
from mixtune.study.spec import RunLength, Study


@dataclass(frozen=True, slots=True)
class Summand:
    """A run whose adapter is part of a merged one: its id and folder, and its weight."""

    system: str
    folder: str
    weight: float


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """One set of answers: a system on the items of one task and split, in one form.

    `likelihood`: gold answers are read to it, and it gives none (planning/probes.py).
    """

    id: str
    task: str
    split: Split
    form: Form | Literal["likelihood"]
    items: int
    tokens: int
    items_digest: str
    max_new_tokens: int
    """Of a generated answer; 0 where none is generated, or how long one may be is open."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One system: a cell with a seed, or a baseline. `system` is its train_id, "" if unresolved.

    `tokens`: tokens that pass through the model in training, shared headers counted each time.
    `course`: how long it is trained. `note`: what sets its cell apart from others of the same
    cocktail. `label` and `origin`: what a system that was brought in is called, and where it came
    from. `of` and `strength`: the folder of the run whose adapter answers, where that is not its
    own, and how strongly; `scaled_from`: that run's cell. `parts`: the runs whose adapters are
    added up for it.
    """

    system: str
    kind: SystemKind
    cocktail: tuple[str, ...]
    seed: int | None
    mix: tuple[MixRow, ...]
    answers: tuple[AnswerPlan, ...]
    tokens: int
    label: str = ""
    origin: str = ""
    course: RunLength | None = None
    note: str = ""
    of: str = ""
    strength: float = 1.0
    scaled_from: str = ""
    parts: tuple[Summand, ...] = ()

    @property
    def name(self) -> str:
        """The cell, what the baseline is called, or the label of a system brought in."""
        if self.kind in ("trained", "merged"):
            return title(self.cocktail, self.note)
        return self.label or self.kind

    @property
    def title(self) -> str:
        """Name and seed, for messages."""
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder below the study's."""
        seed = "" if self.seed is None else f" s{self.seed}"
        return f"cells/{self.system}-{slug(f'{slug(self.name, FOLDER_NAME)}{seed}', FOLDER_NAME)}"

    def answers_folder(self, answer: AnswerPlan) -> str:
        """Folder of one set of answers."""
        return f"{self.folder}/answers/{answer.id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a study, in the order in which they are done. `files` is None when unresolved."""

    study: Study
    files: BaseModelFiles | None
    runs: tuple[RunPlan, ...]

    def rows(self) -> list[PlanRow]:
        """One row per unit of work: adapters and sets of answers."""
        rows = []
        for run in self.runs:
            if run.kind == "trained":
                rows.append(plan_row(run, None))
            rows += [plan_row(run, answer) for answer in run.answers]
        return rows


def plan_row(run: RunPlan, answer: AnswerPlan | None) -> PlanRow:
    """A unit of work as the store keeps it: an adapter (None), or a set of answers."""
    return PlanRow(
        kind="answer" if answer else "train",
        id=answer.id if answer else run.system,
        system=run.system,
        folder=run.folder,
        cocktail=run.name,
        seed=run.seed,
        task=answer.task if answer else "",
        split=answer.split if answer else "",
        form=answer.form if answer else "",
        items=answer.items if answer else sum(row.rows_got for row in run.mix),
        tokens=answer.tokens if answer else run.tokens,
        items_digest=answer.items_digest if answer else "",
        origin=run.origin,
        system_kind=run.kind,
        ingredients=run.cocktail,
        note=run.note,
        lr=run.course.lr if run.course else None,
        strength=run.strength,
        scaled_from=run.scaled_from,
    )
