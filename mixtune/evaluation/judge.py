"""Free answers judged by a model: rubric, both orders, verdicts, agreement with people.

A judge sees a question, the reference answer and the answer, once with the reference first and once
with the answer first. Only a verdict that is the same in both orders counts; what depends on the
order is `inconsistent`, what cannot be read is `unparsable`, and neither is a 0.

Knows: rubrics, what a judge must say, what was asked before (a cache on disk). Does not know: which
model judges, where judgements are kept, intervals.
"""

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from mixtune.errors import DataError, RunFailed, SpecError, shorten
from mixtune.identity import digest
from mixtune.models.base import Model
from mixtune.records import Answer, Example, Judgement, Message, Prediction, Query
from mixtune.tasks.templates import render

Order = Literal["reference-first", "answer-first"]
Outcome = Literal["consistent", "inconsistent", "unparsable"]
ORDERS: tuple[Order, ...] = ("reference-first", "answer-first")
RUBRIC = "correctness-1"
LONGEST_VERDICT = 512
"""Tokens that a judge may say."""
AT_ONCE = 64
"""Questions asked between two writes of the cache."""
ENOUGH_LABELS = 100
"""Labels by people under which a judge is not called validated."""

_VERDICT = re.compile(r"^[\s*_#>`]*verdict[\s*_`]*[:=]?[\s*_`]*([012])[\s*_`.]*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rubric:
    """A template with a version in its name; `id` also changes with its text."""

    name: str
    template: str

    @classmethod
    def load(cls, name: str = RUBRIC) -> "Rubric":
        """A rubric that ships with the package.

        Raises:
            SpecError: there is none of that name.
        """
        folder = resources.files("mixtune.evaluation") / "rubrics"
        known = sorted(f.name.removesuffix(".txt") for f in folder.iterdir())
        if name not in known:
            raise SpecError("no such rubric", found=name, wanted=f"one of {', '.join(known)}")
        return cls(name, (folder / f"{name}.txt").read_text(encoding="utf-8"))

    @property
    def id(self) -> str:
        """Name and a digest of the text."""
        return f"{self.name}-{digest(self.template, 8)}"

    def query(self, example: Example, answer: str, order: Order) -> Query:
        """What the judge is asked about an answer."""
        said = "\n\n".join(message.content for message in example.messages)
        pair = [("reference", example.target), ("answer", answer)]
        (first_name, first), (second_name, second) = (
            pair if order == "reference-first" else pair[::-1]
        )
        values = {
            "question": said,
            "first_name": first_name,
            "first": first,
            "second_name": second_name,
            "second": second,
        }
        text = render(self.template, values, f"rubric {self.name}, {example.task}/{example.id}")
        return Query(f"{example.id}/{order}", "", (Message("user", text),), ())


class Cache:
    """What judges said before, by judge, question and repeat; one SQLite file."""

    def __init__(self, path: Path) -> None:
        """The file is made when first written."""
        self.path = path

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are known."""
        with self._open() as db:
            rows = [
                row
                for key in keys
                for row in db.execute("SELECT key, answer FROM said WHERE key=?", (key,))
            ]
        return {key: _answer(json.loads(text)) for key, text in rows}

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Keep answers."""
        rows = [(key, json.dumps(asdict(answer))) for key, answer in answers.items()]
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO said VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30.0)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS said (key TEXT PRIMARY KEY, answer TEXT)")
                yield db
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"the cache of judgements cannot be used: {error}",
                where=str(self.path),
                remedy="free space and check permissions, or remove the file",
            ) from error


def _answer(raw: dict[str, object]) -> Answer:
    return Answer(output=str(raw["output"]), finish=raw["finish"])  # type: ignore[arg-type]


def verdict(answer: Answer) -> int | None:
    """The verdict that a judge gave: the one line of the form asked for; None for none, or two.

    What was cut off or refused has no verdict, whatever its beginning says.
    """
    if answer.finish != "stop":
        return None
    found = {match[1] for line in answer.output.splitlines() if (match := _VERDICT.match(line))}
    return int(found.pop()) if len(found) == 1 else None


def judge(
    model: Model,
    rubric: Rubric,
    answers: Sequence[tuple[Prediction, Example]],
    cache: Cache,
    again: int = 0,
) -> list[Judgement]:
    """Judgements of answers in both orders, in the order of the answers.

    Args:
        model: the judge; it is asked for text.
        rubric: what it is asked.
        answers: answers with the examples that they answer.
        cache: nothing is asked that is in it.
        again: of so many answers, the first ones, both orders are asked a second time, past what
            was cached of the first, to see whether the judge agrees with itself.

    Raises:
        RunFailed: the judge gave too few or too many answers.
    """
    asked = [
        (pair, order, repeat)
        for number, pair in enumerate(answers)
        for order in ORDERS
        for repeat in range(2 if number < again else 1)
    ]
    queries = [rubric.query(example, p.output, order) for (p, example), order, _ in asked]
    keys = [
        digest([model.system, rubric.id, query.messages[0].content, LONGEST_VERDICT, repeat], 32)
        for query, (_, _, repeat) in zip(queries, asked, strict=True)
    ]
    said = _ask(model, dict(zip(keys, queries, strict=True)), cache)
    return [
        Judgement(
            system=prediction.system,
            task=prediction.task,
            split=prediction.split,
            example=prediction.example,
            group=example.group,
            judge=model.system,
            rubric=rubric.id,
            order=order,
            repeat=repeat,
            verdict=verdict(said[key]),
            output=said[key].output,
            finish=said[key].finish,
        )
        for key, ((prediction, example), order, repeat) in zip(keys, asked, strict=True)
    ]


