"""Judges free answers with a model: rubric, both orders, verdicts, agreement with human labels.

A judge sees a question, the reference answer and the answer, once with the reference first and once
with the answer first, because models prefer positions. A verdict counts only if it is the same in
both orders; otherwise the answer is `inconsistent`, or `unparsable` where a verdict is missing, and
neither counts as 0.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from mixtune.api.ledger import Cache, Completion
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
"""Maximum tokens of a judge's answer."""
AT_ONCE = 64
"""Questions per batch; the answers of a batch are cached before the next."""
ENOUGH_LABELS = 100
"""Minimum human labels for a judge to be called validated."""

_VERDICT = re.compile(r"^[\s*_#>`]*verdict[\s*_`]*[:=]?[\s*_`]*([012])[\s*_`.]*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rubric:
    """Template of the question to a judge; its name holds a version."""

    name: str
    template: str

    @classmethod
    def load(cls, name: str = RUBRIC) -> "Rubric":
        """A rubric that ships with the package; a SpecError where there is none of that name."""
        folder = resources.files("mixtune.evaluation") / "rubrics"
        known = sorted(f.name.removesuffix(".txt") for f in folder.iterdir())
        if name not in known:
            raise SpecError("no such rubric", found=name, wanted=f"one of {', '.join(known)}")
        return cls(name, (folder / f"{name}.txt").read_text(encoding="utf-8"))

    @property
    def id(self) -> str:
        """Name and a digest of the text, so that an edited template is another rubric."""
        return f"{self.name}-{digest(self.template, 8)}"

    def query(self, example: Example, answer: str, order: Order) -> Query:
        """The question to the judge about an answer."""
        pair = [("reference", example.target), ("answer", answer)]
        first, second = pair if order == "reference-first" else pair[::-1]
        values = {
            "question": "\n\n".join(message.content for message in example.messages),
            "first_name": first[0],
            "first": first[1],
            "second_name": second[0],
            "second": second[1],
        }
        text = render(self.template, values, f"rubric {self.name}, {example.task}/{example.id}")
        return Query(f"{example.id}/{order}", "", (Message("user", text),), ())


class Answered(NamedTuple):
    """An answer and the example that it answers."""

    prediction: Prediction
    example: Example


def verdict(answer: Answer) -> int | None:
    """The verdict on the line `Verdict: N`; None without one, or with different ones.

    A truncated or refused answer has no verdict, even if it contains such a line.
    """
    if answer.finish != "stop":
        return None
    # Repeating the same verdict is unambiguous; two different verdicts are not.
    values = {match[1] for line in answer.output.splitlines() if (match := _VERDICT.match(line))}
    return int(values.pop()) if len(values) == 1 else None


class _Question(NamedTuple):
    """One question to the judge; `repeat` is 1 for the second time it is put, `key` the cache's."""

    answered: Answered
    order: Order
    repeat: int
    key: str


def judge(
    model: Model,
    rubric: Rubric,
    answers: Sequence[Answered],
    cache: Cache,
    again: int = 0,
) -> list[Judgement]:
    """Judgements of answers in both orders, in the order of the answers; from the cache if there.

    `again`: number of answers, from the first on, whose two questions are put a second time, to
    measure the judge's agreement with itself.

    Raises:
        RunFailed: the judge returned too few or too many answers.
    """
    queries: dict[str, Query] = {}
    questions: list[_Question] = []
    for number, answered in enumerate(answers):
        for order in ORDERS:
            query = rubric.query(answered.example, answered.prediction.output, order)
            for repeat in range(2 if number < again else 1):
                # The repeat is part of the key: it must not be answered from the cache.
                text = query.messages[0].content
                key = digest([model.system, rubric.id, text, LONGEST_VERDICT, repeat], 32)
                queries[key] = query
                questions.append(_Question(answered, order, repeat, key))
    replies = _generate(model, queries, cache)
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
            verdict=verdict(replies[key]),
            output=replies[key].output,
            finish=replies[key].finish,
        )
        for (prediction, example), order, repeat, key in questions
    ]


def _generate(model: Model, queries: Mapping[str, Query], cache: Cache) -> dict[str, Answer]:
    """The judge's answers by key: from the cache, else generated and cached batch by batch."""
    hits = {key: entry for key in queries if (entry := cache.get(key)) is not None}
    replies = {key: Answer(e.text, (), e.finish, e.latency) for key, e in hits.items()}
    missing = [key for key in queries if key not in replies]
    for start in range(0, len(missing), AT_ONCE):
        batch = missing[start : start + AT_ONCE]
        answers = model.generate([queries[key] for key in batch], LONGEST_VERDICT)
        if len(answers) != len(batch):
            raise RunFailed(f"{model.system} gave {len(answers)} answers to {len(batch)} questions")
        # Cached before the next batch, so that a failure there loses no answers.
        for key, answer in zip(batch, answers, strict=True):
            entry = Completion(
                answer.output, answer.finish, None, None, model.system, answer.latency
            )
            cache.put(key, entry)
            replies[key] = answer
    return replies


