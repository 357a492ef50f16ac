"""Options of a run, the setting that bits depend on, and portions: work of a worker as one file.

    <portion>.safetensors
      header    JSON as bytes: settings, runs, items
      tokens    int32: prompt and answer of each distinct row, row after row
      names     JSON as bytes: ingredient and example id of each row
      lengths   int32, (rows, 2): tokens of prompt and answer
      order.ID  int32: positions of the rows of run ID in training order
      metadata  `sha256` over all of it

With the base model's weights and the study's folder it is all that a worker needs, on whatever
machine. Items hold no gold answer: a worker cannot know which answer is right.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mixtune.errors import StoreError, shorten
from mixtune.evaluation.answers import Questions
from mixtune.identity import digest_of_arrays
from mixtune.models.files import BaseModelFiles
from mixtune.planning.runs import AnswerPlan, RunPlan
from mixtune.records import Query
from mixtune.store.files import write_whole
from mixtune.study.spec import Budget, EvalSpec, TrainSpec
from mixtune.tokens import Row

CHECKPOINT_EVERY = 60.0
"""Seconds between two checkpoints of a bank."""
FORMAT = 1
"""Version of a portion's file; another one is refused."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run, in no id; None lets mixtune choose.

    `workers`: processes. `bank`: adapters trained side by side in each of them.
    `checkpoint_every`: seconds between two checkpoints of a bank; 0 is after every step.
    """

    workers: int | None = None
    bank: int | None = None
    checkpoint_every: float = CHECKPOINT_EVERY


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that an adapter's bits depend on, apart from its id and its bank's members."""

    slots: int
    threads: int
    device: str
    compute: str
    torch: str
    mixtune: str

    @classmethod
    def here(cls, slots: int, threads: int, device: str, compute: str) -> "Setting":
        """The setting of this installation."""
        versions = version("torch"), version("mixtune")
        return cls(slots, threads, device, compute, *versions)

    def differs(self, before: Mapping[str, Any]) -> str:
        """Differences from an earlier setting in words, empty where they are equal."""
        now = asdict(self).items()
        changed = [(k, before.get(k), value) for k, value in now if before.get(k) != value]
        return ", ".join(f"{key} {old}, now {new}" for key, old, new in changed)


@dataclass(frozen=True, slots=True)
class GoldItem:
    """An item whose gold answer is read: its group, and its position in the portion's rows."""

    group: str
    row: int


@dataclass(frozen=True, slots=True)
class AnswerCount:
    """Number of times that an answer occurs in a task's train split, for the majority floor."""

    stratum: str
    target: str
    cue: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A portion without token ids.

    `runs`: one system to be answered; or, where the portion `trains`, the members of a bank in the
    order in which they take slots, finished ones among them where it `resumes` from a checkpoint.
    `queries` and `gold`: of the sets of answers that are missing, by `items_key`. `train_answers`:
    by task, where the majority class answers.
    """

    format: int = FORMAT
    name: str
    trains: bool
    resumes: bool
    base: BaseModelFiles
    train: TrainSpec
    evaluate: EvalSpec
    budget: Budget
    runs: tuple[RunPlan, ...]
    queries: dict[str, tuple[Query, ...]]
    gold: dict[str, tuple[GoldItem, ...]]
    train_answers: dict[str, tuple[AnswerCount, ...]]


_HEADER = TypeAdapter(Header)
_NAMES = TypeAdapter(list[tuple[str, str]])
_ORDER = "order."


@dataclass(frozen=True, kw_only=True)
class Portion(Header):
    """The next work of one worker, whole.

    `rows`: distinct rows; runs of a bank share most of them. `order`: system → positions of its
    rows in training order.
    """

    rows: tuple[Row, ...]
    order: Mapping[str, Sequence[int]]

    def training_rows(self, run: RunPlan) -> list[Row]:
        """Rows of a run in training order."""
        return [self.rows[position] for position in self.order[run.system]]

    def questions(self, answer: AnswerPlan) -> Questions:
        """Questions of a set of answers that was missing when the portion was made."""
        return Questions(answer.task, answer.split, self.queries[items_key(answer)])

    @property
    def digest(self) -> str:
        """SHA-256 of the content, as hex digits."""
        return digest_of_arrays(_arrays(self))

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        arrays = _arrays(self)
        metadata = {"sha256": digest_of_arrays(arrays)}
        return write_whole(path, lambda part: save_file(arrays, part, metadata=metadata))

    @classmethod
    def read(cls, path: Path) -> "Portion":
        """Read the file; a StoreError where it was altered or is of another version."""
        try:
            with safe_open(path, framework="numpy") as file:
                checksum = file.metadata()["sha256"]
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if digest_of_arrays(arrays) != checksum:
                raise ValueError("its checksum does not match")
            return _portion(arrays)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"a portion of work cannot be used: {shorten(str(error))}",
                where=str(path),
                remedy="the same command writes it again",
            ) from error


def items_key(answer: AnswerPlan) -> str:
    """Task and split of a set of answers, and the digest of its items."""
    return f"{answer.task}/{answer.split}/{answer.items_digest}"


def _arrays(portion: Portion) -> dict[str, np.ndarray]:
    names = [(row.ingredient, row.example_id) for row in portion.rows]
    tokens = chain.from_iterable(ids for row in portion.rows for ids in (row.prompt, row.answer))
    lengths = [(len(row.prompt), len(row.answer)) for row in portion.rows]
    return {
        "header": np.frombuffer(_HEADER.dump_json(portion), np.uint8),
        "names": np.frombuffer(_NAMES.dump_json(names), np.uint8),
        "tokens": np.fromiter(tokens, np.int32),
        "lengths": np.array(lengths, np.int32).reshape(-1, 2),
        **{_ORDER + run: np.array(rows, np.int32) for run, rows in portion.order.items()},
    }


def _portion(arrays: Mapping[str, np.ndarray]) -> Portion:
    header = _HEADER.validate_json(arrays["header"].tobytes())
    if header.format != FORMAT:
        raise ValueError(f"its format is {header.format}, this version reads {FORMAT}")
    names = _NAMES.validate_json(arrays["names"].tobytes())
    tokens = arrays["tokens"].tolist()
    rows, start = [], 0
    for name, (prompt, answer) in zip(names, arrays["lengths"].tolist(), strict=True):
        middle, end = start + prompt, start + prompt + answer
        rows.append(Row(*name, tuple(tokens[start:middle]), tuple(tokens[middle:end])))
        start = end
    order = {
        name.removeprefix(_ORDER): array("i", positions.tobytes())
        for name, positions in arrays.items()
        if name.startswith(_ORDER)
    }
    content = {field.name: getattr(header, field.name) for field in fields(Header)}
    return Portion(**content, rows=tuple(rows), order=order)