def _ask(model: Model, queries: Mapping[str, Query], cache: Cache) -> dict[str, Answer]:
    """An answer for each key: from the cache, or from the judge, kept as soon as it is there."""
    known = cache.get(list(queries))
    missing = [key for key in queries if key not in known]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        answers = model.generate([queries[key] for key in some], LONGEST_VERDICT)
        if len(answers) != len(some):
            raise RunFailed(f"{model.system} gave {len(answers)} answers to {len(some)} questions")
        fresh = dict(zip(some, answers, strict=True))
        cache.put(fresh)
        known |= fresh
    return known


# ---- what judgements come to ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settled:
    """What both orders together say of an answer; a verdict only where they agree."""

    task: str
    system: str
    example: str
    group: str
    outcome: Outcome
    verdict: int | None


def settle(rows: Sequence[Judgement]) -> list[Settled]:
    """One outcome per answer, from the first asking of each order.

    Raises:
        DataError: an answer that was not judged in both orders once.
    """
    pairs: defaultdict[tuple[str, str, str], list[Judgement]] = defaultdict(list)
    for row in rows:
        if row.repeat == 0:
            pairs[row.task, row.system, row.example].append(row)
    found = []
    for (task, system, example), pair in pairs.items():
        if sorted(row.order for row in pair) != sorted(ORDERS):
            raise DataError(
                "an answer is not judged once in each order",
                where=f"{system}, {task}/{example}",
                found=[row.order for row in pair],
                remedy="mixtune judge judges it again",
            )
        one, other = (row.verdict for row in pair)
        outcome: Outcome = "consistent" if one == other else "inconsistent"
        if one is None or other is None:
            outcome = "unparsable"
        agreed = one if outcome == "consistent" else None
        found.append(Settled(task, system, example, pair[0].group, outcome, agreed))
    return found


def self_agreement(rows: Sequence[Judgement]) -> tuple[int, int]:
    """How many questions that were put twice got the same readable verdict, of how many."""
    asked: defaultdict[tuple[str, ...], list[int | None]] = defaultdict(list)
    for row in rows:
        asked[row.task, row.system, row.example, row.order].append(row.verdict)
    twice = [said for said in asked.values() if len(said) > 1]
    return sum(said[0] is not None and len(set(said)) == 1 for said in twice), len(twice)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge beside people's labels; `kappa` (Cohen's) is None where one side never varies.

    `labels`: answers that have a label; `compared`: those of them with a consistent verdict.
    """

    labels: int
    compared: int
    accuracy: float | None
    kappa: float | None

    @property
    def said(self) -> str:
        """In words; validated from `ENOUGH_LABELS` compared labels on."""
        if self.compared < ENOUGH_LABELS:
            return f"not validated ({self.compared} labels by people, {ENOUGH_LABELS} needed)"
        kappa = "not defined" if self.kappa is None else f"{self.kappa:.2f}"
        return (
            f"validated on {self.compared} of {self.labels} labels by people: "
            f"accuracy {self.accuracy:.1%}, Cohen's kappa {kappa}"
        )


def agreement(settled: Sequence[Settled], labels: Mapping[tuple[str, str, str], int]) -> Agreement:
    """The judge's consistent verdicts against labels by (task, system, example)."""
    mine = {(row.task, row.system, row.example): row.verdict for row in settled}
    pairs = [(own, label) for key, label in labels.items() if (own := mine.get(key)) is not None]
    known = sum(key in mine for key in labels)
    if not pairs:
        return Agreement(known, 0, None, None)
    verdicts, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    accuracy = sum(one == other for one, other in pairs) / len(pairs)
    return Agreement(known, len(pairs), accuracy, _kappa(verdicts, theirs))


def _kappa(own: Sequence[int], theirs: Sequence[int]) -> float | None:
    """Cohen's kappa (1960); None where both always give the same one verdict."""
    if len({*own, *theirs}) == 1:
        return None
    counts = np.zeros((3, 3))
    np.add.at(counts, (list(own), list(theirs)), 1)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    unequal = ~np.eye(3, dtype=bool)
    return float(1.0 - counts[unequal].sum() / expected[unequal].sum())


def read_labels(path: Path) -> dict[tuple[str, str, str], int]:
    """Labels by people: JSON lines with task, system, example and verdict (0, 1 or 2).

    Raises:
        DataError: a line that cannot be read, or one answer with two labels.
    """
    found: dict[tuple[str, str, str], int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labels cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, label = _label(line, f"{path}, line {number}")
        if found.setdefault(key, label) != label:
            raise DataError(
                "an answer has two labels", where=f"{path}, line {number}", found=list(key)
            )
    return found


def _label(line: str, where: str) -> tuple[tuple[str, str, str], int]:
    try:
        raw = json.loads(line)
        task, system, example = (str(raw[name]) for name in ("task", "system", "example"))
        label = raw["verdict"]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_label(line, where) from error
    if type(label) is not int or label not in (0, 1, 2):
        raise _no_label(line, where)
    return (task, system, example), label


def _no_label(line: str, where: str) -> DataError:
    return DataError(
        "this is no label",
        where=where,
        found=shorten(line),
        wanted='{"task": …, "system": …, "example": …, "verdict": 0, 1 or 2}',
        remedy="mend the line; mixtune judge --to-label FILE writes lines to fill in",
    )