# ---- both orders together -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settled:
    """Outcome of both orders for an answer; a verdict only where they agree."""

    task: str
    system: str
    example: str
    group: str
    outcome: Outcome
    verdict: int | None


def settle(rows: Sequence[Judgement]) -> list[Settled]:
    """One outcome per answer, from the first repeat of each order; a DataError where one lacks."""
    pairs: defaultdict[tuple[str, str, str], list[Judgement]] = defaultdict(list)
    for row in rows:
        if row.repeat == 0:
            pairs[row.task, row.system, row.example].append(row)
    settled = []
    for (task, system, example), pair in pairs.items():
        if sorted(row.order for row in pair) != sorted(ORDERS):
            raise DataError(
                "an answer is not judged once in each order",
                where=f"{system}, {task}/{example}",
                found=[row.order for row in pair],
                remedy="mixtune judge judges it again",
            )
        first, second = (row.verdict for row in pair)
        outcome: Outcome = "consistent" if first == second else "inconsistent"
        if first is None or second is None:
            outcome = "unparsable"
        agreed = first if outcome == "consistent" else None
        settled.append(Settled(task, system, example, pair[0].group, outcome, agreed))
    return settled


class SelfAgreement(NamedTuple):
    """Questions put twice, and those among them with the same parsed verdict both times."""

    agreed: int
    twice: int


def self_agreement(rows: Sequence[Judgement]) -> SelfAgreement:
    """The judge's agreement with itself on repeated questions."""
    verdicts: defaultdict[tuple[str, ...], list[int | None]] = defaultdict(list)
    for row in rows:
        verdicts[row.task, row.system, row.example, row.order].append(row.verdict)
    repeated = [values for values in verdicts.values() if len(values) > 1]
    agreed = sum(values[0] is not None and len(set(values)) == 1 for values in repeated)
    return SelfAgreement(agreed, len(repeated))


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against human labels; `kappa` (Cohen's) is None where neither side ever varies.

    `labels`: labelled answers; `compared`: those with a consistent verdict.
    """

    labels: int
    compared: int
    accuracy: float | None
    kappa: float | None

    @property
    def summary(self) -> str:
        """One line; "validated" from `ENOUGH_LABELS` compared labels on."""
        if self.compared < ENOUGH_LABELS:
            return f"not validated ({self.compared} labels by people, {ENOUGH_LABELS} needed)"
        kappa = "not defined" if self.kappa is None else f"{self.kappa:.2f}"
        return (
            f"validated on {self.compared} of {self.labels} labels by people: "
            f"accuracy {self.accuracy:.1%}, Cohen's kappa {kappa}"
        )


def agreement(settled: Sequence[Settled], labels: Mapping[tuple[str, str, str], int]) -> Agreement:
    """The judge's consistent verdicts against human labels by (task, system, example)."""
    verdicts = {(row.task, row.system, row.example): row.verdict for row in settled}
    labelled = [(verdicts[key], label) for key, label in labels.items() if key in verdicts]
    pairs = [(own, label) for own, label in labelled if own is not None]
    if not pairs:
        return Agreement(len(labelled), 0, None, None)
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(zip(*pairs, strict=True)), 1)
    accuracy = float(counts.trace() / len(pairs))
    return Agreement(len(labelled), len(pairs), accuracy, _kappa(counts))


def _kappa(counts: np.ndarray) -> float | None:
    """Cohen's kappa (1960) of verdicts × labels; None where both always give the same one."""
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    unequal = ~np.eye(3, dtype=bool)
    if not expected[unequal].any():
        return None
    return float(1.0 - counts[unequal].sum() / expected[unequal].sum())


class _Label(BaseModel, coerce_numbers_to_str=True):
    """A line of human labels."""

    task: str
    system: str
    example: str
    verdict: Annotated[int, Field(strict=True, ge=0, le=2)]


def read_labels(path: Path) -> dict[tuple[str, str, str], int]:
    """Human labels: JSON lines with task, system, example and verdict (0, 1 or 2).

    Raises:
        DataError: the file or a line cannot be read, or an answer has two different labels.
    """
    labels: dict[tuple[str, str, str], int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labels cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            label = _Label.model_validate_json(line)
        except ValidationError as error:
            raise DataError(
                "this is no label",
                where=where,
                found=shorten(line),
                wanted='{"task": …, "system": …, "example": …, "verdict": 0, 1 or 2}',
                remedy="fix the line; mixtune judge --to-label FILE writes lines to fill in",
            ) from error
        key = (label.task, label.system, label.example)
        if labels.setdefault(key, label.verdict) != label.verdict:
            raise DataError("an answer has two labels", where=where, found=list(key))
    return labels
