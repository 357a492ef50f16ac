"""Free answers of a study → judgements → mean verdicts, system by system.

Judgements are facts beside the predictions: the raw answers of a judge. They can be made again from
the cache of judges' answers, so that nothing is asked twice.

Knows: which answers are free text, where judgements are stored. Does not know: which model judges,
the rubric's text, how a number is shown.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from mixtune.analysis.intervals import Interval, wilson
from mixtune.analysis.readings import mean_interval
from mixtune.api.ledger import Cache
from mixtune.errors import SpecError, did_you_mean
from mixtune.evaluation.judge import Answered, Rubric, Settled, judge, self_agreement, settle
from mixtune.identity import make_id
from mixtune.models.base import Model
from mixtune.records import JUDGED_ON, Example, Judged, Judgement, Prediction, Split
from mixtune.results.study_results import StudyFacts, read_answers
from mixtune.store.folder import PlanRow
from mixtune.tasks.metrics import FloatArray

FILE = "judged.parquet"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdicts of one judge: rows, what they rest on, questions put twice and those that agreed."""

    rows: list[Judged]
    settled: list[Settled]
    agreed: int
    twice: int


class _Judge(NamedTuple):
    """System id of the model that judges, and id of its rubric."""

    judge: str
    rubric: str


@dataclass(frozen=True, slots=True)
class FreeAnswers:
    """The free answers of a study on one split: facts and the sets of answers to judge."""

    facts: StudyFacts
    rows: list[PlanRow]

    def judge(self, model: Model, rubric: Rubric, cache: Cache, again: int) -> Outcome:
        """Judge every answer; judgements are written beside the answers."""
        by = _Judge(model.system, rubric.id)
        judged: list[Judged] = []
        settled: list[Settled] = []
        agreed = twice = 0
        for row in self.rows:
            answers, left_out = self._answers(row)
            judgements = judge(model, rubric, answers, cache, again)
            self.facts.store.write_rows(_file(row, by), Judgement, judgements)
            outcomes = settle(judgements)
            judged.append(_judged(row, by, outcomes, left_out))
            settled += outcomes
            same, repeated = self_agreement(judgements)
            agreed, twice = agreed + same, twice + repeated
        return Outcome(judged, settled, agreed, twice)

    def to_label(self, count: int) -> str:
        """JSON lines for people to fill in: answers of all systems in turn, verdicts null."""
        queues = [self._answers(row)[0] for row in self.rows]
        lines: list[str] = []
        for index in range(max(map(len, queues), default=0)):
            for queue in queues:
                if index < len(queue) and len(lines) < count:
                    lines.append(json.dumps(_unlabelled(*queue[index]), ensure_ascii=False))
        return "".join(f"{line}\n" for line in lines)

    def _answers(self, row: PlanRow) -> tuple[list[Answered], int]:
        """Answers that can be judged, and the number of those that cannot."""
        predictions, items = read_answers(self.facts, row)
        examples = {example.id: example for example in items}
        complete = [p for p in predictions if p.finish == "stop" and p.output.strip()]
        return [Answered(p, examples[p.example]) for p in complete], len(predictions) - len(
            complete
        )


def free_answers(facts: StudyFacts, split: Split, only: Sequence[str] = ()) -> FreeAnswers:
    """Sets of free answers on a split; `only`: names of tasks, empty for all that have some.

    Raises:
        SpecError: no such task among them, there are none, or they are on another split.
    """
    free = list(facts.free_text_tasks)
    names = [facts.registry.get(name).name for name in only] or free
    for name in names:
        if name not in free:
            raise SpecError(
                f"{name} has no free answers in this study",
                wanted=did_you_mean(name, free) if free else "a study with an open task",
                remedy="mixtune results scores the others",
            )
    if not names:
        raise SpecError(
            "no task of this study has free answers",
            where=facts.study.name,
            found=", ".join(facts.tasks),
            remedy="mixtune results scores labels and numbers",
        )
    if split != JUDGED_ON and all(facts.free_text_tasks[name].judged for name in names):
        raise SpecError(
            f"{', '.join(names)} is answered on {JUDGED_ON} only",
            found=f"--split {split}",
            remedy=f"--split {JUDGED_ON}: nothing is chosen by what is judged",
        )
    rows = [
        row
        for row in facts.finished()
        if row.task in names and row.split == split and row.form == "strict"
    ]
    return FreeAnswers(facts, rows)


def write_judged(
    facts: StudyFacts, rows: Sequence[Judged], validation: str, agreement: str
) -> list[Judged]:
    """Write what verdicts come to, in place of what the same judge said before.

    Returns the rows as they are written, with these words.

    Args:
        facts: the study.
        rows: of one judge.
        validation: whether the judge is validated, in words.
        agreement: how far it agrees with itself, in words.
    """
    new = [replace(row, validation=validation, self_agreement=agreement) for row in rows]
    replaced = {_key(row) for row in new}
    earlier = [row for row in read_judged(facts) if _key(row) not in replaced]
    facts.store.write_rows(FILE, Judged, [*earlier, *new])
    return new


def read_judged(facts: StudyFacts) -> list[Judged]:
    """Judges' verdicts on answers that still are the study's; none where no judge was asked."""
    if not (facts.store.folder / FILE).is_file():
        return []
    answers = {row.id for row in facts.finished()}
    rows = [Judged(**row) for row in facts.store.read_rows(FILE)]
    return [row for row in rows if row.answer in answers]


def _key(row: Judged) -> tuple[str, ...]:
    return row.judge, row.rubric, row.answer


def _file(row: PlanRow, by: _Judge) -> str:
    judgement = make_id("judgement", by._asdict())
    return f"{row.folder}/answers/{row.id}/judgements-{judgement}.parquet"


def _judged(row: PlanRow, by: _Judge, settled: Sequence[Settled], left_out: int) -> Judged:
    counts: defaultdict[Any, int] = defaultdict(int)
    for answer in settled:
        counts[answer.outcome] += 1
        counts[answer.verdict] += 1
    consistent = [answer for answer in settled if answer.verdict is not None]
    values = np.array([(answer.verdict or 0) / 2 for answer in consistent])
    groups = [answer.group for answer in consistent]
    ci = _interval(values, groups, f"judge/{row.task}/{row.split}")
    return Judged(
        **by._asdict(),
        task=row.task,
        split=row.split,
        answer=row.id,
        system=row.system,
        cocktail=row.cocktail,
        seed=row.seed,
        value=float(values.mean()) if consistent else None,
        low=ci.low,
        high=ci.high,
        method=ci.method,
        answers=len(settled),
        wrong=counts[0],
        partly=counts[1],
        right=counts[2],
        consistent=counts["consistent"],
        inconsistent=counts["inconsistent"],
        unparsable=counts["unparsable"],
        left_out=left_out,
    )


def _interval(values: FloatArray, groups: Sequence[str], name: str) -> Interval:
    """Of a mean verdict; where all are the same, a bootstrap would claim no uncertainty."""
    ci = mean_interval(values, groups, name)
    if ci.low is None or ci.low != ci.high:
        return ci
    clusters = len(set(groups))
    value, bound = float(values.mean()), wilson(0, clusters)[1]
    method = f"no verdict varies: Wilson's bound for an event unseen in {clusters} clusters"
    return Interval(max(0.0, value - bound), min(1.0, value + bound), method)


def _unlabelled(prediction: Prediction, example: Example) -> dict[str, object]:
    return {
        "task": prediction.task,
        "system": prediction.system,
        "example": prediction.example,
        "question": "\n\n".join(message.content for message in example.messages),
        "reference": example.target,
        "answer": prediction.output,
        "verdict": None,
    }
