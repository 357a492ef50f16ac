"""Figures that others published on tasks of the same name: never mixed with what is measured here.

Knows: the installed table. Does not know: a study's results.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mixtune.errors import DataError

NOTE = "published, not measured here"


@dataclass(frozen=True, slots=True)
class Published:
    """One figure: accuracy (0 to 1) of a system on a task, by whom, on what, scored how."""

    task: str
    system: str
    metric: str
    value: float
    source: str
    split: str
    scorer: str
    note: str = NOTE


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    split: str
    scorer: str


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid")
    system: str
    source: str
    accuracy: dict[str, float]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sources: dict[str, _Source]
    figures: list[_Figures]


def published(tasks: Iterable[str]) -> list[Published]:
    """The figures on some tasks, in the order of the tasks.

    Raises:
        DataError: the installed table cannot be used.
    """
    return [row for task in tasks for row in _rows() if row.task == task]


@lru_cache(maxsize=1)
def _rows() -> tuple[Published, ...]:
    path = Path(__file__).parent / "published.yaml"
    try:
        table = _Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return tuple(
            Published(
                task, row.system, "accuracy", value, source.title, source.split, source.scorer
            )
            for row in table.figures
            for source in [table.sources[row.source]]
            for task, value in row.accuracy.items()
        )
    except (OSError, yaml.YAMLError, ValidationError, KeyError) as error:
        raise DataError(
            f"the table of published figures cannot be used: {error}",
            where="mixtune/analysis/published.yaml",
            remedy="install mixtune again",
        ) from error
